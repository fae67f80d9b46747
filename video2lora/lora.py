"""LoRA as data: factors of every layer and every video in one value, and the context in which a model uses them.

The delta of a layer is `scaling * (x A^T) B^T`, as in arXiv 2606.04351 section 3.3 and PEFT; `scaling` is multiplied
directly and is not divided by r. Rank is additive: concatenating factors in rank sums their deltas, which is how chunks
of a video compose and how the static adapter joins (sections 3.3 and 5.6).

`adapted` adds the deltas with PyTorch's forward hooks: the model's own code stays as it is, and each example of a batch
has its own adapter at the price of two small batched products. The published implementation replaces `module.forward`
and must undo that by hand. Merging the delta into the weights would be faster for one video and impossible for a batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Lora:
    """Factors by target module name ("down_proj"), for `batch` videos and all layers; PEFT's names and orientation.

    d_in and d_out differ between modules; batch, n_layers and r do not. Raises ValueError where the shapes disagree.
    """

    # Underscores: shapes are checked below, for every module and in every run, since factors also come from files.
    lora_a: Mapping[str, Float[Tensor, "_batch _n_layers _r _d_in"]]
    lora_b: Mapping[str, Float[Tensor, "_batch _n_layers _d_out _r"]]
    scaling: float

    def __post_init__(self) -> None:
        if not self.lora_a or self.lora_a.keys() != self.lora_b.keys():
            raise ValueError(f"lora_a has modules {sorted(self.lora_a)}, lora_b {sorted(self.lora_b)}; expected the same, not none")
        first = next(iter(self.lora_a.values()))
        for name, a in self.lora_a.items():
            b = self.lora_b[name]
            if a.ndim != 4 or b.ndim != 4 or not a.shape[:3] == first.shape[:3] == (*b.shape[:2], b.shape[3]):
                raise ValueError(
                    f"{name}: lora_a {tuple(a.shape)} and lora_b {tuple(b.shape)}; expected [batch, n_layers, r, d_in] "
                    f"and [batch, n_layers, d_out, r] with (batch, n_layers, r) = {tuple(first.shape[:3])}"
                )

    @property
    def batch(self) -> int:
        return next(iter(self.lora_a.values())).shape[0]

    @property
    def n_layers(self) -> int:
        return next(iter(self.lora_a.values())).shape[1]

    @property
    def r(self) -> int:
        return next(iter(self.lora_a.values())).shape[2]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Lora":
        """The same adapter with `function` applied to every factor, as in `lora.map(Tensor.cpu)`."""
        return Lora(
            lora_a={name: function(a) for name, a in self.lora_a.items()},
            lora_b={name: function(b) for name, b in self.lora_b.items()},
            scaling=self.scaling,
        )


def concatenate(loras: Sequence[Lora]) -> Lora:
    """Sum of the deltas: factors concatenated in rank. A batch of 1 is shared by all videos of the others.

    Raises ValueError where modules, layers, batch or scaling differ.
    """
    _check_alike(loras)
    batches = {lora.batch for lora in loras} - {1}
    if len(batches) > 1:
        raise ValueError(f"cannot concatenate adapters of batches {[lora.batch for lora in loras]} in rank")
    batch = batches.pop() if batches else 1
    return Lora(
        lora_a={m: torch.cat([x.lora_a[m].expand(batch, -1, -1, -1) for x in loras], 2) for m in loras[0].lora_a},
        lora_b={m: torch.cat([x.lora_b[m].expand(batch, -1, -1, -1) for x in loras], 3) for m in loras[0].lora_b},
        scaling=loras[0].scaling,
    )


def stack(loras: Sequence[Lora]) -> Lora:
    """One batch out of several. Shorter adapters get zero rows up to the longest rank, which change no delta.

    Raises ValueError where modules, layers or scaling differ.
    """
    _check_alike(loras)
    padded = [pad_rank(lora, max(lora.r for lora in loras)) for lora in loras]
    return Lora(
        lora_a={m: torch.cat([lora.lora_a[m] for lora in padded]) for m in loras[0].lora_a},
        lora_b={m: torch.cat([lora.lora_b[m] for lora in padded]) for m in loras[0].lora_b},
        scaling=loras[0].scaling,
    )


def pad_rank(lora: Lora, r: int) -> Lora:
    """Zero rows appended up to rank `r`; the delta stays. ValueError where `r` is smaller than the adapter's."""
    if r < lora.r:
        raise ValueError(f"cannot pad an adapter of rank {lora.r} to rank {r}")
    return Lora(
        lora_a={m: F.pad(a, (0, 0, 0, r - lora.r)) for m, a in lora.lora_a.items()},
        lora_b={m: F.pad(b, (0, r - lora.r)) for m, b in lora.lora_b.items()},
        scaling=lora.scaling,
    )


