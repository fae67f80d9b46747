"""An address -> its bytes; a SOURCE (folder, JSONL, Parquet) -> its rows as they were written.

What the rows may name: pipeline/roots.py. Reading a SOURCE fails as a whole (BadInputError) only where there is nothing to go on with; a
single line that cannot be read becomes a row with a problem, which its stage rejects.
"""

import json
import os
import posixpath
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from infra import s3
from infra.errors import BadInputError
from infra.parquet import from_parquet
from infra.s3 import S3
from pipeline.roots import Roots
from video2lora.video import RejectReason, VideoDecodeError, content_id

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".wmv", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".3gp",
    ".ogv", ".gif",
)  # fmt: skip
PATH_COLUMNS = ("uri", "path", "video")


@dataclass(frozen=True)
class SourceRow:
    """A row of a SOURCE. `key` names it in `rejects`: ADDRESS:LINE, or a file's address; `problem` says why it has no fields."""

    key: str
    fields: dict[str, Any]
    problem: str = ""

    @property
    def path(self) -> Any:
        """Under whichever name the SOURCE has it; None or "" where it has none."""
        return next((self.fields[name] for name in PATH_COLUMNS if self.fields.get(name) is not None), None)


@dataclass(frozen=True)
class Source:
    """What a SOURCE holds: its rows, and the folder that their relative paths count from. All keys begin with the address.

    `allowed` is VIDEO2LORA_ROOTS: folders and addresses with commas between them. None of them is empty, which would be the folder that
    somebody happens to be in; where nothing is left, nothing but the SOURCE's own folder may be named.
    """

    address: str
    folder: str
    rows: list[SourceRow]
    allowed: str | None = None

    @cached_property
    def roots(self) -> Roots:
        """Where the files that its rows name may lie."""
        parts = None if self.allowed is None else [part.strip() for part in self.allowed.split(",")]
        return Roots(self.folder, None if parts is None else [part for part in parts if part])


def read_source(source: str, allowed: str | None = None) -> Source:
    """Raises BadInputError for a SOURCE that is missing, unreadable, empty, of another kind; StorageError if out of reach."""
    address = _absolute(source)
    data = _content(source, address)
    if data is None:
        with _reading(source):
            return Source(address, address, _rows_of_folder(address, Source(address, address, [], allowed).roots), allowed)
    rows = _rows_of_parquet(address, data) if data[:4] == b"PAR1" else _rows_of_jsonl(address, data)
    if not any(name in row.fields for row in rows for name in PATH_COLUMNS):
        raise BadInputError(f"{source}: no row has a path; expected a column {', '.join(PATH_COLUMNS)}")
    return Source(address, posixpath.dirname(address), rows, allowed)


def beside(source: str, name: str) -> str | None:
    """The file `name` in the folder of a SOURCE that is a file; None if there is none."""
    address = _absolute(source)
    path = f"{posixpath.dirname(address)}/{name}"
    with _reading(source):
        return path if path != address and _is_file(address) and _is_file(path) else None


def content_hash(uri: str) -> str:
    """SHA-256 of the content, hex.

    Raises VideoDecodeError (missing, unreadable, empty_file); StorageError where a bucket is out of reach, since that
    says nothing about the video.
    """
    if not uri.startswith(S3):
        return _local_hash(uri)
    with _fetching(uri):
        digest, n_bytes = s3.sha256(uri)
    if not n_bytes:
        raise VideoDecodeError(RejectReason.EMPTY_FILE, f"{uri} has 0 bytes")
    return digest


def remote_file(uri: str) -> tuple[int, str]:
    """Bytes and ETag of an object in a bucket. Raises as `content_hash`."""
    with _fetching(uri):
        return s3.described(uri)


@contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """A path that holds the content for the block: the file itself, or a temporary copy. Raises as `content_hash`."""
    if not uri.startswith(S3):
        yield uri
        return
    with tempfile.TemporaryDirectory(prefix="video2lora-") as folder:
        path = os.path.join(folder, "video")
        with _fetching(uri):
            s3.fetch(uri, path)
        yield path


def _local_hash(path: str) -> str:
    if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe or a device may never end
        raise VideoDecodeError(RejectReason.UNREADABLE, f"{path} is not a regular file")
    try:
        return content_id(path)
    except OSError as error:
        raise VideoDecodeError(RejectReason.UNREADABLE, str(error)) from error


