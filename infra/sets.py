"""A recipe -> the set of each table that it makes and reads: one way of making rows, with all that they depend on.

A set's folder is named by what a person would call it and a short hash of its settings; the settings stand in the table's register,
<root>/<name>/sets/. Settings that say where or in which portions something is made (deadlines, blocks) are no part of it, and neither is
what was asked for: more videos and other prompts are further keys of the same set.
"""

import re
from typing import Any

from infra.config import Recipe, SceneSettings
from infra.digests import short_hash
from infra.errors import BadInputError
from infra.log import Log
from infra.storage import Table

READER = 1  # of frames: raised when the same file and settings would give other pictures

Made = dict[str, Any]


def frames_made(recipe: Recipe) -> Made:
    """What a row of `frames` depends on beside its video."""
    return {"stage": "frames", "reader": READER, "frames": recipe.frames.model_dump(mode="json", exclude={"deadline_s"})}


def scenes_made(settings: SceneSettings) -> Made:
    """What the scenes of a content depend on."""
    return {"stage": "scenes", **settings.model_dump(mode="json", include={"threshold", "min_scene_s"})}


def scenes_set(settings: SceneSettings, root: str) -> Table:
    """Scenes that were looked for so."""
    return _table(root, "scenes", f"scdet-{settings.threshold:g}", scenes_made(settings))


def frames_set(recipe: Recipe, root: str) -> Table:
    """The recipe's frames."""
    return _table(root, "frames", f"{recipe.frames.sampling.name}-{recipe.frames.longest_edge_px}px", frames_made(recipe))


def targets_made(recipe: Recipe, *, weights: str) -> Made:
    """What a row of `targets` depends on beside video and prompt; `weights` names the teacher's, as content or revision."""
    teacher = recipe.teacher.model_dump(mode="json", exclude={"prompts", "videos_per_block"})
    return {"stage": "targets", "frames": frames_made(recipe), "teacher": teacher, "weights": weights}


def targets_set(recipe: Recipe, root: str, *, weights: str) -> Table:
    """The recipe's targets by these weights."""
    return _table(root, "targets", recipe.teacher.model.rstrip("/").rsplit("/", 1)[-1], targets_made(recipe, weights=weights))


def made_targets(recipe: Recipe, root: str) -> Table:
    """The recipe's targets where they are finished already; of several weights of one name, those finished last.

    Raises BadInputError where there are none.
    """
    asked = targets_made(recipe, weights="")
    found = []
    for table, made in sets_of(root, "targets"):
        if {**made, "weights": ""} == asked:
            state = table.state()
            if state.completed is not None and state.is_complete:
                found.append((state.completed["at"], table))
    if not found:
        raise BadInputError(f"{root}/targets: no complete set of this recipe's teacher and frames: run `video2lora targets` first")
    return max(found, key=lambda one: one[0])[1]


def examples_made(recipe: Recipe, targets: Table) -> Made:
    """What a row of `examples` depends on beside its video and version."""
    return {"stage": "examples", "examples": recipe.examples.model_dump(mode="json"), "targets": targets.set}


def examples_set(recipe: Recipe, targets: Table) -> Table:
    """The recipe's examples from these targets."""
    return _table(targets.root, "examples", targets.set.rsplit("-", 1)[0], examples_made(recipe, targets))


def answers_set(root: str, made: Made) -> Table:
    """Answers by systems that were made so."""
    return _table(root, "answers", "answers", made)


def sets_of(root: str, name: str) -> list[tuple[Table, Made]]:
    """The registered sets of a table and what makes each, in the order they were begun. Raises StorageError."""
    return [(Table(root, name, one["set"]), one["made"]) for one in _register(root, name).read()]


def register(table: Table, made: Made) -> None:
    """Enter a set before its first run begins, unless it is there. Raises StorageError."""
    log = _register(table.root, table.name)
    while True:
        there = list(log.read())
        if any(one["set"] == table.set for one in there) or log.append({"set": table.set, "made": made}, number=len(there)):
            return


def tables_of(root: str) -> list[Table]:
    """Every table under a root that a run has begun, each set of it. Raises StorageError."""
    found = [Table(root, name) for name in ("files", "videos", "questions")]
    for name in ("scenes", "frames", "targets", "examples", "answers"):
        found += [table for table, _ in sets_of(root, name)]
    return [table for table in found if table.state().begun is not None]


def _table(root: str, name: str, label: str, made: Made) -> Table:
    return Table(root, name, f"{re.sub(r'[^A-Za-z0-9._-]+', '-', label)[:60]}-{short_hash(made)}")


def _register(root: str, name: str) -> Log:
    return Log(f"{root.rstrip('/')}/{name}/sets")
