"""The report's numbers against figures worked out by hand, numpy and statsmodels."""

import random
from typing import Any

import numpy as np
import pytest
from made_rows import a_row, rows_of
from statsmodels.stats.multitest import multipletests

from infra.evaluation_config import EvaluationSettings
from training import measures

QUICK = EvaluationSettings(n_draws=1000)
REFERENCES = {"a1": ["red"], "a2": ["left"], "a3": ["blue"], "b1": ["red"], "b2": ["right"]}
EXACT = {
    "base": {"a1": 1.0, "a2": 1.0, "a3": 0.0, "b1": 1.0, "b2": 1.0},
    "ours": {"a1": 1.0, "a2": 0.0, "a3": 1.0, "b1": 1.0, "b2": 0.0},
    "blind": {"a1": 1.0, "a2": 0.0, "a3": 0.0, "b1": 0.0, "b2": 0.0},
    "caption": {"a1": 1.0, "a2": 0.0, "a3": 0.0},
}


def by_hand(values: dict[str, dict[str, float]] = EXACT) -> measures.Marks:
    """Two videos, a and b; the caption answers about one of them alone."""
    rows = [a_row(one, system, value, content=one[0]) for system, of in values.items() for one, value in of.items()]
    return measures.marks(rows, list(values))


def test_a_sweeps_answers_are_marked_against_their_questions() -> None:
    asked = [{"question_id": "q", "video_id": "v", "references": ["red", "dark red"]}]
    (one,) = measures.score([{"question_id": "q", "system": "ours", "answer": "It is red"}], asked, contents={"v": "of a file"})
    assert (one.content, one.exact_match, one.token_f1) == ("of a file", 0.0, pytest.approx(1 / 2))


def test_sums_are_of_the_questions_that_all_answered() -> None:
    of = by_hand()
    assert measures.sums(of, "exact_match", ("ours", "base")).tolist() == [[[3, 2, 2], [2, 1, 2]]]
    assert measures.sums(of, "exact_match", ("ours", "caption")).tolist() == [[[3, 2, 1]]], "video b has no caption"
    assert measures.sums(of, "exact_match", ("ours", "static")).shape == (1, 0, 3)
    assert measures.sums(of, "wups", ("ours", "base")).shape == (1, 0, 3)


def test_spans_of_one_file_are_one_video() -> None:
    """72 videos alike are the least for a margin of 0.05; so many spans of one file are no evidence."""
    for n_contents, holds in ((72, True), (1, False)):
        rows = [a_row(f"v{i}", one, 1.0, content=f"c{i % n_contents}") for i in range(72) for one in ("ours", "base", "blind")]
        told = measures.numbers(rows, ["ours", "base", "blind"], QUICK)
        (claimed,) = told["overall"]["claims"]["token_f1"]
        assert (told["counts"]["videos"], claimed["n_videos"], claimed["noninferior"]) == (n_contents, n_contents, holds)


def test_an_answer_that_one_training_lacks_counts_in_none() -> None:
    rows = [a_row(f"v-{i}", system, 1.0, seed=seed) for i in range(3) for system in ("ours", "base") for seed in (7, 3)]
    lacking = [row for row in rows if (row["question_id"], row["system"], row["seed"]) != ("v-1", "ours", 3)]
    of = measures.marks(lacking, ["ours", "base"])
    assert of.seeds == (7, 3)
    assert measures.sums(of, "token_f1", ("ours", "base")).tolist() == [[[2, 2, 2]], [[2, 2, 2]]]


def test_sums_of_many_are_those_of_a_plain_loop() -> None:
    rows = rows_of(23, draw=5)
    of = measures.marks(rows, ["base", "ours", "other_video", "blind"])
    got = measures.sums(of, "exact_match", ("ours", "blind"))
    for i, seed in enumerate((7, 3)):
        for j, video in enumerate(sorted({row["video_id"] for row in rows})):
            own = [r for r in rows if (r["video_id"], r["seed"]) == (video, seed) and r["exact_match"] is not None]
            expected = [2.0, *(sum(r["exact_match"] for r in own if r["system"] == system) for system in ("ours", "blind"))]
            assert got[i, j].tolist() == expected


def test_gap_and_differences_with_intervals() -> None:
    """Two videos can be drawn as a, a; a, b; b, b: the interval's edges are the first and the last."""
    of = by_hand()
    gap = measures.gap_closed(of, "exact_match", QUICK)
    assert gap["value"] == pytest.approx((3 - 1) / (4 - 1))
    assert (gap["low"], gap["high"]) == (pytest.approx(1 / 2), pytest.approx(1))
    against_base = measures.difference(of, "exact_match", ("ours", "base"), QUICK)
    assert against_base["value"] == pytest.approx(-1 / 5)
    assert (against_base["low"], against_base["high"]) == (pytest.approx(-1 / 2), 0)
    assert (against_base["n_videos"], against_base["n_questions"]) == (2, 5)
    against_caption = measures.difference(of, "exact_match", ("ours", "caption"), QUICK)
    assert (against_caption["system"], against_caption["against"], against_caption["n_questions"]) == ("ours", "caption", 3)
    assert against_caption["value"] == pytest.approx(1 / 3)


