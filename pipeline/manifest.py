"""SOURCE -> `videos`, and a questions file -> `questions`.

Reads: SOURCE, a folder of video files, or JSONL or Parquet with a column uri (or path, video) and, where wanted, split,
start_s, end_s; paths are local or s3://, relative ones count from SOURCE's folder. Questions: JSONL with uri, question,
references and, where wanted, style, benchmark and the span; if not named, `questions.jsonl` beside a SOURCE that is a file.
Writes: `videos`, `questions`, and what is missing, empty, unreadable, twice there or ill-formed to rejects.
Command: `video2lora manifest SOURCE`. Cost: every byte of SOURCE is read on every run, since a video is known by its
content (a changed clip is noticed, a copy is found); then about 40 ms of a core per new local clip for its duration.

A clip that cannot be probed stays, without a duration: whether it can be decoded is for `frames` to find out. Clips in a
bucket are not probed, which would fetch each one twice. No Ray: hashing waits for the disk and probing for a child
process, so threads do.
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from infra.config import Recipe, Where, load_recipe, load_where
from infra.progress import counting, say
from infra.stage import summary
from infra.storage import Table, digest, reject
from pipeline.sources import S3, Source, SourceRow, beside, content_hash, read_jsonl, read_source, resolve
from video2lora.video import VideoDecodeError, probe, short_id

STAGE = "manifest"
N_HASHING = 8  # threads; Python's lock is free while they read and hash
VIDEOS_PER_COMMIT = 256

Span = tuple[float | None, float | None]


class _Row(BaseModel):
    """Strict: a number in quotes is no number. Columns beside these are not looked at."""

    model_config = ConfigDict(strict=True, frozen=True)

    start_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    end_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    uri: str

    @model_validator(mode="after")
    def _lasts(self) -> "_Row":
        if self.end_s is not None and self.end_s <= (self.start_s or 0.0):
            raise ValueError(f"end_s: got {self.end_s}, expected more than start_s = {self.start_s or 0.0}")
        return self

    @property
    def span(self) -> Span:
        return self.start_s, self.end_s


class VideoRow(_Row):
    split: Literal["train", "validation", "test"] = "train"


class QuestionRow(_Row):
    question: str = Field(min_length=1)
    references: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    style: str = ""
    benchmark: str = ""


@dataclass(frozen=True)
class Named:
    """A row of `videos` before its duration is known, and what names it in the SOURCE."""

    key: str
    video_id: str
    row: VideoRow


@dataclass(frozen=True)
class Examined:
    """All rows of a SOURCE: the videos, the rejects, and which video each address and span is."""

    videos: list[Named]
    rejects: list[dict[str, Any]]
    ids: dict[tuple[str, Span], str]

    def made_from(self) -> dict[str, Any]:
        texts = [f"{one.video_id} {one.row.uri} {one.row.split}" for one in self.videos]
        texts += [f"{one['key']} {one['reason']}" for one in self.rejects]
        return {"stage": STAGE, "source": digest(texts), "n_rows": len(texts)}


def parse_video(row: SourceRow, folder: str) -> VideoRow | dict[str, Any]:
    """The row with its address in full, or its reject."""
    if not row.problem and row.path in (None, ""):
        return reject(STAGE, row.key, "no_path", "no uri in it")
    fields = _fields(row)
    try:
        if row.problem:
            raise ValueError(row.problem)
        parsed = VideoRow.model_validate(fields)
        return parsed.model_copy(update={"uri": resolve(parsed.uri, folder)})
    except ValueError as error:
        return reject(STAGE, row.key, "bad_row", _why(error))


def parse_question(row: SourceRow, folder: str, *, benchmark: str) -> QuestionRow | dict[str, Any]:
    """The row with its video's address in full, or its reject. `benchmark` is the name for rows that have none."""
    fields = {"benchmark": benchmark} | _fields(row)
    try:
        if row.problem:
            raise ValueError(row.problem)
        parsed = QuestionRow.model_validate(fields)
        return parsed.model_copy(update={"uri": resolve(parsed.uri, folder)})
    except ValueError as error:
        return reject(STAGE, row.key, "bad_row", _why(error))


def video_id(content: str, span: Span) -> str:
    """From the hash of the content, and the span where there is one."""
    text = content if span == (None, None) else hashlib.sha256(f"{content} {span[0]} {span[1]}".encode()).hexdigest()
    return short_id(text)


def video_row(one: Named) -> dict[str, Any]:
    """The row of `videos`, with the whole clip's duration where it is local and ffmpeg can read it."""
    duration_s = None
    if not one.row.uri.startswith(S3):
        with suppress(VideoDecodeError):  # `frames` decides
            duration_s = probe(one.row.uri).duration_s
    return {"video_id": one.video_id, "duration_s": duration_s} | one.row.model_dump()


