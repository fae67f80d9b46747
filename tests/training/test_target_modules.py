"""Adapters on modules other than the published one: they train through the loss, and change the answers."""

from pathlib import Path

import pytest
import torch
from made_examples import QUESTIONS, an_example, write_vlm

from training.batches import HeldExamples, Share
from training.loss import Encoder, TargetLoss, text_of
from video2lora.hypernetwork import Hypernetwork, HypernetworkConfig
from video2lora.lora import adapted
from video2lora.pretrained import load_vlm
from video2lora.vlm import Features, FrozenVLM

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> FrozenVLM:
    folder: Path = tmp_path_factory.mktemp("vlm")
    write_vlm(folder)
    return load_vlm(str(folder))


@pytest.mark.parametrize("modules", [ATTENTION, (*ATTENTION, "gate_proj", "up_proj", "down_proj")], ids=["attention", "all linear"])
@pytest.mark.parametrize("read_every", [1, 3])
def test_gradients_reach_every_head_and_answers_change(vlm: FrozenVLM, modules: tuple[str, ...], read_every: int) -> None:
    config = HypernetworkConfig(
        n_layers=len(vlm.layers), d_vlm=vlm.d_vlm, target_modules=vlm.module_sizes(modules), r=3, n_latents=5, n_blocks=1,
        d_latent=24, n_heads=2, n_kv_heads=1, d_head=12, normalise_features=True, read_every=read_every,
    )  # fmt: skip
    student = TargetLoss(Hypernetwork(config, seed=5), vlm)
    batch = next(HeldExamples([an_example(i) for i in range(3)], seed=0, n_targets=2).batches(Share(0, 1, 3), first_step=0))
    features = Encoder(vlm, opens_answer=True, keeps=False)(batch.examples)
    bare = answers(student, features)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name.endswith(("scale_b", "lora_b")):
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(6))
    student(features, text_of(vlm, batch, newline=False))[0].mean().backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    for head in student.hypernetwork.heads.values():
        assert head.weight.grad.abs().amax((1, 2)).min() > 0, "of every layer"
    assert answers(student, features) != bare


def answers(student: TargetLoss, features: Features) -> list[str]:
    with adapted(student.vlm.layers, student.adapters(features)):
        return [one.text for one in student.vlm.generate(student.vlm.question_batch(QUESTIONS), max_new_tokens=7)]
