"""What a benchmark's annotation files say, before anything is drawn or looked for: items, and rows that are none.

A loader is a pure function of files' bytes. A row that is not what its format asks for leaves as (key, why) and becomes a reject; a
file that is none of the benchmark's ends the command. Formats: JSON, JSON Lines, CSV, Parquet, as their authors publish them.
"""

import csv
import hashlib
import io
import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from infra.contents import Span
from infra.errors import BadInputError
from infra.objects import read_bytes
from infra.parquet import from_parquet
from infra.s3 import S3

Of = TypeVar("Of")
SHOWN = 80  # characters of a wrong value that its reject shows
MAX_COUNT = 2**53  # up to which every whole number is a float


@dataclass(frozen=True)
class File:
    """An annotation file. `name` is its base name: rejects are known by it, wherever the file lies."""

    name: str
    data: bytes

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()[:16]

    def text(self) -> str:
        """Raises BadInputError."""
        try:
            return self.data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadInputError(f"{self.name}: not UTF-8 ({error})") from error


def read_file(address: str) -> File:
    """A local file or an object. Raises BadInputError where there is none, StorageError."""
    data = None if not address.startswith(S3) and os.path.isdir(address) else read_bytes(address)
    if data is None:
        raise BadInputError(f"{address}: no such file")
    return File(address.rsplit("/", 1)[-1], data)


@dataclass(frozen=True)
class Item:
    """One question about one video, or one caption that is asked for, without the words of a prompt."""

    key: str  # names it in rejects: FILE:ROW
    id: str  # by which it is drawn: the same in any order of the rows and with any prompts
    videos: tuple[str, ...]  # names that its file may have, with a suffix or without, the likeliest first
    references: tuple[str, ...]
    question: str = ""  # none where the prompt says it all
    style: str = ""
    task: str = "question"
    span: Span = (None, None)
    told_apart_by: str = ""  # where the benchmark asks the same of the same video twice


@dataclass(frozen=True)
class Loaded:
    """What files say: items, and of the rows that are none their key and what is wrong."""

    items: list[Item] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)


def gather(rows: Iterable[tuple[str, Of | ValueError]], read: Callable[[str, Of], Item]) -> Loaded:
    """An item of each row that `read` (key, row) makes one of; it raises ValueError for one that is none."""
    loaded = Loaded()
    for key, row in rows:
        try:
            if isinstance(row, ValueError):
                raise row
            loaded.items.append(read(key, row))
        except ValueError as error:
            loaded.bad.append((key, str(error)))
    return loaded


def json_object(file: File) -> dict[str, Any]:
    """A file that is one JSON object. Raises BadInputError."""
    value = _json(file)
    if not isinstance(value, dict):
        raise BadInputError(f"{file.name}: got a JSON {type(value).__name__}, expected one object, keyed by video")
    return value


def json_rows(file: File) -> list[tuple[str, dict[str, Any] | ValueError]]:
    """Rows of a JSON list, of JSON Lines or of Parquet, each with its key. Raises BadInputError."""
    if file.data[:4] == b"PAR1":
        try:
            found: list[Any] = from_parquet(file.data).to_pylist()
        except (pa.ArrowException, ValueError, OSError) as error:
            raise BadInputError(f"{file.name}: not a Parquet file that can be read: {error}") from error
        return [(f"{file.name}:{number}", row) for number, row in enumerate(found, 1)]
    text = file.text()
    if text.lstrip().startswith("["):
        return [(f"{file.name}:{number}", _storable(_object(row))) for number, row in enumerate(_json(file), 1)]
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    rows = [(f"{file.name}:{number}", _line(line)) for number, line in lines]
    if not any(isinstance(row, dict) for _, row in rows):
        raise BadInputError(f"{file.name}: expected a JSON list, JSON Lines or Parquet")
    return [(key, _storable(row)) for key, row in rows]


def csv_rows(file: File) -> list[tuple[str, dict[str, Any] | ValueError]]:
    """Rows of a CSV file with a header. Raises BadInputError."""
    reader = csv.DictReader(io.StringIO(file.text(), newline=""))
    try:
        return [(f"{file.name}:{reader.line_num}", dict(row)) for row in reader]
    except csv.Error as error:
        raise BadInputError(f"{file.name}:{reader.line_num}: not CSV: {error}") from error


def text_of(row: Mapping[str, Any], name: str) -> str:
    """The text of a column. Raises ValueError where there is none, or half a surrogate pair, which no table takes."""
    return clean(row.get(name), name)


def clean(value: Any, name: str) -> str:
    """Raises ValueError as `text_of`."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: got {repr(value)[:SHOWN]}, expected a text")
    value.encode()
    return value.strip()


def video_of(row: Mapping[str, Any], name: str) -> str:
    """The name of a video, as `text_of`. Raises ValueError for one with control characters too: names are printed."""
    text = text_of(row, name)
    if any(unicodedata.category(one) == "Cc" for one in text):
        raise ValueError(f"{name}: got {repr(text)[:SHOWN]}, expected no control characters")
    return text


def shown(name: str) -> str:
    """A name as it stands, or escaped where it would tell a terminal more than text."""
    return name if name.isprintable() else ascii(name)


def count_of(row: Mapping[str, Any], name: str) -> int:
    """Raises ValueError for what is no whole number from 0 to MAX_COUNT."""
    value = row.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_COUNT:
        raise ValueError(f"{name}: got {repr(value)[:SHOWN]}, expected a whole number from 0 to {MAX_COUNT}")
    return value


def _json(file: File) -> Any:
    try:
        return json.loads(file.text())
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{file.name}: not JSON: {error}") from error


def _line(line: str) -> dict[str, Any] | ValueError:
    try:
        return _object(json.loads(line))
    except (ValueError, RecursionError) as error:
        return ValueError(f"not JSON: {error}")


def _storable(row: dict[str, Any] | ValueError) -> dict[str, Any] | ValueError:
    """Without half a surrogate pair in any name or text, which is JSON, but which no table takes."""
    try:
        json.dumps(None if isinstance(row, ValueError) else row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        return ValueError(str(error))
    return row


def _object(value: Any) -> dict[str, Any] | ValueError:
    return value if isinstance(value, dict) else ValueError(f"got {repr(value)[:SHOWN]}, expected a JSON object")
