"""SmolVLM (1 and 2) as a `Family`: frames squashed to a square and never tiled, each with its time in words before it.

Source: transformers' SmolVLM; texts in `prompts`, pixels in `pixels`. One frame is one picture of n_image_tokens: 64 at 256M and 500M
(512 px, 16-px patches, shuffled 4 x 4 into one token), 81 at 2.2B (384 px, 14-px patches, 3 x 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, SmolVLMForConditionalGeneration

from video2lora import prompts
from video2lora.family import text_positions
from video2lora.pixels import squash
from video2lora.sampling import Frames

FRAMES_AT_ONCE = 16  # through the vision tower: at 500M, 0.2 GB of its widest activation in fp32; a GPU is busy with as many


@dataclass(frozen=True)
class SmolVLM:
    """A SmolVLM of any size."""

    model: SmolVLMForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    layers_path: str = "model.text_model.layers"
    end_token: str = prompts.END_OF_UTTERANCE
    frames_per_picture: int = 1

    @property
    def decoder(self) -> nn.Module:
        return self.model.model.text_model

    @property
    def image_token_id(self) -> int:
        return self.model.config.image_token_id

    @property
    def image_size_px(self) -> int:
        """The square that every frame is squashed to."""
        return self.model.config.vision_config.image_size

    @property
    def n_image_tokens(self) -> int:
        """Visual tokens of a frame."""
        side = self.image_size_px // self.model.config.vision_config.patch_size // self.model.config.scale_factor
        return side * side

    @torch.no_grad()
    def frame_tokens(self, videos: Sequence[Frames]) -> Float[Tensor, "n_frames n_image_tokens d_vlm"]:
        squares = np.concatenate([squash(video.images, self.image_size_px) for video in videos])
        weight = self.model.model.connector.modality_projection.proj.weight
        side = self.image_size_px // self.model.config.vision_config.patch_size
        tokens = []
        for part in torch.from_numpy(squares).split(FRAMES_AT_ONCE):
            pixels = part.to(weight.device).permute(0, 3, 1, 2).to(weight.dtype) / 127.5 - 1.0
            mask = torch.ones(len(pixels), side, side, dtype=torch.bool, device=pixels.device)
            seen = self.model.model.vision_model(pixel_values=pixels, patch_attention_mask=mask).last_hidden_state
            tokens.append(self.model.model.connector(seen))
        return torch.cat(tokens)

    def video_prompt(self, video: Frames, question: str, *, opens_answer: bool = True) -> str:
        placeholder = prompts.frame_placeholder(self.n_image_tokens)
        end = prompts.ASSISTANT if opens_answer else prompts.END_TURN
        return prompts.video_prefix(list(video.timestamps_s), video.duration_s, placeholder=placeholder) + question + end

    def text_prompt(self, question: str) -> str:
        return prompts.text_prompt(question)

    def target_text(self, target: str, *, newline: bool = False) -> str:
        return prompts.target_text(target, newline=newline)

    def positions(
        self, input_ids: Int[Tensor, "batch n_tokens"], mask: Int[Tensor, "batch n_tokens"], videos: Sequence[Frames]
    ) -> Int[Tensor, "batch n_tokens"]:
        return text_positions(mask)
