"""A questions file -> `questions`: each question matched with the video it is about.

A file stands for its benchmarks: what it says of them replaces what was said before, and questions of other benchmarks stay. A question
is known by video, text and style; with other references it is another version of the same question.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from infra.artifacts import QUESTIONS
from infra.attempt import Row, reject
from infra.digests import digest, short_hash
from infra.stage import Order, summary
from infra.storage import Table
from pipeline.source_rows import STAGE, Span, parse_question
from pipeline.sources import Source
from video2lora.video import short_id

QUESTIONS_PER_COMMIT = 65536


def match_questions(source: Source, ids: Mapping[tuple[str, Span], str], *, benchmark: str) -> tuple[list[Row], list[Row]]:
    """Rows of `questions`, and rejects. `ids` says which video each address and span is."""
    rows: dict[str, Row] = {}
    rejects = []
    for row in source.rows:
        one = parse_question(row, source.folder, benchmark=benchmark)
        if isinstance(one, dict):
            rejects.append(one)
            continue
        video = ids.get((one.uri, one.span))
        if video is None:
            rejects.append(reject(STAGE, row.key, "question_without_video", f"{one.uri} is not in the manifest, or was rejected"))
            continue
        text = "\n".join((video, one.question, one.style))
        question_id = short_id(hashlib.sha256(text.encode()).hexdigest())
        if question_id in rows:
            rejects.append(reject(STAGE, row.key, "duplicate", f"asked of {one.uri} before: {one.question}"))
            continue
        version = short_hash([one.benchmark, one.task, one.references])
        told = one.model_dump(exclude={"uri", "start_s", "end_s"})
        rows[question_id] = {"question_id": question_id, "version": version, "video_id": video, **told}
    return list(rows.values()), rejects


def write_questions(root: str, source: Source, ids: Mapping[tuple[str, Span], str], *, benchmark: str) -> str:
    """Make the table hold what the file says; in a line, what it holds then. Raises StorageError, SupersededError."""
    rows, rejects = match_questions(source, ids, benchmark=benchmark)
    table, videos = Table(root, "questions"), Table(root, "videos").made_from()
    texts = [QUESTIONS.key_of(row) for row in rows] + [f"{one['key']} {one['reason']}" for one in rejects]
    asked: dict[str, Any] = {"stage": STAGE, "questions": source.address, "content": digest(texts), "n_rows": len(texts)}
    asked["inputs"] = {"videos": videos}
    if not table.finished(asked):
        _write(table, asked, rows, rejects, address=source.address)
    return summary(table)


def _write(table: Table, asked: dict[str, Any], rows: list[Row], rejects: list[Row], *, address: str) -> None:
    there = table.read(["question_id", "version", "benchmark"])
    replaced, ids = {row["benchmark"] for row in rows}, {row["question_id"] for row in rows}
    kept = [QUESTIONS.key_of(row) for row in there.to_pylist() if row["benchmark"] not in replaced and row["question_id"] not in ids]
    said = {row["key"]: row for row in table.read_rejects().to_pylist()}
    kept += [key for key in said if not key.startswith(f"{address}:")]
    mine = [QUESTIONS.key_of(row) for row in rows] + [one["key"] for one in rejects]
    attempt = Order(table, asked, list(dict.fromkeys([*kept, *mine]))).begin()
    attempt.reopen(one["key"] for one in rejects if said.get(one["key"]) != one)
    left = [row for row in rows if QUESTIONS.key_of(row) in attempt.left]
    for start in range(0, len(left), QUESTIONS_PER_COMMIT):
        attempt.write(left[start : start + QUESTIONS_PER_COMMIT], [])
    attempt.write([], [one for one in rejects if one["key"] in attempt.left])
    attempt.complete()
