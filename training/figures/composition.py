"""Section 5.6 of the paper: a video read in chunks, each its own adapter, and the adapters composed; 1 to 32 chunks, with the controls.

    composed       frames_in_chunk frames for each of n chunks, one chunk after the other, their deltas summed; the static adapter once
    reversed       the same chunks the other way round, and shuffled: the sum has no order, so they must answer alike (up to rounding)
    half           the first half of the chunks alone: what composing the rest is worth
    one_pass       the frames of all chunks in one pass, where they fit the VLM's positions
    whole          frames_in_chunk frames of the whole video in one adapter, which is what the paper compares with

The paper has two chunks, `composed` and `whole`. Frames are chosen once over the whole video and then cut into chunks, which differ by one
frame at most, so that no frame counts twice. A clip of fewer frames than chunks has a chunk for each frame.
"""

import random
from collections.abc import Sequence
from typing import Any

from infra.config import Recipe
from infra.errors import BadInputError
from training.figures import scores
from training.figures.bench import Bench, Clip, Opened
from training.videos import chunks
from video2lora.lora import Lora, compose, stack
from video2lora.video import Frames

PAIRS = (("composed", "whole"), ("composed", "one_pass"), ("composed", "half"))
SYSTEMS = ("composed", "whole", "one_pass", "half", "reversed", "shuffled")


class Composition:
    table = "composition"
    settings: tuple[str, ...] = ("n_chunks", "frames_in_chunk")

    def cells(self, recipe: Recipe, clips: Sequence[Clip]) -> list[str]:
        return [f"{n}-chunks" for n in sorted(recipe.figures.n_chunks)]

    def measure(self, bench: Bench, cell: str) -> dict[str, Any]:
        n, settings = int(cell.split("-")[0]), bench.recipe.figures
        sampling = bench.using.sampling
        left_out, rows, n_chunks, n_frames, n_one_pass = list(bench.left_out), [], [], [], 0

        def read(file: Opened) -> tuple[Frames, Frames]:
            of_all, of_one = (sampling.model_copy(update={"n_frames": k * settings.frames_in_chunk}) for k in (n, 1))
            edge_px = bench.using.longest_edge_px
            together = file.frames(of_all, longest_edge_px=edge_px)
            return together, together if n == 1 else file.frames(of_one, longest_edge_px=edge_px)

        for clip, (together, whole) in bench.read(read, left_out):
            parts = chunks(together, n)
            made = [generated(bench, part) for part in parts]
            loras = {"composed": composed(bench, made)}
            if len(made) > 1:
                order = random.Random(f"{settings.seed}/{clip.video_id}").sample(made, len(made))
                loras |= {"reversed": composed(bench, made[::-1]), "shuffled": composed(bench, order)}
                loras |= {"half": composed(bench, made[: len(made) // 2]), "whole": bench.with_static(generated(bench, whole))}
                if bench.is_read_whole(together):
                    loras["one_pass"] = bench.with_static(bench.generated(together))
                    n_one_pass += 1
            for system, lora in loras.items():
                rows += bench.answers(clip, system, lora=lora)
            n_chunks.append(len(parts))
            n_frames.append(sum(len(part.images) for part in parts))
        systems = [one for one in SYSTEMS if any(row["system"] == one for row in rows)]
        return {
            "n_chunks": n,
            "n_videos": len(n_chunks),
            "chunks": scores.spread(n_chunks),
            "frames": scores.spread(n_frames),
            "n_one_pass_fits": n_one_pass,
            "systems": {one: scores.of_system(rows, one) for one in systems},
            "same_answers": {one: same_answers(rows, one) for one in ("reversed", "shuffled") if one in systems},
            "differences": scores.differences(rows, PAIRS, bench.recipe.evaluation),
            "styles": scores.by_style(rows, systems),
            "left_out": left_out,
            "rows": rows,
        }

    def numbers(self, recipe: Recipe, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"cells": [{name: value for name, value in cell.items() if name not in ("rows", "left_out")} for cell in cells]}


def composed(bench: Bench, made: Sequence[Lora]) -> Lora:
    """The sum of the chunks' deltas, and the static adapter's once."""
    return bench.with_static(compose(stack(made), [len(made)]))


def generated(bench: Bench, chunk: Frames) -> Lora:
    """Its adapter, without the static one. Raises BadInputError where it does not fit the VLM."""
    try:
        return bench.generated(chunk)
    except ValueError as error:
        raise BadInputError(f"recipe: figures.frames_in_chunk: got {bench.recipe.figures.frames_in_chunk}: {error}") from error


def same_answers(rows: Sequence[dict[str, Any]], system: str) -> float | None:
    """Share of the questions to which the system says word for word what `composed` says."""
    said = {row["question_id"]: row["answer"] for row in rows if row["system"] == "composed"}
    return scores.mean([float(row["answer"] == said[row["question_id"]]) for row in rows if row["system"] == system])
