"""Qwen2.5-VL as a `Family`: frames squashed to a square, two of them to a picture, their times in the positions and not in words.

Source: transformers' Qwen2.5-VL (`Qwen2VLVideoProcessor`, `get_rope_index` of 5.2) and the released models' chat template. A picture is
`temporal_patch_size` frames, the last one repeated where they do not come out even; the vision tower looks at each picture alone.

Qwen's processor keeps each video's aspect ratio, at 128 to 768 tokens a picture. We squash all videos to one square, because a video's
adapter must not depend on the others of its batch, and because SmolVLM's frames are squares too: three windows of the vision tower, 336
px and 144 tokens at the released sizes, the least whole number of windows that Qwen's processor would leave as it is.

Only the distance between frames is in the positions, from a video's first frame on: a chunk of a long video does not say where it
begins. Positions have one distance for all frames of a video; ours is the mean where a sampling policy is uneven. They are computed
here, as Qwen wrote them (transformers 4.49 to 5.2, vLLM): the text goes on after all that a video takes on any axis. transformers 5.3
and later begin the text after the rows or columns even where the time reaches further, and generate on from there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from video2lora.family import text_positions
from video2lora.sampling import Frames

PICTURES_AT_ONCE = 16  # through the vision tower: at the released sizes 9,216 patches of 3,840 values at its widest, 0.14 GB in fp32

END = "<|im_end|>"
SYSTEM = f"<|im_start|>system\nYou are a helpful assistant.{END}\n"
START = f"{SYSTEM}<|im_start|>user\n"
END_TURN = f"{END}\n"
ASSISTANT = f"{END_TURN}<|im_start|>assistant\n"
VIDEO_START, VIDEO_TOKEN, VIDEO_END = "<|vision_start|>", "<|video_pad|>", "<|vision_end|>"


@dataclass(frozen=True)
class Qwen25VL:
    """A Qwen2.5-VL of any size. `edge_windows` is the edge of each frame's square in windows of the vision tower."""

    model: Qwen2_5_VLForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    layers_path: str = "model.language_model.layers"
    end_token: str = END
    edge_windows: int = 3

    @property
    def decoder(self) -> nn.Module:
        return self.model.model.language_model

    @property
    def image_token_id(self) -> int:
        return self.model.config.video_token_id

    @property
    def image_size_px(self) -> int:
        """The square that every frame is squashed to."""
        return self._side * self.model.config.vision_config.patch_size

    @property
    def n_image_tokens(self) -> int:
        """Visual tokens of a picture."""
        return (self._side // self.model.config.vision_config.spatial_merge_size) ** 2

    @property
    def frames_per_picture(self) -> int:
        return self.model.config.vision_config.temporal_patch_size

    @torch.no_grad()
    def frame_tokens(self, videos: Sequence[Frames]) -> Float[Tensor, "n_pictures n_image_tokens d_vlm"]:
        pictures = torch.from_numpy(np.concatenate([self.pictures(video) for video in videos]))
        vision = self.model.config.vision_config
        tokens = []
        for part in pictures.split(PICTURES_AT_ONCE):
            pixels = patches(part.to(self.model.device), patch_px=vision.patch_size, merge=vision.spatial_merge_size)
            grid = torch.tensor([[len(part), self._side, self._side]], device=pixels.device)
            seen = self.model.model.get_video_features(pixels, video_grid_thw=grid).pooler_output[0]
            tokens.append(seen.unflatten(0, (len(part), -1)))
        return torch.cat(tokens)

    def video_prompt(self, video: Frames, question: str, *, opens_answer: bool = True) -> str:
        n_tokens = self._n_pictures(video) * self.n_image_tokens
        return f"{START}{VIDEO_START}{VIDEO_TOKEN * n_tokens}{VIDEO_END}{question}{ASSISTANT if opens_answer else END_TURN}"

    def text_prompt(self, question: str) -> str:
        return f"{START}{question}{ASSISTANT}"

    def target_text(self, target: str, *, newline: bool = False) -> str:
        return f"{target}{END_TURN if newline else END}"

    def positions(
        self, input_ids: Int[Tensor, "batch n_tokens"], mask: Int[Tensor, "batch n_tokens"], videos: Sequence[Frames]
    ) -> Int[Tensor, "3 batch n_tokens"]:
        """Time, row and column of each token; a text token has the same on all three.

        Raises ValueError where a prompt does not hold its video's tokens and no others.
        """
        positions = text_positions(mask).repeat(3, 1, 1)
        for number, video in enumerate(videos):
            row = positions[:, number]
            grid = self._grid(video).to(row.device)
            places = (input_ids[number] == self.image_token_id).nonzero()[:, 0]
            if len(places) != grid.shape[1]:
                raise ValueError(f"image tokens in prompt {number}: got {len(places)}, expected {grid.shape[1]}, those of its frames")
            first, end = int(places[0]), int(places[-1]) + 1
            row[:, first:end] = grid + row[0, first]
            row[:, end:] += row[:, first:end].max() + 1 - row[0, end]
        return positions

    def _grid(self, video: Frames) -> Int[Tensor, "3 n_tokens"]:
        """Positions of a video's tokens, from its first."""
        vision = self.model.config.vision_config
        span_s = float(video.timestamps_s[-1] - video.timestamps_s[0])
        picture_s = torch.tensor(vision.temporal_patch_size * span_s / max(len(video.timestamps_s) - 1, 1))
        times = (torch.arange(self._n_pictures(video)) * (vision.tokens_per_second * picture_s)).long()
        edge = torch.arange(self._side // vision.spatial_merge_size)
        return torch.cartesian_prod(times, edge, edge).T

    @property
    def _side(self) -> int:
        """Patches along an edge."""
        vision = self.model.config.vision_config
        window = vision.window_size // (vision.patch_size * vision.spatial_merge_size) * vision.spatial_merge_size
        return self.edge_windows * window

    def _n_pictures(self, video: Frames) -> int:
        return -(-len(video.images) // self.frames_per_picture)

    def pictures(self, video: Frames) -> UInt8[np.ndarray, "n_pictures n_frames size size 3"]:
        """Squares by picture; equal to transformers' video processor to 1 level of 255, seldom 2."""
        size = (self.image_size_px, self.image_size_px)
        squares = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in video.images]
        n_pictures, n_frames = self._n_pictures(video), self.frames_per_picture
        squares += [squares[-1]] * (n_pictures * n_frames - len(squares))
        return np.stack(squares).reshape(n_pictures, n_frames, *squares[0].shape)


def patches(
    pictures: UInt8[Tensor, "n_pictures n_frames height width 3"], *, patch_px: int, merge: int
) -> Float[Tensor, "n_patches d_patch"]:
    """Normalised pixels in the order that the vision tower expects: the patches that merge into one token stand together."""
    mean, std = (torch.tensor(values, device=pictures.device) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    pixels = (pictures / 255 - mean) / std
    return rearrange(
        pixels, "n t (h mh ph) (w mw pw) c -> (n h w mh mw) (c t ph pw)", mh=merge, mw=merge, ph=patch_px, pw=patch_px
    ).contiguous()
