"""Makes `processor.json` beside it: token ids, pixels and chosen frames of transformers' SmolVLM processor for the inputs in cases.py.

Command: `.venv/bin/python tests/video2lora/golden/make.py > FILE`, 8 s; `--pixels FILE.npz` keeps whole pictures as well. The test runs it
and compares what it finds with processor.json, so a release of transformers that changes a value is noticed: look at what changed, follow
it in `video2lora/` if it is right, then move FILE over processor.json.
"""

import argparse
import itertools
import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from cases import CLIPS, MAX_IDS, PICTURES, PROMPTS, SAMPLINGS, SETTINGS, Picture, Prompt, clip, grid
from oracle import TOKENIZER_FILE, metadata_of, processor_of, read_video


def prompt_ids(prompt: Prompt, *, tokenizer_file: Path = TOKENIZER_FILE) -> list[int]:
    """With frames so small that they cost nothing: the text does not depend on their size."""
    processor = processor_of(prompt.model, tokenizer_file=tokenizer_file)
    dots = np.zeros((len(prompt.frame_numbers), 2, 2, 3), np.uint8)
    metadata = metadata_of(prompt.n_shown, prompt.fps, list(prompt.frame_numbers))
    return read_video(processor, dots, metadata, prompt.question, do_resize=False)[0]


def picture_pixels(picture: Picture) -> np.ndarray:
    size = {} if picture.longest_edge_px is None else {"size": {"longest_edge": picture.longest_edge_px}}
    frames = clip(picture)
    return read_video(processor_of(picture.model), frames, metadata_of(2, 1.0, [0, 1]), PROMPTS[0].question, **size)[1]


def chosen_frames() -> list[list[list[int]]]:
    choose = processor_of(next(iter(SETTINGS))).video_processor.sample_frames
    return [[choose(metadata_of(*lengths), num_frames=n, fps=fps).tolist() for n, fps in SAMPLINGS] for lengths in CLIPS]


def runs(ids: list[int]) -> list[list[int]]:
    """[id, how often in a row]; of a very long prompt the beginning."""
    return [[token, len(list(group))] for token, group in itertools.groupby(ids[:MAX_IDS])]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pixels", metavar="FILE.npz")
    arguments = parser.parse_args()
    pixels = [picture_pixels(picture) for picture in PICTURES]
    if arguments.pixels:
        np.savez(arguments.pixels, *pixels)
    values = {
        "ids": [runs(prompt_ids(prompt)) for prompt in PROMPTS],
        "levels": [np.rint((grid(values) + 1) * 127.5).astype(int).flatten().tolist() for values in pixels],
        "frame_numbers": chosen_frames(),
    }
    lines = [f'"{name}": [\n' + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]" for name, rows in values.items()]
    made_with = json.dumps({"transformers": version("transformers"), "torch": torch.__version__})
    sys.stdout.write(",\n".join([f'{{"made_with": {made_with}', *lines]) + "}\n")


if __name__ == "__main__":
    main()
