"""Answers and questions -> the report's numbers: plain Python and numpy, no storage, no page.

Gap closed is (ours - blind) / (base - blind): 0 is what the question alone gives away, 1 is the VLM with the video in its context.
Only questions that all three answered count for it; likewise for a difference of two systems. Intervals are 95 % percentile bootstraps that
draw whole videos (questions of one video share its adapter, so they are not independent), for both sides alike (paired). Of several
trainings, seeds are drawn too, and one draw of videos counts for all of them: they answer about the same ones (Owen 2007, "The pigeonhole
bootstrap", arXiv 0712.1111).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np
from jaxtyping import Float

from video2lora.scoring import exact_match, token_f1

N_RESAMPLES = 10_000
SEED = 0
METRICS = ("exact_match", "token_f1")
PAIRS = (("ours", "base"), ("ours", "blind"), ("ours", "caption"), ("other_video", "blind"), ("static", "blind"))
GAP = ("ours", "blind", "base")

Number = float | None


@dataclass(frozen=True)
class Scored:
    """An answer with its question and its scores in [0, 1]."""

    question_id: str
    video_id: str
    family: str
    system: str
    answer: str
    exact_match: float
    token_f1: float
    n_input_tokens: int
    n_visual_tokens: int
    ttft_s: Number


def score(answers: Sequence[dict[str, Any]], questions: Sequence[dict[str, Any]]) -> list[Scored]:
    """Rows of `answers` marked against the references of their questions; the family is the question's style."""
    by_id = {row["question_id"]: row for row in questions}
    scored = []
    for row in answers:
        question = by_id[row["question_id"]]
        scored.append(
            Scored(
                question_id=row["question_id"],
                video_id=question["video_id"],
                family=question["style"],
                system=row["system"],
                answer=row["answer"],
                exact_match=exact_match(row["answer"], question["references"]),
                token_f1=token_f1(row["answer"], question["references"]),
                n_input_tokens=row["n_input_tokens"],
                n_visual_tokens=row["n_visual_tokens"],
                ttft_s=row["ttft_s"],
            )
        )
    return scored


