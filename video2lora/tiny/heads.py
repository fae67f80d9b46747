"""What the small VLM is asked in its training beside answers: linear heads on frames, patches and the video, thrown away afterwards.

A head is trained with what it reads, so what it asks for becomes linear in the states of that place: shapes in the patches, places in
a frame's tokens and in their mean, motion at the end of each frame, all facts at the end of the video.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from video2lora.tiny.build import N_IMAGE_TOKENS

IGNORE = -100
# Weights that bring the parts of a loss to about the same size where training starts.
PLACE_WEIGHT, OFFSET_WEIGHT, BACKGROUND_WEIGHT = 3.0, 50.0, 0.2
MOVE_SCALE = 8.0  # of frame widths, to about 1: a third of a path is an eighth


@dataclass(frozen=True)
class ClipBatch:
    """Clips with what is asked of them. `labels` are the clip's facts; `places`, in [0, 1), where in a frame without borders each of
    `n_slots` things is, NaN for one that is not there."""

    frames: UInt8[np.ndarray, "batch n_frames height width 3"]
    timestamps_s: list[list[float]]
    durations_s: list[float]
    asked: list[list[tuple[str, str]]]  # per clip: (prompt, target)
    texts: list[tuple[str, str, str]]  # without frames: (context or "", prompt, target)
    labels: dict[str, Int[np.ndarray, " batch"]]
    places: Float[np.ndarray, "batch n_frames n_slots 2"]
    patches: Int[np.ndarray, "batch n_frames n_patches"]  # class of what covers each patch, or -100
    offsets: Float[np.ndarray, "batch n_frames n_patches 2"]  # from the middle of that thing


@dataclass(frozen=True)
class VideoStates:
    """Of the language model over a clip's prefix: at its end, before the last block; at the end of each frame, after blocks 1 and 2."""

    whole: Float[Tensor, "batch d"]
    frames_1: Float[Tensor, "batch n_frames d"]
    frames_2: Float[Tensor, "batch n_frames d"]


class FactHeads(nn.Module):
    """Linear heads, one per fact."""

    def __init__(self, width: int, n_classes: dict[str, int]) -> None:
        super().__init__()
        self.facts = nn.ModuleDict({name: nn.Linear(width, n) for name, n in n_classes.items()})

    def losses(self, x: Tensor, labels: dict[str, Tensor]) -> list[Tensor]:
        return [functional.cross_entropy(head(x), labels[name]) for name, head in self.facts.items()]


class FrameHeads(nn.Module):
    """What a frame's tokens and patches are asked in part 1."""

    def __init__(self, *, d_text: int, d_vision: int, n_classes: dict[str, int], n_slots: int, n_patch_classes: int) -> None:
        super().__init__()
        self.frame = FactHeads(N_IMAGE_TOKENS * d_text, n_classes)
        self.place, self.place_of_mean = nn.Linear(N_IMAGE_TOKENS * d_text, n_slots * 4), nn.Linear(d_text, n_slots * 4)
        self.patch = nn.Linear(d_vision, n_patch_classes + 1)
        self.offset, self.patch_place = nn.Linear(d_vision, 2), nn.Linear(d_vision, 4)

    def loss(self, patches: Tensor, tokens: Tensor, batch: ClipBatch) -> Float[Tensor, ""]:
        """`patches` [n, n_patches, d_vision] and `tokens` [n, n_image_tokens, d_text] of all frames, clip by clip."""
        n_frames = batch.frames.shape[1]
        labels = {name: torch.from_numpy(batch.labels[name]).repeat_interleave(n_frames) for name in self.frame.facts}
        flat = tokens.flatten(1)
        places = _circular(torch.from_numpy(batch.places).float().flatten(0, 1))
        place = _loss_of_known(self.place(flat), places) + _loss_of_known(self.place_of_mean(tokens.mean(1)), places)
        told = torch.stack([*self.frame.losses(flat, labels), PLACE_WEIGHT * place]).mean()
        shown = torch.from_numpy(batch.patches).flatten(0, 1)
        covered = shown != IGNORE
        weight = torch.ones(self.patch.out_features)
        weight[-1] = BACKGROUND_WEIGHT  # most patches are bare, and there is least to learn from them
        shown = shown.masked_fill(~covered, self.patch.out_features - 1)
        dense = functional.cross_entropy(self.patch(patches).flatten(0, 1), shown.flatten(), weight=weight)
        offsets = torch.from_numpy(batch.offsets).float().flatten(0, 1)
        side = math.isqrt(patches.shape[1])
        middles = (torch.cartesian_prod(torch.arange(side), torch.arange(side)).flip(1) + 0.5) / side
        place_of_covering = _circular((middles - offsets)[..., None, :])
        dense = dense + functional.mse_loss(self.patch_place(patches)[covered], place_of_covering[covered])
        return told + dense + OFFSET_WEIGHT * functional.mse_loss(self.offset(patches)[covered], offsets[covered])


class ClipHeads(nn.Module):
    """What the language model is asked about a clip in part 2, beside the answers."""

    def __init__(self, width: int, *, n_classes: dict[str, int], n_slots: int) -> None:
        super().__init__()
        self.facts = FactHeads(width, n_classes)
        self.here, self.before = nn.Linear(width, n_slots * 4), nn.Linear(width, n_slots * 4)
        self.moves = nn.Linear(width, n_slots * 2)

    def loss(self, video: VideoStates, batch: ClipBatch) -> Float[Tensor, ""]:
        labels = {name: torch.from_numpy(batch.labels[name]) for name in self.facts.facts}
        told = torch.stack(self.facts.losses(_normed(video.whole), labels)).mean()
        places = torch.from_numpy(batch.places).float()
        here = _loss_of_known(self.here(_normed(video.frames_1)), _circular(places))
        later = _normed(video.frames_2[:, 1:])
        before = _loss_of_known(self.before(later), _circular(places[:, :-1]))
        steps = MOVE_SCALE * ((places[:, 1:] - places[:, :-1] + 0.5) % 1.0 - 0.5).flatten(2)  # the shorter way, without borders
        return told + here + before + _loss_of_known(self.moves(later), steps)


def _normed(x: Tensor) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:])


def _circular(places: Float[Tensor, "*batch n_slots 2"]) -> Float[Tensor, "*batch n_values"]:
    """Cosines and sines of places as angles: the two sides of a frame without borders are one place."""
    angles = 2 * math.pi * places
    return torch.stack([angles.cos(), angles.sin()], -1).flatten(-3)


def _loss_of_known(found: Tensor, wanted: Tensor) -> Float[Tensor, ""]:
    """Mean squared error where `wanted` is not NaN."""
    known = ~wanted.isnan()
    return functional.mse_loss(found[known], wanted[known])
