"""Tables on a disk or in a bucket: written new, then committed; read only where committed.

A table lies in <root>/<name>, or in sets below it, one for each way of making its rows. In its folder:

    log/        what was committed, entry by entry: the table itself (`infra.log`, `infra.state`)
    shards/     files of rows, under names never used twice        rejects/   rows that left the flow here
    wanted/     the keys that a run was asked for, named by their hash

A run begins with a number, which ends every run before it: whose number is not the highest can commit nothing more. Files are written
first, by any worker; the one process that began the run then commits them. A file that no entry names does not exist for any reader.
What is asked for and not there is made; what is there is never made again. docs/storage.md says what comes of each crash.
"""

import hashlib
import json
import os
import socket
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra.artifacts import REJECTS, REJECTS_BY_KEY, TABLES, TableSpec
from infra.attempt import Attempt
from infra.digests import digest, now
from infra.errors import BadInputError, StorageError
from infra.log import N_READERS, Log
from infra.objects import prove_written_once, read_bytes, size_on_disk, write_new
from infra.parquet import from_parquet, from_parquet_file, from_parquet_parts, to_parquet
from infra.s3 import S3, OtherObjectError, read_part
from infra.state import REJECTS as OF_REJECTS
from infra.state import ROWS, File, State, among

KEY = pa.schema([("key", pa.string())])
WHOLE_BYTES = 1 << 20  # a file in a bucket up to this size is read in one request


