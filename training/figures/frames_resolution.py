"""Figure 3 of the paper: more frames and larger ones than the hypernetwork was trained with (12 at 384 px), against the base.

A cell is a cap on the number of frames and a longest edge. The paper's caps are caps: at one frame a second its clips end long before 1,024
(its own token counts say about 40 frames). So each cell says how many frames its clips really had, and how many were shorter than the cap.

Where frames, question and answer pass the VLM's positions the base does not fit: the paper asks it all the same, and shows that it
breaks. Here it is not asked, and `sampled` (answer.sampled_frames of those frames) stands in for it, the fair rival there; a question too
long for those as well is left out. Ours reads more than `frames_per_chunk` frames in chunks, whose adapters are composed. A SmolVLM here
squashes every frame to one square (no tiles), so beyond its own size a larger edge costs decoding and no token; the paper's frames of
1,024 px were 5 to 7 tiles each.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from infra.config import Recipe
from infra.errors import BadInputError
from training.figures import scores
from training.figures.bench import Bench, Clip, Opened, Row
from training.videos import evenly
from video2lora.api import internalize_batch
from video2lora.lora import Lora
from video2lora.video import Frames

PAIRS = (("ours", "base"), ("ours", "sampled"))


class Sweep:
    table = "sweep"
    settings: tuple[str, ...] = ("frame_caps", "longest_edges_px", "frames_per_chunk", "n_timed", "n_rounds")

    def cells(self, recipe: Recipe, clips: Sequence[Clip]) -> list[str]:
        """Small ones first: what is broken is seen early."""
        edges_px = sorted(recipe.figures.longest_edges_px)
        return [f"{cap}-frames-{edge_px}px" for cap in sorted(recipe.figures.frame_caps) for edge_px in edges_px]

    def measure(self, bench: Bench, cell: str) -> dict[str, Any]:
        cap, edge_px = int(cell.split("-")[0]), int(cell.split("-")[2].removesuffix("px"))
        settings = bench.recipe.figures
        sampling = bench.using.sampling.model_copy(update={"n_frames": cap})
        left_out, rows, n_frames, n_chunks, n_fit = list(bench.left_out), [], [], [], 0
        times_s: dict[str, list[float]] = {}
        too_long: list[Row] = []
        has_room: dict[bool, list[bool]] = {True: [], False: []}  # of each question; True: answer.sampled_frames are fewer than its clip's

        def read(file: Opened) -> Frames:
            return file.frames(sampling, longest_edge_px=edge_px)

        for number, (clip, frames) in enumerate(bench.read(read, left_out)):
            fewer = evenly(frames, bench.recipe.answer.sampled_frames)
            whole, reduced = as_it_fits(bench, clip, frames, fewer)
            asked = replace(clip, questions=(*whole.questions, *reduced.questions))
            too_long += [no_room(bench, row, fewer) for row in clip.questions if row not in asked.questions]
            has_room[len(fewer.images) < len(frames.images)] += [row in asked.questions for row in clip.questions]
            if not asked.questions:
                continue
            lora, fits = adapter(bench, frames), not reduced.questions
            of_whole = bench.answers(whole, "sampled", frames=frames)  # these are the base's own
            rows += [*of_whole, *(row | {"system": "base"} for row in of_whole)]
            rows += [*bench.answers(reduced, "sampled", frames=fewer), *bench.answers(asked, "ours", lora=lora)]
            n_frames.append(len(frames.images))
            n_chunks.append(-(-len(frames.images) // settings.frames_per_chunk))
            n_fit += fits
            if number < settings.n_timed:
                shown = frames if whole.questions else fewer
                for _ in range(settings.n_rounds + 1):  # the first warms up
                    base_s = bench.first_token_s(asked.questions[0], frames=shown)
                    ours_s = bench.first_token_s(asked.questions[0], lora=lora)
                    of_base = {"base": base_s} if whole.questions else {}
                    for system, seconds in {"sampled": base_s, "ours": ours_s, **of_base}.items():
                        times_s.setdefault(f"{clip.video_id}/{system}", []).append(seconds)
        tried = has_room[True] or has_room[False]
        if tried and not any(tried):
            raise BadInputError(f"recipe: answer.sampled_frames: {too_long[-1]['detail']}; ask for fewer")
        if n_fit == len(n_frames):
            rows = [row for row in rows if row["system"] != "sampled"]  # stands in for nothing
        systems = [one for one in ("base", "sampled", "ours") if any(row["system"] == one for row in rows)]
        warm = {one: [s for key, own in times_s.items() if key.endswith(f"/{one}") for s in own[1:]] for one in systems}
        return {
            "frame_cap": cap,
            "longest_edge_px": edge_px,
            "n_videos": len(n_frames),
            "frames": scores.spread(n_frames),
            "n_below_cap": sum(n < cap for n in n_frames),
            "n_base_fits": n_fit,
            "n_chunks": scores.spread(n_chunks),
            "systems": {one: scores.of_system(rows, one, times_s=warm[one]) for one in systems},
            "differences": scores.differences(rows, PAIRS, bench.recipe.evaluation),
            "left_out": left_out + too_long,
            "rows": rows,
        }

    def numbers(self, recipe: Recipe, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"cells": [{name: value for name, value in cell.items() if name not in ("rows", "left_out")} for cell in cells]}


def as_it_fits(bench: Bench, clip: Clip, frames: Frames, fewer: Frames) -> tuple[Clip, Clip]:
    """The clip with the questions that fit beside all frames, and with those that fit only beside fewer of them."""
    whole = tuple(row for row in clip.questions if bench.fits(frames, [row]))
    reduced = tuple(row for row in clip.questions if row not in whole and bench.fits(fewer, [row]))
    return replace(clip, questions=whole), replace(clip, questions=reduced)


def no_room(bench: Bench, question: Row, fewer: Frames) -> Row:
    """Why a question is left out that does not fit beside these frames either."""
    why = f"{len(fewer.images)} frames, a question and its answer do not fit the {bench.vlm.n_positions} positions of the VLM"
    return {"key": question["question_id"], "reason": "prompt_too_long", "detail": why}


def adapter(bench: Bench, frames: Frames) -> Lora:
    """Of as few chunks as hold all frames; static adapter included. Raises BadInputError where a chunk does not fit the VLM."""
    size = bench.recipe.figures.frames_per_chunk
    try:
        return internalize_batch([frames], using=bench.using, video_ids=[""], frames_per_chunk=size)[0].lora
    except ValueError as error:
        raise BadInputError(f"recipe: figures.frames_per_chunk: got {size}: {error}") from error
