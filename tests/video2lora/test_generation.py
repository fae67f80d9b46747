"""How tokens are chosen: greedy, transformers' own sampling under the same seed, and a cache that was kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import DynamicCache

from video2lora.generation import Chooser, Decoding
from video2lora.pretrained import load_vlm
from video2lora.sampling import Frames
from video2lora.vlm import FrozenVLM

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vlm() -> FrozenVLM:
    return load_vlm("tiny")


def test_greedy_is_the_highest() -> None:
    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(1))
    assert torch.equal(Chooser(Decoding(), CPU)(logits), logits.argmax(-1))


def test_sampling_has_the_frequencies_that_temperature_and_cuts_ask_for() -> None:
    """17,000 draws; top_k 3 of 5, then the smallest set of at least 0.8: the two likeliest."""
    probabilities = torch.tensor([0.40, 0.05, 0.30, 0.15, 0.10])
    draw = Chooser(Decoding(temperature=1.0, top_k=3, top_p=0.8), CPU)
    ids = draw(probabilities.log().expand(17_000, -1))
    shares = ids.bincount(minlength=5) / len(ids)
    torch.testing.assert_close(shares, torch.tensor([4 / 7, 0.0, 3 / 7, 0.0, 0.0]), atol=0.02, rtol=0)
    hot = Chooser(Decoding(temperature=2.0), CPU)(probabilities.log().expand(17_000, -1))
    expected = probabilities.sqrt() / probabilities.sqrt().sum()
    torch.testing.assert_close(hot.bincount(minlength=5) / len(hot), expected, atol=0.02, rtol=0)


def test_a_seed_is_enough_to_draw_the_same(vlm: FrozenVLM) -> None:
    batch = vlm.question_batch(["What is in the video?"])

    def text(seed: int) -> str:
        return vlm.generate(batch, decoding=Decoding(max_new_tokens=13, temperature=3.0, seed=seed))[0].text

    state = torch.get_rng_state()
    first = text(7)
    torch.rand(3)
    assert first == text(7)
    assert len({text(seed) for seed in range(5)}) > 1
    torch.set_rng_state(state)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"max_new_tokens": 0}, {"beams": 3}]
)
def test_settings_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Decoding.model_validate(wrong)


def test_a_kept_cache_continues_as_the_whole_prompt_does(vlm: FrozenVLM) -> None:
    whole = vlm.question_batch(["Which way does the object move, and how many are there?"])
    expected = torch.stack(list(vlm.token_steps(whole, decoding=Decoding(max_new_tokens=9))))
    cut = whole.input_ids.shape[1] - 5
    cache = DynamicCache(config=vlm.model.config.get_text_config())
    with torch.no_grad():
        vlm.prefill(
            replace(whole, input_ids=whole.input_ids[:, :cut], mask=whole.mask[:, :cut], positions=whole.positions[:, :cut]), cache=cache
        )
    rest = replace(whole, input_ids=whole.input_ids[:, cut:], positions=whole.positions[:, cut:])
    got = torch.stack(list(vlm.token_steps(rest, decoding=Decoding(max_new_tokens=9), cache=cache)))
    assert torch.equal(got, expected)


def test_rows_that_end_early_stay_ended(vlm: FrozenVLM) -> None:
    """A short answer beside a long one is the same as alone."""
    questions = ["Which way does the object move?", "Describe the video briefly."]
    video = Frames(np.full((4, 64, 64, 3), 90, dtype=np.uint8), np.arange(4.0), 4.0)
    tokens = vlm.frame_tokens([video])
    together = vlm.generate(vlm.video_batch([video] * 2, questions), max_new_tokens=21, frame_tokens=tokens.repeat(2, 1, 1))
    assert len(together[0].text.split()) < len(together[1].text.split())
    for question, answer in zip(questions, together, strict=True):
        assert vlm.generate(vlm.video_batch([video], [question]), max_new_tokens=21, frame_tokens=tokens)[0].text == answer.text
