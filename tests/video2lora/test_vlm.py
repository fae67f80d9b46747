"""The frozen VLM against transformers' own whole model: features, losses, answers, pixels."""

import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Idefics3ImageProcessorPil

from video2lora import prompts
from video2lora.pixels import squash
from video2lora.pretrained import load_vlm, vlm_path, weights_digest, without_cudnn_attention
from video2lora.video import Frames
from video2lora.vlm import FrozenVLM


@pytest.fixture(scope="module")
def vlm() -> FrozenVLM:
    return load_vlm("tiny")


def made_frames(n_frames: int, *, height: int = 37, width: int = 53, seed: int = 0) -> Frames:
    images = np.random.default_rng(seed).integers(0, 256, (n_frames, height, width, 3), dtype=np.uint8)
    return Frames(images=images, timestamps_s=np.linspace(0.0, 2.3, n_frames), duration_s=2.3)


def test_pixels_are_those_of_transformers_processor(vlm: FrozenVLM) -> None:
    frames = made_frames(3, height=64, width=64)
    processor = Idefics3ImageProcessorPil.from_pretrained(vlm.model.name_or_path, do_image_splitting=False)
    expected = processor([Image.fromarray(image) for image in frames.images], return_tensors="pt")["pixel_values"][0]
    got = torch.from_numpy(squash(frames.images, vlm.family.image_size_px)).permute(0, 3, 1, 2) / 127.5 - 1.0
    torch.testing.assert_close(got, expected, atol=1 / 255, rtol=0)


@pytest.mark.parametrize("opens_answer", [False, True])
def test_features_are_the_hidden_states_of_the_whole_model(vlm: FrozenVLM, opens_answer: bool) -> None:
    videos = [made_frames(3, seed=1), made_frames(5, seed=2)]
    features = vlm.features(videos, opens_answer=opens_answer)
    assert features.hidden.shape[:2] == (2, len(vlm.layers))
    for i, video in enumerate(videos):
        batch = vlm.text_batch([vlm.family.video_prompt(video, prompts.INTERNALIZE, opens_answer=opens_answer)])
        assert vlm.tokenizer.decode(batch.input_ids[0]).endswith("Assistant:" if opens_answer else "<end_of_utterance>\n")
        pixels = torch.from_numpy(squash(video.images, vlm.family.image_size_px)).permute(0, 3, 1, 2)[None] / 127.5 - 1.0
        with torch.no_grad():
            expected = vlm.model(input_ids=batch.input_ids, pixel_values=pixels, output_hidden_states=True).hidden_states[:-1]
        torch.testing.assert_close(features.hidden[i][:, features.mask[i]], torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_target_losses_are_transformers_loss_of_each_row_alone(vlm: FrozenVLM) -> None:
    texts = [prompts.text_prompt("Which way does the object move?"), prompts.text_prompt("Count them.")]
    targets = ["left", "Two small blue squares move left on a black background."]
    losses = vlm.target_losses(vlm.text_batch(texts, targets))
    for i in range(2):
        row = vlm.text_batch([texts[i]], [targets[i]])
        with torch.no_grad():
            expected = vlm.model(input_ids=row.input_ids, labels=row.labels).loss
        torch.testing.assert_close(losses[i], expected, rtol=1e-4, atol=1e-5)


def test_batched_answers_are_those_of_each_question_alone(vlm: FrozenVLM) -> None:
    frames = made_frames(4, seed=3)
    questions = ["What colour is the background?", "How many shapes are in the video, in all, would you say?"]
    together = vlm.generate(vlm.video_batch([frames, frames], questions), max_new_tokens=7, frame_tokens=vlm.frame_tokens([frames, frames]))
    for question, answer in zip(questions, together, strict=True):
        batch = vlm.video_batch([frames], [question])
        pixels = torch.from_numpy(squash(frames.images, vlm.family.image_size_px)).permute(0, 3, 1, 2)[None] / 127.5 - 1.0
        expected = vlm.model.generate(
            input_ids=batch.input_ids, attention_mask=batch.mask, pixel_values=pixels, max_new_tokens=7, do_sample=False
        )
        text = vlm.tokenizer.decode(expected[0, batch.input_ids.shape[1] :], skip_special_tokens=True).strip()
        assert answer.text == text
        assert answer.n_visual_tokens == 4 * vlm.family.n_image_tokens
        assert answer.n_input_tokens == batch.input_ids.shape[1]


def test_frames_and_image_tokens_must_match(vlm: FrozenVLM) -> None:
    batch = vlm.video_batch([made_frames(3)], ["What is it?"])
    with pytest.raises(ValueError, match="image tokens"):
        vlm.embed(batch, vlm.frame_tokens([made_frames(2)]))
    with pytest.raises(ValueError, match="image tokens"):
        vlm.embed(batch)
    with pytest.raises(ValueError, match="labels"):
        vlm.target_losses(replace(batch, labels=None))


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"vlm\.model.*'/nowhere'"):
        load_vlm("/nowhere")


