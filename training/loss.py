"""A batch of videos and targets -> what the hypernetwork is trained by: how well the teacher's words follow with no frame in context.

Three terms for each target, which the recipe weighs; published is the first alone (arXiv 2606.04351 section 3.3, eq. 5, and appendix E:
mean over a target's tokens, then over targets). The other two are Doc-to-LoRA's (arXiv 2602.15902):

    ce   cross-entropy of the target's tokens
    kl   divergence from the teacher's likeliest tokens (`training.divergence`)
    l1   mean absolute value of the factors generated for the target's video, the static adapter not counted

Each video is encoded once and passes the hypernetwork once; its adapter is repeated for each of its targets. A video read in several
chunks has the sum of their deltas, as where it is internalized (section 5.6; published training has one chunk).

The frozen VLM always gives the same features for a video, so they can be kept: a small VLM then encodes each video once in the whole
training and a step costs hypernetwork and student alone. At SmolVLM2's size (60 MB a video) few fit. A continued run comes to the same
bits, since what a step computes never depends on the steps before: kept features are each made alone, others by the whole batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from training.batches import Batch, Example
from training.divergence import Tops, checked_teacher, divergence, tops_of
from video2lora import prompts
from video2lora.hypernetwork import Hypernetwork
from video2lora.lora import Lora, adapted, compose, select
from video2lora.sampling import Frames
from video2lora.vlm import Features, FrozenVLM, TextBatch, row_means

TERMS = ("ce", "kl", "l1")
N_GROUPS = 2  # by length. Measured in the demo: 22 % fewer tokens and 9 % less time a step; 3 groups gain nothing more
KEPT_BYTES = 1 << 30  # of features, per worker. Ours: two workers and their models in 8 GiB


@dataclass(frozen=True)
class Rows:
    """Prompts with targets, the place in the batch of the video that each is about, and what the teacher thought, where that is learnt."""

    texts: TextBatch
    video_of_row: Int[Tensor, " n_rows"]
    tops: Tops | None = None


class Encoder:
    """Features of videos by the frozen VLM."""

    def __init__(self, vlm: FrozenVLM, *, opens_answer: bool, keeps: bool) -> None:
        """`opens_answer` as `FrozenVLM.features` has it. `keeps`: each video is encoded alone, once, and its features stay in memory."""
        self.vlm, self.opens_answer, self.keeps = vlm, opens_answer, keeps
        self.kept: dict[tuple[str, int, int], Float[Tensor, "n_layers n_tokens d_vlm"]] = {}

    def __call__(self, examples: Sequence[Example], *, n_chunks: int = 1) -> Features:
        """A row for each chunk, video by video, left-padded to the longest; videos of fewer pictures than `n_chunks` have one for each.

        Raises ValueError for n_chunks < 1.
        """
        cut = [chunks(one, n_chunks, frames_per_picture=self.vlm.family.frames_per_picture) for one in examples]
        if self.keeps:
            features = _left_padded([self._kept(chunk, i, len(of_one)) for of_one in cut for i, chunk in enumerate(of_one)])
        else:
            features = self._encode([chunk for of_one in cut for chunk in of_one])
        return replace(features, n_chunks=tuple(map(len, cut)))

    def _kept(self, chunk: Example, i: int, n_chunks: int) -> Float[Tensor, "n_layers n_tokens d_vlm"]:
        key = chunk.video_id, i, n_chunks
        if key not in self.kept:
            self.kept[key] = self._encode([chunk]).hidden[0]
        return self.kept[key]

    def _encode(self, examples: Sequence[Example]) -> Features:
        known = [one.visual_tokens for one in examples if one.visual_tokens is not None]
        if known and len(known) < len(examples):
            raise ValueError(f"visual tokens: got those of {len(known)} of {len(examples)} examples, expected all or none")
        frame_tokens = torch.cat(known) if known else None
        return self.vlm.features([one.frames for one in examples], opens_answer=self.opens_answer, frame_tokens=frame_tokens)


def chunks(one: Example, n: int, *, frames_per_picture: int) -> list[Example]:
    """The example in `n` parts as even as possible, in order, cut between pictures; in fewer where it has fewer pictures.

    Raises ValueError for n < 1 or an example without frames.
    """
    n_frames = len(one.frames.timestamps_s)
    n_pictures = -(-n_frames // frames_per_picture)
    if n < 1 or n_pictures < 1:
        raise ValueError(f"training.max_chunks: got {n} chunks of {n_frames} frames, expected at least 1 of each")
    edges = [n_pictures * i // min(n, n_pictures) for i in range(min(n, n_pictures) + 1)]
    return [_part(one, start, stop, frames_per_picture) for start, stop in pairwise(edges)]


def feature_bytes(vlm: FrozenVLM, one: Example, *, max_chunks: int = 1) -> int:
    """What an `Encoder` that keeps comes to hold of an example, read in 1 to `max_chunks` chunks; a few tokens too many."""
    cuts = [chunks(one, n, frames_per_picture=vlm.family.frames_per_picture) for n in range(1, max_chunks + 1)]
    kept = [chunk.frames for cut in {len(cut): cut for cut in cuts}.values() for chunk in cut]
    texts = [vlm.family.video_prompt(frames, prompts.INTERNALIZE) for frames in kept]
    n_tokens = sum(map(len, vlm.tokenizer(texts, add_special_tokens=False)["input_ids"]))
    return int(n_tokens * len(vlm.layers) * vlm.d_vlm * vlm.model.dtype.itemsize)


class TargetLoss(nn.Module):
    """The hypernetwork and what it is trained by. The VLM is a plain value here, no submodule: DeepSpeed sees the hypernetwork alone."""

    def __init__(self, hypernetwork: Hypernetwork, vlm: FrozenVLM, *, dtype: str = "float32") -> None:
        super().__init__()
        self.hypernetwork = hypernetwork
        self.vlm, self.dtype = vlm, getattr(torch, dtype)

    def forward(self, features: Features, groups: Sequence[Rows]) -> Float[Tensor, "3 n_targets"]:
        """TERMS of each target, group by group; `kl` is 0 where the rows have nothing of the teacher's."""
        with torch.autocast(features.hidden.device.type, self.dtype, enabled=self.dtype != torch.float32):
            generated = self.hypernetwork(features.hidden, features.mask)
            lora = self._joined(generated, features.n_chunks)
            l1 = _by_video(_mean_absolute(generated), features.n_chunks)
            return torch.cat([self._terms(rows, select(lora, rows.video_of_row), l1[rows.video_of_row]) for rows in groups], dim=1)

    @torch.no_grad()
    def adapters(self, features: Features) -> Lora:
        """Of each video, static adapter included."""
        return self._joined(self.hypernetwork(features.hidden, features.mask), features.n_chunks)

    def _joined(self, generated: Lora, n_chunks: Sequence[int] | None) -> Lora:
        if n_chunks is not None and max(n_chunks) > 1:
            generated = compose(generated, n_chunks)
        return self.hypernetwork.with_static(generated)

    def _terms(self, rows: Rows, lora: Lora, l1: Float[Tensor, " n_rows"]) -> Float[Tensor, "3 n_rows"]:
        with adapted(self.vlm.layers, lora):
            log_probs, labels, learnt = self.vlm.target_log_probs(rows.texts)
        ce = row_means(F.nll_loss(log_probs, labels, reduction="none"), learnt)
        if rows.tops is None:
            return torch.stack([ce, torch.zeros_like(ce), l1])
        written = log_probs[rows.tops.places[learnt]]
        return torch.stack([ce, row_means(divergence(written, rows.tops), rows.tops.places), l1])


