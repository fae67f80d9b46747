"""What a worker needs, worked out on made data: counted as it is, halved where it is too much, refused where it cannot be."""

import json
from typing import Any

import pytest
import torch
from made_examples import write_vlm

from infra.config import FramesSettings, HypernetworkSettings, Recipe, TeacherSettings, TrainingSettings, VLMSettings, Where
from infra.errors import BadInputError
from training import dry_run
from training.models import frozen_vlm, new_hypernetwork
from video2lora.sampling import Sampling

SMALL = HypernetworkSettings(r=3, n_latents=5, n_blocks=2, d_latent=16, n_heads=2, n_kv_heads=1, d_head=8)
VALUES = {"n_steps": 11, "videos_per_step": 6, "targets_per_video": 2, "max_chunks": 2, "kl_weight": 0.3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("vlm")
    write_vlm(folder)
    return str(folder)


@pytest.fixture
def recipe(folder: str) -> Recipe:
    return Recipe(
        vlm=VLMSettings(model=folder),
        frames=FramesSettings(sampling=Sampling(n_frames=3), longest_edge_px=37),
        teacher=TeacherSettings(max_tokens=7, logprobs=2),
        hypernetwork=SMALL,
        training=TrainingSettings(**VALUES),
    )


def changed(recipe: Recipe, **training: Any) -> Recipe:
    return recipe.model_copy(update={"training": TrainingSettings(**{**VALUES, **training})})


def test_a_worker_is_counted(recipe: Recipe) -> None:
    facts = dry_run.run(recipe, Where(data="nowhere", training_workers=2))
    vlm = frozen_vlm(recipe, device="cpu")
    trained = sum(one.numel() for one in new_hypernetwork(recipe, vlm).parameters())
    frozen = sum(one.numel() for one in vlm.model.parameters())
    assert {kind: sum(parts.values()) for kind, parts in facts["parameters"].items()} == {"trained": trained, "frozen": frozen}
    assert set(facts["parameters"]["trained"]) == {"projection", "encoder", "decoder", "pre_head", "heads", "static"}
    held = facts["bytes"]
    assert held["frozen weights"] == 4 * frozen and held["trained weights"] == held["gradients"] == 4 * trained
    assert 8 * trained <= held["optimizer's moments"] < 8.1 * trained
    assert held["a video's visual tokens, if stored"] == 4 * 3 * vlm.family.n_image_tokens * vlm.d_vlm
    assert facts["videos_per_worker"] == facts["videos_tried"] == 3
    assert facts["training_s"] == pytest.approx(11 * facts["step_s"]) and facts["samples_per_s"] == pytest.approx(6 / facts["step_s"])
    total = sum(facts["flop_per_video"].values())
    assert facts["floor_s"] == pytest.approx(3 * total / facts["matmul_flop_per_s"])
    assert json.loads(json.dumps(facts)) == facts


def test_parts_cost_what_they_read(recipe: Recipe) -> None:
    """A student's pass is longer with more words; what reads the video is not; stored tokens take the tower out of the step."""
    cpu = torch.device("cpu")
    one = dry_run.Trial(recipe, cpu)
    longer = dry_run.Trial(recipe.model_copy(update={"teacher": TeacherSettings(max_tokens=19, logprobs=2)}), cpu)
    grown = {part for part, n in longer.flops.items() if n > one.flops[part]}
    assert grown == {"student, forward and backward"} and one.flops.keys() == longer.flops.keys()
    stored = dry_run.run(changed(recipe, visual_tokens="stored"), Where(data="nowhere"))
    of_step = sum(one.flops.values()) - one.flops["vision tower"]
    assert stored["flop_per_video"] == one.flops
    assert stored["floor_s"] * stored["matmul_flop_per_s"] == pytest.approx(stored["videos_tried"] * of_step)


def test_too_many_videos_are_halved_and_it_says_so(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dry_run, "LONGEST_STEP_S", 0.0)
    facts = dry_run.run(changed(recipe, videos_per_step=5), Where(data="nowhere", training_workers=1))
    assert (facts["videos_per_worker"], facts["videos_tried"]) == (5, 1)
    assert facts["training_s"] == pytest.approx(11 * 5 * facts["step_s"])
    dry_run.print_tables(facts)
    said = capsys.readouterr()
    assert "train: 5 videos would take about" in said.err and "train: 2 videos would take about" in said.err
    assert "tried with 1 of a worker's 5 videos" in said.out


@pytest.mark.parametrize(
    ("change", "where", "says"),
    [
        ({"vlm": VLMSettings(model="/nowhere")}, {}, "vlm.model: got '/nowhere'"),
        ({"hypernetwork": SMALL.model_copy(update={"target_modules": ("sideways_proj",)})}, {}, "target_modules: got"),
        ({"frames": FramesSettings(sampling=Sampling(n_frames=500), longest_edge_px=8)}, {}, "positions"),
        ({}, {"training_workers": 7}, "videos_per_step: got 6, expected at least one for each of the 7 workers"),
        ({}, {"training_gpus": 1}, "VIDEO2LORA_TRAINING_GPUS: got 1, and torch sees no GPU here"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    recipe: Recipe, change: dict[str, Any], where: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInputError, match=says):
        dry_run.run(recipe.model_copy(update=change), Where(data="nowhere", **where))
