"""Every family of VLMs keeps the Protocol; Qwen2.5-VL (tiny, random weights) goes the whole way. Oracle: transformers' whole model."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from video2lora import prompts
from video2lora.adapter import load_adapter, save_adapter
from video2lora.api import Internalizer, ask_all, internalize_batch, stream
from video2lora.family import Family
from video2lora.generation import Decoding
from video2lora.hypernetwork import Hypernetwork, HypernetworkConfig
from video2lora.lora import adapted
from video2lora.pretrained import FAMILIES, load_vlm
from video2lora.qwen2_5_vl import Qwen25VL, patches
from video2lora.sampling import Frames, Sampling
from video2lora.vlm import FrozenVLM, TextBatch

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QUESTIONS = ["Which way does it go?", "What is there to be seen?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen")
    made_tokenizer().save_pretrained(path)
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(made_config()).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def qwen(folder: Path) -> FrozenVLM:
    return load_vlm(str(folder))


@pytest.fixture(scope="module", params=["tiny", "qwen"])
def vlm(request: pytest.FixtureRequest) -> FrozenVLM:
    return load_vlm("tiny") if request.param == "tiny" else request.getfixturevalue("qwen")


def made_tokenizer() -> PreTrainedTokenizerFast:
    """One token for every byte, and Qwen's special tokens."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIAL[0], eos_token=SPECIAL[2])


def made_config() -> Qwen2_5_VLConfig:
    """Frames of 60 px: 3 windows of 2 x 2 tokens along an edge, 36 tokens a picture."""
    ids = {token: 256 + i for i, token in enumerate(SPECIAL)}
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 256 + len(SPECIAL),
            "hidden_size": 42,  # 3 heads of 14
            "intermediate_size": 53,
            "num_hidden_layers": 5,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "max_position_embeddings": 997,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 2, 3]},
            "initializer_range": 0.3,  # answers differ with what is seen
            "eos_token_id": ids["<|im_end|>"],
            "bos_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 24,  # 2 heads of 12
            "intermediate_size": 29,
            "num_heads": 2,
            "patch_size": 5,
            "window_size": 20,
            "fullatt_block_indexes": [1],
            "out_hidden_size": 42,
            "tokens_per_second": 3,
            "initializer_range": 0.3,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def made_frames(n_frames: int, *, interval_s: float = 0.5, seed: int = 0) -> Frames:
    images = np.random.default_rng(seed).integers(0, 256, (n_frames, 37, 53, 3), dtype=np.uint8)
    return Frames(images=images, timestamps_s=interval_s * np.arange(n_frames), duration_s=interval_s * n_frames)


