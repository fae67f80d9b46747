"""Nothing gets on: an error with a message after a deadline, never a hang, and the same command continues once the cause is gone."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.command import named, running
from tests.faults.opened import opened
from tests.faults.scenario import Job, Undisturbed
from tests.faults.test_frames import DECODER, MOST
from tests.faults.world import BLOCK, N_DECODERS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DEADLINE_S = 2


def stall_s(undisturbed: Undisturbed) -> int:
    """Longer than all of an undisturbed run, so that on a busy host no start is taken for a stall."""
    return 6 + round(undisturbed.seconds)


def longest_s(undisturbed: Undisturbed) -> float:
    """In which a stalled command has to end: it starts, works, and waits for its deadline."""
    return 30 + 3 * stall_s(undisturbed) + BLOCK * DEADLINE_S


def said(undisturbed: Undisturbed) -> str:
    return f"nothing was finished for {stall_s(undisturbed) + BLOCK * DEADLINE_S} s (VIDEO2LORA_STALL_S)"


@pytest.fixture
def hurried(job: Job) -> Path:
    return job.world.recipe_file("stalling", deadline_s=DEADLINE_S)


@pytest.fixture
def nobody_else(job: Job) -> Iterator[None]:
    """Stopped processes do not outlive the test."""
    yield
    for one in named("ray::") + named(DECODER):
        if one.is_running() and one.status() == "stopped":
            one.kill()


@pytest.mark.usefixtures("nobody_else")
def test_workers_hang(job: Job, hurried: Path, undisturbed: Undisturbed, seed: int) -> None:
    with opened(job.world.clips) as clips:
        with job.start("frames", recipe=hurried, VIDEO2LORA_STALL_S=str(stall_s(undisturbed))) as command:
            job.reach(command, "frames", most=MOST)
            decoders = named(DECODER)
            assert len(decoders) == N_DECODERS
            for actor in [one.parent() for one in decoders]:
                assert actor is not None
                actor.send_signal(signal.SIGSTOP)
            stalled = job.end(command, timeout_s=longest_s(undisturbed))
        assert stalled.code == 7, stalled.err
        assert said(undisturbed) in stalled.last_line and "the same command continues" in stalled.last_line
        job.run_until_done("frames", times=1, recipe=hurried)
    job.judge("all workers hang (SIGSTOP)", undisturbed, clips=clips, most_in_flight=N_DECODERS * BLOCK)


def test_another_job_holds_every_cpu(job: Job, hurried: Path, undisturbed: Undisturbed) -> None:
    words = job.words / "hog"
    with running("2", said=words, environment=job.environment, program="tests.faults.hog") as hog:
        hog.wait_until(lambda: "holding" in words.with_suffix(".out").read_text(), what="holding CPUs")
        with job.start("frames", recipe=hurried, VIDEO2LORA_STALL_S=str(stall_s(undisturbed))) as command:
            stalled = job.end(command, timeout_s=longest_s(undisturbed))
    assert stalled.code == 7, stalled.err
    assert said(undisturbed) in stalled.last_line and "CPU 0 of 2 free" in stalled.last_line
    job.run_until_done("frames", times=1, recipe=hurried)
    job.judge("no CPU free: another job holds all", undisturbed, most_in_flight=0)
