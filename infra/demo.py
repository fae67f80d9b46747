"""Stages in order, on one machine and in one Ray: what `video2lora demo` runs, and from training on what `video2lora evaluate` runs.

Made clips -> manifest -> frames -> targets -> examples -> train, once for each seed -> answer (-> judge) -> report, each stage as its own
command would do it, and the seconds of each at the end. A stage that is done says so; Ray starts only when the first stage needs it.
"""

import importlib
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as Grid

from infra import jobs
from infra.config import Recipe, Where
from infra.errors import BadInputError
from infra.progress import say
from infra.sets import examples_set, frames_set, hypernetwork_output, made_targets

ON_RAY = ("frames", "targets", "examples", "train")


@dataclass(frozen=True)
class Step:
    """A stage, and the recipe that it is run with. `title` is what people are told."""

    name: str
    recipe: Recipe
    title: str


def run(recipe: Recipe, where: Where) -> None:
    """Run every stage under the data folder. Raises BadInputError if the recipe has no made world."""
    if recipe.world is None:
        raise BadInputError("recipe: world: got nothing, expected the settings of a made world (the demo makes its own clips)")
    run_steps([*making(recipe), *trainings(recipe.of_seeds(), recipe), *evaluating(recipe)], where)


def making(recipe: Recipe) -> list[Step]:
    """From a made world's clips to examples."""
    return [Step(name, recipe, name) for name in ("clips", "manifest", "frames", "targets", "examples")]


def trainings(seeds: Sequence[Recipe], recipe: Recipe) -> list[Step]:
    """A training for each of some seeds of the recipe. It encodes where its recipe wants that stored."""
    several = recipe.evaluation.seeds is not None
    return [Step("train", one, f"train, seed {one.training.seed}" if several else "train") for one in seeds]


def evaluating(recipe: Recipe) -> list[Step]:
    """From hypernetworks to the report."""
    return [Step(name, recipe, name) for name in ("answer", "judge", "report") if name != "judge" or recipe.judge]


def run_steps(steps: Sequence[Step], where: Where) -> None:
    """One after the other. Raises what the stages raise."""
    seconds: list[tuple[str, float, str]] = []
    last_on_ray = max((i for i, step in enumerate(steps) if step.name in ON_RAY), default=-1)
    with ExitStack() as held:
        for i, step in enumerate(steps):
            say(f"[{i + 1}/{len(steps)}] {step.title}")
            started = time.monotonic()
            if step.name in ON_RAY and not _is_there(step, where):
                from infra.cluster import cluster  # not before there is work for it: Ray takes seconds

                held.enter_context(cluster(where))
            told = _run(step, where)
            seconds.append((step.title, time.monotonic() - started, told))
            say(f"    {told}")
            if i == last_on_ray:
                held.close()  # the rest needs the memory, not Ray
    _print_seconds(seconds)


def _run(step: Step, where: Where) -> str:
    if step.name == "manifest":
        return str(importlib.import_module("pipeline.manifest").run(f"{where.data}/clips/clips.jsonl", step.recipe, where))
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


def _print_seconds(seconds: list[tuple[str, float, str]]) -> None:
    grid = Grid("stage", "seconds", "what there is now")
    for name, took_s, told in seconds:
        grid.add_row(name, f"{took_s:.1f}", told)
    grid.add_row("all", f"{sum(took_s for _, took_s, _ in seconds):.1f}", "")
    Console().print(grid)
