"""A table after a fault -> what the fault cost, told from storage alone: the log, every file that was ever written, an undisturbed table.

Rows of files that no log entry names were made and lost, so they are made again: `n_redone` counts rows that are in more files than one,
committed or not. What a killed worker had in hands and in no file is not seen here; opens of the clips show it (`tests.faults.opened`).
"""

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infra import books
from infra.artifacts import REJECTS_BY_KEY
from infra.objects import names, read_bytes
from infra.s3 import S3
from infra.storage import Table

EXPECTED = ("orphan",)  # files that a killed run wrote and could not commit are no fault of the books


@dataclass(frozen=True)
class Cost:
    """What a fault cost. `findings`: what `video2lora verify` says beside orphan files."""

    n_lost: int
    n_twice: int
    n_redone: int
    n_waiting: int  # rows of files that were whole when the fault came, and in no commit yet
    oldest_s: float  # how long the oldest of these files had been whole
    n_other: int  # rows and rejects that differ from the undisturbed table's
    n_rejects: int
    findings: list[str]


def cost(table: Table, undisturbed: Table, *, struck_at: float = 0.0, but: frozenset[str] = frozenset()) -> Cost:
    """Compared with an undisturbed run's table; rows of the keys `but` are left out, as the scenario itself changed them.

    `struck_at`: when the fault came, in seconds as files have their times; on a disk only.
    """
    state = table.state()
    committed = [key for file in state.files.values() if file.kind == "rows" for key in _keys(table, file.path)]
    made = Counter(key for folder in ("shards", "rejects") for name in names(f"{table.folder}/{folder}") if name.endswith(".parquet")
                   for key in _keys(table, f"{folder}/{name}"))  # fmt: skip
    waiting = _waiting(table, struck_at)
    there, expected = _rows(table), _rows(undisturbed)
    rejects = {row["key"] for row in table.read_rejects().to_pylist()}
    return Cost(
        n_lost=len(set(table.wanted(state).to_pylist()) - set(there) - rejects),
        n_twice=len(committed) - len(set(committed)),
        n_redone=sum(n - 1 for n in made.values()),
        n_waiting=sum(len(_keys(table, path)) for path in waiting),
        oldest_s=max((struck_at - at for at in waiting.values()), default=0.0),
        n_other=sum(there.get(key) != expected.get(key) for key in (there.keys() | expected.keys()) - but),
        n_rejects=len(rejects),
        findings=[finding.line() for finding in _findings(table) if finding.kind not in EXPECTED],
    )


def _waiting(table: Table, struck_at: float) -> dict[str, float]:
    """Path and time of each file that no commit names, and that was there already when the fault came."""
    if table.root.startswith(S3):
        return {}
    files = table.state().files
    paths = [f"{folder}/{name}" for folder in ("shards", "rejects") for name in names(f"{table.folder}/{folder}")]
    times = {path: Path(table.folder, path).stat().st_mtime for path in paths if path not in files and path.endswith(".parquet")}
    return {path: at for path, at in times.items() if at < struck_at}


def _findings(table: Table) -> list[books.Finding]:
    return [finding for book in books.examine(table.root) if book.table == table for finding in book.findings]


def _keys(table: Table, path: str) -> list[str]:
    data = read_bytes(f"{table.folder}/{path}")
    assert data is not None, path
    spec = REJECTS_BY_KEY if path.startswith("rejects/") else table.spec
    keys: list[str] = spec.keys_of(pq.read_table(io.BytesIO(data), columns=list(spec.key))).to_pylist()
    return keys


def _rows(table: Table) -> dict[str, dict[str, object]]:
    """Key -> the whole row, pictures and texts included; rejects with their reasons."""
    rows: pa.Table = table.read()
    found = dict(zip(table.spec.keys_of(rows).to_pylist(), rows.to_pylist(), strict=True)) if rows.num_rows else {}
    return found | {row["key"]: {"reason": row["reason"]} for row in table.read_rejects().to_pylist()}
