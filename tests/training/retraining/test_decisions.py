"""What `retrain` decides and why: it goes on, skips, judges again, or refuses before anything is made."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from infra import promotions
from infra.books import examine, examine_outputs
from infra.config import Recipe, Where
from infra.errors import BadInputError, StageFailedError
from infra.forget import forget
from infra.running import held
from infra.storage import Table
from pipeline import manifest
from tests.servers.webhook import receiving
from tests.training.retraining.conftest import QUICK, Kept, last, tick
from tests.training.retraining.made import RIGHT, Source, a_recipe, answer, content_id, prepare, train
from training import retrain


def test_the_first_retraining_promotes_and_the_second_finds_nothing_new(
    champion: promotions.Champion, source: Source, recipe: Recipe, where: Where
) -> None:
    first = last(where)
    assert [stage["stage"] for stage in first.stages] == [
        "manifest", "frames", "targets", "examples", "train", "answer", "report", "gate",
    ]  # fmt: skip
    assert first.closed is not None and first.closed["exit_code"] == 0 and first.closed["why"].startswith("promote: ")
    assert first.notes[0]["why"] == "toy has no champion yet"
    assert champion.by == first.run
    told = tick(source, recipe, where)
    assert (
        told
        == f"skip: 0 new training videos since champion {champion.hypernetwork} (1 asked for), and targets and training are still its own"
    )
    assert [stage["stage"] for stage in last(where).stages] == ["manifest"] and last(where).ended_well
    assert last(where).closed["why"] == told  # type: ignore[index]
    assert [entry["kind"] for entry in promotions.history(where.data)] == ["promote"]


def test_a_skip_leaves_everything_closed(champion: promotions.Champion, source: Source, recipe: Recipe, where: Where) -> None:
    source.add("train 3")
    asks_for_two = recipe.model_copy(update={"retraining": recipe.retraining.model_copy(update={"min_new_videos": 2})})
    assert "1 new training video since" in tick(source, asks_for_two, where)
    assert Table(where.data, "videos").n_rows() == 64
    assert [finding for book in examine(where.data) for finding in book.findings] == [] and examine_outputs(where.data) == []
    source.add("train 4")
    source.remove("train 4")  # what is there counts, not how often somebody looked: two ticks were missed, say
    source.add("train 5")
    prepare(source, asks_for_two, where)
    answer(asks_for_two, where)
    assert tick(source, asks_for_two, where).startswith("promote: ")
    assert last(where).notes[0]["why"] == f"2 new training videos since champion {champion.hypernetwork}"


@pytest.mark.usefixtures("champion")
def test_what_is_no_new_video(source: Source, recipe: Recipe, where: Where) -> None:
    """The same content under another name; a test video; one that is not readable; one that was forgotten, or superseded."""
    source.add("train 0", name="a copy")
    source.add("test 99", split="test")
    source.add("validation 0", split="validation")
    assert tick(source, recipe, where).startswith("skip: 0 new")
    source.add("broken")
    prepare(source, recipe, where, unreadable=("broken",))
    assert tick(source, recipe, where).startswith("skip: 0 new")
    source.add("train 9")
    assert retrain.dry_run(source.address, recipe, where, pace=QUICK).startswith("would go on: 1 new training video since champion")
    prepare(source, recipe, where)
    forget(where.data, content_id("train 9"))
    assert tick(source, recipe, where).startswith("skip: 0 new"), "a forgotten video fires a training"
    source.add("train 0", name="train 9")  # its file holds a known content now
    assert tick(source, recipe, where).startswith("skip: 0 new")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"teacher": {"prompts": "paper"}}, "other prompts about 3 of its videos"),
        ({"teacher": {"max_tokens": 63}}, "targets of another teacher or other frames"),
        (
            {"frames": {"sampling": {"policy": "uniform", "n_frames": 4}, "longest_edge_px": 31}},
            "targets of another teacher or other frames",
        ),
        ({"training": {"n_steps": 4}}, "training.n_steps is 4, before 3"),
        ({"hypernetwork": {"r": 5}}, "hypernetwork.r is 5, before 16"),
    ],
)
@pytest.mark.usefixtures("champion")
def test_what_is_changed_without_a_new_video(source: Source, where: Where, kept: Kept, changed: dict[str, Any], says: str) -> None:
    told = retrain.dry_run(source.address, a_recipe(kept.base, **changed), where, pace=QUICK)
    assert told.startswith("would go on: 0 new training videos") and says in told


@pytest.mark.parametrize(
    "same",
    [
        {"training": {"n_steps": 3, "zero_stage": 2, "seed": 5}},
        {"examples": {"rows_per_shard": 3}},
        {"evaluation": {"n_draws": 600}},
        {"frames": {"sampling": {"policy": "uniform", "n_frames": 3}, "longest_edge_px": 31, "deadline_s": 9}},
        {"retraining": {"start": "champion"}},
    ],
)
@pytest.mark.usefixtures("champion")
def test_what_changes_nothing_that_is_trained_on(source: Source, where: Where, kept: Kept, same: dict[str, Any]) -> None:
    assert retrain.dry_run(source.address, a_recipe(kept.base, **same), where, pace=QUICK).startswith("would skip: 0 new")


def test_a_challenger_that_was_kept_out_is_not_trained_again(
    champion: promotions.Champion, source: Source, recipe: Recipe, where: Where
) -> None:
    source.add("train 3")
    prepare(source, recipe, where)
    answer(recipe, where, RIGHT | {"ours": False})
    told = tick(source, recipe, where)
    assert told.startswith("keep: ") and "report.html" in told
    assert promotions.champion(where.data, "toy") == champion
    again = tick(source, recipe, where)
    assert again.startswith("skip: nothing that was not judged already: toy-") and "was kept out" in again
    source.add("train 4")
    assert retrain.dry_run(source.address, recipe, where, pace=QUICK).startswith("would go on: 2 new training videos since champion")


@pytest.mark.parametrize("start", ["afresh", "champion"])
@pytest.mark.usefixtures("champion")
def test_new_clips_that_come_to_nothing_are_not_trained_on(source: Source, where: Where, kept: Kept, start: str) -> None:
    """It goes on for what nobody has tried to decode; all but one of it are rejects then, and two were asked for."""
    recipe = a_recipe(kept.base, retraining={"start": start, "min_new_videos": 2})
    for content in ("train 3", "broken", "broken too"):
        source.add(content)
    manifest.run(source.address, recipe, where)
    nightly = where.model_copy(update={"run": "nightly"})
    with pytest.raises(StageFailedError), held(nightly, "retrain", {}, pace=QUICK) as running:
        assert retrain.decided(recipe, where, promotions.standing(where.data, "toy"), running).goes
        raise StageFailedError("as if it ended here, and frames were made since")
    prepare(source, recipe, where, unreadable=("broken", "broken too"))
    there = sorted(Path(where.data, "hypernetworks").iterdir())
    told = tick(source, recipe, nightly)
    assert told.startswith("skip: of what is new, 1 new training video came to examples (2 asked for); the others are rejects")
    assert [stage["stage"] for stage in last(where).stages] == ["manifest", "frames", "targets", "examples"]
    assert sorted(Path(where.data, "hypernetworks").iterdir()) == there
    assert tick(source, recipe, where).startswith("skip: 1 new training video since champion")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"promotion": {"benchmarks": ["none there is"]}}, {}),
        ({"promotion": {"margin": 0.01}}, {}),
        ({"answer": {"systems": ["ours"]}}, {"answer": {"systems": ["ours", "merged"]}}),
        ({"answer": {"systems": ["ours"]}}, {"answer": {"systems": ["ours"], "max_new_tokens": 65}}),
    ],
)
@pytest.mark.usefixtures("champion")
def test_what_was_kept_out_is_judged_again_by_another_gate(
    source: Source, where: Where, kept: Kept, before: dict[str, Any], after: dict[str, Any]
) -> None:
    source.add("train 3")
    first, second = a_recipe(kept.base, **before), a_recipe(kept.base, **after)
    prepare(source, first, where)
    answer(first, where, RIGHT | {"ours": "promotion" in before, "merged": True})
    assert tick(source, first, where).startswith("keep: ")
    assert tick(source, first, where).startswith("skip: nothing that was not judged already: ")
    there = sorted(Path(where.data, "hypernetworks").iterdir())
    answer(second, where, RIGHT | {"merged": True})
    assert tick(source, second, where).startswith("promote: ")
    (challenger,) = (entry["hypernetwork"] for entry in promotions.history(where.data)[1:2])
    assert last(where).notes[0]["why"].endswith(f"; the test or the gate changed since {challenger} was kept out")
    assert promotions.champion(where.data, "toy").hypernetwork == challenger  # type: ignore[union-attr]
    assert sorted(Path(where.data, "hypernetworks").iterdir()) == there, "it was trained again"


def test_what_was_kept_out_is_judged_again_by_more_test_clips_and_not_trained_again(
    champion: promotions.Champion, source: Source, recipe: Recipe, where: Where
) -> None:
    source.add("train 3")
    prepare(source, recipe, where)
    answer(recipe, where, RIGHT | {"ours": False})
    assert tick(source, recipe, where).startswith("keep: ")
    there = sorted(Path(where.data, "hypernetworks").iterdir())
    source.add("test 60", split="test")
    prepare(source, recipe, where)
    answer(recipe, where, trained=True)
    told = tick(source, recipe, where)
    assert told.startswith("promote: ")
    assert [stage["stage"] for stage in last(where).stages] == [
        "manifest", "frames", "targets", "examples", "answer", "report", "gate",
    ]  # fmt: skip
    assert sorted(Path(where.data, "hypernetworks").iterdir()) == there
    assert promotions.history(where.data)[-1]["verdict"]["evidence"]["unseen"]["n_videos"] == 61
    assert promotions.champion(where.data, "toy").folder != champion.folder  # type: ignore[union-attr]


def test_a_verdict_of_before_it_said_what_it_was_measured_by_stands(
    champion: promotions.Champion, source: Source, kept: Kept, where: Where
) -> None:
    source.add("train 3")
    prepare(source, kept.recipe, where)
    name = Path(train(kept.recipe, where).folder).name
    promotions.keep(where.data, name, expected=2, verdict={"why": "of old", "evidence": {}}, by="a run")
    told = retrain.dry_run(source.address, a_recipe(kept.base, promotion={"margin": 0.2}), where, pace=QUICK)
    assert told == f"would skip: nothing that was not judged already: {name} was kept out (of old)"


def test_a_clock_that_was_ahead_does_not_choose_the_challenger(
    champion: promotions.Champion, source: Source, recipe: Recipe, where: Where
) -> None:
    Path(champion.folder, "complete.json").write_text(json.dumps({"at": "2099-01-01T00:00:00.000+00:00"}))
    source.add("train 3")
    prepare(source, recipe, where)
    answer(recipe, where)
    assert tick(source, recipe, where).startswith("promote: ")
    assert promotions.champion(where.data, "toy").hypernetwork != champion.hypernetwork  # type: ignore[union-attr]


def test_a_rollback_is_not_undone_by_the_next_tick(champion: promotions.Champion, source: Source, recipe: Recipe, where: Where) -> None:
    source.add("train 3")
    prepare(source, recipe, where)
    answer(recipe, where)
    assert tick(source, recipe, where).startswith("promote: ")
    promotions.rollback(where.data, "toy")
    again = tick(source, recipe, where)
    assert again.startswith("skip: nothing that was not judged already: toy-") and "was rolled back from" in again
    assert promotions.champion(where.data, "toy").hypernetwork == champion.hypernetwork  # type: ignore[union-attr]


def test_a_champion_that_does_not_say_what_it_saw_has_seen_nothing(source: Source, recipe: Recipe, where: Where) -> None:
    output = train(recipe, where)
    Path(output.folder, "seen.json").unlink()
    promotions.promote(where.data, Path(output.folder).name, expected=0, verdict={"why": "by hand"})
    assert retrain.dry_run(source.address, recipe, where, pace=QUICK).startswith("would go on: 3 new training videos")


@pytest.mark.usefixtures("champion")
def test_a_training_that_starts_from_the_champion(source: Source, where: Where, kept: Kept, champion: promotions.Champion) -> None:
    recipe = a_recipe(kept.base, retraining={"start": "champion"})
    seen = promotions.standing(where.data, "toy")
    assert retrain.started(recipe, seen).training.start_from == champion.folder
    source.add("train 3")
    prepare(source, recipe, where)
    answer(recipe, where)
    assert tick(source, recipe, where).startswith("promote: ")
    assert tick(source, recipe, where).startswith("skip: 0 new"), "what a champion began from does not make it another training"


def test_what_the_gate_cannot_do_is_refused_before_anything_is_begun(source: Source, recipe: Recipe, tmp_path: Path, kept: Kept) -> None:
    where = Where(data=str(tmp_path / "new"))
    with pytest.raises(BadInputError, match=r"promotion\.score"):
        tick(source, a_recipe(kept.base, promotion={"score": "judge"}), where)
    with pytest.raises(BadInputError, match="SOURCE: got nothing"):
        retrain.run(None, recipe, where)
    assert not Path(where.data).exists()


@pytest.mark.parametrize(
    ("settings", "start", "says"),
    [
        ({"vlm": {"revision": "abc"}}, "afresh", r"at revision abc has other weights.*than .*toy', for which the champion toy-.*by hand"),
        ({}, "afresh", r"champion of VLM toy: .*holds no hypernetwork.*restore it, or make another one champion by hand"),
        ({}, "champion", r"champion of VLM toy: .*holds no hypernetwork.*restore it, or make another one champion by hand"),
    ],
)
def test_a_champion_that_cannot_answer_is_found_before_anything_is_made(
    champion: promotions.Champion, source: Source, where: Where, kept: Kept, settings: dict[str, Any], start: str, says: str
) -> None:
    """Of other VLM weights, or gone. On every tick, at the cost of a skip; nothing is noted, so that what follows is decided anew."""
    vlm = {"model": str(kept.base / "toy"), **settings.get("vlm", {})}
    recipe = a_recipe(kept.base, vlm=vlm, retraining={"start": start})
    source.add("train 3")
    prepare(source, recipe, where)
    train(recipe, where)  # it would be found, and nothing started
    if not settings:
        shutil.rmtree(champion.folder)
    n_entries = promotions.standing(where.data, "toy").n_entries
    for _ in range(2):
        with pytest.raises(BadInputError, match=says):
            tick(source, recipe, where)
        assert [stage["stage"] for stage in last(where).stages] == ["manifest"] and last(where).notes == []
        assert last(where).closed["exit_code"] == 3  # type: ignore[index]
    with pytest.raises(BadInputError, match=says):
        retrain.dry_run(source.address, recipe, where, pace=QUICK)
    assert promotions.standing(where.data, "toy").n_entries == n_entries, "it has claimed the log"


def test_a_source_without_questions_is_refused_before_the_teacher_is_asked(source: Source, recipe: Recipe, where: Where) -> None:
    (source.folder / "questions.jsonl").unlink()
    shutil.rmtree(where.data)
    with pytest.raises(BadInputError, match=r"no question about a video of split 'test'.*put a questions\.jsonl beside a SOURCE"):
        tick(source, recipe, where)
    assert [stage["stage"] for stage in last(where).stages] == ["manifest"] and last(where).closed["exit_code"] == 3  # type: ignore[index]


def test_the_verdict_is_posted(source: Source, recipe: Recipe, where: Where) -> None:
    with receiving() as got:
        tick(source, recipe, where.model_copy(update={"run": "nightly", "webhook": got.secret}))
    (posted,) = got.bodies
    entry = promotions.history(where.data)[-1]
    assert posted == {
        "run": "nightly",
        "verdict": "promote",
        "why": entry["verdict"]["why"],
        "champion": entry["hypernetwork"],
        "challenger": entry["hypernetwork"],
        "report": f"{where.data}/reports/{entry['report']}/report.html",
        "data": where.data,
    }
    assert Path(posted["report"]).is_file() and json.dumps(posted)
