"""A recipe as MLflow's parameters."""

from infra.config import HOW, Recipe, TrainingSettings
from infra.mlflow_run import how, parameters, what


def test_parameters_are_settings_by_path() -> None:
    assert parameters({"a": {"b": 1, "c": [2, 3]}, "d": "x", "e": None}) == [("a.b", "1"), ("a.c", "[2, 3]"), ("d", "x"), ("e", "null")]


def test_every_setting_is_what_or_how() -> None:
    recipe = Recipe(training=TrainingSettings(zero_stage=3))
    assert how(recipe)["training.zero_stage"] == "3" and set(how(recipe)) == {f"training.{name}" for name in HOW}
    assert sorted([*what(recipe), *how(recipe).items()]) == sorted(parameters(recipe.model_dump(mode="json")))
