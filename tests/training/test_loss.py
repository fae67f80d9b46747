"""The loss of one step: each video's adapter for its own targets, gradients everywhere, and it can be learnt from."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from made_examples import an_example, write_vlm

from training.batches import Batch, HeldExamples, Share
from training.loss import Encoder, TargetLoss, text_of, validate
from video2lora import prompts
from video2lora.hypernetwork import Hypernetwork, HypernetworkConfig
from video2lora.lora import adapted, select
from video2lora.pretrained import load_vlm
from video2lora.vlm import FrozenVLM


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> FrozenVLM:
    folder: Path = tmp_path_factory.mktemp("vlm")
    write_vlm(folder)
    return load_vlm(str(folder))


def a_student(vlm: FrozenVLM, *, is_fresh: bool = True) -> TargetLoss:
    config = HypernetworkConfig(
        n_layers=len(vlm.layers), d_vlm=vlm.d_vlm, target_modules=vlm.module_sizes(["down_proj"]), r=3, n_latents=5, n_blocks=1,
        d_latent=24, n_heads=2, n_kv_heads=1, d_head=12, normalise_features=True,
    )  # fmt: skip
    hypernetwork = Hypernetwork(config, seed=5)
    if not is_fresh:
        with torch.no_grad():
            for name, parameter in hypernetwork.named_parameters():
                if name.endswith(("scale_b", "lora_b")):
                    parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(6))
    return TargetLoss(hypernetwork, vlm)


def a_batch(n_videos: int, *, n_targets: int = 2) -> Batch:
    examples = HeldExamples([an_example(i) for i in range(n_videos)], seed=0, n_targets=n_targets)
    return next(examples.batches(Share(0, 1, n_videos), first_step=0))


def losses(student: TargetLoss, encoder: Encoder, batch: Batch) -> torch.Tensor:
    found: torch.Tensor = student(encoder(batch.examples), text_of(student.vlm, batch, newline=False))
    return found


def test_a_step_is_as_one_target_at_a_time(vlm: FrozenVLM) -> None:
    student, batch = a_student(vlm, is_fresh=False), a_batch(3)
    with torch.no_grad():
        together = losses(student, Encoder(vlm, opens_answer=True), batch)
        alone = []
        for one, targets in zip(batch.examples, batch.targets, strict=True):
            features = vlm.features([one.frames], opens_answer=True)
            lora = student.hypernetwork.with_static(student.hypernetwork(features.hidden, features.mask))
            for target in targets:
                with adapted(vlm.layers, select(lora, torch.tensor([0]))):
                    alone.append(vlm.target_losses(vlm.text_batch([prompts.text_prompt(target.prompt)], [target.text])))
    torch.testing.assert_close(together.sort().values, torch.cat(alone).sort().values, rtol=1e-4, atol=1e-4)
    assert together.std() > 0


def test_a_fresh_hypernetwork_changes_nothing(vlm: FrozenVLM) -> None:
    batch = a_batch(2)
    expected = torch.cat([vlm.target_losses(rows.texts) for rows in text_of(vlm, batch, newline=False)])
    with torch.no_grad():
        torch.testing.assert_close(losses(a_student(vlm), Encoder(vlm, opens_answer=True), batch), expected)


def test_groups_hold_every_target_once_with_its_video(vlm: FrozenVLM) -> None:
    batch = a_batch(3)
    found = []
    for rows in text_of(vlm, batch, newline=False, n_groups=4):
        texts = vlm.tokenizer.batch_decode(rows.texts.input_ids, skip_special_tokens=True)
        found += [
            (batch.examples[video].video_id, text.split("Assistant:")[1].strip())
            for video, text in zip(rows.video_of_row, texts, strict=True)
        ]
    expected = [(one.video_id, target.text) for one, targets in zip(batch.examples, batch.targets, strict=True) for target in targets]
    assert sorted(found) == sorted(expected)


def test_gradients_reach_every_parameter(vlm: FrozenVLM) -> None:
    student = a_student(vlm, is_fresh=False)
    losses(student, Encoder(vlm, opens_answer=True), a_batch(3)).mean().backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert all(parameter.grad is None for parameter in vlm.model.parameters())


def test_at_the_start_only_what_multiplies_b_learns(vlm: FrozenVLM) -> None:
    """As published: multipliers of B and the static B are zero, so nothing before them has a gradient in the first step."""
    student = a_student(vlm)
    losses(student, Encoder(vlm, opens_answer=True), a_batch(3)).mean().backward()
    learning = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert learning == {"hypernetwork.heads.down_proj.scale_b", "hypernetwork.static.down_proj.lora_b"}


def test_the_loss_falls_and_the_answers_come_right(vlm: FrozenVLM) -> None:
    student, encoder = a_student(vlm), Encoder(vlm, opens_answer=True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    data = HeldExamples([an_example(i) for i in range(4)], seed=0, n_targets=2)
    curve = []
    for batch in islice(data.batches(Share(0, 1, 4), first_step=0), 60):
        loss = losses(student, encoder, batch).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        curve.append(float(loss.detach()))
    assert curve[-1] < 0.2 * curve[0], curve
    loss_sum, n_right, n = validate(student, encoder, a_batch(4), newline=False, max_new_tokens=8)
    assert n == 8 and n_right == 8 and loss_sum / n < 0.2 * curve[0]


def test_kept_features_are_the_features(vlm: FrozenVLM) -> None:
    examples = a_batch(3).examples
    fresh, kept = Encoder(vlm, opens_answer=True, kept_bytes=0), Encoder(vlm, opens_answer=True)
    kept(examples[:2])
    for chosen in (examples, examples[::-1], examples[1:]):
        got, expected = kept(chosen), fresh(chosen)
        assert torch.equal(got.mask, expected.mask)
        real = expected.mask[:, None, :, None]
        torch.testing.assert_close(got.hidden * real, expected.hidden * real, rtol=1e-4, atol=1e-4)
    assert sorted(kept.kept) == ["video-000", "video-001", "video-002"] and not fresh.kept
