"""A retraining that is killed, or that another run or a hand overtakes: it promotes once, and never over a newer decision."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra import promotions, runs
from infra.config import Recipe, Where
from infra.errors import SupersededError
from infra.running import held
from tests.training.retraining.conftest import QUICK, Kept, last, tick
from tests.training.retraining.made import Source, answer, before_entry, prepare, train
from training import retrain

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("at", ["before the gate", "after the verdict", "when it is told"])
def test_a_retraining_that_ends_anywhere_goes_on_and_promotes_once(
    source: Source, recipe: Recipe, where: Where, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    nightly = where.model_copy(update={"run": "nightly"})
    place = {"before the gate": "settle", "after the verdict": "judged_before", "when it is told": "post"}[at]
    real = getattr(retrain, place)
    n_calls = 0

    def killed(*arguments: Any, **named: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if place == "judged_before" and n_calls == 1:
            return real(*arguments, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(retrain, place, killed)
    with pytest.raises(KeyboardInterrupt):
        tick(source, recipe, nightly)
    monkeypatch.setattr(retrain, place, real)
    assert tick(source, recipe, nightly).startswith("promote: ")
    assert [one.closed["exit_code"] for one in runs.read(where.data).of("nightly")] == [130, 0]  # type: ignore[index]
    assert [(entry["kind"], entry["by"]) for entry in promotions.history(where.data)] == [("promote", "nightly")]
    assert tick(source, recipe, nightly).startswith("skip: 0 new"), "a name that is used again decides anew"


@pytest.mark.slow
def test_a_retraining_that_is_killed_at_any_entry_goes_on_and_promotes_once(kept: Kept, source: Source, tmp_path: Path) -> None:
    asked = json.dumps([str(kept.base), source.address, str(kept.base / "prepared"), str(tmp_path)])
    folders = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "training", ROOT / "tests" / "video2lora")))
    ran = subprocess.run(
        [sys.executable, "-m", "tests.training.retraining.killed", asked],
        env={**os.environ, "PYTHONPATH": folders}, cwd=ROOT, capture_output=True, text=True, timeout=800,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-4000:]
    *killed, undisturbed = map(json.loads, ran.stdout.splitlines())
    assert undisturbed["codes"] == [0, 0] and undisturbed["closed"] == ["end", "end"] and undisturbed["why"].startswith("skip: 0 new")
    # begin, a stage each for manifest, frames, targets, examples, train, answer, report and gate, note, claim, promote, end
    assert len(killed) == 13
    for one in killed:
        assert one["codes"] == [-signal.SIGKILL, 0] and one["promotions"] == [["promote", "nightly"]], one
        assert one["why"].startswith("promote: "), one
    assert [one["closed"] for one in killed] == [["end"], *[["died", "end"]] * 12]


def test_who_claimed_last_decides(recipe: Recipe, where: Where) -> None:
    """A run that was paused before its verdict, and wakes when another has begun to decide."""
    name = Path(train(recipe, where).folder).name
    paused = promotions.claim(where.data, vlm="toy", by="paused")
    other = promotions.claim(where.data, vlm="toy", by="other")
    promotions.claim(where.data, vlm="another VLM", by="somebody")
    for decide in (promotions.promote, promotions.keep):
        with pytest.raises(SupersededError, match="other began to decide"):
            decide(where.data, name, expected=paused, verdict={"why": "x"}, by="paused")
    promotions.keep(where.data, name, expected=other, verdict={"why": "x"}, by="other")
    promotions.promote(where.data, name, expected=other, verdict={"why": "x"}, by="other")
    assert [entry["kind"] for entry in promotions.history(where.data)] == ["keep", "promote"], "claims are no decisions"


def test_a_hand_that_decides_meanwhile_supersedes_the_run(
    source: Source, recipe: Recipe, where: Where, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(source, recipe, where)
    answer(recipe, where)
    real = retrain.settle

    def settle(challenging: Recipe, challenger: str, *arguments: Any, **named: Any) -> None:
        other = train(challenging.model_copy(update={"training": challenging.training.model_copy(update={"n_steps": 9})}), where)
        promotions.promote(where.data, Path(other.folder).name, expected=0, verdict={"why": "by hand"})
        real(challenging, challenger, *arguments, **named)

    monkeypatch.setattr(retrain, "settle", settle)
    with pytest.raises(SupersededError, match="became champion by hand"):
        tick(source, recipe, where)
    assert last(where).closed["exit_code"] == 8  # type: ignore[index]
    assert [entry["by"] for entry in promotions.history(where.data)] == ["hand"]


def by_hand(recipe: Recipe, where: Where) -> None:
    """Somebody promotes the recipe's hypernetwork, having looked at how things stand."""
    name, seen = Path(train(recipe, where).folder).name, promotions.standing(where.data, "toy")
    promotions.promote(where.data, name, expected=seen.n_entries, verdict={"why": "by hand"})


