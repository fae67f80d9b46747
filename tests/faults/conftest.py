"""What the scenarios share: a Ray cluster of two CPUs, an S3 server behind a proxy, the world, the undisturbed tables, and the seeds.

V2L_CHAOS=n runs each scenario n times, at points drawn with the seeds 0 to n - 1 (from V2L_CHAOS_SEED on); the seed is in the test's name.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.opened import opened
from tests.faults.scenario import ENVIRONMENT, Job, Undisturbed, ray_nodes
from tests.faults.world import N_DECODERS, World, make_world, table_of
from tests.servers.child import S3Server
from tests.servers.fault_proxy import FaultProxy, fault_proxy
from tests.servers.ministack import ministack


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        first = int(os.environ.get("V2L_CHAOS_SEED", "0"))
        metafunc.parametrize("seed", range(first, first + int(os.environ.get("V2L_CHAOS", "1"))), ids=lambda seed: f"seed{seed}")


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with ministack(tmp_path_factory.mktemp("ministack")) as one:
        yield one


@pytest.fixture(scope="package")
def store(server: S3Server) -> Iterator[FaultProxy]:
    """The proxy before an S3 server that this process, the cluster's workers and all commands are pointed at."""
    with fault_proxy(server.endpoint) as proxy, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in {**server.environment, "AWS_ENDPOINT_URL": proxy.endpoint}.items():
            patch.setenv(name, value)
        yield proxy


@pytest.fixture(scope="package")
def cluster(store: FaultProxy) -> Iterator[Any]:
    """Two CPUs on one node, for all scenarios that leave it whole. Its workers get the environment of this process."""
    with ray_nodes(N_DECODERS) as nodes:
        yield nodes


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="package")
def undisturbed(world: World, cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """`frames`, in a root that serves `targets` as input."""
    folder = tmp_path_factory.mktemp("undisturbed")
    job = Job(world, str(world.fresh_root(folder / "data")), folder, {**ENVIRONMENT, "RAY_ADDRESS": cluster.address})
    started = time.monotonic()
    with opened(world.clips) as clips:
        ran = job.run("frames")
    seconds = time.monotonic() - started
    assert ran.code == 0, ran.err
    (opens,) = set(clips.counts.values())
    return Undisturbed(table_of(job.root, "frames"), seconds, opens)


@pytest.fixture
def job(world: World, cluster: Any, tmp_path: Path, make_job: Callable[..., Job]) -> Job:
    """On a fresh root, on the shared cluster."""
    return make_job(str(world.fresh_root(tmp_path / "data")), cluster.address)


@pytest.fixture
def make_job(world: World, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str, str], Job]:
    """`make_job(root, ray_address)`, with this test's seed."""

    def make(root: str, address: str) -> Job:
        seed = request.getfixturevalue("seed") if "seed" in request.fixturenames else 0
        environment = {**ENVIRONMENT, "RAY_ADDRESS": address}
        return Job(world, root, tmp_path, environment, seed, random.Random(f"{request.function.__name__} {seed}"))

    return make
