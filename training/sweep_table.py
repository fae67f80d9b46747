"""A sweep's numbers -> its table: on standard output, as JSON, and as Markdown to put into a document."""

import json
from collections.abc import Mapping
from typing import Any

from rich.table import Table as Grid

from infra.books import console

HEADINGS = {
    "change": "left",
    "settings": "left",
    "seeds": "right",
    "exact match": "right",
    "difference to base": "right",
    "gap closed": "right",
    "other video": "right",
    "token F1": "right",
    "parameters": "right",
    "train s": "right",
    "ms/step": "right",
}
"""Each column's side."""

Facts = Mapping[str, Any]


def print_table(found: Facts) -> None:
    """On standard output."""
    grid = Grid(title=title(found), title_justify="left", show_lines=True)
    for heading, side in HEADINGS.items():
        grid.add_column(heading, justify="right" if side == "right" else "left")
    for row in found["rows"]:
        grid.add_row(*(cell.replace(" [", "\n\\[") for cell in cells(row)))
    console().print(grid)
    print("\n".join(failures(found)), end="\n" if failures(found) else "")


def as_json(found: Facts) -> str:
    return json.dumps(found, indent=1)


def as_markdown(found: Facts) -> str:
    """Title, table, failures."""
    lines = [list(HEADINGS), ["---:" if side == "right" else "---" for side in HEADINGS.values()], *map(cells, found["rows"])]
    table = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    told = "".join(f"\n- {line}" for line in failures(found))
    return f"{title(found)}\n\n{table}\n" + (f"{told}\n" if told else "")


def title(found: Facts) -> str:
    n_seeds = len(found["seeds"])
    drawn = "videos and seeds" if n_seeds > 1 else "videos"
    return (
        f"Sweep {found['sweep']} over recipe {found['base']}: {found['n_questions']} questions about {found['n_videos']} videos, "
        f"seeds {', '.join(map(str, found['seeds']))}; means, and 95 % intervals over {drawn}"
    )


def cells(row: Facts) -> list[str]:
    """A row's, in the order of HEADINGS."""
    exact = row["exact_match"]
    return [
        row["change"],
        ", ".join(f"{path}: {json.dumps(value)}" for path, value in row["settings"].items()),
        ", ".join(map(str, row["seeds"])),
        _interval(exact["ours"]),
        _interval(exact["difference"], sign="+") if "difference" in exact else "",
        _interval(exact["gap_closed"]),
        _interval(exact["other_video"]),
        _interval(row["token_f1"]["ours"]),
        "–" if row["n_parameters"] is None else f"{row['n_parameters']:,}",
        "–" if row["train_s"] is None else f"{row['train_s']:.0f}",
        "–" if row["step_s"] is None else f"{1000 * row['step_s']:.0f}",
    ]


def failures(found: Facts) -> list[str]:
    """A line for each training that has no result."""
    return [f"{row['change']}, seed {one['seed']}, failed: {one['why']}" for row in found["rows"] for one in row["failed"]]


def _interval(one: Facts, *, sign: str = "") -> str:
    if one["value"] is None:
        return "–"
    value = f"{one['value']:{sign}.3f}"
    return value if one["low"] is None else f"{value} [{one['low']:{sign}.3f}, {one['high']:{sign}.3f}]"