def text_of(vlm: FrozenVLM, batch: Batch, *, newline: bool, kl: bool = False, n_groups: int = N_GROUPS) -> list[Rows]:
    """Prompts with targets, sorted by length into groups of as many rows: less of each group is padding.

    With `kl`, targets are the tokens that the teacher wrote, with its log-probabilities. Raises BadInputError where it cannot be so.
    """
    rows = [(i, one) for i, targets in enumerate(batch.targets) for one in targets]
    rows.sort(key=lambda row: len(row[1].prompt) + len(row[1].text))
    size = math.ceil(len(rows) / n_groups)
    groups = []
    for part in (rows[at : at + size] for at in range(0, len(rows), size)):
        asked = [vlm.family.text_prompt(one.prompt) for _, one in part]
        if kl:
            written = [checked_teacher(vlm, one, video_id=batch.examples[i].video_id) for i, one in part]
            texts = vlm.text_batch(asked, [one.token_ids.tolist() for one in written], newline=newline)
        else:
            texts = vlm.text_batch(asked, [one.text for _, one in part], newline=newline)
        video_of_row = torch.tensor([i for i, _ in part], device=texts.input_ids.device)
        groups.append(Rows(texts, video_of_row, tops_of(written, texts) if kl else None))
    return groups


def _part(one: Example, start: int, stop: int, frames_per_picture: int) -> Example:
    """The example's pictures from `start` to `stop`."""
    of = slice(start * frames_per_picture, stop * frames_per_picture)
    frames = Frames(one.frames.images[of], one.frames.timestamps_s[of], one.frames.duration_s)
    return replace(one, frames=frames, visual_tokens=None if one.visual_tokens is None else one.visual_tokens[start:stop])


def _mean_absolute(lora: Lora) -> Float[Tensor, " batch"]:
    """Of the factors of each adapter, over all layers and modules."""
    factors = [*lora.lora_a.values(), *lora.lora_b.values()]
    total = torch.stack([factor.float().abs().sum((1, 2, 3)) for factor in factors]).sum(0)
    return total / sum(factor[0].numel() for factor in factors)


def _by_video(values: Float[Tensor, " n_rows"], n_chunks: Sequence[int] | None) -> Float[Tensor, " n_videos"]:
    """Mean over the chunks of each video."""
    return values if n_chunks is None else torch.stack([of_one.mean() for of_one in values.split(list(n_chunks))])


def _left_padded(found: Sequence[Float[Tensor, "n_layers _n_tokens d_vlm"]]) -> Features:
    longest = max(hidden.shape[1] for hidden in found)
    lengths = torch.tensor([hidden.shape[1] for hidden in found], device=found[0].device)
    mask = torch.arange(longest, device=found[0].device)[None] >= longest - lengths[:, None]
    return Features(torch.stack([F.pad(hidden, (0, 0, longest - hidden.shape[1], 0)) for hidden in found]), mask)
