"""How often each adapter of a collection was asked: uses.jsonl in its folder, a line for each `ask`, or anyone's table of the same form.

    {"video_id": "...", "n_uses": 1}      lines of one video add up

A line is added in one write under a lock. Each begins with the line's end, so that what a killed writer left stands alone and costs itself.
"""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from infra.errors import BadInputError
from infra.parquet import from_parquet_file
from infra.progress import say

USES = "uses.jsonl"
COLUMNS = ["video_id", "n_uses"]


def count_use(collection: Path, video_id: str) -> None:
    """A use of an adapter. Where it cannot be written that is said, and nothing else comes of it."""
    try:
        handle = os.open(collection / USES, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            os.write(handle, as_lines({video_id: 1}))
        finally:
            os.close(handle)
    except OSError as error:
        say(f"note: uses of {collection} are not counted: {error.strerror}")


def as_lines(uses: Mapping[str, int]) -> bytes:
    return "".join(f"\n{json.dumps({'video_id': video_id, 'n_uses': n_uses})}" for video_id, n_uses in uses.items()).encode()


def uses_of(collection: Path) -> Counter[str]:
    """Uses of each video that were counted here. What a killed writer left half written counts for nothing."""
    path = collection / USES
    found: Counter[str] = Counter()
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        try:
            video_id, n_uses = _counted(json.loads(line))
        except (ValueError, TypeError, KeyError):
            continue
        found[video_id] += n_uses
    return found


def read_uses(path: Path) -> Counter[str]:
    """Uses of each video by a table of one's own, JSONL or Parquet. Raises BadInputError."""
    found: Counter[str] = Counter()
    try:
        if path.suffix == ".parquet":
            rows: list[Any] = from_parquet_file(str(path), COLUMNS).to_pylist()
        else:
            rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise BadInputError(f"--uses: {path}: expected JSONL or Parquet of video_id and n_uses: {error}") from error
    for i, row in enumerate(rows, 1):
        try:
            video_id, n_uses = _counted(row)
        except (ValueError, TypeError, KeyError) as error:
            raise BadInputError(f"--uses: {path}: row {i}: got {row!r}, expected a video_id and n_uses of at least 0") from error
        found[video_id] += n_uses
    return found


def _counted(row: Any) -> tuple[str, int]:
    """Raises ValueError, TypeError or KeyError for what is no count."""
    video_id, n_uses = row["video_id"], row["n_uses"]
    if not isinstance(video_id, str) or not isinstance(n_uses, int) or n_uses < 0:
        raise ValueError
    return video_id, n_uses
