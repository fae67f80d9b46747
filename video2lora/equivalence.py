"""Sums of scores by video -> differences with intervals, and what may be claimed of them: non-inferiority and equivalence at a margin.

Questions of one video share its adapter, so they are not independent: a bootstrap draws whole videos, for all systems alike (paired). Of
several trainings, seeds are drawn too, and one draw of videos counts for all of them: they answer about the same ones (Owen 2007, "The
pigeonhole bootstrap", arXiv 0712.1111). Intervals are percentiles of 10,000 draws.

arXiv 2606.04351 section 4.3 claims by 95 % intervals: non-inferior where the lower edge is above -margin, equivalent where both edges are
within the margin. That is a one-sided test at 2.5 % and two of them (TOST; Schuirmann 1987), which is `alpha` here.

A bootstrap knows only what was drawn, and is too sure of few videos: one has no spread, so no interval, and where none happens to differ
it would be sure of anything. Scores lie in [0, 1] and of n videos without an exception a share of 1 - alpha ** (1 / n) may still be
exceptions (the rule of three, Hanley and Lippman-Hand 1983), so no margin below that is claimed: 72 videos for 0.05, 23 for 0.15. That is
the least, and not enough to be as sure as alpha says: of systems that truly lose 5 % of the videos whole, 12 % are called not worse within
0.05 on 72 videos, 6 % on 120, 3 % on 200 and on 500 (exact, at alpha 0.025; the tests have them). Ask for 200.

Of one seed, a claim is about that training alone; three seeds drawn with replacement show two thirds of their variance.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

N_DRAWS = 10_000
BATCH = 500  # draws at once: 12 MB of counts for 3,000 videos

Sums = Float[np.ndarray, "n_seeds n_videos n_sums"]
Statistic = Callable[[Float[np.ndarray, "n_sets n_sums"]], Float[np.ndarray, " n_sets"]]


@dataclass(frozen=True)
class Claim:
    """What is known of a mean difference of scores in [0, 1], ours - reference, over questions that both answered.

    `low` and `high` bound it at 95 %, and are None of one video. A claim holds at `alpha` and any margin above the smallest.
    """

    value: float
    low: float | None
    high: float | None
    n_videos: int
    n_questions: int
    n_seeds: int
    margin: float
    alpha: float
    p_noninferior: float
    p_equivalent: float
    noninferior: bool
    equivalent: bool
    smallest_noninferior: float
    smallest_equivalent: float


def draws(sums: Sums, statistic: Statistic, *, n_draws: int = N_DRAWS, seed: int = 0) -> Float[np.ndarray, " n_draws"]:
    """The statistic of `n_draws` resamples. It is given sums over a resample's videos, mean over its seeds.

    ValueError without seeds or videos.
    """
    n_seeds, n_videos, n_sums = sums.shape
    if not n_seeds or not n_videos:
        raise ValueError(f"got {n_seeds} seeds and {n_videos} videos, expected at least one of each")
    by_video = sums.transpose(1, 0, 2).reshape(n_videos, -1)
    found = []
    for seeds, videos in _all_times_drawn(n_seeds, n_videos, n_draws, seed):
        of_seeds = (videos.astype(float) @ by_video).reshape(len(videos), n_seeds, n_sums)
        found.append(statistic(np.einsum("ns,nsk->nk", seeds / n_seeds, of_seeds)))
    return np.concatenate(found)


def with_interval(sums: Sums, statistic: Statistic, *, n_draws: int = N_DRAWS, seed: int = 0) -> dict[str, Any]:
    """The statistic of all videos, mean over seeds, and its 95 % interval: None of one video, or if it is undefined in any resample.

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
    if n_videos > 1:
        resampled = draws(sums, statistic, n_draws=n_draws, seed=seed)
        if not np.isnan(resampled).any():
            found["low"], found["high"] = (float(edge) for edge in np.percentile(resampled, [2.5, 97.5]))
    return found


def claim(
    sums: Float[np.ndarray, "n_seeds n_videos 3"], *, margin: float, alpha: float = 0.025, n_draws: int = N_DRAWS, seed: int = 0
) -> Claim | None:
    """Of a video's number of questions and the sums of our and of the reference's scores over them; None where there is no question.

    Videos without a question do not count. A p-value is (1 + draws that contradict) / (1 + draws), and never less than what so few videos
    show, (1 - margin) ** n.
    """
    sums = sums[:, sums[:, :, 0].sum(0) > 0]
    n_seeds, n_videos, _ = sums.shape
    if not sums.size:
        return None
    drawn = draws(sums, _difference, n_draws=n_draws, seed=seed)
    low, high, lower, upper = (float(edge) for edge in np.quantile(drawn, [0.025, 0.975, alpha, 1 - alpha]))
    p_unseen, smallest = (1 - margin) ** n_videos, 1 - alpha ** (1 / n_videos)
    p_below = max(p_unseen, float(1 + (drawn <= -margin).sum()) / (1 + n_draws))
    p_above = max(p_unseen, float(1 + (drawn >= margin).sum()) / (1 + n_draws))
    smallest_noninferior = max(smallest, -lower)
    smallest_equivalent = max(smallest_noninferior, upper)
    return Claim(
        value=float(_difference(sums.mean(0).sum(0, keepdims=True))[0]),
        low=low if n_videos > 1 else None,
        high=high if n_videos > 1 else None,
        n_videos=n_videos,
        n_questions=int(sums[0, :, 0].sum()),
        n_seeds=n_seeds,
        margin=margin,
        alpha=alpha,
        p_noninferior=p_below,
        p_equivalent=max(p_below, p_above),
        noninferior=smallest_noninferior < margin,
        equivalent=smallest_equivalent < margin,
        smallest_noninferior=smallest_noninferior,
        smallest_equivalent=smallest_equivalent,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction over a family of tests (1979): those at most alpha are claims of which none is wrong at 1 - alpha."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda one: p_values[one])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def _difference(sums: Float[np.ndarray, "n_sets 3"]) -> Float[np.ndarray, " n_sets"]:
    return (sums[:, 1] - sums[:, 2]) / sums[:, 0]


@functools.lru_cache(maxsize=4)  # a report has hundreds of claims about the same videos; 10 MB for 1,000 of them
def _all_times_drawn(
    n_seeds: int, n_videos: int, n_draws: int, seed: int
) -> list[tuple[UInt8[np.ndarray, "n_sets n_seeds"], UInt8[np.ndarray, "n_sets n_videos"]]]:
    """How often each seed and each video is drawn, in batches."""
    rng, found = np.random.default_rng(seed), []
    for start in range(0, n_draws, BATCH):
        n = min(BATCH, n_draws - start)
        found.append((_times_drawn(rng, n_seeds, n), _times_drawn(rng, n_videos, n)))
    return found


def _times_drawn(rng: np.random.Generator, n: int, n_sets: int) -> UInt8[np.ndarray, "n_sets n"]:
    """How often each of n is drawn when n are drawn with replacement, for several sets; 256 times, no one comes."""
    places: Int[np.ndarray, "n_sets n"] = rng.integers(n, size=(n_sets, n))
    places += np.arange(n_sets)[:, None] * n
    return np.bincount(places.ravel(), minlength=n_sets * n).reshape(n_sets, n).astype(np.uint8)
