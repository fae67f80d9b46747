"""Annotation files of the four question-answering benchmarks -> items: a question as its authors wrote it, and every answer they accept."""

import posixpath
from collections.abc import Sequence
from functools import partial
from typing import Any

from infra.errors import BadInputError
from pipeline.benchmarks.items import File, Item, Loaded, clean, csv_rows, gather, json_object, json_rows, text_of, video_of

ACTIVITYNET_QA_TYPES = ("motion", "spatial", "temporal", "yes/no", "color", "object", "location", "number", "other")  # 0 to 8

Row = dict[str, Any]


def nextqa(files: Sequence[File]) -> Loaded:
    """NExT-OE's test.csv (video, question, answer, qid, type), and add_reference_answer_test.json: {video: {qid: second answer}}."""
    more: dict[str, Any] = {}
    for file in files:
        if not file.name.endswith(".csv"):
            more |= json_object(file)
    rows = []
    for file in files:
        if file.name.endswith(".csv"):
            of_file = csv_rows(file)
            if any(isinstance(row, dict) and "a0" in row for _, row in of_file):
                raise BadInputError(
                    f"{file.name}: has options a0 to a4: that is the multiple-choice file, expected NExT-OE's open-ended one"
                )
            rows += of_file
    if not rows:
        raise BadInputError("nextqa: no .csv with questions among the annotation files")
    return gather(rows, partial(_nextqa, more))


def activitynet_qa(files: Sequence[File]) -> Loaded:
    """A file of questions (video_name, question, question_id) and one of answers (answer, type, question_id), in any order.

    What is said of a question_id again, or of none, is bad.
    """
    loaded = Loaded()
    asked: dict[str, tuple[str, Row]] = {}
    answered: dict[str, tuple[str, Row]] = {}
    for file in files:
        for key, row in json_rows(file):
            if isinstance(row, ValueError) or not ("question" in row or "answer" in row):
                loaded.bad.append((key, str(row) if isinstance(row, ValueError) else "expected a question or an answer"))
                continue
            try:
                name = text_of(row, "question_id")
            except ValueError as error:
                loaded.bad.append((key, str(error)))
                continue
            of_row = [("question", asked)] * ("question" in row) + [("answer", answered)] * ("answer" in row)
            again = [f"question_id {name!r} has its {what} in {said[name][0]}" for what, said in of_row if name in said]
            if again:
                loaded.bad.append((key, "; ".join(again)))
                continue
            for _, said in of_row:
                said[name] = key, row
    joined = [(key, row | answered.get(name, ("", {}))[1]) for name, (key, row) in asked.items()]
    of_questions = gather(joined, _activitynet_qa)
    loaded.bad.extend((key, f"no question of question_id {name!r}") for name, (key, _) in answered.items() if name not in asked)
    return Loaded(of_questions.items, [*loaded.bad, *of_questions.bad])


def plm_sgqa(files: Sequence[File]) -> Loaded:
    """uid, video, question, answer and, in later cards, domain: what one who wears the camera asks of what they see."""
    return gather((row for file in files for row in json_rows(file)), _sgqa)


def vidcapbench(files: Sequence[File]) -> Loaded:
    """A line per video: video_dir, QA_pairs [{question, answer, sub_category}]. A bad pair is bad alone."""
    rows: list[tuple[str, Row | ValueError]] = []
    for file in files:
        for key, row in json_rows(file):
            pairs = None if isinstance(row, ValueError) else row.get("QA_pairs")
            if isinstance(row, ValueError) or not isinstance(pairs, list) or not pairs:
                rows.append((key, row if isinstance(row, ValueError) else ValueError("QA_pairs: expected a list of objects")))
                continue
            for number, pair in enumerate(pairs):
                named = {"video_dir": row.get("video_dir")}
                rows.append((f"{key}/{number}", named | pair if isinstance(pair, dict) else ValueError("QA_pairs: expected objects")))
    return gather(rows, _vidcapbench)


def _nextqa(more: dict[str, Any], key: str, row: Row) -> Item:
    video, qid = video_of(row, "video"), text_of(row, "qid")
    of_video = more.get(video)
    second = of_video.get(qid) if isinstance(of_video, dict) else None
    answers = [text_of(row, "answer")] + ([] if second is None else [clean(second, "second answer")])
    return Item(
        key, f"{video}_{qid}", (video,), tuple(dict.fromkeys(answers)), question=text_of(row, "question"), style=text_of(row, "type")
    )


def _activitynet_qa(key: str, row: Row) -> Item:
    video, kind = video_of(row, "video_name"), row.get("type")
    number = int(kind) if isinstance(kind, str) and kind.isdigit() else kind  # a text in the Hub's mirror
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(ACTIVITYNET_QA_TYPES):
        raise ValueError(f"type: got {kind!r}, expected 0 to {len(ACTIVITYNET_QA_TYPES) - 1} of an answer of the same question_id")
    bare = video.removeprefix("v_")
    return Item(
        key, text_of(row, "question_id"), (f"v_{bare}", bare), (text_of(row, "answer"),),
        question=text_of(row, "question"), style=ACTIVITYNET_QA_TYPES[number],
    )  # fmt: skip


def _sgqa(key: str, row: Row) -> Item:
    video, question = video_of(row, "video"), text_of(row, "question")
    uid = str(row.get("uid") or f"{video}/{question}")
    style = text_of(row, "domain") if row.get("domain") else ""
    return Item(key, uid, (video,), (text_of(row, "answer"),), question=question, style=style)


def _vidcapbench(key: str, row: Row) -> Item:
    # Published with the folders of the authors' machine before it.
    video, question = posixpath.basename(video_of(row, "video_dir").rstrip("/")), text_of(row, "question")
    style = text_of(row, "sub_category") if row.get("sub_category") else ""
    return Item(key, f"{video}/{style}/{question}", (video,), (text_of(row, "answer"),), question=question, style=style)
