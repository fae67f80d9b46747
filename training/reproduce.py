"""A table or figure of arXiv 2606.04351, made anew by one command, with the paper's numbers beside ours where the model is the paper's.

Reads    captions, questions, styles: the recipe's newest report. sweep, efficiency, composition, pruning: videos (their files), questions
         and the recipe's hypernetwork.
Writes   figures/<table>-<hash>/ of the last four (`training.figures.figure` says what is in it); the first three write nothing.
Command  video2lora reproduce sweep --recipe demo
Cost     sweep and composition: each clip's file decoded and answered once a cell. A second run reads what the first one wrote.
"""

import json
from typing import Any

from infra.books import console
from infra.config import Recipe, Where
from infra.errors import BadInputError
from infra.objects import read_json
from infra.progress import say
from infra.sets import REPORTS, outputs_of
from training.figures import paper

FIGURES = ("sweep", "efficiency", "composition", "pruning")
TASKS = {"captions": "caption", "questions": "question"}

Facts = dict[str, Any]


def run(table: str, recipe: Recipe, where: Where, *, as_json: bool) -> None:
    """Make it, or find it made, and print it. Raises BadInputError, StorageError."""
    model = paper.model_of(recipe.vlm.model)
    if table in FIGURES:
        print_figure(table, figure(table, recipe, where), model, as_json=as_json)
    else:
        from training.figures import report_tables

        found = newest_report(recipe, where)
        rows = report_tables.styles(found, model) if table == "styles" else report_tables.claims(found, TASKS[table], model)
        if not rows:
            wanted = "with styles" if table == "styles" else f"of task {TASKS[table]}"
            raise BadInputError(f"{table}: the newest report has no benchmark {wanted}; `video2lora benchmark list` names those there are")
        if table != "styles" and (mixed := report_tables.mixed(found)):
            say(f"{table}: left out, as they have questions and captions: {', '.join(mixed)}; their numbers are in the report")
        print(json.dumps(rows, indent=1)) if as_json else console().print(report_tables.grid_of(table, rows, model))


def figure(table: str, recipe: Recipe, where: Where) -> Facts:
    """The numbers of one of FIGURES. Raises BadInputError, StorageError."""
    from training.figures.composition import Composition  # torch and transformers: not needed for the tables of a report
    from training.figures.efficiency import Efficiency
    from training.figures.figure import drawn
    from training.figures.frames_resolution import Sweep
    from training.figures.pruning import Pruning

    match table:
        case "sweep":
            return drawn(Sweep(), recipe, where)
        case "efficiency":
            return drawn(Efficiency(), recipe, where)
        case "composition":
            return drawn(Composition(), recipe, where)
        case _:
            return drawn(Pruning(), recipe, where)


def print_figure(table: str, found: Facts, model: str | None, *, as_json: bool) -> None:
    """On standard output."""
    if as_json:
        print(json.dumps(found, indent=1))
        return
    from training.figures import tables

    as_table = {"sweep": tables.sweep, "efficiency": tables.efficiency, "composition": tables.composition, "pruning": tables.pruning}
    console().print(as_table[table](found, model))


def newest_report(recipe: Recipe, where: Where) -> Facts:
    """The report of this recipe that was finished last; figures may have been added to it since. Raises BadInputError without one."""
    values, found = recipe.model_dump(mode="json"), []
    for output in outputs_of(where.data, REPORTS):
        at = output.completed_at()
        if at is not None and output.made_from().get("recipe") == values:
            found.append((at, output))
    if not found:
        raise BadInputError(f"{where.data}/{REPORTS}: no complete report of this recipe: run `video2lora report` first")
    return dict(read_json(f"{max(found, key=lambda one: one[0])[1].folder}/report.json"))