def select(lora: Lora, index: Int[Tensor, " n_selected"]) -> Lora:
    """The adapters at `index`, in that order, repeats allowed: [0, 0, 1] is two questions on video 0, one on video 1.

    Only the factors are repeated; they are small beside anything computed with them.
    """
    return lora.map(lambda factor: factor.index_select(0, index.to(factor.device)))


def compose(lora: Lora, n_chunks: Sequence[int]) -> Lora:
    """Chunks of the same video into one adapter each: the sum of their deltas, in any order.

    The batch holds `n_chunks[0]` chunks of the first video, then those of the second, and so on. The result has one
    adapter per video, of rank max(n_chunks) * r, with zero rows for videos of fewer chunks (section 5.6; no 1/n).
    Add the static adapter afterwards, once. Raises ValueError where the counts do not sum to the batch.
    """
    if min(n_chunks, default=0) < 1 or sum(n_chunks) != lora.batch:
        raise ValueError(f"n_chunks {list(n_chunks)} must be positive and sum to the batch of {lora.batch} adapters")
    counts = torch.tensor(n_chunks)
    video = torch.arange(len(n_chunks)).repeat_interleave(counts)
    chunk = torch.arange(lora.batch) - (counts.cumsum(0) - counts).repeat_interleave(counts)

    def by_video(factor: Tensor) -> Tensor:
        filled = factor.new_zeros(len(n_chunks), max(n_chunks), *factor.shape[1:])
        return filled.index_put((video.to(factor.device), chunk.to(factor.device)), factor)

    return Lora(
        lora_a={m: by_video(a).transpose(1, 2).flatten(2, 3) for m, a in lora.lora_a.items()},
        lora_b={m: by_video(b).permute(0, 2, 3, 1, 4).flatten(3, 4) for m, b in lora.lora_b.items()},
        scaling=lora.scaling,
    )


def lora_delta(
    x: Float[Tensor, "batch n_tokens d_in"],
    *,
    lora_a: Float[Tensor, "n_loras r d_in"],
    lora_b: Float[Tensor, "n_loras d_out r"],
    scaling: float,
    base: Float[Tensor, "batch n_tokens d_out"] | None = None,
) -> Float[Tensor, "batch n_tokens d_out"]:
    """`base + scaling * x A^T B^T` for one layer, in x's dtype; `base` None is zero.

    One adapter per example, or one for all. Raises ValueError for any other number of adapters.
    """
    n_loras, batch = lora_a.shape[0], x.shape[0]
    if n_loras not in (1, batch):
        raise ValueError(f"{n_loras} adapters for a batch of {batch} examples; expected {batch}, or 1 shared by all")
    lora_a, lora_b = lora_a.to(x.dtype), lora_b.to(x.dtype)
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
    if len(layers) != lora.n_layers:
        raise ValueError(f"the adapter has {lora.n_layers} layers, the model {len(layers)}")
    # unbind, not a slice per layer: the backward pass of a slice fills a whole zero tensor for each of them
    factors = {name: (a.unbind(1), lora.lora_b[name].unbind(1)) for name, a in lora.lora_a.items()}
    targets = [
        (_target_module(layer, name, where=f"layer {i}"), a[i], b[i]) for i, layer in enumerate(layers) for name, (a, b) in factors.items()
    ]
    for module, a, b in targets:
        _check_sizes(module, a, b)
    with ExitStack() as hooks:
        for module, a, b in targets:
            hooks.callback(module.register_forward_hook(_add_delta(a, b, lora.scaling)).remove)
        yield


def _add_delta(lora_a: Tensor, lora_b: Tensor, scaling: float) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return lora_delta(inputs[0], lora_a=lora_a, lora_b=lora_b, scaling=scaling, base=output)

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


def _check_alike(loras: Sequence[Lora]) -> None:
    if not loras:
        raise ValueError("expected at least one adapter, got none")
    kinds = {(lora.n_layers, lora.scaling, tuple(sorted(lora.lora_a))) for lora in loras}
    if len(kinds) > 1:
        raise ValueError(f"adapters differ in (n_layers, scaling, modules): {sorted(kinds)}")
