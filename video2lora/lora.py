"""A LoRA in a model: added to each example of a batch while a context lasts, or merged into the weights. As data: `lora_algebra`.

`adapted` adds the deltas with PyTorch's forward hooks: the model's own code stays as it is, and each example of a batch
has its own adapter at the price of two small batched products. The published implementation replaces `module.forward`
and must undo that by hand.

`merged` puts W + scaling * B A in the place of W: nothing is added to the cost of a token, but all examples have the same
adapter, and every weight is written anew. The weights kept aside come back as the same objects, so bit for bit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from video2lora.lora_algebra import (
    CompressionLoss,
    Lora,
    check_rank,
    compose,
    compress,
    concatenate,
    pad_rank,
    select,
    slice_rank,
    stack,
)

__all__ = [
    "CompressionLoss",
    "Lora",
    "adapted",
    "check_rank",
    "compose",
    "compress",
    "concatenate",
    "lora_delta",
    "merged",
    "pad_rank",
    "select",
    "slice_rank",
    "stack",
]


def lora_delta(
    x: Float[Tensor, "batch n_tokens d_in"],
    *,
    lora_a: Float[Tensor, "n_loras r d_in"],
    lora_b: Float[Tensor, "n_loras d_out r"],
    scaling: float,
    base: Float[Tensor, "batch n_tokens d_out"] | None = None,
) -> Float[Tensor, "batch n_tokens d_out"]:
    """`base + scaling * x A^T B^T` for one layer, in x's dtype and on its device; `base` None is zero.

    One adapter per example, or one for all. Raises ValueError for any other number of adapters.
    """
    n_loras, batch = lora_a.shape[0], x.shape[0]
    if n_loras not in (1, batch):
        raise ValueError(f"{n_loras} adapters for a batch of {batch} examples; expected {batch}, or 1 shared by all")
    lora_a, lora_b = lora_a.to(x.device, x.dtype), lora_b.to(x.device, x.dtype)
    shared = n_loras < batch
    hidden = torch.bmm(x.flatten(0, 1)[None] if shared else x, lora_a.mT)
    if base is None:
        delta = scaling * torch.bmm(hidden, lora_b.mT)
    else:
        delta = torch.baddbmm(base.flatten(0, 1)[None] if shared else base, hidden, lora_b.mT, alpha=scaling)
    return delta.view(batch, -1, delta.shape[-1])


@contextmanager
def adapted(layers: nn.ModuleList | Sequence[nn.Module], lora: Lora) -> Iterator[None]:
    """Inside, each decoder layer's target modules add their delta; outside, the model is as it was, errors included.

    `layers` are the text model's decoder layers, in order. A batch of inputs must be as long as the batch of adapters,
    or the adapter a single one; other inputs raise ValueError when the module is called. Contexts nest: deltas add up.
    Factors keep their gradients. If the layers recompute their activations in the backward pass (gradient
    checkpointing), the backward pass must run inside too.

    Raises ValueError where the number of layers differs, or a layer has no such module, or several, or another size.
    """
    targets = _targets(layers, lora)
    with ExitStack() as hooks:
        for module, a, b in targets:
            hooks.callback(module.register_forward_hook(_add_delta(a, b, lora.scaling)).remove)
        yield


@contextmanager
def merged(layers: nn.ModuleList | Sequence[nn.Module], lora: Lora) -> Iterator[None]:
    """Inside, the target weights are W + scaling * B A of the one adapter; outside, they are the parameters they were, errors included.

    Computed in fp32 from W and the factors, then rounded once to W's dtype. Contexts nest, with `adapted` too: an inner one adds to the
    outer one's weights, as rounded (to add in fp32, `concatenate` first). Merged weights take no gradient and pass none to the factors.
    A captured CUDA graph keeps the weights it was captured with: capture inside.

    Raises ValueError as `adapted` does, and for several adapters, for factors that wait for a gradient, and for a target
    that is not a linear module with a weight of floating-point numbers.
    """
    if lora.batch != 1:
        raise ValueError(f"weights hold one adapter, got a batch of {lora.batch}; use `adapted`")
    if torch.is_grad_enabled() and any(factor.requires_grad for factor in (*lora.lora_a.values(), *lora.lora_b.values())):
        raise ValueError("merged weights pass no gradient to the factors; detach the factors, or use `adapted`")
    targets = _targets(layers, lora)
    for module, _, _ in targets:
        if not isinstance(module, nn.Linear) or not module.weight.is_floating_point():
            raise ValueError(f"expected a linear module of floating-point weights to merge into, got {module}")
    with ExitStack() as originals:
        for module, a, b in targets:
            originals.callback(setattr, module, "weight", module.weight)
            module.weight = _merged_weight(module.weight, a, b, lora.scaling)
        yield


@torch.no_grad()
def _merged_weight(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float) -> nn.Parameter:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    a, b = (factor[0].to(weight.device, dtype) for factor in (lora_a, lora_b))
    return nn.Parameter(torch.addmm(weight.to(dtype), b, a, alpha=scaling).to(weight.dtype), requires_grad=False)


def _targets(layers: nn.ModuleList | Sequence[nn.Module], lora: Lora) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """Each module that the adapter changes, with its factors [batch, r, d_in] and [batch, d_out, r]. Raises ValueError as in `adapted`."""
    if len(layers) != lora.n_layers:
        raise ValueError(f"the adapter has {lora.n_layers} layers, the model {len(layers)}")
    # unbind, not a slice per layer: the backward pass of a slice fills a whole zero tensor for each of them
    factors = {name: (a.unbind(1), lora.lora_b[name].unbind(1)) for name, a in lora.lora_a.items()}
    targets = [
        (_target_module(layer, name, where=f"layer {i}"), a[i], b[i]) for i, layer in enumerate(layers) for name, (a, b) in factors.items()
    ]
    for module, a, b in targets:
        _check_sizes(module, a, b)
    return targets


def _add_delta(lora_a: Tensor, lora_b: Tensor, scaling: float) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    cast = lora_a, lora_b
    has_gradient = lora_a.requires_grad or lora_b.requires_grad

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        nonlocal cast
        (x,) = inputs
        # Cast once, not for every token. Not with gradients: a cast made while they were off must not serve a call that wants them.
        if not has_gradient and (cast[0].dtype, cast[0].device) != (x.dtype, x.device):
            cast = lora_a.to(x.device, x.dtype), lora_b.to(x.device, x.dtype)
        return lora_delta(x, lora_a=cast[0], lora_b=cast[1], scaling=scaling, base=output)

    return hook


def _target_module(layer: nn.Module, name: str, *, where: str) -> nn.Module:
    found = [path for path, _ in layer.named_modules() if path.rpartition(".")[2] == name]
    if len(found) != 1:
        linear = [path for path, module in layer.named_modules() if isinstance(module, nn.Linear)]
        raise ValueError(f"{where}: expected one module named {name!r}, got {found}; its linear modules are {linear}")
    return layer.get_submodule(found[0])


def _check_sizes(module: nn.Module, lora_a: Tensor, lora_b: Tensor) -> None:
    got = (lora_a.shape[-1], lora_b.shape[-2])
    if isinstance(module, nn.Linear) and got != (module.in_features, module.out_features):
        raise ValueError(f"the adapter has (d_in, d_out) = {got}, the module ({module.in_features}, {module.out_features})")
