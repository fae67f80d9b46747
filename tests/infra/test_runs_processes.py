"""Runs in processes of their own: two schedulers at once, a dead one's place, a paused one that wakes, clocks that jump."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from infra import runs
from infra.objects import names
from infra.promotions import champion
from infra.storage import Table
from tests.infra.run_holder import holder, write_challenger

OTHER_RUN = 8

pytestmark = pytest.mark.slow


def test_of_schedulers_that_fire_at_once_one_goes_on(root: str) -> None:
    with ExitStack() as started:
        several = [started.enter_context(holder(root)) for _ in range(3)]
        with ThreadPoolExecutor(3) as pool:
            ended = list(pool.map(lambda one: one.process.wait(60) if not one.process.stdout.readline() else None, several))  # type: ignore[union-attr]
        assert sorted(ended, key=str) == [OTHER_RUN, OTHER_RUN, None], "one holds it, the others have left"
        (on,) = (one for one, code in zip(several, ended, strict=True) if code is None)
        assert [one.is_open for one in runs.read(root).attempts] == [True]
        on.tell("end")
        assert on.ended()[0] == 0
    assert [one.ended_well for one in runs.read(root).attempts] == [True]


def test_a_dead_runs_place_is_taken_after_the_lease_and_its_hours_are_booked(root: str) -> None:
    with holder(root, name="nightly") as first:
        assert first.read() == {"held": "nightly", "attempt": 1}
        time.sleep(1.0)  # some heartbeats into its stage
        first.send(signal.SIGKILL)
        first.process.wait()
        killed = time.monotonic()
        with holder(root, name="nightly") as second:
            assert second.read() == {"held": "nightly", "attempt": 2}, "it goes on as the next attempt of the same run"
            assert time.monotonic() - killed >= 5.0, "before the lease had run out"
            second.tell("end")
            code, said = second.ended()
        assert code == 0 and "nightly (attempt 1" in said and "is dead; taking its place" in said
    dead, after = runs.read(root).attempts
    assert dead.closed is not None and dead.closed["kind"] == "died" and "no heartbeat for 5 s" in dead.closed["why"]
    assert 0.3 < dead.gpu_hours < 3.0, "its stage's seconds on 3600 GPUs, to the last heartbeat"  # hours = seconds there
    assert names(runs.alive_folder(root, "nightly", 1)) == [] and after.ended_well


def test_a_paused_run_that_wakes_can_neither_commit_nor_promote(root: str) -> None:
    write_challenger(root)
    with holder(root, name="paused") as first, ExitStack() as later:
        first.read()
        assert first.ask("commit k0") == {"committed": 1}
        first.send(signal.SIGSTOP)
        second = later.enter_context(holder(root, name="other"))
        assert second.read() == {"held": "other", "attempt": 1}
        first.tell("commit k1")
        first.tell("promote")
        first.send(signal.SIGCONT)
        code, said = first.ended()
        assert code == OTHER_RUN and ("was taken for dead" in said or "superseded by run 2" in said), said
        assert champion(root, "toy") is None
        live = Table(root, "frames", "made-1a2b3c4d").state().live()["key"].to_pylist()
        assert live == ["k0"], "what was committed before is kept, and nothing came after"
        assert second.ask("promote") == {"promoted": True}
        second.tell("end")
        assert second.ended()[0] == 0
    first_, second_ = runs.read(root).attempts
    assert first_.closed is not None and first_.closed["kind"] == "died" and second_.ended_well


@pytest.mark.parametrize("hours", [-30.0, 24 * 400.0])
def test_no_clock_has_a_say_in_who_is_alive(data: str, hours: float) -> None:
    """The holder's jumps while it runs; the observer's is wrong from the start."""
    with holder(data, name="first") as first:
        first.read()
        first.ask(f"shift {hours}")
        with holder(data, name="second", hours=-hours) as second:
            code, said = second.ended()
        assert code == OTHER_RUN and "run first" in said
        first.send(signal.SIGKILL)
        first.process.wait()
    with holder(data, name="third", hours=hours) as third:
        assert third.read()["held"] == "third", "a dead run stays dead, whatever the time"
        third.tell("end")
        assert third.ended()[0] == 0


def test_a_clock_that_jumps_books_the_seconds_that_were(data: str) -> None:
    with holder(data, name="first") as first:
        first.read()
        started = time.monotonic()
        first.ask("shift 9")
        time.sleep(0.5)
        first.tell("stage")
        first.ask("shift -5000")
        first.tell("end")
        assert first.ended()[0] == 0
        longest = time.monotonic() - started + 1.0
    (one,) = runs.read(data).attempts
    assert [0 <= stage["seconds"] <= longest for stage in one.stages] == [True, True] and one.stages[0]["seconds"] >= 0.5
    assert one.gpu_hours == pytest.approx(sum(stage["seconds"] for stage in one.stages), abs=0.01)  # on 3600 GPUs
    months = {stage["at"][:7] for stage in one.stages}
    assert sum(runs.read(data).gpu_hours_of(month) for month in months) == pytest.approx(one.gpu_hours)
