"""Appendix C of the paper: which directions of the generated adapter's rank matter. Some are kept, the rest left out, and it is asked.

A direction is one row of the rank in all layers and modules together. Its strength is the sum over them of ||a|| ||b||, the Frobenius norm
of what it adds. The paper does not say whether the static adapter was in its models then, and its full adapter scores half of what it has
in table 1; so every cell is measured twice, with the static adapter and without.
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from infra.config import Recipe
from training.figures import scores
from training.figures.bench import Bench, Clip, Opened
from video2lora.lora import Lora
from video2lora.video import Frames

SYSTEMS = ("generated", "with_static")


class Pruning:
    table = "pruning"
    settings: tuple[str, ...] = ("kept_directions",)

    def __init__(self) -> None:
        self.loras: dict[str, Lora] = {}  # of each clip, made in the first cell of a run
        self.left_out: list[dict[str, Any]] = []

    def cells(self, recipe: Recipe, clips: Sequence[Clip]) -> list[str]:
        """From the recipe alone. Of an odd rank, bottom and random keep the smaller half."""
        r = recipe.hypernetwork.r
        top = [f"top-{k}" for k in sorted(recipe.figures.kept_directions) if k < r]
        halves = [f"bottom-{r // 2}", f"random-{r // 2}"] if r > 1 else []
        return ["none", *top, "all", *halves, *(["but-the-strongest"] if r > 1 else [])]

    def measure(self, bench: Bench, cell: str) -> dict[str, Any]:
        if not self.loras:
            self._internalize(bench)
        rows, first, orders = [], Counter[int](), set()
        has_static = bench.using.hypernetwork.config.static_adapter
        for clip in bench.clips:
            if clip.video_id not in self.loras:
                continue
            lora = self.loras[clip.video_id]
            ranked = strength(lora).argsort(descending=True, stable=True).tolist()
            first[ranked[0]] += 1
            orders.add(tuple(ranked))
            kept = chosen(cell, ranked, seed=f"{bench.recipe.figures.seed}/{clip.video_id}")
            pruned = directions(lora, kept) if kept else None
            rows += bench.answers(clip, "generated", lora=pruned)
            if has_static:
                static = bench.using.hypernetwork.static_lora() if pruned is None else bench.with_static(pruned)
                rows += bench.answers(clip, "with_static", lora=static)
        systems = SYSTEMS if has_static else SYSTEMS[:1]
        return {
            "kept": cell,
            "n_kept": len(chosen(cell, list(range(bench.using.hypernetwork.config.r)), seed="")),
            "n_videos": len(self.loras),
            "systems": {one: scores.of_system(rows, one) for one in systems},
            "styles": scores.by_style(rows, systems),
            "strongest": {str(direction): n for direction, n in first.most_common()},
            "n_orders": len(orders),
            "left_out": [*bench.left_out, *self.left_out],
            "rows": rows,
        }

    def numbers(self, recipe: Recipe, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """With the difference of each cell to the whole adapter's."""
        whole = next(cell for cell in cells if cell["kept"] == "all")
        found = []
        for cell in cells:
            against = {}
            for system in cell["systems"]:
                both = [row | {"system": "pruned"} for row in cell["rows"] if row["system"] == system]
                both += [row | {"system": "all"} for row in whole["rows"] if row["system"] == system]
                against[system] = scores.difference(both, ("pruned", "all"), recipe.evaluation)
            found.append({name: value for name, value in cell.items() if name not in ("rows", "left_out")} | {"to_all": against})
        return {"cells": found}

    def _internalize(self, bench: Bench) -> None:
        sampling, edge_px = bench.using.sampling, bench.using.longest_edge_px
        self.left_out = []

        def read(file: Opened) -> Frames:
            return file.frames(sampling, longest_edge_px=edge_px)

        for clip, frames in bench.read(read, self.left_out):
            if bench.is_read_whole(frames):
                self.loras[clip.video_id] = bench.generated(frames)
            else:
                why = f"{len(frames.images)} frames do not fit the VLM's {bench.vlm.n_positions} positions"
                self.left_out.append({"key": clip.video_id, "reason": "prompt_too_long", "detail": why})


def strength(lora: Lora) -> Float[Tensor, " r"]:
    """Of each direction of one adapter: the sum over modules and layers of ||a|| ||b||."""
    norms = [lora.lora_a[name].float().norm(dim=-1) * lora.lora_b[name].float().norm(dim=-2) for name in lora.lora_a]
    return torch.stack(norms).sum((0, 1, 2))


def chosen(cell: str, ranked: Sequence[int], *, seed: str) -> list[int]:
    """The directions that a cell keeps, of those ranked by strength."""
    kind, _, n = cell.partition("-")
    match kind:
        case "none":
            return []
        case "all":
            return list(ranked)
        case "top":
            return list(ranked[: int(n)])
        case "bottom":
            return list(ranked[len(ranked) - int(n) :])
        case "random":
            return random.Random(seed).sample(sorted(ranked), int(n))
        case _:
            return list(ranked[1:])


def directions(lora: Lora, kept: Sequence[int]) -> Lora:
    """These directions of the rank alone."""
    return Lora(
        lora_a={name: a[:, :, list(kept)] for name, a in lora.lora_a.items()},
        lora_b={name: b[..., list(kept)] for name, b in lora.lora_b.items()},
        scaling=lora.scaling,
    )