def whole_model_inputs(vlm: FrozenVLM, batch: TextBatch, videos: list[Frames], seconds: list[float]) -> Mapping[str, Tensor]:
    """What transformers' processor would give to the whole model: a loop over the videos, two frames and one patch at a time."""
    rows, grids = [], []
    for video in videos:
        squares = [np.asarray(Image.fromarray(image).resize((60, 60), Image.Resampling.BICUBIC)) for image in video.images]
        squares += squares[-1:] * (len(squares) % 2)
        for pair in zip(squares[::2], squares[1::2], strict=True):
            rows += patches_one_by_one(np.stack(pair))
        grids.append([len(squares) // 2, 12, 12])
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.mask,
        "mm_token_type_ids": 2 * (batch.input_ids == vlm.model.config.video_token_id).int(),
        "pixel_values_videos": torch.stack(rows),
        "video_grid_thw": torch.tensor(grids),
        "second_per_grid_ts": torch.tensor(seconds),
    }


def patches_one_by_one(pair: np.ndarray) -> list[Tensor]:
    """Rows of 12 x 12 patches of 5 px: tokens row by row, and the 2 x 2 patches of each token row by row."""
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.from_numpy((pair / 255 - mean) / std).float().permute(3, 0, 1, 2)
    corners = [(10 * i + 5 * k, 10 * j + 5 * m) for i in range(6) for j in range(6) for k in range(2) for m in range(2)]
    return [pixels[:, :, y : y + 5, x : x + 5].flatten() for y, x in corners]


def test_every_family_has_the_members_of_the_protocol(vlm: FrozenVLM) -> None:
    members = {name for name in [*Family.__annotations__, *vars(Family)] if not name.startswith("_")}
    assert members == {
        "model", "tokenizer", "layers_path", "end_token", "decoder", "image_token_id",
        "frames_per_picture", "frame_tokens", "video_prompt", "text_prompt", "target_text", "positions",
    }  # fmt: skip
    family = vlm.family
    assert FAMILIES[type(family.model)] is type(family)
    for name in members:
        assert hasattr(family, name), name
        if inspect.isfunction(declared := vars(Family).get(name)):
            assert list(inspect.signature(getattr(family, name)).parameters) == list(inspect.signature(declared).parameters)[1:]


def test_every_family_keeps_the_protocols_promises(vlm: FrozenVLM) -> None:
    family, videos = vlm.family, [made_frames(5, seed=1), made_frames(2, seed=2)]
    assert list(vlm.layers) == list(family.decoder.layers)
    tokens = family.frame_tokens(videos)
    assert tokens.shape[2] == vlm.d_vlm == family.decoder.get_input_embeddings().embedding_dim
    torch.testing.assert_close(tokens, torch.cat([family.frame_tokens([video]) for video in videos]), rtol=1e-4, atol=1e-4)

    batch = vlm.video_batch(videos, QUESTIONS)
    assert sum(vlm.n_visual_tokens(batch)) == tokens.shape[:2].numel()
    assert batch.positions.shape[-2:] == batch.input_ids.shape
    assert batch.positions[..., batch.mask.argmax(1)[:, None] == torch.arange(batch.mask.shape[1])].eq(0).all()  # rows begin at 0
    assert vlm.n_visual_tokens(vlm.question_batch(QUESTIONS)) == [0, 0]
    for question, video in zip(QUESTIONS, videos, strict=True):
        assert question in family.video_prompt(video, question)
        assert question in family.text_prompt(question)

    encoded = vlm.tokenizer.encode(family.target_text("left"), add_special_tokens=False)
    assert encoded[-1] == vlm.tokenizer.convert_tokens_to_ids(family.end_token)
    assert vlm.tokenizer.decode(encoded, skip_special_tokens=True).strip() == "left"


def test_features_of_known_visual_tokens_need_no_picture_and_are_the_same_bits(vlm: FrozenVLM) -> None:
    videos = [made_frames(5, seed=1), made_frames(2, interval_s=0.7, seed=2)]
    bare = [replace(video, images=np.zeros((len(video.images), 0, 0, 3), np.uint8)) for video in videos]
    for opens_answer in (False, True):
        seen = vlm.features(videos, opens_answer=opens_answer)
        known = vlm.features(bare, opens_answer=opens_answer, frame_tokens=vlm.frame_tokens(videos))
        assert torch.equal(known.hidden, seen.hidden) and torch.equal(known.mask, seen.mask)
    with pytest.raises(ValueError, match="those of the frames given"):
        vlm.features(bare, frame_tokens=vlm.frame_tokens(videos[:1]))


@pytest.mark.parametrize("newline", [False, True])
def test_a_targets_tokens_may_be_those_that_another_wrote(vlm: FrozenVLM, newline: bool) -> None:
    """However it ended: its end is ours."""
    ids = vlm.target_ids("left left", newline=newline)
    n_closing = len(vlm.target_ids("left left")) - len(words := vlm.target_ids("left left")[:-1])
    assert n_closing == 1 and ids[: len(words)] == words
    end = vlm.tokenizer.convert_tokens_to_ids(vlm.family.end_token)
    for ending in ([], [end], [vlm.tokenizer.pad_token_id], [end, vlm.tokenizer.pad_token_id]):
        assert vlm.target_ids([*words, *ending], newline=newline) == ids
    text = vlm.family.text_prompt(QUESTIONS[0])
    of_text, of_ids = (vlm.text_batch([text], [target], newline=newline) for target in ("left left", words))
    assert of_text.labels is not None and of_ids.labels is not None
    assert torch.equal(of_text.input_ids, of_ids.input_ids) and torch.equal(of_text.labels, of_ids.labels)


def test_qwen_patches_are_those_of_transformers_processor(qwen: FrozenVLM) -> None:
    still = Frames(images=made_frames(1).images.repeat(2, axis=0), timestamps_s=np.array([0.0, 1.0]), duration_s=2.0)
    processor = Qwen2VLImageProcessorPil(patch_size=5, merge_size=2, temporal_patch_size=2)
    seen = processor(Image.fromarray(still.images[0]).resize((60, 60), Image.Resampling.BICUBIC), do_resize=False, return_tensors="pt")
    assert seen["image_grid_thw"].tolist() == [[1, 12, 12]]
    got = patches(torch.from_numpy(qwen.family.pictures(still)), patch_px=5, merge=2)
    torch.testing.assert_close(got, seen["pixel_values"], rtol=1e-5, atol=1e-5)


def test_qwen_square_is_one_that_the_released_processor_leaves_as_it_is() -> None:
    with torch.device("meta"):
        released = Qwen25VL(Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig()), made_tokenizer())
    assert (released.image_size_px, released.n_image_tokens) == (336, 144)
    for n_windows, left in ((2, False), (3, True)):
        edge = 112 * n_windows
        assert (smart_resize(edge, edge, 28, 128 * 28 * 28, 768 * 28 * 28) == (edge, edge)) is left


