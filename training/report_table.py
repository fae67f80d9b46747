"""A report's numbers on standard output: the systems, the claims of each benchmark, its styles, what holds. Claims by the leading score
alone; the page and report.json have them by every score."""

import unicodedata
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from infra.books import console
from training.costs import size_text
from training.verdicts import SCORE_NAMES, holds, interval_text, verdicts

Facts = Mapping[str, Any]
SIGNS = {True: "✓", False: "✗", None: "·"}


def print_tables(numbers: Facts) -> None:
    """All of them."""
    out = console()
    out.print(_systems(numbers))
    out.print(_claims(numbers, numbers["primary"]))
    _print_styles(numbers, out)
    for name, gap in numbers["gap_closed"].items():
        interval = "" if gap["low"] is None else f", 95 % interval {gap['low']:.3f} to {gap['high']:.3f} over clips"
        told = f"gap closed by {SCORE_NAMES[name]}, (ours - blind) / (base - blind): {number(gap['value'])}{interval}"
        out.print(Text(told), highlight=False)
    for one in verdicts(numbers):
        out.print(plain(f"{SIGNS[one.holds]} {one.text}" + (f" ({one.detail})" if one.detail else "")), highlight=False)


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def plain(text: str) -> Text:
    """A text from outside as a terminal may have it: no markup, and no character that would control it."""
    return Text("".join(char for char in text if not unicodedata.category(char).startswith("C")))


def _systems(numbers: Facts) -> Grid:
    counts, named = numbers["counts"], numbers["recipe"]["answer"]["hypernetwork"]
    by = f"training seeds {', '.join(map(str, numbers['seeds']))}" if named is None else f"hypernetwork {named}"
    told = f"{counts['questions']} questions about {counts['videos']} clips of split {numbers['split']}; {by}"
    grid = Grid(title=plain(told), title_justify="left")
    of_scores = [SCORE_NAMES[name] for name in numbers["scores"]]
    for heading in ("system", *of_scores, "input tokens", "visual", "first token ms", "broken", "kept per video"):
        grid.add_column(heading, justify="left" if heading in ("system", "kept per video") else "right")
    for system, row in numbers["systems"].items():
        ttft_ms = None if row["ttft_s"] is None else 1000 * row["ttft_s"]
        kept = "\n".join(f"{form} {size_text(n_bytes)}" for form, n_bytes in numbers["kept_bytes_per_video"][system].items())
        scores = [number(row["scores"][name]) for name in numbers["scores"]]
        costs = [number(row["n_input_tokens"], 1), number(row["n_visual_tokens"], 1), number(ttft_ms, 1)]
        grid.add_row(plain(system), *scores, *costs, str(sum(row["degenerate"].values())), kept)
    return grid


def _claims(numbers: Facts, name: str) -> Grid:
    alpha = numbers["recipe"]["evaluation"]["alpha"]
    grid = Grid(title=f"{SCORE_NAMES[name]}: claims at alpha {alpha:g}, corrected over benchmarks", title_justify="left")
    left = ("benchmark", "claim")
    least = "holds from, taken alone" if len(numbers["benchmarks"]) > 1 else "holds from"
    for heading in (*left, "against", "difference, 95 % interval", "margin", "not worse", "equivalent", least):
        grid.add_column(heading, justify="left" if heading in left else "right")
    for benchmark, of in numbers["benchmarks"].items():
        for one in of["claims"][name]:
            told = [SIGNS[holds(one, what, alpha)] for what in ("noninferior", "equivalent")]
            texts = [plain(text) for text in (benchmark, one["system"], one["against"], interval_text(one))]
            grid.add_row(*texts, f"{one['margin']:g}", *told, number(one["smallest_noninferior"]))
    return grid


def _print_styles(numbers: Facts, out: Console) -> None:
    for benchmark, of in numbers["benchmarks"].items():
        if len(of["styles"]) < 2:
            continue
        name = next((name for name in numbers["scores"] if any(v is not None for v in of["scores"][name].values())), numbers["primary"])
        grid = Grid(title=plain(f"{benchmark}: {SCORE_NAMES[name]} by style"), title_justify="left")
        for heading in ("style", "questions", *numbers["systems"], "gap closed"):
            grid.add_column(heading, justify="left" if heading == "style" else "right")
        for style, row in of["styles"].items():
            scores = [number(row["scores"][name][system]) for system in numbers["systems"]]
            grid.add_row(plain(style), str(row["n_questions"]), *scores, number(row["gap_closed"][name]["value"]))
        out.print(grid)
