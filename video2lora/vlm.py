"""The frozen VLM: frames -> per-layer features for the hypernetwork; prompts -> answers, with frames in context or with none.

SmolVLM of transformers, loaded from `tiny` (ships with the project), a folder or a hub name. Features are paper eq. 4: the hidden states of
the whole fused sequence (chat tokens, timestamps, visual tokens, instruction), from the embeddings to the input of the last block, so
exactly one per layer. Nothing here trains, patches or keeps state: adapters come as `lora.adapted(vlm.layers, lora)` around a call.

`TextBatch` is all a model is given once a video is in its weights: token ids without one image token.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoTokenizer, PreTrainedTokenizerBase, SmolVLMForConditionalGeneration

from video2lora import prompts
from video2lora.video import Frames

IGNORE = -100


@dataclass(frozen=True)
class Features:
    """What the hypernetwork reads of a batch of videos."""

    hidden: Float[Tensor, "batch n_layers n_tokens d_vlm"]
    mask: Bool[Tensor, "batch n_tokens"]


@dataclass(frozen=True)
class TextBatch:
    """Prompts as left-padded token ids; with targets, `labels` holds each position's own target id or -100."""

    input_ids: Int[Tensor, "batch n_tokens"]
    mask: Int[Tensor, "batch n_tokens"]
    labels: Int[Tensor, "batch n_tokens"] | None = None


@dataclass(frozen=True)
class Answer:
    """A generated text and what it cost. `ttft_s` is the time to the first token, None where it was not measured."""

    text: str
    n_input_tokens: int
    n_visual_tokens: int
    ttft_s: float | None = None


