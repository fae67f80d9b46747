"""Batches of clips with questions -> the small VLM, in three parts.

1. `teach_vision`: the tower and connector alone name what is in a single frame and where it is, from the frame's tokens; and each
   patch says what covers it, how far off its middle lies and where that is. Asked of whole frames only, shapes stay near chance for
   100,000 frames; asked of patches, and of clips with a single object first, they come within a few minutes. Places are asked of the
   mean of a frame's tokens too: a head over all of them in order finds places that no token tells, and then motion stays unlearnt.
2. `teach_answers`: the whole model answers questions about clips. The frames of a clip are read once and shared by its questions:
   they stand in one sequence, and the mask keeps each question from seeing the others, whose answers would leak. Beside the answers,
   linear heads ask the token that ends each frame where things are, after block 1, and where they were and how far they went since the
   frame before, after block 2; and the token that ends the video prefix for the clip's facts. The direction of motion, which no single
   frame shows, is right after 500 steps; of 2,200 steps with the facts alone it was wrong every other time.
   Some text-only prompts (a summary as context, or nothing at all) keep the model able to read text.
3. `polish`: answers alone, more of each clip, and each answer worth the same: a word as much as a summary. After part 2 one family
   may still be guessed (yes or no to a colour, in the run that ships), and its few tokens are a thirtieth of all.

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
from video2lora.tiny.heads import IGNORE, ClipBatch, ClipHeads, FrameHeads, VideoStates

TEXT_WEIGHT = 0.3  # of prompts without frames


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the three parts. Learning rates are peaks of one-cycle schedules; `single`: share of part 1 with single objects."""

    vision_steps: int = 2400
    vision_clips: int = 16
    vision_lr: float = 2e-3
    single: float = 0.35
    answer_steps: int = 2400
    answer_clips: int = 24
    n_asked: int = 6
    answer_lr: float = 1.2e-3
    polish_steps: int = 900
    polish_asked: int = 9
    polish_lr: float = 1e-3
    weight_decay: float = 0.01
    heads_weight: float = 0.5
    seed: int = 0


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
    heads: tuple[FrameHeads, ClipHeads],
    batches: Iterator[ClipBatch],
    config: TrainConfig,
    *,
    report: Callable[[int, float], None],
) -> None:
    """Part 2: the whole model. The heads of part 1 stay asked, beside those of the clip."""
    frame_heads, clip_heads = heads
    parameters = [*model.parameters(), *frame_heads.parameters(), *clip_heads.parameters()]
    optimizer, schedule = _one_cycle(parameters, config.answer_lr, config.answer_steps, config.weight_decay)
    for step in range(config.answer_steps):
        batch = next(batches)
        patches, tokens = see(model, pixel_values(batch.frames))
        loss, video = answer_loss(model, tokenizer, batch, tokens=tokens)
        loss = loss + config.heads_weight * (clip_heads.loss(video, batch) + frame_heads.loss(patches, tokens, batch))
        if batch.texts:
            loss = loss + TEXT_WEIGHT * text_loss(model, tokenizer, batch.texts)
        _update(loss, parameters, optimizer, schedule)
        report(step, loss.item())


def polish(
    model: SmolVLMForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    batches: Iterator[ClipBatch],
    config: TrainConfig,
    *,
    report: Callable[[int, float], None],
) -> None:
    """Part 3: the whole model, on answers alone."""
    parameters = list(model.parameters())
    optimizer, schedule = _one_cycle(parameters, config.polish_lr, config.polish_steps, config.weight_decay)
    for step in range(config.polish_steps):
        batch = next(batches)
        _, tokens = see(model, pixel_values(batch.frames))
        loss, _ = answer_loss(model, tokenizer, batch, tokens=tokens, by_answer=True)
        if batch.texts:
            loss = loss + TEXT_WEIGHT * text_loss(model, tokenizer, batch.texts)
        _update(loss, parameters, optimizer, schedule)
        report(step, loss.item())


def answer_loss(
    model: SmolVLMForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, batch: ClipBatch, *, tokens: Tensor, by_answer: bool = False
) -> tuple[Float[Tensor, ""], VideoStates]:
    """Mean loss of the answer tokens, each worth the same or each answer (`by_answer`), and what the model makes of the frames."""
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
    states = output.hidden_states
    ends = (segments == 0).sum(1) - 1
    end_of_frame = tokenizer.convert_tokens_to_ids(prompts.FAKE_IMAGE)
    frame_ends = (input_ids[:, 1:] == end_of_frame) & (input_ids[:, :-1] == model.config.image_token_id)
    frames_1, frames_2 = (states[i][:, 1:][frame_ends].unflatten(0, (len(rows), -1)) for i in (1, 2))
    video = VideoStates(states[-2][torch.arange(len(rows)), ends], frames_1, frames_2)
    return token_loss(model, output.last_hidden_state, targets, segments if by_answer else None), video


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
    return token_loss(model, states, targets)


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


def token_loss(model: nn.Module, states: Tensor, targets: Tensor, segments: Tensor | None = None) -> Tensor:
    """Mean over the target tokens; given their segments, over segments of the mean over each one's tokens."""
    kept = targets != IGNORE
    losses = functional.cross_entropy(model.lm_head(states[kept]), targets[kept], reduction="none")
    if segments is None:
        return losses.mean()
    rows = torch.arange(len(targets))[:, None].expand_as(targets)
    _, place, n_tokens = torch.stack([rows[kept], segments[kept]]).unique(dim=1, return_inverse=True, return_counts=True)
    return (losses / n_tokens[place]).sum() / len(n_tokens)


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
