"""Batches of clips with questions -> the small VLM, in two parts.

1. `teach_vision`: the tower and connector alone name what is in a single frame and where it is, from the frame's tokens; and each
   patch says what covers it and how far off its middle lies. Asked of whole frames only, shapes stay near chance for 100,000 frames;
   asked of patches, and of clips with a single object first, they come within a few minutes.
2. `teach_answers`: the whole model answers questions about clips. The frames of a clip are read once and shared by its questions:
   they stand in one sequence, and the mask keeps each question from seeing the others, whose answers would leak. Beside the answers,
   the token that ends the video prefix is asked for the clip's facts by linear heads. Without it the direction of motion, which no
   single frame shows, stays at chance for 25 minutes; with it the video is summed up before any question is read, and direction is
   right after 500 steps. Some text-only prompts (a summary as context, or nothing at all) keep the model able to read text.

The heads are thrown away. Nothing here knows what the clips show: labels come with the batch.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, SmolVLMForConditionalGeneration

from video2lora import prompts
from video2lora.tiny.build import N_IMAGE_TOKENS

IGNORE = -100


@dataclass(frozen=True)
class ClipBatch:
    """Clips with what is asked of them. `labels` are the clip's facts, `places` the middle of what moves, in frame units."""

    frames: UInt8[np.ndarray, "batch n_frames height width 3"]
    timestamps_s: list[list[float]]
    durations_s: list[float]
    asked: list[list[tuple[str, str]]]  # per clip: (prompt, target)
    texts: list[tuple[str, str, str]]  # without frames: (context or "", prompt, target)
    labels: dict[str, Int[np.ndarray, "batch"]]
    places: Float[np.ndarray, "batch n_frames 2"]
    patches: Int[np.ndarray, "batch n_frames n_patches"]  # class of what covers each patch, or -100
    offsets: Float[np.ndarray, "batch n_frames n_patches 2"]  # from the middle of that thing


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the two parts. Learning rates are peaks of a one-cycle schedule; `single` is the share of part 1 with single objects."""

    vision_steps: int = 2400
    vision_clips: int = 16
    vision_lr: float = 2e-3
    single: float = 0.35
    answer_steps: int = 2200
    answer_clips: int = 24
    n_asked: int = 6
    answer_lr: float = 1.2e-3
    weight_decay: float = 0.01
    heads_weight: float = 0.3
    seed: int = 0


class FactHeads(nn.Module):
    """Linear heads, one per fact."""

    def __init__(self, width: int, n_classes: dict[str, int]) -> None:
        super().__init__()
        self.facts = nn.ModuleDict({name: nn.Linear(width, n) for name, n in n_classes.items()})

    def losses(self, x: Tensor, labels: dict[str, Tensor]) -> list[Tensor]:
        return [functional.cross_entropy(head(x), labels[name]) for name, head in self.facts.items()]


class FrameHeads(nn.Module):
    """What a frame's tokens and patches are asked in part 1."""

    def __init__(self, *, d_text: int, d_vision: int, n_classes: dict[str, int], n_patch_classes: int) -> None:
        super().__init__()
        self.frame = FactHeads(N_IMAGE_TOKENS * d_text, n_classes)
        self.place = nn.Linear(N_IMAGE_TOKENS * d_text, 2)
        self.patch = nn.Linear(d_vision, n_patch_classes + 1)
        self.offset = nn.Linear(d_vision, 2)

    def loss(self, patches: Tensor, tokens: Tensor, batch: ClipBatch) -> Float[Tensor, ""]:
        """`patches` [n, n_patches, d_vision] and `tokens` [n, n_image_tokens, d_text] of all frames, clip by clip."""
        n_frames = batch.frames.shape[1]
        labels = {name: torch.from_numpy(batch.labels[name]).repeat_interleave(n_frames) for name in self.frame.facts}
        flat = tokens.flatten(1)
        place = 20.0 * functional.mse_loss(self.place(flat), torch.from_numpy(batch.places).float().flatten(0, 1))
        told = torch.stack([*self.frame.losses(flat, labels), place]).mean()
        shown = torch.from_numpy(batch.patches).flatten(0, 1)
        covered = shown != IGNORE
        weight = torch.ones(self.patch.out_features)
        weight[-1] = 0.2  # bare background: most patches, least to learn
        shown = shown.masked_fill(~covered, self.patch.out_features - 1)
        dense = functional.cross_entropy(self.patch(patches).flatten(0, 1), shown.flatten(), weight=weight)
        offsets = torch.from_numpy(batch.offsets).float().flatten(0, 1)
        return told + dense + 50.0 * functional.mse_loss(self.offset(patches)[covered], offsets[covered])