def test_module_that_no_block_has_is_named(vlm: FrozenVLM) -> None:
    assert vlm.module_sizes(["down_proj"]) == {"down_proj": (384, 128)}
    with pytest.raises(ValueError, match="bottom_proj"):
        vlm.module_sizes(["bottom_proj"])


def test_features_keep_one_copy_of_the_layers_and_no_attention_maps(vlm: FrozenVLM) -> None:
    """All that a forward pass of the decoder hands out is looked at: last states alone; and its attention is asked for no weights."""
    given: list[set[str]] = []
    asked: list[dict[str, Any]] = []
    hooks = [
        vlm.family.decoder.register_forward_hook(lambda _module, _args, output: given.append(set(output.keys()))),
        vlm.family.decoder.register_forward_pre_hook(lambda _module, _args, kwargs: asked.append(kwargs), with_kwargs=True),
    ]
    try:
        vlm.features([made_frames(3)])
    finally:
        for hook in hooks:
            hook.remove()
    assert given == [{"last_hidden_state"}]
    assert not asked[0].get("output_hidden_states") and not asked[0].get("output_attentions") and not asked[0]["use_cache"]


def test_the_vision_tower_sees_a_few_frames_at_a_time(vlm: FrozenVLM) -> None:
    """37 frames in parts of 16; each frame's tokens are those it has alone."""
    seen: list[int] = []
    hook = vlm.model.model.vision_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    frames = made_frames(37)
    try:
        together = vlm.frame_tokens([frames])
    finally:
        hook.remove()
    assert seen == [16, 16, 5]
    alone = vlm.frame_tokens([Frames(frames.images[36:], frames.timestamps_s[36:], frames.duration_s)])
    torch.testing.assert_close(together[36:], alone, rtol=1e-4, atol=1e-5)


def test_a_digest_names_weights_whatever_dtype_they_are_loaded_in(vlm: FrozenVLM) -> None:
    assert load_vlm("tiny", dtype="bfloat16").digest == vlm.digest
    other = deepcopy(vlm.model)
    with torch.no_grad():
        other.lm_head.weight[3, 5] += 0.5
    assert weights_digest(other) != vlm.digest


def spoil(folder: Path, what: str) -> None:
    weights = folder / "model.safetensors"
    if what == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif what == "no weights":
        weights.unlink()
    elif what == "a weight missing":
        tensors = load_file(weights)
        del tensors["model.text_model.layers.1.mlp.down_proj.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    elif what == "no tokenizer":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("truncated", "damaged or unknown model folder"),
        ("no weights", "damaged or unknown model folder"),
        ("a weight missing", r"lacks 1 of its weights, model\.text_model\.layers\.1\.mlp\.down_proj\.weight"),
        ("no tokenizer", "damaged or unknown model folder"),
    ],
)
def test_a_damaged_model_folder_is_refused(tmp_path: Path, what: str, message: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(vlm_path("tiny"), folder)
    spoil(folder, what)
    with pytest.raises(ValueError, match=message):
        load_vlm(str(folder))


def test_a_folder_has_no_revisions(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"revision: got 'abc' for .* which is a folder"):
        load_vlm(str(tmp_path), revision="abc")


def test_on_a_gpu_attention_is_not_cudnns() -> None:
    """The switch alone: what it is for needs a GPU that has the fault."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        without_cudnn_attention("cpu")
        assert torch.backends.cuda.cudnn_sdp_enabled()
        without_cudnn_attention("cuda:1")
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