@dataclass(frozen=True)
class Table:
    """One table under a data root. Cheap to make and to send to a worker: it holds names, no connection."""

    root: str
    name: str
    set: str = ""

    @property
    def spec(self) -> TableSpec:
        return TABLES[self.name]

    @property
    def folder(self) -> str:
        return f"{self.root.rstrip('/')}/{self.name}" + (f"/{self.set}" if self.set else "")

    @property
    def log(self) -> Log:
        return Log(f"{self.folder}/log")

    def state(self) -> State:
        """The log as it is now. Raises StorageError."""
        return State().take(self.log.read())

    def finished(self, asked: dict[str, Any]) -> bool:
        """Whether the last run was asked for the same and closed its books: there is nothing to do."""
        state = self.state()
        return state.is_complete and state.completed is not None and state.completed["asked"] == _plain(asked)

    def begin(self, asked: dict[str, Any], wanted: Iterable[str]) -> Attempt:
        """Take over the table, for the keys that are wanted. Raises StorageError; ValueError for a key wanted twice.

        A table's first run asks the storage for what all rests on, that a name is given once: Ceph 16 does not in buckets with versions.
        """
        keys = pa.array(wanted, pa.string())
        if not self.state().version:
            prove_written_once(self.folder)
        name = self._write_wanted(keys)
        while True:
            state = self.state()
            entry = {
                "kind": "begin",
                "attempt": state.attempt + 1,
                "asked": _plain(asked),
                "wanted": name,
                "n_wanted": len(keys),
                "who": f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}",
                "at": now(),
            }
            if self.log.append(entry, number=state.version):
                return Attempt(self, state.take([entry]), keys)

    def is_complete(self) -> bool:
        return self.state().is_complete

    def made_from(self) -> dict[str, Any]:
        """What made the table, all the way down. Raises BadInputError if it is not complete: nothing is to be built on it."""
        state = self.state()
        if state.completed is None or not state.is_complete:
            raise BadInputError(f"{self.folder} is not there or not complete: run the stage that makes it first")
        facts = {name: state.completed[name] for name in ("asked", "rows", "n_rows", "n_rejects")}
        return {"set": self.set, **facts} if self.set else facts

    def wanted(self, state: State | None = None) -> pa.ChunkedArray:
        """The keys that the last run was asked for; none before the first. Raises StorageError if they are not the ones it wrote."""
        begun = (state or self.state()).begun
        if begun is None:
            return pa.chunked_array([], pa.string())
        path = f"{self.folder}/wanted/{begun['wanted']}.parquet"
        data = read_bytes(path)
        try:
            keys = None if data is None else from_parquet(data, ["key"])["key"]
        except pa.ArrowException:
            keys = None
        if keys is None or digest(keys) != begun["wanted"]:
            what = "gone" if data is None else "not the file that was written"
            raise StorageError(f"{path} is {what}: `video2lora verify --repair` writes it anew, or has the stage ask again")
        return keys

    def counted(self, state: State | None = None) -> pa.Table:
        """Keys that are wanted and have a row or reject: columns key, path, kind."""
        state = state or self.state()
        return among(state.live(), self.wanted(state))

    def keys(self) -> pa.ChunkedArray:
        """Keys of all rows that are wanted, from the log: no file of rows is read."""
        counted = self.counted()
        return counted.filter(pc.equal(counted["kind"], ROWS))["key"]

    def shards_of(self, keys: Iterable[str]) -> dict[str, list[str]]:
        """Address of each file that holds rows of these keys -> those of the keys that it holds."""
        found: dict[str, list[str]] = {}
        counted = self.counted()
        counted = among(counted.filter(pc.equal(counted["kind"], ROWS)), pa.array(keys, pa.string()))
        for row in counted.sort_by("path").to_pylist():
            found.setdefault(f"{self.folder}/{row['path']}", []).append(row["key"])
        return found

    def shards(self) -> list[str]:
        """Addresses of the files that hold rows of wanted keys, by their place. Other rows may stand beside them."""
        return [f"{self.folder}/{path}" for path in self._paths(ROWS, *self._now_counted())]

    def n_rows(self) -> int:
        return len(self.keys())

    def n_rejects(self) -> int:
        return self._n(OF_REJECTS)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of wanted keys. Raises StorageError."""
        return self._read(ROWS, self.spec, columns)

    def read_rejects(self) -> pa.Table:
        """All rejects of the stage that writes this table."""
        return self._read(OF_REJECTS, REJECTS_BY_KEY, None)

    def read_keys(self, keys: Iterable[str], columns: Sequence[str], *, kind: str = ROWS) -> pa.Table:
        """The rows, or rejects, of these keys, also of those that are wanted no longer; no file is read but those that hold them."""
        state, spec = self.state(), self.spec if kind == ROWS else REJECTS_BY_KEY
        live = among(state.live(), pa.array(keys, pa.string()))
        return self._read_files(kind, spec, columns, state, live.filter(pc.equal(live["kind"], kind)))

    def read_all(self, columns: Sequence[str]) -> pa.Table:
        """All rows, also of keys that are wanted no longer."""
        return self.read_keys(self.state().live()["key"].to_pylist(), columns)

    def read_file(self, file: File, columns: Sequence[str] | None = None) -> pa.Table:
        """One file. Raises StorageError if it is gone, not the one that was committed, or from before a column.

        Of some columns no more is read than they are, so that ids do not cost pictures; then only the size is compared. In a bucket this
        takes a request each and one for the file's end, so a small file is read whole.
        """
        path, schema = f"{self.folder}/{file.path}", self.spec.schema if file.kind == ROWS else REJECTS.schema
        try:
            if columns is not None and set(columns) != set(schema.names):
                if size_on_disk(path) == file.n_bytes:
                    return from_parquet_file(path, columns)
                if path.startswith(S3) and file.n_bytes > WHOLE_BYTES:
                    with suppress(OtherObjectError):  # told below
                        return from_parquet_parts(partial(read_part, path, size=file.n_bytes), file.n_bytes, columns)
            found = self._read_whole(path, file, columns or schema.names)
        except KeyError as error:
            why = f"{path} was written before a column that is read now ({error})"
            raise StorageError(f"{self.folder}: {why}: run the stage that makes it again") from error
        return found.cast(pa.schema([schema.field(name) for name in found.schema.names]))

    def _read_whole(self, path: str, file: File, columns: Sequence[str]) -> pa.Table:
        data = read_bytes(path)
        if data is None or hashlib.sha256(data).hexdigest() != file.sha256:
            raise StorageError(
                f"{path} is {'gone' if data is None else 'not the file that was committed'}: `video2lora verify --repair` has it made again"
            )
        return from_parquet(data, columns)

    def _read(self, kind: str, spec: TableSpec, columns: Sequence[str] | None) -> pa.Table:
        state, counted = self._now_counted()
        return self._read_files(kind, spec, columns, state, counted.filter(pc.equal(counted["kind"], kind)))

    def _read_files(self, kind: str, spec: TableSpec, columns: Sequence[str] | None, state: State, chosen: pa.Table) -> pa.Table:
        """Of rows or rejects those that are chosen (of one `kind`), file by file in order; several are fetched at a time."""
        names = list(columns or spec.schema.names)
        schema = pa.schema([spec.schema.field(name) for name in names])
        paths = self._paths(kind, state, chosen)
        keys: dict[str, pa.Array] = {}  # of each file; none where all of all files are chosen
        if sum(state.files[path].n_rows for path in paths) != len(chosen):
            grouped = chosen.group_by("path", use_threads=False).aggregate([("key", "list")])
            keys = {path: of_path.values for path, of_path in zip(grouped["path"].to_pylist(), grouped["key_list"], strict=True)}

        def read(path: str) -> pa.Table:
            return self._select(state.files[path], spec, names, keys.get(path))

        with ThreadPoolExecutor(N_READERS) as pool:
            found = list(pool.map(read, paths))
        return pa.concat_tables(found).select(names) if found else schema.empty_table()

    def _select(self, file: File, spec: TableSpec, names: list[str], keys: pa.Array | None) -> pa.Table:
        if keys is None:
            return self.read_file(file, names)
        found = self.read_file(file, list(dict.fromkeys([*names, *spec.key])))
        return found.filter(pc.is_in(spec.keys_of(found), value_set=keys))

    def _now_counted(self) -> tuple[State, pa.Table]:
        state = self.state()
        return state, self.counted(state)

    def _paths(self, kind: str, state: State, counted: pa.Table) -> list[str]:
        there = set(pc.unique(counted["path"]).to_pylist())
        return [path for path in state.paths(kind) if path in there]

    def _n(self, kind: str) -> int:
        return int(pc.sum(pc.equal(self.counted()["kind"], kind)).as_py() or 0)

    def _write_wanted(self, keys: pa.Array) -> str:
        if len(pc.unique(keys)) != len(keys):
            raise ValueError(f"{self.folder}: got keys that are wanted twice, expected each once")
        keys = keys.take(pc.sort_indices(keys))
        name = digest(keys)
        write_new(f"{self.folder}/wanted/{name}.parquet", to_parquet(pa.table({"key": keys}, schema=KEY)))
        return name


def read_shard(address: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A file of rows by its address, on any worker. Raises StorageError if it is gone."""
    data = read_bytes(address)
    if data is None:
        raise StorageError(f"{address} is gone: `video2lora verify --repair` has it made again")
    return from_parquet(data, columns)


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON."""
    return dict(json.loads(json.dumps(value)))