@dataclass(frozen=True)
class FrozenVLM:
    """A SmolVLM in evaluation mode, all parameters frozen. `digest` names its weights."""

    model: SmolVLMForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    name: str
    digest: str

    @property
    def layers(self) -> Sequence[nn.Module]:
        """Decoder blocks of the language model: where adapters go."""
        return list(self.model.model.text_model.layers)

    @property
    def d_vlm(self) -> int:
        return self.model.config.text_config.hidden_size

    @property
    def image_size_px(self) -> int:
        return self.model.config.vision_config.image_size

    @property
    def n_image_tokens(self) -> int:
        side = self.image_size_px // self.model.config.vision_config.patch_size // self.model.config.scale_factor
        return side * side

    def module_sizes(self, names: Sequence[str]) -> dict[str, tuple[int, int]]:
        """(d_in, d_out) of each named linear of a block. Raises ValueError for a name that no block has."""
        linears = {path.rsplit(".", 1)[-1]: m for path, m in self.layers[0].named_modules() if isinstance(m, nn.Linear)}
        missing = [name for name in names if name not in linears]
        if missing:
            raise ValueError(f"target_modules: got {missing}, expected names among {sorted(linears)}")
        return {name: (linears[name].in_features, linears[name].out_features) for name in names}

    @torch.no_grad()
    def frame_tokens(self, videos: Sequence[Frames]) -> Float[Tensor, "n_frames n_image_tokens d_vlm"]:
        """Visual tokens of all frames of all videos, in order."""
        weight = self.model.model.connector.modality_projection.proj.weight
        pixels = torch.from_numpy(np.concatenate([squash(video.images, self.image_size_px) for video in videos]))
        pixels = pixels.to(weight.device).permute(0, 3, 1, 2).to(weight.dtype) / 127.5 - 1.0
        side = self.image_size_px // self.model.config.vision_config.patch_size
        mask = torch.ones(len(pixels), side, side, dtype=torch.bool, device=pixels.device)
        seen = self.model.model.vision_model(pixel_values=pixels, patch_attention_mask=mask).last_hidden_state
        return self.model.model.connector(seen)

    def video_batch(self, videos: Sequence[Frames], questions: Sequence[str]) -> TextBatch:
        """Prompts with each video's frames before its question."""
        placeholder = prompts.frame_placeholder(self.n_image_tokens)
        texts = [
            prompts.video_prefix(list(video.timestamps_s), video.duration_s, placeholder=placeholder) + question + prompts.ASSISTANT
            for video, question in zip(videos, questions, strict=True)
        ]
        return self.text_batch(texts)

    def question_batch(self, questions: Sequence[str]) -> TextBatch:
        """Prompts of the questions alone: no frame, no image token."""
        return self.text_batch([prompts.text_prompt(question) for question in questions])

    def text_batch(self, texts: Sequence[str], targets: Sequence[str] | None = None) -> TextBatch:
        """Whole prompts, and the targets that follow them if given."""
        rows = [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        labels = [[IGNORE] * len(row) for row in rows]
        for i, target in enumerate(targets or ()):
            ids = self.tokenizer.encode(prompts.target_text(target), add_special_tokens=False)
            rows[i], labels[i] = rows[i] + ids, labels[i] + ids
        pad = self.tokenizer.pad_token_id
        return TextBatch(
            input_ids=self._left_padded(rows, pad),
            mask=self._left_padded([[1] * len(row) for row in rows], 0),
            labels=self._left_padded(labels, IGNORE) if targets is not None else None,
        )

    def embed(self, batch: TextBatch, frame_tokens: Tensor | None = None) -> Float[Tensor, "batch n_tokens d_vlm"]:
        """Input embeddings; visual tokens take the image positions. Raises ValueError if frames and positions do not match."""
        embeds = self.model.model.text_model.get_input_embeddings()(batch.input_ids)
        n_places = int((batch.input_ids == self.model.config.image_token_id).sum())
        n_tokens = 0 if frame_tokens is None else frame_tokens.shape[0] * frame_tokens.shape[1]
        if n_places != n_tokens:
            raise ValueError(f"image tokens in the prompts: got {n_places}, expected {n_tokens}, those of the frames given")
        if frame_tokens is None:
            return embeds
        return self.model.model.inputs_merger(batch.input_ids, embeds, frame_tokens)

    @torch.no_grad()
    def features(self, videos: Sequence[Frames]) -> Features:
        """Per-layer hidden states of each video followed by the internalization instruction."""
        batch = self.video_batch(videos, [prompts.INTERNALIZE] * len(videos))
        output = self.model.model.text_model(
            inputs_embeds=self.embed(batch, self.frame_tokens(videos)),
            attention_mask=batch.mask,
            position_ids=positions(batch.mask),
            output_hidden_states=True,
            use_cache=False,
        )
        return Features(torch.stack(output.hidden_states[:-1], dim=1), batch.mask.bool())

    def target_losses(self, batch: TextBatch) -> Float[Tensor, " batch"]:
        """Token-mean cross-entropy of each row's target; logits are computed at target positions only. Gradients reach adapters."""
        if batch.labels is None:
            raise ValueError("labels: got None, expected a batch made with targets")
        states = self.model.model.text_model(
            input_ids=batch.input_ids, attention_mask=batch.mask, position_ids=positions(batch.mask), use_cache=False
        ).last_hidden_state
        labels = batch.labels[:, 1:]
        kept = labels != IGNORE
        losses = nn.functional.cross_entropy(self.model.lm_head(states[:, :-1][kept]).float(), labels[kept], reduction="none")
        rows = kept.nonzero()[:, 0]
        total = torch.zeros(len(labels), device=losses.device).index_add(0, rows, losses)
        return total / kept.sum(1).clamp_min(1)

    @torch.no_grad()
    def generate(self, batch: TextBatch, *, max_new_tokens: int, frame_tokens: Tensor | None = None) -> list[Answer]:
        """Greedy answers, one per row."""
        inputs = {"input_ids": batch.input_ids} if frame_tokens is None else {"inputs_embeds": self.embed(batch, frame_tokens)}
        new = self.model.generate(
            **inputs,
            attention_mask=batch.mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.convert_tokens_to_ids(prompts.END_OF_UTTERANCE),
        )
        new = new[:, batch.input_ids.shape[1] :] if frame_tokens is None else new
        n_visual = (batch.input_ids == self.model.config.image_token_id).sum(1).tolist()
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [Answer(text.strip(), int(n), v) for text, n, v in zip(texts, batch.mask.sum(1), n_visual, strict=True)]

    @torch.no_grad()
    def time_to_first_token(self, batch: TextBatch, videos: Sequence[Frames] | None = None) -> float:
        """Seconds from a tokenized prompt (and decoded frames) to the first token's id."""
        started = time.perf_counter()
        embeds = self.embed(batch, None if videos is None else self.frame_tokens(videos))
        states = self.model.model.text_model(
            inputs_embeds=embeds, attention_mask=batch.mask, position_ids=positions(batch.mask), use_cache=True
        ).last_hidden_state
        self.model.lm_head(states[:, -1]).argmax(-1).tolist()
        return time.perf_counter() - started

    def _left_padded(self, rows: list[list[int]], fill: int) -> Int[Tensor, "batch n_tokens"]:
        longest = max(map(len, rows))
        return torch.tensor([[fill] * (longest - len(row)) + row for row in rows], device=self.model.device)


def load_vlm(model: str = "tiny", *, revision: str | None = None, dtype: str = "float32", device: str = "cpu") -> FrozenVLM:
    """`tiny`, a local folder, or a hub name at a revision. Raises ValueError if there is no such model or it is no SmolVLM."""
    path = vlm_path(model)
    try:
        loaded = AutoModelForImageTextToText.from_pretrained(path, revision=revision, dtype=getattr(torch, dtype))
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    except OSError as error:
        raise ValueError(f"vlm.model: got {model!r}, which is neither 'tiny', nor a model folder, nor a hub name in reach") from error
    if not isinstance(loaded, SmolVLMForConditionalGeneration):
        raise ValueError(f"vlm.model: got a {type(loaded).__name__}, expected a SmolVLM")
    loaded.eval().requires_grad_(False).to(device)
    return FrozenVLM(loaded, tokenizer, model, weights_digest(loaded))


def vlm_path(model: str) -> str:
    """Where transformers and vLLM find a model: the folder that ships for `tiny`, else what was given."""
    return str(resources.files("video2lora.tiny") / "vlm") if model == "tiny" else model


def weights_digest(module: nn.Module) -> str:
    """A hash of all weights by name: what adapters and checkpoints are tied to."""
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def squash(images: UInt8[np.ndarray, "n_frames height width 3"], size_px: int) -> UInt8[np.ndarray, "n_frames size size 3"]:
    """Frames as the model's square, whatever their shape: SmolVLM2 never tiles video frames."""
    if images.shape[1:3] == (size_px, size_px):
        return images
    square = (size_px, size_px)
    return np.stack([np.asarray(Image.fromarray(image).resize(square, Image.Resampling.LANCZOS)) for image in images])


def positions(mask: Int[Tensor, "batch n_tokens"]) -> Int[Tensor, "batch n_tokens"]:
    """Position of each token in its own row, padding not counted."""
    return (mask.cumsum(-1) - 1).clamp_min(0)
