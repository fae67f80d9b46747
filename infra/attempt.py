"""The right to write a table: one run's, held by one process, and ended by the next run that begins.

Workers write files with a ShardWriter; the process that began the run commits them with its Attempt. See `infra.storage`.
"""

import hashlib
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from infra import metrics
from infra.artifacts import REJECT_REASONS, REJECTS, REJECTS_BY_KEY
from infra.digests import digest, now
from infra.errors import BadInputError, RowsLostError, StorageError, SupersededError
from infra.log import Entry
from infra.objects import remove, write_new
from infra.parquet import to_parquet
from infra.state import REJECTS as OF_REJECTS
from infra.state import ROWS, File, State, among

if TYPE_CHECKING:
    from infra.storage import Table

BYTES_OF_A_PATH = 56  # of a file in a table; each row has one
MOST_BYTES = 2**31 - 2**22

Row = dict[str, Any]


class Attempt:
    """One run's right to write a table, held by one process. `left` are the wanted keys without row or reject."""

    def __init__(self, table: "Table", state: State, wanted: pa.Array) -> None:
        self.table, self.state, self.number = table, state, state.attempt
        self._wanted = wanted
        self.began_s = time.monotonic()
        self.left = self._without_outcome()
        check_size(table.folder, n=state.n_said + len(self.left), n_bytes=state.n_bytes_said + sum(map(len, self.left)))

    def writer(self) -> "ShardWriter":
        """What workers write this run's files with."""
        return ShardWriter(self.table, self.number)

    def commit(self, files: Sequence[File]) -> int:
        """Make files visible, all at once; how many keys that is. Rows that are there already (a task that ran twice) are left out.

        Raises SupersededError if another run has begun, StorageError.
        """
        add: list[File] = []
        taken: set[str] = set()
        for file in files:
            new = self.left.intersection(file.keys) - taken
            if new:
                add += [file] if len(new) == len(file.keys) else self._part_of(file, new)
                taken |= new
        if add:
            self._append({"kind": "commit", "add": [file.described() for file in add], "remove": []})
            self.left -= taken
            metrics.committed(
                self.table.name,
                n_rows=sum(file.n_rows for file in add if file.kind == ROWS),
                reasons=[reason for file in add for reason in file.reasons],
                n_left=len(self.left),
                seconds=time.monotonic() - self.began_s,
            )
        return len(taken)

    def write(self, rows: Sequence[Row], rejects: Sequence[Row], *, place: int = 0) -> int:
        """Write rows and rejects of this process and commit them."""
        return self.commit(self.writer().write(rows, rejects, place=place))

    def reopen(self, keys: Iterable[str]) -> None:
        """These keys may be said anew by this run; until they are, what was said before counts."""
        self.left.update(among(pa.table({"key": self._wanted}), pa.array(keys, pa.string()))["key"].to_pylist())

    def void(self, keys: Iterable[str]) -> None:
        """What was said of these keys no longer counts, from now on: they are left to be made again, by this run or a later one."""
        keys = sorted(keys)
        if keys:
            self._append({"kind": "void", "keys": keys})
            self.reopen(keys)

    def drop(self, keys: Iterable[str], *, lost: Sequence[str] = ()) -> int:
        """Remove keys' rows and rejects for good, by writing the files that hold them anew without them; returns how many files.

        `lost` are paths of files that cannot be read any more: all of their keys go. The old files are removed after the commit.
        """
        gone_keys = set(keys)
        gone = pa.array(sorted(gone_keys), pa.string())
        live = self.state.live()
        # Also files where such a key stands that was said again since.
        touched = {path for path, file in self.state.files.items() if not gone_keys.isdisjoint(file.keys)} | set(lost)
        stay = among(live, pa.array(sorted(touched), pa.string()), column="path")
        stay = stay.filter(pc.invert(pc.is_in(stay["key"], value_set=gone)))
        kept: dict[str, set[str]] = {}
        for path, key in zip(stay["path"].to_pylist(), stay["key"].to_pylist(), strict=True):
            kept.setdefault(path, set()).add(key)
        add: list[File] = []
        for path in sorted(kept.keys() - set(lost)):
            add += self._part_of(self.state.files[path], kept[path])
        if touched:
            self._append({"kind": "commit", "add": [file.described() for file in add], "remove": sorted(touched)})
            self.left = self._without_outcome()
            for path in touched:
                remove(f"{self.table.folder}/{path}")
        return len(touched)

    def complete(self, *, measures: dict[str, Any] | None = None) -> None:
        """Close the books. Raises RowsLostError unless every wanted key is a row or a reject; SupersededError, StorageError."""
        counted = among(self.state.live(), self._wanted)
        rows = counted.filter(pc.equal(counted["kind"], ROWS))["key"]
        if len(counted) != len(self._wanted):
            n_left = len(self._wanted) - len(counted)
            raise RowsLostError(
                f"{self.table.folder}: {len(self._wanted)} rows in, {len(rows)} out and {len(counted) - len(rows)} rejected: "
                f"{n_left} are missing; run the same command again"
            )
        begun = self.state.begun or {}
        self._append(
            {
                "kind": "complete",
                "asked": begun["asked"],
                "wanted": begun["wanted"],
                "rows": digest(rows),
                "n_rows": len(rows),
                "n_rejects": len(counted) - len(rows),
                "measures": measures or {},
                "at": now(),
            }
        )

    def _without_outcome(self) -> set[str]:
        return set(self._wanted.filter(pc.invert(pc.is_in(self._wanted, value_set=self.state.live()["key"]))).to_pylist())

    def _append(self, entry: Entry) -> None:
        entry = {**entry, "attempt": self.number}
        if not self.table.log.append(entry, number=self.state.version):
            later = self.table.state().begun or {}
            raise SupersededError(
                f"{self.table.folder}: run {self.number} was superseded by run {later.get('attempt')} of {later.get('who')}, "
                f"begun {later.get('at')}; what was committed is kept, and the later run goes on from it"
            )
        self.state.take([entry])

    def _part_of(self, file: File, keys: set[str]) -> list[File]:
        """A file of some of its keys' rows."""
        spec = self.table.spec if file.kind == ROWS else REJECTS_BY_KEY
        found = self.table.read_file(file)
        found = found.filter(pc.is_in(spec.keys_of(found), value_set=pa.array(sorted(keys), pa.string())))
        return [self.writer().write_file(found, file.kind, place=file.place)]