def pixel_values(frames: UInt8[np.ndarray, "*shape height width 3"]) -> Float[Tensor, "n 3 height width"]:
    """uint8 frames of the model's own size, to [-1, 1]; leading axes are flattened."""
    flat = torch.from_numpy(frames.reshape(-1, *frames.shape[-3:])).permute(0, 3, 1, 2)
    return flat.float() / 127.5 - 1.0


def see(
    model: SmolVLMForConditionalGeneration, pixels: Float[Tensor, "n 3 height width"]
) -> tuple[Float[Tensor, "n n_patches d_vision"], Float[Tensor, "n n_image_tokens d"]]:
    """The tower's patches, and what the language model is given for each frame."""
    side = pixels.shape[-1] // model.config.vision_config.patch_size
    mask = torch.ones(pixels.shape[0], side, side, dtype=torch.bool)
    patches = model.model.vision_model(pixel_values=pixels, patch_attention_mask=mask).last_hidden_state
    return patches, model.model.connector(patches)


def teach_vision(
    model: SmolVLMForConditionalGeneration,
    heads: FrameHeads,
    batches: Iterator[ClipBatch],
    config: TrainConfig,
    *,
    report: Callable[[int, float], None],
) -> None:
    """Part 1: tower, connector and heads."""
    parameters = [*model.model.vision_model.parameters(), *model.model.connector.parameters(), *heads.parameters()]
    optimizer, schedule = _one_cycle(parameters, config.vision_lr, config.vision_steps, config.weight_decay)
    for step in range(config.vision_steps):
        batch = next(batches)
        loss = heads.loss(*see(model, pixel_values(batch.frames)), batch)
        _update(loss, parameters, optimizer, schedule)
        report(step, loss.item())


def teach_answers(
    model: SmolVLMForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    heads: tuple[FrameHeads, FactHeads],
    batches: Iterator[ClipBatch],
    config: TrainConfig,
    *,
    report: Callable[[int, float], None],
) -> None:
    """Part 2: the whole model. The heads of part 1 stay asked, beside those of the clip's facts."""
    frame_heads, clip_heads = heads
    parameters = [*model.parameters(), *frame_heads.parameters(), *clip_heads.parameters()]
    optimizer, schedule = _one_cycle(parameters, config.answer_lr, config.answer_steps, config.weight_decay)
    for step in range(config.answer_steps):
        batch = next(batches)
        patches, tokens = see(model, pixel_values(batch.frames))
        loss, summed_up = answer_loss(model, tokenizer, batch, tokens=tokens)
        labels = {name: torch.from_numpy(batch.labels[name]) for name in clip_heads.facts}
        clip_loss = torch.stack(clip_heads.losses(functional.rms_norm(summed_up, summed_up.shape[-1:]), labels)).mean()
        loss = loss + config.heads_weight * (clip_loss + frame_heads.loss(patches, tokens, batch))
        if batch.texts:
            loss = loss + 0.3 * text_loss(model, tokenizer, batch.texts)
        _update(loss, parameters, optimizer, schedule)
        report(step, loss.item())


