"""Prompts -> what an engine writes about them, however many engines that takes: one that dies is replaced, and the work goes on.

What an engine was asked when it died is asked again of the next; where that kills the second too, clips go one by one, and a clip that
kills an engine on its own is refused. Only an engine that dies of whatever it is asked ends the run. `targets` and `judge` both hold one.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from infra.config import TeacherSettings
from infra.errors import CommandError, StageFailedError
from teacher.engine import Clip, Engine, EngineDiedError, EngineOptions, Refused, Written, one_line, start
from teacher.measures import Measures
from teacher.models import Model, max_model_len

STARTS = 3  # of the engine that takes a dead one's place
MOST_LONE_DEATHS = 3  # one after the other, each of a clip on its own: it is the engine then, not the clips


@dataclass(frozen=True)
class Plan:
    """What every engine of a run is told."""

    model: Model
    settings: TeacherSettings
    options: EngineOptions
    n_frames: int  # the most that a video has; 0: no prompt is about a video
    schema: dict[str, Any] | None = None  # of JSON, that a text is to fit

    @property
    def teacher(self) -> str:
        return teacher_name(self.model, self.settings)

    @property
    def longest(self) -> int:
        """Tokens that a prompt may have, frames included."""
        return max_model_len(self.model, self.settings) - self.settings.max_tokens


def teacher_name(model: Model, settings: TeacherSettings) -> str:
    """Whose words these are, down to weights and dtype."""
    return model.identity if settings.served_by == "endpoint" else f"{model.identity}+{settings.dtype}"


class LastingEngine:
    """Holds an engine, which takes seconds to start, and what was measured since that was last taken. `unit`: what a clip is called."""

    def __init__(self, plan: Plan, *, stage: str, unit: str) -> None:
        self.plan, self.stage, self.unit = plan, stage, unit
        self.measures = Measures()
        self.n_lone_deaths = 0
        self.engine = self._start()

    def write(self, clips: Sequence[Clip]) -> Iterator[list[Written | Refused]]:
        """For each clip, of its prompts. Raises StageFailedError where it is the engine that cannot go on, whatever it is asked."""
        for _ in range(2):
            try:
                yield from self._ask(clips)
                return
            except EngineDiedError:
                self._restart()
        for clip in clips:
            yield self._alone(clip)

    def take_measures(self) -> Measures:
        """What was measured since the last time."""
        taken, self.measures = self.measures, Measures()
        return taken

    def stop(self) -> None:
        """End the engine and its processes, where they do not end with the process."""
        self.engine.stop()

    def _alone(self, clip: Clip) -> list[Written | Refused]:
        """One clip of a block that killed two engines."""
        try:
            (results,) = self._ask([clip])
            return results
        except EngineDiedError as error:
            self.n_lone_deaths += 1
            if self.n_lone_deaths >= MOST_LONE_DEATHS:
                raise StageFailedError(
                    f"{self.stage}: {self.n_lone_deaths} {self.unit} one after the other killed an engine each, alone: it is the engine, "
                    f"not the {self.unit} ({error}); what was committed is kept, the same command continues"
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
                    raise StageFailedError(f"{self.stage}: no engine starts any more after {STARTS} tries: {one_line(error)}") from error

    def _start(self) -> Engine:
        started = time.monotonic()
        engine = start(self.plan.model, self.plan.settings, self.plan.options, n_frames=self.plan.n_frames, schema=self.plan.schema)
        self.measures.startup_s += time.monotonic() - started
        self.measures.n_starts += 1
        return engine
