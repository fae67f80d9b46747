"""Cross-attention resampler: token features of any length -> a fixed number of latents.

Source: arXiv 2606.04351 section 3.2; the exact structure is that of its published implementation, which took it from
Idefics2's perceiver. A gated MLP projects each token, an encoder resampler reads the tokens into a few latents, and a
decoder resampler reads those latents with one learned query per output.

Everything a video says passes through `n_latents` x `d_latent` numbers: that is the price of a fixed cost per video.
Attention is PyTorch's scaled_dot_product_attention, so the scores of latents x tokens are not kept in memory. The
published implementation writes the softmax out; the mathematics is the same and the tests hold us to its numbers.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

RMS_NORM_EPS = 1e-6  # published implementation
PROJECTION_EXPANSION = 4  # hidden width of the modality projection, in d_vlm; published implementation
PROJECTION_BYTES = 1 << 28  # of the projection's hidden layer without gradients; ours
MLP_EXPANSION = 4  # hidden width of every other MLP, in d_latent; published implementation


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the division in fp32.

    nn.RMSNorm warns on bf16 input with fp32 weights, which is how autocast calls it; here the weight comes afterwards.
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return self.weight * F.rms_norm(x, self.weight.shape, eps=RMS_NORM_EPS)


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, d_in: int, *, d_hidden: int, d_out: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_in, d_hidden, bias=False)
        self.up_proj = nn.Linear(d_in, d_hidden, bias=False)
        self.down_proj = nn.Linear(d_hidden, d_out, bias=False)

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class CrossAttention(nn.Module):
    """Latents attend to the tokens and to themselves, with grouped key/value heads and no positions."""

    def __init__(self, d_latent: int, *, n_heads: int, n_kv_heads: int, d_head: int) -> None:
        super().__init__()
        self.n_kv_heads = n_kv_heads
        self.d_head = d_head
        self.q_proj = nn.Linear(d_latent, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_latent, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_latent, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_latent, bias=False)

    def forward(
        self,
        latents: Float[Tensor, "batch n_latents d_latent"],
        *,
        context: Float[Tensor, "batch n_tokens d_latent"],
        mask: Bool[Tensor, "batch n_tokens"] | None,
    ) -> Float[Tensor, "batch n_latents d_latent"]:
        """`mask` is True where a token counts; None means all do. Without any, latents still see each other."""
        n_latents = latents.shape[1]
        # The heads that share keys and values become extra queries of one head, so keys and values are never repeated
        # and every SDPA kernel serves (enable_gqa leaves only the slow one when there is a mask).
        heads = {"kv": self.n_kv_heads, "d_head": self.d_head}
        q = rearrange(self.q_proj(latents), "batch n (kv group d_head) -> batch kv (group n) d_head", **heads)
        seen = torch.cat([context, latents], dim=1)
        k = rearrange(self.k_proj(seen), "batch n (kv d_head) -> batch kv n d_head", **heads)
        v = rearrange(self.v_proj(seen), "batch n (kv d_head) -> batch kv n d_head", **heads)
        if mask is not None:
            mask = F.pad(mask, (0, n_latents), value=True)[:, None, None, :].expand(-1, 1, q.shape[2], -1)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        attended = rearrange(attended, "batch kv (group n) d_head -> batch n (kv group d_head)", n=n_latents)
        projected: Tensor = self.o_proj(attended)
        return projected


class Block(nn.Module):
    """Cross-attention and gated MLP, each normalised before and after, each added to what came in."""

    def __init__(self, d_latent: int, *, n_heads: int, n_kv_heads: int, d_head: int) -> None:
        super().__init__()
        self.norm_latents = RMSNorm(d_latent)
        self.norm_context = RMSNorm(d_latent)
        self.attention = CrossAttention(d_latent, n_heads=n_heads, n_kv_heads=n_kv_heads, d_head=d_head)
        self.norm_attended = RMSNorm(d_latent)
        self.norm_before_mlp = RMSNorm(d_latent)
        self.mlp = GatedMLP(d_latent, d_hidden=MLP_EXPANSION * d_latent, d_out=d_latent)
        self.norm_after_mlp = RMSNorm(d_latent)

    def forward(
        self,
        latents: Float[Tensor, "batch n_latents d_latent"],
        *,
        context: Float[Tensor, "batch n_tokens d_latent"],
        mask: Bool[Tensor, "batch n_tokens"] | None,
    ) -> Float[Tensor, "batch n_latents d_latent"]:
        attended = self.attention(self.norm_latents(latents), context=self.norm_context(context), mask=mask)
        latents = latents + self.norm_attended(attended)
        latents = latents + self.norm_after_mlp(self.mlp(self.norm_before_mlp(latents)))
        return latents


class Resampler(nn.Module):
    """Learned latents that read the same context `n_blocks` times, with weights of their own each time."""

    def __init__(self, d_latent: int, *, n_latents: int, n_blocks: int, n_heads: int, n_kv_heads: int, d_head: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(n_latents, d_latent))
        self.blocks = nn.ModuleList(Block(d_latent, n_heads=n_heads, n_kv_heads=n_kv_heads, d_head=d_head) for _ in range(n_blocks))
        self.norm = RMSNorm(d_latent)

    def forward(
        self, context: Float[Tensor, "batch n_tokens d_latent"], *, mask: Bool[Tensor, "batch n_tokens"] | None
    ) -> Float[Tensor, "batch n_latents d_latent"]:
        latents: Tensor = self.latents.expand(context.shape[0], -1, -1)
        for block in self.blocks:
            latents = block(latents, context=context, mask=mask)
        latents = self.norm(latents)
        return latents


class Perceiver(nn.Module):
    """Modality projection, encoder, decoder. `checkpoint_projection` recomputes the projection in the backward pass.

    The projection's hidden width is 4 x d_vlm for every token of every layer: by far the largest activation here. Without gradients it
    is held for PROJECTION_BYTES worth of rows at a time: 64 frames at 500M would take 2.5 GB, twice.
    """

    def __init__(
        self,
        projection: GatedMLP,
        *,
        encoder: Resampler,
        decoder: Resampler,
        checkpoint_projection: bool = False,
    ) -> None:
        super().__init__()
        self.projection = projection
        self.encoder = encoder
        self.decoder = decoder
        self.checkpoint_projection = checkpoint_projection

    def forward(
        self, features: Float[Tensor, "batch n_tokens d_vlm"], *, mask: Bool[Tensor, "batch n_tokens"]
    ) -> Float[Tensor, "batch n_queries d_latent"]:
        if not torch.is_grad_enabled():
            n_at_once = max(1, PROJECTION_BYTES // (features.shape[1] * self.projection.gate_proj.weight.shape[0] * 4))
            parts = zip(features.split(n_at_once), mask.split(n_at_once), strict=True)
            return torch.cat([self._resampled(self.projection(x), m) for x, m in parts])
        if self.checkpoint_projection:
            return self._resampled(checkpoint(self.projection, features, use_reentrant=False), mask)
        return self._resampled(self.projection(features), mask)

    def _resampled(
        self, context: Float[Tensor, "batch n_tokens d_latent"], mask: Bool[Tensor, "batch n_tokens"]
    ) -> Float[Tensor, "batch n_queries d_latent"]:
        outputs: Tensor = self.decoder(self.encoder(context, mask=mask), mask=None)
        return outputs
