"""The stage: what it refuses, and (slow, with real Ray Train, DeepSpeed and MLflow) a training that is killed and continued."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
from made_examples import a_row, write_examples, write_vlm

from infra.config import Recipe, Where, load_recipe
from infra.errors import BadInputError, MadeFromOtherError
from infra.outputs import Output
from training import checkpoints, train
from training.batches import HELD_BYTES

SETTINGS = """
vlm: {model: VLM}
frames: {sampling: {policy: uniform, n_frames: 3}, longest_edge_px: 31}
hypernetwork: {r: 2, n_latents: 3, n_blocks: 1, d_latent: 16, n_heads: 2, n_kv_heads: 1, d_head: 8, normalise_features: true}
training: {n_steps: 6, videos_per_step: 4, targets_per_video: 2, lr: 1.0e-2, checkpoint_every: 2, validate_every: 4}
answer: {max_new_tokens: 6}
"""
N_TRAIN, N_VALIDATION = 9, 3


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(SETTINGS.replace("VLM", str(tmp_path / "vlm")))
    return file


@pytest.fixture
def recipe(recipe_file: Path) -> Recipe:
    return load_recipe(str(recipe_file))


@pytest.fixture
def where(recipe: Recipe, tmp_path: Path) -> Where:
    rows = [a_row(i, split="train" if i < N_TRAIN else "validation") for i in range(N_TRAIN + N_VALIDATION)]
    rows[1]["jpegs"][2] = b"no picture"
    write_examples(recipe, str(tmp_path / "data"), rows)
    return Where(data=str(tmp_path / "data"), n_cpus=2)


def with_training(recipe: Recipe, **changes: object) -> Recipe:
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=changes)})


def test_no_examples_no_training(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="run `video2lora targets` first"):
        train.run(recipe, Where(data=str(tmp_path)))


def test_a_step_must_divide_among_the_workers(recipe: Recipe, where: Where) -> None:
    with pytest.raises(BadInputError, match=r"training\.videos_per_step: got 5, expected a multiple of the 2 workers"):
        train.run(with_training(recipe, videos_per_step=5), where)
    assert not Path(where.data, "hypernetwork").exists()  # so the corrected recipe is not another one


def test_a_split_without_rows_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    write_examples(recipe, str(tmp_path / "data"), [a_row(0, split="test"), a_row(1, split="validation")])
    with pytest.raises(BadInputError, match="no example of the split `train`"):
        train.run(recipe, Where(data=str(tmp_path / "data")))


def test_a_large_split_streams(recipe: Recipe, where: Where) -> None:
    examples = train.examples_of(recipe, where)
    assert train.plan(recipe, where, examples) == train.Plan(n_train=N_TRAIN, n_validation=N_VALIDATION, is_held=True)
    edge_px = int((HELD_BYTES / (3 * N_TRAIN * 3)) ** 0.5) + 1
    large = recipe.model_copy(update={"frames": recipe.frames.model_copy(update={"longest_edge_px": edge_px})})
    assert not train.plan(large, where, examples).is_held
    with pytest.raises(BadInputError, match="there are 9 training videos"):
        train.plan(with_training(large, videos_per_step=10), where, examples)


def start(recipe_file: Path, where: Where) -> "subprocess.Popen[str]":
    environment = {
        **os.environ,
        "VIDEO2LORA_DATA": where.data,
        "VIDEO2LORA_N_CPUS": "2",
        "PYTHONPATH": str(Path(train.__file__).parents[1]),
    }
    command = [sys.executable, "-m", "training.train", str(recipe_file)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_training_is_continued_and_complete_once(recipe: Recipe, recipe_file: Path, where: Where, tmp_path: Path) -> None:
    write_vlm(tmp_path / "vlm")
    folder = f"{where.data}/hypernetwork"
    killed = start(recipe_file, where)
    while (there := checkpoints.latest(f"{folder}/checkpoints")) is None and killed.poll() is None:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    _, progress = killed.communicate()
    assert there is not None and there.step < recipe.training.n_steps, progress
    assert not Output(where.data, "hypernetwork").is_complete()

    continued = start(recipe_file, where)
    told, progress = continued.communicate()
    assert continued.returncode == 0, progress
    assert "going on from the checkpoint at step" in progress and "6 steps" in told and "1 examples rejected" in told
    trained = "from the checkpoint at step 6" not in progress  # the killed driver's workers may have come that far before they ended
    assert trained == ("video-001 left out: decode_error" in progress)

    metadata = json.loads(Path(folder, "config.json").read_text())["metadata"]
    assert metadata["step"] == 6 and metadata["made_from"]["inputs"]["examples"]["asked"] == {"stage": "test of examples"}
    assert [step for step, _ in metadata["losses"]] == [1, 2, 3, 4, 5, 6] and list(metadata["rejected"]) == ["video-001"]
    assert [(one["step"], one["n_targets"]) for one in metadata["validation"]] == [(4, 6), (6, 6)]
    assert metadata["losses"][-1][1] < metadata["losses"][0][1]
    check_tracking(recipe, where)

    started = time.monotonic()
    assert "nothing to do" in train.run(recipe, where) and time.monotonic() - started < 5
    with pytest.raises(MadeFromOtherError, match=r"training\.n_steps: there 6, here 7"):
        train.run(with_training(recipe, n_steps=7), where)


def check_tracking(recipe: Recipe, where: Where) -> None:
    """One MLflow run over both attempts, with the checkpoint."""
    from mlflow import MlflowClient

    from infra.tracking import open_run, tracking_uri

    run, client = open_run(where, recipe), MlflowClient(tracking_uri=tracking_uri(where))
    assert run is not None
    run.end()
    found = client.get_run(run.run_id)
    assert len(client.search_runs([found.info.experiment_id])) == 1 and found.info.status == "FINISHED"
    steps = {point.step for point in client.get_metric_history(run.run_id, "validation_loss")}
    assert steps == {4, 6}  # whatever the killed driver heard of
    files = {file.path for file in client.list_artifacts(run.run_id, "hypernetwork")}
    assert files == {"hypernetwork/config.json", "hypernetwork/hypernetwork.safetensors"}


@pytest.mark.slow
def test_what_only_workers_can_refuse_is_said_and_nothing_is_left(recipe: Recipe, where: Where) -> None:
    with pytest.raises(BadInputError, match=r"vlm\.model: got .*neither 'tiny', nor a model folder"):
        train.run(recipe, where)  # no VLM was written
    assert not Path(where.data, "hypernetwork", "made.json").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Exception in thread:pytest.PytestUnhandledThreadExceptionWarning")  # Ray Data, left in mid-epoch
def test_a_streamed_split_comes_by_ray_data(recipe: Recipe, where: Where) -> None:
    from infra.cluster import cluster
    from training.batches import Batch, Share, StreamedExamples, build, read_all

    rejected: list[dict[str, object]] = []
    with cluster(where):
        shards = train.examples_of(recipe, where).shards()
        assert sorted(one.video_id for one in read_all(build(shards, "validation", seed=0).iterator(), rejected.append)) == [
            f"video-{i:03d}" for i in range(N_TRAIN, N_TRAIN + N_VALIDATION)
        ]
        shard = build(shards, "train", seed=0).iterator()
        streamed = StreamedExamples(shard, n_rows=N_TRAIN, seed=0, n_targets=2, on_reject=rejected.append)
        batches: list[Batch] = list(islice(streamed.batches(Share(0, 1, 3), first_step=0), 6))
    epochs = [[one.video_id for batch in part for one in batch.examples] for part in (batches[:3], batches[3:])]
    assert all(sorted(epoch) == [f"video-{i:03d}" for i in range(N_TRAIN) if i != 1] for epoch in epochs)
    assert [row["video_id"] for row in rejected] == ["video-001"] * 2
