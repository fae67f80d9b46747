"""Several recipes that differ in a few settings, each trained with several seeds -> one table with confidence intervals.

Reads    the base recipe's examples, frames and questions; the sweep: a YAML file, or a name that ships (infra/sweeps).
Writes   hypernetworks and answers of each recipe, as `train` and `answer` do; <data>/sweeps/<name>.json and .md, the table.
Command  video2lora sweep ablations
Cost     a training for each change and seed, one after the other in one Ray, and 10 s of answers each.

Trainings and answers that are finished are found done, so a killed sweep goes on by the same command. A training that fails is told
in the table, and the others go on. What an adapter does not change is answered once: the VLM with the video and blind, by the
first training of the base. Changes touch the hypernetwork and its training alone; all else is the base's, or nothing could be compared.
"""

import sys
from collections.abc import Mapping
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from infra.config import HOW, Recipe, Where, checked, load_recipe, read_yaml
from infra.contents import contents_of
from infra.errors import BadInputError, MadeFromOtherError, StageFailedError
from infra.objects import read_json, remove, write_new
from infra.progress import say
from infra.sets import answers_set, examples_set, hypernetwork_output, made_targets, trained_hypernetwork
from infra.settings import Settings
from infra.storage import Table
from training import answer, measures, sweep_table, train
from training.sweep_measures import BASE, OF_ADAPTERS, OF_THE_VLM, Outcome, numbers

SECTIONS = ("hypernetwork", "training")
SEED = "training.seed"


class Sweep(Settings):
    """What a sweep's file says. `changes` are settings by their path in the recipe, by the name of their row."""

    base: str = "demo"  # a recipe
    seeds: tuple[int, ...] = Field(default=(0, 1), min_length=1)
    changes: dict[str, dict[str, Any]] = Field(min_length=1)

    @field_validator("seeds")
    @classmethod
    def _are_different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("expected each seed once")
        return seeds


@dataclass(frozen=True)
class Run:
    """One training of the sweep, and what is answered with it."""

    change: str
    settings: Mapping[str, Any]  # by path; none of the base
    seed: int
    recipe: Recipe


def runs_of(sweep: Sweep, *, where: str) -> list[Run]:
    """Seed by seed, the base first. Raises BadInputError, beginning with `where`, with the path of each setting that is wrong."""
    base = load_recipe(sweep.base)
    changes: dict[str, Mapping[str, Any]] = {BASE: {}, **sweep.changes}
    wrong = [f"changes.{BASE}: is the row without a change"] if BASE in sweep.changes else []
    for name, settings in sweep.changes.items():
        wrong += [
            f"changes.{name}.{path}: {'the seeds set it' if path == SEED else 'expected a setting of ' + ' or '.join(SECTIONS)}"
            for path in settings
            if path == SEED or path.count(".") != 1 or path.split(".")[0] not in SECTIONS
        ]
    if wrong:
        raise BadInputError(f"{where}: {'; '.join(wrong)}")
    recipes = {name: changed(base, settings, where=f"{where}: changes.{name}") for name, settings in changes.items()}
    _check_different(recipes, where=where)
    found = []
    for i, seed in enumerate(sweep.seeds):
        for name, recipe in recipes.items():
            systems = [*OF_THE_VLM, *OF_ADAPTERS] if (i, name) == (0, BASE) else [*OF_ADAPTERS]
            shared = {SEED: seed, "evaluation.seeds": None, "answer.systems": systems, "answer.champion": None, "answer.n_timed": 0}
            found.append(Run(name, changes[name], seed, changed(recipe, shared, where=where)))
    return found


def changed(recipe: Recipe, settings: Mapping[str, Any], *, where: str) -> Recipe:
    """The recipe with settings by their paths. Raises BadInputError for one that is not there or has a wrong value."""
    values = recipe.model_dump(mode="json")
    for path, value in settings.items():
        section, name = path.split(".")
        values[section][name] = value
    return checked(Recipe, values, where=where)


