"""The validation split -> scores by loss and by answers, with the controls that could refute them.

The videos are cut into the same batches for any number of workers, which share those out. All targets count for the loss; of some the
answers are scored too: with the video's own adapter, with another video's, and (once in a training) with none.
"""

from collections.abc import Callable, Sequence

from infra.config import Recipe
from training.batches import Batch, Example, draw
from training.history import Score
from training.loss import Encoder, TargetLoss
from training.validation import blind_scores, validate
from video2lora.vlm import FrozenVLM

VIDEOS_AT_ONCE = 16
SUMS = ("loss", "n_targets", "exact_match", "token_f1", "n_answered", "other_exact_match", "other_token_f1", "n_others")
BLIND_SUMS = ("blind_exact_match", "blind_token_f1", "n_answered")

Summed = Callable[[list[float]], list[float]]
"""Adds numbers up over all workers."""


class Validation:
    """One worker's part of the split."""

    def __init__(self, examples: Sequence[Example], recipe: Recipe, *, rank: int, n_workers: int) -> None:
        """`examples` are those of the whole split."""
        settings, ordered = recipe.training, sorted(examples, key=lambda one: one.video_id)
        self.newline, self.max_new_tokens = settings.newline_after_target, recipe.answer.max_new_tokens
        self.batches: list[tuple[Batch, int]] = []  # with the number of its targets that are answered
        starts = range(0, len(ordered), VIDEOS_AT_ONCE)
        for start in list(starts)[rank::n_workers]:
            part = tuple(ordered[start : start + VIDEOS_AT_ONCE])
            targets = tuple(draw(one, n=settings.targets_per_video, seed=settings.seed, epoch=0) for one in part)
            ends = [round(settings.validation_answers * at / len(ordered)) for at in (start, start + len(part))]
            self.batches.append((Batch(part, targets), ends[1] - ends[0]))

    def score(self, student: TargetLoss, encoder: Encoder, summed: Summed) -> Score:
        """Means over the whole split. All workers must call it together."""
        sums = dict.fromkeys(SUMS, 0.0)
        for batch, n_answered in self.batches:
            found = validate(student, encoder, batch, newline=self.newline, max_new_tokens=self.max_new_tokens, n_answered=n_answered)
            sums = {name: value + found[name] for name, value in sums.items()}
        total = dict(zip(SUMS, summed(list(sums.values())), strict=True))
        counts = {"loss": "n_targets", "exact_match": "n_answered", "token_f1": "n_answered"}
        counts |= {"other_exact_match": "n_others", "other_token_f1": "n_others"}
        return {**total, **{name: total[name] / max(1.0, total[n]) for name, n in counts.items()}}

    def blind(self, vlm: FrozenVLM, summed: Summed) -> Score:
        """Means without any adapter. All workers must call it together."""
        sums = dict.fromkeys(BLIND_SUMS, 0.0)
        for batch, n_answered in self.batches:
            found = blind_scores(vlm, batch, max_new_tokens=self.max_new_tokens, n_answered=n_answered)
            sums = {name: value + found[name] for name, value in sums.items()}
        total = dict(zip(BLIND_SUMS, summed(list(sums.values())), strict=True))
        return {name: total[name] / max(1.0, total["n_answered"]) for name in BLIND_SUMS[:2]}
