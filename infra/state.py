"""A table's log -> what the table holds: which files, and the last that was said of each key.

An entry of the log is a dict of `kind` and
    begin     attempt, asked, wanted, n_wanted, who, at      a run takes over: every lower attempt can commit no more
    commit    attempt, add [file], remove [path]             files become visible, and others disappear, at once
    void      attempt, keys                                  what was said of these keys before does not count: they are to be made again
    complete  attempt, asked, wanted, rows, n_rows, n_rejects, measures, at     every key that was wanted is a row or a reject
and a file of {path, kind (rows or rejects), n_rows, sha256, n_bytes, place, keys}. Of a key that came up several times, the last counts.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra.errors import StorageError
from infra.log import Entry

ROWS, REJECTS = "rows", "rejects"
LIVE = pa.schema([("key", pa.string()), ("path", pa.string()), ("kind", pa.string())])


@dataclass(frozen=True)
class File:
    """A file of rows or rejects as a commit describes it. `place` orders files that have an order.

    `reasons` are of its rejects, for who counts them when they are committed: the log does not keep them.
    """

    path: str
    kind: str
    n_rows: int
    sha256: str
    n_bytes: int
    place: int
    keys: tuple[str, ...]
    reasons: tuple[str, ...] = field(default=(), compare=False)

    def described(self) -> dict[str, Any]:
        """As the log holds it."""
        described = {**self.__dict__, "keys": list(self.keys)}
        del described["reasons"]
        return described


class State:
    """The log up to `version` entries, taken together."""

    def __init__(self) -> None:
        self.version = 0
        self.attempt = 0  # the highest that began
        self.begun: Entry | None = None
        self.completed: Entry | None = None
        self.files: dict[str, File] = {}
        self._events: list[tuple[str, pa.Array]] = []  # (path, or "" for void; keys), in order
        self._live: pa.Table | None = None

    def take(self, entries: Iterable[Entry]) -> "State":
        """Take the next entries. Raises StorageError for what is none."""
        for entry in entries:
            try:
                self._take(entry)
            except (KeyError, TypeError) as error:
                raise StorageError(f"entry {self.version} of the log is not one of a table's: {error!r}") from error
            self.version += 1
        return self

    @property
    def is_complete(self) -> bool:
        """Whether the last that happened was the closing of the books."""
        return self.completed is not None and self.completed["number"] == self.version - 1

    def live(self) -> pa.Table:
        """Every key that has a row or reject, once: columns key, path of its file, kind."""
        if self._live is None:
            self._live = self._last_of_each()
        return self._live

    @property
    def n_said(self) -> int:
        """Keys in the log, each as often as something was said of it."""
        return sum(len(keys) for _, keys in self._events)

    @property
    def n_bytes_said(self) -> int:
        """Their texts, in bytes."""
        return sum(keys.nbytes - 4 * len(keys) for _, keys in self._events)

    def paths(self, kind: str) -> list[str]:
        """Files of this kind, by their place, and of one place in the order they were committed."""
        return [file.path for file in sorted(self.files.values(), key=lambda one: one.place) if file.kind == kind]

    def _take(self, entry: Entry) -> None:
        match entry["kind"]:
            case "begin":
                self.attempt, self.begun = entry["attempt"], entry
            case "commit":
                self._live = None
                for path in entry["remove"]:
                    self.files.pop(path, None)
                for described in entry["add"]:
                    file = File(**{**described, "keys": tuple(described["keys"])})
                    self.files[file.path] = file
                    self._events.append((file.path, pa.array(described["keys"], pa.string())))
            case "void":
                self._live = None
                self._events.append(("", pa.array(entry["keys"], pa.string())))
            case "complete":
                self.completed = {**entry, "number": self.version}
            case kind:
                raise KeyError(f"kind {kind!r}")

    def _last_of_each(self) -> pa.Table:
        events = [(path, keys) for path, keys in self._events if not path or path in self.files]
        if not events:
            return LIVE.empty_table()
        self._events = events
        names = pa.array([path for path, _ in events])
        numbers = pa.concat_arrays([pa.repeat(pa.scalar(i, pa.int32()), len(keys)) for i, (_, keys) in enumerate(events)])
        said = pa.table({"key": pa.concat_arrays([keys for _, keys in events]), "event": numbers})
        last = said.group_by("key", use_threads=False).aggregate([("event", "max")])
        paths = names.take(last["event_max"].combine_chunks())
        kinds = pa.array([self.files[path].kind if path else None for path, _ in events], pa.string())
        found = pa.table({"key": last["key"], "path": paths, "kind": kinds.take(last["event_max"].combine_chunks())}, schema=LIVE)
        return found.filter(pc.is_valid(found["kind"]))


def among(table: pa.Table, keys: pa.Array | pa.ChunkedArray, *, column: str = "key") -> pa.Table:
    """The rows whose key is one of these."""
    return table.filter(pc.is_in(table[column], value_set=keys))
