"""The GPU-hours of a month."""

import re
from typing import Any

import pytest

from infra import promotions, runs
from infra.config import Recipe, Where
from infra.errors import StageFailedError
from infra.running import held
from tests.training.retraining.conftest import QUICK, tick
from tests.training.retraining.made import RIGHT, Source, answer, prepare
from training import decision, retrain


def budgeted(recipe: Recipe, gpu_hours: float) -> Recipe:
    return recipe.model_copy(update={"retraining": recipe.retraining.model_copy(update={"gpu_hours_per_month": gpu_hours})})


def book(where: Where, hours: float, *, stage: str = "train", month: str | None = None, **facts: Any) -> None:
    """A run of one stage that took so long, in a month."""
    with held(where, "run", {}, pace=QUICK) as running:
        common = {"told": "", "failed": None, "was_there": False, "seconds": 1.0, "after_s": 0.0}
        entry = {"kind": "stage", "stage": stage, "gpu_hours": hours, "run": running.mine.run, "attempt": running.mine.number, **common}
        at = f"{month or decision.month_now()}-15T12:00:00.000+00:00"
        assert running.log.append({**entry, "at": at, **facts}, number=running.runs.version)


def test_a_budget_that_is_spent_skips_before_all_else(source: Source, recipe: Recipe, where: Where) -> None:
    book(where, 6.0)
    book(where, 4.5, stage="targets")
    assert re.search(r"^skip: budget: 10.50 of 10 GPU-hours of 20..-.. are spent$", tick(source, budgeted(recipe, 10.0), where))


def test_another_months_hours_do_not_count(source: Source, recipe: Recipe, where: Where) -> None:
    book(where, 99.0, stage="targets", month="2020-01")
    assert retrain.dry_run(source.address, budgeted(recipe, 10.0), where, pace=QUICK) == ("would go on: toy has no champion yet")


def test_a_training_as_long_as_the_last_must_fit(source: Source, recipe: Recipe, where: Where) -> None:
    book(where, 3.0)
    book(where, 0.5, was_there=True)  # a look at one that was there is none
    told = tick(source, budgeted(recipe, 6.0), where)
    assert "3.50 of 6 GPU-hours" in told and "the teacher is expected to take 0.00 and a training 3.00 (as the last one did)" in told
    assert retrain.dry_run(source.address, budgeted(recipe, 7.0), where, pace=QUICK).startswith("would go on")


def test_the_teacher_must_fit_at_the_rate_last_measured(source: Source, recipe: Recipe, where: Where) -> None:
    teacher = {"hours": 2.0, "n_gpus": 4.0}
    assert decision.over_budget(budgeted(recipe, 8.5), runs.Runs(), teacher, month="2026-11") is None
    told = decision.over_budget(budgeted(recipe, 7.5), runs.Runs(), teacher, month="2026-11")
    assert told is not None and "0.00 of 7.5" in told and "expected to take 8.00 and a training 0.00" in told
    unknown = {"hours": None, "n_gpus": 4.0}
    assert decision.over_budget(budgeted(recipe, 7.5), runs.Runs(), unknown, month="2026-11") is None
    assert decision.over_budget(recipe, runs.Runs(), teacher, month="2026-11") is None, "no limit"


def test_what_is_only_judged_again_is_not_charged_a_training(
    champion: promotions.Champion, source: Source, recipe: Recipe, where: Where
) -> None:
    """Test clips were added since a challenger was kept out: the last training took all that is left."""
    source.add("train 3")
    prepare(source, recipe, where)
    answer(recipe, where, RIGHT | {"ours": False})
    assert tick(source, recipe, where).startswith("keep: ")
    book(where, 4.0)
    source.add("test 60", split="test")
    prepare(source, recipe, where)
    assert retrain.dry_run(source.address, budgeted(recipe, 6.0), where, pace=QUICK).startswith("would go on: ")
    nightly, seen = where.model_copy(update={"run": "nightly"}), promotions.standing(where.data, "toy")
    for told in ("was kept out", "was kept out (decided by attempt 1)"):
        with pytest.raises(StageFailedError), held(nightly, "retrain", {}, pace=QUICK) as running:
            found = retrain.decided(budgeted(recipe, 6.0), where, seen, running)
            assert found.goes and found.why.endswith(told)
            raise StageFailedError("a node was lost")
    source.add("train 4")
    prepare(source, recipe, where)
    assert retrain.dry_run(source.address, budgeted(recipe, 6.0), where, pace=QUICK).startswith("would skip: budget: 4.00 of 6")


def test_what_was_not_begun_must_fit_as_at_first(source: Source, recipe: Recipe, where: Where) -> None:
    """The same name again, weeks later: it was decided to go on, and nothing of the training is there."""
    nightly, longer = where.model_copy(update={"run": "nightly"}), budgeted(recipe, 6.0)
    longer = longer.model_copy(update={"training": longer.training.model_copy(update={"n_steps": 9})})
    seen = promotions.standing(where.data, "toy")
    with pytest.raises(StageFailedError), held(nightly, "retrain", {}, pace=QUICK) as running:
        assert retrain.decided(longer, where, seen, running).goes
        raise StageFailedError("a node was lost")
    book(where, 3.5)
    with pytest.raises(StageFailedError), held(nightly, "retrain", {}, pace=QUICK) as running:
        again = retrain.decided(longer, where, seen, running)
        assert not again.goes and "and a training 3.50 (as the last one did)" in again.why
        raise StageFailedError("again")


def test_what_was_begun_is_finished_while_hours_last(source: Source, recipe: Recipe, where: Where) -> None:
    """The attempt after a failed one does not ask whether another training would fit, but does not go beyond the limit either."""
    nightly = where.model_copy(update={"run": "nightly"})
    with pytest.raises(StageFailedError), held(nightly, "retrain", {}, pace=QUICK) as running:
        seen = promotions.standing(where.data, "toy")
        assert retrain.decided(budgeted(recipe, 6.0), running.where, seen, running).goes
        raise StageFailedError("a node was lost")
    book(where, 3.5)
    with pytest.raises(StageFailedError), held(nightly, "retrain", {}, pace=QUICK) as running:
        again = retrain.decided(budgeted(recipe, 6.0), running.where, seen, running)
        assert (again.goes, again.why) == (True, "toy has no champion yet (decided by attempt 1)")
        spent = retrain.decided(budgeted(recipe, 3.0), running.where, seen, running)
        assert not spent.goes and spent.why.startswith("budget: 3.50 of 3 GPU-hours")
        raise StageFailedError("again")
