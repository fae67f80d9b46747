"""Which content a video is of: a span counts as the video that it was cut from.

A video's id is a hash of its content and span, so that of a span alone the content cannot be told: the tables `videos` and `files` say it.
"""

import hashlib
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from infra.storage import Table
from video2lora.video_file import short_id

Span = tuple[float | None, float | None]
"""Seconds from start to end; None where it is the video's own."""


def video_id(content: str, span: Span) -> str:
    """From the hash of the content, and the span where there is one."""
    text = content if span == (None, None) else hashlib.sha256(f"{content} {span[0]} {span[1]}".encode()).hexdigest()
    return short_id(text)


def contents_of(root: str, video_ids: Iterable[str]) -> dict[str, str]:
    """Of each video the short id of its content. One that the tables know of no span of is a whole video, which its id names.

    Rows that are wanted no longer count too. Raises StorageError.
    """
    asked = pa.array(sorted(set(video_ids)), pa.string())
    found = {name: name for name in asked.to_pylist()}
    videos = Table(root, "videos").read_all(["video_id", "uri", "start_s", "end_s"])
    is_span = pc.or_(pc.is_valid(videos["start_s"]), pc.is_valid(videos["end_s"]))
    spans = videos.filter(pc.and_(is_span, pc.is_in(videos["video_id"], value_set=asked)))
    if not len(spans):
        return found
    by_uri: dict[str, set[str]] = {}  # a file that changed has had several
    for row in Table(root, "files").read_all(["uri", "content"]).to_pylist():
        by_uri.setdefault(row["uri"], set()).add(row["content"])
    for row in spans.to_pylist():
        for content in by_uri.get(row["uri"], ()):
            if video_id(content, (row["start_s"], row["end_s"])) == row["video_id"]:
                found[row["video_id"]] = short_id(content)
    return found
