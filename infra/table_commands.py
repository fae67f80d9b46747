"""The commands that keep the tables' books: what a run would do, is all there, what is where, again, and away. `infra.cli` mounts them.

What they print on standard output is the result, with `--json` for programs; progress and notes go to standard error. Nothing here needs a
cluster but `retry`, which runs stages.
"""

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from infra import jobs
from infra.config import load_recipe, load_where
from infra.errors import BadInputError, RowsLostError
from infra.progress import say

RecipeOption = Annotated[str, typer.Option("--recipe", "-r", help="A shipped recipe's name or a YAML file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="As JSON on standard output.")]

NOTHING = "is there; VIDEO2LORA_DATA names the folder or bucket"

targets_app = typer.Typer(invoke_without_command=True)


def mount(app: typer.Typer) -> None:
    """Adds the commands to `app`; `targets` becomes a command with one below it."""
    for command in (plan, verify, retry, ls, show, forget):
        app.command(rich_help_panel="Tables")(command)
    app.add_typer(targets_app, name="targets")


def plan(
    source: Annotated[
        str | None, typer.Argument(metavar="[SOURCE]", help="What `manifest` would be given; by default, what it saw last.")
    ] = None,
    recipe: RecipeOption = "demo",
    as_json: JsonOption = False,
) -> None:
    """What a run would make and read, what the teacher costs, and whether anything is to be trained. Reads no video, starts no cluster."""
    from infra import plan as work

    planned = work.plan(source, load_recipe(recipe), load_where())
    work.print_json(planned) if as_json else work.print_tables(planned)


def verify(
    repair: Annotated[bool, typer.Option("--repair", help="Do what is safe about what is found.")] = False,
) -> None:
    """Whether the books of every table close: each wanted key is done or rejected, and every file as it was committed.

    Exit code 0 if all do; 6 if not, so also while a run is under way; 3 where there is no table. With --repair: removes what belongs to
    no table, and has the rows of files that are lost made again.
    """
    from infra import books

    root = load_where().data
    found = books.examine(root)
    outputs = books.examine_outputs(root)
    if not found and not outputs:
        raise BadInputError(f"{root}: no table {NOTHING}")
    left = [*(finding for book in found for finding in book.findings), *outputs]
    books.print_books(found, left)
    if repair and left:
        from infra.repair import repair as repaired

        left = [*repaired(found), *outputs]
        print("\n".join(f"left: {finding.line()}" for finding in left))
    if left:
        n = f"{len(left)} finding{'s' if len(left) > 1 else ''}"
        raise RowsLostError(f"{root}: the books do not close, {n}" + ("" if repair else "; `video2lora verify --repair` does what is safe"))
    print(f"{root}: all books close")


def retry(
    reason: Annotated[str | None, typer.Option(help="Only rejects of this reason; by default all.")] = None,
    stage: Annotated[str | None, typer.Option(help="Only those of frames, targets, examples, encode or judge.")] = None,
    recipe: RecipeOption = "demo",
) -> None:
    """Try rejects again: they become pending, and the stages that have something pending are run."""
    from infra import retry as work

    work.run(load_recipe(recipe), load_where(), reason=reason, stage=stage)


def ls(
    table: Annotated[str | None, typer.Argument(metavar="[TABLE]", help="One of them, with what made each set.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The tables and sets there are: rows, rejects, what is pending, bytes, and who made them when."""
    from infra import shown

    root = load_where().data
    found = shown.tables(root, name=table)
    if not found["tables"]:
        say(f"{root}: no table {f'{table} ' if table else ''}{NOTHING}")
    shown.print_json(found) if as_json else shown.print_tables(found, with_settings=table is not None)


def show(
    video: Annotated[str, typer.Argument(metavar="VIDEO_ID", help="A video's id, how it begins, or a file that holds it.")],
    as_json: JsonOption = False,
) -> None:
    """Where a video's rows are, and what made each."""
    from infra import shown

    found = shown.video(load_where().data, video)
    shown.print_json(found) if as_json else shown.print_video(found)


def forget(
    video: Annotated[str, typer.Argument(metavar="VIDEO_ID", help="A video's id, how it begins, or a file that holds it.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a video's rows from every table, and name the checkpoints that were trained on it.

    Runs that are writing a table it is in are superseded. `manifest` will not bring it back. What stays is its id, a hash, in the tables'
    logs, and the models, which only training anew without it can change.
    """
    from infra import forget as work
    from infra.of_video import one_video

    root = load_where().data
    video_id = one_video(root, video)
    places = work.places(root, video_id)
    work.print_places(video_id, places)
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("nobody to ask here: give --yes")
        typer.confirm(f"Remove video {video_id} from {root}?", abort=True)
    work.forget(root, video_id)


@targets_app.callback()
def targets(context: typer.Context, recipe: RecipeOption = "demo") -> None:
    """The teacher's summaries, captions and answers about `frames` -> `targets` (vLLM)."""
    if context.invoked_subcommand is None:
        print(jobs.stage("targets").run(load_recipe(recipe), load_where()))


@targets_app.command()
def browse(
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="How many targets.")] = 24,
    seed: Annotated[int, typer.Option(help="Which ones: the same seed, the same targets.")] = 0,
    prompt: Annotated[str | None, typer.Option(help="Only of this prompt: its id, or how it begins.")] = None,
    rejects: Annotated[bool, typer.Option("--rejects", help="What was rejected, with its reason, in place of targets.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page.")] = Path("targets.html"),
) -> None:
    """A page of frames and targets to look at; it opens from disk."""
    module = importlib.import_module("teacher.browse")
    print(module.run(load_where().data, output, n=n, seed=seed, prompt=prompt, rejects=rejects))
