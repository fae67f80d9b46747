"""Made world -> the small VLM that ships: `video2lora tiny train`, `video2lora tiny verify`.

Reads: nothing. Writes: a folder with weights, tokenizer, processor files and `training.json`.
Command: `video2lora tiny train -o DIR`, at most 90 minutes on 2 cores.

Training draws frames straight from the renderer, at the times and sizes a clip would be sampled at, through the same resizing and
JPEG as the `frames` stage; scenes of the train split only. `verify` measures on real H.264 test clips, decoded as any other video.
"""

import json
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from num2words import num2words
from PIL import Image

from infra.config import FramesSettings, WorldSettings
from infra.errors import BadInputError
from infra.progress import counting, say
from pipeline.made_world import clips as made_clips
from pipeline.made_world import render, scene, texts
from pipeline.made_world.clips import CLIP_SIZES_PX
from pipeline.tiny_labels import Labels, clip_facts, frame_facts, labels_of, n_slots
from video2lora import prompts
from video2lora.jpeg import from_jpegs, to_jpeg
from video2lora.pixels import fit, squash
from video2lora.pretrained import load_vlm, vlm_path
from video2lora.scoring import exact_match
from video2lora.tiny.build import IMAGE_SIZE_PX, PATCH_PX, build_model, build_tokenizer, save_vlm
from video2lora.tiny.heads import ClipBatch, ClipHeads, FrameHeads
from video2lora.tiny.train import TrainConfig, polish, teach_answers, teach_vision
from video2lora.video import Sampling, decode
from video2lora.vlm import FrozenVLM

N_FRAMES = 4
N_CLIPS = 24_000  # drawn once, asked about in many ways


@dataclass(frozen=True)
class DrawnClip:
    """A scene with the frames a sampler would see. frames: uint8 [n_frames, px, px, 3]."""

    scene: scene.Scene
    duration_s: float
    frames: np.ndarray
    labels: Labels


