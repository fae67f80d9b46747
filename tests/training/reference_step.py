"""The published training step, written out plainly: one video and one target at a time, whole models, attention by softmax.

From the description (arXiv 2606.04351 sections 3.2 and 3.3, and what its released code adds to it), for tests alone. It shares with the
project the texts of prompts, the squashing of pictures (both held to transformers' processor elsewhere) and the names of weights; no
padding, no batch, no fused attention, no hook, no logits left out.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from training.batches import Example, Target
from video2lora.hypernetwork import HypernetworkConfig
from video2lora.pixels import squash
from video2lora.vlm import FrozenVLM

INTERNALIZE = "Internalize this video for later captioning."
EPS = 1e-6

Weights = Mapping[str, Tensor]


def reference_loss(vlm: FrozenVLM, config: HypernetworkConfig, weights: Weights, one: Example, target: Target) -> Tensor:
    """Token-mean cross-entropy of one target, by the adapter that `weights` generate for its video."""
    deltas = {}
    for layer, features in enumerate(hidden_states(vlm, one)):
        a, b = factors(features, layer, config, weights)
        a = torch.cat([a, weights["static.down_proj.lora_a"][layer]])
        b = torch.cat([b, weights["static.down_proj.lora_b"][layer].mT])
        name = f"model.text_model.layers.{layer}.mlp.down_proj.weight"
        deltas[name] = vlm.model.get_parameter(name) + 2 * config.r**1.5 * b.mT @ a
    prompt = vlm.tokenizer.encode(f"<|im_start|>User: {target.prompt}<end_of_utterance>\nAssistant:", add_special_tokens=False)
    answer = vlm.tokenizer.encode(f" {target.text}<end_of_utterance>\n", add_special_tokens=False)
    output = torch.func.functional_call(vlm.model, deltas, kwargs={"input_ids": torch.tensor([prompt + answer])})
    return F.cross_entropy(output.logits[0, len(prompt) - 1 : -1], torch.tensor(answer))


@torch.no_grad()
def hidden_states(vlm: FrozenVLM, one: Example) -> list[Tensor]:
    """Inputs of the decoder's layers [n_tokens, d_vlm], by the whole model with its vision tower."""
    text = vlm.family.video_prompt(one.frames, INTERNALIZE, opens_answer=False)
    pixels = torch.from_numpy(squash(one.frames.images, 64)).permute(0, 3, 1, 2)[None].to(vlm.model.dtype) / 127.5 - 1
    input_ids = torch.tensor([vlm.tokenizer.encode(text, add_special_tokens=False)])
    output = vlm.model(input_ids=input_ids, pixel_values=pixels, output_hidden_states=True)
    return [hidden[0] for hidden in output.hidden_states[:-1]]


def factors(features: Tensor, layer: int, config: HypernetworkConfig, weights: Weights) -> tuple[Tensor, Tensor]:
    """A layer's generated A [r, d_in] and B [r, d_out], from its hidden states."""
    context = gated(features, "perceiver.projection", weights)
    latents = resampled(context, "perceiver.encoder", config.n_blocks, config, weights)
    latents = resampled(latents, "perceiver.decoder", 1, config, weights)
    for block in range(config.n_pre_head_blocks):
        latents = latents + residual(latents, f"pre_head.{block}", weights)
    latents = latents / latents.norm(dim=-1, keepdim=True)
    rows = latents @ weights["heads.down_proj.weight"][layer]
    a, b = rows.split(config.target_modules["down_proj"], dim=-1)
    scale_a, scale_b = (weights[f"heads.down_proj.scale_{x}"][layer].reshape(-1, 1) for x in "ab")
    return scale_a * a, scale_b * b


def resampled(context: Tensor, name: str, n_blocks: int, config: HypernetworkConfig, weights: Weights) -> Tensor:
    latents = weights[f"{name}.latents"]
    for block in range(n_blocks):
        at = f"{name}.blocks.{block}"
        attended = attention(
            rms(latents, f"{at}.norm_latents", weights), rms(context, f"{at}.norm_context", weights), f"{at}.attention", config, weights
        )
        latents = latents + rms(attended, f"{at}.norm_attended", weights)
        wide = gated(rms(latents, f"{at}.norm_before_mlp", weights), f"{at}.mlp", weights)
        latents = latents + rms(wide, f"{at}.norm_after_mlp", weights)
    return rms(latents, f"{name}.norm", weights)


def attention(latents: Tensor, context: Tensor, name: str, config: HypernetworkConfig, weights: Weights) -> Tensor:
    """Head by head; each key/value head serves a run of query heads."""
    seen = torch.cat([context, latents])
    q, k, v = (x @ weights[f"{name}.{part}_proj.weight"].T for part, x in (("q", latents), ("k", seen), ("v", seen)))
    heads = []
    for head in range(config.n_heads):
        kv = head * config.n_kv_heads // config.n_heads
        q_of, (k_of, v_of) = part(q, head, config.d_head), (part(x, kv, config.d_head) for x in (k, v))
        heads.append(torch.softmax(q_of @ k_of.T / config.d_head**0.5, dim=-1) @ v_of)
    return torch.cat(heads, dim=-1) @ weights[f"{name}.o_proj.weight"].T


def part(x: Tensor, head: int, d_head: int) -> Tensor:
    return x[:, head * d_head : (head + 1) * d_head]


def gated(x: Tensor, name: str, weights: Weights) -> Tensor:
    gate, up, down = (weights[f"{name}.{which}_proj.weight"].T for which in ("gate", "up", "down"))
    return (F.silu(x @ gate) * (x @ up)) @ down


def residual(x: Tensor, name: str, weights: Weights) -> Tensor:
    def linear(y: Tensor, which: str) -> Tensor:
        return y @ weights[f"{name}.{which}.weight"].T + weights[f"{name}.{which}.bias"]

    def norm(y: Tensor, which: str) -> Tensor:
        return F.layer_norm(y, y.shape[-1:], weights[f"{name}.{which}.weight"], weights[f"{name}.{which}.bias"])

    return norm(linear(F.silu(linear(norm(x, "norm_before"), "up_proj")), "down_proj"), "norm_after")


def rms(x: Tensor, name: str, weights: Weights) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weights[f"{name}.weight"]
