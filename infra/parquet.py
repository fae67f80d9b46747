"""Tables as the content of Parquet files, and back.

Read in the calling thread and without Arrow's dataset scanner: `pyarrow.parquet.read_table` of bytes leaves them to threads that may
still hold them when the interpreter ends, which under Ray's handlers aborts the process after its work is done (seen with Arrow 25).
"""

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq


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


def _read(source: pa.NativeFile, columns: Sequence[str] | None) -> pa.Table:
    with pq.ParquetFile(source) as file:
        found = file.read(columns=None if columns is None else list(columns), use_threads=False)
    return found if columns is None else found.select(list(columns))
