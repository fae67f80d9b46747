"""A batch of videos and targets -> the loss of the hypernetwork, paper eq. 5: cross-entropy of the teacher's words, no frame in context.

Each video is encoded once and passes the hypernetwork once; its adapter is repeated for each of its targets. Source: arXiv
2606.04351 section 3.3 and appendix E: mean over a target's tokens, then over targets; nothing else is added to the loss.

The frozen VLM always gives the same features for a video, so they are kept as far as memory goes: a small VLM then encodes each
video once in the whole training and a step costs hypernetwork and student alone. At SmolVLM2's size (60 MB a video) few fit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from training.batches import Batch, Example
from video2lora.hypernetwork import Hypernetwork
from video2lora.lora import adapted, select
from video2lora.scoring import exact_match
from video2lora.vlm import Features, FrozenVLM, TextBatch

N_GROUPS = 2  # by length. Measured in the demo: 22 % fewer tokens and 9 % less time a step; 3 groups gain nothing more
KEPT_BYTES = 1 << 30  # of features, per worker. Ours: two workers and their models in 8 GiB


@dataclass(frozen=True)
class Rows:
    """Prompts with targets, and the place in the batch of the video that each is about."""

    texts: TextBatch
    video_of_row: Int[Tensor, " n_rows"]


class Encoder:
    """Features of videos by the frozen VLM; those of the first `kept_bytes` worth of videos are computed once."""

    def __init__(self, vlm: FrozenVLM, *, opens_answer: bool, kept_bytes: int = KEPT_BYTES) -> None:
        """`opens_answer` as `FrozenVLM.features` has it."""
        self.vlm, self.opens_answer, self.left_bytes = vlm, opens_answer, kept_bytes
        self.kept: dict[str, Float[Tensor, "n_layers n_tokens d_vlm"]] = {}

    def __call__(self, examples: Sequence[Example]) -> Features:
        """Left-padded to the longest of them, as the VLM itself pads."""
        missing = {one.video_id: one for one in examples if one.video_id not in self.kept}
        fresh = self._encode(list(missing.values())) if missing else {}
        for video_id, hidden in fresh.items():
            self._keep(video_id, hidden)
        found = [fresh[one.video_id] if one.video_id in fresh else self.kept[one.video_id] for one in examples]
        return _left_padded(found)

    def _encode(self, examples: list[Example]) -> dict[str, Tensor]:
        features = self.vlm.features([one.frames for one in examples], opens_answer=self.opens_answer)
        n_tokens = features.mask.sum(1).tolist()
        return {one.video_id: features.hidden[i, :, -n_tokens[i] :] for i, one in enumerate(examples)}

    def _keep(self, video_id: str, hidden: Tensor) -> None:
        n_bytes = hidden.numel() * hidden.element_size()
        if n_bytes <= self.left_bytes:
            self.left_bytes -= n_bytes
            self.kept[video_id] = hidden.clone()  # a slice would keep the whole batch alive


class TargetLoss(nn.Module):
    """The hypernetwork and what it is trained by. The VLM is a plain value here, no submodule: DeepSpeed sees the hypernetwork alone."""

    def __init__(self, hypernetwork: Hypernetwork, vlm: FrozenVLM, *, dtype: str = "float32") -> None:
        super().__init__()
        self.hypernetwork = hypernetwork
        self.vlm, self.dtype = vlm, getattr(torch, dtype)

    def forward(self, features: Features, groups: Sequence[Rows]) -> Float[Tensor, " n_targets"]:
        """Loss of each target, group by group."""
        with torch.autocast(features.hidden.device.type, self.dtype, enabled=self.dtype != torch.float32):
            lora = self.hypernetwork.with_static(self.hypernetwork(features.hidden, features.mask))
            losses = []
            for rows in groups:
                with adapted(self.vlm.layers, select(lora, rows.video_of_row)):
                    losses.append(self.vlm.target_losses(rows.texts))
        return torch.cat(losses)

    @torch.no_grad()
    def answers(self, features: Features, questions: Sequence[str], video_of_row: Tensor, *, max_new_tokens: int) -> list[str]:
        """Greedy answers to questions, each by its video's adapter."""
        hypernetwork = self.hypernetwork
        lora = hypernetwork.with_static(hypernetwork(features.hidden, features.mask))
        with adapted(self.vlm.layers, select(lora, video_of_row)):
            found = self.vlm.generate(self.vlm.question_batch(questions), max_new_tokens=max_new_tokens)
        return [answer.text for answer in found]


def text_of(vlm: FrozenVLM, batch: Batch, *, newline: bool, n_groups: int = N_GROUPS) -> list[Rows]:
    """Prompts with targets, sorted by length into groups of as many rows: less of each group is padding."""
    rows = [(i, one) for i, targets in enumerate(batch.targets) for one in targets]
    rows.sort(key=lambda row: len(row[1].prompt) + len(row[1].text))
    size = math.ceil(len(rows) / n_groups)
    groups = []
    for part in (rows[at : at + size] for at in range(0, len(rows), size)):
        asked = [vlm.family.text_prompt(one.prompt) for _, one in part]
        texts = vlm.text_batch(asked, [one.text for _, one in part], newline=newline)
        groups.append(Rows(texts, torch.tensor([i for i, _ in part], device=texts.input_ids.device)))
    return groups


@torch.no_grad()
def validate(student: TargetLoss, encoder: Encoder, batch: Batch, *, newline: bool, max_new_tokens: int) -> tuple[float, float, int]:
    """Sum of losses, number of greedy answers equal to their target (after normalisation), number of targets."""
    features = encoder(batch.examples)
    losses = student(features, text_of(student.vlm, batch, newline=newline))
    rows = [(i, one) for i, targets in enumerate(batch.targets) for one in targets]
    video_of_row = torch.tensor([i for i, _ in rows], device=losses.device)
    said = student.answers(features, [one.prompt for _, one in rows], video_of_row, max_new_tokens=max_new_tokens)
    n_right = sum(exact_match(answer, [one.text]) for answer, (_, one) in zip(said, rows, strict=True))
    return float(losses.sum()), n_right, len(rows)


def _left_padded(found: Sequence[Float[Tensor, "n_layers _n_tokens d_vlm"]]) -> Features:
    longest = max(hidden.shape[1] for hidden in found)
    lengths = torch.tensor([hidden.shape[1] for hidden in found], device=found[0].device)
    mask = torch.arange(longest, device=found[0].device)[None] >= longest - lengths[:, None]
    return Features(torch.stack([F.pad(hidden, (0, 0, longest - hidden.shape[1], 0)) for hidden in found]), mask)
