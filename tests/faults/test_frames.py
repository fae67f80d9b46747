"""Processes of `video2lora frames` are killed at random points; a file that never ends; two runs at once."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from infra.storage import Table
from tests.faults.command import below, named
from tests.faults.opened import opened
from tests.faults.scenario import Job, Undisturbed
from tests.faults.world import BLOCK, N_CLIPS, N_DECODERS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DECODER = "video2lora.decode_process"
N_BLOCKS = N_CLIPS // BLOCK
AGENTS = ("DashboardAgent", "RuntimeEnvAgent")  # of Ray: they try for minutes to tell the rest that it is gone, and hold nothing
MOST = N_BLOCKS - 5  # commits to wait for: some blocks must be left when the fault comes


def test_the_driver_is_killed(job: Job, undisturbed: Undisturbed, seed: int) -> None:
    with opened(job.world.clips) as clips:
        with job.start("frames") as command:
            job.reach(command, "frames", most=MOST)
            assert job.kill_driver(command).code == -signal.SIGKILL
        job.run_until_done("frames", times=1)
    job.judge("driver of `frames`, kill -9", undisturbed, clips=clips, most_in_flight=N_DECODERS * BLOCK)


def test_a_driver_that_is_killed_takes_its_private_ray_along(job: Job, undisturbed: Undisturbed) -> None:
    with job.start("frames", RAY_ADDRESS="local", VIDEO2LORA_N_CPUS=str(N_DECODERS)) as command:
        job.reach(command, "frames", most=MOST)
        agents = [one for name in AGENTS for one in named(name, pid=command.process.pid)]
        started = [one for one in below(command.process.pid) if one not in agents]
        assert started
        job.kill_driver(command)
        deadline_s = time.monotonic() + 60
        while any(map(is_alive, started)):
            assert time.monotonic() < deadline_s, [one.cmdline() for one in started if is_alive(one)]
            time.sleep(0.1)
    job.run_until_done("frames", times=1)
    job.judge("driver of `frames` with a Ray of its own, kill -9", undisturbed, most_in_flight=N_DECODERS * BLOCK)


def is_alive(one: psutil.Process) -> bool:
    try:
        return one.is_running() and one.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_decode_process_is_killed(job: Job, undisturbed: Undisturbed, seed: int) -> None:
    with opened(job.world.clips) as clips, job.start("frames") as command:
        job.reach(command, "frames", most=MOST)
        job.rng.choice(named(DECODER)).kill()
        assert job.end(command).code == 0, job.ran[-1].err
    found = job.judge("decode process, kill -9", undisturbed, clips=clips, most_in_flight=1)
    assert found.n_rejects == 0


def test_the_actor_around_a_decode_process_is_killed(job: Job, undisturbed: Undisturbed, seed: int) -> None:
    with opened(job.world.clips) as clips:
        with job.start("frames") as command:
            job.reach(command, "frames", most=MOST)
            actor = job.rng.choice(named(DECODER)).parent()
            assert actor is not None and "ray::" in actor.cmdline()[0], actor
            actor.kill()
            job.end(command)
        job.run_until_done("frames")
    job.judge("actor around a decode process, kill -9", undisturbed, clips=clips, most_in_flight=BLOCK)


def test_a_decode_never_returns(job: Job, undisturbed: Undisturbed, seed: int) -> None:
    clip: Path = job.rng.choice(sorted(job.world.clips.iterdir()))
    kept = clip.rename(job.world.folder / "kept.mp4")
    os.mkfifo(clip)  # whoever opens it waits for a writer
    try:
        ran = job.run("frames", recipe=job.world.recipe_file("hurried", deadline_s=3))
    finally:
        clip.unlink()
        kept.rename(clip)
    assert ran.code == 0, ran.err
    videos = {row["uri"]: row["video_id"] for row in Table(job.root, "videos").read().to_pylist()}
    hanging = videos[str(clip)]
    job.judge("decode that never returns", undisturbed, most_in_flight=0, but=[hanging])
    rejects = Table(job.root, "frames", undisturbed.table.set).read_rejects().to_pylist()
    assert [(row["key"], row["reason"]) for row in rejects] == [(hanging, "deadline")]
    assert ran.out.strip() == f"frames: {N_CLIPS - 1} rows, 1 rejects (deadline 1)"


def test_two_schedulers_start_the_same_job(job: Job, undisturbed: Undisturbed, seed: int) -> None:
    with opened(job.world.clips) as clips, job.start("frames") as first:
        time.sleep(job.rng.uniform(0, 2))  # no longer: the second takes seconds to start, and the first is to be busy then
        with job.start("frames") as second:
            job.end(first)
            job.end(second)
    codes = sorted(one.code for one in job.ran)
    assert codes in ([0, 8], [0, 0]), [one.err for one in job.ran]
    if superseded := [one for one in job.ran if one.code == 8]:
        assert "was superseded by run" in superseded[0].last_line and "what was committed is kept" in superseded[0].last_line
    # Of the superseded one: what each decoder was at, and what it had done and took on until its driver was refused a commit.
    job.judge("two schedulers start the same job", undisturbed, clips=clips, most_in_flight=3 * N_DECODERS * BLOCK)
