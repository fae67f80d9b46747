"""Recipes are strict, and each wrong setting is named with its path."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import config
from infra.config import NodeGroup, Recipe, load_recipe, load_where, variables, where_of
from infra.errors import BadInputError

RECIPES = Path(config.__file__).parent / "recipes"


@pytest.mark.parametrize(("name", "frames"), [("demo", 4), ("tiny", 4), ("ablation", 4), ("evaluation", 4), ("chunks", 8)])
def test_shipped_recipes_load(name: str, frames: int) -> None:
    recipe = load_recipe(name)
    assert recipe.world is not None
    assert recipe.frames.sampling.name == f"uniform-{frames}"


def test_an_empty_recipe_is_the_paper(tmp_path: Path) -> None:
    """Released checkpoints: rank 16, 8 latents, 9 blocks; appendix E: 9,000 steps of 384 samples at 1e-4."""
    (tmp_path / "empty.yaml").write_text("")
    recipe = load_recipe(str(tmp_path / "empty.yaml"))
    assert (recipe.hypernetwork.r, recipe.hypernetwork.n_latents, recipe.hypernetwork.n_blocks) == (16, 8, 9)
    assert (recipe.training.n_steps, recipe.training.videos_per_step, recipe.training.lr) == (9000, 384, 1e-4)
    assert recipe.frames.sampling.n_frames == 12


# Method notes 2.2 and 2.3 (paper section 4.1, appendix E; published code): what both sizes have in common, and then what is each one's.
PUBLISHED: dict[str, Any] = {
    "vlm.dtype": "bfloat16",
    "frames.sampling.name": "published-12-1fps",
    "frames.longest_edge_px": 384,
    "teacher.model": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    "teacher.revision": "482adb537c021c86670beed01cd58990d01e72e4",
    "teacher.prompts": "paper",
    "teacher.max_tokens": 64,
    "hypernetwork.target_modules": ("down_proj",),
    "hypernetwork.r": 16,
    "hypernetwork.n_latents": 8,
    "hypernetwork.n_blocks": 9,
    "hypernetwork.d_latent": 512,
    "hypernetwork.n_heads": 16,
    "hypernetwork.n_kv_heads": 4,
    "hypernetwork.d_head": 128,
    "hypernetwork.n_pre_head_blocks": 1,
    "hypernetwork.scaling": None,  # 2 r^1.5
    "hypernetwork.static_adapter": True,
    "hypernetwork.normalise_features": False,
    "hypernetwork.opens_answer": False,
    "training.targets_per_video": 1,
    "training.lr": 1e-4,
    "training.warmup": 0.03,
    "training.betas": (0.9, 0.999),
    "training.weight_decay": 0.01,
    "training.max_grad_norm": 1.0,
    "training.dtype": "bfloat16",
    "training.seed": 42,
    "training.validate_every": 1000,
}
OF_SIZE = {  # hub name, its commit, steps, samples a step; the 256M is in no paper and has the 500M's
    "smolvlm2_256m": ("HuggingFaceTB/SmolVLM2-256M-Video-Instruct", "067788b187b95ebe7b2e040b3e4299e342e5b8fd", 9000, 384),
    "smolvlm2_500m": ("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "7b375e1b73b11138ff12fe22c8f2822d8fe03467", 9000, 384),
    "smolvlm2_2b": ("HuggingFaceTB/SmolVLM2-2.2B-Instruct", "482adb537c021c86670beed01cd58990d01e72e4", 7000, 240),
}


def setting(recipe: Recipe, path: str) -> Any:
    value: Any = recipe
    for name in path.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("name", sorted(OF_SIZE))
def test_the_recipes_of_the_real_models_are_the_published_training(name: str) -> None:
    recipe = load_recipe(name)
    assert {path: setting(recipe, path) for path in PUBLISHED} == PUBLISHED
    settings = ("vlm.model", "vlm.revision", "training.n_steps", "training.videos_per_step")
    assert tuple(setting(recipe, path) for path in settings) == OF_SIZE[name]
    assert recipe.world is None  # their videos come by `video2lora manifest`


@pytest.mark.parametrize("name", sorted(OF_SIZE))
def test_a_recipe_states_only_what_differs_from_the_defaults(name: str) -> None:
    stated = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    recipe, defaults = load_recipe(name).model_dump(mode="json"), Recipe().model_dump(mode="json")
    said_again = [(part, key) for part, settings in stated.items() for key in settings if recipe[part][key] == defaults[part][key]]
    assert said_again == []


def test_a_local_folder_takes_the_hub_names_place(tmp_path: Path) -> None:
    """As the comment in each recipe says: a copy of the file, another model, no revision."""
    name, revision = OF_SIZE["smolvlm2_500m"][:2]
    text = (RECIPES / "smolvlm2_500m.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace(name, str(tmp_path)).replace(revision, "null"))
    mine, theirs = load_recipe(str(tmp_path / "mine.yaml")), load_recipe("smolvlm2_500m")
    assert (mine.vlm.model, mine.vlm.revision) == (str(tmp_path), None)
    assert mine.model_copy(update={"vlm": theirs.vlm}) == theirs


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("trainig: {lr: 1.0}", "trainig:"),
        ("training: {learning_rate: 1.0}", "training.learning_rate:"),
        ("training: {n_steps: 'many'}", "training.n_steps:"),
        ("training: {n_steps: '7'}", "training.n_steps:"),
        ("training: {zero_stage: 4}", "training.zero_stage:"),
        ("frames: {sampling: {policy: sometimes}}", "frames.sampling.policy:"),
        ("world: {level: 0}", "world.level:"),
        ("answer: {systems: [ours, theirs]}", "answer.systems.1:"),
        ("judge: {model: one, second: {model: one}}", "judge.second:"),
        ("judge: {model: one, max_tokens: 512, n_tries: 5, second: {model: one, max_tokens: 512}}", "judge.second:"),
        ("evaluation: {n_draws: 158}", "evaluation: Value error, n_draws"),
        ("{answer: {hypernetwork: tiny}, evaluation: {seeds: [1, 2]}}", "recipe: Value error, answer.hypernetwork names one"),
        ("evaluation: {alpha: 0.0003}", "evaluation: Value error, n_draws"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_path(tmp_path: Path, text: str, path: str) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(BadInputError) as refused:
        load_recipe(str(tmp_path / "wrong.yaml"))
    assert path in str(refused.value)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "!!python/object/apply:os.system ['true']"])
def test_what_is_no_recipe_is_refused_and_runs_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(BadInputError, match=r"wrong\.yaml"):
        load_recipe(str(tmp_path / "wrong.yaml"))


def test_a_recipe_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(BadInputError, match="ablation, chunks, demo, evaluation, smolvlm2_256m, smolvlm2_2b, smolvlm2_500m, tiny"):
        load_recipe("dmeo")


def test_the_environment_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEO2LORA_DATA", "s3://bucket/run")
    monkeypatch.setenv("VIDEO2LORA_TRAINING_WORKERS", "3")
    assert (load_where().data, load_where().training_workers) == ("s3://bucket/run", 3)
    monkeypatch.setenv("VIDEO2LORA_TRAINING_WORKERS", "none")
    with pytest.raises(BadInputError, match="environment: VIDEO2LORA_TRAINING_WORKERS: "):
        load_where()


def test_what_a_cluster_grows_to_is_told_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEO2LORA_GROWS_TO", '[{"n": 16, "CPU": 8}, {"CPU": 64, "GPU": 8}]')
    assert load_where().groups() == (NodeGroup(n=16, CPU=8.0), NodeGroup(CPU=64.0, GPU=8.0))
    assert where_of(variables(load_where())) == load_where()
    for wrong in ("16", '[{"cpu": 8}]', '[{"n": 0}]', "[{"):
        monkeypatch.setenv("VIDEO2LORA_GROWS_TO", wrong)
        with pytest.raises(BadInputError, match="VIDEO2LORA_GROWS_TO"):
            load_where()


@pytest.mark.parametrize(
    "setting", ["answer: {systems: [base, ours, base]}", "evaluation: {seeds: [3, 5, 3]}", "figures: {n_chunks: [2, 2]}"]
)
def test_what_comes_twice_is_refused(tmp_path: Path, setting: str) -> None:
    (tmp_path / "twice.yaml").write_text(setting)
    with pytest.raises(BadInputError, match=r"(answer.systems|evaluation.seeds|figures.n_chunks): .*each once"):
        load_recipe(str(tmp_path / "twice.yaml"))


def test_a_second_judge_may_be_the_same_model_asked_otherwise(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("judge: {model: one, max_tokens: 512, second: {model: one}}")
    assert load_recipe(str(tmp_path / "two.yaml")).judge is not None


def test_as_many_draws_as_a_claim_needs_are_named_and_then_taken(tmp_path: Path) -> None:
    """At alpha 0.025 the smallest p of 159 draws is 1 / 160, which over 4 benchmarks is 0.025."""
    path = tmp_path / "few.yaml"
    path.write_text("evaluation: {n_draws: 158}")
    with pytest.raises(BadInputError, match=r"n_draws: got 158, too few for any claim at alpha 0\.025: set n_draws to 159 or more"):
        load_recipe(str(path))
    path.write_text("evaluation: {n_draws: 159}")
    assert load_recipe(str(path)).evaluation.n_draws == 159
