"""The whole path as one logical run: SOURCE -> videos -> frames -> targets -> examples -> hypernetworks -> answers -> report.

Reads    SOURCE, or the clips of the recipe's made world, which are rendered first.
Writes   every table, the hypernetworks and the report, as their own commands do, and what happened to <data>/runs (`infra.runs`).
Command  video2lora run SOURCE --recipe smolvlm2_500m
Cost     that of its stages; one Ray for those that need it.

Killed anywhere, the same command goes on; all done, it says so. One such run, or retraining, at a time in a data folder.
"""

from infra.config import Recipe, Where
from infra.errors import BadInputError
from infra.heartbeat import PACE, Pace
from infra.running import Running, held
from infra.runs import Facts
from infra.steps import Step, evaluating, gathering, preparing, print_seconds, run_steps, trainings
from training.answer import questions_of
from training.evaluate import check_systems
from training.settings import check


def run(source: str | None, recipe: Recipe, where: Where, *, pace: Pace = PACE) -> str:
    """Raises OtherRunError where another run is alive, BadInputError, and all that the stages raise."""
    check_systems(recipe)
    check(recipe, where)
    steps = gathering(recipe, source)
    with held(where, "run", asked(source, recipe), pace=pace) as running:
        gather(steps, recipe, running)
        run_steps([*preparing(recipe), *trainings(recipe.of_seeds(), recipe), *evaluating(recipe)], running.where, running)
        running.why = str(running.mine.stages[-1]["told"])
    print_stages(running)
    return f"run {running.mine.run}: {running.why}"


def asked(source: str | None, recipe: Recipe) -> Facts:
    """What the log of runs says that a run was asked for."""
    return {"source": source, "recipe": recipe.model_dump(mode="json", exclude_defaults=True)}


def gather(steps: list[Step], recipe: Recipe, running: Running) -> None:
    """Videos and questions. Raises BadInputError where there is nothing to ask in the end: not after days of training."""
    run_steps(steps, running.where, running)
    try:
        questions_of(recipe, running.where)
    except BadInputError as error:
        raise BadInputError(f"{error}: put a questions.jsonl beside a SOURCE that is a file, or run `video2lora benchmark NAME`") from error


def print_stages(running: Running) -> None:
    """The seconds of each stage, and what there is now."""
    print_seconds([(stage["stage"], stage["seconds"], stage["told"]) for stage in running.mine.stages])
