"""Logical runs: one at a time, attempts that go on from each other, stages and their GPU-hours, what is told of them afterwards."""

import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra import runs, runs_shown, sets, steps
from infra.config import Recipe, Where
from infra.errors import BadInputError, StageFailedError, StorageError, SupersededError, TerminatedError
from infra.heartbeat import PACE, Heart, Pace, last_beat, last_facts, watch
from infra.objects import names, write_new
from infra.progress import say
from infra.run_log import kept
from infra.run_turns import OtherRunError, begin, bury, leave
from infra.running import exit_code, held
from infra.s3_requests import READ_S
from infra.stage import Order
from tests.infra.made_tables import make_frames, make_sources, row, write
from tests.servers.fault_proxy import Fault, FaultProxy

QUICK = Pace(beat_s=0.05, lease_s=0.4)

Command = Callable[..., Any]


def entries(root: str) -> list[dict[str, Any]]:
    return list(runs.log_of(root).read())


def test_a_run_is_told_from_begin_to_end(root: str) -> None:
    where = Where(data=root, run="nightly", training_gpus=2.0)
    with held(where, "run", {"source": "s3://clips"}, pace=QUICK) as running:
        assert running.where == where, "whoever is below knows the run"
        assert runs.read(root).holder is not None
        with running.stage("frames") as facts:
            facts["told"] = "frames: 3 rows"
        with running.stage("train", n_gpus=4.0) as facts:
            time.sleep(0.3)
            facts["told"] = "hypernetwork: done"
        running.why = "report: made"
    (one,) = runs.read(root).attempts
    assert [entry["kind"] for entry in entries(root)] == ["begin", "stage", "stage", "end"]
    assert (one.run, one.number, one.ended_well, one.begun["asked"]) == ("nightly", 1, True, {"source": "s3://clips"})
    first, second = one.stages
    assert first["told"] == "frames: 3 rows" and first["gpu_hours"] == 0.0
    assert second["seconds"] >= 0.3 and second["after_s"] >= first["after_s"] + first["seconds"]
    assert second["gpu_hours"] == pytest.approx(4 * second["seconds"] / 3600, rel=0.01)
    assert one.closed is not None and one.closed["why"] == "report: made" and one.closed["gpu_hours"] == one.gpu_hours
    assert names(runs.alive_folder(root, "nightly", 1)) == [], "a heart was left beating"


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (StageFailedError("train: no"), 7, "train: no"),
        (SupersededError("frames: run 1 was superseded by run 2"), 8, "superseded by run 2"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (TerminatedError("train: terminated"), 143, "terminated"),
        (SystemExit(signal.SIGTERM), 143, "the same command continues"),  # Ray's handler
        (ZeroDivisionError("ours"), 1, "ZeroDivisionError: ours"),
    ],
)
def test_whatever_ends_a_run_is_let_through_and_recorded(data: str, error: BaseException, code: int, says: str) -> None:
    with pytest.raises(BaseException) as raised, held(Where(data=data), "run", {}, pace=QUICK) as running, running.stage("train"):
        raise error
    assert exit_code(raised.value) == code
    (one,) = runs.read(data).attempts
    assert one.closed is not None and one.closed["exit_code"] == code and says in one.closed["why"]
    assert says in one.stages[0]["failed"]
    assert any(says in line for line in kept(runs.lines_folder(data, one.run, 1))), "the log ends without the error"


def test_sigterm_ends_a_run_with_its_code(data: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TerminatedError), held(Where(data=data), "run", {}, pace=QUICK):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    assert signal.getsignal(signal.SIGTERM) == before
    assert runs.read(data).attempts[0].closed["exit_code"] == 143  # type: ignore[index]


def test_a_run_of_another_name_finds_the_data_folder_taken(root: str) -> None:
    with held(Where(data=root, run="first"), "run", {}, pace=QUICK):
        with (
            pytest.raises(OtherRunError, match=r"run first \(attempt 1, run by .*\) is alive"),
            held(Where(data=root), "retrain", {}, pace=QUICK),
        ):
            pytest.fail("two at a time")
        leave(root, name="second", command="retrain", why="first is alive")
    assert [one.run for one in runs.read(root).attempts] == ["first"]
    with held(Where(data=root, run="second"), "retrain", {}, pace=QUICK):
        pass
    shown = runs_shown.runs(root)
    assert [(one["run"], one["state"]) for one in shown] == [("first", "done"), ("second", "left"), ("second", "done")]


