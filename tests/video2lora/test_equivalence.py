"""Intervals and claims against hand-worked cases, scipy's bootstrap, statsmodels' tests, and the truth of simulated videos."""

from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binom
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from video2lora.equivalence import _all_times_drawn, claim, draws, holm, with_interval


def sums_of(ours: Any, reference: Any) -> np.ndarray:
    """Of one seed, [n_videos, n_questions] scores each."""
    ours, reference = np.asarray(ours, float), np.asarray(reference, float)
    return np.stack([np.full(len(ours), float(ours.shape[1])), ours.sum(1), reference.sum(1)], 1)[None]


def mean(sums: np.ndarray) -> np.ndarray:
    return sums[:, 1] / sums[:, 0]


def test_every_draw_of_two_videos_is_one_of_three() -> None:
    """Videos with 1 question of 1 right, and 3 of which none: both, either twice; a quarter, a half, a quarter of the draws."""
    drawn = draws(np.array([[[1.0, 1.0], [3.0, 0.0]]]), mean, n_draws=10_007)
    assert drawn.shape == (10_007,)
    assert set(drawn) == {1.0, 0.25, 0.0}
    for value, share in ((1.0, 0.25), (0.25, 0.5), (0.0, 0.25)):
        assert (drawn == value).mean() == pytest.approx(share, abs=0.02)


def test_seeds_are_drawn_too_and_a_draw_of_videos_counts_for_all_of_them() -> None:
    alike = np.array([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])  # two seeds: all wrong, all right
    assert set(draws(alike, mean, n_draws=500)) == {0.0, 0.5, 1.0}
    opposite = np.array([[[1.0, 0.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 0.0]]])  # together each video is half right
    drawn = draws(opposite, mean, n_draws=5_000)
    assert (drawn == 0.5).mean() == pytest.approx(0.75, abs=0.03)  # unless one seed and one video are drawn twice


def test_draws_repeat_by_their_seed() -> None:
    sums = sums_of(np.random.default_rng(0).random((13, 3)), np.zeros((13, 3)))
    first = draws(sums, mean, n_draws=700, seed=5)
    _all_times_drawn.cache_clear()  # or it would be the same counts
    assert np.array_equal(first, draws(sums, mean, n_draws=700, seed=5))
    assert not np.array_equal(draws(sums, mean, n_draws=700, seed=5), draws(sums, mean, n_draws=700, seed=6))


