"""The small VLM that ships: it loads as any other, it sees, and its record is true of it."""

import json
from importlib import resources
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, SmolVLMForConditionalGeneration

from pipeline.tiny_vlm import measure
from video2lora.tiny.train import shared_prefix_mask
from video2lora.vlm import load_vlm

FOLDER = Path(str(resources.files("video2lora.tiny"))) / "vlm"


def test_it_is_a_smolvlm_of_the_size_it_says() -> None:
    model = AutoModelForImageTextToText.from_pretrained(FOLDER)
    record = json.loads((FOLDER / "training.json").read_text())
    assert isinstance(model, SmolVLMForConditionalGeneration)
    assert sum(parameter.numel() for parameter in model.parameters()) == record["n_parameters"]
    assert 1e6 <= record["n_parameters"] <= 8e6
    shipped = [path for folder in ("vlm", "hypernetwork") for path in (FOLDER.parent / folder).iterdir()]
    assert sum(path.stat().st_size for path in shipped) <= 16e6


@pytest.mark.parametrize("text", ["Which way does the object move?", " Three large purple crosses move down.", "Grüße, 你好 — \t¿qué?"])
def test_any_text_comes_back_from_the_tokenizer(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_it_sees_and_cannot_guess() -> None:
    """Thresholds of the issue, on 24 real test clips (216 questions); by family they are in training.json, on 200 clips."""
    scores = measure(load_vlm("tiny"), n_clips=24)
    assert scores["video"]["all"] >= 0.95
    assert scores["blind"]["all"] <= 0.45


def test_its_record_meets_the_issue() -> None:
    scores = json.loads((FOLDER / "training.json").read_text())["scores"]
    assert scores["video"]["all"] >= 0.95 and min(scores["video"].values()) >= 0.90
    assert scores["blind"]["all"] <= 0.45


def test_questions_that_share_frames_do_not_see_each_other() -> None:
    segments = torch.tensor([[0, 0, 1, 1, 2, -1]])
    seen = shared_prefix_mask(segments)[0, 0] == 0
    assert seen.tolist() == [
        [True, False, False, False, False, False],
        [True, True, False, False, False, False],
        [True, True, True, False, False, False],
        [True, True, True, True, False, False],
        [True, True, False, False, True, False],
        [True, True, False, False, False, True],
    ]
