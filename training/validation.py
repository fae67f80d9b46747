"""A student and validation videos -> sums of its scores, with two controls: another video's adapter, and none at all.

Loss is of every target, as in training. Answers are slow, so only the first `n_answered` targets are answered, greedily, round over the
videos: few answers still cover many videos, and all three systems answer the same ones. A hypernetwork that learns what answers are
usually like, and nothing of the video, scores as well with the next video's adapter as with the right one; the blind score is what the
VLM knows without any, and does not change as training goes on.

Sums, not means: a worker has a share of the videos, in batches.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain, zip_longest

import torch

from training.batches import Batch, Target
from training.loss import Encoder, TargetLoss, text_of
from video2lora.lora import Lora, adapted, select
from video2lora.scoring import exact_match, token_f1
from video2lora.vlm import FrozenVLM

Asked = tuple[int, Target]  # a video's place in its batch, and one of its targets


@torch.no_grad()
def validate(
    student: TargetLoss, encoder: Encoder, batch: Batch, *, newline: bool, max_new_tokens: int, n_answered: int
) -> dict[str, float]:
    """Sums of: loss (cross-entropy), n_targets; exact_match, token_f1, n_answered; other_exact_match, other_token_f1, n_others.

    The last three are those of answers with the adapter of the batch's next video: of a batch of one, there are none. The hypernetwork
    runs twice, whatever is answered: ZeRO 3 gathers its parameters, so all workers must do alike.
    """
    features = encoder(batch.examples)
    ce = student(features, text_of(student.vlm, batch, newline=newline))[0]
    lora = student.adapters(features)
    asked, n_videos = _asked(batch, n_answered), len(batch.examples)
    sums = {"loss": float(ce.sum()), "n_targets": float(batch.n_targets), "n_answered": float(len(asked))}
    sums["n_others"] = sums["n_answered"] if n_videos > 1 else 0.0
    for prefix, of_next, rows in (("", 0, asked), ("other_", 1, asked if n_videos > 1 else [])):
        video_of_row = torch.tensor([(i + of_next) % n_videos for i, _ in rows], dtype=torch.long)
        scores = _scores(student.vlm, rows, max_new_tokens=max_new_tokens, lora=select(lora, video_of_row))
        sums |= {f"{prefix}{name}": value for name, value in scores.items()}
    return sums


def blind_scores(vlm: FrozenVLM, batch: Batch, *, max_new_tokens: int, n_answered: int) -> dict[str, float]:
    """Sums of blind_exact_match, blind_token_f1 and n_answered: the targets that `validate` answers, by the VLM without any adapter."""
    rows = _asked(batch, n_answered)
    scores = _scores(vlm, rows, max_new_tokens=max_new_tokens, lora=None)
    return {f"blind_{name}": value for name, value in scores.items()} | {"n_answered": float(len(rows))}


def _asked(batch: Batch, n: int) -> list[Asked]:
    """The first `n` targets: every video's first one, then every video's second."""
    by_video = ([(i, target) for target in targets] for i, targets in enumerate(batch.targets))
    return [row for row in chain.from_iterable(zip_longest(*by_video)) if row is not None][:n]


def _scores(vlm: FrozenVLM, rows: Sequence[Asked], *, max_new_tokens: int, lora: Lora | None) -> dict[str, float]:
    """Sums over the rows' greedy answers; `lora` has an adapter for each row."""
    if not rows:
        return {"exact_match": 0.0, "token_f1": 0.0}
    with nullcontext() if lora is None else adapted(vlm.layers, lora):
        answers = vlm.generate(vlm.question_batch([one.prompt for _, one in rows]), max_new_tokens=max_new_tokens)
    said = [(answer.text, [one.text]) for answer, (_, one) in zip(answers, rows, strict=True)]
    return {"exact_match": sum(exact_match(*pair) for pair in said), "token_f1": sum(token_f1(*pair) for pair in said)}
