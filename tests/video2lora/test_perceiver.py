"""Perceiver against attention written out, and against itself where only the cost may change."""

import pytest
import torch
from einops import einsum, rearrange, repeat
from torch import Tensor, nn

from video2lora.perceiver import CrossAttention, GatedMLP, Perceiver, Resampler, RMSNorm

BATCH, N_TOKENS, N_LATENTS, D_LATENT, D_VLM, D_HEAD, N_KV_HEADS, GROUP = 2, 11, 5, 7, 13, 17, 3, 2


def attention() -> CrossAttention:
    torch.manual_seed(0)
    return CrossAttention(D_LATENT, n_heads=N_KV_HEADS * GROUP, n_kv_heads=N_KV_HEADS, d_head=D_HEAD)


def perceiver(*, checkpoint_projection: bool = False) -> Perceiver:
    torch.manual_seed(1)
    sizes = {"n_heads": N_KV_HEADS * GROUP, "n_kv_heads": N_KV_HEADS, "d_head": D_HEAD}
    made = Perceiver(
        GatedMLP(D_VLM, d_hidden=19, d_out=D_LATENT),
        encoder=Resampler(D_LATENT, n_latents=N_LATENTS, n_blocks=2, **sizes),
        decoder=Resampler(D_LATENT, n_latents=3, n_blocks=1, **sizes),
        checkpoint_projection=checkpoint_projection,
    )
    for resampler in (made.encoder, made.decoder):
        nn.init.normal_(resampler.latents)
    return made


def inputs() -> tuple[Tensor, Tensor]:
    features = torch.randn(BATCH, N_TOKENS, D_VLM, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(BATCH, N_TOKENS, dtype=torch.bool)
    mask[1, 8:] = False
    return features, mask


def written_out(module: CrossAttention, latents: Tensor, context: Tensor, mask: Tensor) -> Tensor:
    """Scores, softmax and sum spelled out, keys and values repeated for each head of their group."""
    seen = torch.cat([context, latents], dim=1)
    q = rearrange(module.q_proj(latents), "b n (h d) -> b h n d", d=D_HEAD)
    k = repeat(module.k_proj(seen), "b s (kv d) -> b (kv group) s d", d=D_HEAD, group=GROUP)
    v = repeat(module.v_proj(seen), "b s (kv d) -> b (kv group) s d", d=D_HEAD, group=GROUP)
    scores = einsum(q, k, "b h n d, b h s d -> b h n s") / D_HEAD**0.5
    hidden = torch.cat([~mask, torch.zeros(BATCH, N_LATENTS, dtype=torch.bool)], dim=1)
    scores = scores.masked_fill(hidden[:, None, None, :], -torch.inf)
    return module.o_proj(rearrange(scores.softmax(-1) @ v, "b h n d -> b n (h d)"))


def test_attention_equals_the_softmax_written_out() -> None:
    module = attention()
    latents, context = torch.randn(BATCH, N_LATENTS, D_LATENT), torch.randn(BATCH, N_TOKENS, D_LATENT)
    mask = inputs()[1]
    torch.testing.assert_close(module(latents, context=context, mask=mask), written_out(module, latents, context, mask))


def test_no_mask_is_a_mask_of_ones() -> None:
    module = attention()
    latents, context = torch.randn(BATCH, N_LATENTS, D_LATENT), torch.randn(BATCH, N_TOKENS, D_LATENT)
    all_seen = torch.ones(BATCH, N_TOKENS, dtype=torch.bool)
    torch.testing.assert_close(module(latents, context=context, mask=None), module(latents, context=context, mask=all_seen))


def test_rms_norm_equals_pytorchs() -> None:
    ours, theirs = RMSNorm(D_VLM), nn.RMSNorm(D_VLM, eps=1e-6)
    with torch.no_grad():
        ours.weight.normal_()
        theirs.weight.copy_(ours.weight)
    x = torch.randn(N_TOKENS, D_VLM)
    torch.testing.assert_close(ours(x), theirs(x))


def test_padding_changes_nothing() -> None:
    module, (features, mask) = perceiver(), inputs()
    alone = module(features[1:, :8], mask=mask[1:, :8])
    features[1, 8:] = 1e4
    torch.testing.assert_close(module(features, mask=mask)[1:], alone)


def test_a_video_without_tokens_gives_finite_numbers() -> None:
    features, mask = inputs()
    assert perceiver()(features, mask=torch.zeros_like(mask)).isfinite().all()


def test_checkpointing_the_projection_changes_no_gradient() -> None:
    features, mask = inputs()
    gradients = []
    for checkpoint_projection in (False, True):
        module = perceiver(checkpoint_projection=checkpoint_projection)
        module(features, mask=mask).square().sum().backward()
        gradients.append([parameter.grad for parameter in module.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_runs_under_autocast_near_the_fp32_numbers(dtype: torch.dtype) -> None:
    module, (features, mask) = perceiver(), inputs()
    with torch.autocast("cpu", dtype):
        low = module(features.to(dtype), mask=mask)
    torch.testing.assert_close(low.float(), module(features, mask=mask), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("n_at_once", [1, 2, 3])
def test_without_gradients_rows_go_through_a_few_at_a_time_to_the_same_numbers(n_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """7 rows: the projection never sees more than fit the budget, and what comes out is what comes out of all at once."""
    features = torch.randn(7, N_TOKENS, D_VLM, generator=torch.Generator().manual_seed(3))
    mask = torch.ones(7, N_TOKENS, dtype=torch.bool)
    mask[4, 5:] = False
    made = perceiver()
    expected = made(features, mask=mask).detach()
    monkeypatch.setattr("video2lora.perceiver.PROJECTION_BYTES", n_at_once * N_TOKENS * 19 * 4)
    seen: list[int] = []
    made.projection.register_forward_pre_hook(lambda _module, args: seen.append(len(args[0])))
    with torch.no_grad():
        got = made(features, mask=mask)
    assert max(seen) == n_at_once and sum(seen) == 7
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