def by_system(scored: Sequence[Scored], systems: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Mean scores and costs of each system over its questions; the time to first token is the median of those measured."""
    found = {}
    for system in systems:
        own = [one for one in scored if one.system == system]
        times = [one.ttft_s for one in own if one.ttft_s is not None]
        found[system] = {
            "n_answers": len(own),
            **{metric: _mean([getattr(one, metric) for one in own]) for metric in METRICS},
            "n_input_tokens": _mean([one.n_input_tokens for one in own]),
            "n_visual_tokens": _mean([one.n_visual_tokens for one in own]),
            "ttft_s": median(times) if times else None,
            "n_timed": len(times),
        }
    return found


def by_family(scored: Sequence[Scored], systems: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each family of questions: their number, each system's mean scores, the gap closed."""
    found = {}
    for family in sorted({one.family for one in scored}):
        own = [one for one in scored if one.family == family]
        means = {s: {m: _mean([getattr(one, m) for one in own if one.system == s]) for m in METRICS} for s in systems}
        found[family] = {
            "n_questions": len({one.question_id for one in own}),
            **{metric: {system: means[system][metric] for system in systems} for metric in METRICS},
            "gap_closed": {metric: gap_closed(own, metric) for metric in METRICS},
        }
    return found


def gap_closed(scored: Sequence[Scored], metric: str) -> dict[str, Any]:
    """(ours - blind) / (base - blind) with its interval; None where base is not better than blind, or a system is missing."""
    return with_interval(sums_by_video(scored, GAP, metric)[None], lambda sums: gap_ratio(*sums[:, 1:].T))


def gap_ratio(
    ours: Float[np.ndarray, " n_sets"], blind: Float[np.ndarray, " n_sets"], base: Float[np.ndarray, " n_sets"]
) -> Float[np.ndarray, " n_sets"]:
    """Of sums or means over the same questions; NaN where base is not better than blind."""
    gap = base - blind
    return np.where(gap > 0, (ours - blind) / np.where(gap > 0, gap, 1.0), np.nan)


def difference(scored: Sequence[Scored], pair: tuple[str, str], metric: str) -> dict[str, Any]:
    """Mean of the first system minus that of the second over questions both answered, with its interval."""
    return with_interval(sums_by_video(scored, pair, metric)[None], lambda sums: (sums[:, 1] - sums[:, 2]) / sums[:, 0])


def differences(scored: Sequence[Scored], systems: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The differences worth stating, by name and metric."""
    pairs = [pair for pair in PAIRS if set(pair) <= set(systems)]
    return {f"{one} - {two}": {metric: difference(scored, (one, two), metric) for metric in METRICS} for one, two in pairs}


def sums_by_video(scored: Sequence[Scored], systems: Sequence[str], metric: str) -> Float[np.ndarray, "n_videos n_sums"]:
    """For each video: the number of questions that all `systems` answered, then each system's sum of scores over them."""
    values = {(one.question_id, one.system): getattr(one, metric) for one in scored}
    videos: dict[str, list[list[float]]] = {}
    for question_id, video_id in sorted({(one.question_id, one.video_id) for one in scored}):
        if all((question_id, system) in values for system in systems):
            videos.setdefault(video_id, []).append([1.0, *(values[question_id, system] for system in systems)])
    return np.array([np.sum(rows, axis=0) for rows in videos.values()]).reshape(-1, 1 + len(systems))


def kept_bytes(
    scored: Sequence[Scored],
    *,
    frames: Sequence[dict[str, Any]],
    captions: dict[str, str],
    hypernetwork: dict[str, Any],
    kv_bytes_per_token: int,
) -> dict[str, dict[str, Number]]:
    """Mean bytes that a system keeps of one video so as to answer about it later, by system and form.

    `hypernetwork` is its config; the static adapter is kept once for all videos and does not count. Base keeps pictures, or the keys and
    values of the tokens that the video adds to a prompt.
    """
    n_factors = hypernetwork["n_layers"] * hypernetwork["r"] * sum(map(sum, hypernetwork["target_modules"].values()))
    own = {one.video_id for one in scored}
    means = by_system(scored, ("base", "blind"))
    with_video, without = means["base"]["n_input_tokens"], means["blind"]["n_input_tokens"]
    adapter: dict[str, Number] = {"adapter fp32": float(4 * n_factors), "adapter fp16": float(2 * n_factors)}
    return {
        "base": {
            "frames JPEG": _mean([sum(map(len, row["jpegs"])) for row in frames if row["video_id"] in own]),
            "KV cache": None if with_video is None or without is None else (with_video - without) * kv_bytes_per_token,
        },
        "ours": adapter,
        "other_video": adapter,
        "static": {"nothing": 0.0},
        "blind": {"nothing": 0.0},
        "caption": {"text": _mean([len(text.encode()) for video_id, text in captions.items() if video_id in own])},
    }


def size_text(n_bytes: float | None) -> str:
    """Bytes as people read them: 1 kB is 1,000 bytes."""
    if n_bytes is None:
        return "–"
    for unit in ("B", "kB", "MB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} GB"


def with_interval(
    sums: Float[np.ndarray, "n_seeds n_videos n_sums"],
    statistic: Callable[[Float[np.ndarray, "n_sets n_sums"]], Float[np.ndarray, " n_sets"]],
) -> dict[str, Any]:
    """The statistic of all videos, mean over seeds, and its 95 % interval, which is None if it is undefined in any resample.

    The first sum of a video is its number of questions, the same for all seeds.
    """
    n_seeds, n_videos, _ = sums.shape
    found: dict[str, Any] = {"value": None, "low": None, "high": None, "n_videos": n_videos, "n_questions": 0}
    if not n_videos or not n_seeds:
        return found
    found["n_questions"] = int(sums[0, :, 0].sum())
    value = float(statistic(sums.mean(0).sum(0, keepdims=True))[0])
    if np.isnan(value):
        return found
    found["value"] = value
    rng = np.random.default_rng(SEED)

    def drawn(n: int) -> Float[np.ndarray, "n_sets n"]:
        return rng.multinomial(n, np.full(n, 1 / n), 500).astype(float)

    def resample() -> Float[np.ndarray, " n_sets"]:
        return statistic(np.einsum("bs,bv,svk->bk", drawn(n_seeds) / n_seeds, drawn(n_videos), sums, optimize=True))

    resampled = np.concatenate([resample() for _ in range(N_RESAMPLES // 500)])
    if not np.isnan(resampled).any():
        found["low"], found["high"] = (float(edge) for edge in np.percentile(resampled, [2.5, 97.5]))
    return found


def _mean(values: Sequence[float | int]) -> Number:
    return fmean(values) if values else None
