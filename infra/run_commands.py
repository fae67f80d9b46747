"""The commands for logical runs: the whole path, a retraining that decides, and what became of each. `infra.cli` mounts them.

What they print on standard output is the result, with `--json` for programs; progress and notes go to standard error.
"""

import importlib
from typing import Annotated

import typer

from infra.config import load_recipe, load_where
from infra.options import ClusterOptions, grouped
from infra.table_commands import JsonOption, RecipeOption

SourceArgument = Annotated[
    str | None, typer.Argument(metavar="[SOURCE]", help="Videos, as for `manifest`; by default the recipe's made world.")
]

runs_app = typer.Typer(invoke_without_command=True)


def mount(app: typer.Typer) -> None:
    """Adds the commands to `app`; `runs` becomes a command with one below it."""
    for command in (run, retrain):
        app.command(rich_help_panel="Runs")(command)
    app.add_typer(runs_app, name="runs", rich_help_panel="Runs")


def run(source: SourceArgument = None, recipe: RecipeOption = "demo") -> None:
    """The whole path: SOURCE -> videos, frames, targets, examples, hypernetworks, answers, report. Run again, it continues."""
    print(importlib.import_module("training.whole_run").run(source, load_recipe(recipe), load_where()))


def retrain(
    source: SourceArgument = None,
    recipe: RecipeOption = "demo",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be decided; nothing is written.")] = False,
) -> None:
    """The whole path where it is worth it, then the gate: the champion is replaced or kept. For a scheduler; says why it did what.

    Exit code 0 whatever was decided: another run is alive, nothing new, no budget, promoted, kept.
    """
    module = importlib.import_module("training.retrain")
    work = module.dry_run if dry_run else module.run
    print(work(source, load_recipe(recipe), load_where()))


@runs_app.callback()
@grouped
def runs(context: typer.Context, as_json: JsonOption = False, *, where: ClusterOptions) -> None:
    """The runs of the data folder, or of those that a cluster's jobs work on: attempts, state, GPU-hours, why it ended so."""
    if context.invoked_subcommand is None:
        from infra import runs_shown as shown

        found = {root: shown.runs(root) for root in _roots(where)}
        if as_json:
            shown.print_json([{"data": root, **one} for root, those in found.items() for one in those])
        for root, those in found.items() if not as_json else ():
            if where.is_given():
                print(root)
            shown.print_runs(those)
    elif as_json or where.is_given():
        raise typer.BadParameter(f"options of `runs {context.invoked_subcommand}` go behind it")


@runs_app.command(name="show")
@grouped
def show_run(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run's name.")],
    log: Annotated[bool, typer.Option("--log", help="What its driver said, in place of its stages.")] = False,
    as_json: JsonOption = False,
    *,
    where: ClusterOptions,
) -> None:
    """One run: who, and each attempt's stages with their seconds and GPU-hours."""
    from infra import runs_shown as shown

    roots = _roots(where)
    if log:
        shown.print_log(roots, name)
        return
    found = shown.run(roots, name)
    shown.print_json(found) if as_json else shown.print_run(found)


def _roots(where: ClusterOptions) -> list[str]:
    """Data folders. RAY_API_SERVER_ADDRESS alone does not change what `runs` shows."""
    if not where.is_given():
        return [load_where().data]
    from infra.submit import data_folders
    from infra.submit_commands import cluster_of

    return data_folders(cluster_of(where))
