"""A figure is cells, measured one after the other and each kept as a file of its own: a killed run goes on with the next cell.

made.json            the settings, the recipe's hypernetwork, the videos and questions
cells/<name>.json    what was measured in a cell, every answer with it
figure.json          the numbers of all cells, without the answers
complete.json        last

A second run finds it complete and reads figure.json. Files of a bucket are fetched for each cell again: none is kept on the machine.
"""

import json
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from infra.config import Recipe, Where
from infra.errors import StorageError
from infra.objects import read_json, write_new
from infra.outputs import Output
from infra.progress import counting, say
from infra.sets import FIGURES, Made, evaluated_hypernetwork, made_output
from infra.storage import Table
from training.figures.bench import OUT_OF_REACH, Bench, Clip, clips_of, is_in_reach, opened_bench

Numbers = dict[str, Any]

VERSION = 2  # raised when the same inputs would give other numbers

DRAWN = ("n_videos", "benchmark", "styles", "seed")
"""Settings of every figure: which clips."""


@runtime_checkable
class Figure(Protocol):
    """One figure of one recipe."""

    table: str
    settings: tuple[str, ...]  # those of recipe.figures that it depends on, beside DRAWN

    def cells(self, recipe: Recipe, clips: Sequence[Clip]) -> list[str]:
        """Names of its cells, which are names of files."""

    def measure(self, bench: Bench, cell: str) -> Numbers:
        """A cell. `rows` are answers; `left_out` what could not be measured, and why."""

    def numbers(self, recipe: Recipe, cells: Sequence[Numbers]) -> Numbers:
        """What is told of all cells."""


def figure_made(figure: Figure, recipe: Recipe, where: Where) -> Made:
    """What a figure depends on. Raises BadInputError where an input is not complete."""
    settings = recipe.figures.model_dump(mode="json", include={*DRAWN, *figure.settings})
    inputs = {name: Table(where.data, name).made_from() for name in ("videos", "questions")}
    hypernetwork = evaluated_hypernetwork(recipe, where.data)[1]
    made = recipe.section("vlm", "answer", "evaluation")
    made["answer"] = {name: made["answer"][name] for name in ("split", "max_new_tokens", "sampled_frames")}
    made["evaluation"] = {name: made["evaluation"][name] for name in ("n_draws", "alpha", "margin")}
    frames = recipe.frames.model_dump(mode="json", include={"sampling", "longest_edge_px", "jpeg_quality"})
    asked = {"stage": "figure", "version": VERSION, "table": figure.table, **made, "frames": frames, "figures": settings}
    return {**asked, "hypernetwork": hypernetwork, "inputs": inputs}


def figure_output(figure: Figure, recipe: Recipe, where: Where) -> Output:
    """Where it lies, from the tables and the hypernetwork that are there now. Raises BadInputError as `figure_made`."""
    return made_output(where.data, FIGURES, figure.table, figure_made(figure, recipe, where))


def drawn(figure: Figure, recipe: Recipe, where: Where) -> Numbers:
    """The figure's numbers; what is not measured yet is measured. Raises BadInputError, StorageError, MadeFromOtherError."""
    made = figure_made(figure, recipe, where)
    output = made_output(where.data, FIGURES, figure.table, made)
    path = f"{output.folder}/figure.json"
    if not output.begin(made):
        say(f"{figure.table}: complete, nothing to do: {path}")
        return dict(read_json(path))
    clips = clips_of(recipe, where)
    names = figure.cells(recipe, clips)
    done = {name: cell for name in names if (cell := read_json(_cell(output, name))) is not None}
    if done:
        say(f"{figure.table}: {len(done)} of {len(names)} cells were measured before; going on behind them")
    left = [name for name in names if name not in done]
    if left:
        with counting(figure.table, "cells", len(left)) as counter, opened_bench(recipe, where, clips) as bench:
            for name in left:
                cell = figure.measure(bench, name)
                _check_reach(figure, bench, name, cell)
                write_new(_cell(output, name), _json(cell))
                counter.advance(note=name)
    cells = [read_json(_cell(output, name)) for name in names]
    left_out = {one["key"]: one for cell in cells for one in cell["left_out"]}
    numbers = {
        "table": figure.table,
        "made_from": made,
        "n_videos": len(clips),
        "n_questions": sum(len(clip.questions) for clip in clips),
        "left_out": sorted(left_out.values(), key=lambda one: str(one["key"])),
        **figure.numbers(recipe, cells),
    }
    write_new(path, _json(numbers))
    output.complete()
    say(f"{figure.table}: {path}")
    return dict(read_json(path))


def _check_reach(figure: Figure, bench: Bench, name: str, cell: Numbers) -> None:
    """Raises StorageError where clips were not found and none is to be found: their folder is away, and the cell would say nothing."""
    lost = [one["detail"] for one in cell["left_out"] if one["reason"] in OUT_OF_REACH]
    if lost and not any(map(is_in_reach, bench.clips)):
        raise StorageError(
            f"{figure.table}: cell {name}: none of the clips' {len(bench.clips)} files can be read ({lost[-1]}): is their folder there? "
            "Cells measured so far are kept; a later run goes on with this one"
        )


def _cell(output: Output, name: str) -> str:
    return f"{output.folder}/cells/{name}.json"


def _json(numbers: Numbers) -> bytes:
    return json.dumps(numbers, indent=1).encode()