@dataclass(frozen=True)
class ShardWriter:
    """Writes files of one run, on any worker. Nothing it writes is there for a reader before the run commits it."""

    table: "Table"
    attempt: int

    def write(self, rows: Sequence[Row], rejects: Sequence[Row], *, place: int = 0) -> list[File]:
        """A file of rows and one of rejects, as far as there are any. Raises ValueError for a reason not on the list; StorageError."""
        unknown = {row["reason"] for row in rejects} - REJECT_REASONS
        if unknown:
            raise ValueError(f"rejects: got reason {sorted(unknown)}, expected one of {sorted(REJECT_REASONS)}")
        files = []
        if rows:
            files.append(self.write_file(pa.Table.from_pylist(list(rows), schema=self.table.spec.schema), ROWS, place=place))
        if rejects:
            files.append(self.write_file(pa.Table.from_pylist(list(rejects), schema=REJECTS.schema), OF_REJECTS, place=place))
        return files

    def write_file(self, rows: pa.Table, kind: str, *, place: int = 0) -> File:
        """One file. Raises ValueError for two rows of one key; StorageError."""
        spec = self.table.spec if kind == ROWS else REJECTS_BY_KEY
        keys = tuple(spec.keys_of(rows).to_pylist())
        if len(set(keys)) != len(keys) or None in keys:
            raise ValueError(f"{self.table.folder}: got {len(keys)} rows of {len(set(keys))} keys, expected a key of its own for each")
        data = to_parquet(rows)
        path = f"{'shards' if kind == ROWS else 'rejects'}/{self.attempt:06d}-{uuid.uuid4().hex}.parquet"
        if not write_new(f"{self.table.folder}/{path}", data):
            raise StorageError(f"{self.table.folder}/{path} is there already, and nobody else can have named it")
        reasons = () if kind == ROWS else tuple(rows["reason"].to_pylist())
        return File(path, kind, len(rows), hashlib.sha256(data).hexdigest(), len(data), place, keys, reasons)


def check_size(folder: str, *, n: int, n_bytes: int) -> None:
    """That a table's keys and its files' paths fit where Arrow holds 2 GiB of texts. Raises BadInputError: before anything is made."""
    if max(n * BYTES_OF_A_PATH, n_bytes) > MOST_BYTES:
        raise BadInputError(
            f"{folder}: {n:,} keys, those that were replaced too, of {n_bytes / 1e9:.1f} GB: a set holds about 38 million of 55 characters"
            " at most. Divide the videos over several data folders"
        )


def reject(stage: str, key: str, reason: str, detail: str = "") -> Row:
    """A row of `rejects`."""
    return {"stage": stage, "key": key, "reason": reason, "detail": detail[:500]}
