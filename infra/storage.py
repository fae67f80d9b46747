"""Tables on a disk or in a bucket: written new, then committed; read only where committed.

A table's folder holds
    made.json             what made it: stage, settings, and the same of its inputs, all the way down
    shards/*.parquet      rows, under names never used twice
    rejects/*.parquet     rows that left the flow here
    commits/*.json        one per finished block: its shard, its rejects, their rows and hashes
    complete.json         written last: rows in = rows out + rejects
A shard without a commit does not exist for any reader. A stage that was killed goes on behind the committed blocks. A stage that
finds `complete.json` under the same `made.json` has nothing to do; under another one it refuses and names the difference.

Roots are paths or s3:// addresses (fsspec, s3fs); credentials and endpoint come from the environment alone.
"""

import errno
import hashlib
import io
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from infra.artifacts import REJECT_REASONS, REJECTS, TABLES, TableSpec
from infra.errors import BadInputError, MadeFromOtherError, RowsLostError, StorageError


@dataclass(frozen=True)
class Table:
    """One table under a data root. Cheap to make and to send to a worker: it holds names, no connection."""

    root: str
    name: str

    @property
    def spec(self) -> TableSpec:
        return TABLES[self.name]

    @property
    def folder(self) -> str:
        return f"{self.root.rstrip('/')}/{self.name}"

    def begin(self, made_from: dict[str, Any]) -> bool:
        """True if there is work to do, False if the table is complete. Raises MadeFromOtherError with the differences."""
        there = read_json(f"{self.folder}/made.json")
        if there is None:
            if not write_new(f"{self.folder}/made.json", _json(made_from)):
                return self.begin(made_from)
            return True
        differences = list(_differences(there, json.loads(_json(made_from))))
        if differences:
            raise MadeFromOtherError(
                f"{self.folder} was made from something else: {'; '.join(differences[:5])}. "
                "Use another data folder (VIDEO2LORA_DATA), or remove this one to make it anew."
            )
        return not self.is_complete()

    def is_complete(self) -> bool:
        return read_json(f"{self.folder}/complete.json") is not None

    def made_from(self) -> dict[str, Any]:
        """What made the table. Raises BadInputError if it is not complete: nothing is to be built on it."""
        made = read_json(f"{self.folder}/made.json")
        if made is None or not self.is_complete():
            raise BadInputError(f"{self.folder} is not there or not complete: run the stage that makes it first")
        return made

    def commit(self, rows: list[dict[str, Any]], rejects: list[dict[str, Any]], *, place: int = 0) -> None:
        """Write a block's rows and rejects, then make both visible at once. Readers see blocks in the order of `place`."""
        unknown = {row["reason"] for row in rejects} - REJECT_REASONS
        if unknown:
            raise ValueError(f"rejects: got reason {sorted(unknown)}, expected one of {sorted(REJECT_REASONS)}")
        name = f"{place:08d}-{uuid.uuid4().hex}"
        entry = {
            "rows": self._write(f"shards/{name}.parquet", rows, self.spec.schema),
            "rejects": self._write(f"rejects/{name}.parquet", rejects, REJECTS.schema),
        }
        write_new(f"{self.folder}/commits/{name}.json", _json(entry))

    def complete(self, *, n_in: int) -> None:
        """Close the books. Raises RowsLostError unless rows in = rows out + rejects."""
        n_rows, n_rejects = self.n_rows(), self.n_rejects()
        if n_in != n_rows + n_rejects:
            raise RowsLostError(f"{self.folder}: {n_in} rows in, {n_rows} out and {n_rejects} rejected")
        write_new(f"{self.folder}/complete.json", _json({"n_in": n_in, "n_rows": n_rows, "n_rejects": n_rejects}))

    def shards(self) -> list[str]:
        """Addresses of the committed shards, in a fixed order."""
        return [f"{self.folder}/{entry['rows']['path']}" for entry in self._commits() if entry["rows"]["n_rows"]]

    def n_rows(self) -> int:
        return sum(entry["rows"]["n_rows"] for entry in self._commits())

    def n_rejects(self) -> int:
        return sum(entry["rejects"]["n_rows"] for entry in self._commits())

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """All committed rows."""
        schema = self.spec.schema if columns is None else pa.schema([self.spec.schema.field(name) for name in columns])
        return _read(self.shards(), schema)

    def read_rejects(self) -> pa.Table:
        """All committed rejects of the stage that writes this table."""
        paths = [f"{self.folder}/{entry['rejects']['path']}" for entry in self._commits() if entry["rejects"]["n_rows"]]
        return _read(paths, REJECTS.schema)

    def done_keys(self) -> set[str]:
        """Keys of committed rows and rejects, joined by '/': what a resumed stage skips."""
        rows = self.read(list(self.spec.key)).to_pylist()
        keys = {"/".join(str(row[column]) for column in self.spec.key) for row in rows}
        return keys | set(self.read_rejects()["key"].to_pylist())

    def _write(self, name: str, rows: list[dict[str, Any]], schema: pa.Schema) -> dict[str, Any]:
        if not rows:
            return {"n_rows": 0}
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer)
        data = buffer.getvalue()
        write_new(f"{self.folder}/{name}", data)
        return {"path": name, "n_rows": len(rows), "sha256": hashlib.sha256(data).hexdigest(), "n_bytes": len(data)}

    def _commits(self) -> list[dict[str, Any]]:
        fs, folder = _filesystem(f"{self.folder}/commits")
        fs.invalidate_cache()
        if not fs.isdir(folder):
            return []
        names = sorted(path for path in fs.ls(folder, detail=False) if path.endswith(".json"))
        return [json.loads(data) for data in (fs.cat(names).values() if names else [])]