def test_the_same_run_waits_for_its_attempt_that_is_alive(data: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A retried job whose first cluster is not gone yet."""
    go = threading.Event()

    def first() -> None:
        with held(Where(data=data, run="nightly"), "run", {}, pace=QUICK):
            go.set()
            time.sleep(1.0)  # longer than the lease

    thread = threading.Thread(target=first)
    thread.start()
    assert go.wait(30)
    with held(Where(data=data, run="nightly"), "run", {}, pace=QUICK) as running:
        assert not thread.is_alive() or runs.read(data).attempts[0].ended_well
        assert (running.mine.number, running.earlier) == (2, []), "the first ended well: there is nothing to go on from"
    thread.join()
    assert capfd.readouterr().err.count("has not ended: watching its heart") == 1


def test_attempts_go_on_from_those_since_one_ended_well(data: str) -> None:
    where = Where(data=data, run="nightly")
    for ends in (None, StorageError("out"), StageFailedError("no")):
        with pytest.raises(CommandErrors) if ends else _nothing(), held(where, "run", {}, pace=QUICK) as running:
            running.note(about="what", of=running.mine.number)
            if ends:
                raise ends
    with held(where, "run", {}, pace=QUICK) as running:
        assert [one.number for one in running.earlier] == [2, 3]
        assert [note["of"] for one in running.earlier for note in one.notes] == [2, 3]


CommandErrors = (StorageError, StageFailedError)


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def test_a_still_heart_is_dead_after_the_lease_and_a_beating_one_is_not(root: str) -> None:
    folder = runs.alive_folder(root, "r", 1)
    write_new(f"{folder}/00000007", b"{}")
    started = time.monotonic()
    assert watch(folder, QUICK, is_over=lambda: False) == "dead"
    assert time.monotonic() - started >= QUICK.lease_s
    beat = threading.Timer(QUICK.poll_s, lambda: write_new(f"{folder}/00000008", b"{}"))
    beat.start()
    assert watch(folder, Pace(beat_s=0.05, lease_s=20), is_over=lambda: False) == "alive"
    beat.join()
    assert watch(folder, QUICK, is_over=lambda: True) == "over"
    assert last_beat(folder) == 8 and last_beat(f"{folder}-none") == -1


def test_a_bucket_that_removes_nothing_stops_no_heart(bucket: str, proxy: FaultProxy, capfd: pytest.CaptureFixture[str]) -> None:
    root = f"{bucket}/data"
    with held(Where(data=root, run="r"), "run", {}, pace=QUICK):
        proxy.fail(Fault("status", method="DELETE", status=403, code="AccessDenied", times=1_000_000))
        for _ in range(3):
            assert watch(runs.alive_folder(root, "r", 1), Pace(beat_s=0.05, lease_s=5), is_over=lambda: False) == "alive"
    assert capfd.readouterr().err.count("heartbeat: ") == 2, "said once, and at the end that beats are left there"


def test_a_heart_beats_before_it_does_anything_else(data: str) -> None:
    """For that may take long: a request that hears nothing."""
    go = threading.Event()
    heart = Heart(runs.alive_folder(data, "r", 1), QUICK, lambda: {"stage": "train"}, lambda: go.wait(30) or None)
    heart.start()
    deadline = time.monotonic() + 20
    while last_facts(heart.folder) != {"stage": "train"}:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not go.is_set()
    go.set()
    heart.stop()
    assert PACE.lease_s > 2 * READ_S + PACE.beat_s, "one that hears nothing, and another behind it"


def test_a_run_that_says_something_while_it_is_watched_is_not_buried(data: str) -> None:
    """Its heart is still, and yet it enters a stage before the observer can say that it is dead."""
    told = begin(data, "quiet", command="run", asked={}, pace=QUICK)
    seen = runs.read(data)
    assert runs.log_of(data).append({"kind": "note", "run": "quiet", "attempt": 1, "at": "now"}, number=told.version)
    bury(data, seen, seen.attempts[-1], who="observer", pace=QUICK)
    assert runs.read(data).holder is not None


def test_a_run_whose_place_was_taken_can_enter_nothing_more(data: str) -> None:
    lost = []
    with pytest.raises(SupersededError, match="was taken for dead"), held(Where(data=data, run="slow"), "run", {}, pace=QUICK) as running:
        running.heart.stop()  # which would see it first
        seen = runs.read(data)
        bury(data, seen, seen.attempts[-1], who="observer", pace=QUICK)
        begin(data, "next", command="run", asked={}, pace=QUICK)
        for enter in (running.check, lambda: running.note(about="x"), lambda: running.stage("frames").__enter__()):
            with pytest.raises(SupersededError):
                enter()
            lost.append(enter)
    assert len(lost) == 3
    assert [entry["kind"] for entry in entries(data)] == ["begin", "died", "begin"]


def test_a_stage_is_booked_once_though_its_holder_dies_behind_it(data: str) -> None:
    """Its last heartbeat still tells of the stage."""
    pace = Pace(beat_s=2.0, lease_s=8.0)
    with pytest.raises(SupersededError), held(Where(data=data, run="r"), "run", {}, pace=pace) as running:
        with running.stage("train", n_gpus=3600.0):
            wait_for_a_beat_of(running.heart.folder, "train")
        seen = runs.read(data)
        bury(data, seen, seen.attempts[-1], who="observer", pace=pace)
    (one,) = runs.read(data).attempts
    assert one.closed is not None and (one.closed["kind"], one.closed["stage"], one.closed["gpu_hours"]) == ("died", None, 0.0)
    assert one.gpu_hours == one.stages[0]["gpu_hours"] > 0


def test_the_stage_that_a_run_dies_in_is_booked(data: str) -> None:
    with pytest.raises(SupersededError), held(Where(data=data, run="r"), "run", {}, pace=QUICK) as running:
        with running.stage("frames"):
            pass
        with running.stage("train", n_gpus=3600.0):
            wait_for_a_beat_of(running.heart.folder, "train")
            seen = runs.read(data)
            bury(data, seen, seen.attempts[-1], who="observer", pace=QUICK)
            time.sleep(30)
    (one,) = runs.read(data).attempts
    assert one.closed is not None and one.closed["stage"] == "train" and one.gpu_hours == one.closed["gpu_hours"] > 0


def wait_for_a_beat_of(folder: str, stage: str) -> None:
    deadline = time.monotonic() + 60
    while last_facts(folder).get("stage") != stage or not last_facts(folder).get("seconds"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_heart_of_a_run_sees_that_its_place_was_taken(data: str) -> None:
    """While the main thread is in a stage that looks at no log."""
    with pytest.raises(SupersededError), held(Where(data=data, run="slow"), "run", {}, pace=QUICK) as running, running.stage("frames"):
        seen = runs.read(data)
        bury(data, seen, seen.attempts[-1], who="observer", pace=QUICK)
        time.sleep(30)
    assert [entry["kind"] for entry in entries(data)] == ["begin", "died"]


def test_what_is_said_is_kept_with_its_time(root: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("infra.run_log.KEEP_EVERY_S", 0.0)
    with held(Where(data=root, run="r"), "run", {}, pace=QUICK):
        folder = runs.lines_folder(root, "r", 1)
        say("frames: 3 of 9")
        deadline = time.monotonic() + 60
        while not any("3 of 9" in line for line in kept(folder)):  # while it runs: the machine may be gone at the end
            assert time.monotonic() < deadline
            time.sleep(0.02)
        print("half a line", end="", file=sys.stderr)
        print(" and its end\n\x1b[2K a bar \x1b[0m\n", file=sys.stderr)
        say("frames: 9 of 9")
    lines = list(kept(folder))
    assert [line.split(" ", 1)[1] for line in lines][1:] == ["frames: 3 of 9", "half a line and its end", "frames: 9 of 9", "done"]
    assert all(line.startswith("20") and "+00:00 " in line for line in lines)
    assert "frames: 9 of 9" in capfd.readouterr().err, "it was kept and not said"
    assert len(names(folder)) > 1


def test_the_month_is_the_sum_of_what_ended_in_it(data: str) -> None:
    told = begin(data, "a", command="run", asked={}, pace=QUICK)
    log = runs.log_of(data)
    common = {"run": "a", "attempt": 1, "stage": "train", "told": "", "failed": None, "was_there": False, "seconds": 1.0, "after_s": 0.0}
    times = ["2026-10-31T23:59:59.999+00:00", "2026-11-01T00:00:00.000+00:00", "2026-11-30T23:59:59.999+00:00", "2026-12-01T00:00:00+00:00"]
    for i, at in enumerate(times):
        assert log.append({"kind": "stage", "gpu_hours": 10.0**i, "at": at, **common}, number=told.version + i)
    died = {"kind": "died", "run": "a", "attempt": 1, "why": "", "by": "o", "stage": "train", "gpu_hours": 0.5, "at": times[1]}
    assert log.append(died, number=told.version + 4)
    told = runs.read(data)
    assert [told.gpu_hours_of(month) for month in ("2026-09", "2026-10", "2026-11", "2026-12")] == [0.0, 1.0, 110.5, 1000.0]
    assert told.attempts[0].gpu_hours == 1111.5


def test_what_a_run_spent_before_it_died_is_of_the_month_in_which_it_was_last_heard_of(data: str) -> None:
    """And not of the one in which somebody came by, however much later."""
    begin(data, "lost", command="retrain", asked={}, pace=QUICK)
    beat = {"at": "2026-11-30T23:00:00.000+00:00", "stage": "train", "n_stages": 0, "seconds": 7.0, "gpu_hours": 400.0}
    write_new(f"{runs.alive_folder(data, 'lost', 1)}/00000003", json.dumps(beat).encode())
    seen = runs.read(data)
    bury(data, seen, seen.attempts[-1], who="observer", pace=QUICK)
    told = runs.read(data)
    assert told.gpu_hours_of("2026-11") == 400.0 == told.attempts[0].gpu_hours
    assert told.gpu_hours_of(str(entries(data)[-1]["at"])[:7]) == 0.0


def a_step(name: str, **settings: Any) -> steps.Step:
    return steps.Step(name, Recipe.model_validate({"judge": {"model": "org/judge"}, **settings}), name)


def test_stages_are_booked_for_the_gpus_that_the_environment_gives_them() -> None:
    where = Where(teacher_gpus=2.0, teacher_replicas=3, training_gpus=1.0, training_workers=4)
    names = ("frames", "targets", "examples", "encode", "train", "answer", "judge", "report")
    booked = {name: steps.n_gpus(a_step(name), where, room=9) for name in names}
    assert booked == {"frames": 0, "targets": 6, "examples": 0, "encode": 4, "train": 4, "answer": 4, "judge": 6, "report": 0}
    for name in ("targets", "judge"):
        assert steps.n_gpus(a_step(name), where.model_copy(update={"teacher_replicas": None}), room=9) == 18, "as many as there is room for"
    for name in ("targets", "train", "answer"):
        assert steps.n_gpus(a_step(name), Where(), room=9) == 0.0


def test_an_endpoints_gpus_are_booked_to_nobody() -> None:
    where, other = Where(teacher_gpus=2.0), {"model": "org/other"}
    elsewhere = {"model": "org/judge", "served_by": "endpoint"}
    for step in (a_step("targets", teacher={"served_by": "endpoint"}), a_step("judge", judge=elsewhere)):
        assert steps.n_gpus(step, where, room=3) == 0.0
    assert steps.n_gpus(a_step("judge", judge={**elsewhere, "second": other}), where, room=3) == 6.0


def test_engines_are_booked_as_many_as_were_started(data: str) -> None:
    """By what the stages measured, where the environment does not say how many there are to be."""
    where, step = Where(data=data, teacher_gpus=2.0), a_step("targets", teacher={"max_tokens": 24, "prompts": "mixed"})
    make_sources(data, 5)
    make_frames(data, 5)
    order: Order = importlib.import_module("teacher.targets").order(step.recipe, where)
    rows = [dict(zip(("video_id", "prompt_id", "version"), key.split("/"), strict=True)) for key in order.wanted]
    write(order, [row(order.table, **one, task="caption", target="It.", n_tokens=3) for one in rows], measures={"n_engines": 3})
    with held(where, "run", {}, pace=QUICK) as running:
        steps.run_steps([step], running.where, running)
    (stage,) = runs.read(data).attempts[0].stages
    assert stage["n_gpus"] == 6.0 and stage["gpu_hours"] == pytest.approx(6 * stage["seconds"] / 3600, abs=1e-5)

    judge = a_step("judge", judge={"model": "org/judge", "second": {"model": "org/other"}})
    assert judge.recipe.judge is not None and judge.recipe.judge.second is not None
    for one, measures in ((judge.recipe.judge, {"n_engines": 2}), (judge.recipe.judge.second, {})):
        table = sets.judgements_set(one, data, weights="w", rubrics="r")
        Order(table, {}, [], sets.judgements_made(one, weights="w", rubrics="r")).begin().complete(measures=measures)
    assert steps.n_gpus_started(judge, where) == 4.0


def test_an_entry_that_is_none_is_refused(data: str) -> None:
    write_new(f"{data}/runs/log/00000000.json", b'{"kind": "stage", "run": "a", "attempt": 1}')
    with pytest.raises(StorageError, match="entry 0 of the log of runs is none"):
        runs.read(data)


def test_runs_are_shown(data: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEO2LORA_DATA", data)
    assert "no run yet" in command("runs").out
    with held(Where(data=data, run="nightly"), "run", {}, pace=QUICK) as running, running.stage("frames", n_gpus=1.0) as facts:
        facts["told"] = "frames: [3] rows"
        say("frames: 3 of 3")
    with pytest.raises(StageFailedError), held(Where(data=data, run="nightly"), "run", {}, pace=QUICK) as running, running.stage("train"):
        raise StageFailedError("train: no GPU")
    begin(data, "silent", command="run", asked={}, pace=QUICK)
    shown = runs_shown.runs(data, pace=QUICK)
    assert [(one["run"], one["attempt"], one["state"]) for one in shown] == [
        ("nightly", 1, "done"),
        ("nightly", 2, "ended with 7"),
        ("silent", 1, "no heartbeat for 0.4 s"),
    ]
    one = command("runs", "show", "nightly")
    assert one.code == 0 and "frames: [3] rows" in one.out and "failed: train: no GPU" in one.out
    assert "frames: 3 of 3" in command("runs", "show", "nightly", "--log").out
    assert '"state": "ended with 7"' in command("runs", "show", "nightly", "--json").out
    missing = command("runs", "show", "never")
    assert missing.code == 3 and "no such run" in missing.err


def test_steps_are_stages_of_the_run(tmp_path: Path) -> None:
    """A made world's clips and their manifest, which need no cluster."""
    recipe = Recipe.model_validate({"world": {"n_train": 1, "n_validation": 1, "n_test": 2}})
    where = Where(data=str(tmp_path / "data"))
    with pytest.raises(BadInputError, match="SOURCE: got nothing"):
        steps.gathering(Recipe(), None)
    for _ in range(2):
        with held(where, "run", {}, pace=QUICK) as running:
            steps.run_steps(steps.gathering(recipe, None), running.where, running)
    with held(where, "run", {}, pace=QUICK) as running:
        steps.run_steps(steps.gathering(recipe, f"{where.data}/clips"), running.where, running)
    told = [[stage["stage"] for stage in one.stages] for one in runs.read(where.data).attempts]
    assert told == [["clips", "manifest"], ["clips", "manifest"], ["manifest"]]
    assert runs.read(where.data).attempts[0].stages[1]["told"].startswith("videos: 4 rows")
