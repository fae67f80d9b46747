"""The keys and values of a video's prompt, kept: what an adapter's strongest rival keeps of a video, and asks any number of questions of.

A question is answered by its own tokens alone, after the part of the prompt that all questions about a video share.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, DynamicLayer

from video2lora.vlm import FrozenVLM, TextBatch

ROOM_TOKENS = 128  # that a kept cache has for question and answer


class KeptLayer(DynamicLayer):
    """A layer of a kept cache with room behind it: a new token is written in place, and a new question forgets the last one.

    transformers' DynamicLayer copies all it holds at every token; its StaticLayer attends to empty room. Neither would be fair.
    """

    def __init__(self, keys: Tensor, values: Tensor, *, room_tokens: int = ROOM_TOKENS) -> None:
        super().__init__()
        self.n_kept = self.n = keys.shape[2]
        room = (0, 0, 0, room_tokens)
        self.all_keys, self.all_values = (torch.nn.functional.pad(one, room) for one in (keys, values))
        self.lazy_initialization(keys, values)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, self.n = self.n, self.n + key_states.shape[2]
        self.all_keys[:, :, start : self.n] = key_states
        self.all_values[:, :, start : self.n] = value_states
        self.keys, self.values = self.all_keys[:, :, : self.n], self.all_values[:, :, : self.n]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.n

    def forget(self) -> None:
        self.n = self.n_kept


def n_shared(prompts: Sequence[TextBatch]) -> int:
    """Tokens with which all these prompts, of one row each, begin; but not all of any."""
    n = min(one.input_ids.shape[1] for one in prompts) - 1
    first = prompts[0].input_ids[0, :n]
    differ = torch.stack([one.input_ids[0, :n] != first for one in prompts]).any(0).nonzero()
    return int(differ[0]) if len(differ) else n


def split(prompt: TextBatch, at: int) -> tuple[TextBatch, TextBatch]:
    """A prompt's first tokens, and the others; the others' mask covers both."""
    ids, positions = prompt.input_ids, prompt.positions
    first = replace(prompt, input_ids=ids[:, :at], mask=prompt.mask[:, :at], positions=positions[..., :at])
    return first, replace(prompt, input_ids=ids[:, at:], positions=positions[..., at:])


@torch.no_grad()
def kept(vlm: FrozenVLM, shared: TextBatch, *, frame_tokens: Tensor, room_tokens: int) -> list[KeptLayer]:
    """The layers of a cache that holds these tokens."""
    cache = DynamicCache(config=vlm.model.config.get_text_config())
    vlm.prefill(shared, cache=cache, frame_tokens=frame_tokens)
    return [KeptLayer(layer.keys, layer.values, room_tokens=room_tokens) for layer in cache.layers]


def asked_again(layers: Sequence[KeptLayer]) -> Cache:
    """The cache as it was before any question."""
    for layer in layers:
        layer.forget()
    return Cache(layers=list(layers))
