"""A step of training and the LoRA part of one, ours and those of rivals written from their description.

Steps. All use the same loss, attention (SDPA) and optimizer, so that nothing but the order of work differs; the published trainer has eager
attention on top, which is not held against it here.

    published   one target per encode and per hypernetwork pass: a video is decoded, encoded and read again for each of its targets
    ours        a video is decoded, encoded and read once for all of them; or its JPEGs are stored; or its visual tokens are

LoRA part. What adapters of their own for each example add to the linears of a decoder, and its gradients: x, A, B and the linears' own
output in, their sum and the gradients of x, A and B out. The linears' own products are in nobody's time.

    ours        two batched products
    peft        a loop over examples, each through PEFT's own layer with the example's factors as its weights
    per token   factors repeated for each token, and a product per token
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from training.batches import Batch, Example, Target
from training.loss import Encoder, TargetLoss, text_of
from video2lora.jpeg import from_jpegs
from video2lora.lora import lora_delta
from video2lora.sampling import Frames, Sampling
from video2lora.vlm import FrozenVLM

Source = Literal["clip", "jpegs", "tokens"]


@dataclass(frozen=True)
class Video:
    """One video in each form it may be stored in, and its targets."""

    name: str
    clip: str | None  # None: nothing is decoded
    jpegs: tuple[bytes, ...]
    tokens: Float[Tensor, "n_frames n_image_tokens d_vlm"]  # in memory as stored: on the CPU, in the VLM's dtype
    targets: tuple[Target, ...]
    edge_px: int

    def example(self, source: Source) -> Example:
        """As a step gets it, made anew."""
        n_frames = len(self.jpegs)
        if source == "clip":
            from video2lora.video import decode

            return Example(self.name, decode(str(self.clip), Sampling(n_frames=n_frames), longest_edge_px=self.edge_px), self.targets)
        images = from_jpegs(self.jpegs) if source == "jpegs" else np.empty((n_frames, 0, 0, 3), np.uint8)
        frames = Frames(images, np.linspace(0, 4.9, n_frames), 5.0)
        return Example(self.name, frames, self.targets, self.tokens if source == "tokens" else None)


@dataclass
class Bench:
    """What all steps share."""

    vlm: FrozenVLM
    student: TargetLoss
    videos: Sequence[Video]
    optimizer: torch.optim.Optimizer

    @property
    def n_samples(self) -> int:
        """Targets answered in a step."""
        return sum(len(video.targets) for video in self.videos)

    def losses(self, examples: Sequence[Example], targets: Sequence[tuple[Target, ...]], *, n_groups: int) -> Float[Tensor, " n_targets"]:
        """Cross-entropy of each target; in groups, by length."""
        features = Encoder(self.vlm, opens_answer=False, keeps=False)(examples)
        rows = text_of(self.vlm, Batch(tuple(examples), tuple(targets)), newline=True, n_groups=n_groups)
        losses: Tensor = self.student(features, rows)
        return losses[0]

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


def ours(bench: Bench, source: Source) -> float:
    """The mean loss; gradients are left to `update`."""
    examples = [video.example(source) for video in bench.videos]
    loss = bench.losses(examples, [one.targets for one in examples], n_groups=2).mean()
    loss.backward()
    return float(loss.detach())


def published(bench: Bench, source: Source) -> float:
    """The same loss and gradients, by as many videos at a time as ours."""
    total = 0.0
    for number in range(max(len(video.targets) for video in bench.videos)):
        videos = [video for video in bench.videos if number < len(video.targets)]
        examples = [video.example(source) for video in videos]
        loss = bench.losses(examples, [(video.targets[number],) for video in videos], n_groups=1).sum() / bench.n_samples
        loss.backward()
        total += float(loss.detach())
    return total


def compiled(bench: Bench) -> Bench:
    """The same with a hypernetwork of its own that torch.compile compiles in its first step, as the recipe's `training.compile` does."""
    hypernetwork = copy.deepcopy(bench.student.hypernetwork)
    hypernetwork.compile()
    student = TargetLoss(hypernetwork, bench.vlm, dtype=str(bench.student.dtype).removeprefix("torch."))
    return Bench(bench.vlm, student, bench.videos, torch.optim.AdamW(student.parameters(), lr=bench.optimizer.defaults["lr"]))


