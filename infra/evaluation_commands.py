"""The commands that evaluate: benchmarks in, answers, judgements, tables and figures out. `infra.cli` mounts them.

What they print on standard output is the result, with `--json` for programs; progress and notes go to standard error.
"""

import importlib
from pathlib import Path
from typing import Annotated, Literal

import typer

from infra import jobs
from infra.config import load_recipe, load_where
from infra.table_commands import JsonOption, RecipeOption

Table = Literal["captions", "questions", "styles", "sweep", "efficiency", "composition", "pruning"]


def mount(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    for command in (benchmark, answer, judge, report, evaluate, reproduce, compare, agreement):
        app.command(rich_help_panel="Evaluation")(command)


def benchmark(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A benchmark's name; `list` prints them.")],
    annotations: Annotated[list[str] | None, typer.Option("--annotations", "-a", help="Its annotation files, as published.")] = None,
    videos: Annotated[str | None, typer.Option("--videos", "-v", help="The folder of its videos, local or s3://.")] = None,
    prompts: Annotated[Literal["paper", "own"], typer.Option(help="The paper's prompts, or the benchmark's own.")] = "paper",
    sample: Annotated[int | None, typer.Option(min=0, help="How many are drawn, 0: all; by default as many as in the paper.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    recipe: RecipeOption = "demo",
) -> None:
    """A benchmark's annotation files and videos -> `videos` (split test) and `questions`."""
    module = importlib.import_module("pipeline.benchmarks")
    if name == "list":
        module.print_list()
        return
    asked = module.Asked(name, annotations=annotations or [], videos=videos, prompts=prompts, n=sample, seed=seed)
    print(module.run(asked, load_recipe(recipe), load_where()))


def answer(recipe: RecipeOption = "demo") -> None:
    """Test questions answered by each system -> `answers`, for every training seed of the recipe."""
    print(jobs.stage("answer").run(load_recipe(recipe), load_where()))


def judge(recipe: RecipeOption = "demo") -> None:
    """`answers` marked by the recipe's judge -> `judgements`; the same words are judged once."""
    print(jobs.stage("judge").run(load_recipe(recipe), load_where()))


def report(recipe: RecipeOption = "demo") -> None:
    """`answers` and `judgements` -> tables with intervals and verdicts, report.json, rows.parquet and an HTML page."""
    print(jobs.stage("report").run(load_recipe(recipe), load_where()))


def evaluate(recipe: RecipeOption = "demo") -> None:
    """All that the report needs: trains each seed that is not trained yet, answers, judges where the recipe has a judge, reports."""
    importlib.import_module("training.evaluate").run(load_recipe(recipe), load_where())


def reproduce(
    table: Annotated[Table, typer.Argument(metavar="TABLE", help="captions, questions, styles, sweep, efficiency, composition, pruning.")],
    recipe: RecipeOption = "demo",
    as_json: JsonOption = False,
) -> None:
    """A table or figure of the paper, made anew, with the paper's numbers beside ours where the model is the paper's."""
    importlib.import_module("training.reproduce").run(table, load_recipe(recipe), load_where(), as_json=as_json)


def compare(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="A report's folder, or its name in the data folder.")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="The later one: what its systems gain on RUN_A's.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="An HTML page of the differences; a new file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Two reports on the same questions: what B's systems do better or worse than A's, with intervals."""
    importlib.import_module("training.compare").run(run_a, run_b, load_where(), output=output, as_json=as_json)


def agreement(
    labels: Annotated[
        str | None, typer.Argument(metavar="[LABELS]", help="JSONL of people's marks: question_id, system, score in [0, 1].")
    ] = None,
    recipe: RecipeOption = "demo",
    as_json: JsonOption = False,
) -> None:
    """How far the judge agrees with people, or (without LABELS) with the recipe's second judge: Spearman's correlation."""
    importlib.import_module("training.agreement").run(load_recipe(recipe), load_where(), labels=labels, as_json=as_json)
