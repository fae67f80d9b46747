"""A training that is killed, terminated, or goes on by other workers takes the very steps of an undisturbed one.

The losses of all steps are compared, which each depend on all weights and on all data before: to the bit where as many workers go on,
within 1e-5 where it is another number of them or another ZeRO stage (sums are then taken in another order).
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from disturbed import N_STEPS, N_TRAIN, N_VALIDATION, a_place, at_a_step, checkpoints_of, losses, workers, write_recipe
from made_examples import a_row, write_examples
from mlflow import MlflowClient

from infra.cluster import cluster
from infra.config import Recipe, Where, load_recipe
from infra.errors import BadInputError, StageFailedError, TerminatedError
from infra.tracking import tracking_uri
from training import checkpoints, train
from video2lora.pretrained import load_vlm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def recipe(recipe_file: str) -> Recipe:
    return load_recipe(recipe_file)


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    with cluster(Where(n_cpus=2)):
        yield


def signalled(number: int) -> Callable[[], None]:
    """To this process, which is the driver's."""
    return lambda: os.kill(os.getpid(), number)


def kill_a_worker(signal_number: int) -> None:
    random.choice(workers()).send_signal(signal_number)


@pytest.fixture(scope="module")
def undisturbed(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    where = a_place(tmp_path_factory.mktemp("held"), recipe)
    train.run(recipe, where)
    return losses(recipe, where)


@pytest.fixture(scope="module")
def killed(recipe: Recipe, recipe_file: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a driver that was killed in the middle."""
    where = a_place(tmp_path_factory.mktemp("killed"), recipe)
    environment = {**os.environ, "VIDEO2LORA_DATA": where.data, "PYTHONPATH": str(Path(train.__file__).parents[1])}
    command = [sys.executable, "-m", "training.train", recipe_file]
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with at_a_step(recipe, where, driver.kill, after=5):
        _, progress = driver.communicate()
    assert driver.returncode == -signal.SIGKILL, progress
    time.sleep(3)  # its workers notice, and end
    return Path(where.data)


def test_a_killed_driver_is_continued_in_one_run(recipe: Recipe, undisturbed: list[float], killed: Path, tmp_path: Path) -> None:
    where = Where(data=str(shutil.copytree(killed, tmp_path / "data")), n_cpus=2)
    told = train.run(recipe, where)
    assert losses(recipe, where) == undisturbed
    assert f"{N_STEPS} steps" in told and "1 examples rejected" in told
    assert "nothing to do" in train.run(recipe, where)

    output = train.hypernetwork_output(recipe, train.examples_of(recipe, where))
    metadata = json.loads(Path(output.folder, "config.json").read_text())["metadata"]
    assert metadata["step"] == N_STEPS == metadata["losses"][-1][0] and list(metadata["rejected"]) == ["video-001"]
    assert metadata["made_from"]["inputs"]["examples"]["asked"] == {"stage": "test of examples"}
    assert [(one["step"], one["n_targets"], one["n_answered"]) for one in metadata["validation"]] == [(50, 6, 6), (100, 6, 6)]
    check_tracking(where, undisturbed)


def check_tracking(where: Where, expected: list[float]) -> None:
    """One MLflow run over both attempts, with every step's loss, the network, and its entry in the registry."""
    client = MlflowClient(tracking_uri=tracking_uri(where))
    (run,) = client.search_runs([client.get_experiment_by_name("training").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["training.n_steps"] == str(N_STEPS)
    found = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "loss")}
    assert [found[step + 1] for step in range(len(expected))] == expected
    assert {point.step for point in client.get_metric_history(run.info.run_id, "validation_blind_token_f1")} == {50, 100}
    names = {"grad_norm", "lr", "targets_per_s", "tokens_per_s", "data_wait_share", "floor_share", "memory_bytes"}
    assert names <= run.data.metrics.keys()
    files = {file.path for file in client.list_artifacts(run.info.run_id, "hypernetwork")}
    assert files == {"hypernetwork/config.json", "hypernetwork/hypernetwork.safetensors"}
    (version,) = client.search_model_versions("name = 'video2lora-vlm'")
    assert version.run_id == run.info.run_id and any("examples" in tag for tag in version.tags)


def test_workers_lost_are_replaced_and_nothing_changes(
    recipe: Recipe, undisturbed: list[float], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    where = a_place(tmp_path, recipe)
    with (
        at_a_step(recipe, where, lambda: kill_a_worker(signal.SIGKILL), after=5),
        at_a_step(recipe, where, lambda: kill_a_worker(signal.SIGTERM), after=25),
    ):
        train.run(recipe, where)
    assert losses(recipe, where) == undisturbed
    told = capfd.readouterr().err
    assert told.count("workers were lost and started again behind step") == 2
    assert told.count("a worker or its node is going away") == 1


def test_other_workers_and_other_zero_stages_go_on_from_the_same_checkpoints(
    recipe: Recipe, undisturbed: list[float], killed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """2 workers and ZeRO 1, whose driver was killed, then 1 and ZeRO 2 till SIGTERM, then 2 and ZeRO 3 till Ctrl-C, then 1 and ZeRO 1 with
    one video at a time.
    """
    where = Where(data=str(shutil.copytree(killed, tmp_path / "data")), n_cpus=2)
    ends = ((20, 1, 2, signal.SIGTERM, TerminatedError), (40, 2, 3, signal.SIGINT, KeyboardInterrupt))
    for after, n_workers, stage, number, error in ends:
        changed = recipe.model_copy(update={"training": recipe.training.model_copy(update={"zero_stage": stage})})
        with at_a_step(recipe, where, signalled(number), after=after), pytest.raises(error) as ended:
            train.run(changed, where.model_copy(update={"training_workers": n_workers}))
        last = checkpoints.latest(checkpoints_of(recipe, where))
        assert last is not None and after < last.step < N_STEPS
        assert f"{last.step} steps are saved" in capfd.readouterr().err + str(ended.value)
    train.run(recipe, where.model_copy(update={"training_workers": 1, "training_videos_at_once": 1}))
    assert losses(recipe, where) == pytest.approx(undisturbed, rel=1e-5)


def test_a_loss_that_is_none_ends_it_and_names_the_videos(recipe: Recipe, tmp_path: Path) -> None:
    wild = recipe.model_copy(update={"training": recipe.training.model_copy(update={"lr": 1e30})})
    where = a_place(tmp_path, wild)
    with pytest.raises(StageFailedError, match=r"stopped at step \d+: (loss|gradient norm) (nan|inf)\. Of its \d videos .* video-0\d\d \("):
        train.run(wild, where)
    (kept,) = (tmp_path / "hypernetworks").rglob("stopped/*.json")
    facts = json.loads(kept.read_text())
    assert facts["step"] == len(facts["losses_before"]) and 4 <= len(facts["videos"]) <= 5


def test_bad_input_that_one_worker_finds_ends_all_at_once(recipe: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A single video's teacher wrote in other words than the student's."""
    training = recipe.training.model_copy(update={"kl_weight": 1.0, "n_steps": 9, "validate_every": 9})
    asked = recipe.model_copy(update={"training": training, "teacher": recipe.teacher.model_copy(update={"logprobs": 1})})
    rows = [a_row(i, split="train" if i < N_TRAIN else "validation") for i in range(N_TRAIN + N_VALIDATION)]
    vlm = load_vlm(asked.vlm.model)
    for i, row in enumerate(rows):
        for target in row["targets"]:
            ids = vlm.target_ids("It is not." if i == 4 else target["target"])
            target |= {"token_ids": ids, "top_token_ids": ids, "top_logprobs": [0.0] * len(ids)}
    write_examples(asked, str(tmp_path), rows)
    with pytest.raises(BadInputError, match=r"training\.kl_weight: the teacher's tokens for video-004 are"):
        train.run(asked, Where(data=str(tmp_path), n_cpus=2))
    assert "workers were lost" not in capfd.readouterr().err
