"""A Ray node goes away with all that runs on it; and a cluster that has no place for the plan."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.command import Ran
from tests.faults.opened import opened
from tests.faults.scenario import Job, Undisturbed, lose, ray_nodes
from tests.faults.test_frames import MOST
from tests.faults.world import BLOCK, N_DECODERS, World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def nodes(undisturbed: Undisturbed) -> Iterator[Any]:
    """A head without CPUs, which commands join, and no other node yet."""
    with ray_nodes(0) as cluster:
        yield cluster


@pytest.fixture
def nodes_job(world: World, nodes: Any, tmp_path: Path, make_job: Callable[..., Job]) -> Job:
    return make_job(str(world.fresh_root(tmp_path / "data")), nodes.address)


def test_a_cluster_without_cpus_is_refused_at_once(nodes_job: Job) -> None:
    ran: Ran = nodes_job.run("frames")
    assert ran.code == 7
    assert ran.last_line == "error: frames: the Ray cluster has 0.0 CPUs, expected 0.9 at least"


def test_a_node_is_killed(nodes_job: Job, nodes: Any, undisturbed: Undisturbed, seed: int) -> None:
    while len(nodes.worker_nodes) < 2:
        nodes.add_node(num_cpus=1)
    with opened(nodes_job.world.clips) as clips:
        with nodes_job.start("frames") as command:
            nodes_job.reach(command, "frames", most=MOST)
            lose(nodes, nodes_job.rng.choice(sorted(nodes.worker_nodes, key=lambda one: one.unique_id)))
            nodes_job.end(command)
        nodes_job.run_until_done("frames")
    nodes_job.judge("Ray node, kill -9 of all its processes", undisturbed, clips=clips, most_in_flight=N_DECODERS * BLOCK)
