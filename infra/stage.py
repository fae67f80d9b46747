"""A stage between its beginning and its end: what it is to make, the one line it ends with, or the one error."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from infra.attempt import Attempt
from infra.errors import CommandError, StageFailedError
from infra.sets import Made, register
from infra.storage import Table

RAYS_ADVICE = "\nFailed to apply UDF transform"  # what Ray Data adds to an error of ours


@dataclass(frozen=True)
class Order:
    """What a stage is to make: rows of `table` for all keys that are `wanted`; `asked` says what the wish came from, with its inputs."""

    table: Table
    asked: dict[str, Any]
    wanted: list[str]
    made: Made = field(default_factory=dict)  # what makes a row beside its key, where the table has sets

    def begin(self) -> Attempt:
        """Take over the table. Raises StorageError."""
        if self.table.set:
            register(self.table, self.made)
        return self.table.begin(self.asked, self.wanted)


def summary(table: Table) -> str:
    """Rows, and rejects by reason."""
    reasons = Counter(table.read_rejects()["reason"].to_pylist())
    rejected = ", ".join(f"{reason} {n}" for reason, n in sorted(reasons.items()))
    return f"{table.name}: {table.n_rows()} rows, {reasons.total()} rejects" + (f" ({rejected})" if rejected else "")


@contextmanager
def failing(stage: str) -> Iterator[None]:
    """What Ray raises for a worker's trouble, as the error that the worker raised, or as StageFailedError in one line."""
    import ray.exceptions  # here, so that a stage with nothing to do starts in a second

    try:
        yield
    except ray.exceptions.RayError as error:
        cause, told = first_cause(error)
        if isinstance(cause, CommandError):
            raise type(cause)(told) from error
        first = told.splitlines()[0] if told else "no word"
        raise StageFailedError(f"{stage}: {type(cause).__name__}: {first}; run the same command again, it continues") from error


def first_cause(error: BaseException) -> tuple[BaseException, str]:
    """What a worker of Ray raised, where that is behind an error, and its own words: Ray's would have the worker's whole traceback."""
    cause = getattr(error, "cause", None) or error
    return cause, str(cause).split(RAYS_ADVICE)[0].strip()
