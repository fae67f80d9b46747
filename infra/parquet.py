"""Tables as the content of Parquet files, and back.

Read in the calling thread and without Arrow's dataset scanner: `pyarrow.parquet.read_table` of bytes leaves them to threads that may
still hold them when the interpreter ends, which under Ray's handlers aborts the process after its work is done (seen with Arrow 25).
"""

import io
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

Part = Callable[[int, int], bytes]
"""From where on, and how many bytes."""


def to_parquet(rows: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(rows, buffer)
    return buffer.getvalue()


def from_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows, with these columns in this order. Raises pyarrow.ArrowException for what is no Parquet file."""
    return _read(pa.BufferReader(data), columns)


def from_parquet_file(path: str, columns: Sequence[str]) -> pa.Table:
    """The same of a file on this machine, reading these columns alone."""
    with pa.OSFile(path) as file:
        return _read(file, columns)


def from_parquet_parts(part: Part, n_bytes: int, columns: Sequence[str]) -> pa.Table:
    """The same of a file of `n_bytes` somewhere, of which `part` gives some: its end, and then these columns. Raises what `part` does."""
    with pa.PythonFile(_Parts(part, n_bytes), mode="r") as file:
        return _read(file, columns)


class _Parts(io.RawIOBase):
    """A file that is read where it is asked about."""

    def __init__(self, part: Part, n_bytes: int) -> None:
        self._part, self._n_bytes, self._at = part, n_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._n_bytes}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._n_bytes - self._at)
        n = left if size < 0 else min(size, left)
        data = self._part(self._at, n) if n else b""
        self._at += n
        return data


def _read(source: pa.NativeFile, columns: Sequence[str] | None) -> pa.Table:
    with pq.ParquetFile(source) as file:
        found = file.read(columns=None if columns is None else list(columns), use_threads=False)
    return found if columns is None else found.select(list(columns))
