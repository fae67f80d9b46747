"""Ray Data -> committed tables: what a stage's last step hands on, and how it is committed block by block.

A stage maps batches of its input to outcomes: one Arrow table whose rows are either a row of the stage's table or a reject.
Each block is one commit, so a killed run loses at most the blocks in flight, and a row and its reject never both count.
"""

from typing import Any

import pyarrow as pa
from ray.data import Dataset

from infra.artifacts import REJECTS, TableSpec
from infra.progress import Counter
from infra.storage import Table

_REJECT = pa.field("reject", pa.struct(list(REJECTS.schema)))


def outcomes(spec: TableSpec, rows: list[dict[str, Any]], rejects: list[dict[str, Any]]) -> pa.Table:
    """Rows of a table and rejects as one Arrow table, of the same schema however many there are of each."""
    schema = pa.schema([*spec.schema, _REJECT])
    return pa.Table.from_pylist([{**row, "reject": None} for row in rows] + [{"reject": one} for one in rejects], schema=schema)


def commit_outcomes(table: Table, block: pa.Table) -> None:
    """Commit one block of outcomes."""
    names = table.spec.schema.names
    found = block.to_pylist()
    rows = [{name: one[name] for name in names} for one in found if one["reject"] is None]
    rejects = [one["reject"] for one in found if one["reject"] is not None]
    if rows or rejects:
        table.commit(rows, rejects)


def write_outcomes(ds: Dataset, table: Table, counter: Counter) -> None:
    """Run the flow and commit it as it comes, counting outcomes. Committing here, not in a last task, shows progress as it happens."""
    for block in ds.iter_batches(batch_size=None, batch_format="pyarrow"):
        commit_outcomes(table, block)
        counter.advance(len(block))
