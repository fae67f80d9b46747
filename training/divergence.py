"""A teacher's stored log-probabilities -> how far the student is from them, token by token: KL(teacher || student).

Of each token that the teacher wrote, the k likeliest are known; all the others are one bucket, with what is left of the probability. So
the divergence is a lower bound of the one over the whole vocabulary, and that one itself where k is the vocabulary. Doc-to-LoRA
(arXiv 2602.15902) learns from the 16 likeliest in the same way. The published Video2LoRA runs learn from the text alone.

The teacher's distributions hold for the tokens it wrote and no others, so the student reads those in the place of the text's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from infra.errors import BadInputError
from training.batches import Target, TeacherTokens
from video2lora.vlm import IGNORE, FrozenVLM, TextBatch

LEAST_PROBABILITY = torch.finfo(torch.float32).eps  # of the bucket: 1 - p is exact to so much


@dataclass(frozen=True)
class Tops:
    """What the teacher held likeliest where it wrote the next token: `places` in a batch of texts, then row by row."""

    places: Bool[Tensor, "batch n_places"]
    token_ids: Int[Tensor, "n_written k"]
    logprobs: Float[Tensor, "n_written k"]


def tops_of(written: Sequence[TeacherTokens], texts: TextBatch) -> Tops:
    """Of a batch made with the teacher's tokens as targets. Where a target ends as the teacher did not, nothing is known of its end."""
    if texts.labels is None:
        raise ValueError("labels: got None, expected a batch made with targets")
    labels = texts.labels[:, 1:]
    learnt = labels != IGNORE
    n_written = [_n_shared(one.token_ids.tolist(), row[kept].tolist()) for one, row, kept in zip(written, labels, learnt, strict=True)]
    counts = torch.tensor(n_written, device=labels.device)
    token_ids, logprobs = (
        torch.cat([torch.from_numpy(getattr(one, name)[:n]) for one, n in zip(written, n_written, strict=True)]).to(labels.device)
        for name in ("top_token_ids", "top_logprobs")
    )
    return Tops(learnt & (learnt.cumsum(1) <= counts[:, None]), token_ids.long(), logprobs)


def divergence(log_probs: Float[Tensor, "n_written vocabulary"], tops: Tops) -> Float[Tensor, " n_written"]:
    """KL(teacher || student) at each token that the teacher wrote, over its k likeliest and one bucket for all the rest."""
    student, teacher = log_probs.gather(-1, tops.token_ids), tops.logprobs.exp()
    rest = (1 - student.exp().sum(-1, keepdim=True)).clamp_min(LEAST_PROBABILITY).log()
    teacher = torch.cat([teacher, (1 - teacher.sum(-1, keepdim=True)).clamp_min(0)], dim=-1)
    return F.kl_div(torch.cat([student, rest], dim=-1), teacher, reduction="none").sum(-1)


def checked_teacher(vlm: FrozenVLM, target: Target, *, video_id: str) -> TeacherTokens:
    """The teacher's tokens of a target. Raises BadInputError where none are stored, or where they are not the target in the VLM's words."""
    if target.teacher is None:
        raise BadInputError(
            f"training.kl_weight: a target of {video_id} has no log-probabilities; set teacher.logprobs and make targets and examples anew"
        )
    said = vlm.tokenizer.decode(target.teacher.token_ids.tolist(), skip_special_tokens=True).strip()
    n_words = vlm.model.get_output_embeddings().weight.shape[0]
    if said != target.text or max(target.teacher.token_ids.max(), target.teacher.top_token_ids.max()) >= n_words:
        raise BadInputError(
            f"training.kl_weight: the teacher's tokens for {video_id} are {said[:60]!r} in the words of {vlm.name}, and its text is "
            f"{target.text[:60]!r}; take a teacher with the student's own tokenizer, or kl_weight 0"
        )
    return target.teacher


def _n_shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the beginning that both have."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
