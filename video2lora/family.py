"""What a vision-language model must offer so that its videos can be internalized: the one place where models differ.

`Family` is the whole contract: how frames become tokens, how a prompt is written around them, and where the decoder keeps its blocks.
Everything else (padding, features, losses, generation, adapters) is `video2lora.vlm.FrozenVLM`'s, and the same for every model. To add a
model of transformers, write one class with these members beside `smolvlm.py` and `qwen2_5_vl.py`, and name it in `pretrained.FAMILIES`.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from video2lora.sampling import Frames


@runtime_checkable
class Family(Protocol):
    """A model of transformers in our words. Shapes: `n_pictures` counts what the vision tower puts out separately (a frame, or two)."""

    @property
    def model(self) -> PreTrainedModel:
        """As transformers loads it."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """With a token to pad with."""

    @property
    def layers_path(self) -> str:
        """Of the decoder blocks in `model`, as PEFT writes it: "model.text_model.layers"."""

    @property
    def end_token(self) -> str:
        """Ends a turn."""

    @property
    def decoder(self) -> nn.Module:
        """The language model without its head: called with inputs_embeds, attention_mask, position_ids, past_key_values, use_cache."""

    @property
    def image_token_id(self) -> int:
        """The id that holds the place of each visual token in a prompt."""

    @property
    def frames_per_picture(self) -> int:
        """How many frames the vision tower takes as one picture."""

    def frame_tokens(self, videos: Sequence[Frames]) -> Float[Tensor, "n_pictures n_image_tokens d_vlm"]:
        """Visual tokens of all videos, in order: vision tower and connector."""

    def video_prompt(self, video: Frames, question: str, *, opens_answer: bool = True) -> str:
        """The whole prompt with the video before the question, one image token for every visual token.

        Without `opens_answer` it ends with the user's turn, and the assistant's is not opened.
        """

    def text_prompt(self, question: str) -> str:
        """The whole prompt of a question about no frames."""

    def target_text(self, target: str, *, newline: bool = False) -> str:
        """What the model is to write after a prompt, with the token that ends its turn, and the template's line end if asked for."""

    def positions(
        self, input_ids: Int[Tensor, "batch n_tokens"], mask: Int[Tensor, "batch n_tokens"], videos: Sequence[Frames]
    ) -> Int[Tensor, "*axes batch n_tokens"]:
        """Positions of prompts with a video each, padding not counted; models with several axes put them first."""


def text_positions(mask: Int[Tensor, "batch n_tokens"]) -> Int[Tensor, "batch n_tokens"]:
    """Position of each token in its own row, padding not counted."""
    return (mask.cumsum(-1) - 1).clamp_min(0)