def all_rejects(root: str) -> pa.Table:
    """Rejects of every stage."""
    return pa.concat_tables([Table(root, name).read_rejects() for name in TABLES])


def reject(stage: str, key: str, reason: str, detail: str = "") -> dict[str, Any]:
    """A row of `rejects`."""
    return {"stage": stage, "key": key, "reason": reason, "detail": detail[:500]}


def read_json(path: str) -> Any:
    """The file's value, or None where there is no file. Raises StorageError if it is unreadable: never a reason to start over."""
    fs, inner = _filesystem(path)
    try:
        return json.loads(fs.cat_file(inner))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise StorageError(f"{path} cannot be read ({error}); restore it, or remove its folder to make it anew") from error


def write_new(path: str, data: bytes) -> bool:
    """Write a file that was not there; False if it was. Whole or not at all, also when killed. Raises StorageError."""
    fs, inner = _filesystem(path)
    try:
        if isinstance(fs, LocalFileSystem):
            return _write_new_local(inner, data)
        fs.pipe_file(inner, data, mode="create")
        return True
    except FileExistsError:
        return False
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "storage is full; free some and run the same command again, it continues" if full else str(error)
        raise StorageError(f"{path} cannot be written: {what}") from error


def _write_new_local(path: str, data: bytes) -> bool:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    part = f"{path}.{uuid.uuid4().hex}.part"
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(part, path)
    finally:
        if os.path.exists(part):
            os.unlink(part)
    return True


def _filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    fs, inner = fsspec.core.url_to_fs(path)
    return fs, inner


def _read(paths: list[str], schema: pa.Schema) -> pa.Table:
    tables = []
    for path in paths:
        fs, inner = _filesystem(path)
        tables.append(pq.read_table(io.BytesIO(fs.cat_file(inner)), columns=schema.names).cast(schema))
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _differences(there: Any, here: Any, path: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted(there.keys() | here.keys()):
            yield from _differences(there.get(name), here.get(name), f"{path}.{name}" if path else name)
    elif there != here:
        yield f"{path}: there {json.dumps(there)}, here {json.dumps(here)}"


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()


def digest(values: Iterable[str]) -> str:
    """A short hash of texts, whatever their order."""
    return hashlib.sha256("\n".join(sorted(values)).encode()).hexdigest()[:16]
