"""Preprocessing against transformers' own SmolVLM processor: golden values (golden/make.py made them), and the installed release itself.

The processor needs torchvision, which no process of ours may see, so make.py runs on its own with that of .venv/oracle.
"""

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.cases import MAX_IDS, PICTURES, PROMPTS, SETTINGS, Picture, Prompt, clip, grid
from tokenizers import Tokenizer

from video2lora import prompts
from video2lora.pixels import LARGEST_EDGE_PX, fit, fitted_size, squash

FOLDER = Path(__file__).parent / "golden"
GOLDEN = json.loads((FOLDER / "processor.json").read_text())
IMAGE_TOKEN_ID = 49190
LEVEL = 1 / 255


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Values and whole pictures of the transformers that is installed."""
    file = tmp_path_factory.mktemp("processor") / "pixels.npz"
    made = subprocess.run([sys.executable, FOLDER / "make.py", "--pixels", file], capture_output=True, text=True, timeout=240)
    assert made.returncode == 0, made.stderr
    with np.load(file) as pixels:
        return json.loads(made.stdout), [pixels[name] for name in pixels.files]


def our_text(prompt: Prompt) -> str:
    timestamps_s = [number / prompt.fps for number in prompt.frame_numbers]
    placeholder = prompts.frame_placeholder(SETTINGS[prompt.model]["image_seq_len"])
    return prompts.video_prefix(timestamps_s, prompt.n_shown / prompt.fps, placeholder=placeholder) + prompt.question + prompts.ASSISTANT


def our_pixels(picture: Picture) -> np.ndarray:
    """In [-1, 1], as the vision tower gets them."""
    settings = SETTINGS[picture.model]
    frames = np.stack([fit(image, picture.longest_edge_px or settings["size"]) for image in clip(picture)])
    return squash(frames, settings["max_image_size"]) / np.float32(127.5) - 1


@pytest.mark.parametrize("i", range(len(PROMPTS)), ids=[f"{p.model[9:13]}-{len(p.frame_numbers)}" for p in PROMPTS])
def test_token_ids_are_the_processors(i: int) -> None:
    ids = Tokenizer.from_file(str(FOLDER / "tokenizer.json")).encode(our_text(PROMPTS[i])).ids
    golden = [token for token, count in GOLDEN["ids"][i] for _ in range(count)]
    assert len(golden) == min(len(ids), MAX_IDS)
    assert ids[:MAX_IDS] == golden


def test_twelve_frames_at_500m_are_967_tokens() -> None:
    golden = [token for token, count in GOLDEN["ids"][0] for _ in range(count)]
    assert (len(PROMPTS[0].frame_numbers), len(golden), golden.count(IMAGE_TOKEN_ID)) == (12, 967, 768)


@pytest.mark.parametrize("i", range(len(PICTURES)))
def test_pixels_are_the_processors(i: int) -> None:
    levels = (grid(our_pixels(PICTURES[i])) + 1) * 127.5
    assert np.abs(levels.flatten() - GOLDEN["levels"][i]).max() < 1.01


def test_the_installed_transformers_gives_the_golden_values(installed: tuple[dict[str, Any], list[np.ndarray]]) -> None:
    """A release that changes them fails here: make.py says what to do then."""
    values, _ = installed
    made_with = f"processor.json is of {GOLDEN['made_with']}, this is {values['made_with']}"
    assert values["ids"] == GOLDEN["ids"], f"token ids changed: {made_with}"
    assert values["frame_numbers"] == GOLDEN["frame_numbers"], f"sample_frames changed: {made_with}"
    assert np.abs(np.subtract(values["levels"], GOLDEN["levels"])).max() <= 1, f"pixels changed: {made_with}"


def test_every_pixel_is_the_installed_processors(installed: tuple[dict[str, Any], list[np.ndarray]]) -> None:
    for picture, theirs in zip(PICTURES, installed[1], strict=True):
        ours = our_pixels(picture)
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == np.float32
        assert np.abs(ours - theirs).max() <= LEVEL, picture


def test_frames_of_the_size_asked_for_are_left_alone() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    assert squash(images, 64) is images
    assert np.shares_memory(fit(images[0], 64), images)
    read_only = np.random.default_rng(1).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    read_only.flags.writeable = False  # as Pillow gives them
    once = fit(read_only, 61)
    assert once.shape == (42, 61, 3) and np.shares_memory(fit(once, 61), once)


@pytest.mark.parametrize(("height_px", "width_px"), [(1, 999), (999, 1), (7, 7), (1080, 1920), (1920, 1080)])
def test_frames_of_any_shape_fit(height_px: int, width_px: int) -> None:
    height, width = fitted_size(height_px, width_px, longest_edge_px=50)
    assert min(height, width) >= 1 and max(height, width) == 50
    assert (height >= width) == (height_px >= width_px)
    assert max(fitted_size(height_px, width_px, longest_edge_px=10**6)) == LARGEST_EDGE_PX


def test_a_rounding_error_is_no_second() -> None:
    """sintel_10s.mp4 lasts 9.958... + 0.041... s, which is 9.999999999999998."""
    text = prompts.video_prefix([0.0, 1 - 1e-9, 59.9999, 60 - 1e-12], 9.999999999999998, placeholder="|")
    assert f"four frames from a {timedelta(seconds=10)} [H:MM:SS] video" in text
    assert [line for line in text.splitlines() if line.endswith("|")] == [
        f"Frame from {stamp}:|" for stamp in ("00:00", "00:01", "00:59", "01:00")
    ]