def draw_clip(level: int, seed: int, index: int, split: str) -> DrawnClip:
    """Clip number `index`, at times, size and shape drawn for it."""
    drawn = scene.draw_scene(level, seed=seed, index=index, split=split)
    rng = np.random.default_rng([level, seed, index, 7])
    width, height = CLIP_SIZES_PX[rng.integers(len(CLIP_SIZES_PX))]
    times = np.linspace(0.0, 1.0 - 1.0 / rng.integers(20, 90), N_FRAMES)
    frames = [_sampled(render.draw(drawn, time, height_px=height, width_px=width)) for time in times]
    labels = labels_of(drawn, times, side=IMAGE_SIZE_PX // PATCH_PX)
    return DrawnClip(drawn, float(rng.uniform(1.0, 4.0)), np.stack(frames), labels)


def _sampled(picture: np.ndarray) -> np.ndarray:
    """As the frames stage stores it and the model reads it: fitted, JPEG, squashed to a square."""
    fitted = Image.fromarray(fit(picture, IMAGE_SIZE_PX))
    stored = from_jpegs([to_jpeg(fitted, quality=FramesSettings().jpeg_quality)])
    return squash(stored, IMAGE_SIZE_PX)[0]


def _draw_range(arguments: tuple[int, int, int, int, str]) -> list[DrawnClip]:
    level, seed, start, stop, split = arguments
    return [draw_clip(level, seed, index, split) for index in range(start, stop)]


def draw_clips(level: int, *, seed: int, n: int, split: str, n_processes: int = 2) -> list[DrawnClip]:
    """`n` drawn clips of a split, the same for any number of processes."""
    chunk = 250
    jobs = [(level, seed, start, min(start + chunk, n), split) for start in range(0, n, chunk)]
    with ProcessPoolExecutor(n_processes) as pool:
        return [clip for part in pool.map(_draw_range, jobs) for clip in part]


def vision_batches(clips: list[DrawnClip], config: TrainConfig) -> Iterator[ClipBatch]:
    """Clips with a single object for the first `config.single` of the steps, all clips after."""
    single = [clip for clip in clips if [group.count for group in clip.scene.groups] == [1]]
    n_single = int(config.single * config.vision_steps)
    yield from islice(batches(single, n_clips=config.vision_clips, n_asked=0, seed=config.seed + 1), n_single)
    yield from batches(clips, n_clips=config.vision_clips, n_asked=0, seed=config.seed + 2)


def batches(clips: list[DrawnClip], *, n_clips: int, n_asked: int, seed: int) -> Iterator[ClipBatch]:
    """Endless batches: each clip with `n_asked` of its questions (half on motion), a summary or caption, and text-only prompts."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(clips))
        for start in range(0, len(order) - n_clips + 1, n_clips):
            chosen = [clips[i] for i in order[start : start + n_clips]]
            asked, plain = zip(*(_asked(clip.scene, rng, n_asked) for clip in chosen), strict=True)
            yield ClipBatch(
                frames=np.stack([clip.frames for clip in chosen]),
                timestamps_s=[list(np.linspace(0, clip.duration_s, N_FRAMES)) for clip in chosen],
                durations_s=[clip.duration_s for clip in chosen],
                asked=list(asked),
                texts=list(plain[: n_clips // 2]),
                labels={name: np.array([clip.labels.facts[name] for clip in chosen]) for name in chosen[0].labels.facts},
                places=np.stack([clip.labels.places for clip in chosen]),
                patches=np.stack([clip.labels.patches for clip in chosen]),
                offsets=np.stack([clip.labels.offsets for clip in chosen]),
            )


def _asked(one: scene.Scene, rng: np.random.Generator, n_asked: int) -> tuple[list[tuple[str, str]], tuple[str, str, str]]:
    """What is asked of a clip with its frames: (prompt, target); and one prompt without them: (context, prompt, target)."""
    questions = texts.questions(one, rng)
    order = [questions[i] for i in rng.permutation(len(questions))]
    moving = [question for question in order if question.family in texts.TEMPORAL]
    still = [question for question in order if question.family not in texts.TEMPORAL]
    picked = moving[: (n_asked + 1) // 2]
    picked += still[: n_asked - len(picked)]
    return [(one.question, one.answer) for one in picked] + [_telling(one, rng)], _text_only(one, questions, rng)


def _telling(one: scene.Scene, rng: np.random.Generator) -> tuple[str, str]:
    """A prompt for a summary or caption, with its target. The internalization instruction asks for a summary."""
    if rng.random() < 0.5:
        return str(rng.choice(texts.CAPTION_PROMPTS)), texts.caption(one)
    return str(rng.choice((*texts.SUMMARY_PROMPTS, prompts.INTERNALIZE))), texts.summary(one)


def _text_only(one: scene.Scene, asked: list[texts.Question], rng: np.random.Generator) -> tuple[str, str, str]:
    """A question over the summary as text, or, one time in three, over nothing."""
    question = asked[rng.integers(len(asked))]
    context = "" if rng.random() < 1 / 3 else texts.summary(one)
    return context, question.question, question.answer


def corpus(level: int) -> Iterator[str]:
    """Every word of the made world and of the prompts, as the tokenizer will meet it: after a space and at the start."""
    rng = np.random.default_rng(0)
    for index in range(2000):
        one = scene.draw_scene(level, seed=0, index=index, split="train")
        for text in (texts.summary(one), texts.caption(one)):
            yield from (text, f" {text}")
        for question in texts.questions(one, rng):
            yield from (question.question, f" {question.question}", f" {question.answer}")
    for _ in range(50):
        for text in (*texts.SUMMARY_PROMPTS, *texts.CAPTION_PROMPTS, prompts.INTERNALIZE):
            yield from (text, f" {text}")
        yield from (f" {num2words(number)}" for number in range(1, 13))
        yield from (f"{number:02d}" for number in range(60))


def run_train(output: Path, *, level: int = 1, seed: int = 0, answer_steps: int | None = None) -> None:
    """Train the small VLM on clips of a level and measure it. Raises BadInputError for an unknown level, or if `output` is there."""
    if level not in scene.LEVELS:
        raise BadInputError(f"level: got {level}, expected one of {', '.join(map(str, scene.LEVELS))}")
    if output.exists():
        raise BadInputError(f"{output} is there already: name a new folder")
    started = time.monotonic()
    torch.manual_seed(seed)
    config = TrainConfig(seed=seed) if answer_steps is None else TrainConfig(seed=seed, answer_steps=answer_steps)
    clips = draw_clips(level, seed=seed, n=N_CLIPS, split="train")
    say(f"{N_CLIPS} clips drawn in {time.monotonic() - started:.0f} s")
    tokenizer = build_tokenizer(corpus(level))
    model = build_model(tokenizer, seed=seed)
    width, vision_width = model.config.text_config.hidden_size, model.config.vision_config.hidden_size
    frame_heads = FrameHeads(
        d_text=width,
        d_vision=vision_width,
        n_classes=_sizes(frame_facts(level)),
        n_slots=n_slots(level),
        n_patch_classes=len(scene.SHAPES),
    )
    with _reporting("vision", config.vision_steps) as report:
        teach_vision(model, frame_heads, vision_batches(clips, config), config, report=report)
    heads = (frame_heads, ClipHeads(width, n_classes=_sizes(clip_facts(level)), n_slots=n_slots(level)))
    asked = batches(clips, n_clips=config.answer_clips, n_asked=config.n_asked, seed=config.seed + 3)
    with _reporting("answers", config.answer_steps) as report:
        teach_answers(model, tokenizer, heads, asked, config, report=report)
    asked = batches(clips, n_clips=config.answer_clips, n_asked=config.polish_asked, seed=config.seed + 4)
    with _reporting("polish", config.polish_steps) as report:
        polish(model, tokenizer, asked, config, report=report)
    minutes = (time.monotonic() - started) / 60
    save_vlm(model, tokenizer, output)
    record = {
        "command": f"video2lora tiny train --level {level} --seed {seed}" + ("" if answer_steps is None else f" --steps {answer_steps}"),
        "level": level,
        "settings": asdict(config),
        "n_clips": N_CLIPS,
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "minutes": round(minutes, 1),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "scores": measure(load_vlm(str(output)), level=level, n_clips=200),
    }
    (output / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record["scores"], indent=2))


def run_verify(model: str, *, n_clips: int) -> None:
    """Measure a small VLM again, on the level it was trained on, and print its scores. Raises BadInputError if there is no such model."""
    try:
        vlm = load_vlm(model)
    except ValueError as error:
        raise BadInputError(str(error)) from error
    record = Path(vlm_path(model)) / "training.json"
    try:
        level = json.loads(record.read_text())["level"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInputError(
            f"{record}: got {error!r}, expected the record that `video2lora tiny train` writes beside the weights"
        ) from error
    if level not in scene.LEVELS:
        raise BadInputError(f"{record}: level: got {level!r}, expected one of {', '.join(map(str, scene.LEVELS))}")
    print(json.dumps(measure(vlm, level=level, n_clips=n_clips), indent=2))


def measure(vlm: FrozenVLM, *, level: int, n_clips: int) -> dict[str, dict[str, float]]:
    """Exact match by question family on real test clips: with the video in context, and blind."""
    settings = WorldSettings(level=level, seed=1, n_train=1, n_validation=1, n_test=n_clips)
    right: dict[str, dict[str, list[float]]] = {"video": defaultdict(list), "blind": defaultdict(list)}
    with tempfile.TemporaryDirectory() as folder:
        made_clips.write_clips(settings, Path(folder))
        asked: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for line in (Path(folder) / "questions.jsonl").read_text().splitlines():
            row = json.loads(line)
            asked[row["uri"]].append(row)
        uris = sorted(uri for uri in asked if "test" in uri)
        with counting("measure", "clips", len(uris)) as counter:
            for uri in uris:
                frames = decode(f"{folder}/{uri}", Sampling(policy="uniform", n_frames=N_FRAMES), longest_edge_px=IMAGE_SIZE_PX)
                questions = [str(row["question"]) for row in asked[uri]]
                tokens = vlm.frame_tokens([frames]).repeat(len(questions), 1, 1)
                seen = vlm.generate(vlm.video_batch([frames] * len(questions), questions), max_new_tokens=8, frame_tokens=tokens)
                blind = vlm.generate(vlm.question_batch(questions), max_new_tokens=8)
                for row, with_video, without in zip(asked[uri], seen, blind, strict=True):
                    right["video"][str(row["style"])].append(exact_match(with_video.text, row["references"]))
                    right["blind"][str(row["style"])].append(exact_match(without.text, row["references"]))
                counter.advance()
    return {system: _means(by_family) for system, by_family in right.items()}


def _means(by_family: dict[str, list[float]]) -> dict[str, float]:
    means = {family: round(float(np.mean(values)), 4) for family, values in by_family.items()}
    return {"all": round(float(np.mean([value for values in by_family.values() for value in values])), 4), **means}


def _sizes(facts: dict[str, tuple[str, ...]]) -> dict[str, int]:
    return {name: len(values) for name, values in facts.items()}


@contextmanager
def _reporting(what: str, n_steps: int) -> Iterator[Callable[[int, float], None]]:
    """Progress of one part, with its loss smoothed over about 30 steps."""
    smooth = 0.0
    with counting(what, "steps", n_steps) as counter:

        def report(step: int, loss: float) -> None:
            nonlocal smooth
            smooth = loss if step == 0 else 0.97 * smooth + 0.03 * loss
            counter.advance(note=f"loss {smooth:.3f}")

        yield report
