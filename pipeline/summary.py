"""A table -> the one line a stage ends with."""

from collections import Counter

from infra.storage import Table


def summary(table: Table) -> str:
    """Rows, and rejects by reason."""
    reasons = Counter(table.read_rejects()["reason"].to_pylist())
    rejected = ", ".join(f"{reason} {n}" for reason, n in sorted(reasons.items()))
    return f"{table.name}: {table.n_rows()} rows, {reasons.total()} rejects" + (f" ({rejected})" if rejected else "")
