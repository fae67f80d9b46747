"""Operations counted as worked out by hand, and a rate that is one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from training.floor import count_flops, matmul_rate
from video2lora.perceiver import CrossAttention


def test_a_linear_layer_forward_and_backward() -> None:
    layer, x = nn.Linear(11, 13), torch.randn(7, 11, requires_grad=True)
    with count_flops() as counted:
        layer(x).sum().backward()
    assert counted.get_total_flops() == 3 * (2 * 7 * 11 * 13)


@pytest.mark.parametrize("is_masked", [False, True])
def test_attention_forward_and_backward(is_masked: bool) -> None:
    """Forward two products of n_queries x n_keys x d_head a head; backward four, and the scores once more."""
    batch, n_heads, n_queries, n_keys, d_head = 2, 3, 5, 7, 11
    q = torch.randn(batch, n_heads, n_queries, d_head, requires_grad=True)
    k, v = (torch.randn(batch, n_heads, n_keys, d_head, requires_grad=True) for _ in range(2))
    mask = torch.ones(batch, 1, n_queries, n_keys, dtype=torch.bool) if is_masked else None
    product = 2 * batch * n_heads * n_queries * n_keys * d_head
    with count_flops() as counted:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert counted.get_total_flops() == 2 * product
    with count_flops() as counted:
        out.sum().backward()
    assert counted.get_total_flops() == 5 * product


def test_cross_attention_is_its_four_linears_and_the_attention() -> None:
    d, n_heads, n_kv_heads, d_head, batch, n_latents, n_tokens = 13, 6, 2, 5, 3, 7, 11
    attention = CrossAttention(d, n_heads=n_heads, n_kv_heads=n_kv_heads, d_head=d_head)
    n_seen = n_tokens + n_latents
    linears = 2 * batch * d * d_head * (2 * n_heads * n_latents + 2 * n_kv_heads * n_seen)
    scores = 2 * 2 * batch * n_heads * n_latents * n_seen * d_head
    with torch.no_grad(), count_flops() as counted:
        attention(torch.randn(batch, n_latents, d), context=torch.randn(batch, n_tokens, d), mask=None)
    assert counted.get_total_flops() == linears + scores


def test_products_of_matrices_have_a_rate() -> None:
    rate = matmul_rate(torch.device("cpu"), torch.float32)
    assert 1e8 < rate < 1e15, "between a pocket calculator and a cluster"
