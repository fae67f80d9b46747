"""The stage: what it refuses, and what it plans. How it goes on is in test_exact_resume.py."""

from collections.abc import Callable
from pathlib import Path

import pytest
from made_examples import a_row, write_examples, write_vlm
from mlflow import MlflowClient

from infra.config import Recipe, Where, load_recipe
from infra.errors import BadInputError
from infra.sets import hypernetwork_made, hypernetwork_output
from infra.tracking import tracking_uri
from training import checkpoints, train
from training.history import History
from training.models import new_hypernetwork
from training.plan import plan
from video2lora.pretrained import load_vlm

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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"videos_per_step": 1}, r"training\.videos_per_step: got 1, expected at least one for each of the 2 workers"),
        ({"ce_weight": 0.0}, r"training\.ce_weight, training\.kl_weight: got 0 for both"),
        ({"kl_weight": 1.0}, r"training\.kl_weight: needs the teacher's log-probabilities, and teacher\.logprobs is 0"),
        ({"patience": 3}, r"training\.patience: waits for a better validation, so training\.select must be"),
        ({"select": "exact_match", "validation_answers": 0}, r"exact_match needs answers, and training\.validation_answers is 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(recipe: Recipe, where: Where, changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        train.run(with_training(recipe, **changes), where)
    assert not Path(where.data, "hypernetworks").exists()


def test_fewer_workers_than_there_may_be_are_refused(recipe: Recipe, where: Where) -> None:
    for n_gpus in (0.5, 2.0):
        with pytest.raises(BadInputError, match=rf"VIDEO2LORA_TRAINING_GPUS: got {n_gpus:g}, expected 0 or 1 to train"):
            train.run(recipe, where.model_copy(update={"training_gpus": n_gpus}))
    with pytest.raises(BadInputError, match="VIDEO2LORA_TRAINING_MIN_WORKERS: got 3, expected at most 2"):
        train.run(recipe, where.model_copy(update={"training_min_workers": 3}))


def test_a_split_without_rows_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    write_examples(recipe, str(tmp_path / "data"), [a_row(0, split="test"), a_row(1, split="validation")])
    with pytest.raises(BadInputError, match="no example of the split `train`"):
        train.run(recipe, Where(data=str(tmp_path / "data")))


def test_a_choice_by_validation_needs_a_validation_split(recipe: Recipe, tmp_path: Path) -> None:
    write_examples(recipe, str(tmp_path / "data"), [a_row(0), a_row(1)])
    with pytest.raises(BadInputError, match="no example of the split `validation`"):
        train.run(with_training(recipe, select="loss"), Where(data=str(tmp_path / "data")))


def test_a_split_is_held_where_it_fits_and_streams_where_not(recipe: Recipe, where: Where) -> None:
    examples = train.examples_of(recipe, where)
    n_bytes = N_TRAIN * 3 * 31 * 31 * 3
    for held_bytes, is_held in ((n_bytes, True), (n_bytes - 1, False)):
        planned = plan(recipe, where.model_copy(update={"training_held_bytes": held_bytes}), examples)
        assert planned.is_held == is_held and planned.train.n_rows == N_TRAIN and not planned.train.stored_tokens
        assert planned.validation is not None and planned.validation.n_rows == N_VALIDATION
    assert sorted(shard.address for shard in planned.train.shards) == sorted(examples.shards())


def test_a_training_goes_on_in_the_order_that_it_was_begun_in(recipe: Recipe, where: Where) -> None:
    write_vlm(Path(recipe.vlm.model))
    examples = train.examples_of(recipe, where)
    output, history = hypernetwork_output(recipe, examples), History()
    output.begin(hypernetwork_made(recipe, examples))
    history.enter(1.0)
    network, folder = new_hypernetwork(recipe, load_vlm(recipe.vlm.model)), f"{output.folder}/checkpoints"
    checkpoints.save(network, {}, folder, state=history.state() | {"is_held": False}, metadata={"step": 1})
    with pytest.raises(
        BadInputError, match=r"was begun with its examples streamed.* VIDEO2LORA_TRAINING_HELD_BYTES as it was \(1073741824 now"
    ):
        train.run(recipe, where)
    assert checkpoints.latest(folder) is not None and output.is_begun(), "what was done is kept"


def test_a_network_is_complete_only_once_it_is_tracked(recipe: Recipe, where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is ended on the way there comes back to it."""
    write_vlm(Path(recipe.vlm.model))
    vlm = load_vlm(recipe.vlm.model)
    examples = train.examples_of(recipe, where)
    output, history = hypernetwork_output(recipe, examples), History()
    output.begin(hypernetwork_made(recipe, examples))
    for step in range(recipe.training.n_steps):
        history.enter(float(step))
    metadata = {"step": 6, "losses": history.curve(), "validation": [], "n_rejected": 0}
    checkpoints.save(new_hypernetwork(recipe, vlm), {}, f"{output.folder}/checkpoints", state=history.state(), metadata=metadata)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("infra.tracking.open_run", raising(KeyboardInterrupt))
        train.run(recipe, where)
    assert not output.is_complete()
    assert "6 steps, loss 5.000" in train.run(recipe, where) and output.is_complete()
    (version,) = MlflowClient(tracking_uri=tracking_uri(where)).search_model_versions("name = 'video2lora-vlm'")
    assert version.tags["weights"]


def raising(error: type[BaseException]) -> Callable[..., None]:
    def do(*_: object, **__: object) -> None:
        raise error

    return do


@pytest.mark.slow
def test_what_only_workers_can_refuse_is_said_and_nothing_is_left(recipe: Recipe, where: Where) -> None:
    with pytest.raises(BadInputError, match=r"vlm\.model: got .*neither 'tiny', nor a model folder"):
        train.run(recipe, where)  # no VLM was written
    assert not Path(where.data, "hypernetwork", "made.json").exists()