def answer_loss(
    model: SmolVLMForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, batch: ClipBatch, *, tokens: Tensor
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch d"]]:
    """Mean loss of the answer tokens, and the state of the prefix's last token as the last block reads it."""
    rows = [_pack(tokenizer, batch, i) for i in range(len(batch.asked))]
    input_ids, targets, segments, positions = (_pad([row[k] for row in rows], fill) for k, fill in enumerate((2, IGNORE, -1, 0)))
    embeds = model.model.text_model.get_input_embeddings()(input_ids)
    embeds = model.model.inputs_merger(input_ids, embeds, tokens)
    output = model.model.text_model(
        inputs_embeds=embeds,
        attention_mask=shared_prefix_mask(segments),
        position_ids=positions,
        output_hidden_states=True,
        use_cache=False,
    )
    ends = (segments == 0).sum(1) - 1
    summed_up = output.hidden_states[-2][torch.arange(len(rows)), ends]
    return _token_loss(model, output.last_hidden_state, targets), summed_up


def text_loss(
    model: SmolVLMForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, texts: list[tuple[str, str, str]]
) -> Float[Tensor, ""]:
    """Mean loss of the answer tokens of prompts without frames."""
    rows = []
    for context, prompt, target in texts:
        asked = tokenizer.encode(prompts.text_prompt(f"{context}\n\n{prompt}" if context else prompt), add_special_tokens=False)
        answer = tokenizer.encode(prompts.target_text(target), add_special_tokens=False)
        rows.append((asked + answer, [IGNORE] * (len(asked) - 1) + answer + [IGNORE]))
    input_ids, targets = (_pad([row[k] for row in rows], fill) for k, fill in enumerate((2, IGNORE)))
    states = model.model.text_model(input_ids=input_ids, use_cache=False).last_hidden_state
    return _token_loss(model, states, targets)


def shared_prefix_mask(segments: Int[Tensor, "batch n_tokens"]) -> Float[Tensor, "batch 1 n_tokens n_tokens"]:
    """Additive mask: a token sees itself, what precedes it in its own segment, and segment 0 (the frames). -1 is padding."""
    order = torch.arange(segments.shape[1])
    causal = order[:, None] >= order[None, :]
    own = segments[:, :, None] == segments[:, None, :]
    seen: Bool[Tensor, "batch q k"] = causal & (own | (segments == 0)[:, None, :])
    return torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min)[:, None]


def _pack(tokenizer: PreTrainedTokenizerFast, batch: ClipBatch, i: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """One clip's prefix and all its questions: token ids, next-token targets, segment of each token, positions."""
    prefix = prompts.video_prefix(batch.timestamps_s[i], batch.durations_s[i], placeholder=prompts.frame_placeholder(N_IMAGE_TOKENS))
    ids = tokenizer.encode(prefix, add_special_tokens=False)
    n_prefix = len(ids)
    targets, segments, positions = [IGNORE] * n_prefix, [0] * n_prefix, list(range(n_prefix))
    for segment, (prompt, target) in enumerate(batch.asked[i], start=1):
        asked = tokenizer.encode(prompt + prompts.ASSISTANT, add_special_tokens=False)
        answer = tokenizer.encode(prompts.target_text(target), add_special_tokens=False)
        ids += asked + answer
        targets += [IGNORE] * (len(asked) - 1) + answer + [IGNORE]
        segments += [segment] * (len(asked) + len(answer))
        positions += range(n_prefix, n_prefix + len(asked) + len(answer))
    return ids, targets, segments, positions


def _token_loss(model: SmolVLMForConditionalGeneration, states: Tensor, targets: Tensor) -> Tensor:
    kept = targets != IGNORE
    return functional.cross_entropy(model.lm_head(states[kept]), targets[kept])


def _pad(rows: list[list[int]], fill: int) -> Int[Tensor, "batch n_tokens"]:
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


def _one_cycle(
    parameters: list[nn.Parameter], lr: float, steps: int, weight_decay: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)
    warmup = max(1, steps // 20)

    def factor(step: int) -> float:
        return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, steps - warmup))) + 1e-3)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _update(
    loss: Tensor,
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()
