"""A training that starts from another hypernetwork's weights: they are what stands before its first step, and what it is known by."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from made_examples import a_row, write_examples, write_vlm

from infra.cluster import cluster
from infra.config import Recipe, Where, load_recipe
from infra.errors import BadInputError
from infra.hypernetworks import address_of, identity
from infra.objects import read_json
from infra.seen import read_seen
from infra.sets import hypernetwork_made, hypernetwork_output, trained_hypernetwork
from training import checkpoints, train
from training.engine import MOMENTS
from training.history import History
from training.models import begun_from, frozen_vlm, new_hypernetwork
from video2lora.checkpoint import WEIGHTS_FILE, load_hypernetwork, save_hypernetwork
from video2lora.hypernetwork import Hypernetwork

SETTINGS = """
vlm: {model: VLM}
frames: {sampling: {policy: uniform, n_frames: 3}, longest_edge_px: 31}
hypernetwork: {r: 2, n_latents: 3, n_blocks: 1, d_latent: 16, n_heads: 2, n_kv_heads: 1, d_head: 8, normalise_features: true}
training: {n_steps: 1, videos_per_step: 4, warmup: 0.5, lr: 1.0e-2, seed: 7}
"""


@pytest.fixture(scope="module")
def afresh(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Its one step has rate 0: it is the first of the warm-up."""
    folder = tmp_path_factory.mktemp("recipe")
    write_vlm(folder / "vlm")
    (folder / "recipe.yaml").write_text(SETTINGS.replace("VLM", str(folder / "vlm")))
    return load_recipe(str(folder / "recipe.yaml"))


@pytest.fixture(scope="module")
def champion(afresh: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of another seed than the recipe's."""
    folder = tmp_path_factory.mktemp("champion") / "hypernetwork"
    save_hypernetwork(drawn(afresh, seed=29), folder, metadata={})
    return folder


@pytest.fixture
def where(afresh: Recipe, tmp_path: Path) -> Where:
    write_examples(afresh, str(tmp_path / "data"), [a_row(i, split="train" if i < 5 else "validation") for i in range(7)])
    return Where(data=str(tmp_path / "data"), n_cpus=2)


def drawn(recipe: Recipe, *, seed: int) -> Hypernetwork:
    return new_hypernetwork(with_training(recipe, seed=seed), frozen_vlm(recipe, device="cpu"))


def with_training(recipe: Recipe, **changes: object) -> Recipe:
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=changes)})


def sha256(folder: Path) -> str:
    return hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()


def same(one: Hypernetwork, other: Hypernetwork, *, within: float = 0.0) -> bool:
    there = other.state_dict()
    return all(torch.allclose(value, there[name], rtol=0, atol=within) for name, value in one.state_dict().items())


def test_a_training_is_known_by_the_weights_it_starts_from_and_not_by_their_place(
    afresh: Recipe, champion: Path, where: Where, tmp_path: Path
) -> None:
    examples = train.examples_of(afresh, where)
    started = with_training(afresh, start_from=str(champion))
    made, output = hypernetwork_made(started, examples), hypernetwork_output(started, examples)
    assert made["start_from"] == {"weights_sha256": sha256(champion)} and str(champion) not in json.dumps(made)
    assert "start_from" not in json.dumps(hypernetwork_made(afresh, examples))
    moved = with_training(afresh, start_from=str(shutil.copytree(champion, tmp_path / "moved")))
    assert hypernetwork_output(moved, examples) == output != hypernetwork_output(afresh, examples)
    other = tmp_path / "other"
    save_hypernetwork(drawn(afresh, seed=31), other, metadata={})
    assert hypernetwork_output(with_training(afresh, start_from=str(other)), examples) != output
    output.begin(made)
    output.complete()
    assert trained_hypernetwork(moved, where.data) == output
    for recipe in (afresh, with_training(afresh, start_from=str(other))):
        with pytest.raises(BadInputError, match="none was trained by this recipe"):
            trained_hypernetwork(recipe, where.data)


def test_the_weights_are_loaded_as_they_are(afresh: Recipe, champion: Path) -> None:
    begun = begun_from(afresh, frozen_vlm(afresh, device="cpu"), str(champion), weights_sha256=sha256(champion))
    assert same(begun, load_hypernetwork(champion)) and not same(begun, drawn(afresh, seed=7))
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in begun.parameters())


def test_weights_that_changed_since_the_training_began_are_refused(afresh: Recipe, champion: Path) -> None:
    with pytest.raises(BadInputError, match=r"training\.start_from: .* holds weights .*, and this training began from abc"):
        begun_from(afresh, frozen_vlm(afresh, device="cpu"), str(champion), weights_sha256="abc")


def test_weights_for_another_vlms_sizes_are_refused(afresh: Recipe, tmp_path: Path) -> None:
    """What the recipe says is the same: only who has both models can tell."""
    config = drawn(afresh, seed=29).config
    save_hypernetwork(Hypernetwork(config.model_copy(update={"n_layers": 3})), tmp_path / "other", metadata={})
    with pytest.raises(
        BadInputError, match=r"other is another network than the recipe's hypernetwork for this VLM: n_layers 3 there, 4 here"
    ):
        begun_from(afresh, frozen_vlm(afresh, device="cpu"), str(tmp_path / "other"), weights_sha256=sha256(tmp_path / "other"))


@pytest.mark.parametrize(
    ("start_from", "message"),
    [
        ("tiny", r"training\.start_from: tiny is a hypernetwork of other sizes: .*hypernetwork\.r: 8 there, 2 in the recipe"),
        ("nowhere", r"training\.start_from: nowhere holds no hypernetwork"),
    ],
)
def test_what_cannot_be_started_from_is_refused_before_anything_starts(afresh: Recipe, where: Where, start_from: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        train.run(with_training(afresh, start_from=start_from), where)
    assert not Path(where.data, "hypernetworks").exists()


def test_the_one_that_ships_is_named_tiny() -> None:
    assert identity(address_of("tiny"), named_by="test")["weights_sha256"] == sha256(Path(address_of("tiny")))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_training_starts_from_them_on_every_worker_and_goes_on_from_its_own(afresh: Recipe, champion: Path, where: Where) -> None:
    """Two workers and ZeRO 3, where no worker keeps the whole: steps of rate 0 leave the weights as they were."""
    started = with_training(afresh, start_from=str(champion), zero_stage=3)
    going_on = with_training(started, n_steps=2, warmup=0.9, lr=1e-30)
    own = drawn(afresh, seed=31)
    examples = train.examples_of(afresh, where)
    output = hypernetwork_output(going_on, examples)
    output.begin(hypernetwork_made(going_on, examples))
    history = History()
    history.enter(3.0)
    moments = {f"{key}/hypernetwork.{name}": torch.zeros_like(value) for key in MOMENTS for name, value in own.named_parameters()}
    checkpoints.save(own, moments, f"{output.folder}/checkpoints", state=history.state(), metadata={})
    with cluster(where):
        train.run(started, where)
        train.run(going_on, where)
    begun = hypernetwork_output(started, examples)
    assert same(load_hypernetwork(Path(begun.folder)), load_hypernetwork(champion))
    assert same(load_hypernetwork(Path(output.folder)), own, within=1e-20), "its zeros have moved by the rate"
    assert read_json(f"{begun.folder}/config.json")["metadata"]["made_from"]["start_from"] == {"weights_sha256": sha256(champion)}
    seen = read_seen(begun.folder)
    assert seen.contents == {f"video-{i:03d}" for i in range(7)} and not seen.is_all, "what the champion has seen is not known"
