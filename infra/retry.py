"""Rejects -> pending keys, and the stages that then have something to do, run.

Command  video2lora retry --reason unfinished_target

Of the recipe's sets of frames, targets, examples and, where it has them, visual tokens and judgements (the second judge's are not): rejects
of a table whose books are closed no longer count from now on, and the stage makes their rows as it makes new ones. What was pending before
is made too. Stages with nothing pending are not run, though they may have new input: that is said, for a teacher costs money.
"""

from collections import Counter

import pyarrow.compute as pc

from infra import jobs, sets
from infra.artifacts import REJECT_REASONS
from infra.config import Recipe, Where
from infra.errors import BadInputError
from infra.progress import say
from infra.storage import Table

FLOW = ("frames", "targets", "examples", "encode")  # each takes in what the one before has made
STAGES = (*FLOW, "judge")


def run(recipe: Recipe, where: Where, *, reason: str | None = None, stage: str | None = None) -> None:
    """Raises BadInputError for a reason or stage that is none; SupersededError, StorageError, and what the stages raise."""
    if reason is not None and reason not in REJECT_REASONS:
        raise BadInputError(f"--reason: got {reason!r}, expected one of {', '.join(sorted(REJECT_REASONS))}")
    if stage is not None and stage not in STAGES:
        again = "; rejects of `manifest` are looked at again whenever `video2lora manifest` runs" if stage == "manifest" else ""
        raise BadInputError(f"--stage: got {stage!r}, expected one of {', '.join(STAGES)}{again}")
    chosen = [one for one in STAGES if stage in (None, one)]
    tables = {name: table for name, table in tables_of_recipe(recipe, where.data).items() if name in chosen}
    for name, table in tables.items():
        _void(name, table, reason)
    _say_of_manifest(where.data, reason)
    pending = [name for name, table in tables.items() if n_pending(table)]
    for name in pending:
        print(jobs.stage(name).run(recipe, where))
    if not pending:
        print("nothing to try again" + (f" of reason {reason}" if reason else ""))
        return
    of_recipe = FLOW if _stores_tokens(recipe) else FLOW[:-1]
    last = max((of_recipe.index(name) for name in pending if name in of_recipe), default=len(of_recipe))
    if following := of_recipe[last + 1 :]:
        print(f"to take in what is new there: {', '.join(f'`video2lora {one}`' for one in following)}")


def tables_of_recipe(recipe: Recipe, root: str) -> dict[str, Table]:
    """The recipe's table of each stage, where a run has begun it; by those weights of a model's name that it was at last."""
    found = {"frames": sets.frames_set(recipe, root)}
    if targets := _begun_last(sets.begun_targets(recipe, root)):
        found["targets"] = targets
        found["examples"] = sets.examples_set(recipe, targets)
    if _stores_tokens(recipe) and (tokens := _begun_last(sets.begun_visual_tokens(recipe, root))):
        found["encode"] = tokens
    if recipe.judge is not None and (judgements := _begun_last(sets.begun_judgements(recipe.judge, root))):
        found["judge"] = judgements
    return {name: table for name, table in found.items() if table.state().begun is not None}


def _stores_tokens(recipe: Recipe) -> bool:
    return recipe.training.visual_tokens == "stored"


def _begun_last(tables: list[Table]) -> Table | None:
    return next((table for table in reversed(tables) if table.state().begun is not None), None)


def n_pending(table: Table) -> int:
    state = table.state()
    return len(table.wanted(state)) - len(table.counted(state))


def _void(name: str, table: Table, reason: str | None) -> None:
    """Rejects of this reason no longer count. While something is pending they stay: they may be of a retry that was killed."""
    state = table.state()
    if not state.is_complete and n_pending(table):
        say(f"retry: {table.folder} is not complete: what is pending is made, and its rejects stay")
        return
    rejects = table.read_rejects()
    chosen = rejects if reason is None else rejects.filter(pc.equal(rejects["reason"], reason))
    if not len(chosen):
        return
    attempt = table.begin((state.begun or {})["asked"], table.wanted(state).to_pylist())
    attempt.void(chosen["key"].to_pylist())
    for one, n in sorted(Counter(chosen["reason"].to_pylist()).items()):
        print(f"{name}: {n} rejects of reason {one} are tried again")


def _say_of_manifest(root: str, reason: str | None) -> None:
    reasons = Counter(Table(root, "videos").read_rejects()["reason"].to_pylist())
    n = sum(n for one, n in reasons.items() if reason in (None, one) and one != "forgotten")
    if n:
        say(f"retry: {n} rejects of `manifest` are looked at again whenever `video2lora manifest SOURCE` runs")
