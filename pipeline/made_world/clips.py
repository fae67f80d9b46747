"""Made world -> video files: the clips of each split as real H.264 mp4, with their questions and their ground truth.

Reads: nothing. Writes, in a folder:
    made.json         the settings; other settings are refused
    SPLIT/00000.mp4   clips of varied length, rate, size, number of B-frames and GOP length, drawn by a seed per clip
    clips.jsonl       one row per clip: uri (relative), split; SOURCE of the `manifest` stage
    questions.jsonl   every question on every clip: uri, question, references, style (its family), benchmark
    truth.jsonl       uri, summary, caption
Command: part of `video2lora demo`, or `python -m pipeline.made_world.clips demo`. Cost: about 40 ms of a core per clip.

The same settings give the same bytes, with the same libx264: it runs on one thread, and nothing in the file tells the
time. Every file is written new, then named, so a killed run goes on behind the clips that are there.
"""

import io
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import fsspec
import numpy as np

from infra.config import Recipe, Where, WorldSettings, load_recipe, load_where
from infra.errors import BadInputError, MadeFromOtherError, StageFailedError
from infra.objects import read_json, write_new
from infra.progress import counting, say
from pipeline.made_world import render, texts
from pipeline.made_world.scene import SPLITS, Scene, draw_scene

CLIP_SIZES_PX = ((96, 96), (128, 96), (96, 128), (144, 112), (160, 120))  # width, height; even, as 4:2:0 video asks
LENGTH_S = (1.0, 4.0)
RATES_PER_S = (
    Fraction(10),
    Fraction(12),
    Fraction(15),
    Fraction(20),
    Fraction(24),
    Fraction(25),
    Fraction(30000, 1001),
)
GOP_FRAMES = (6, 60)
MAX_B_FRAMES = 3
X264: dict[str, object] = {
    "preset": "superfast",
    "crf": "12",
    "threads": "1",
}  # 15 kB a clip; edges stay sharp, colours within 2 of 255
BENCHMARK = "made_world"


@dataclass(frozen=True)
class Film:
    """How a scene is filmed. `n_frames` at `rate_per_s`; `gop_frames` from one keyframe to the next at most."""

    width_px: int
    height_px: int
    n_frames: int
    rate_per_s: Fraction
    n_b_frames: int
    gop_frames: int


@dataclass(frozen=True)
class Clip:
    """Number `index` of a split; all about it follows from these four."""

    level: int
    seed: int
    split: str
    index: int

    @property
    def uri(self) -> str:
        return f"{self.split}/{self.index:05d}.mp4"

    def scene(self) -> Scene:
        return draw_scene(self.level, seed=self.seed, index=self.index, split=self.split)

    def rng(self, stream: int) -> np.random.Generator:
        """Independent of the scene's own numbers, and of every other stream's."""
        return np.random.default_rng([self.level, self.seed, SPLITS.index(self.split), self.index, stream])

    def film(self) -> Film:
        rng = self.rng(1)
        width_px, height_px = CLIP_SIZES_PX[rng.integers(len(CLIP_SIZES_PX))]
        rate_per_s = RATES_PER_S[rng.integers(len(RATES_PER_S))]
        return Film(
            width_px=width_px,
            height_px=height_px,
            n_frames=round(rng.uniform(*LENGTH_S) * rate_per_s),
            rate_per_s=rate_per_s,
            n_b_frames=int(rng.integers(MAX_B_FRAMES + 1)),
            gop_frames=int(rng.integers(GOP_FRAMES[0], GOP_FRAMES[1] + 1)),
        )

    def questions(self) -> list[texts.Question]:
        return texts.questions(self.scene(), self.rng(2))


def clips_of(settings: WorldSettings) -> list[Clip]:
    """Every clip of the world, split by split."""
    sizes = {"train": settings.n_train, "validation": settings.n_validation, "test": settings.n_test}
    return [Clip(settings.level, settings.seed, split, index) for split in SPLITS for index in range(sizes[split])]


def pictures(clip: Clip) -> Iterator[np.ndarray]:
    """The frames, uint8 [height, width, 3]. Frame i of n shows time i / n of the scene: from 0 to nearly 1."""
    scene, film = clip.scene(), clip.film()
    for i in range(film.n_frames):
        yield render.draw(scene, i / film.n_frames, height_px=film.height_px, width_px=film.width_px)