def _rows_of_folder(folder: str, roots: Roots) -> list[SourceRow]:
    """Every video file in it, however deep; hidden ones (and macOS's ._copies) are none. A linked folder outside the roots is a row."""
    closed: dict[str, str] = {}
    if folder.startswith(S3):
        paths = [path.removeprefix(f"{folder}/") for path in s3.described_below(folder)]
    else:
        paths, closed = _local_files(folder, roots)
    if folder.startswith(S3) and not paths:
        raise BadInputError(f"{folder}: no such file or folder")
    names = sorted(name for name in paths if name.lower().endswith(VIDEO_SUFFIXES) and not posixpath.basename(name).startswith("."))
    if not names and not closed:
        raise BadInputError(f"{folder}: no video file in it, expected files ending in {' '.join(VIDEO_SUFFIXES)}")
    return [_named(folder, name) for name in names] + [SourceRow(f"{folder}/{name}", {}, problem=why) for name, why in closed.items()]


def _named(folder: str, name: str) -> SourceRow:
    try:
        name.encode()
    except UnicodeEncodeError:
        readable = name.encode(errors="backslashreplace").decode()
        return SourceRow(f"{folder}/{readable}", {}, problem="its name is not UTF-8: rename it")
    return SourceRow(f"{folder}/{name}", {"uri": f"./{name}"})  # ./ since a file may be called "s3:"


def _local_files(folder: str, roots: Roots) -> tuple[list[str], dict[str, str]]:
    """Relative paths of files; and of linked folders that lead out of the roots, with why. The others are followed, each once."""

    def stop(error: OSError) -> None:
        raise error

    found, followed, closed = [], {os.path.realpath(folder)}, {}
    for place, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        found += [os.path.relpath(os.path.join(place, name), folder) for name in names]
        for name in [one for one in folders if os.path.islink(os.path.join(place, one))]:
            path = os.path.relpath(os.path.join(place, name), folder)
            real = os.path.realpath(os.path.join(place, name))
            if real in followed or f"{os.path.realpath(place)}/".startswith(f"{real.rstrip('/')}/"):
                folders.remove(name)  # there already, or a loop
                continue
            try:
                roots.resolve(f"./{path}/any")  # what lies in it; nobody looks into a folder that a stranger's link names
                followed.add(real)
            except ValueError as error:
                closed[path.encode(errors="backslashreplace").decode()] = str(error)
                folders.remove(name)
    return found, closed


def _rows_of_jsonl(source: str, data: bytes) -> list[SourceRow]:
    try:
        lines = data.decode("utf-8-sig").split("\n")  # splitlines() would split texts at U+2028 too
    except UnicodeDecodeError as error:
        raise BadInputError(f"{source}: expected a folder of videos, a JSONL or a Parquet file ({error})") from error
    rows = [_row_of_line(f"{source}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
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
        found = from_parquet(data).to_pylist()
    except (pa.ArrowException, ValueError, OSError) as error:
        raise BadInputError(f"{source}: not a Parquet file that can be read: {error}") from error
    if not found:
        raise BadInputError(f"{source}: no rows in it")
    return [SourceRow(f"{source}:{number}", fields) for number, fields in enumerate(found, 1)]


def read_jsonl(path: str, allowed: str | None = None) -> Source:
    """A JSONL file of anything. Raises BadInputError, StorageError."""
    address = _absolute(path)
    data = _content(path, address)
    if data is None:
        raise BadInputError(f"{path}: no such file")
    return Source(address, posixpath.dirname(address), _rows_of_jsonl(address, data), allowed)


def _absolute(path: str) -> str:
    """Raises BadInputError for a name that no table could hold."""
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError as error:
        raise BadInputError(f"{path!r}: its path is not UTF-8: rename the folder or file") from error
    return path.rstrip("/") if path.startswith(S3) else os.path.abspath(path)


def _content(source: str, address: str) -> bytes | None:
    """A file's; None for a folder, which in a bucket is whatever is no object."""
    if address.startswith(S3):
        return s3.read_bytes(address)
    with _reading(source):
        return None if os.path.isdir(address) else Path(address).read_bytes()


def _is_file(address: str) -> bool:
    try:
        return os.path.isfile(address) if not address.startswith(S3) else s3.described(address)[0] >= 0
    except FileNotFoundError:
        return False


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """What goes wrong with a SOURCE, in a word for its user."""
    try:
        yield
    except FileNotFoundError as error:
        raise BadInputError(f"{source}: no such file or folder ({error})") from error
    except OSError as error:
        raise BadInputError(f"{source} cannot be read: {error}") from error


@contextmanager
def _fetching(uri: str) -> Iterator[None]:
    """What goes wrong with one object of a bucket; StorageError, which says nothing about it, passes."""
    try:
        yield
    except (FileNotFoundError, BadInputError) as error:
        raise VideoDecodeError(RejectReason.MISSING, str(error)) from error
    except PermissionError as error:
        raise VideoDecodeError(RejectReason.UNREADABLE, str(error)) from error