def test_a_gap_that_is_none_has_no_share_closed() -> None:
    none = by_hand({**EXACT, "base": EXACT["blind"]})
    got = measures.gap_closed(none, "exact_match", QUICK)
    assert (got["value"], got["low"], got["n_questions"]) == (None, None, 5)
    assert measures.gap_closed(by_hand({"ours": EXACT["ours"]}), "exact_match", QUICK)["value"] is None


def test_the_interval_is_about_that_of_the_normal_approximation() -> None:
    rng, values = random.Random(3), {"base": 0.9, "ours": 0.6}
    rows = [a_row(f"{i}-q", system, float(rng.random() < share)) for i in range(400) for system, share in values.items()]
    of = measures.marks(rows, list(values))
    got = measures.difference(of, "exact_match", ("ours", "base"), EvaluationSettings())
    base, ours = of.values["exact_match"][:, 0]
    half = 1.96 * (ours - base).std() / 400**0.5
    assert got["value"] == pytest.approx((ours - base).mean())
    assert (got["low"], got["high"]) == pytest.approx((got["value"] - half, got["value"] + half), abs=0.005)


@pytest.fixture(scope="module")
def of() -> measures.Marks:
    return measures.marks(rows_of(61, judged=True), ["base", "ours", "other_video", "blind"])


@pytest.fixture(scope="module")
def benchmarks(of: measures.Marks) -> dict[str, Any]:
    return measures.by_benchmark(of, QUICK)


def test_means_are_over_trainings_and_questions(of: measures.Marks, benchmarks: dict[str, Any]) -> None:
    rows = [row for row in rows_of(61, judged=True) if row["benchmark"] == "toy_qa" and row["system"] == "ours"]
    got = benchmarks["toy_qa"]
    assert (got["task"], got["n_questions"], got["n_videos"]) == ("question", 122, 61)
    assert got["scores"]["exact_match"]["ours"] == pytest.approx(np.mean([row["exact_match"] for row in rows]))
    style = got["styles"]["direction"]
    expected = np.mean([row["token_f1"] for row in rows if row["style"] == "direction"])
    assert (style["n_questions"], style["scores"]["token_f1"]["ours"]) == (61, pytest.approx(expected))
    assert tuple(of.values) == ("judge", "token_f1", "exact_match", "rouge_l"), "no question has a WUPS"
    captions = benchmarks["toy_captions"]
    assert (captions["task"], captions["scores"]["exact_match"]["ours"], captions["claims"]["exact_match"]) == ("caption", None, [])


def test_claims_are_of_each_margin_and_the_systems_that_answered(benchmarks: dict[str, Any]) -> None:
    claims = benchmarks["toy_qa"]["claims"]
    assert [(one["system"], one["against"], one["margin"]) for one in claims["judge"]] == [("ours", "base", 0.15), ("ours", "base", 0.05)]
    assert [one["margin"] for one in claims["token_f1"]] == [0.05]
    loose, strict = claims["judge"]
    rows = [row for row in rows_of(61, judged=True) if row["benchmark"] == "toy_qa"]
    ours, base = (np.mean([row["judge"] for row in rows if row["system"] == system]) for system in ("ours", "base"))
    assert loose["value"] == strict["value"] == pytest.approx(ours - base)
    assert (loose["n_seeds"], loose["n_videos"], loose["n_questions"]) == (2, 61, 122)
    assert loose["noninferior"] == (loose["smallest_noninferior"] < 0.15) and not strict["noninferior"]
    assert [one["system"] for one in benchmarks["toy_qa"]["differences"]["judge"]] == ["ours", "other_video"]
    assert benchmarks["toy_qa"]["styles"]["colour"]["differences"]["judge"] == []


def test_p_values_are_corrected_over_benchmarks(benchmarks: dict[str, Any]) -> None:
    for name, place in (("judge", 0), ("judge", 1), ("token_f1", 0)):
        claims = [benchmarks[one]["claims"][name][place] for one in benchmarks]
        for p in ("p_noninferior", "p_equivalent"):
            expected = multipletests([one[p] for one in claims], method="holm")[1]
            assert [one[f"{p}_holm"] for one in claims] == pytest.approx(list(expected))
    (alone,) = benchmarks["toy_qa"]["claims"]["exact_match"]
    assert alone["p_noninferior_holm"] == alone["p_noninferior"], "captions have no exact match: it is the only one"


def test_over_all_is_of_all_questions(of: measures.Marks, benchmarks: dict[str, Any]) -> None:
    got = measures.overall(of, benchmarks, QUICK)
    assert (got["task"], got["n_questions"], got["n_videos"]) == ("mixed", 183, 61)
    assert got["scores"]["token_f1"]["base"] == pytest.approx(np.mean([r["token_f1"] for r in rows_of(61) if r["system"] == "base"]))
    alone = of.part("benchmark", "toy_qa")
    got, expected = measures.overall(alone, measures.by_benchmark(alone, QUICK), QUICK), measures.part(alone, QUICK)
    for one in (one for claimed in expected["claims"].values() for one in claimed):
        one |= {f"{p}_holm": one[p] for p in ("p_noninferior", "p_equivalent")}  # of one benchmark there is nothing to correct
    assert got == expected
