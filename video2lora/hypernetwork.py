"""Features of a video, layer by layer -> the factors of its LoRA.

Source: arXiv 2606.04351 section 3.2; structure, constants and initialisation are those of the published implementation.
All layers go through one perceiver, folded into the batch: nothing in it knows which layer it reads. What is a layer's
own is the head, one matrix per layer shared by its ranks, and the two multipliers per rank. Neighbouring layers can read the
features of one of them (`read_every`): the perceiver, most of the work, then runs once for all of them.

The generated adapter of each video is joined in rank by a static adapter, the same for all videos. The paper does not
mention it; its released checkpoints have it, and so do we (`static_adapter`). A fresh hypernetwork changes nothing:
multipliers of B and the static B start at zero.
"""

import reprlib
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from video2lora.lora import Lora, concatenate
from video2lora.perceiver import (
    MLP_EXPANSION,
    PROJECTION_EXPANSION,
    RMS_NORM_EPS,
    GatedMLP,
    Perceiver,
    Resampler,
    RMSNorm,
)

HEAD_STD = 0.5  # before the division by sqrt(fan-in + outputs); published implementation
STATIC_STD = 0.2  # before the division by sqrt(d_in * r); published implementation


class HypernetworkConfig(BaseModel):
    """Sizes of a hypernetwork; defaults are those of both released checkpoints.

    `target_modules` maps the last name of a linear module of a decoder layer to its (d_in, d_out). `scaling` None is
    2 * r^1.5, multiplied directly. `normalise_features` divides each token's features by their rms first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_layers: PositiveInt
    d_vlm: PositiveInt
    target_modules: dict[str, tuple[PositiveInt, PositiveInt]] = Field(min_length=1)
    r: PositiveInt = 16
    n_latents: PositiveInt = 8
    n_blocks: PositiveInt = 9
    d_latent: PositiveInt = 512
    n_heads: PositiveInt = 16
    n_kv_heads: PositiveInt = 4
    d_head: PositiveInt = 128
    n_pre_head_blocks: int = Field(default=1, ge=0)
    scaling: float | None = Field(default=None, gt=0)
    static_adapter: bool = True
    # Paper 3.2 takes the hidden states as they are; we can divide each token's features by their rms, because the
    # gated projection is quadratic in them and hidden states of rms 10 and more stop it from learning. Released
    # checkpoints are trained without, so it is off unless asked for.
    normalise_features: bool = False
    # Published features end with the user's turn; they can go on to "Assistant:", where the VLM is about to answer.
    opens_answer: bool = False
    # Published: each layer's adapter is read from its own features. Layers in groups of `read_every` can read those of their group's last.
    read_every: PositiveInt = 1

    @model_validator(mode="after")
    def _consistent(self) -> "HypernetworkConfig":
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads must be a multiple of n_kv_heads, got {self.n_heads} and {self.n_kv_heads}")
        # Heads are submodules by these names, so a name of nn.ModuleDict's own cannot be one either.
        wrong = [name for name in self.target_modules if not name.isidentifier() or hasattr(nn.ModuleDict(), name)]
        if wrong:
            raise ValueError(f"target_modules takes the last name of a module, like 'down_proj'; got {wrong}")
        return self

    @property
    def layers_read(self) -> list[int]:
        """The layers whose features count: the last of each group."""
        return [min(first + self.read_every, self.n_layers) - 1 for first in range(0, self.n_layers, self.read_every)]

    @property
    def lora_scaling(self) -> float:
        """What multiplies the delta: `scaling`, or 2 * r^1.5 where that is None."""
        return 2 * self.r**1.5 if self.scaling is None else self.scaling


def checked_config(values: Any, *, where: str) -> HypernetworkConfig:
    """Raises ValueError, in one line that begins with `where`, naming each setting that is unknown, missing or wrong."""
    try:
        return HypernetworkConfig.model_validate(values)
    except ValidationError as error:
        wrong = [(".".join(map(str, item["loc"])) or "hypernetwork", item["msg"], reprlib.repr(item["input"])) for item in error.errors()]
        raise ValueError(f"{where}: " + "; ".join(f"{name}: {what} (got {got})" for name, what, got in wrong)) from error


class ResidualMLP(nn.Module):
    """LayerNorm, wide SiLU layer, LayerNorm, added to the input; with biases, unlike the perceiver."""

    def __init__(self, d_latent: int) -> None:
        super().__init__()
        self.norm_before = nn.LayerNorm(d_latent)
        self.up_proj = nn.Linear(d_latent, MLP_EXPANSION * d_latent)
        self.down_proj = nn.Linear(MLP_EXPANSION * d_latent, d_latent)
        self.norm_after = nn.LayerNorm(d_latent)

    def forward(self, x: Float[Tensor, "... d_latent"]) -> Float[Tensor, "... d_latent"]:
        out: Tensor = x + self.norm_after(self.down_proj(F.silu(self.up_proj(self.norm_before(x)))))
        return out


class Head(nn.Module):
    """Unit latents of each rank -> the rows of A and of B, with one matrix per layer."""

    # Paper 3.2 speaks of one shared projection; its implementation shares over ranks and has one matrix per layer.
    def __init__(self, n_layers: int, *, r: int, d_latent: int, d_in: int, d_out: int) -> None:
        super().__init__()
        self.d_in = d_in
        self.weight = nn.Parameter(torch.zeros(n_layers, d_latent, d_in + d_out))
        self.scale_a = nn.Parameter(torch.ones(n_layers, r, 1))
        self.scale_b = nn.Parameter(torch.zeros(n_layers, r, 1))

    def forward(
        self, latents: Float[Tensor, "batch n_layers r d_latent"]
    ) -> tuple[Float[Tensor, "batch n_layers r d_in"], Float[Tensor, "batch n_layers d_out r"]]:
        rows = einsum(latents, self.weight, "batch n_layers r d, n_layers d d_row -> batch n_layers r d_row")
        return rows[..., : self.d_in] * self.scale_a, (rows[..., self.d_in :] * self.scale_b).mT


class StaticAdapter(nn.Module):
    """A trainable adapter that is the same for every video."""

    def __init__(self, n_layers: int, *, r: int, d_in: int, d_out: int) -> None:
        super().__init__()
        self.lora_a = nn.Parameter(torch.zeros(n_layers, r, d_in))
        self.lora_b = nn.Parameter(torch.zeros(n_layers, d_out, r))

    def forward(self) -> tuple[Float[Tensor, "1 n_layers r d_in"], Float[Tensor, "1 n_layers d_out r"]]:
        return self.lora_a[None], self.lora_b[None]


class Hypernetwork(nn.Module):
    """Turns the features of a video into a LoRA; weights drawn from `seed`, the global random state untouched.

    `checkpoint_projection` trades time for memory in training; the numbers stay. Under `torch.device("meta")` the
    parameters have shapes and no values.
    """

    def __init__(self, config: HypernetworkConfig, *, seed: int = 42, checkpoint_projection: bool = False) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        with torch.device("meta"):  # PyTorch's own initialisation would draw from the global random state
            self._build(checkpoint_projection)
        if device.type != "meta":
            self.to_empty(device="cpu")
            initialise(self, generator=torch.Generator("cpu").manual_seed(seed))
            self.to(device)

    def _build(self, checkpoint_projection: bool) -> None:
        config = self.config
        # Output queries come module by module, in the order of their names, as published.
        self.modules_in_order = sorted(config.target_modules)

        def resampler(n_latents: int, n_blocks: int) -> Resampler:
            return Resampler(
                config.d_latent,
                n_latents=n_latents,
                n_blocks=n_blocks,
                n_heads=config.n_heads,
                n_kv_heads=config.n_kv_heads,
                d_head=config.d_head,
            )

        self.perceiver = Perceiver(
            GatedMLP(config.d_vlm, d_hidden=PROJECTION_EXPANSION * config.d_vlm, d_out=config.d_latent),
            encoder=resampler(config.n_latents, config.n_blocks),
            decoder=resampler(len(self.modules_in_order) * config.r, 1),
            checkpoint_projection=checkpoint_projection,
        )
        self.pre_head = nn.Sequential(*(ResidualMLP(config.d_latent) for _ in range(config.n_pre_head_blocks)))
        self.heads = nn.ModuleDict()
        self.static = nn.ModuleDict()
        for name in self.modules_in_order:
            d_in, d_out = config.target_modules[name]
            self.heads[name] = Head(config.n_layers, r=config.r, d_latent=config.d_latent, d_in=d_in, d_out=d_out)
            if config.static_adapter:
                self.static[name] = StaticAdapter(config.n_layers, r=config.r, d_in=d_in, d_out=d_out)

    def forward(
        self,
        features: Float[Tensor, "batch n_layers n_tokens d_vlm"],
        mask: Bool[Tensor, "batch n_tokens"],
    ) -> Lora:
        """The generated adapter of each video, without the static one: batch as given, rank r.

        `features` are the inputs of the VLM's decoder layers; `mask` is True where a token counts, for every layer.
        Raises ValueError where n_layers or d_vlm is not the config's.
        """
        config = self.config
        n_layers, d_vlm = features.shape[1], features.shape[3]
        if (n_layers, d_vlm) != (config.n_layers, config.d_vlm):
            raise ValueError(
                f"features have (n_layers, d_vlm) = {(n_layers, d_vlm)}, the hypernetwork "
                f"{(config.n_layers, config.d_vlm)}; is this another VLM?"
            )
        if config.read_every > 1:
            features = features[:, config.layers_read]
        n_read = features.shape[1]
        if features.device.type == "meta" or not torch.is_autocast_enabled(features.device.type):
            features = features.to(self.perceiver.encoder.latents.dtype)
        if config.normalise_features:
            features = F.rms_norm(features, (d_vlm,), eps=RMS_NORM_EPS)
        latents = self.perceiver(features.flatten(0, 1), mask=mask.repeat_interleave(n_read, dim=0))
        latents = self.pre_head(latents)
        latents = F.normalize(latents.float(), dim=-1).to(latents.dtype)
        by_module = rearrange(latents, "(batch n_read) (n_modules r) d -> n_modules batch n_read r d", n_read=n_read, r=config.r)
        if config.read_every > 1:
            by_module = by_module.repeat_interleave(config.read_every, dim=2)[:, :, :n_layers]
        factors = {name: self.heads[name](x) for name, x in zip(self.modules_in_order, by_module, strict=True)}
        return _as_lora(factors, scaling=config.lora_scaling)

    def static_lora(self) -> Lora:
        """The adapter that every video shares, batch 1, rank r. ValueError where the config has none."""
        if not self.config.static_adapter:
            raise ValueError("this hypernetwork has no static adapter (static_adapter: false)")
        return _as_lora({name: module() for name, module in self.static.items()}, scaling=self.config.lora_scaling)

    def with_static(self, lora: Lora) -> Lora:
        """`lora` with the static adapter appended in rank, once; `lora` itself where the config has none."""
        return concatenate([lora, self.static_lora()]) if self.config.static_adapter else lora


@torch.no_grad()
def initialise(hypernetwork: Hypernetwork, *, generator: torch.Generator) -> None:
    """Draws every parameter anew, in the order of `modules()`; all initialisation there is, as published."""
    config = hypernetwork.config
    d_rows = max(d_in + d_out for d_in, d_out in config.target_modules.values())
    for module in hypernetwork.modules():
        match module:
            case nn.Linear():  # PyTorch's default: the published code never calls the 0.02 of the class it inherits
                bound = module.in_features**-0.5
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                if module.bias is not None:
                    nn.init.uniform_(module.bias, -bound, bound, generator=generator)
            case RMSNorm():
                nn.init.ones_(module.weight)
            case nn.LayerNorm():
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            case Resampler():
                nn.init.normal_(module.latents, generator=generator)
            case Head():
                std = HEAD_STD / (config.d_latent + d_rows * config.r) ** 0.5
                nn.init.normal_(module.weight, std=std, generator=generator)
                nn.init.ones_(module.scale_a)
                nn.init.zeros_(module.scale_b)
            case StaticAdapter():
                std = STATIC_STD / (module.lora_a.shape[-1] * config.r) ** 0.5
                nn.init.normal_(module.lora_a, std=std, generator=generator)
                nn.init.zeros_(module.lora_b)


def _as_lora(factors: dict[str, tuple[Tensor, Tensor]], *, scaling: float) -> Lora:
    return Lora(
        lora_a={name: a for name, (a, _) in factors.items()},
        lora_b={name: b for name, (_, b) in factors.items()},
        scaling=scaling,
    )
