"""A kept cache against the whole prompt: the same answers, question after question."""

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from video2lora.generation import Decoding
from video2lora.kept_cache import asked_again, kept, n_shared, split
from video2lora.pretrained import load_vlm
from video2lora.sampling import Frames
from video2lora.vlm import FrozenVLM

QUESTIONS = ("What colour is the object?", "Which way does it move?", "What shape is it?")


@pytest.fixture(scope="module")
def vlm() -> FrozenVLM:
    return load_vlm("tiny")


@pytest.fixture(scope="module")
def video() -> Frames:
    images = np.random.default_rng(3).integers(0, 256, (4, 53, 61, 3), dtype=np.uint8)
    return Frames(images, np.arange(4) * 0.5, 2.0)


def test_prompts_share_their_beginning(vlm: FrozenVLM, video: Frames) -> None:
    prompts = [vlm.video_batch([video], [question]) for question in QUESTIONS]
    at = n_shared(prompts)
    ids = [one.input_ids[0].tolist() for one in prompts]
    assert all(one[:at] == ids[0][:at] for one in ids) and len({one[at] for one in ids}) > 1
    assert n_shared(prompts[:1]) == len(ids[0]) - 1 == n_shared([prompts[0], prompts[0]]), "something is left to ask"
    first, rest = split(prompts[0], at)
    assert torch.cat([first.input_ids, rest.input_ids], 1).equal(prompts[0].input_ids) and rest.mask.equal(prompts[0].mask)


def test_each_question_is_answered_as_with_the_whole_prompt(vlm: FrozenVLM, video: Frames) -> None:
    prompts = [vlm.video_batch([video], [question]) for question in QUESTIONS]
    tokens, at = vlm.frame_tokens([video]), n_shared(prompts)
    layers = kept(vlm, split(prompts[0], at)[0], frame_tokens=tokens, room_tokens=40)
    decoding = Decoding(max_new_tokens=6)
    for prompt in [*prompts, *prompts]:
        whole = [int(ids) for ids in vlm.token_steps(prompt, decoding=decoding, frame_tokens=tokens)]
        assert [int(ids) for ids in vlm.token_steps(split(prompt, at)[1], decoding=decoding, cache=asked_again(layers))] == whole


def test_what_is_kept_is_what_a_cache_of_transformers_holds(vlm: FrozenVLM, video: Frames) -> None:
    prompt = vlm.video_batch([video], [QUESTIONS[0]])
    tokens, cache = vlm.frame_tokens([video]), DynamicCache(config=vlm.model.config.get_text_config())
    vlm.prefill(prompt, cache=cache, frame_tokens=tokens)
    for layer, expected in zip(kept(vlm, prompt, frame_tokens=tokens, room_tokens=5), cache.layers, strict=True):
        assert layer.get_seq_length() == prompt.input_ids.shape[1]
        torch.testing.assert_close(layer.all_keys[:, :, :-5], expected.keys)
        torch.testing.assert_close(layer.all_values[:, :, :-5], expected.values)
