"""Settings of a recipe's retraining: when it is worth one, and when its hypernetwork takes the champion's place. See docs/retraining.md."""

from typing import Literal

from pydantic import Field

from infra.settings import Settings


class RetrainingSettings(Settings):
    """What decides whether `video2lora retrain` goes ahead."""

    min_new_videos: int = Field(default=1, ge=1)  # training videos that the champion never saw
    gpu_hours_per_month: float | None = Field(default=None, gt=0)  # a calendar month of UTC; None: no limit
    start: Literal["afresh", "champion"] = "afresh"  # the hypernetwork's weights before its first step


class PromotionSettings(Settings):
    """The gate: the challenger is promoted if it is non-inferior to the champion, as the paper counts it (section 4.3)."""

    score: Literal["token_f1", "exact_match", "judge"] = "token_f1"
    benchmarks: tuple[str, ...] | None = None  # on each of which it must hold; None: on all that there are questions of
    margin: float = Field(default=0.05, gt=0, lt=1)
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    max_family_fall: float = Field(default=0.1, gt=0, le=1)  # of any question family's mean, against the champion
