"""All that the report needs, in one command: each seed of the recipe trained, its answers, the judge's marks, the report.

Reads    videos and questions of the split, frames, and for what is not trained yet targets and examples; of a recipe with a made world
         they are made first, as `video2lora demo` does.
Writes   hypernetworks, answers, judgements where the recipe has a judge, and the report, as their own commands do.
Command  video2lora evaluate --recipe evaluation
Cost     a training for each seed that has none, one after the other in one Ray, and the other stages once.

A seed that was trained is not trained again, also where examples were added since (a benchmark's videos, say): `video2lora train` does
that. Killed anywhere, the same command goes on.
"""

import sys

from infra.config import Recipe, Where, load_recipe, load_where
from infra.demo import evaluating, making, run_steps, trainings
from infra.errors import BadInputError
from infra.sets import examples_set, frames_set, made_targets
from infra.storage import Table
from training.answer import untrained


def run(recipe: Recipe, where: Where) -> None:
    """Raises BadInputError where an input is missing and the recipe has no world to make it of; all that the stages raise."""
    to_train = untrained(recipe, where)
    if recipe.world is None:
        check_inputs(recipe, where, to_train=bool(to_train))
    steps = making(recipe) if recipe.world else []
    run_steps([*steps, *trainings(to_train, recipe), *evaluating(recipe)], where)


def check_inputs(recipe: Recipe, where: Where, *, to_train: bool) -> None:
    """Raises BadInputError for the first table that is not complete, with the command that makes it: before hours of training."""
    data, sources = where.data, "manifest SOURCE` or `video2lora benchmark NAME"
    needed = [(Table(data, "videos"), sources), (Table(data, "questions"), sources), (frames_set(recipe, data), "frames")]
    for table, command in needed:
        _check_complete(table, command)
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
