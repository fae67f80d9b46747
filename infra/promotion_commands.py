"""The commands about champions: promote, roll back, look back, and bring adapters up to date. `infra.cli` mounts them.

What they print on standard output is the result, with `--json` for programs; progress and notes go to standard error.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table as Grid
from rich.text import Text

from infra.adapter_commands import BATCH_SIZE, bad_input
from infra.books import console
from infra.config import load_where
from infra.errors import BadInputError
from infra.log import Entry
from infra.options import ModelOptions, grouped
from infra.promotions import BY_HAND
from infra.table_commands import JsonOption


def mount(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    for command in (promote, rollback, history, stale, regenerate):
        app.command(rich_help_panel="Promotion")(grouped(command))


def promote(
    hypernetwork: Annotated[str, typer.Argument(metavar="HYPERNETWORK", help="A folder's name under <data>/hypernetworks.")],
    why: Annotated[str, typer.Option(help="Kept in the history.")] = "",
) -> None:
    """Make a hypernetwork its VLM's champion by hand, whatever the gate would say."""
    from infra import promotions, registry

    where = load_where()
    seen = promotions.standing(where.data, promotions.vlm_of(where.data, hypernetwork))
    told = "by hand, without the gate" + (f": {why}" if why else "")
    now = promotions.promote(where.data, hypernetwork, expected=seen.n_entries, verdict={"why": told})
    registry.mirror(where)
    if seen.champion is not None and seen.champion.weights_sha256 == now.weights_sha256:
        print(f"{now.hypernetwork} is the champion of VLM {now.vlm} already; nothing to do")
    else:
        before = f"; before it: {seen.champion.hypernetwork}" if seen.champion else ""
        print(f"{now.hypernetwork} is the champion of VLM {now.vlm}, {told}{before}")


def rollback(vlm: Annotated[str | None, typer.Option(help="Whose champion, where several VLMs have one.")] = None) -> None:
    """Make the champion before the present one champion again. The gate does not promote the one that goes a second time."""
    from infra import promotions, registry

    where = load_where()
    there = promotions.vlms(where.data)
    if not there:
        raise BadInputError(f"rollback: {where.data}: nothing was promoted yet")
    if vlm is None and len(there) > 1:
        raise BadInputError(f"rollback: {', '.join(there)} have champions: say which with --vlm")
    gone, now = promotions.rollback(where.data, vlm or "".join(there))
    registry.mirror(where)
    print(f"{now.hypernetwork} is the champion of VLM {now.vlm} again, promoted {now.at}; {gone.hypernetwork} was rolled back")


def history(as_json: JsonOption = False) -> None:
    """Every decision about a champion, the oldest first: when, of what, why, and by whom."""
    from infra import promotions

    root = load_where().data
    entries = promotions.history(root)
    if as_json:
        print(json.dumps(entries, indent=1))
    elif entries:
        _print_history(entries)
    else:
        print(f"{root}: nothing was promoted yet")


def stale(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Collections of adapters.")],
    as_json: JsonOption = False,
) -> None:
    """How many adapters of each collection are by their VLM's champion, and how many by which other hypernetwork."""
    from infra import stale as work

    root = load_where().data
    found = [work.stale(folder, root) for folder in folders]
    print(json.dumps([asdict(one) for one in found], indent=1) if as_json else "\n".join(one.line() for one in found))


def regenerate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A collection of adapters.")],
    models: ModelOptions,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="NEW", help="The new collection; by default beside DIR, named by its maker.")
    ] = None,
    uses: Annotated[Path | None, typer.Option(help="JSONL or Parquet of video_id and n_uses, beside what `ask` counted.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Videos that go through the models at once.")] = BATCH_SIZE,
) -> None:
    """Make a collection's adapters anew by the champion (or --hypernetwork), most used first, into a new one; run again, it continues."""
    from infra import regenerate as work

    with bad_input():
        print(work.run(folder, output, load_where().data, models=models, uses=uses, batch_size=batch_size))


def _print_history(entries: list[Entry]) -> None:
    grid = Grid("when", "VLM", "what", "hypernetwork", "why", "by")
    for one in entries:
        when, who = one["at"].replace("T", " ").split(".")[0], one["who"] if one["by"] == BY_HAND else one["by"]
        grid.add_row(when, one["vlm"], one["kind"], one["hypernetwork"], Text(one["verdict"]["why"]), who)
    console().print(grid)