def run(name_or_path: str, where: Where, *, as_json: bool = False) -> None:
    """Train, answer and print. Raises BadInputError, StorageError; StageFailedError at the end, if a training failed."""
    sweep = read_yaml(Sweep, name_or_path, kind="sweep")
    name = Path(name_or_path).stem
    runs = runs_of(sweep, where=f"sweep {name_or_path}")
    examples = examples_set(runs[0].recipe, made_targets(runs[0].recipe, where.data))
    examples.made_from()  # raises BadInputError where they are not complete: before hours of training
    questions = answer.questions_of(runs[0].recipe, where)
    outcomes: list[Outcome] = []
    with ExitStack() as held, redirect_stdout(sys.stderr):  # DeepSpeed's log would go where the table goes
        for i, one in enumerate(runs, start=1):
            say(f"[{i}/{len(runs)}] {one.change}, seed {one.seed}")
            outcomes.append(outcome(one, where, examples, questions=questions, held=held))
            say(f"    {outcomes[-1].failure or 'done'}")
    found = {"sweep": name, "base": sweep.base, "seeds": list(sweep.seeds), **numbers(outcomes)}
    files = {"json": sweep_table.as_json(found), "md": sweep_table.as_markdown(found)}
    for kind, text in files.items():
        path = f"{where.data}/sweeps/{name}.{kind}"
        remove(path)
        write_new(path, text.encode())
    print(files["json"]) if as_json else sweep_table.print_table(found)
    say(f"sweep: {where.data}/sweeps/{name}.md")
    n_failed = sum(one.failure is not None for one in outcomes)
    if n_failed:
        raise StageFailedError(f"sweep {name}: {n_failed} of {len(runs)} trainings failed; the same command tries them again")


def outcome(one: Run, where: Where, examples: Table, *, questions: list[dict[str, Any]], held: ExitStack) -> Outcome:
    """Train and answer, as far as it is not done. Ray starts when the first training needs it, and is `held` for the others."""
    try:
        if not hypernetwork_output(one.recipe, examples).is_complete():
            from infra.cluster import cluster  # Ray takes seconds to import

            held.enter_context(cluster(where))
            train.run(one.recipe, where)
        answer.run(one.recipe, where)
    except (BadInputError, MadeFromOtherError, StageFailedError) as error:
        return Outcome(one.change, one.settings, one.seed, failure=str(error))
    answers = answers_set(one.recipe, where.data).read().to_pylist()
    config = read_json(f"{trained_hypernetwork(one.recipe, where.data).folder}/config.json")
    return Outcome(
        one.change,
        one.settings,
        one.seed,
        scored=tuple(measures.score(answers, questions, contents=contents_of(where.data, {row["video_id"] for row in questions}))),
        n_parameters=n_parameters(config["hypernetwork"]),
        n_steps=config["metadata"]["step"],
        seconds=config["metadata"].get("seconds"),
    )


def n_parameters(config: Mapping[str, Any]) -> int:
    """Trainable parameters of a hypernetwork of this config."""
    import torch

    from video2lora.hypernetwork import Hypernetwork, checked_config

    with torch.device("meta"):
        hypernetwork = Hypernetwork(checked_config(config, where="hypernetwork"))
    return sum(parameter.numel() for parameter in hypernetwork.parameters())


def _check_different(recipes: Mapping[str, Recipe], *, where: str) -> None:
    """Raises BadInputError for two rows that would be the same hypernetwork."""
    seen: list[tuple[str, Any]] = []
    for name, recipe in recipes.items():
        made = recipe.hypernetwork, recipe.training.model_dump(exclude=set(HOW))
        same = next((other for other, there in seen if there == made), None)
        if same is not None:
            raise BadInputError(f"{where}: changes.{name}: makes the same hypernetwork as {same}")
        seen.append((name, made))
