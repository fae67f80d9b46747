"""Answers of a sweep's trainings -> its table's numbers: plain Python and numpy, no storage.

Each number is a mean over seeds with a 95 % interval that `equivalence.with_interval` draws over seeds and videos. The difference to the
base is paired: the same seeds, videos and questions on both sides. Only questions that every finished training answered count, so that all
rows speak of the same ones. Intervals are of each row by itself: of twenty rows one lies outside by chance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float

from training.measures import METRICS, Scored, gap_ratio, sums_by_video
from video2lora.equivalence import with_interval

BASE = "base"  # the name of the row without a change
OF_ADAPTERS = ("ours", "other_video")
OF_THE_VLM = ("blind", "base")
STEP_PARTS = ("data", "encode", "loss", "update")  # of `seconds`: the others are spent between steps


@dataclass(frozen=True)
class Outcome:
    """Of one training: scored answers, or why it has none. `seconds` by part of the work, over all its attempts."""

    change: str
    settings: Mapping[str, Any]
    seed: int
    failure: str | None = None
    scored: tuple[Scored, ...] = ()
    n_parameters: int = 0
    n_steps: int = 0
    seconds: Mapping[str, float] | None = None


Sums = Float[np.ndarray, "n_seeds n_videos n_sums"]
"""Of each training's videos: number of questions, then sums of scores."""


def numbers(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Rows in the order of the outcomes, whose first is of the base and holds the VLM's own answers; if it failed, no gap is known."""
    done = [one for one in outcomes if one.failure is None]
    of_vlm = [one for one in outcomes[0].scored if one.system in OF_THE_VLM]
    asked = _answered_by_all(done, of_vlm)
    changes = list(dict.fromkeys(one.change for one in outcomes))
    base = [one for one in done if one.change == BASE]
    rows = [_row([one for one in outcomes if one.change == change], base, of_vlm, asked) for change in changes]
    videos = {one.content for outcome in done for one in outcome.scored if one.question_id in asked}
    return {"n_questions": len(asked), "n_videos": len(videos), "rows": rows}


def _row(outcomes: Sequence[Outcome], base: Sequence[Outcome], of_vlm: Sequence[Scored], asked: frozenset[str]) -> dict[str, Any]:
    done = [one for one in outcomes if one.failure is None]
    row: dict[str, Any] = {
        "change": outcomes[0].change,
        "settings": dict(outcomes[0].settings),
        "seeds": [one.seed for one in done],
        "failed": [{"seed": one.seed, "why": one.failure} for one in outcomes if one.failure is not None],
        "n_parameters": done[0].n_parameters if done else None,
        "train_s": _mean([sum(one.seconds.values()) for one in done if one.seconds]),
        "step_s": _mean([sum(one.seconds.get(part, 0.0) for part in STEP_PARTS) / one.n_steps for one in done if one.seconds]),
    }
    paired = {one.seed: one for one in base}
    pairs = [(one, paired[one.seed]) for one in done if one.seed in paired]
    for metric in METRICS:
        own = _sums(done, of_vlm, asked, metric)
        row[metric] = {
            "ours": with_interval(own, lambda sums: sums[:, 1] / sums[:, 0]),
            "other_video": with_interval(own, lambda sums: sums[:, 2] / sums[:, 0]),
            "gap_closed": with_interval(own if of_vlm else own[:0], lambda sums: gap_ratio(sums[:, 1], sums[:, 3], sums[:, 4])),
        }
        if outcomes[0].change != BASE:
            ours = _sums([one for one, _ in pairs], of_vlm, asked, metric)
            theirs = _sums([one for _, one in pairs], of_vlm, asked, metric)
            both = np.stack([ours[:, :, 0], ours[:, :, 1] - theirs[:, :, 1]], axis=2)
            row[metric]["difference"] = with_interval(both, lambda sums: sums[:, 1] / sums[:, 0])
    return row


def _sums(outcomes: Sequence[Outcome], of_vlm: Sequence[Scored], asked: frozenset[str], metric: str) -> Sums:
    """Columns: questions, ours, other_video, and blind, base where the VLM's own answers are known."""
    systems = (*OF_ADAPTERS, *(OF_THE_VLM if of_vlm else ()))
    found = []
    for one in outcomes:
        own = [answer for answer in one.scored if answer.system in OF_ADAPTERS]
        found.append(sums_by_video([answer for answer in (*own, *of_vlm) if answer.question_id in asked], systems, metric))
    return np.stack(found) if found else np.zeros((0, 0, 1 + len(systems)))


def _answered_by_all(done: Sequence[Outcome], of_vlm: Sequence[Scored]) -> frozenset[str]:
    """Questions that the VLM answered with the video and blind, and every training with its own adapter and another's."""
    by_all = [{one.question_id for one in of_vlm if one.system == system} for system in OF_THE_VLM] if of_vlm else []
    for outcome in done:
        by_all += [{one.question_id for one in outcome.scored if one.system == system} for system in OF_ADAPTERS]
    return frozenset(set.intersection(*by_all)) if by_all else frozenset()


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
