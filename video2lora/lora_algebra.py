"""LoRA as data: factors of every layer and every video in one value, and what can be done to them without a model.

The delta of a layer is `scaling * B A`, as in arXiv 2606.04351 section 3.3 and PEFT; `scaling` is multiplied directly and is not divided
by r. Rank is additive: concatenating factors in rank sums their deltas, which is how chunks of a video compose and how the static adapter
joins (sections 3.3 and 5.6).

`compress` is the way back: the best approximation of a sum of many deltas by one of a given rank (Eckart and Young 1936). The delta itself,
d_out x d_in, is never formed: of B and A^T only the small triangular factors of their QR meet, r x r. Applying factors to a model is
`video2lora.lora`'s.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
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


def slice_rank(lora: Lora, start: int, stop: int) -> Lora:
    """Rows `start` to `stop` in rank: a part of the delta, as views. ValueError where they are not rows of the adapter."""
    if not 0 <= start <= stop <= lora.r:
        raise ValueError(f"rows {start} to {stop} in rank of an adapter of rank {lora.r}")
    return Lora(
        lora_a={m: a[:, :, start:stop] for m, a in lora.lora_a.items()},
        lora_b={m: b[..., start:stop] for m, b in lora.lora_b.items()},
        scaling=lora.scaling,
    )


def check_rank(lora: Lora, *, limit: int, what: str) -> None:
    """Raises ValueError for an adapter of a rank over `limit`, which `what` takes at most."""
    if lora.r > limit:
        raise ValueError(f"the adapter has rank {lora.r}, {what} takes at most {limit}; compress it to rank {limit} first")


@dataclass(frozen=True)
class CompressionLoss:
    """Relative Frobenius norm of what a delta lost: ||D - D'|| / ||D||, 0 where D is zero. `total` is over all modules and layers."""

    by_module: Mapping[str, Float[Tensor, "batch n_layers"]]
    total: Float[Tensor, " batch"]


@torch.no_grad()
def compress(lora: Lora, r: int) -> tuple[Lora, CompressionLoss]:
    """The best approximation of each delta by one of rank at most `r`, and what was lost; no delta is formed.

    An adapter of rank `r` or below comes back as it is. The loss is that of the factors as returned, in the adapter's own dtype; it is
    summed in fp64, and below 1e-7 it is rounding. No gradients: those of an SVD are unbounded where singular values meet.
    Raises ValueError for `r` below 1.
    """
    if r < 1:
        raise ValueError(f"cannot compress an adapter of rank {lora.r} to rank {r}; expected 1 or more")
    short = lora
    if r < lora.r:
        factors = {m: _truncated(a, lora.lora_b[m], r) for m, a in lora.lora_a.items()}
        short = Lora(lora_a={m: a for m, (a, _) in factors.items()}, lora_b={m: b for m, (_, b) in factors.items()}, scaling=lora.scaling)
    kept = {m: _inner(lora, lora, m) for m in lora.lora_a}
    lost = {m: (n - 2 * _inner(lora, short, m) + _inner(short, short, m)).clamp_min(0) for m, n in kept.items()}
    if short is lora:
        lost = {m: torch.zeros_like(n) for m, n in kept.items()}
    total = _ratio(sum(n.sum(1) for n in lost.values()), sum(n.sum(1) for n in kept.values()))
    return short, CompressionLoss({m: _ratio(n, kept[m]) for m, n in lost.items()}, total)


def _truncated(
    lora_a: Float[Tensor, "batch n_layers r0 d_in"], lora_b: Float[Tensor, "batch n_layers d_out r0"], r: int
) -> tuple[Float[Tensor, "batch n_layers {r} d_in"], Float[Tensor, "batch n_layers d_out {r}"]]:
    """Factors of the `r` largest singular directions, each with the root of its singular value; zero rows where there are fewer."""
    dtype = torch.promote_types(lora_a.dtype, torch.float32)
    q_b, r_b = torch.linalg.qr(lora_b.to(dtype))
    q_a, r_a = torch.linalg.qr(lora_a.to(dtype).mT)
    u, s, vh = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
    root = s[..., :r].sqrt()
    b = q_b @ (u[..., :r] * root[..., None, :])
    a = (root[..., None] * vh[..., :r, :]) @ q_a.mT
    n_short = r - root.shape[-1]  # a module of fewer inputs or outputs than r
    return F.pad(a, (0, 0, 0, n_short)).to(lora_a.dtype), F.pad(b, (0, n_short)).to(lora_b.dtype)


def _inner(one: Lora, other: Lora, module: str) -> Float[Tensor, "batch n_layers"]:
    """<B A, B' A'> of two adapters' deltas, by products of r x r', in fp64 for what cancels."""
    by_b = one.lora_b[module].double().mT @ other.lora_b[module].double()
    by_a = one.lora_a[module].double() @ other.lora_a[module].double().mT
    return (by_b * by_a).sum((-2, -1))


def _ratio(lost: Tensor, kept: Tensor) -> Tensor:
    """Square roots of squares, lost by kept; 0 where nothing was there to lose."""
    return torch.where(kept > 0, lost / kept.clamp_min(torch.finfo(kept.dtype).tiny), 0.0).sqrt().float()


def _check_alike(loras: Sequence[Lora]) -> None:
    if not loras:
        raise ValueError("expected at least one adapter, got none")
    kinds = {(lora.n_layers, tuple(sorted(lora.lora_a))) for lora in loras}
    if len(kinds) > 1 or not all(is_same_scaling(lora, loras[0]) for lora in loras):
        raise ValueError(
            "adapters differ in (n_layers, scaling, modules): "
            f"{sorted({(lora.n_layers, lora.scaling, tuple(sorted(lora.lora_a))) for lora in loras})}"
        )


def is_same_scaling(one: Lora, other: Lora) -> bool:
    """But for the last digits: on disk it is PEFT's lora_alpha, and divided by the rank again it need not be what it was."""
    return math.isclose(one.scaling, other.scaling, rel_tol=1e-9)
