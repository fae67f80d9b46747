"""All that the report needs, in one command: each seed of the recipe trained, its answers, the judge's marks, the report.

Reads    videos and questions of the split, frames, and for what is not trained yet targets and examples; of a recipe with a made world
         they are made first, as `video2lora demo` does.
Writes   hypernetworks, answers, judgements where the recipe has a judge, and the report, as their own commands do.
Command  video2lora evaluate --recipe evaluation
Cost     a training for each seed that has none, one after the other in one Ray, and the other stages once.

A recipe that names a hypernetwork (answer.hypernetwork: an imported one, say) trains nothing, and needs targets for `caption` alone.
A seed that was trained is not trained again, also where examples were added since (a benchmark's videos, say): `video2lora train` does
that. Killed anywhere, the same command goes on.
"""

import sys

from infra.config import Recipe, Where, load_recipe, load_where
from infra.errors import BadInputError
from infra.hypernetworks import address_of, champion_folder, identity
from infra.sets import examples_set, frames_set, made_targets
from infra.steps import evaluating, making, run_steps, trainings
from infra.storage import Table
from training.answer import questions_of, untrained


def run(recipe: Recipe, where: Where) -> None:
    """Raises BadInputError where an input is missing and the recipe has no world to make it of; all that the stages raise."""
    check_systems(recipe)
    to_train = untrained(recipe, where)
    if recipe.world is None:
        check_inputs(recipe, where, to_train=bool(to_train))
    steps = making(recipe) if recipe.world else []
    if recipe.answer.hypernetwork is not None:
        needed = ("clips", "manifest", "frames", *(("targets",) if "caption" in recipe.answer.systems else ()))
        steps = [step for step in steps if step.name in needed]
    run_steps([*steps, *trainings(to_train, recipe), *evaluating(recipe)], where)


def check_systems(recipe: Recipe) -> None:
    """Raises BadInputError where a system of the recipe has nothing to answer with."""
    champion = champion_folder(recipe)
    if champion is not None:
        identity(champion, named_by="recipe: answer.champion")
    has_static, named = recipe.hypernetwork.static_adapter, recipe.answer.hypernetwork
    if named is not None:
        has_static = identity(address_of(named), named_by="recipe: answer.hypernetwork")["hypernetwork"].get("static_adapter", True)
    if "static" in recipe.answer.systems and not has_static:
        raise BadInputError("recipe: answer.systems: `static` needs hypernetwork.static_adapter; leave it out")


def check_inputs(recipe: Recipe, where: Where, *, to_train: bool) -> None:
    """Raises BadInputError for the first table that is not complete, with the command that makes it, or if the split has no question."""
    data, sources = where.data, "manifest SOURCE` or `video2lora benchmark NAME"
    needed = [(Table(data, "videos"), sources), (Table(data, "questions"), sources), (frames_set(recipe, data), "frames")]
    for table, command in needed:
        _check_complete(table, command)
    questions_of(recipe, where)
    if to_train:
        _check_complete(examples_set(recipe, made_targets(recipe, data)), "examples")


def _check_complete(table: Table, command: str) -> None:
    if not table.is_complete():
        raise BadInputError(f"{table.folder} is not there or not complete: run `video2lora {command}` first")


def main() -> None:
    """python -m training.evaluate [RECIPE]"""
    run(load_recipe(sys.argv[1] if len(sys.argv) > 1 else "evaluation"), load_where())


if __name__ == "__main__":
    main()
