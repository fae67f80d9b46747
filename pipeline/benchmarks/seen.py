"""Videos that were trained or validated on are no test videos, whatever a benchmark calls them: told by content, not by name.

A span of a video counts as the video: a scene that was trained on gives away the clip it was cut from.
"""

from collections.abc import Mapping
from dataclasses import replace

from infra.attempt import reject
from infra.contents import Span, video_id
from infra.storage import Table
from pipeline.manifest import Examined
from pipeline.source_rows import STAGE


def trained_on(root: str) -> dict[str, str]:
    """Content -> "VIDEO_ID (split)" of each video in the table that is of another split than test. Raises StorageError."""
    by_uri: dict[str, list[str]] = {}
    for row in Table(root, "files").read(["uri", "content"]).to_pylist():
        by_uri.setdefault(row["uri"], []).append(row["content"])
    found = {}
    for row in Table(root, "videos").read(["video_id", "uri", "start_s", "end_s", "split"]).to_pylist():
        if row["split"] != "test":
            for content in by_uri.get(row["uri"], []):
                if video_id(content, (row["start_s"], row["end_s"])) == row["video_id"]:
                    found[content] = f"{row['video_id']} ({row['split']})"
    return found


def without_seen(examined: Examined, seen: Mapping[str, str]) -> tuple[Examined, dict[tuple[str, Span], str]]:
    """Without the videos whose content was seen, which become rejects; and of each address and span why it is not asked about."""
    why = {
        named: f"{named[0]} has the content of {seen[examined.contents[named[0]]]}: it was seen in training, so that it tests nothing"
        for named in examined.ids
        if examined.contents[named[0]] in seen
    }
    kept = [one for one in examined.videos if (one.row.uri, one.row.span) not in why]
    rejects = [
        reject(STAGE, one.key, "duplicate", why[one.row.uri, one.row.span]) for one in examined.videos if (one.row.uri, one.row.span) in why
    ]
    ids = {named: name for named, name in examined.ids.items() if named not in why}
    return replace(examined, videos=kept, rejects=[*examined.rejects, *rejects], ids=ids), why
