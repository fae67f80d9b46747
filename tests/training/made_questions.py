"""Test videos, questions about them, and random models that answer: what the stage `answer` reads, without decoding or training."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made_examples import fill, fill_hypernetwork, fill_targets
from PIL import Image

from infra.config import Recipe, VLMSettings, Where
from infra.evaluation_config import AnswerSettings, EvaluationSettings
from infra.sets import examples_made, examples_set, frames_made, frames_set, made_targets
from infra.storage import Table
from video2lora.checkpoint import save_hypernetwork
from video2lora.hypernetwork import Hypernetwork, HypernetworkConfig
from video2lora.tiny.build import build_model, build_tokenizer, save_vlm
from video2lora.video import Sampling
from video2lora.vlm import FrozenVLM

N_FRAMES, MAX_NEW_TOKENS = 3, 7
TEST_VIDEOS = ("v0", "v1", "v2", "v3", "v4")
WORDINGS = ("What is this?", "Which way does the large object move, and how many are there?", "Colour?")


def write_vlm(folder: Path) -> None:
    tokenizer = build_tokenizer([*WORDINGS, "A summary of a red circle."], vocab_size=320)
    save_vlm(build_model(tokenizer, seed=3), tokenizer, folder)


def write_hypernetwork(vlm: FrozenVLM, folder: Path, *, seed: int, r: int = 3, opens_answer: bool = False) -> Path:
    """Untrained, with every zero that makes a fresh hypernetwork change nothing drawn at random."""
    config = HypernetworkConfig(
        n_layers=len(vlm.layers), d_vlm=vlm.d_vlm, target_modules=vlm.module_sizes(["down_proj"]), r=r, n_latents=5, n_blocks=1,
        d_latent=24, n_heads=2, n_kv_heads=1, d_head=12, scaling=1.0, normalise_features=True, opens_answer=opens_answer,
    )  # fmt: skip
    hypernetwork = Hypernetwork(config, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in hypernetwork.named_parameters():
            if name.endswith(("scale_b", "static.down_proj.lora_b")):
                parameter.normal_(std=1.0, generator=generator)
            elif name.startswith("heads") and name.endswith("weight"):
                parameter.normal_(generator=generator)
    save_hypernetwork(hypernetwork, folder, metadata={"vlm_digest": vlm.digest, "step": 11})
    return folder


def a_recipe(vlm_folder: Path, *, seeds: tuple[int, ...] | None = None, **answer_settings: Any) -> Recipe:
    settings = AnswerSettings(**{"max_new_tokens": MAX_NEW_TOKENS, "questions_per_batch": 4, "n_timed": 5} | answer_settings)
    sampling = Sampling(policy="uniform", n_frames=N_FRAMES)
    recipe = Recipe(vlm=VLMSettings(model=str(vlm_folder)), answer=settings, evaluation=EvaluationSettings(seeds=seeds))
    return recipe.model_copy(update={"frames": recipe.frames.model_copy(update={"sampling": sampling})})


def jpegs(seed: int, *, n: int, height_px: int, width_px: int) -> list[bytes]:
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(n):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((width_px, height_px)).save(buffer, "JPEG", quality=95)
        pictures.append(buffer.getvalue())
    return pictures


def frames_row(video_id: str, number: int, *, n: int = N_FRAMES) -> dict[str, Any]:
    """A row of `frames`, two a second."""
    size = {"height_px": 31 + number, "width_px": 41}
    times = {"timestamps_s": [0.5 * i for i in range(n)], "duration_s": 0.5 * n - 0.3}
    return {"video_id": video_id, "sampling": "uniform-3", "jpegs": jpegs(number, n=n, **size), **times, **size}


def question(number: int, video_id: str, wording: str) -> dict[str, Any]:
    return {
        "question_id": f"q{number:02d}",
        "video_id": video_id,
        "benchmark": "toy",
        "style": ("colour", "direction")[number % 2],
        "question": wording,
        "references": ["red"],
        "task": "question",
    }


def write_inputs(recipe: Recipe, data: str) -> None:
    """Five test videos of different shapes with frames, one without, one to train on; v3 has no text by the teacher, v2 a caption alone."""
    videos = [{"video_id": v, "uri": v, "split": "test"} for v in (*TEST_VIDEOS, "blank")] + [
        {"video_id": "t0", "uri": "t", "split": "train"}
    ]
    fill(Table(data, "videos"), videos)
    asked = [question(3 * i + k, v, WORDINGS[k]) for i, v in enumerate(TEST_VIDEOS) for k in range(3)]
    asked += [question(50, "blank", WORDINGS[0]), question(51, "t0", WORDINGS[0])]
    asked += [question(52, "v1", "Is <image> a token?"), question(53, "v2", "why " * 1100)]
    fill(Table(data, "questions"), asked)
    fill(frames_set(recipe, data), [frames_row(v, i) for i, v in enumerate((*TEST_VIDEOS, "t0"))], made=frames_made(recipe))
    said = [(v, "caption") for v in ("v0", "v1", "v2", "v4")] + [(v, "summary") for v in ("v0", "v1", "v4")]
    targets = [
        {"video_id": v, "prompt_id": task, "teacher": "toy", "task": task, "prompt": "?", "target": f"A {task} of {v}."} for v, task in said
    ]
    fill_targets(recipe, data, targets)


def a_data_folder(recipe: Recipe, folder: Path, hypernetworks: Mapping[int, Path]) -> Where:
    """The inputs, and what training with each seed left."""
    data = str(folder / "data")
    write_inputs(recipe, data)
    targets = made_targets(recipe, data)
    examples = examples_set(recipe, targets)
    fill(examples, [], made=examples_made(recipe, targets))
    for seed, made in hypernetworks.items():
        of_seed = recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": seed})})
        fill_hypernetwork(of_seed, examples, {path.name: path.read_bytes() for path in made.iterdir()})
    return Where(data=data)
