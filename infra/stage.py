"""How a stage ends: with one line on what its table holds, or with one error on what stopped it."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from infra.errors import CommandError, StageFailedError
from infra.storage import Table


def summary(table: Table, *, rows: str = "rows") -> str:
    """Rows, which `rows` says more of, and rejects by reason."""
    reasons = Counter(table.read_rejects()["reason"].to_pylist())
    rejected = ", ".join(f"{reason} {n}" for reason, n in sorted(reasons.items()))
    return f"{table.name}: {table.n_rows()} {rows}, {reasons.total()} rejects" + (f" ({rejected})" if rejected else "")


@contextmanager
def failing(stage: str) -> Iterator[None]:
    """What Ray raises for a worker's trouble, as the error that the worker raised, or as StageFailedError in one line."""
    import ray.exceptions  # here, so that a stage with nothing to do starts in a second

    try:
        yield
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, CommandError):
            raise cause from error
        last = str(error).strip().splitlines()[-1]
        raise StageFailedError(f"{stage}: {last}; run the same command again, it continues") from error
