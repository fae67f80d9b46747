"""Answers of a cell -> its numbers: means of each system, and differences with intervals that draw whole videos, as a report's."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, median
from typing import Any

import numpy as np
from jaxtyping import Float

from infra.evaluation_config import EvaluationSettings
from video2lora.equivalence import claim, with_interval

SCORES = ("token_f1", "exact_match")

Row = Mapping[str, Any]
Facts = dict[str, Any]


def of_system(rows: Sequence[Row], system: str, *, times_s: Sequence[float] = ()) -> Facts:
    """Mean scores and costs of a system's answers; `degenerate` is the share that is broken. None where it has no answers."""
    own = [row for row in rows if row["system"] == system]
    return {
        "n_answers": len(own),
        **{score: mean([row[score] for row in own]) for score in SCORES},
        "degenerate": mean([float(row["degenerate"] is not None) for row in own]),
        "n_input_tokens": mean([row["n_input_tokens"] for row in own]),
        "n_visual_tokens": mean([row["n_visual_tokens"] for row in own]),
        "ttft_s": median(times_s) if times_s else None,
    }


def by_style(rows: Sequence[Row], systems: Sequence[str]) -> Facts:
    """Of each style of question: how many there are, and each system's mean scores."""
    found = {}
    for style in sorted({row["style"] for row in rows}):
        own = [row for row in rows if row["style"] == style]
        means = {score: {one: mean([row[score] for row in own if row["system"] == one]) for one in systems} for score in SCORES}
        found[style] = {"n_questions": len({row["question_id"] for row in own}), **means}
    return found


def differences(rows: Sequence[Row], pairs: Sequence[tuple[str, str]], settings: EvaluationSettings) -> Facts:
    """By "one - other" and score: the mean difference over questions both answered, with its interval and claims; pairs both answered."""
    systems = {row["system"] for row in rows}
    return {f"{one} - {other}": difference(rows, (one, other), settings) for one, other in pairs if {one, other} <= systems}


def difference(rows: Sequence[Row], pair: tuple[str, str], settings: EvaluationSettings) -> Facts:
    """By score."""
    found = {}
    for score in SCORES:
        sums = sums_by_video(rows, pair, score)[None]
        claimed = claim(sums, margin=settings.margin, alpha=settings.alpha, n_draws=settings.n_draws)
        found[score] = None if claimed is None else asdict(claimed)
    return found


def sums_by_video(rows: Sequence[Row], systems: Sequence[str], score: str) -> Float[np.ndarray, "n_videos n_sums"]:
    """For each content: the number of questions that all `systems` answered, then each system's sum of scores over them."""
    values = {(row["question_id"], row["system"]): row[score] for row in rows}
    videos: dict[str, list[list[float]]] = {}
    for question_id, content in sorted({(row["question_id"], row["content"]) for row in rows}):
        if all((question_id, system) in values for system in systems):
            videos.setdefault(content, []).append([1.0, *(values[question_id, system] for system in systems)])
    return np.array([np.sum(one, axis=0) for one in videos.values()]).reshape(-1, 1 + len(systems))


def mean_of_videos(values: Sequence[float], settings: EvaluationSettings) -> Facts:
    """The mean of one value a video, with its interval."""
    sums = np.stack([np.ones(len(values)), np.array(values, dtype=float)], axis=1)[None]
    return dict(with_interval(sums, lambda drawn: drawn[:, 1] / drawn[:, 0], n_draws=settings.n_draws))


def spread(values: Sequence[float | int]) -> Facts:
    """Mean, least and most."""
    return {"mean": mean(values), "min": min(values, default=None), "max": max(values, default=None)}


def mean(values: Sequence[float | int]) -> float | None:
    return fmean(values) if values else None
