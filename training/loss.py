"""A batch of videos and targets -> the loss of the hypernetwork, paper eq. 5: cross-entropy of the teacher's words, no frame in context.

Each video is encoded once and passes the hypernetwork once; its adapter is repeated for each of its targets. Source: arXiv
2606.04351 section 3.3 and appendix E: mean over a target's tokens, then over targets; nothing else is added to the loss.

The frozen VLM always gives the same features for a video, so they are kept as far as memory goes: a small VLM then encodes each
video once in the whole training and a step costs hypernetwork and student alone. At SmolVLM2's size (60 MB a video) few fit.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from training.batches import Batch, Example
from video2lora import prompts
from video2lora.hypernetwork import Hypernetwork
from video2lora.lora import adapted, select
from video2lora.scoring import exact_match
from video2lora.vlm import Features, FrozenVLM, TextBatch

KEPT_BYTES = 1 << 30  # of features, per worker. Ours: two workers and their models in 8 GiB


class Encoder:
    """Features of videos by the frozen VLM; those of the first `kept_bytes` worth of videos are computed once."""

    def __init__(self, vlm: FrozenVLM, *, kept_bytes: int = KEPT_BYTES) -> None:
        self.vlm, self.left_bytes = vlm, kept_bytes
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
        features = self.vlm.features([one.frames for one in examples])
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

    def forward(self, features: Features, batch: TextBatch, video_of_row: Int[Tensor, " n_targets"]) -> Float[Tensor, " n_targets"]:
        """Loss of each target. `video_of_row` says whose adapter each row of the batch gets."""
        device = features.hidden.device.type
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            hypernetwork = self.hypernetwork
            lora = hypernetwork.with_static(hypernetwork(features.hidden, features.mask))
            with adapted(self.vlm.layers, select(lora, video_of_row)):
                losses: Tensor = self.vlm.target_losses(batch)
        return losses

    @torch.no_grad()
    def answers(self, features: Features, questions: Sequence[str], video_of_row: Tensor, *, max_new_tokens: int) -> list[str]:
        """Greedy answers to questions, each by its video's adapter."""
        hypernetwork = self.hypernetwork
        lora = hypernetwork.with_static(hypernetwork(features.hidden, features.mask))
        with adapted(self.vlm.layers, select(lora, video_of_row)):
            found = self.vlm.generate(self.vlm.question_batch(questions), max_new_tokens=max_new_tokens)
        return [answer.text for answer in found]


def text_of(vlm: FrozenVLM, batch: Batch) -> tuple[TextBatch, Int[Tensor, " n_targets"]]:
    """Prompts with targets, row by row, and the place of each row's video in the batch."""
    rows = [one for targets in batch.targets for one in targets]
    texts = vlm.text_batch([prompts.text_prompt(row.prompt) for row in rows], [row.text for row in rows])
    video_of_row = [i for i, targets in enumerate(batch.targets) for _ in targets]
    return texts, torch.tensor(video_of_row, device=texts.input_ids.device)


@torch.no_grad()
def validate(student: TargetLoss, encoder: Encoder, batch: Batch, *, max_new_tokens: int) -> tuple[float, float, int]:
    """Sum of losses, number of greedy answers equal to their target (after normalisation), number of targets."""
    features = encoder(batch.examples)
    texts, video_of_row = text_of(student.vlm, batch)
    losses = student(features, texts, video_of_row)
    rows = [one for targets in batch.targets for one in targets]
    said = student.answers(features, [row.prompt for row in rows], video_of_row, max_new_tokens=max_new_tokens)
    n_right = sum(exact_match(answer, [row.text]) for answer, row in zip(said, rows, strict=True))
    return float(losses.sum()), n_right, len(rows)


def _left_padded(found: Sequence[Float[Tensor, "n_layers _n_tokens d_vlm"]]) -> Features:
    longest = max(hidden.shape[1] for hidden in found)
    lengths = torch.tensor([hidden.shape[1] for hidden in found], device=found[0].device)
    mask = torch.arange(longest, device=found[0].device)[None] >= longest - lengths[:, None]
    return Features(torch.stack([F.pad(hidden, (0, 0, longest - hidden.shape[1], 0)) for hidden in found]), mask)
