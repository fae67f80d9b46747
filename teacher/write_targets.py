"""Rows of `frames` with what to ask about them -> rows of `targets`, and a reject for each prompt that gave none.

Everything between the planning of a run and its commits: `WriteTargets` is the actor that Ray Data calls block by block, and works as
well in a plain loop. It holds an engine, and starts another when that one dies: the block is asked again; where it kills the second too,
its videos go one by one, and a video that kills an engine on its own is rejected. Only an engine that dies of whatever it is asked ends
the run.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from infra.attempt import ShardWriter, reject
from infra.config import TeacherSettings
from infra.errors import CommandError, StageFailedError
from teacher.engine import Clip, Engine, EngineDiedError, EngineOptions, Refused, Written, one_line, start
from teacher.measures import Measures
from teacher.models import Model, max_model_len
from teacher.prompts import Prompt

STAGE = "targets"
STARTS = 3  # of the engine that takes a dead one's place
MOST_LONE_DEATHS = 3  # one after the other, each of a video on its own: it is the engine then, not the videos

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What every engine of a run is told."""

    model: Model
    settings: TeacherSettings
    options: EngineOptions
    n_frames: int  # the most that a video has

    @property
    def teacher(self) -> str:
        return teacher_name(self.model, self.settings)

    @property
    def longest(self) -> int:
        """Tokens that a prompt may have, frames included."""
        return max_model_len(self.model, self.settings) - self.settings.max_tokens


def target_key(video_id: str, prompt: Prompt) -> str:
    """The key of a row or reject."""
    return f"{video_id}/{prompt.prompt_id}/{prompt.version}"


def teacher_name(model: Model, settings: TeacherSettings) -> str:
    """The column `teacher`: whose words these are, down to weights and dtype."""
    return model.identity if settings.served_by == "endpoint" else f"{model.identity}+{settings.dtype}"


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
        self.measures = Measures()
        self.n_lone_deaths = 0
        self.engine = self._start()
        self.waiting_since = time.monotonic()

    def __call__(self, frames: pa.Table) -> pa.Table:
        """Rows of `frames` with `prompts` -> what describes the files of their targets and rejects, one of each prompt."""
        from infra.flow import told  # brings Ray

        rows, rejects = self.write(frames.to_pylist())
        files = self.writer.write(rows, rejects)
        measures, self.measures = self.measures, Measures()
        return told(files, measures.as_sums())

    def write(self, videos: Sequence[Row]) -> tuple[list[Row], list[Row]]:
        """Rows and rejects. Raises StageFailedError where it is the engine that cannot go on, whatever it is asked."""
        self.measures.waiting_s += time.monotonic() - self.waiting_since
        clips = [clip_of(video) for video in videos]
        rows: list[Row] = []
        rejects: list[Row] = []
        for clip, results in zip(clips, self._results(clips), strict=True):
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
        self.engine.stop()

    def _refused(self, result: Written | Refused) -> Refused | None:
        """Why this is no target; counts what was read and written for it."""
        if isinstance(result, Refused):
            return result
        self.measures.n_prompt_tokens += result.n_prompt_tokens
        self.measures.n_tokens += result.n_tokens
        return refused_text(result, keep_unfinished=self.plan.settings.unfinished == "keep")

    def _results(self, clips: Sequence[Clip]) -> Iterator[list[Written | Refused]]:
        """For each clip, of its prompts, however many engines it takes."""
        for _ in range(2):
            try:
                yield from self._ask(clips)
                return
            except EngineDiedError:
                self._restart()
        for clip in clips:
            yield self._alone(clip)

    def _alone(self, clip: Clip) -> list[Written | Refused]:
        """One clip of a block that killed two engines."""
        try:
            (results,) = self._ask([clip])
            return results
        except EngineDiedError as error:
            self.n_lone_deaths += 1
            if self.n_lone_deaths >= MOST_LONE_DEATHS:
                raise StageFailedError(
                    f"{STAGE}: {self.n_lone_deaths} videos one after the other killed an engine each, alone: it is the engine, not the "
                    f"videos ({error}); what was committed is kept, the same command continues"
                ) from error
            self._restart()
            return [Refused("teacher_error", f"killed an engine on its own: {error}")] * len(clip.prompts)

    def _ask(self, clips: Sequence[Clip]) -> list[list[Written | Refused]]:
        spent = self.engine.spent
        before = replace(spent)
        try:
            results = self.engine.write(clips)
        finally:
            self.measures.engine_s += spent.engine_s - before.engine_s
            self.measures.prepare_s += spent.prepare_s - before.prepare_s
        self.n_lone_deaths = 0
        return results

    def _restart(self) -> None:
        """Another engine; one that dies as it starts is tried again. Raises StageFailedError in the end."""
        self.engine.stop()
        for n_left in reversed(range(STARTS)):
            try:
                self.engine = self._start()
                return
            except CommandError:
                raise
            except Exception as error:
                if not n_left:
                    raise StageFailedError(f"{STAGE}: no engine starts any more after {STARTS} tries: {one_line(error)}") from error

    def _start(self) -> Engine:
        started = time.monotonic()
        engine = start(self.plan.model, self.plan.settings, self.plan.options, n_frames=self.plan.n_frames)
        self.measures.startup_s += time.monotonic() - started
        self.measures.n_starts += 1
        return engine
