"""An address -> its bytes; a SOURCE (folder, JSONL, Parquet) -> its rows as they were written.

Addresses are local paths or s3:// and nothing else: a manifest may come from a stranger, and fsspec would fetch any web
address and unpack any archive that it names. A relative path in a manifest counts from the manifest's folder and stays in
it. Reading a SOURCE fails as a whole (BadInputError) only where there is nothing to go on with; a single line that cannot
be read becomes a row with a problem, which its stage rejects.
"""

import hashlib
import io
import json
import os
import posixpath
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError  # s3fs lets these through: no credentials, no such host

from infra.errors import BadInputError, StorageError
from video2lora.video import RejectReason, VideoDecodeError, content_id

S3 = "s3://"
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".wmv", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".3gp",
    ".ogv", ".gif",
)  # fmt: skip
PATH_COLUMNS = ("uri", "path", "video")
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class SourceRow:
    """A row of a SOURCE. `key` names it in `rejects`; `problem` says why it has no fields."""

    key: str
    fields: dict[str, Any]
    problem: str = ""

    @property
    def path(self) -> Any:
        """Under whichever name the SOURCE has it; None or "" where it has none."""
        return next((self.fields[name] for name in PATH_COLUMNS if self.fields.get(name) is not None), None)


@dataclass(frozen=True)
class Source:
    """What a SOURCE holds: its rows, and the folder that their relative paths count from."""

    folder: str
    rows: list[SourceRow]


def read_source(source: str) -> Source:
    """Raises BadInputError for a SOURCE that is missing, unreadable, empty, of another kind; StorageError if out of reach."""
    address = _absolute(source)
    with _reading(source):
        fs = _filesystem(address)
        if fs.isdir(address):
            return Source(address, _rows_of_folder(address))
        data = fs.cat_file(address)
    rows = _rows_of_parquet(source, data) if data[:4] == b"PAR1" else _rows_of_jsonl(source, data)
    if not any(name in row.fields for row in rows for name in PATH_COLUMNS):
        raise BadInputError(f"{source}: no row has a path; expected a column {', '.join(PATH_COLUMNS)}")
    return Source(posixpath.dirname(address), rows)


def beside(source: str, name: str) -> str | None:
    """The file `name` in the folder of a SOURCE that is a file; None if there is none."""
    address = _absolute(source)
    with _reading(source):
        fs = _filesystem(address)
        path = f"{posixpath.dirname(address)}/{name}"
        return path if fs.isfile(address) and path != address and fs.isfile(path) else None


def resolve(path: str, folder: str) -> str:
    """The address a row means. Raises ValueError for what is neither path nor s3:// address, or leads out of the folder."""
    if "\0" in path:
        raise ValueError(f"{path!r} is no path")
    if path.startswith(S3):
        return path
    path = path.removeprefix("file://")
    if "://" in path:
        raise ValueError(f"{path!r}: expected a path or an {S3} address")
    inner = posixpath.normpath(path)
    if posixpath.isabs(inner):
        return inner
    if inner.split("/")[0] == "..":
        raise ValueError(f"{path!r} leads out of the folder {folder}")
    return f"{folder}/{inner}"


