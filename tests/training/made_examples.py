"""Examples of made-up pictures: a bright square in one of four colours, and questions whose answers name the colour."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from infra.storage import Table
from training.batches import Example, decode_row, example
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
    targets = [{"task": "qa", "prompt": question, "target": f"It is {colour}."} for question in QUESTIONS]
    times_s = [0.5 * i for i in range(n_frames)]
    row = {"video_id": f"video-{number:03d}", "split": split, "jpegs": jpegs, "timestamps_s": times_s, "duration_s": 0.5 * n_frames}
    return {**row, "targets": targets}


def an_example(number: int) -> Example:
    return example(decode_row(a_row(number)))


def write_examples(data: str, rows: list[dict[str, Any]]) -> None:
    """The complete table, in two shards."""
    table = Table(data, "examples")
    assert table.begin({"stage": "examples", "by": "a test"})
    table.commit(rows[::2], [])
    table.commit(rows[1::2], [])
    table.complete(n_in=len(rows))


def write_vlm(folder: Path) -> None:
    """The small VLM with random weights and a tokenizer that knows these words."""
    tokenizer = build_tokenizer([*QUESTIONS, *(f"It is {colour}." for colour in COLOURS)], vocab_size=320)
    save_vlm(build_model(tokenizer, seed=3), tokenizer, folder)
