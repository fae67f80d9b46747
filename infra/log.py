"""A numbered log: entries 0, 1, 2, ... in a folder, each written once by whoever comes first.

    00000000.json, 00000001.json, ...    an entry each
    pack-00000000.jsonl                  entries 0 to 63 again, in one object, so that a long log is read in few requests

Number n can be taken only by a writer that has read entry n - 1, and only by one of them. So all see one order, a reader asks for one
number after the other until there is none and lists nothing, and a writer knows all that was decided before its own entry.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from infra.errors import StorageError
from infra.objects import read_bytes, write_new

PACK = 64  # entries
N_READERS = 16  # requests at a time: S3 takes tens of milliseconds for each

Entry = dict[str, Any]


@dataclass(frozen=True)
class Log:
    """A log in a folder, which need not be there yet."""

    folder: str

    def read(self, start: int = 0) -> Iterator[Entry]:
        """Entries from number `start` on, in order. Raises StorageError for one that cannot be read."""
        with ThreadPoolExecutor(N_READERS) as pool:
            packs = range(start // PACK, 1 << 40) if start % PACK == 0 else range(0)
            for pack in self._until_none(pool, packs, self._read_pack):
                yield from pack
                start += PACK
            yield from self._until_none(pool, range(start, 1 << 40), self._read_entry)

    def append(self, entry: Entry, *, number: int) -> bool:
        """True if the entry is number `number` now; False if another one is."""
        if not write_new(self._entry(number), _dump(entry)):
            return False
        if number % PACK == PACK - 1:
            self._write_pack(number // PACK)
        return True

    def _write_pack(self, pack: int) -> None:
        entries = [self._read_entry(number) for number in range(pack * PACK, (pack + 1) * PACK)]
        write_new(self._pack(pack), b"\n".join(_dump(entry) for entry in entries if entry is not None))

    def _until_none(self, pool: ThreadPoolExecutor, numbers: range, read: Any) -> Iterator[Any]:
        """What `read` gives for each number up to the first None; few at first, since most logs are short."""
        at, n = 0, 1
        while True:
            for found in list(pool.map(read, numbers[at : at + n])):
                if found is None:
                    return
                yield found
            if at + n >= len(numbers):
                return
            at, n = at + n, min(2 * n, N_READERS)

    def _read_entry(self, number: int) -> Entry | None:
        data = read_bytes(self._entry(number))
        return None if data is None else _parse(data, self._entry(number))

    def _read_pack(self, pack: int) -> list[Entry] | None:
        data = read_bytes(self._pack(pack))
        if data is None:
            return None
        lines = data.split(b"\n")
        if len(lines) != PACK:
            raise StorageError(
                f"{self._pack(pack)} has {len(lines)} entries, expected {PACK}: remove it, the entries beside it are the table"
            )
        return [_parse(line, self._pack(pack)) for line in lines]

    def _entry(self, number: int) -> str:
        return f"{self.folder}/{number:08d}.json"

    def _pack(self, pack: int) -> str:
        return f"{self.folder}/pack-{pack:08d}.jsonl"


def _dump(entry: Entry) -> bytes:
    return json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()


def _parse(data: bytes, path: str) -> Entry:
    try:
        entry = json.loads(data)
    except ValueError as error:
        raise StorageError(f"{path} cannot be read ({error}); restore it, or remove the table's folder to make it anew") from error
    if not isinstance(entry, dict):
        raise StorageError(f"{path}: got {type(entry).__name__}, expected an entry of a table's log")
    return entry