def trained_longer(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"n_steps": 9})})


@pytest.mark.usefixtures("champion")
@pytest.mark.parametrize("how", ["promote", "rollback"])
def test_a_hand_that_decides_before_the_claim_supersedes_the_run_which_then_decides_anew(
    source: Source, recipe: Recipe, where: Where, how: str
) -> None:
    """It was decided to go on by a champion that is none any more when the run claims the log: right before its entry there."""
    nightly = where.model_copy(update={"run": "nightly"})
    if how == "rollback":
        by_hand(trained_longer(recipe), where)
    source.add("train 3")
    prepare(source, recipe, where)
    answer(recipe, where)
    n_decisions = len(promotions.history(where.data))

    def decide() -> None:
        if how == "rollback":
            promotions.rollback(where.data, "toy")
        else:
            by_hand(trained_longer(recipe), where)

    with before_entry("promotions/log", 1, decide), pytest.raises(SupersededError, match=r"became champion by hand at .*whether to go on"):
        tick(source, recipe, nightly)
    assert last(where).closed["exit_code"] == 8 and [stage["stage"] for stage in last(where).stages] == ["manifest"]  # type: ignore[index]
    assert [entry["kind"] for entry in promotions.history(where.data)[n_decisions:]] == [how]
    present = promotions.champion(where.data, "toy")
    assert present is not None
    answer(recipe, where)
    assert tick(source, recipe, nightly).startswith("promote: ")
    attempts = runs.read(where.data).of("nightly")
    assert [one.number for one in attempts] == [1, 2] and attempts[1].notes[0]["why"].endswith(f"since champion {present.hypernetwork}")


@pytest.mark.usefixtures("champion")
def test_a_hand_that_promotes_the_challenger_itself_supersedes_the_run(source: Source, recipe: Recipe, where: Where) -> None:
    """Right before the run's own promotion. Run again under its name, it finds nothing to do: it does not go on with what is settled."""
    nightly = where.model_copy(update={"run": "nightly"})
    source.add("train 3")
    prepare(source, recipe, where)
    answer(recipe, where)
    with (
        before_entry("promotions/log", 2, lambda: by_hand(recipe, where)),
        pytest.raises(SupersededError, match="became champion by hand"),
    ):
        tick(source, recipe, nightly)
    assert last(where).closed["exit_code"] == 8  # type: ignore[index]
    assert [entry["by"] for entry in promotions.history(where.data)[1:]] == ["hand"]
    assert tick(source, recipe, nightly).startswith("skip: 0 new training videos since champion")
    assert [one.number for one in runs.read(where.data).of("nightly")] == [1, 2]


def test_another_run_that_is_alive_is_left_alone(source: Source, recipe: Recipe, where: Where) -> None:
    with held(where.model_copy(update={"run": "nightly"}), "run", {}, pace=QUICK):
        told = tick(source, recipe, where)
        assert told.startswith("left: run nightly (attempt 1, run by ") and "is alive" in told
        assert retrain.dry_run(source.address, recipe, where, pace=QUICK).startswith("would leave: run nightly")
    assert [entry["why"] for entry in runs.read(where.data).left] == [told.removeprefix("left: ")]
    assert [one.run for one in runs.read(where.data).attempts] == ["nightly"]