def encode(clip: Clip) -> bytes:
    """The clip as an mp4 file."""
    film = clip.film()
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=film.rate_per_s)
        stream.width, stream.height, stream.pix_fmt = film.width_px, film.height_px, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = X264 | {"bf": str(film.n_b_frames), "g": str(film.gop_frames)}
        for picture in pictures(clip):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def write_clips(settings: WorldSettings, folder: Path | str, *, n_processes: int = 2) -> bool:
    """Write what is not there yet; False if all was. `folder` may be an s3:// address.

    Raises MadeFromOtherError, StorageError, BadInputError for a level that cannot be drawn.
    """
    folder = str(folder).rstrip("/")
    _claim(settings, folder)
    clips = clips_of(settings)
    there = _names_in(folder)
    missing = [clip for clip in clips if clip.uri not in there]
    if not missing and {"clips.jsonl", "questions.jsonl", "truth.jsonl"} <= there:
        return False
    with counting("made world", "clips", len(missing)) as counter:
        for _ in _written(missing, folder, n_processes=n_processes):
            counter.advance()
    truths = ((clip, clip.scene()) for clip in clips)
    _write_jsonl(f"{folder}/truth.jsonl", [_truth_row(clip, scene) for clip, scene in truths])
    _write_jsonl(f"{folder}/questions.jsonl", [_question_row(clip, one) for clip in clips for one in clip.questions()])
    _write_jsonl(f"{folder}/clips.jsonl", [{"uri": clip.uri, "split": clip.split} for clip in clips])
    return True


def run(recipe: Recipe, where: Where) -> str:
    """The recipe's made world in `clips` of the data folder."""
    if recipe.world is None:
        raise BadInputError("recipe: world: not there, expected the settings of a made world of clips")
    folder = f"{where.data.rstrip('/')}/clips"
    if not write_clips(recipe.world, folder, n_processes=where.n_cpus or len(os.sched_getaffinity(0))):
        say(f"made world: complete in {folder}, nothing to do")
    return f"made world: {len(clips_of(recipe.world))} clips in {folder}"


def main() -> None:
    print(run(load_recipe(sys.argv[1]), load_where()))


def _claim(settings: WorldSettings, folder: str) -> None:
    """Mark the folder as these settings'. Raises MadeFromOtherError if it is another's, BadInputError for a wrong level."""
    try:
        draw_scene(settings.level, seed=settings.seed, index=0, split="train")
    except ValueError as error:
        raise BadInputError(f"recipe: world.{error}") from error
    wanted = settings.model_dump(mode="json")
    made = {"stage": "made_world", "world": wanted}
    marker = f"{folder}/made.json"
    if write_new(marker, json.dumps(made, indent=1, sort_keys=True).encode()):
        return
    there = read_json(marker)
    if there != made:
        world = there.get("world", {}) if isinstance(there, dict) else {}
        differences = [f"world.{name}: there {world.get(name)}, here {value}" for name, value in wanted.items()
                       if world.get(name) != value]  # fmt: skip
        raise MadeFromOtherError(
            f"{folder} was made from something else: {'; '.join(differences) or 'see made.json there'}. "
            "Use another data folder (VIDEO2LORA_DATA), or remove this one to make it anew."
        )


def _names_in(folder: str) -> set[str]:
    """Files there, relative to the folder. Files in the writing have other names."""
    fs, inner = fsspec.core.url_to_fs(folder)
    fs.invalidate_cache()
    return {path.removeprefix(inner).lstrip("/") for path in fs.find(inner)}


def _written(clips: list[Clip], folder: str, *, n_processes: int) -> Iterator[None]:
    """One item for each clip that has been written."""
    if not clips:
        return
    # Processes, since drawing holds Python's lock; spawned, since a fork of a process with threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_processes, mp_context=context) as pool:
        try:
            yield from pool.map(_write_clip, clips, [folder] * len(clips), chunksize=4)
        except BrokenProcessPool as error:
            raise StageFailedError(f"made world: a process ended while drawing ({error}); run again, it continues") from error


def _write_clip(clip: Clip, folder: str) -> None:
    write_new(f"{folder}/{clip.uri}", encode(clip))


def _truth_row(clip: Clip, scene: Scene) -> dict[str, Any]:
    return {"uri": clip.uri, "summary": texts.summary(scene), "caption": texts.caption(scene)}


def _question_row(clip: Clip, one: texts.Question) -> dict[str, Any]:
    row = {"uri": clip.uri, "question": one.question, "references": [one.answer]}
    return row | {"style": one.family, "benchmark": BENCHMARK}


def _write_jsonl(path: str, rows: list[dict[str, Any]]) -> None:
    write_new(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


if __name__ == "__main__":
    main()
