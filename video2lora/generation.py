"""How tokens are chosen from logits: greedy unless a temperature is given, with transformers' own warpers and a seed of its own.

A `Decoding` is stored with what it made. Greedy is the paper's (section 4.1) and the default; the same seed gives the same text on the
same machine, whatever was drawn before.
"""

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

LEAST_TEMPERATURE = 1e-3  # logits over less leave the range of float32


class Decoding(BaseModel):
    """Sampling settings. `temperature` 0 is greedy, where `top_k` (0: all) and `top_p` mean nothing. Raises ValueError out of range."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=0, ge=0, lt=2**63)

    @field_validator("temperature")
    @classmethod
    def _is_enough_to_divide_by(cls, temperature: float) -> float:
        if 0 < temperature < LEAST_TEMPERATURE:
            raise ValueError(f"got {temperature:g}, expected 0, which is greedy, or at least {LEAST_TEMPERATURE:g}")
        return temperature


class Chooser:
    """Logits of the last position -> ids, step by step."""

    def __init__(self, decoding: Decoding, device: torch.device) -> None:
        self.greedy = decoding.temperature == 0
        self.generator = torch.Generator(device).manual_seed(decoding.seed)
        self.warpers = LogitsProcessorList()
        if not self.greedy:
            self.warpers.append(TemperatureLogitsWarper(decoding.temperature))
            if decoding.top_k:
                self.warpers.append(TopKLogitsWarper(decoding.top_k))
            if decoding.top_p < 1:
                self.warpers.append(TopPLogitsWarper(decoding.top_p))

    def __call__(self, logits: Float[Tensor, "batch vocabulary"]) -> Int[Tensor, " batch"]:
        if self.greedy:
            return logits.argmax(-1)
        probabilities = self.warpers(None, logits.float()).softmax(-1)
        return torch.multinomial(probabilities, 1, generator=self.generator)[:, 0]
