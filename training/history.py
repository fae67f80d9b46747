"""What a training knows of itself, kept in every checkpoint: losses, validation scores, the best step, and whether it has ended.

From it follow the decisions that must be the same on all workers and after every restart: whether a loss is out of all proportion, which
checkpoint is the best, and whether waiting for a better one has gone on for too long.
"""

import math
import statistics
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from infra.config import TrainingSettings

N_POINTS = 100  # of the loss curve that a hypernetwork's config.json keeps
N_RECENT = 100  # steps whose median loss the next one is compared with
N_FIRST = 10  # steps that tell where the loss began, and before which no loss is too large

Score = dict[str, float]
"""Of one validation: step, at_ms, loss, n_targets, and of the answers exact_match, token_f1, other_*, blind_*, n_answered."""


@dataclass
class History:
    """Of one training, over all its attempts. `losses` and `at_ms` have an entry for each step, a loss of all workers' targets."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    at_ms: list[int] = field(default_factory=list)  # when each step was done, since 1970
    seconds: dict[str, float] = field(default_factory=dict)  # of the first worker, by part of its work
    rejected: dict[str, str] = field(default_factory=dict)  # why a video trains nothing
    validation: list[Score] = field(default_factory=list)
    blind: Score | None = None  # exact_match and token_f1 without any adapter: the same at every step
    best_step: int | None = None  # by the setting `select`; None where that is `last`
    ended: bool = False  # before its last step, by `patience`

    def state(self) -> dict[str, Any]:
        """For `state.json`, exactly: floats survive JSON."""
        return asdict(self)

    @classmethod
    def of(cls, state: dict[str, Any]) -> "History":
        """From a checkpoint's `state.json`."""
        return cls(**{name: state[name] for name in cls.__dataclass_fields__})

    def enter(self, loss: float) -> int:
        """A step is done; returns when."""
        self.step += 1
        self.losses.append(loss)
        self.at_ms.append(time.time_ns() // 1_000_000)
        return self.at_ms[-1]

    def curve(self) -> list[tuple[int, float]]:
        """At most N_POINTS of (step, mean loss since the point before)."""
        size = max(1, math.ceil(len(self.losses) / N_POINTS))
        parts = [self.losses[at : at + size] for at in range(0, len(self.losses), size)]
        return [(min(len(self.losses), (i + 1) * size), round(statistics.fmean(part), 5)) for i, part in enumerate(parts)]

    def refused(self, loss: float, *, max_ratio: float | None) -> str | None:
        """Why the next step's loss must not be learnt from, or None: it is not finite, or far above the last ones and where all began."""
        if not math.isfinite(loss):
            return f"loss {loss}"
        if max_ratio is None or len(self.losses) < N_FIRST:
            return None
        median, first = statistics.median(self.losses[-N_RECENT:]), statistics.fmean(self.losses[:N_FIRST])
        if loss > max_ratio * median and loss > first:
            return f"loss {loss:.3g}, more than {max_ratio:g} times the {median:.3g} of the last steps (training.max_loss_ratio)"
        return None

    def take(self, score: Score, settings: TrainingSettings) -> bool:
        """Enter a validation; True if it is the best so far by `select`. Ends the training after `patience` ones without a better."""
        self.validation.append(score)
        if settings.select == "last":
            return False
        values = [one[settings.select] * (1 if settings.select == "exact_match" else -1) for one in self.validation]
        best = values.index(max(values))
        self.best_step = int(self.validation[best]["step"])
        self.ended = settings.patience is not None and len(values) - 1 - best >= settings.patience
        return best == len(values) - 1

    def is_done(self, settings: TrainingSettings) -> bool:
        return self.ended or self.step >= settings.n_steps
