"""Rows of `frames` with what to ask about them -> rows of `targets`, and a reject for each prompt that gave none.

Everything between the planning of a run and its commits: `WriteTargets` is the actor that Ray Data calls block by block, and works as
well in a plain loop. Its engine is replaced when it dies (`teacher.lasting`).
"""

import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from infra.attempt import ShardWriter, reject
from teacher.engine import Clip, Engine, Refused, Written
from teacher.lasting import LastingEngine, Plan, teacher_name
from teacher.measures import Measures
from teacher.prompts import Prompt

__all__ = ["Plan", "WriteTargets", "teacher_name"]

STAGE = "targets"

Row = dict[str, Any]


def target_key(video_id: str, prompt: Prompt) -> str:
    """The key of a row or reject."""
    return f"{video_id}/{prompt.prompt_id}/{prompt.version}"


def clip_of(video: Row) -> Clip:
    """A row of `frames` with `prompts`."""
    asked = [Prompt(**one) for one in video["prompts"]]
    return Clip(video["video_id"], video["jpegs"], video["timestamps_s"], video["duration_s"], asked)


def refused_text(written: Written, *, keep_unfinished: bool) -> Refused | None:
    """Why a text is no target."""
    if written.finish_reason != "stop" and not keep_unfinished:
        return Refused("unfinished_target", f"{written.finish_reason} after {written.n_tokens} tokens: {written.text}")
    if not written.text:
        return Refused("empty_target", f"no text in {written.n_tokens} tokens")
    return None


def target_row(video_id: str, prompt: Prompt, written: Written, teacher: str) -> Row:
    """A row of `targets`."""
    return {
        "video_id": video_id,
        "prompt_id": prompt.prompt_id,
        "version": prompt.version,
        "teacher": teacher,
        "task": prompt.task,
        "prompt": prompt.prompt,
        "target": written.text,
        "n_tokens": written.n_tokens,
        "finish_reason": written.finish_reason,
        "token_ids": written.token_ids,
        "top_token_ids": written.top_token_ids,
        "top_logprobs": written.top_logprobs,
    }


def target_reject(video_id: str, prompt: Prompt, why: Refused) -> Row:
    """A reject of this stage."""
    return reject(STAGE, target_key(video_id, prompt), why.reason, why.detail)


class WriteTargets:
    """Holds an engine, which takes seconds to start, and what was measured since the last block."""

    def __init__(self, plan: Plan, writer: ShardWriter) -> None:
        self.plan, self.writer = plan, writer
        self.lasting = LastingEngine(plan, stage=STAGE, unit="videos")
        self.waiting_since = time.monotonic()

    def __call__(self, frames: pa.Table) -> pa.Table:
        """Rows of `frames` with `prompts` -> what describes the files of their targets and rejects, one of each prompt."""
        from infra.flow import told  # brings Ray

        rows, rejects = self.write(frames.to_pylist())
        return told(self.writer.write(rows, rejects), self.lasting.take_measures().as_sums())

    @property
    def engine(self) -> Engine:
        return self.lasting.engine

    @property
    def measures(self) -> Measures:
        return self.lasting.measures

    def write(self, videos: Sequence[Row]) -> tuple[list[Row], list[Row]]:
        """Rows and rejects. Raises StageFailedError where it is the engine that cannot go on, whatever it is asked."""
        self.measures.waiting_s += time.monotonic() - self.waiting_since
        clips = [clip_of(video) for video in videos]
        rows: list[Row] = []
        rejects: list[Row] = []
        for clip, results in zip(clips, self.lasting.write(clips), strict=True):
            for prompt, result in zip(clip.prompts, results, strict=True):
                refused = self._refused(result)
                if isinstance(result, Written) and refused is None:
                    rows.append(target_row(clip.video_id, prompt, result, self.plan.teacher))
                elif refused is not None:
                    rejects.append(target_reject(clip.video_id, prompt, refused))
            self.measures.n_videos += 1
            self.measures.n_prompts += len(clip.prompts)
            self.measures.video_s += clip.duration_s
        self.waiting_since = time.monotonic()  # writing the block's files is waiting too
        return rows, rejects

    def stop(self) -> None:
        """End the engine and its processes, where the actor does not end with them."""
        self.lasting.stop()

    def _refused(self, result: Written | Refused) -> Refused | None:
        """Why this is no target; counts what was read and written for it."""
        if isinstance(result, Refused):
            return result
        self.measures.n_prompt_tokens += result.n_prompt_tokens
        self.measures.n_tokens += result.n_tokens
        return refused_text(result, keep_unfinished=self.plan.settings.unfinished == "keep")