def test_qwen_prompts_are_those_of_the_released_chat_template(qwen: FrozenVLM) -> None:
    prompt = qwen.family.video_prompt(made_frames(3), "What?")
    assert prompt.replace("<|video_pad|>" * 72, "<|video_pad|>") == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|video_pad|><|vision_end|>What?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert qwen.family.text_prompt("What?") == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(("numbers", "intervals"), [([4], [0.5]), ([7], [0.2]), ([3, 6], [0.25, 0.3])])
def test_qwen_features_are_the_hidden_states_of_the_whole_model(qwen: FrozenVLM, numbers: list[int], intervals: list[float]) -> None:
    videos = [made_frames(n, interval_s=s, seed=n) for n, s in zip(numbers, intervals, strict=True)]
    features = qwen.features(videos, opens_answer=True)
    batch = qwen.video_batch(videos, [prompts.INTERNALIZE] * len(videos))
    inputs = whole_model_inputs(qwen, batch, videos, [2 * s for s in intervals])
    with torch.no_grad():
        expected = torch.stack(qwen.model(**inputs, output_hidden_states=True).hidden_states[:-1], 1)
    assert features.hidden.shape == expected.shape
    assert torch.equal(features.mask, batch.mask.bool())
    for i in range(len(videos)):
        states, got = (of_all[i][:, features.mask[i]] for of_all in (expected, features.hidden))
        assert_alike(got, states)
        assert_alike(got, qwen.features(videos[i : i + 1], opens_answer=True).hidden[0])


def test_qwen_positions_are_those_of_its_authors_example() -> None:
    config = made_config()
    config.vision_config.tokens_per_second, config.vision_config.window_size = 25, 10
    with torch.device("meta"):
        family = Qwen25VL(Qwen2_5_VLForConditionalGeneration(config), made_tokenizer(), edge_windows=2)
    ids = torch.tensor([[config.video_token_id] * 12 + [0] * 5])
    positions = family.positions(ids, torch.ones_like(ids), [made_frames(6, interval_s=1.0)])
    assert positions[0, 0].tolist() == [0] * 4 + [50] * 4 + [100] * 4 + [101, 102, 103, 104, 105]  # docstring of transformers 4.49
    assert positions[1, 0].tolist() == [0, 0, 1, 1] * 3 + [101, 102, 103, 104, 105]
    assert positions[2, 0].tolist() == [0, 1, 0, 1] * 3 + [101, 102, 103, 104, 105]
    with pytest.raises(ValueError, match="prompt 0: got 12, expected 8"):
        family.positions(ids, torch.ones_like(ids), [made_frames(3)])


@pytest.mark.parametrize("interval_s", [0.3, 4.0])
def test_qwen_answers_are_those_of_transformers_generate(qwen: FrozenVLM, interval_s: float) -> None:
    videos = [made_frames(3, interval_s=0.25, seed=4), made_frames(6, interval_s=interval_s, seed=5)]
    batch, tokens = qwen.video_batch(videos, QUESTIONS), qwen.frame_tokens(videos)
    inputs = whole_model_inputs(qwen, batch, videos, [0.5, 2 * interval_s])
    if interval_s > 0.3:  # the video takes more time than rows: transformers 5.3 and later have positions of their own
        inputs = {**inputs, "position_ids": batch.positions}
    expected = qwen.model.generate(**inputs, max_new_tokens=17, do_sample=False)[:, batch.input_ids.shape[1] :]
    check_answers(qwen, batch, expected, frame_tokens=tokens)
    assert qwen.n_visual_tokens(batch) == [72, 108]


def test_qwen_answers_to_text_are_those_of_transformers_generate(qwen: FrozenVLM) -> None:
    batch = qwen.question_batch(QUESTIONS)
    expected = qwen.model.generate(input_ids=batch.input_ids, attention_mask=batch.mask, max_new_tokens=17, do_sample=False)
    check_answers(qwen, batch, expected[:, batch.input_ids.shape[1] :], frame_tokens=None)


def check_answers(vlm: FrozenVLM, batch: TextBatch, expected: Tensor, *, frame_tokens: Tensor | None) -> None:
    assert len(set(expected.flatten().tolist())) > 9  # random weights, but no dull answers
    steps = list(vlm.token_steps(batch, decoding=Decoding(max_new_tokens=17), frame_tokens=frame_tokens))
    assert torch.equal(torch.stack(steps, 1), expected)
    texts = [answer.text for answer in vlm.generate(batch, max_new_tokens=17, frame_tokens=frame_tokens)]
    assert texts == [text.strip() for text in vlm.tokenizer.batch_decode(expected, skip_special_tokens=True)]


