"""Every table and file that stages exchange: its schema, its key, its path. Stages meet here and nowhere else.

    video files -> videos, questions -> frames -> targets -> examples -> hypernetwork -> answers -> report

A row leaves the flow only as a row of `rejects`, with a reason from `REJECT_REASONS`. Times are in seconds, sizes in pixels.
A table is a folder; `infra.storage` says how it is written and committed.
"""

from dataclasses import dataclass

import pyarrow as pa

from video2lora.video import RejectReason

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class TableSpec:
    """A table's name (also its folder), its columns, and the columns that no two rows share."""

    name: str
    schema: pa.Schema
    key: tuple[str, ...]


def _spec(name: str, key: tuple[str, ...], /, **columns: pa.DataType) -> TableSpec:
    return TableSpec(name, pa.schema([pa.field(column, kind) for column, kind in columns.items()]), key)


_JPEGS = pa.list_(pa.binary())
_TARGET = pa.struct([pa.field("task", pa.string()), pa.field("prompt", pa.string()), pa.field("target", pa.string())])

VIDEOS = _spec(
    "videos", ("video_id",),
    video_id=pa.string(),  # content hash, with the span where there is one
    uri=pa.string(), start_s=pa.float64(), end_s=pa.float64(), duration_s=pa.float64(), split=pa.string(),
)  # fmt: skip
QUESTIONS = _spec(
    "questions", ("question_id",),
    question_id=pa.string(), video_id=pa.string(), benchmark=pa.string(), style=pa.string(), question=pa.string(),
    references=pa.list_(pa.string()),
)  # fmt: skip
FRAMES = _spec(
    "frames", ("video_id", "sampling"),
    video_id=pa.string(), sampling=pa.string(), jpegs=_JPEGS, timestamps_s=pa.list_(pa.float64()), duration_s=pa.float64(),
    height_px=pa.int32(), width_px=pa.int32(),
)  # fmt: skip
TARGETS = _spec(
    "targets", ("video_id", "prompt_id", "teacher"),
    video_id=pa.string(), prompt_id=pa.string(), teacher=pa.string(), task=pa.string(), prompt=pa.string(), target=pa.string(),
    n_tokens=pa.int32(), finish_reason=pa.string(),
)  # fmt: skip
EXAMPLES = _spec(
    "examples", ("video_id",),
    video_id=pa.string(), split=pa.string(), jpegs=_JPEGS, timestamps_s=pa.list_(pa.float64()), duration_s=pa.float64(),
    targets=pa.list_(_TARGET),
)  # fmt: skip
ANSWERS = _spec(
    "answers", ("question_id", "system"),
    question_id=pa.string(), system=pa.string(), answer=pa.string(), n_input_tokens=pa.int32(), n_visual_tokens=pa.int32(),
    ttft_s=pa.float64(),  # null where it was not measured alone
)  # fmt: skip
REJECTS = _spec("rejects", ("stage", "key"), stage=pa.string(), key=pa.string(), reason=pa.string(), detail=pa.string())

TABLES = {spec.name: spec for spec in (VIDEOS, QUESTIONS, FRAMES, TARGETS, EXAMPLES, ANSWERS)}

REJECT_REASONS = frozenset(reason.value for reason in RejectReason) | {
    "no_path",  # a manifest row without a path
    "bad_row",  # a manifest row that is not what its format asks for
    "duplicate",  # the same content, span and split as an earlier row
    "question_without_video",
    "prompt_too_long",
    "empty_target",
    "unfinished_target",  # stopped at the token limit
    "teacher_error",
    "no_targets",  # frames that no target came for
}

SYSTEMS = ("base", "ours", "other_video", "static", "blind", "caption")
"""base: video in context. ours: its adapter. other_video: another video's. static: the video-independent one alone.
blind: neither. caption: the teacher's caption as text in the prompt."""
