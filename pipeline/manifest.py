"""SOURCE -> `videos`, and a questions file -> `questions`.

Reads: SOURCE, a folder of video files, or JSONL or Parquet with a column uri (or path, video) and, where wanted, split,
start_s, end_s; paths are local or s3://, relative ones count from SOURCE's folder. Questions: JSONL with uri, question,
references and, where wanted, style, benchmark and the span; if not named, `questions.jsonl` beside a SOURCE that is a file.
Writes: `files` (what content an address has), `videos`, `questions`, and what is missing, empty, unreadable, twice there or ill-formed
to rejects. Command: `video2lora manifest SOURCE`. Cost: every byte of a file that was never read or has changed, about 40 ms of a core
per new local clip for its duration, and for all others one `stat`.

Each run adds to what is there. A video is its content and span: moved, it is the same one under another address. A file with another
content is another video, and the one it held before leaves the flow as `superseded`, unless it is found elsewhere. What is no longer
in a SOURCE stays (`video2lora forget` removes). No Ray: hashing waits for the disk and probing for a child process, so threads do.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from infra.artifacts import VIDEOS
from infra.attempt import Attempt, Row, reject
from infra.config import Recipe, SceneSettings, Where, load_recipe, load_where
from infra.contents import Span, video_id
from infra.digests import digest, short_hash
from infra.of_video import FORGOTTEN
from infra.progress import counting, say
from infra.stage import Order, summary
from infra.storage import Table
from pipeline.known_files import Version, contents, known_contents, versions
from pipeline.questions import write_questions
from pipeline.scenes import SourceVideo, spans_of
from pipeline.source_rows import STAGE, VideoRow, parse_video
from pipeline.sources import S3, VIDEO_SUFFIXES, Source, SourceRow, beside, read_jsonl, read_source
from video2lora.video import VideoDecodeError, probe

VIDEOS_PER_COMMIT = 4096


@dataclass(frozen=True)
class Named:
    """A row of `videos` before its duration is known, and what names it in the SOURCE."""

    key: str
    video_id: str
    row: VideoRow
    span_kind: str | None = None

    @cached_property
    def version(self) -> str:
        return short_hash([self.row.uri, self.row.split, self.span_kind])

    @property
    def row_key(self) -> str:
        return f"{self.video_id}/{self.version}"


@dataclass(frozen=True)
class Examined:
    """All rows of a SOURCE: the videos, the rejects, each file's content, and which video each address and span is."""

    address: str
    videos: list[Named]
    rejects: list[Row]
    contents: dict[str, str]
    ids: dict[tuple[str, Span], str]

    def asked(self) -> dict[str, Any]:
        texts = [one.row_key for one in self.videos] + [f"{one['key']} {one['reason']}" for one in self.rejects]
        return {"stage": STAGE, "source": self.address, "content": digest(texts), "n_rows": len(texts)}


@dataclass(frozen=True)
class Survey:
    """What a SOURCE holds, as far as can be told without reading a file."""

    known: int  # read before, and not changed since
    changed: int  # read before, and another version now
    new: int  # never read: a file that moved is told from a new one only by reading it
    missing: int  # not there, or not to be read
    bad: int  # rows that are none
    n_bytes_to_read: int


@dataclass(frozen=True)
class Change:
    """What has to be done to `videos` for a SOURCE: the keys wanted from now on, and of those the rows and rejects to write."""

    wanted: list[str]
    rows: list[Named]
    rejects: list[Row]
    durations_s: Mapping[str, float | None]  # of videos that were probed before