# --- the LoRA part ---


@dataclass(frozen=True)
class Layer:
    """What one linear of the decoder gets, and its own output `given`; gradients of x and both factors are asked for."""

    x: Float[Tensor, "batch n_tokens d_in"]
    lora_a: Float[Tensor, "batch r d_in"]
    lora_b: Float[Tensor, "batch d_out r"]
    given: Float[Tensor, "batch n_tokens d_out"]
    grad: Float[Tensor, "batch n_tokens d_out"]  # of the output


Apply = Callable[[Layer], Tensor]
SCALING = 2.0


def made_layers(n: int, *, batch: int, n_tokens: int, r: int, sizes: tuple[int, int], like: Tensor) -> list[Layer]:
    """Random ones, in dtype and on the device of `like`."""
    d_in, d_out = sizes
    made = torch.Generator().manual_seed(0)

    def draw(*shape: int, needs_grad: bool = True) -> Tensor:
        drawn = torch.randn(*shape, generator=made).to(like.device, like.dtype)
        return drawn.requires_grad_(needs_grad)

    shape = (batch, n_tokens, d_out)
    return [
        Layer(
            draw(batch, n_tokens, d_in), draw(batch, r, d_in), draw(batch, d_out, r), draw(*shape, needs_grad=False),
            draw(*shape, needs_grad=False),
        )
        for _ in range(n)
    ]  # fmt: skip


def lora_part(apply: Apply, layers: Sequence[Layer]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Outputs of all layers, then the gradients of x, A and B of each: a whole pass forward comes before the one backward."""
    outputs = [apply(layer) for layer in layers]
    inputs = [tensor for layer in layers for tensor in (layer.x, layer.lora_a, layer.lora_b)]
    return outputs, torch.autograd.grad(outputs, inputs, [layer.grad for layer in layers])


def batched(layer: Layer) -> Tensor:
    return lora_delta(layer.x, lora_a=layer.lora_a, lora_b=layer.lora_b, scaling=SCALING, base=layer.given)


def per_token(layer: Layer) -> Tensor:
    batch, n_tokens, d_in = layer.x.shape
    a, b = (factor.repeat_interleave(n_tokens, dim=0) for factor in (layer.lora_a, layer.lora_b))
    delta = torch.bmm(b, torch.bmm(a, layer.x.reshape(batch * n_tokens, d_in, 1)))
    return layer.given + SCALING * delta.view(batch, n_tokens, -1)


class PeftLoop:
    """PEFT's layer for one linear, whose own product is given; the factors of each example take the place of its weights in turn."""

    def __init__(self, *, r: int, sizes: tuple[int, int]) -> None:
        from peft import LoraConfig
        from peft.tuners.lora import Linear

        config = LoraConfig(r=r, lora_alpha=r * SCALING, lora_dropout=0.0)
        with torch.device("meta"):
            base = nn.Linear(*sizes, bias=False)
            self.layer = Linear(base, "default", config, r=r, lora_alpha=r * SCALING)
        self.given = Given()
        self.layer.base_layer = self.given
        self.factors: tuple[Any, Any] = self.layer.lora_A["default"], self.layer.lora_B["default"]
        for module in self.factors:
            del module.weight  # a parameter; what takes its place is no leaf

    def __call__(self, layer: Layer) -> Tensor:
        outputs = []
        for i in range(len(layer.x)):
            self.given.output = layer.given[i : i + 1]
            for module, factor in zip(self.factors, (layer.lora_a, layer.lora_b), strict=True):
                module.weight = factor[i]
            outputs.append(self.layer(layer.x[i : i + 1]))
        return torch.cat(outputs)


class Given(nn.Module):
    """A linear whose output is known."""

    output: Tensor

    def forward(self, _x: Tensor) -> Tensor:
        return self.output
