"""Agreement against scipy, and by files and tables: what is matched, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from infra.config import Recipe, Where
from infra.errors import BadInputError
from infra.evaluation_config import JudgeModel, JudgeSettings
from infra.sets import judgements_made, judgements_set
from infra.stage import Order
from teacher.judge import asked_words
from tests.teacher.judged_root import ANSWERS, a_recipe, make_root
from training import agreement
from training.agreement import agreement_of, read_labels, spearman, with_people, with_second

SECOND = JudgeModel(model="org/other", served_by="endpoint")
JUDGE = JudgeSettings(model="org/judge", served_by="endpoint", second=SECOND, n_second=5)


def some_pairs(*, n: int = 83, n_videos: int = 83, seed: int = 3) -> list[agreement.Pair]:
    """Marks of 0 to 5 that agree more or less, with many ties."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 6, n)
    second = np.clip(first + rng.integers(-2, 3, n), 0, 5)
    return [(f"v{i % n_videos}", a / 5, b / 5) for i, (a, b) in enumerate(zip(first.tolist(), second.tolist(), strict=True))]


def test_the_correlation_is_scipys_with_ties_and_without() -> None:
    people = np.random.default_rng(5).random(83)
    for pairs in (some_pairs(), [(v, a, float(p)) for (v, a, _), p in zip(some_pairs(), people, strict=True)]):
        expected = stats.spearmanr([a for _, a, _ in pairs], [b for _, _, b in pairs]).statistic
        found = agreement_of(pairs, n_draws=100)
        assert found["spearman"] == pytest.approx(expected, abs=1e-12)
        assert found["mean_difference"] == pytest.approx(np.mean([a - b for _, a, b in pairs]))
        assert found["low"] < found["spearman"] < found["high"]


def test_the_interval_is_scipys_where_each_answer_has_a_video_of_its_own() -> None:
    pairs = some_pairs()
    found = agreement_of(pairs, n_draws=10_000)
    by_scipy = stats.bootstrap(
        ([a for _, a, _ in pairs], [b for _, _, b in pairs]),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True, vectorized=False, n_resamples=2_000, method="percentile", rng=np.random.default_rng(8),
    ).confidence_interval  # fmt: skip
    assert (found["low"], found["high"]) == pytest.approx((by_scipy.low, by_scipy.high), abs=0.015)
    assert (found["n"], found["n_videos"], found["n_draws_undefined"]) == (83, 83, 0)


def test_answers_about_one_video_are_drawn_together() -> None:
    """The same marks five times over say no more than once."""
    once = some_pairs(n=41, n_videos=41)
    alone, copied = agreement_of(once, n_draws=2_000), agreement_of(once * 5, n_draws=2_000)
    assert {name: copied[name] for name in ("spearman", "low", "high")} == pytest.approx(
        {name: alone[name] for name in ("spearman", "low", "high")}
    )
    apart = agreement_of([(f"{v}-{i}", a, b) for i, (v, a, b) in enumerate(once * 5)], n_draws=2_000)
    assert apart["high"] - apart["low"] < 0.6 * (alone["high"] - alone["low"])


def test_no_correlation_is_made_up_where_none_is_defined() -> None:
    assert agreement_of([], n_draws=100)["spearman"] is None
    same = agreement_of([("a", 0.4, 0.2), ("b", 0.4, 1.0)], n_draws=100)
    assert (same["spearman"], same["low"], same["mean_difference"]) == (None, None, pytest.approx(-0.2))
    one_video = agreement_of([("a", 0.4, 0.2), ("a", 0.6, 1.0)], n_draws=100)
    assert (one_video["spearman"], one_video["low"], one_video["high"]) == (pytest.approx(1.0), None, None)
    two = agreement_of([("a", 0.0, 0.0), ("b", 1.0, 1.0)], n_draws=400)
    assert 150 < two["n_draws_undefined"] < 250, "half of the draws are one of the two videos twice"
    assert np.isnan(spearman(np.ones((1, 1, 3)))).all()


def test_lines_that_are_no_marks_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    good = {"question_id": "q1", "system": "ours", "score": 0.5}
    wrong = [good | {"score": 4}, good | {"score": "0.5"}, good | {"system": "our"}, good | {"by": "me"}, good, "x"]
    lines = [good, good | {"system": "base", "score": 1}, *wrong]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    with pytest.raises(BadInputError) as caught:
        read_labels(str(path))
    said = str(caught.value)
    assert "6 lines are not" in said
    for part in ("line 3: score", "line 4: score", "line 5: system", "line 6: by", "line 7: q1 by ours has a mark already", "line 8: row"):
        assert part in said
    path.write_text("\n".join(json.dumps(line) for line in lines[:2]))
    assert [(label.system, label.score) for label in read_labels(str(path))] == [("ours", 0.5), ("base", 1.0)]
    with pytest.raises(BadInputError, match="no such file"):
        read_labels(str(tmp_path / "none.jsonl"))