def examine(source: Source, root: str, scenes: SceneSettings | None = None) -> Examined:
    """Parse, hash and tell apart all rows, in order. The first of several with the same content and span stays.

    Where scenes are asked for, spans stand in place of the videos whose row names none.
    """
    parsed = [(row, parse_video(row, source.roots)) for row in source.rows]
    found = contents(root, versions(_addresses(parsed)))
    examined = Examined(source.address, [], [], {}, {})
    first: dict[str, Named] = {}
    for row, one in parsed:
        content = found[one.uri] if isinstance(one, VideoRow) else ""
        if isinstance(one, dict):
            examined.rejects.append(one)
        elif isinstance(content, VideoDecodeError):
            examined.rejects.append(reject(STAGE, row.key, content.reason, f"{one.uri}: {content.detail}"))
        else:
            name = video_id(content, one.span)
            examined.contents[one.uri], examined.ids[one.uri, one.span] = content, name
            earlier = first.setdefault(name, Named(row.key, name, one))
            if earlier.key == row.key:
                examined.videos.append(earlier)
            else:
                examined.rejects.append(
                    reject(STAGE, row.key, "duplicate", f"{one.uri} ({one.split}) is {earlier.key} ({earlier.row.split})")
                )
    return examined if scenes is None else _cut(examined, scenes, root)


def _cut(examined: Examined, settings: SceneSettings, root: str) -> Examined:
    """Spans in place of whole videos: of each span the row of its video."""
    whole = {one.key: one for one in examined.videos if one.row.span == (None, None)}
    of_source = [SourceVideo(one.key, one.row.uri, examined.contents[one.row.uri], one.row.split, one.row.scenes) for one in whole.values()]
    spans, rejects = spans_of(of_source, settings, root)
    videos = [one for one in examined.videos if one.key not in whole]
    ids = {(uri, span): name for (uri, span), name in examined.ids.items() if span != (None, None)}
    for span in spans:
        times = span["start_s"] or None, span["end_s"]  # as a row's: from the beginning on
        row = whole[span["key"]].row.model_copy(update={"start_s": times[0], "end_s": times[1]})
        name = ids[row.uri, times] = video_id(span["content"], times)
        videos.append(Named(span["key"], name, row, span["span_kind"]))
    unique: dict[str, Named] = {}
    for one in videos:  # a span that a row names stays that row's, with its split
        unique.setdefault(one.video_id, one)
    ids |= {named: name for named, name in examined.ids.items() if name in unique}  # copies of what stayed whole
    return replace(examined, videos=list(unique.values()), rejects=[*examined.rejects, *rejects], ids=ids)


def survey(source: str, recipe: Recipe, where: Where) -> Survey:
    """What a run would find, without reading a file. The recipe has no say. Raises BadInputError, StorageError."""
    read = read_source(source, where.roots)
    parsed = [(row, parse_video(row, read.roots)) for row in read.rows]
    known = known_contents(Table(where.data, "files"))
    addresses = {key.rsplit("/", 1)[0] for key in known}
    counts: Counter[str] = Counter(bad=sum(isinstance(one, dict) for _, one in parsed))
    n_bytes = 0
    for one in versions(_addresses(parsed)).values():
        kind = "missing"
        if isinstance(one, Version):
            kind = "known" if one.key in known else "changed" if one.uri in addresses else "new"
            n_bytes += 0 if kind == "known" else one.n_bytes
        counts[kind] += 1
    return Survey(**{name: counts[name] for name in ("known", "changed", "new", "missing", "bad")}, n_bytes_to_read=n_bytes)


def changes(examined: Examined, videos: Table) -> Change:
    """What the SOURCE changes in the table, which holds what all sources before had."""
    there = videos.read(["video_id", "version", "uri", "start_s", "end_s", "duration_s"])
    old = dict(zip(VIDEOS.keys_of(there).to_pylist(), there.to_pylist(), strict=True))
    said = {row["key"]: row for row in videos.read_rejects().to_pylist()}
    forgotten = {key.removeprefix(FORGOTTEN) for key in said if key.startswith(FORGOTTEN)}
    rejects = {one["key"]: one for one in examined.rejects}
    now: dict[str, Named] = {}
    for one in examined.videos:
        if one.video_id in forgotten:
            rejects[one.key] = reject(STAGE, one.key, "forgotten", f"{one.row.uri} is {one.video_id}, which `video2lora forget` removed")
        else:
            now[one.row_key] = one
    ids = {one.video_id for one in now.values()}
    kept = {key: row for key, row in old.items() if key in now or row["video_id"] not in ids}
    for key, row in kept.items():
        content = examined.contents.get(row["uri"])
        if content is not None and video_id(content, (row["start_s"], row["end_s"])) != row["video_id"]:
            rejects[key] = reject(STAGE, key, "superseded", f"{row['uri']} holds {video_id(content, (None, None))} now")
    # What was said of other sources' rows, and of videos that were superseded and are not found elsewhere now.
    old_rejects = [key for key in said if not _is_of(key, examined.address) and key.split("/")[0] not in ids]
    return Change(
        wanted=list(dict.fromkeys([*kept, *now, *rejects, *old_rejects])),
        rows=[one for key, one in now.items() if key not in old],
        rejects=[row for key, row in rejects.items() if said.get(key) != row],
        durations_s={row["video_id"]: row["duration_s"] for row in old.values()},
    )