def examine(source: Source) -> Examined:
    """Parse, hash and tell apart all rows, in order. The first of several with the same content and span stays."""
    parsed = [(row, parse_video(row, source.folder)) for row in source.rows]
    addresses = sorted({one.uri for _, one in parsed if isinstance(one, VideoRow)})
    with ThreadPoolExecutor(N_HASHING) as pool, counting(STAGE, "files read", len(addresses)) as counter:
        hashes: dict[str, str | VideoDecodeError] = {}
        for address, content in zip(addresses, pool.map(_hash_or_error, addresses), strict=True):
            hashes[address] = content
            counter.advance()
    examined = Examined([], [], {})
    first: dict[str, Named] = {}
    for row, one in parsed:
        content = hashes[one.uri] if isinstance(one, VideoRow) else ""
        if isinstance(one, dict):
            examined.rejects.append(one)
        elif isinstance(content, VideoDecodeError):
            examined.rejects.append(reject(STAGE, row.key, content.reason, f"{one.uri}: {content.detail}"))
        else:
            name = video_id(content, one.span)
            examined.ids[one.uri, one.span] = name
            earlier = first.setdefault(name, Named(row.key, name, one))
            if earlier.key == row.key:
                examined.videos.append(earlier)
            else:
                examined.rejects.append(
                    reject(STAGE, row.key, "duplicate", f"{one.uri} ({one.split}) is {earlier.key} ({earlier.row.split})")
                )
    return examined


def match_questions(source: Source, examined: Examined, *, benchmark: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `questions`, and rejects."""
    rows: dict[str, dict[str, Any]] = {}
    rejects = []
    for row in source.rows:
        one = parse_question(row, source.folder, benchmark=benchmark)
        if isinstance(one, dict):
            rejects.append(one)
            continue
        video = examined.ids.get((one.uri, one.span))
        if video is None:
            rejects.append(reject(STAGE, row.key, "question_without_video", f"{one.uri} is not in the manifest, or was rejected"))
            continue
        text = "\n".join((video, one.question, one.style))
        question_id = short_id(hashlib.sha256(text.encode()).hexdigest())
        if question_id in rows:
            rejects.append(reject(STAGE, row.key, "duplicate", f"asked of {one.uri} before: {one.question}"))
            continue
        rows[question_id] = {
            "question_id": question_id,
            "video_id": video,
            **one.model_dump(exclude={"uri", "start_s", "end_s"}),
        }
    return list(rows.values()), rejects


def run(source: str, recipe: Recipe, where: Where, *, questions: str | None = None) -> str:
    """`questions` is a JSONL file. The recipe has no say here. Raises BadInputError, MadeFromOtherError, StorageError."""
    address = questions or beside(source, "questions.jsonl")
    asked = read_jsonl(address) if address else None
    examined = examine(read_source(source))
    videos = Table(where.data, "videos")
    if videos.begin(examined.made_from()):
        _write_videos(videos, examined)
    else:
        say(f"manifest: {videos.folder} is complete, nothing to do")
    if asked is None:
        return summary(videos)
    benchmark = os.path.basename(str(address)).split(".")[0]
    return f"{summary(videos)}; {_write_questions(where, *match_questions(asked, examined, benchmark=benchmark))}"


def main() -> None:
    print(run(sys.argv[1], load_recipe(sys.argv[2]), load_where()))


def _write_videos(videos: Table, examined: Examined) -> None:
    done = videos.done_keys()
    _commit(videos, [], [one for one in examined.rejects if one["key"] not in done])
    left = [one for one in examined.videos if one.video_id not in done]
    with (
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
        counting(STAGE, "clips probed", len(left)) as counter,
    ):
        for block in _blocks(left, VIDEOS_PER_COMMIT):
            rows = []
            for row in pool.map(video_row, block):
                rows.append(row)
                counter.advance()
            _commit(videos, rows, [])
    videos.complete(n_in=len(examined.videos) + len(examined.rejects))


def _write_questions(where: Where, rows: list[dict[str, Any]], rejects: list[dict[str, Any]]) -> str:
    table = Table(where.data, "questions")
    texts = [f"{row['question_id']} {row['benchmark']} {row['references']}" for row in rows]
    texts += [f"{one['key']} {one['reason']}" for one in rejects]
    inputs = {"videos": Table(where.data, "videos").made_from()}
    if table.begin({"stage": STAGE, "questions": digest(texts), "n_rows": len(texts), "inputs": inputs}):
        done = table.done_keys()
        left = (
            [row for row in rows if row["question_id"] not in done],
            [one for one in rejects if one["key"] not in done],
        )
        _commit(table, *left)
        table.complete(n_in=len(texts))
    return summary(table)


def _commit(table: Table, rows: list[dict[str, Any]], rejects: list[dict[str, Any]]) -> None:
    if rows or rejects:
        table.commit(rows, rejects)


def _hash_or_error(uri: str) -> str | VideoDecodeError:
    try:
        return content_hash(uri)
    except VideoDecodeError as error:
        return error


def _fields(row: SourceRow) -> dict[str, Any]:
    """Without nulls, which mean "not said", and with the path under one name."""
    return {name: value for name, value in row.fields.items() if value is not None} | {"uri": row.path}


def _why(error: ValueError) -> str:
    """What is wrong with a row, on one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    wrong = error.errors(include_url=False)
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'row'}: {one['msg']} (got {one['input']!r})" for one in wrong)


def _blocks(items: Sequence[Named], n: int) -> Iterator[Iterable[Named]]:
    for start in range(0, len(items), n):
        yield items[start : start + n]


if __name__ == "__main__":
    main()
