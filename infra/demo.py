"""The whole flow in order, on one machine and in one Ray: what `video2lora demo` runs.

Made clips -> manifest -> frames -> targets -> examples -> train -> answer -> report, each stage as its own command would do it,
and the seconds of each at the end. A stage that is done says so; Ray starts only when the first stage needs it.
"""

import importlib
import time
from contextlib import ExitStack

from rich.console import Console
from rich.table import Table as Grid

from infra import jobs
from infra.config import Recipe, Where
from infra.errors import BadInputError
from infra.progress import say
from infra.sets import examples_set, frames_set, hypernetwork_output, made_targets

ON_RAY = ("frames", "targets", "examples", "train")


def run(recipe: Recipe, where: Where) -> None:
    """Run every stage under the data folder. Raises BadInputError if the recipe has no made world."""
    if recipe.world is None:
        raise BadInputError("recipe: world: got nothing, expected the settings of a made world (the demo makes its own clips)")
    seconds: list[tuple[str, float, str]] = []
    not_here = {"clips", "encode"} | (set() if recipe.judge else {"judge"})  # train encodes where its recipe wants that stored
    later = (name for name in jobs.STAGES if name not in not_here)
    steps = ["clips", "manifest", *later]
    with ExitStack() as held:
        for i, name in enumerate(steps, start=1):
            say(f"[{i}/{len(steps)}] {name}")
            started = time.monotonic()
            if name in ON_RAY and not _is_there(name, recipe, where):
                from infra.cluster import cluster  # not before there is work for it: Ray takes seconds

                held.enter_context(cluster(where))
            told = _step(name, recipe, where)
            seconds.append((name, time.monotonic() - started, told))
            say(f"    {told}")
            if name == "train":
                held.close()  # the rest needs the memory, not Ray
    _print_seconds(seconds)


def _step(name: str, recipe: Recipe, where: Where) -> str:
    if name == "manifest":
        return str(importlib.import_module("pipeline.manifest").run(f"{where.data}/clips/clips.jsonl", recipe, where))
    return jobs.stage(name).run(recipe, where)


def _is_there(name: str, recipe: Recipe, where: Where) -> bool:
    """Whether a stage was finished once; if it has more to do nevertheless, it starts a Ray of its own."""
    if name == "frames":
        return frames_set(recipe, where.data).is_complete()
    try:
        targets = made_targets(recipe, where.data)
    except BadInputError:
        return False
    examples = examples_set(recipe, targets)
    if name == "targets" or not examples.is_complete():
        return name == "targets"
    return name == "examples" or hypernetwork_output(recipe, examples).is_complete()


def _print_seconds(seconds: list[tuple[str, float, str]]) -> None:
    grid = Grid("stage", "seconds", "what there is now")
    for name, took_s, told in seconds:
        grid.add_row(name, f"{took_s:.1f}", told)
    grid.add_row("all", f"{sum(took_s for _, took_s, _ in seconds):.1f}", "")
    Console().print(grid)
