"""Stages in order, in one Ray: what `video2lora demo`, `run` and `retrain` run, and from training on what `video2lora evaluate` runs.

Clips (made, or a SOURCE) -> manifest -> frames -> targets -> examples -> train, once for each seed -> answer (-> judge) -> report, each
stage as its own command would do it, and the seconds of each at the end. A stage that is done says so; Ray starts only when the first stage
needs it. `run` and `retrain` are logical runs (`infra.runs`), whose stages are recorded.
"""

import importlib
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as Grid

from infra import jobs
from infra.config import Recipe, TeacherSettings, Where
from infra.errors import BadInputError
from infra.evaluation_config import JudgeModel
from infra.progress import say
from infra.resources import engine_room, expected_room, gpus_per_engine
from infra.running import Running
from infra.runs import Facts
from infra.sets import examples_set, frames_set, hypernetwork_output, made_judgements, made_targets

ON_RAY = ("frames", "targets", "examples", "train")


@dataclass(frozen=True)
class Step:
    """A stage, and the recipe that it is run with. `title` is what people are told."""

    name: str
    recipe: Recipe
    title: str
    source: str | None = None  # of `manifest`; None: the clips of the made world


def demo(recipe: Recipe, where: Where) -> None:
    """Run every stage under the data folder. Raises BadInputError if the recipe has no made world."""
    if recipe.world is None:
        raise BadInputError("recipe: world: got nothing, expected the settings of a made world (the demo makes its own clips)")
    run_steps([*making(recipe), *trainings(recipe.of_seeds(), recipe), *evaluating(recipe)], where)


def making(recipe: Recipe) -> list[Step]:
    """From a made world's clips to examples."""
    return [*gathering(recipe, None), *preparing(recipe)]


def gathering(recipe: Recipe, source: str | None) -> list[Step]:
    """From a SOURCE, or else a made world's clips, to videos and questions. Raises BadInputError where there is neither."""
    if source is not None:
        return [Step("manifest", recipe, "manifest", source)]
    if recipe.world is None:
        raise BadInputError("SOURCE: got nothing, expected a folder, JSONL or Parquet of videos, as the recipe has no made world")
    return [Step(name, recipe, name) for name in ("clips", "manifest")]


def preparing(recipe: Recipe) -> list[Step]:
    """From videos to examples."""
    return [Step(name, recipe, name) for name in ("frames", "targets", "examples")]


def trainings(seeds: Sequence[Recipe], recipe: Recipe) -> list[Step]:
    """A training for each of some seeds of the recipe. It encodes where its recipe wants that stored."""
    several = recipe.evaluation.seeds is not None
    return [Step("train", one, f"train, seed {one.training.seed}" if several else "train") for one in seeds]


def evaluating(recipe: Recipe) -> list[Step]:
    """From hypernetworks to the report."""
    return [Step(name, recipe, name) for name in ("answer", "judge", "report") if name != "judge" or recipe.judge]


def run_steps(steps: Sequence[Step], where: Where, running: Running | None = None) -> None:
    """One after the other, as stages of a logical run where there is one. Raises what the stages raise, SupersededError."""
    seconds: list[tuple[str, float, str]] = []
    last_on_ray = max((i for i, step in enumerate(steps) if step.name in ON_RAY), default=-1)
    with ExitStack() as held:
        for i, step in enumerate(steps):
            say(f"[{i + 1}/{len(steps)}] {step.title}")
            started = time.monotonic()
            is_there = step.name in ON_RAY and _is_there(step, where)
            with _stage(step, where, running, was_there=is_there) as facts:
                if step.name in ON_RAY and not is_there:
                    from infra.cluster import cluster, nodes  # not before there is work for it: Ray takes seconds

                    held.enter_context(cluster(where))
                    facts["n_gpus"] = n_gpus(step, where, room=engine_room(nodes(where), where))
                told = facts["told"] = _run(step, where)
                if running is not None and engines_of(step):
                    facts["n_gpus"] = n_gpus_started(step, where)
            seconds.append((step.title, time.monotonic() - started, told))
            say(f"    {told}")
            if i == last_on_ray:
                held.close()  # the rest needs the memory, not Ray
    if running is None:
        print_seconds(seconds)


def engines_of(step: Step) -> list[TeacherSettings | JudgeModel]:
    """Whose engines a stage starts."""
    if step.name == "targets":
        return [step.recipe.teacher]
    judge = step.recipe.judge if step.name == "judge" else None
    return [one for one in (judge, judge and judge.second) if one is not None]


def n_gpus(step: Step, where: Where, *, room: int) -> float:
    """GPUs that a stage's seconds are booked for, as far as is known before it ends: of engines, as many as there is room for."""
    if engines := engines_of(step):
        return (where.teacher_replicas or room) * max(gpus_per_engine(one.served_by, where) for one in engines)
    return where.training_gpus * where.training_workers if step.name in ("encode", "train", "answer") else 0.0


def n_gpus_started(step: Step, where: Where) -> float:
    """Of the engines that a stage which ended well has started, by its tables' logs. Raises StorageError."""
    found = [0.0]
    for one in engines_of(step):
        table = made_judgements(one, where.data) if isinstance(one, JudgeModel) else made_targets(step.recipe, where.data)
        measures = (table.state().completed or {}).get("measures") or {}  # empty where there was nothing to do
        found.append(measures.get("n_engines", 0) * gpus_per_engine(one.served_by, where))
    return max(found)


def _stage(step: Step, where: Where, running: Running | None, *, was_there: bool) -> AbstractContextManager[Facts]:
    if running is None:
        return nullcontext({})
    return running.stage(step.title, n_gpus=n_gpus(step, where, room=expected_room(where)), was_there=was_there)


def _run(step: Step, where: Where) -> str:
    if step.name == "manifest":
        source = step.source or f"{where.data}/clips/clips.jsonl"
        return str(importlib.import_module("pipeline.manifest").run(source, step.recipe, where))
    return jobs.stage(step.name).run(step.recipe, where)


def _is_there(step: Step, where: Where) -> bool:
    """Whether a stage was finished once; if it has more to do nevertheless, it starts a Ray of its own."""
    if step.name == "frames":
        return frames_set(step.recipe, where.data).is_complete()
    try:
        targets = made_targets(step.recipe, where.data)
    except BadInputError:
        return False
    examples = examples_set(step.recipe, targets)
    if step.name == "targets" or not examples.is_complete():
        return step.name == "targets"
    return step.name == "examples" or hypernetwork_output(step.recipe, examples).is_complete()


def print_seconds(seconds: Sequence[tuple[str, float, str]]) -> None:
    """A line for each stage, and their sum."""
    grid = Grid("stage", "seconds", "what there is now")
    for name, took_s, told in seconds:
        grid.add_row(name, f"{took_s:.1f}", told)
    grid.add_row("all", f"{sum(took_s for _, took_s, _ in seconds):.1f}", "")
    Console().print(grid)
