"""Recipes are strict, and each wrong setting is named with its path."""

from pathlib import Path

import pytest

from infra.config import load_recipe, load_where
from infra.errors import BadInputError


@pytest.mark.parametrize("name", ["demo", "tiny"])
def test_shipped_recipes_load(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.world is not None
    assert recipe.frames.sampling.name == "uniform-4"


def test_an_empty_recipe_is_the_paper(tmp_path: Path) -> None:
    """Released checkpoints: rank 16, 8 latents, 9 blocks; appendix E: 9,000 steps of 384 samples at 1e-4."""
    (tmp_path / "empty.yaml").write_text("")
    recipe = load_recipe(str(tmp_path / "empty.yaml"))
    assert (recipe.hypernetwork.r, recipe.hypernetwork.n_latents, recipe.hypernetwork.n_blocks) == (16, 8, 9)
    assert (recipe.training.n_steps, recipe.training.videos_per_step, recipe.training.lr) == (9000, 384, 1e-4)
    assert recipe.frames.sampling.n_frames == 12


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("trainig: {lr: 1.0}", "trainig"),
        ("training: {learning_rate: 1.0}", "training.learning_rate"),
        ("training: {n_steps: 'many'}", "training.n_steps"),
        ("training: {n_steps: '7'}", "training.n_steps"),
        ("training: {zero_stage: 4}", "training.zero_stage"),
        ("frames: {sampling: {policy: sometimes}}", "frames.sampling.policy"),
        ("world: {level: 0}", "world.level"),
        ("answer: {systems: [ours, theirs]}", "answer.systems.1"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_path(tmp_path: Path, text: str, path: str) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(BadInputError) as refused:
        load_recipe(str(tmp_path / "wrong.yaml"))
    assert f"{path}:" in str(refused.value)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "!!python/object/apply:os.system ['true']"])
def test_what_is_no_recipe_is_refused_and_runs_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(BadInputError, match=r"wrong\.yaml"):
        load_recipe(str(tmp_path / "wrong.yaml"))


def test_a_recipe_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(BadInputError, match="demo, tiny"):
        load_recipe("dmeo")


def test_the_environment_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEO2LORA_DATA", "s3://bucket/run")
    monkeypatch.setenv("VIDEO2LORA_TRAINING_WORKERS", "3")
    assert (load_where().data, load_where().training_workers) == ("s3://bucket/run", 3)
    monkeypatch.setenv("VIDEO2LORA_TRAINING_WORKERS", "none")
    with pytest.raises(BadInputError, match="training_workers"):
        load_where()
