"""What a command needs is what its stages will ask for, and what does not fit is named before anything starts."""

import pytest

from infra.config import Recipe, Where, load_recipe
from infra.resources import COMMANDS, Node, needs, stages, unmet

SMALL = [Node("head", 0.0), Node("worker", 2.0, n=2)]


def wanting(command: str, where: Where, nodes: list[Node], recipe: Recipe | None = None) -> list[str]:
    recipe = recipe or Recipe()
    return unmet(needs(stages(command, None, recipe), recipe, where), nodes)


def test_the_demo_fits_a_laptop() -> None:
    assert wanting("demo", Where(), [Node("head", 2.0)], load_recipe("demo")) == []


def test_an_engine_has_its_cpus_and_gpus_on_one_node() -> None:
    where = Where(teacher_cpus=1, teacher_gpus=1, teacher_replicas=2)
    apart = [Node("cpus", 8.0), Node("gpus", 0.0, 8.0)]
    (told,) = wanting("targets", where, apart)
    assert told == (
        "targets needs 2 engines of 1 CPU and 1 GPU each on one node (VIDEO2LORA_TEACHER_REPLICAS, _CPUS, _GPUS), and there is room for 0"
    )
    assert wanting("targets", where, [Node("both", 2.0, 2.0)]) == []
    assert wanting("targets", where, [Node("both", 1.0, 1.0, n=2)]) == []


def test_an_engine_is_as_large_as_the_largest_node() -> None:
    assert wanting("targets", Where(teacher_cpus=2), SMALL) == []
    assert len(wanting("targets", Where(teacher_cpus=3), SMALL)) == 1


def test_training_with_gpus_needs_one_for_each_worker_and_without_any_core() -> None:
    with_gpus = Where(training_workers=3, training_gpus=1)
    assert len(wanting("train", with_gpus, [Node("n", 8.0, 2.0)])) == 1
    assert wanting("train", with_gpus, [Node("n", 8.0, 3.0)]) == []
    assert wanting("train", with_gpus.model_copy(update={"training_min_workers": 2}), [Node("n", 8.0, 2.0)]) == []
    assert wanting("train", Where(training_workers=64), [Node("n", 1.0)]) == []
    assert len(wanting("train", Where(), [Node("n", 0.0)])) == 1


def test_each_stage_that_does_not_fit_is_named() -> None:
    told = wanting("run", Where(teacher_gpus=1, training_gpus=1), SMALL)
    assert [one.split()[0] for one in told] == ["targets", "train", "answer"]


def test_a_judge_of_an_endpoint_needs_no_node() -> None:
    by = {"model": "gpt", "served_by": "endpoint"}
    recipe = Recipe.model_validate({"judge": by})
    assert [need.stage for need in needs(stages("judge", None, recipe), recipe, Where())] == []
    assert stages("run", None, recipe)[-3:] == ["answer", "judge", "report"]


def test_a_teacher_of_an_endpoint_needs_no_gpu() -> None:
    where = Where(teacher_gpus=1)
    elsewhere = Recipe.model_validate({"teacher": {"served_by": "endpoint"}})
    assert [[need.n_gpus for need in needs(["targets"], recipe, where)] for recipe in (Recipe(), elsewhere)] == [[1.0], [0.0]]


def test_clips_are_rendered_where_nobody_names_a_source() -> None:
    demo = load_recipe("demo")
    assert stages("run", None, demo)[0] == "clips"
    assert stages("run", "s3://videos", demo)[0] == stages("run", None, Recipe())[0] == "manifest"


def test_stored_visual_tokens_are_encoded_before_training() -> None:
    recipe = Recipe.model_validate({"training": {"visual_tokens": "stored"}})
    assert stages("evaluate", None, recipe) == ["encode", "train", "answer", "report"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_can_be_submitted(command: str) -> None:
    from typer.main import get_command

    from infra.cli import app

    assert command in get_command(app).commands  # type: ignore[attr-defined]