def assert_alike(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_qwen_target_losses_are_transformers_loss(qwen: FrozenVLM) -> None:
    texts = [qwen.family.text_prompt(question) for question in QUESTIONS]
    targets = ["left", "Two blue squares on black."]
    losses = qwen.target_losses(qwen.text_batch(texts, targets))
    for i in range(2):
        row = qwen.text_batch([texts[i]], [targets[i]])
        with torch.no_grad():
            expected = qwen.model(input_ids=row.input_ids, labels=row.labels).loss
        torch.testing.assert_close(losses[i], expected, rtol=1e-4, atol=1e-5)


def made_internalizer(vlm: FrozenVLM, modules: list[str]) -> Internalizer:
    sizes = {"r": 3, "n_latents": 5, "n_blocks": 2, "d_latent": 11, "n_heads": 2, "n_kv_heads": 1, "d_head": 13}
    config = HypernetworkConfig(n_layers=len(vlm.layers), d_vlm=vlm.d_vlm, target_modules=vlm.module_sizes(modules), **sizes)
    hypernetwork = Hypernetwork(config, seed=1).requires_grad_(False)
    for name, parameter in hypernetwork.named_parameters():
        if name.endswith(("scale_b", "static.down_proj.lora_b")):
            parameter.fill_(0.5)  # as trained: at first they are zero and no adapter does anything
    return Internalizer(vlm, hypernetwork, Sampling(), 53, "feed", "random")


@pytest.mark.parametrize("modules", [["down_proj"], ["q_proj", "down_proj"]])
def test_qwen_videos_become_adapters_that_peft_loads(qwen: FrozenVLM, tmp_path: Path, modules: list[str]) -> None:
    using = made_internalizer(qwen, modules)
    videos = [made_frames(7, seed=6), made_frames(4, seed=7)]
    adapters = internalize_batch(videos, using=using, video_ids=["a", "b"], frames_per_chunk=4)
    assert [adapter.lora.r for adapter in adapters] == [9, 6]  # chunks and the static adapter, 3 each
    blind = ask_all(None, QUESTIONS, vlm=qwen)
    answers = []
    for adapter in adapters:
        lora = adapter.lora
        assert {m: (a.shape[-1], lora.lora_b[m].shape[-2]) for m, a in lora.lora_a.items()} == qwen.module_sizes(modules)
        answers.append(ask_all(adapter, QUESTIONS, vlm=qwen))
        assert [answer.n_visual_tokens for answer in answers[-1]] == [0, 0]
    assert answers[0] != answers[1] != blind != answers[0]

    save_adapter(adapters[0], tmp_path / "adapter")
    assert ask_all(load_adapter(tmp_path / "adapter"), QUESTIONS, vlm=qwen) == answers[0]
    batch = qwen.question_batch(QUESTIONS[:1])
    with adapted(qwen.layers, adapters[0].lora):
        ours = qwen.model(input_ids=batch.input_ids).logits
    plain = qwen.model(input_ids=batch.input_ids).logits
    model = peft.PeftModel.from_pretrained(qwen.model, tmp_path / "adapter")
    try:
        theirs = model(input_ids=batch.input_ids).logits
    finally:
        model.unload()
    assert (ours - plain).abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_qwen_with_a_video_in_context_and_piece_by_piece(qwen: FrozenVLM) -> None:
    video = made_frames(5, seed=8)
    answers = ask_all(None, QUESTIONS, vlm=qwen, video=video, decoding=Decoding(max_new_tokens=13))
    for question, answer in zip(QUESTIONS, answers, strict=True):
        assert answer.n_visual_tokens == 108
        assert "".join(stream(None, question, vlm=qwen, video=video, decoding=Decoding(max_new_tokens=13))) == answer.text


def test_a_model_of_no_family_is_refused_by_name(tmp_path: Path) -> None:
    made_tokenizer().save_pretrained(tmp_path)
    text = LlamaConfig(vocab_size=263, hidden_size=6, intermediate_size=7, num_hidden_layers=1, num_attention_heads=1)
    vision = CLIPVisionConfig(hidden_size=6, intermediate_size=7, num_hidden_layers=1, num_attention_heads=1, image_size=4, patch_size=2)
    LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_index=261)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"vlm\.model.*LlavaFor.*expected one of SmolVLMFor\w+, Qwen2_5_VLFor\w+ .*family\.py"):
        load_vlm(str(tmp_path))
