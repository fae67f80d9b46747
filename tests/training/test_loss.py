"""The loss of one step: each video's adapter for its own targets, chunks, the three terms, gradients everywhere; it can be learnt from."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from made_examples import an_example, write_vlm

from training.batches import Batch, Example, HeldExamples, Share, TeacherTokens
from training.loss import TERMS, Encoder, TargetLoss, chunks, feature_bytes, text_of
from training.validation import validate
from video2lora import prompts
from video2lora.hypernetwork import Hypernetwork, HypernetworkConfig
from video2lora.lora import Lora, adapted, concatenate, select
from video2lora.pretrained import load_vlm
from video2lora.vlm import FrozenVLM, TextBatch


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
    """Cross-entropy of each target."""
    found: torch.Tensor = student(encoder(batch.examples), text_of(student.vlm, batch, newline=False))
    return found[0]


def a_ragged_batch() -> Batch:
    """Videos of 5, 2 and 3 pictures."""
    examples = tuple(an_example(i, n_frames=n_frames) for i, n_frames in enumerate((5, 2, 3)))
    return Batch(examples, tuple(one.targets[:2] for one in examples))


def without_pictures(one: Example, vlm: FrozenVLM) -> Example:
    """As the table of visual tokens gives it."""
    images = np.zeros((len(one.frames.timestamps_s), 0, 0, 3), np.uint8)
    return replace(one, frames=replace(one.frames, images=images), visual_tokens=vlm.frame_tokens([one.frames]))


def test_a_step_is_as_one_target_at_a_time(vlm: FrozenVLM) -> None:
    student, batch = a_student(vlm, is_fresh=False), a_batch(3)
    with torch.no_grad():
        together = losses(student, Encoder(vlm, opens_answer=True, keeps=True), batch)
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
        torch.testing.assert_close(losses(a_student(vlm), Encoder(vlm, opens_answer=True, keeps=True), batch), expected)


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
    losses(student, Encoder(vlm, opens_answer=True, keeps=True), a_batch(3)).mean().backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert all(parameter.grad is None for parameter in vlm.model.parameters())


def test_at_the_start_only_what_multiplies_b_learns(vlm: FrozenVLM) -> None:
    """As published: multipliers of B and the static B are zero, so nothing before them has a gradient in the first step."""
    student = a_student(vlm)
    losses(student, Encoder(vlm, opens_answer=True, keeps=True), a_batch(3)).mean().backward()
    learning = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert learning == {"hypernetwork.heads.down_proj.scale_b", "hypernetwork.static.down_proj.lora_b"}


def test_the_loss_falls_and_the_answers_come_right(vlm: FrozenVLM) -> None:
    student, encoder = a_student(vlm), Encoder(vlm, opens_answer=True, keeps=True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    data = HeldExamples([an_example(i) for i in range(4)], seed=0, n_targets=2)
    curve = []
    for batch in islice(data.batches(Share(0, 1, 4), first_step=0), 100):
        loss = losses(student, encoder, batch).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        curve.append(float(loss.detach()))
    assert curve[-1] < 0.2 * curve[0], curve
    found = validate(student, encoder, a_batch(4), newline=False, max_new_tokens=8, n_answered=8)
    assert found["n_targets"] == found["exact_match"] == found["token_f1"] == 8 and found["loss"] / 8 < 0.2 * curve[0]
    assert found["other_exact_match"] == 0, "each clip is of another colour"


def test_kept_features_are_those_of_each_video_alone(vlm: FrozenVLM) -> None:
    """And never depend on what was encoded before, as a continued run needs."""
    examples = a_batch(3).examples
    kept = Encoder(vlm, opens_answer=True, keeps=True)
    kept(examples[:2])
    for chosen in (examples, examples[::-1], examples[1:]):
        got = kept(chosen)
        assert got.n_chunks == (1,) * len(chosen)
        for row, one in enumerate(chosen):
            assert torch.equal(got.hidden[row, :, got.mask[row]], vlm.features([one.frames], opens_answer=True).hidden[0])
        together = Encoder(vlm, opens_answer=True, keeps=False)(chosen)
        assert torch.equal(together.mask, got.mask)
        torch.testing.assert_close(
            got.hidden * got.mask[:, None, :, None], together.hidden * got.mask[:, None, :, None], rtol=1e-4, atol=1e-4
        )
    assert sorted(video_id for video_id, _, _ in kept.kept) == ["video-000", "video-001", "video-002"]


def test_videos_that_are_not_kept_are_encoded_together(vlm: FrozenVLM) -> None:
    examples = a_batch(3).examples
    encoder = Encoder(vlm, opens_answer=False, keeps=False)
    encoder(examples[1:])
    assert torch.equal(encoder(examples).hidden, vlm.features([one.frames for one in examples]).hidden) and not encoder.kept


@pytest.mark.parametrize(("n", "frames_per_picture", "expected"), [
    (1, 1, [5]), (2, 1, [2, 3]), (3, 1, [1, 2, 2]), (5, 1, [1] * 5), (7, 1, [1] * 5), (2, 2, [2, 3]), (3, 2, [2, 2, 1]), (4, 2, [2, 2, 1]),
])  # fmt: skip
def test_chunks_are_even_and_cut_between_pictures(n: int, frames_per_picture: int, expected: list[int]) -> None:
    one = an_example(0, n_frames=5)
    one = replace(one, visual_tokens=torch.arange(-(-5 // frames_per_picture) * 6.0).view(-1, 2, 3))
    found = chunks(one, n, frames_per_picture=frames_per_picture)
    assert [len(chunk.frames.timestamps_s) for chunk in found] == [len(chunk.frames.images) for chunk in found] == expected
    assert np.array_equal(np.concatenate([chunk.frames.images for chunk in found]), one.frames.images)
    assert np.array_equal(np.concatenate([chunk.frames.timestamps_s for chunk in found]), one.frames.timestamps_s)
    tokens = [chunk.visual_tokens for chunk in found if chunk.visual_tokens is not None]
    assert [len(of_one) for of_one in tokens] == [-(-n_frames // frames_per_picture) for n_frames in expected]
    assert one.visual_tokens is not None and torch.equal(torch.cat(tokens), one.visual_tokens)
    assert {chunk.frames.duration_s for chunk in found} == {one.frames.duration_s}


def test_no_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match=r"training\.max_chunks: got 0 chunks of 3 frames"):
        chunks(an_example(0), 0, frames_per_picture=1)


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("n_chunks", [1, 2, 3])
def test_features_with_stored_visual_tokens_are_the_same_bits(vlm: FrozenVLM, n_chunks: int, keeps: bool) -> None:
    examples = a_ragged_batch().examples
    seen = Encoder(vlm, opens_answer=False, keeps=keeps)(examples, n_chunks=n_chunks)
    stored = Encoder(vlm, opens_answer=False, keeps=keeps)([without_pictures(one, vlm) for one in examples], n_chunks=n_chunks)
    assert seen.n_chunks == stored.n_chunks == tuple(min(n_chunks, n) for n in (5, 2, 3))
    assert torch.equal(seen.hidden, stored.hidden) and torch.equal(seen.mask, stored.mask)


def test_visual_tokens_of_some_videos_are_refused(vlm: FrozenVLM) -> None:
    first, *rest = a_batch(3).examples
    with pytest.raises(ValueError, match="visual tokens: got those of 1 of 3 examples, expected all or none"):
        Encoder(vlm, opens_answer=False, keeps=False)([without_pictures(first, vlm), *rest])


def test_chunks_add_up_and_the_static_adapter_joins_once(vlm: FrozenVLM) -> None:
    """Each chunk encoded and internalized alone, by hand."""
    student, batch = a_student(vlm, is_fresh=False), a_ragged_batch()
    groups = text_of(vlm, batch, newline=False)
    with torch.no_grad():
        found = student(Encoder(vlm, opens_answer=True, keeps=False)(batch.examples, n_chunks=3), groups)
    expected, size = [], []
    for rows in groups:
        for row, video in enumerate(rows.video_of_row.tolist()):
            generated = by_hand(student, batch.examples[video], n_chunks=3)
            lora = concatenate([*generated, student.hypernetwork.static_lora()])
            with torch.no_grad(), adapted(vlm.layers, lora):
                expected.append(vlm.target_losses(select_row(rows.texts, row)))
            numbers = torch.cat([factor.flatten() for one in generated for factor in (*one.lora_a.values(), *one.lora_b.values())])
            size.append(numbers.abs().mean())
    torch.testing.assert_close(found[TERMS.index("ce")], torch.cat(expected), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[TERMS.index("l1")], torch.stack(size), rtol=1e-5, atol=0)
    assert not found[TERMS.index("kl")].any() and found[0].std() > 0


def by_hand(student: TargetLoss, one: Example, *, n_chunks: int) -> list[Lora]:
    """The generated adapter of each chunk."""
    parts = [np.arange(len(one.frames.images))] if n_chunks == 1 else np.array_split(np.arange(len(one.frames.images))[::-1], n_chunks)
    loras = []
    for part in parts[::-1]:  # numpy's first parts are the longer ones, ours the last
        if len(part):
            of = np.sort(part)
            frames = replace(one.frames, images=one.frames.images[of], timestamps_s=one.frames.timestamps_s[of])
            features = student.vlm.features([frames], opens_answer=True)
            with torch.no_grad():
                loras.append(student.hypernetwork(features.hidden, features.mask))
    return loras


def select_row(texts: TextBatch, row: int) -> TextBatch:
    assert texts.labels is not None
    return TextBatch(texts.input_ids[row : row + 1], texts.mask[row : row + 1], texts.positions[row : row + 1], texts.labels[row : row + 1])


def test_the_divergence_is_that_of_whole_distributions_at_the_teachers_tokens(vlm: FrozenVLM) -> None:
    """All words are stored: the VLM with another adapter is the teacher, and the oracle is PyTorch's kl_div of both models' logits."""
    student, (first, second) = a_student(vlm, is_fresh=False), a_batch(2).examples
    teacher = a_student(vlm, is_fresh=False).adapters(vlm.features([second.frames]))
    taught, expected = [], []
    features = vlm.features([first.frames], opens_answer=True)
    for target in sorted(first.targets, key=lambda one: len(one.prompt)):
        batch = vlm.text_batch([prompts.text_prompt(target.prompt)], [target.text])
        with torch.no_grad(), adapted(vlm.layers, teacher):
            theirs, ids, _ = vlm.target_log_probs(batch)
        with torch.no_grad(), adapted(vlm.layers, student.adapters(features)):
            ours = vlm.target_log_probs(batch)[0]
        expected.append(torch.nn.functional.kl_div(ours, theirs, reduction="sum", log_target=True) / len(ids))
        best = theirs.sort(descending=True)
        taught.append(replace(target, teacher=TeacherTokens(*(x.numpy() for x in (ids.int(), best.indices.int(), best.values)))))
    rows = text_of(vlm, Batch((first,), (tuple(taught),)), newline=False, kl=True, n_groups=1)
    found = student(features, rows)
    torch.testing.assert_close(found[TERMS.index("kl")].detach(), torch.stack(expected), rtol=1e-4, atol=1e-5)
    plain = student(features, text_of(vlm, Batch((first,), (first.targets,)), newline=False, n_groups=1))
    torch.testing.assert_close(found[TERMS.index("ce")], plain[TERMS.index("ce")])
    found[TERMS.index("kl")].mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in student.parameters())


def test_the_size_of_factors_pulls_on_generated_ones_alone(vlm: FrozenVLM) -> None:
    student, batch = a_student(vlm, is_fresh=False), a_batch(2)
    features = Encoder(vlm, opens_answer=True, keeps=False)(batch.examples)
    student(features, text_of(vlm, batch, newline=False))[TERMS.index("l1")].sum().backward()
    pulled = {name for name, parameter in student.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert pulled == {name for name, _ in student.named_parameters() if "static" not in name}


@pytest.mark.parametrize("max_chunks", [1, 3])
def test_the_room_that_kept_features_take_is_known_beforehand(vlm: FrozenVLM, max_chunks: int) -> None:
    (one,) = a_batch(1).examples
    encoder = Encoder(vlm, opens_answer=False, keeps=True)
    for n_chunks in range(1, max_chunks + 1):
        encoder([one], n_chunks=n_chunks)
    held = sum(hidden.numel() * hidden.element_size() for hidden in encoder.kept.values())
    assert held <= feature_bytes(vlm, one, max_chunks=max_chunks) <= 1.1 * held
    assert feature_bytes(vlm, without_pictures(one, vlm), max_chunks=max_chunks) == feature_bytes(vlm, one, max_chunks=max_chunks)
