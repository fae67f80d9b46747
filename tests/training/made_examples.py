"""Examples of made-up pictures: a bright square in one of four colours, and questions whose answers name the colour."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from infra.config import Recipe
from infra.objects import write_new
from infra.outputs import Output
from infra.sets import examples_made, examples_set, hypernetwork_made, hypernetwork_output, targets_made, targets_set
from infra.stage import Order
from infra.storage import Table
from training.batches import Example, example
from training.streams import READ, read_row
from video2lora.tiny.build import build_model, build_tokenizer, save_vlm

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "white": (230, 230, 230)}
QUESTIONS = ("What colour is it?", "Name the colour.", "Which colour does the square have?")


def a_row(number: int, *, split: str = "train", n_frames: int = 3) -> dict[str, Any]:
    """A row of `examples`."""
    colour = list(COLOURS)[number % len(COLOURS)]
    jpegs = []
    for i in range(n_frames):
        picture = np.random.default_rng([number, i]).integers(0, 40, (29, 31, 3)).astype(np.uint8)
        picture[7:23, 2 + 3 * i : 17 + 3 * i] = COLOURS[colour]
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=95)
        jpegs.append(buffer.getvalue())
    targets = [{"task": "question", "prompt": question, "target": f"It is {colour}."} for question in QUESTIONS]
    times = {"timestamps_s": [0.5 * i for i in range(n_frames)], "duration_s": 0.5 * n_frames}
    return {"video_id": f"video-{number:03d}", "version": "v", "split": split, "jpegs": jpegs, **times, "targets": targets}


def an_example(number: int, *, n_frames: int = 3) -> Example:
    return example(as_read(a_row(number, n_frames=n_frames)))


def as_read(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `examples` as workers get it."""
    return dict.fromkeys(READ.names) | read_row(row)


def fill(
    table: Table, rows: Sequence[dict[str, Any]], rejects: Sequence[dict[str, Any]] = (), *, made: dict[str, Any] | None = None
) -> None:
    """A complete table in two blocks, as an earlier stage leaves it."""
    rows = [({"version": "v"} if "version" in table.spec.key else {}) | row for row in rows]
    wanted = [table.spec.key_of(row) for row in rows] + [row["key"] for row in rejects]
    attempt = Order(table, {"stage": f"test of {table.name}"}, wanted, made or {}).begin()
    attempt.write(rows[::2], rejects)
    attempt.write(rows[1::2], [])
    attempt.complete()


def fill_targets(recipe: Recipe, data: str, rows: Sequence[dict[str, Any]]) -> Table:
    """The recipe's targets, by a teacher that does not matter."""
    table = targets_set(recipe, data, weights="toy")
    fill(table, rows, made=targets_made(recipe, weights="toy"))
    return table


def write_examples(recipe: Recipe, data: str, rows: Sequence[dict[str, Any]]) -> Table:
    """The recipe's examples, from targets of no rows."""
    targets = fill_targets(recipe, data, [])
    table = examples_set(recipe, targets)
    fill(table, rows, made=examples_made(recipe, targets))
    return table


def fill_hypernetwork(recipe: Recipe, examples: Table, files: Mapping[str, bytes]) -> Output:
    """A complete hypernetwork of these files, as training on the examples leaves it."""
    output = hypernetwork_output(recipe, examples)
    output.begin(hypernetwork_made(recipe, examples))
    for name, data in files.items():
        write_new(f"{output.folder}/{name}", data)
    output.complete()
    return output


def write_vlm(folder: Path) -> None:
    """The small VLM with random weights and a tokenizer that knows these words."""
    tokenizer = build_tokenizer([*QUESTIONS, *(f"It is {colour}." for colour in COLOURS)], vocab_size=320)
    save_vlm(build_model(tokenizer, seed=3), tokenizer, folder)