def content_hash(uri: str) -> str:
    """SHA-256 of the content, hex.

    Raises VideoDecodeError (missing, unreadable, empty_file); StorageError where a bucket is out of reach, since that
    says nothing about the video.
    """
    if not uri.startswith(S3):
        return _local_hash(uri)
    digest, n_bytes = hashlib.sha256(), 0
    with _fetching(uri), _filesystem(uri).open(uri, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            n_bytes += len(chunk)
    if not n_bytes:
        raise VideoDecodeError(RejectReason.EMPTY_FILE, f"{uri} has 0 bytes")
    return digest.hexdigest()


@contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """A path that holds the content for the block: the file itself, or a temporary copy. Raises as `content_hash`."""
    if not uri.startswith(S3):
        yield uri
        return
    with tempfile.TemporaryDirectory(prefix="video2lora-") as folder:
        path = os.path.join(folder, "video")
        with _fetching(uri):
            _filesystem(uri).get_file(uri, path)
        yield path


def _local_hash(path: str) -> str:
    if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe or a device may never end
        raise VideoDecodeError(RejectReason.UNREADABLE, f"{path} is not a regular file")
    try:
        return content_id(path)
    except OSError as error:
        raise VideoDecodeError(RejectReason.UNREADABLE, str(error)) from error


def _rows_of_folder(folder: str) -> list[SourceRow]:
    """Every video file in it, however deep; hidden ones (and macOS's ._copies) are none."""
    paths = _remote_files(folder) if folder.startswith(S3) else _local_files(folder)
    names = sorted(name for name in paths if name.lower().endswith(VIDEO_SUFFIXES) and not posixpath.basename(name).startswith("."))
    if not names:
        raise BadInputError(f"{folder}: no video file in it, expected files ending in {' '.join(VIDEO_SUFFIXES)}")
    return [_named(name) for name in names]


def _named(name: str) -> SourceRow:
    try:
        name.encode()
    except UnicodeEncodeError:
        readable = name.encode(errors="backslashreplace").decode()
        return SourceRow(readable, {}, problem="its name is not UTF-8: rename it")
    return SourceRow(name, {"uri": f"./{name}"})  # ./ since a file may be called "s3:"


def _local_files(folder: str) -> list[str]:
    def stop(error: OSError) -> None:
        raise error

    found = os.walk(folder, onerror=stop)
    return [os.path.relpath(os.path.join(place, name), folder) for place, _, names in found for name in names]


def _remote_files(folder: str) -> list[str]:
    fs = _filesystem(folder)
    fs.invalidate_cache()
    inner = folder.removeprefix(S3).rstrip("/")
    return [path.removeprefix(f"{inner}/") for path in fs.find(folder)]


def _rows_of_jsonl(source: str, data: bytes) -> list[SourceRow]:
    try:
        lines = data.decode("utf-8-sig").split("\n")  # splitlines() would split texts at U+2028 too
    except UnicodeDecodeError as error:
        raise BadInputError(f"{source}: expected a folder of videos, a JSONL or a Parquet file ({error})") from error
    name = posixpath.basename(source)
    rows = [_row_of_line(f"{name}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise BadInputError(f"{source}: empty, expected one JSON object per line")
    if all(row.problem for row in rows):
        raise BadInputError(f"{source}: not JSONL: {rows[0].problem} in {rows[0].key}")
    return rows


def _row_of_line(key: str, line: str) -> SourceRow:
    try:
        fields = json.loads(line)
        json.dumps(fields, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but no text that Parquet takes
    except (ValueError, RecursionError) as error:
        return SourceRow(key, {}, problem=f"not JSON: {error}")
    if not isinstance(fields, dict):
        return SourceRow(key, {}, problem="not a JSON object")
    return SourceRow(key, fields)


def _rows_of_parquet(source: str, data: bytes) -> list[SourceRow]:
    try:
        table = pq.read_table(io.BytesIO(data))
        found = table.to_pylist()
    except (pa.ArrowException, ValueError, OSError) as error:
        raise BadInputError(f"{source}: not a Parquet file that can be read: {error}") from error
    if not found:
        raise BadInputError(f"{source}: no rows in it")
    name = posixpath.basename(source)
    return [SourceRow(f"{name}:{number}", fields) for number, fields in enumerate(found, 1)]


def read_jsonl(path: str) -> Source:
    """A JSONL file of anything. Raises BadInputError, StorageError."""
    address = _absolute(path)
    with _reading(path):
        data = _filesystem(address).cat_file(address)
    return Source(posixpath.dirname(address), _rows_of_jsonl(path, data))


def _absolute(path: str) -> str:
    return path.rstrip("/") if path.startswith(S3) else os.path.abspath(path)


def _filesystem(address: str) -> fsspec.AbstractFileSystem:
    return fsspec.filesystem("s3" if address.startswith(S3) else "file")


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """What goes wrong with a SOURCE, in a word for its user."""
    try:
        yield
    except FileNotFoundError as error:
        raise BadInputError(f"{source}: no such file or folder ({error})") from error
    except BotoCoreError as error:
        raise StorageError(f"{source} is out of reach: {error}") from error
    except OSError as error:
        if source.startswith(S3) and not isinstance(error, PermissionError):
            raise StorageError(f"{source} is out of reach: {error}") from error
        raise BadInputError(f"{source} cannot be read: {error}") from error


@contextmanager
def _fetching(uri: str) -> Iterator[None]:
    """What goes wrong with one object of a bucket."""
    try:
        yield
    except FileNotFoundError as error:
        raise VideoDecodeError(RejectReason.MISSING, str(error)) from error
    except PermissionError as error:
        raise VideoDecodeError(RejectReason.UNREADABLE, str(error)) from error
    except (OSError, BotoCoreError) as error:
        raise StorageError(f"{uri} is out of reach: {error}") from error