@pytest.mark.parametrize(("n_videos", "share"), [(72, 0.119), (120, 0.058), (200, 0.026), (500, 0.034)])
def test_how_often_a_system_that_loses_the_margin_is_called_not_worse(n_videos: int, share: float) -> None:
    """Exactly, over how many of its videos it may lose: each whole, with a chance of 0.05, which is the margin."""

    def passes(n_lost: int) -> bool:
        found = claim(sums_of(np.arange(n_videos)[:, None] >= n_lost, np.ones((n_videos, 1))), margin=0.05)
        return found is not None and found.noninferior

    chances = binom.pmf(np.arange(n_videos + 1), n_videos, 0.05)
    assert sum(chance for n, chance in enumerate(chances[: n_videos // 20 + 1]) if passes(n)) == pytest.approx(share, abs=0.001)


def test_draws_of_nothing_are_an_error() -> None:
    with pytest.raises(ValueError, match="0 seeds and 2 videos"):
        draws(np.zeros((0, 2, 3)), mean)


def test_interval_of_hand_worked_sums() -> None:
    found = with_interval(np.array([[[1.0, 1.0], [3.0, 0.0]]]), mean)
    assert found == {"value": 0.25, "low": 0.0, "high": 1.0, "n_videos": 2, "n_questions": 4}
    one = with_interval(np.array([[[4.0, 3.0]]]), mean)
    assert one == {"value": 0.75, "low": None, "high": None, "n_videos": 1, "n_questions": 4}
    nothing = with_interval(np.zeros((1, 0, 2)), mean)
    assert nothing == {"value": None, "low": None, "high": None, "n_videos": 0, "n_questions": 0}


def test_no_interval_where_a_draw_is_undefined() -> None:
    def ratio(sums: np.ndarray) -> np.ndarray:
        return np.where(sums[:, 2] > 0, sums[:, 1] / np.where(sums[:, 2] > 0, sums[:, 2], 1.0), np.nan)

    found = with_interval(np.array([[[1.0, 1.0, 0.0], [1.0, 0.0, 2.0]]]), ratio)
    assert (found["value"], found["low"], found["high"]) == (0.5, None, None)
    assert with_interval(np.array([[[1.0, 1.0, 0.0]]]), ratio)["value"] is None


def test_with_one_question_per_video_it_is_scipys_bootstrap() -> None:
    scores = np.random.default_rng(3).beta(2, 5, size=61)
    found = with_interval(np.stack([np.ones(61), scores], 1)[None], mean)
    theirs = stats.bootstrap((scores,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(4))
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert found["low"] == pytest.approx(theirs.confidence_interval.low, abs=0.03 * width)  # two bootstraps differ by their draws
    assert found["high"] == pytest.approx(theirs.confidence_interval.high, abs=0.03 * width)


def test_the_interval_holds_the_truth_where_questions_of_a_video_go_together() -> None:
    """200 worlds of 40 videos with 11 questions; each video has a difference of its own around 0.1. Drawn by question it is missed."""
    rng = np.random.default_rng(7)
    held = {"by video": 0, "by question": 0}
    for world in range(200):
        difference = rng.normal(0.1, 0.2, size=(40, 1)) + rng.normal(0, 0.1, size=(40, 11))
        for unit, scores in (("by video", difference), ("by question", difference.reshape(-1, 1))):
            found = claim(sums_of(scores, np.zeros_like(scores)), margin=0.05, n_draws=500, seed=world)
            assert found is not None and found.low is not None and found.high is not None
            held[unit] += found.low < 0.1 < found.high
    assert held["by video"] >= 180  # of 190 expected; 40 videos cost a percent or two
    assert held["by question"] <= 120


@pytest.mark.parametrize("true", [-0.04, 0.0, 0.03])
def test_equivalence_is_statsmodels_tost_for_many_videos(true: float) -> None:
    rng = np.random.default_rng(11)
    reference = rng.beta(3, 3, size=(997, 1))
    ours = reference + rng.normal(true, 0.3, size=(997, 1))
    found = claim(sums_of(ours, reference), margin=0.05)
    assert found is not None
    p_value, below, _ = ttost_paired(ours[:, 0], reference[:, 0], -0.05, 0.05)
    assert found.p_equivalent == pytest.approx(p_value, abs=0.02)
    assert found.p_noninferior == pytest.approx(below[1], abs=0.02)
    assert found.equivalent == (p_value < 0.025)
    assert found.noninferior == (below[1] < 0.025)
    interval = stats.ttest_rel(ours[:, 0], reference[:, 0]).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(interval.low, abs=0.002), pytest.approx(interval.high, abs=0.002))
    assert found.smallest_equivalent == pytest.approx(max(-interval.low, interval.high), abs=0.002)


def test_a_claim_holds_beyond_its_smallest_margin_and_not_below() -> None:
    rng = np.random.default_rng(2)
    sums = sums_of(rng.random((307, 5)) < 0.85, rng.random((307, 5)) < 0.87)
    at = claim(sums, margin=0.05)
    assert at is not None and at.smallest_noninferior < at.smallest_equivalent + 1e-12
    for name in ("noninferior", "equivalent"):
        smallest = getattr(at, f"smallest_{name}")
        above, below = claim(sums, margin=smallest + 1e-6), claim(sums, margin=smallest - 1e-6)
        assert above is not None and below is not None
        assert (getattr(above, name), getattr(below, name)) == (True, False)
        assert getattr(above, f"p_{name}") == pytest.approx(0.025, abs=0.002)


def test_the_paper_claims_by_its_95_percent_interval_and_a_wider_alpha_claims_more() -> None:
    rng = np.random.default_rng(5)
    sums = sums_of(rng.random((211, 3)) < 0.80, rng.random((211, 3)) < 0.83)
    strict, usual = claim(sums, margin=0.15), claim(sums, margin=0.15, alpha=0.05)
    assert strict is not None and usual is not None and strict.low is not None
    assert strict.smallest_noninferior == -strict.low
    assert usual.smallest_noninferior < strict.smallest_noninferior
    assert (usual.low, usual.high) == (strict.low, strict.high)


def test_better_everywhere_is_noninferior_and_not_equivalent() -> None:
    found = claim(sums_of(np.full((101, 2), 0.9), np.full((101, 2), 0.5)), margin=0.05)
    assert found is not None
    assert (found.noninferior, found.equivalent) == (True, False)
    assert found.p_noninferior == pytest.approx(0.95**101)
    assert found.smallest_equivalent == pytest.approx(0.4)


@pytest.mark.parametrize(("n_videos", "holds"), [(1, False), (2, False), (71, False), (72, True)])
def test_few_videos_that_do_not_differ_show_little(n_videos: int, holds: bool) -> None:
    """72: the least n with (1 - 0.05) ** n at most 0.025."""
    found = claim(sums_of(np.ones((n_videos, 7)), np.ones((n_videos, 7))), margin=0.05)
    assert found is not None
    assert (found.value, found.noninferior, found.equivalent) == (0.0, holds, holds)
    assert found.p_equivalent == pytest.approx(0.95**n_videos)
    assert (1 - found.smallest_equivalent) ** n_videos == pytest.approx(0.025)
    assert (found.low, found.high) == ((None, None) if n_videos == 1 else (0.0, 0.0))


def test_more_agreement_never_claims_less() -> None:
    reference = np.ones((83, 3))
    one_wrong = reference.copy()
    one_wrong[0, 0] = 0
    all_right, less = claim(sums_of(reference, reference), margin=0.05), claim(sums_of(one_wrong, reference), margin=0.05)
    assert all_right is not None and less is not None
    assert all_right.smallest_noninferior <= less.smallest_noninferior
    assert all_right.p_noninferior <= less.p_noninferior


def test_seeds_that_disagree_widen_the_interval() -> None:
    rng = np.random.default_rng(9)
    reference = np.full((97, 2), 0.5)
    shifts = (-0.1, 0.0, 0.1)
    apart = np.concatenate([sums_of(np.clip(reference + shift + rng.normal(0, 0.05, (97, 2)), 0, 1), reference) for shift in shifts])
    alike = np.concatenate([sums_of(np.clip(reference + rng.normal(0, 0.05, (97, 2)), 0, 1), reference) for _ in shifts])
    wide, narrow = claim(apart, margin=0.05), claim(alike, margin=0.05)
    assert wide is not None and narrow is not None
    assert (wide.n_seeds, wide.equivalent, narrow.equivalent) == (3, False, True)


def test_videos_without_a_question_do_not_count() -> None:
    sums = sums_of([[1.0], [0.0], [1.0]], [[1.0], [1.0], [0.0]])
    padded = np.concatenate([sums, np.zeros((1, 5, 3))], axis=1)
    assert claim(padded, margin=0.05) == claim(sums, margin=0.05)
    assert claim(np.zeros((2, 3, 3)), margin=0.05) is None
    assert claim(np.zeros((1, 0, 3)), margin=0.05) is None


def test_holm_is_statsmodels() -> None:
    p_values = [0.04, 0.001, 0.03, 0.001, 0.6, 0.9, 0.0101]
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 * .01; 2 * .03; 1 * .04, but not below the one before
    assert holm([]) == []