def mark(recipe: Recipe, where: Where, one: JudgeModel, points: dict[str, int]) -> None:
    """Judgements of the answers named, as `judge` leaves them; other words are rejects."""
    words = asked_words(recipe, where)
    table = judgements_set(one, where.data, weights="w", rubrics="r")
    attempt = Order(table, {}, sorted(words), judgements_made(one, weights="w", rubrics="r")).begin()
    marks = {key: points[word.answer] for key, word in words.items() if word.answer in points}
    rows = [{"judgement_id": key, "score": n / 5, "points": n, "rationale": "", "replies": [""]} for key, n in marks.items()]
    rejects = [{"stage": "judge", "key": key, "reason": "judge_error", "detail": ""} for key in words if key not in marks]
    attempt.write(rows, rejects)
    attempt.complete()


def test_a_judges_name_is_printed_as_it_is_and_nothing_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    agreement._print(agreement_of(some_pairs(), n_draws=100) | {"judge": "org/[b]a[/x]", "other": "people", "n_unmatched": 10**30})
    table = capsys.readouterr().out
    assert "org/[b]a[/x] and people" in table and str(10**30) in table
    assert all(heading in table for heading in ("95 % interval", "mean difference", "not matched"))


POINTS = {"red": 5, "It is scarlet.": 4, "blue": 0, "three": 5, "two": 1, "Dogs run.": 3}


def test_the_second_judge_is_compared_on_what_both_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = a_recipe(JUDGE)
    where = make_root(recipe, tmp_path, ANSWERS)
    assert with_second(recipe, where) is None
    with pytest.raises(BadInputError, match="not by both judges"):
        agreement.run(recipe, where, labels=None, as_json=True)
    mark(recipe, where, JUDGE, POINTS)
    mark(recipe, where, SECOND, {"red": 4, "blue": 1, "three": 5, "two": 0, "A cat sleeps.": 0})
    found = with_second(recipe, where)
    assert found is not None
    assert found["spearman"] == pytest.approx(stats.spearmanr([5, 0, 5, 1], [4, 1, 5, 0]).statistic)
    assert (found["n"], found["n_videos"], found["n_unmatched"]) == (4, 2, 4)
    assert found["mean_difference"] == pytest.approx((1 - 1 + 0 + 1) / 4 / 5)
    assert (found["judge"], found["other"]) == ("org/judge", "org/other")
    agreement.run(recipe, where, labels=None, as_json=True)
    assert json.loads(capsys.readouterr().out) == found
    assert with_second(a_recipe(JUDGE.model_copy(update={"second": None})), where) is None
    assert with_second(a_recipe(None), where) is None


def test_people_are_compared_on_the_first_seeds_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = a_recipe(JUDGE, seeds=(42, 43))
    where = make_root(recipe, tmp_path, ANSWERS, dict.fromkeys(ANSWERS, "two"))
    mark(recipe, where, JUDGE, POINTS)
    people = {("q1", "base"): 1.0, ("q1", "ours"): 0.9, ("q1", "blind"): 0.2, ("q2", "ours"): 0.7, ("c1", "ours"): 0.7}
    unknown = {("q1", "static"): 0.1, ("q9", "ours"): 0.1, ("c1", "blind"): 0.0}
    rows = [{"question_id": q, "system": s, "score": score} for (q, s), score in (people | unknown).items()]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    labels = read_labels(str(tmp_path / "labels.jsonl"))
    found = with_people(recipe, where, labels)
    judged = [POINTS[ANSWERS[place]] / 5 for place in people]
    assert found["spearman"] == pytest.approx(stats.spearmanr(judged, list(people.values())).statistic)
    assert (found["n"], found["n_unmatched"], found["other"]) == (5, 3, "people")
    told = capsys.readouterr().err
    assert "q1 by static (not answered)" in told and "q9 by ours (not answered)" in told and "c1 by blind (not judged)" in told
    agreement.run(recipe, where, labels=str(tmp_path / "labels.jsonl"), as_json=False)
    table = capsys.readouterr().out
    assert f"{found['spearman']:.3f}" in table and "org/judge and people" in table
    surer = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"alpha": 0.1})})
    assert with_people(surer, where, labels) == found, "95 % as the report says, whatever alpha"
    with pytest.raises(BadInputError, match="none of the 3 marks"):
        with_people(recipe, where, labels[-3:])
    with pytest.raises(BadInputError, match="judge is not set"):
        with_people(a_recipe(None), where, labels)
