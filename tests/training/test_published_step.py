"""With the published settings and one target a video, a step is the published step: its loss and the gradient of every parameter."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_examples import an_example, write_vlm
from reference_step import reference_loss

from infra.config import HypernetworkSettings, TrainingSettings
from training.batches import HeldExamples, Share
from training.loss import TERMS, Encoder, TargetLoss, text_of
from video2lora.hypernetwork import Hypernetwork, HypernetworkConfig
from video2lora.pretrained import load_vlm
from video2lora.vlm import FrozenVLM

PUBLISHED = HypernetworkSettings(r=3, n_latents=5, n_blocks=2, d_latent=22, n_heads=4, n_kv_heads=2, d_head=7)  # the rest by default


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> FrozenVLM:
    folder: Path = tmp_path_factory.mktemp("vlm")
    write_vlm(folder)
    return load_vlm(str(folder))


def a_student(vlm: FrozenVLM) -> TargetLoss:
    """Some steps from the start, where every parameter has a gradient."""
    settings = PUBLISHED.model_dump() | {"target_modules": vlm.module_sizes(PUBLISHED.target_modules)}
    hypernetwork = Hypernetwork(HypernetworkConfig(**settings, n_layers=len(vlm.layers), d_vlm=vlm.d_vlm), seed=5)
    with torch.no_grad():
        for name, parameter in hypernetwork.named_parameters():
            if name.endswith(("scale_b", "lora_b")):
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(6))
    return TargetLoss(hypernetwork, vlm)


def test_loss_and_gradients_are_the_published_ones(vlm: FrozenVLM) -> None:
    """To 1e-5 of each number, or of the largest of its tensor. Ours is in fp32, the reference in fp64: all the rounding is ours."""
    settings, student = TrainingSettings(), a_student(vlm)
    examples = [an_example(i, n_frames=n_frames) for i, n_frames in enumerate((2, 4, 3))]
    held = HeldExamples(examples, seed=settings.seed, n_targets=settings.targets_per_video)
    batch = next(held.batches(Share(0, 1, 3), first_step=0))
    encoder = Encoder(vlm, opens_answer=PUBLISHED.opens_answer, keeps=False)
    terms = student(encoder(batch.examples), text_of(vlm, batch, newline=settings.newline_after_target))
    loss = terms[TERMS.index("ce")].mean()
    loss.backward()

    exact = replace(vlm, family=replace(vlm.family, model=deepcopy(vlm.model).double()))
    weights = {name: value.detach().double().requires_grad_() for name, value in student.hypernetwork.named_parameters()}
    expected = torch.zeros((), dtype=torch.float64)
    for one, (target,) in zip(batch.examples, batch.targets, strict=True):
        expected = expected + reference_loss(exact, student.hypernetwork.config, weights, one, target) / len(batch.examples)
    expected.backward()

    torch.testing.assert_close(loss.detach().double(), expected.detach(), rtol=1e-5, atol=0)
    for name, parameter in student.hypernetwork.named_parameters():
        grad = weights[name].grad
        assert grad is not None and grad.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad.double(), grad, rtol=1e-5, atol=1e-5 * float(grad.abs().max()))
