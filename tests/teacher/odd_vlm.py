"""A small VLM of the right architecture whose untrained weights stop early, at once, or never: every kind of text comes up."""

from pathlib import Path

import torch

from video2lora import prompts
from video2lora.tiny.build import build_model, build_tokenizer, save_vlm


def save_odd_vlm(folder: Path) -> Path:
    """Its `folder`."""
    tokenizer = build_tokenizer(
        ["One red circle moves left.", "What shape is shown?", "Which way does the object move?"] * 9, vocab_size=400
    )
    model = build_model(tokenizer, seed=3)
    with torch.no_grad():  # a longer row makes the end token the best about as often as not
        model.lm_head.weight[tokenizer.convert_tokens_to_ids(prompts.END_OF_UTTERANCE)] *= 3.0
    save_vlm(model, tokenizer, folder)
    return folder
