"""Processes of `video2lora targets` are killed at random points: the engine, the actor around it, the driver; texts that are no targets."""

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.storage import Table
from tests.faults.command import named
from tests.faults.scenario import ENVIRONMENT, Job, Undisturbed
from tests.faults.world import BLOCK, N_CLIPS, N_PROMPTS, World, table_of
from tests.teacher.odd_vlm import save_odd_vlm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MOST = N_CLIPS // BLOCK - 6  # commits to wait for: some blocks must be left when the fault comes
OWN_PROCESS = {"VIDEO2LORA_TEACHER_ENGINE_PROCESS": "true"}
LONG = "Which way does the object move? " * 40


@pytest.fixture
def job(cluster: Any, undisturbed: Undisturbed, tmp_path: Path, make_job: Callable[..., Job]) -> Job:
    """On a copy of a root that has `frames`."""
    return make_job(str(shutil.copytree(undisturbed.table.root, tmp_path / "data")), cluster.address)


@pytest.fixture(scope="module")
def written(world: World, cluster: Any, undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """`targets` as a run makes it that nothing happens to."""
    folder = tmp_path_factory.mktemp("written")
    root = shutil.copytree(undisturbed.table.root, folder / "data")
    job = Job(world, str(root), folder, {**ENVIRONMENT, "RAY_ADDRESS": cluster.address})
    started = time.monotonic()
    ran = job.run("targets")
    assert ran.code == 0, ran.err
    return Undisturbed(table_of(root, "targets"), time.monotonic() - started)


def test_the_engine_process_is_killed(job: Job, written: Undisturbed, seed: int) -> None:
    with job.start("targets", **OWN_PROCESS) as command:
        job.reach(command, "targets", most=MOST)
        (engine,) = named("VLLM::EngineCore")
        engine.kill()
        assert job.end(command).code == 0, job.ran[-1].err
    job.judge("vLLM engine process, kill -9", written, most_in_flight=0)


def test_the_actor_around_an_engine_is_killed(job: Job, written: Undisturbed, seed: int) -> None:
    with job.start("targets") as command:
        job.reach(command, "targets", most=MOST)
        (actor,) = named("MapBatches(WriteTargets)")
        actor.kill()
        job.end(command)
    job.run_until_done("targets")
    job.judge("actor around an engine, kill -9", written, most_in_flight=BLOCK * N_PROMPTS)


def test_the_driver_is_killed(job: Job, written: Undisturbed, seed: int) -> None:
    with job.start("targets") as command:
        job.reach(command, "targets", most=MOST)
        assert job.kill_driver(command).code == -signal.SIGKILL
    job.run_until_done("targets", times=1)
    job.judge("driver of `targets`, kill -9", written, most_in_flight=BLOCK * N_PROMPTS)


def test_an_engine_that_no_node_has_room_for_is_refused_at_once(job: Job) -> None:
    ran = job.run("targets", VIDEO2LORA_TEACHER_CPUS="3")
    assert ran.code == 7
    assert ran.last_line.startswith("error: targets: 1 engine(s) of 3 CPUs and 0 GPUs on one node are to start"), ran.last_line
    assert "VIDEO2LORA_TEACHER_*" in ran.last_line


@pytest.fixture(scope="module")
def odd_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose untrained weights stop at once, early or never."""
    return save_odd_vlm(tmp_path_factory.mktemp("odd"))


def test_texts_that_are_no_targets_and_prompts_that_are_too_long(job: Job, odd_teacher: Path) -> None:
    long = job.world.folder / "long_prompts.yaml"
    group = f'  long: {{task: caption, wordings: [{{id: long, text: "{LONG}"}}]}}\n'
    long.write_text((job.world.folder / "prompts.yaml").read_text() + group)
    recipe = job.world.recipe_file("odd", prompts=long, max_tokens=5, model=odd_teacher)
    ran = job.run("targets", recipe=recipe)
    assert ran.code == 0, ran.err
    table: Table = table_of(job.root, "targets")
    reasons: dict[str, int] = {}
    for row in table.read_rejects().to_pylist():
        assert (row["reason"] == "prompt_too_long") == ("/long/" in row["key"]), row
        reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
    assert reasons["prompt_too_long"] == N_CLIPS
    assert reasons.keys() == {"prompt_too_long", "empty_target", "unfinished_target"}
    assert table.is_complete() and table.n_rows() + table.n_rejects() == N_CLIPS * (N_PROMPTS + 1)


def test_two_stages_share_two_cpus(
    job: Job, world: World, written: Undisturbed, undisturbed: Undisturbed, make_job: Callable[..., Job]
) -> None:
    """An engine and two decoders ask for 2.8 CPUs: whoever comes later waits for one, and neither for ever."""
    other = make_job(str(world.fresh_root(job.words / "other")), job.environment["RAY_ADDRESS"])
    with job.start("targets") as targets, other.start("frames") as frames:
        job.end(targets)
        other.end(frames)
    job.run_until_done("targets")
    other.run_until_done("frames")
    job.judge("two stages' actors on two CPUs: `targets`", written, most_in_flight=0)
    other.judge("two stages' actors on two CPUs: `frames`", undisturbed, most_in_flight=0)
