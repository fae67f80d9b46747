"""A node of the cluster is killed with all that runs on it, in the middle of a training whose examples stream.

All losses are compared with those of the undisturbed training: to the bit where a third node takes its place, within 1e-4 where two are
killed, one has room for one worker, and by the elastic range that one goes on.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from disturbed import a_place, at_a_step, losses, workers, write_recipe

from infra.cluster import cluster
from infra.config import Recipe, Where, load_recipe
from tests.faults.scenario import lose, ray_nodes
from training import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

N_TRAIN = 101  # an epoch is one task of Ray Data's, and takes a second or two here whatever its size
START_S = 20  # so long Ray waits for nodes it does not yet know to be lost, before fewer workers go on


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head without CPUs, which the driver is on, and three nodes of one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_S))
        with ray_nodes(0, 1, 1, 1) as found, cluster(Where(ray_address=found.address)):
            yield found


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = load_recipe(write_recipe(tmp_path_factory.mktemp("recipe")))
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"n_steps": 40, "validate_every": 40})})


def streaming(folder: Path, recipe: Recipe, nodes: Any) -> Where:
    return a_place(folder, recipe, n_train=N_TRAIN).model_copy(update={"ray_address": nodes.address, "training_held_bytes": 0})


def kill(nodes: Any, n: int) -> None:
    """As many nodes, those first that a training worker is on."""
    at_work = {one.ppid() for one in workers()}
    victims = sorted(nodes.worker_nodes, key=lambda node: node.all_processes["raylet"][0].process.pid not in at_work)
    for victim in victims[:n]:
        lose(nodes, victim)


def test_killed_nodes_cost_steps_and_change_nothing(recipe: Recipe, nodes: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    undisturbed = streaming(tmp_path / "undisturbed", recipe, nodes)
    train.run(recipe, undisturbed)
    expected = losses(recipe, undisturbed)

    for n_killed, least, n_left, tolerance in ((1, None, 2, 0.0), (2, 1, 1, 1e-4)):
        while len(nodes.worker_nodes) < 3:
            nodes.add_node(num_cpus=1)
        seen: list[int] = []
        where = streaming(tmp_path / f"{n_killed}", recipe, nodes).model_copy(update={"training_min_workers": least})
        with (
            at_a_step(recipe, where, lambda n=n_killed: kill(nodes, n), after=5),
            at_a_step(recipe, where, lambda seen=seen: seen.append(len(workers())), after=25),
        ):
            train.run(recipe, where)
        assert seen == [n_left]
        assert losses(recipe, where) == pytest.approx(expected, rel=tolerance, abs=0.0)
        assert "workers were lost and started again behind step" in capfd.readouterr().err
