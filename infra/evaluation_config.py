"""The sections of a recipe that say how a hypernetwork is evaluated: who answers, who judges, what is claimed, which figures are drawn."""

import math
from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from infra.artifacts import USUAL_SYSTEMS
from infra.settings import Settings, each_once

CLAIMED_TOGETHER = 4  # benchmarks, over which a claim must be able to hold


class AnswerSettings(Settings):
    systems: tuple[
        Literal["base", "sampled", "ours", "merged", "composed", "other_video", "static", "blind", "caption", "champion"], ...
    ] = USUAL_SYSTEMS  # type: ignore[assignment]
    split: Literal["train", "validation", "test"] = "test"
    max_new_tokens: int = Field(default=64, ge=1)
    questions_per_batch: int = Field(default=64, ge=1)
    n_timed: int = Field(default=24, ge=0)  # questions per system whose time to first token is measured alone
    sampled_frames: int = Field(default=64, ge=1)  # of `sampled`; beyond about 100 a SmolVLM2 prompt passes its 8,192 positions
    n_chunks: int = Field(default=2, ge=2)  # of `composed`; paper 5.6: two halves
    hypernetwork: str | None = None  # folder of one that is evaluated in place of what the recipe trains: an imported one, say; or `tiny`
    champion: str | None = None  # folder of the hypernetwork of `champion`, or `tiny`, the one that ships

    @field_validator("systems")
    @classmethod
    def _are_different(cls, systems: tuple[str, ...]) -> tuple[str, ...]:
        return each_once(systems)


class JudgeModel(Settings):
    """A judge, and how it is asked. Paper, appendix A: Qwen3-VL-30B on vLLM, text alone, temperature 0, 1,024 tokens."""

    model: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    served_by: Literal["vllm", "endpoint"] = "vllm"
    max_tokens: int = Field(default=1024, ge=1)
    max_model_len: int = Field(default=8192, ge=16)


class JudgeSettings(JudgeModel):
    n_tries: int = Field(default=3, ge=1)  # for a reply that is what its schema asks for
    second: JudgeModel | None = None  # marks a sample too, so that the report can say how far the two agree
    n_second: int = Field(default=200, ge=2)  # answers in that sample; paper: 200, by people

    @field_validator("second")
    @classmethod
    def _is_another(cls, second: JudgeModel | None, others: ValidationInfo) -> JudgeModel | None:
        if second is not None and second.model_dump().items() <= others.data.items():
            raise ValueError("got the judge again, whose marks are the same ones; expected another model, or other settings of it")
        return second


class EvaluationSettings(Settings):
    """What the report claims, and how surely. Paper 4.3: margins 0.15 on the judge and 0.05 on token F1, by 95 % intervals.

    A claim at `alpha` holds where the interval of confidence 1 - 2 alpha lies within the margin: 0.025 is the paper's.
    """

    seeds: tuple[int, ...] | None = Field(default=None, min_length=1)  # of the trainings that are evaluated; None: training.seed
    margin: float = Field(default=0.05, gt=0, lt=1)  # of every score
    judge_margin: float = Field(default=0.15, gt=0, lt=1)  # the paper's, of the judge's score, beside `margin`
    alpha: float = Field(default=0.025, gt=0, lt=0.5)
    n_draws: int = Field(default=10_000, ge=100)  # of the bootstrap

    @field_validator("seeds")
    @classmethod
    def _are_different(cls, seeds: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return seeds and each_once(seeds)

    @model_validator(mode="after")
    def _claims_can_hold(self) -> Self:
        # No bootstrap's p is below 1 / (n_draws + 1), and Holm's correction over k benchmarks makes k times that of it, so k times as many
        # draws are needed: this bound leaves a claim over 4 benchmarks just possible. The default is enough for 250 at the paper's alpha.
        least = math.ceil(CLAIMED_TOGETHER / self.alpha) - 1
        if self.n_draws < least:
            raise ValueError(f"n_draws: got {self.n_draws}, too few for any claim at alpha {self.alpha:g}: set n_draws to {least} or more")
        return self


class FigureSettings(Settings):
    """Cells of the paper's figures, and on how much each is measured. Paper 5.4 (sweep), 5.5 (efficiency), 5.6 (composition), appendix C.

    Videos and questions are those of answer.split. See training/figures.
    """

    n_videos: int = Field(default=100, ge=1)  # drawn by `seed`; paper 5.5 and 5.6: 100
    benchmark: str | None = None  # whose questions; None: all. Paper: VDC in 5.4 and 5.6, VidCapBench in 5.5
    styles: tuple[str, ...] | None = None  # of these questions; None: all. Paper: background in 5.4, short and detailed in 5.6
    seed: int = 0
    frame_caps: tuple[int, ...] = Field(default=(8, 12, 24, 48, 128, 256, 512, 1024), min_length=1)
    longest_edges_px: tuple[int, ...] = Field(default=(224, 336, 512, 1024), min_length=1)
    frames_per_chunk: int = Field(default=64, ge=1)  # of the sweep: more are read in chunks whose adapters are composed
    n_timed: int = Field(default=5, ge=0)  # videos of a sweep's cell whose first tokens are timed
    n_rounds: int = Field(default=3, ge=1)  # timings of each, systems taking turns
    n_questions: tuple[int, ...] = Field(default=(1, 2, 3, 5, 10, 15, 20), min_length=1)  # that efficiency is spread over
    n_chunks: tuple[int, ...] = Field(default=(1, 2, 4, 8, 16, 32), min_length=1)
    frames_in_chunk: int = Field(default=12, ge=1)
    kept_directions: tuple[int, ...] = Field(default=(1, 2, 4, 8), min_length=1)  # of the adapter's rank

    @field_validator("frame_caps", "longest_edges_px", "n_questions", "n_chunks", "kept_directions")
    @classmethod
    def _are_counts(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if min(values) < 1:
            raise ValueError(f"got {values}, expected numbers of at least 1")
        return each_once(values)
