"""A questions file -> `questions`: each question matched with the video it is about.

A file stands for its benchmarks: what it says of them replaces what was said before, and questions of other benchmarks stay. A question
is known by video, text and style; with other references it is another version of the same question. What `video2lora benchmark` drew
stands for its benchmark's questions but those of videos that teach, and how they were drawn stays in `asked` for as long as they are there.
What another benchmark asks already is a reject: a question is answered once, and counts for one of them.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from infra.artifacts import QUESTIONS
from infra.attempt import Row, reject
from infra.contents import Span
from infra.digests import digest, short_hash
from infra.stage import Order, summary
from infra.storage import Table
from pipeline.source_rows import STAGE, QuestionRow, parse_question
from pipeline.sources import Source, SourceRow
from video2lora.video import short_id

QUESTIONS_PER_COMMIT = 65536
NOBODY: Mapping[str, str] = {}


@dataclass(frozen=True)
class Draw:
    """A benchmark's questions as they were drawn: how, why a video (address and span) is not asked about, and the videos that teach."""

    told: Mapping[str, Any]
    why: Mapping[tuple[str, Span], str]
    taught: frozenset[str]


def match_questions(
    parsed: Iterable[tuple[SourceRow, QuestionRow | Row]],
    ids: Mapping[tuple[str, Span], str],
    *,
    why: Mapping[tuple[str, Span], str],
    others: Mapping[str, str] = NOBODY,
) -> tuple[list[Row], list[Row]]:
    """Rows of `questions`, and rejects. `ids` says which video each address and span is, `why` of some why they are none.

    `others` are questions of another benchmark, by id, which keeps them.
    """
    rows: dict[str, Row] = {}
    rejects = []
    for row, one in parsed:
        if isinstance(one, dict):
            rejects.append(one)
            continue
        video = ids.get((one.uri, one.span))
        if video is None:
            detail = why.get((one.uri, one.span), f"{one.uri} is not in the manifest, or was rejected")
            rejects.append(reject(STAGE, row.key, "question_without_video", detail))
            continue
        text = "\n".join((video, one.question, one.style, *([one.told_apart_by] if one.told_apart_by else [])))
        question_id = short_id(hashlib.sha256(text.encode()).hexdigest())
        if question_id in rows:
            rejects.append(reject(STAGE, row.key, "duplicate", f"asked of {one.uri} before: {one.question}"))
            continue
        if question_id in others:
            rejects.append(
                reject(STAGE, row.key, "duplicate", f"benchmark {others[question_id]} asks the same of {one.uri}: {one.question}")
            )
            continue
        version = short_hash([one.benchmark, one.task, one.references])
        told = one.model_dump(exclude={"uri", "start_s", "end_s", "told_apart_by"})
        rows[question_id] = {"question_id": question_id, "version": version, "video_id": video, **told}
    return list(rows.values()), rejects


def write_questions(root: str, source: Source, ids: Mapping[tuple[str, Span], str], *, benchmark: str, draw: Draw | None = None) -> str:
    """Make the table hold what the file says; in a line, what it holds then. Raises StorageError, SupersededError."""
    table, videos = Table(root, "questions"), Table(root, "videos").made_from()
    parsed = [(row, parse_question(row, source.roots, benchmark=benchmark)) for row in source.rows]
    replaced = {one.benchmark for _, one in parsed if not isinstance(one, dict)} | ({benchmark} if draw else set())
    drawn = _drawn_before(table)
    there = table.read(["question_id", "benchmark"]).to_pylist()
    # A plain file may give its own questions another benchmark's name; what was drawn is taken from no benchmark.
    others = {
        one["question_id"]: one["benchmark"] for one in there if one["benchmark"] not in replaced and (draw or one["benchmark"] in drawn)
    }
    rows, rejects = match_questions(parsed, ids, why=draw.why if draw else {}, others=others)
    texts = [QUESTIONS.key_of(row) for row in rows] + [f"{one['key']} {one['reason']}" for one in rejects]
    asked: dict[str, Any] = {"stage": STAGE, "questions": source.address, "content": digest(texts), "n_rows": len(texts)}
    asked["inputs"] = {"videos": videos}
    told = {name: how for name, how in drawn.items() if name not in replaced} | ({benchmark: dict(draw.told)} if draw else {})
    if told:
        asked["benchmarks"] = told
    if not table.finished(asked):
        taught = draw.taught if draw else None
        _write(table, asked, rows, rejects, replaced=replaced, taught=taught)
    return summary(table)


def _drawn_before(table: Table) -> dict[str, Any]:
    """How each benchmark's questions were drawn that are there."""
    completed = table.state().completed
    return {} if completed is None else dict(completed["asked"].get("benchmarks", {}))


def _write(
    table: Table, asked: dict[str, Any], rows: list[Row], rejects: list[Row], *, replaced: set[str], taught: frozenset[str] | None
) -> None:
    """`taught`: the videos whose questions of the same benchmark stay, and none does of a video that is gone; None, where all go."""
    there, ids = table.read(["question_id", "version", "benchmark", "video_id"]), {row["question_id"] for row in rows}
    kept = [
        QUESTIONS.key_of(row)
        for row in there.to_pylist()
        if row["question_id"] not in ids and (row["benchmark"] not in replaced or row["video_id"] in (taught or ()))
    ]
    said = {row["key"]: row for row in table.read_rejects().to_pylist()}
    kept += [key for key in said if not key.startswith(f"{asked['questions']}:")]
    mine = [QUESTIONS.key_of(row) for row in rows] + [one["key"] for one in rejects]
    wanted, new = list(dict.fromkeys([*kept, *mine])), [one["key"] for one in rejects if said.get(one["key"]) != one]
    if taught is not None and not new and _holds(table, asked, wanted):
        return
    attempt = Order(table, asked, wanted).begin()
    attempt.reopen(new)
    left = [row for row in rows if QUESTIONS.key_of(row) in attempt.left]
    for start in range(0, len(left), QUESTIONS_PER_COMMIT):
        attempt.write(left[start : start + QUESTIONS_PER_COMMIT], [])
    attempt.write([], [one for one in rejects if one["key"] in attempt.left])
    attempt.complete()


def _holds(table: Table, asked: dict[str, Any], wanted: list[str]) -> bool:
    """Whether just this was there after the last run, though that was asked for another benchmark."""
    state = table.state()
    if state.completed is None or not state.is_complete or state.completed["wanted"] != digest(wanted):
        return False
    return all(state.completed["asked"].get(name) == asked.get(name) for name in ("inputs", "benchmarks"))