def run(source: str, recipe: Recipe, where: Where, *, questions: str | None = None) -> str:
    """`questions` is a JSONL file. Raises BadInputError, StorageError, SupersededError."""
    address = questions or beside(source, "questions.jsonl")
    asked = read_jsonl(address, where.roots) if address else None
    examined = examine(read_source(source, where.roots), where.data, recipe.scenes)
    videos = Table(where.data, "videos")
    if videos.finished(examined.asked()):
        say(f"manifest: {videos.folder} has all of {examined.address}, nothing to do")
    else:
        write_videos(videos, examined)
    if asked is None:
        return summary(videos)
    benchmark = os.path.basename(str(address)).split(".")[0]
    there = set(videos.read(["video_id"])["video_id"].to_pylist())  # of those examined, all but the forgotten
    ids = {named: one for named, one in examined.ids.items() if one in there}
    return f"{summary(videos)}; {write_questions(where.data, asked, ids, benchmark=benchmark)}"


def main() -> None:
    print(run(sys.argv[1], load_recipe(sys.argv[2]), load_where()))


def write_videos(videos: Table, examined: Examined) -> None:
    """Make the table hold what the SOURCE says. Raises StorageError, SupersededError."""
    change, state = changes(examined, videos), videos.state()
    is_there = state.completed is not None and state.is_complete and state.completed["wanted"] == digest(change.wanted)
    if is_there and not change.rows and not change.rejects:
        return  # all of a source that was there before another one
    attempt = Order(videos, examined.asked(), change.wanted).begin()
    attempt.reopen([one.row_key for one in change.rows] + [one["key"] for one in change.rejects])
    attempt.write([], change.rejects)
    with counting(STAGE, "clips probed", len(change.rows)) as counter, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(change.rows), VIDEOS_PER_COMMIT):
            block = change.rows[start : start + VIDEOS_PER_COMMIT]
            _write_block(attempt, block, change.durations_s, pool)
            counter.advance(len(block))
    attempt.complete()


def _write_block(attempt: Attempt, block: Sequence[Named], durations_s: Mapping[str, float | None], pool: ThreadPoolExecutor) -> None:
    # Not in a bucket, where each clip would be fetched twice.
    unknown = [one for one in block if one.video_id not in durations_s and not one.row.uri.startswith(S3)]
    probed = dict(zip([one.video_id for one in unknown], pool.map(_duration_s, unknown), strict=True))
    rows = [
        {
            "video_id": one.video_id,
            "version": one.version,
            "duration_s": probed.get(one.video_id, durations_s.get(one.video_id)),
            "span_kind": one.span_kind,
            **{name: getattr(one.row, name) for name in ("uri", "start_s", "end_s", "split")},
        }
        for one in block
    ]
    attempt.write(rows, [])


def _duration_s(one: Named) -> float | None:
    """The whole clip's, where ffmpeg can read it: whether it can be decoded is for `frames` to find out."""
    with suppress(VideoDecodeError):
        return probe(one.row.uri).duration_s
    return None


def _addresses(parsed: Iterable[tuple[SourceRow, VideoRow | Row]]) -> list[str]:
    return sorted({one.uri for _, one in parsed if isinstance(one, VideoRow)})


def _is_of(key: str, address: str) -> bool:
    """Whether a reject's key names a row of this SOURCE: a line of the file, or a video in the folder, where there may be lists too."""
    return key.startswith(f"{address}:") or (key.startswith(f"{address}/") and key.lower().endswith(VIDEO_SUFFIXES))


if __name__ == "__main__":
    main()
