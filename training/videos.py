"""A row of `frames` -> a video as the systems that answer know it: its frames in context, and its adapters, each made once.

An adapter is made of the whole video in one pass, as in the paper, where its frames fit the VLM's positions; else in as few chunks as fit,
composed (`video2lora.lora.compose`, paper 5.6: deltas are summed, in any order). `composed` is at least `n_chunks` chunks, of sizes that
differ by one frame at most, and one for each frame of a video of fewer frames. The static adapter is added once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from infra.errors import BadInputError, StageFailedError
from infra.evaluation_config import AnswerSettings
from video2lora import prompts
from video2lora.checkpoint import load_hypernetwork, read_metadata
from video2lora.hypernetwork import Hypernetwork
from video2lora.jpeg import from_jpegs
from video2lora.lora import Lora, compose, stack
from video2lora.video import Frames
from video2lora.vlm import FrozenVLM


@dataclass(frozen=True)
class Shown:
    """Frames as they stand in a prompt, and their visual tokens."""

    frames: Frames
    tokens: Float[Tensor, "n_pictures n_image_tokens d_vlm"]


@dataclass(frozen=True)
class Video:
    """`fewer` are the frames of `sampled` where all of them do not fit; the same object as `whole` where there are not more of them."""

    whole: Shown
    fewer: Shown
    loras: Mapping[str, Lora]  # of ours, composed and champion, as far as a system needs them; static adapter included


@dataclass(frozen=True)
class Reader:
    """Makes videos out of rows, with all that the systems of these settings need."""

    vlm: FrozenVLM
    hypernetwork: Hypernetwork
    champion: Hypernetwork | None
    settings: AnswerSettings

    @torch.no_grad()
    def __call__(self, row: Mapping[str, Any]) -> Video:
        """Raises BadInputError for frames that the VLM cannot read, StageFailedError for a damaged picture."""
        frames, systems = frames_of(row), set(self.settings.systems)
        whole = fewer = Shown(frames, self.vlm.frame_tokens([frames]))
        if "sampled" in systems and len(frames.images) > self.settings.sampled_frames:
            thinned = evenly(frames, self.settings.sampled_frames)
            fewer = Shown(thinned, self.vlm.frame_tokens([thinned]))
        loras = {}
        if systems & {"ours", "merged", "other_video"}:
            loras["ours"] = self._adapter(self.hypernetwork, whole, n_chunks=1)
        if "composed" in systems:
            loras["composed"] = self._adapter(self.hypernetwork, whole, n_chunks=self.settings.n_chunks)
        if self.champion is not None:
            loras["champion"] = self._adapter(self.champion, whole, n_chunks=1)
        return Video(whole, fewer, loras)

    def _adapter(self, hypernetwork: Hypernetwork, whole: Shown, *, n_chunks: int) -> Lora:
        """Of at least so many chunks."""
        opens_answer = hypernetwork.config.opens_answer
        parts = self._that_fit(whole.frames, n_chunks, opens_answer=opens_answer)
        made = []
        for part in parts:
            known = whole.tokens if len(parts) == 1 else None  # not cut out of the whole's: some VLMs see frames in pairs
            features = self.vlm.features([part], opens_answer=opens_answer, frame_tokens=known)
            made.append(hypernetwork(features.hidden, features.mask))
        return hypernetwork.with_static(compose(stack(made), [len(made)]))

    def _that_fit(self, frames: Frames, n_chunks: int, *, opens_answer: bool) -> list[Frames]:
        """As few chunks as each fit the VLM's positions, but at least `n_chunks`. Raises BadInputError where a single frame does not."""
        for n in range(n_chunks, n_chunks + len(frames.images)):
            parts = chunks(frames, n)
            texts = [self.vlm.family.video_prompt(part, prompts.INTERNALIZE, opens_answer=opens_answer) for part in parts]
            n_tokens = max(len(self.vlm.tokenizer.encode(text, add_special_tokens=False)) for text in texts)
            if n_tokens <= self.vlm.n_positions:
                return parts
        raise BadInputError(f"vlm.model: has {self.vlm.n_positions} positions, and a single frame takes {n_tokens}: give smaller frames")


def trained_for(vlm: FrozenVLM, folder: Path) -> Hypernetwork:
    """The hypernetwork in a folder, frozen and where the VLM is. Raises BadInputError if it is none, or was trained for other weights."""
    try:
        hypernetwork = load_hypernetwork(folder).to(vlm.device).eval().requires_grad_(False)
        digest = read_metadata(folder).get("vlm_digest", vlm.digest)
    except ValueError as error:
        raise BadInputError(str(error)) from error
    if digest != vlm.digest:
        raise BadInputError(f"{folder}: trained for VLM weights {digest}, recipe's vlm.model has {vlm.digest}")
    return hypernetwork


def frames_of(row: Mapping[str, Any]) -> Frames:
    """A row of `frames` as pictures. Raises StageFailedError for a JPEG that cannot be read."""
    try:
        images = from_jpegs(row["jpegs"])
    except ValueError as error:
        message = f"frames of video {row['video_id']} are damaged ({error}); remove the table `frames` to make it anew"
        raise StageFailedError(message) from error
    return Frames(images, np.asarray(row["timestamps_s"], dtype=np.float64), row["duration_s"])


def evenly(frames: Frames, n: int) -> Frames:
    """`n` of the frames, the first and the last among them where n > 1; at most all."""
    chosen = np.linspace(0, len(frames.images) - 1, min(n, len(frames.images))).round().astype(int)
    return Frames(frames.images[chosen], frames.timestamps_s[chosen], frames.duration_s)


def chunks(frames: Frames, n: int) -> list[Frames]:
    """`n` chunks, or one for each frame where there are fewer; times stay those of the whole video."""
    n = min(n, len(frames.images))
    edges = [len(frames.images) * i // n for i in range(n + 1)]
    return [Frames(frames.images[start:stop], frames.timestamps_s[start:stop], frames.duration_s) for start, stop in pairwise(edges)]
