"""A cluster with no node but its head, which Ray's autoscaler gives nodes when a stage asks for them."""

import json
import time
from pathlib import Path

import pytest

from tests.faults.command import running
from tests.faults.world import N_CLIPS, make_world, table_of
from tests.infra.ray_cluster import ray_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_stage_asks_for_what_the_cluster_can_grow_to(tmp_path: Path) -> None:
    world, seen = make_world(tmp_path), [0]
    root = world.fresh_root(tmp_path / "data")
    with ray_cluster(tmp_path, 0, n_grown=2) as cluster:
        here = {**cluster.client_environment, "VIDEO2LORA_DATA": str(root), "RAY_ADDRESS": "local"}
        grows = here | {"VIDEO2LORA_GROWS_TO": json.dumps([{"n": 2, "CPU": 1}])}
        command = ("frames", "--recipe", str(world.recipe_file()))
        for environment, code in ((here, 3), (grows, 0)):
            with running("submit", *command, "--dry-run", said=tmp_path / "submitted", environment=environment) as one:
                submitted = one.ended()
            assert submitted.code == code and ("there is room for 0" in submitted.err) == (code == 3), submitted
        # Not as a job: nodes of this provider share a folder, and unpack what jobs bring over each other.
        with running(*command, said=tmp_path / "grown", environment=grows | {"RAY_ADDRESS": cluster.gcs}) as one:
            while one.process.poll() is None:
                seen.append(cluster.n_raylets())
                time.sleep(0.2)
            ran = one.ended()
        assert ran.code == 0, ran
        assert table_of(root, "frames").n_rows() == N_CLIPS
        assert max(seen) == 3, "the head, and two that were started for it"
