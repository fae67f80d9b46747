"""Scores while it trains: each target's loss once, few answers over many videos, and the two controls."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_examples import an_example, write_vlm

from training.batches import Batch
from training.loss import Encoder, TargetLoss, text_of
from training.validation import blind_scores, validate
from video2lora.hypernetwork import Hypernetwork, HypernetworkConfig
from video2lora.lora import Lora, adapted
from video2lora.pretrained import load_vlm
from video2lora.scoring import exact_match, token_f1
from video2lora.vlm import FrozenVLM

MAX_NEW_TOKENS = 4


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> FrozenVLM:
    folder: Path = tmp_path_factory.mktemp("vlm")
    write_vlm(folder)
    return load_vlm(str(folder))


@pytest.fixture(scope="module")
def student(vlm: FrozenVLM) -> TargetLoss:
    """One that answers each clip in another way."""
    config = HypernetworkConfig(
        n_layers=len(vlm.layers), d_vlm=vlm.d_vlm, target_modules=vlm.module_sizes(["down_proj"]), r=3, n_latents=5, n_blocks=1,
        d_latent=24, n_heads=2, n_kv_heads=1, d_head=12, normalise_features=True,
    )  # fmt: skip
    hypernetwork = Hypernetwork(config, seed=5)
    with torch.no_grad():
        hypernetwork.heads["down_proj"].scale_b.normal_(generator=torch.Generator().manual_seed(6))
    return TargetLoss(hypernetwork, vlm)


def answer(vlm: FrozenVLM, question: str, lora: Lora | None) -> str:
    """One, alone."""
    with nullcontext() if lora is None else adapted(vlm.layers, lora):
        return vlm.generate(vlm.question_batch([question]), max_new_tokens=MAX_NEW_TOKENS)[0].text


@pytest.fixture(scope="module")
def batch(student: TargetLoss) -> Batch:
    """Clips with 3, 1 and 2 targets, which are what the student says of them: right are the answers by the right adapter."""
    examples = []
    for i, n in enumerate((3, 1, 2)):
        one = an_example(i)
        lora = student.adapters(student.vlm.features([one.frames]))
        targets = tuple(replace(target, text=answer(student.vlm, target.prompt, lora)) for target in one.targets[:n])
        examples.append(replace(one, targets=targets))
    return Batch(tuple(examples), tuple(one.targets for one in examples))


def scores(student: TargetLoss, batch: Batch, n_answered: int) -> dict[str, float]:
    encoder = Encoder(student.vlm, opens_answer=False, keeps=True)
    return validate(student, encoder, batch, newline=True, max_new_tokens=MAX_NEW_TOKENS, n_answered=n_answered)


@pytest.fixture(scope="module")
def alone(student: TargetLoss, batch: Batch) -> dict[tuple[int, int], list[list[float]]]:
    """Exact match and token F1 of each target by the own, the next and no adapter, answer by answer."""
    loras = [student.adapters(student.vlm.features([one.frames])) for one in batch.examples]
    found = {}
    for i, targets in enumerate(batch.targets):
        for j, target in enumerate(targets):
            said = [answer(student.vlm, target.prompt, lora) for lora in (loras[i], loras[(i + 1) % len(loras)], None)]
            found[i, j] = [[exact_match(one, [target.text]), token_f1(one, [target.text])] for one in said]
    return found


@pytest.mark.parametrize(
    ("n_answered", "places"),
    [(4, [(0, 0), (1, 0), (2, 0), (0, 1)]), (99, [(0, 0), (1, 0), (2, 0), (0, 1), (2, 1), (0, 2)])],
)
def test_answers_are_few_and_of_many_videos_and_all_systems_have_the_same(
    student: TargetLoss,
    batch: Batch,
    alone: dict[tuple[int, int], list[list[float]]],
    n_answered: int,
    places: list[tuple[int, int]],
) -> None:
    found = scores(student, batch, n_answered)
    blind = blind_scores(student.vlm, batch, max_new_tokens=MAX_NEW_TOKENS, n_answered=n_answered)
    own, other, without = np.sum([alone[place] for place in places], axis=0).tolist()
    assert found["n_answered"] == found["n_others"] == blind["n_answered"] == len(places)
    assert [found["exact_match"], found["token_f1"]] == pytest.approx(own) == [len(places)] * 2
    assert [found["other_exact_match"], found["other_token_f1"]] == pytest.approx(other) and other[1] < own[1]
    assert [blind["blind_exact_match"], blind["blind_token_f1"]] == pytest.approx(without) and without[1] < own[1]


def test_the_loss_is_of_every_target_whatever_is_answered(student: TargetLoss, batch: Batch) -> None:
    found = scores(student, batch, 0)
    expected = 0.0
    for one in batch.examples:
        features = student.vlm.features([one.frames])
        with torch.no_grad():
            expected += float(student(features, text_of(student.vlm, Batch((one,), (one.targets,)), newline=True))[0].sum())
    assert found["loss"] == pytest.approx(expected, rel=1e-4) and found["n_targets"] == 6
    assert not any(value for name, value in found.items() if name not in ("loss", "n_targets"))


def test_a_batch_of_one_video_has_no_other(student: TargetLoss, batch: Batch) -> None:
    found = scores(student, Batch(batch.examples[:1], batch.targets[:1]), 99)
    assert found["n_answered"] == found["exact_match"] == 3
    assert found["n_others"] == found["other_exact_match"] == found["other_token_f1"] == 0
