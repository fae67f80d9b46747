"""Every table and file that stages exchange: its schema, its key, its path. Stages meet here and nowhere else.

    video files -> videos, questions -> frames -> targets -> examples (-> visual_tokens) -> hypernetwork
                                                                         -> answers (-> judgements) -> report

A row leaves the flow only as a row of `rejects`, with a reason from `REJECT_REASONS`. Times are in seconds, sizes in pixels.
A table is a folder; `infra.storage` says how it is written and committed. A key names all that its row depends on: by the set that
the row is in (`infra.sets`), and where that is not enough by a `version`, a short hash of the rest. So a row never has to be changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from video2lora.video_file import RejectReason

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class TableSpec:
    """A table's name (also its folder), its columns, and the columns that no two rows share."""

    name: str
    schema: pa.Schema
    key: tuple[str, ...]

    def key_of(self, row: Mapping[str, Any]) -> str:
        """A row's key as one text."""
        return "/".join(str(row[column]) for column in self.key)

    def keys_of(self, rows: pa.Table) -> pa.ChunkedArray:
        """The key of each row, as `key_of` has it."""
        return pc.binary_join_element_wise(*(rows[column] for column in self.key), "/")


def _spec(name: str, key: tuple[str, ...], /, **columns: pa.DataType) -> TableSpec:
    return TableSpec(name, pa.schema([pa.field(column, kind) for column, kind in columns.items()]), key)


_JPEGS = pa.list_(pa.binary())
# Where log-probabilities are asked for: the target's tokens, and of each the k likeliest and their values, [n_tokens, k] row by row.
LOGPROBS = {"token_ids": pa.list_(pa.int32()), "top_token_ids": pa.list_(pa.int32()), "top_logprobs": pa.list_(pa.float32())}
_TARGET = pa.struct({"task": pa.string(), "prompt": pa.string(), "target": pa.string(), **LOGPROBS})

FILES = _spec(
    "files", ("uri", "version"),
    uri=pa.string(), version=pa.string(),  # what the storage says of the file without reading it: size and time, or S3's ETag
    n_bytes=pa.int64(), content=pa.string(),  # SHA-256
)  # fmt: skip
VIDEOS = _spec(
    "videos", ("video_id", "version"),
    video_id=pa.string(),  # content hash, with the span where there is one
    version=pa.string(),  # of uri and split: a video that moved is the same video
    uri=pa.string(), start_s=pa.float64(), end_s=pa.float64(), duration_s=pa.float64(), split=pa.string(),
    span_kind=pa.string(),  # scene, adjacent or full, where scenes were looked for
)  # fmt: skip
SCENES = _spec(
    "scenes", ("content",),
    content=pa.string(), starts_s=pa.list_(pa.float64()), ends_s=pa.list_(pa.float64()),
)  # fmt: skip
QUESTIONS = _spec(
    "questions", ("question_id", "version"),
    question_id=pa.string(), version=pa.string(),  # of benchmark, task and references
    video_id=pa.string(), benchmark=pa.string(), style=pa.string(), question=pa.string(),
    references=pa.list_(pa.string()),
    task=pa.string(),  # question or caption: which rubric a judge marks it by
)  # fmt: skip
FRAMES = _spec(
    "frames", ("video_id",),
    video_id=pa.string(), sampling=pa.string(), jpegs=_JPEGS, timestamps_s=pa.list_(pa.float64()), duration_s=pa.float64(),
    height_px=pa.int32(), width_px=pa.int32(), hashes=pa.list_(pa.uint64()),  # perceptual, where near-duplicates are looked for
)  # fmt: skip
TARGETS = _spec(
    "targets", ("video_id", "prompt_id", "version"),
    video_id=pa.string(), prompt_id=pa.string(), version=pa.string(),  # of the prompt's task and text
    teacher=pa.string(), task=pa.string(), prompt=pa.string(), target=pa.string(), n_tokens=pa.int32(), finish_reason=pa.string(),
    **LOGPROBS,
)  # fmt: skip
EXAMPLES = _spec(
    "examples", ("video_id", "version"),
    video_id=pa.string(), version=pa.string(),  # of split and targets
    split=pa.string(), jpegs=_JPEGS, timestamps_s=pa.list_(pa.float64()), duration_s=pa.float64(),
    targets=pa.list_(_TARGET),
)  # fmt: skip
VISUAL_TOKENS = _spec(
    "visual_tokens", ("video_id",),
    video_id=pa.string(), vlm=pa.string(),  # digest of its weights and dtype, "0123456789abcdef+bfloat16"
    tokens=pa.binary(),  # [n_pictures, n_image_tokens, d_vlm] values of that dtype, little-endian
    n_pictures=pa.int32(), n_image_tokens=pa.int32(), d_vlm=pa.int32(),
)  # fmt: skip
ANSWERS = _spec(
    "answers", ("question_id", "system"),
    question_id=pa.string(), system=pa.string(), answer=pa.string(), n_input_tokens=pa.int32(), n_visual_tokens=pa.int32(),
    ttft_s=pa.float64(),  # null where it was not measured alone
)  # fmt: skip
JUDGEMENTS = _spec(
    "judgements", ("judgement_id",),
    judgement_id=pa.string(),  # of task, question, references and answer (infra.judged): the same words are judged once
    score=pa.float64(),  # in [0, 1]
    points=pa.int32(),  # as the rubric has them, 0 to 5
    rationale=pa.string(),
    replies=pa.list_(pa.string()),  # the judge's, raw: the last one counts, those before were not what was asked for
)  # fmt: skip
REJECTS = _spec("rejects", ("stage", "key"), stage=pa.string(), key=pa.string(), reason=pa.string(), detail=pa.string())
REJECTS_BY_KEY = TableSpec("rejects", REJECTS.schema, ("key",))  # within the table of one stage

TABLES = {spec.name: spec for spec in (FILES, SCENES, VIDEOS, QUESTIONS, FRAMES, TARGETS, EXAMPLES, VISUAL_TOKENS, ANSWERS, JUDGEMENTS)}

REJECT_REASONS = frozenset(reason.value for reason in RejectReason) | {
    "no_path",  # a manifest row without a path
    "bad_row",  # a manifest row that is not what its format asks for
    "duplicate",  # the same content and span as an earlier row
    "superseded",  # its file holds another video now
    "forgotten",  # removed by `video2lora forget`
    "black",  # the four filters, each off by default
    "frozen",
    "static",  # too little motion
    "near_duplicate",  # each frame is nearly one of an earlier video
    "question_without_video",
    "prompt_too_long",
    "empty_target",
    "unfinished_target",  # stopped at the token limit
    "teacher_error",
    "no_targets",  # frames that no target came for
    "judge_error",  # no reply of the judge was what its schema asks for
}

TASKS = ("question", "caption")

SYSTEMS = ("base", "sampled", "ours", "merged", "composed", "other_video", "static", "blind", "caption", "champion")
"""base: video in context. sampled: base, with fewer frames where all of them do not fit. ours: the video's adapter. merged: ours, in the
weights. composed: the adapters of its chunks, composed. other_video: another video's. static: the video-independent one alone. blind:
neither. caption: the teacher's caption as text in the prompt. champion: the adapter of another hypernetwork, which `ours` challenges."""

USUAL_SYSTEMS = ("base", "ours", "other_video", "static", "blind", "caption")
