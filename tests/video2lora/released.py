"""Writes checkpoints as they were released: tensors under the published names, and pickled settings of packages that are not there.

The classes of those packages are made here, exist while the file is written, and are gone when it is read. Names are written out by hand:
what reads them (video2lora/published.py) is under test.
"""

import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from video2lora.hypernetwork import HypernetworkConfig

PUBLISHED_BLOCK = {
    "norm_latents": "input_latents_layernorm",
    "norm_context": "input_context_layernorm",
    "norm_attended": "post_attention_layernorm",
    "norm_before_mlp": "pre_ff_layernorm",
    "norm_after_mlp": "post_ff_layernorm",
    "attention": "self_attn",
    "mlp": "mlp",
}
PUBLISHED_PRE_HEAD = {"norm_before": 0, "up_proj": 2, "down_proj": 5, "norm_after": 6}
UNUSED = 1e6  # in the rows of a head that a smaller module leaves unused: where they are used, it shows


def published(weights: dict[str, Tensor], config: HypernetworkConfig) -> dict[str, Tensor]:
    """Our state dict as a released checkpoint has it, settings apart."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        match name.split("."):
            case ["perceiver", "projection", *rest]:
                tensors[".".join(["aggregator.perceiver.modality_projection", *rest])] = tensor
            case ["perceiver", resampler, "latents"]:
                tensors[f"aggregator.perceiver.{resampler}.latents_q"] = tensor
            case ["perceiver", resampler, "norm", "weight"]:
                tensors[f"aggregator.perceiver.{resampler}.layernorm.weight"] = tensor
            case ["perceiver", resampler, "blocks", i, part, *rest]:
                tensors[".".join([f"aggregator.perceiver.{resampler}.layers.{i}.{PUBLISHED_BLOCK[part]}", *rest])] = tensor
            case ["pre_head", i, part, kind]:
                tensors[f"layers.{i}.mlp.{PUBLISHED_PRE_HEAD[part]}.{kind}"] = tensor
            case ["heads", module, ("scale_a" | "scale_b") as scale]:
                tensors[f"scaler_{scale[-1].upper()}.{module}"] = tensor[None]
            case ["static", module, "lora_a"]:
                tensors[f"bias_A.{module}"] = tensor
            case ["static", module, "lora_b"]:
                tensors[f"bias_B.{module}"] = tensor.mT
    heads = [weights[f"heads.{module}.weight"] for module in sorted(config.target_modules)]
    widest = max(head.shape[-1] for head in heads)
    padded = [F.pad(head, (0, widest - head.shape[-1]), value=UNUSED) for head in heads]
    tensors["head.weight"] = torch.stack(padded, dim=1) if len(heads) > 1 else heads[0]
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def package_class(path: str, base: type = object) -> type:
    """A class that pickle will look for under `path`."""
    module, _, name = path.rpartition(".")
    return type(name, (base,), {"__module__": module})


def instance(path: str, **state: Any) -> Any:
    made = package_class(path)()
    made.__dict__.update(state)
    return made


def enum_member(path: str, **members: Any) -> Any:
    module, _, name = path.rpartition(".")
    return next(iter(Enum(name, members, module=module)))


def settings(config: HypernetworkConfig, *, lora: dict[str, Any], aggregator: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What stands beside the tensors, with some values changed."""
    lora_config = {
        "r": config.r,
        "lora_alpha": 2 * config.r**1.5,
        "target_modules": set(config.target_modules),
        "peft_type": enum_member("peft.utils.peft_types.PeftType", LORA="LORA"),
        "runtime_config": instance("peft.tuners.lora.config.LoraRuntimeConfig", ephemeral_gpu_offload=False),
    }
    aggregator_config = {
        "pooling_type": enum_member("ctx_to_lora.pooling.POOL_FN", MEAN=1),
        "n_latent_queries": config.n_latents,
        "num_self_attn_per_block": 0,
        "layer_to_layer_ctx_encoder": True,
    }
    hypernet = {
        "per_rank_gen": True,
        "use_bias": True,
        "per_layer_processing": False,
        "extra_modules": None,
        "layer_indices": torch.arange(config.n_layers),
        "feature_sizes": tuple({name: sizes[i] for name, sizes in config.target_modules.items()} for i in (0, 1)),
        "lora_config": instance("peft.tuners.lora.config.LoraConfig", **lora_config | lora),
        "aggregator_config": instance("ctx_to_lora.modeling.aggregator.AggregatorConfig", **aggregator_config | aggregator),
    }
    return {
        "base_model_name_or_path": "made/up-VLM",
        "hypernet_config": instance("ctx_to_lora.modeling.hypernet.HypernetConfig", **hypernet | changes),
        "ctx_encoder_args": instance("ctx_to_lora.configs.CtxEncoderArguments", ctx_encoder_type="per_layer_activations", layer_idx=None),
    }


def classes_in(value: Any) -> Iterator[type]:
    """Every class of a package that is not there, in a value and the states below it."""
    if isinstance(value, dict | list | tuple | set):
        for one in value.values() if isinstance(value, dict) else value:
            yield from classes_in(one)
    elif type(value).__module__.partition(".")[0] in ("ctx_to_lora", "peft"):
        yield type(value)
        yield from classes_in(list(vars(value).values()))


@contextmanager
def importable(*things: Any) -> Iterator[None]:
    """Classes and functions are where they say they are, for as long as this lasts."""
    before = dict(sys.modules)
    made: dict[str, ModuleType] = {}
    for thing in things:
        parts = thing.__module__.split(".")
        for name in (".".join(parts[: i + 1]) for i in range(len(parts))):
            made.setdefault(name, ModuleType(name))
        setattr(made[thing.__module__], thing.__name__, thing)
    try:
        sys.modules.update(made)
        yield
    finally:
        for name in sys.modules.keys() - before.keys():
            del sys.modules[name]
        sys.modules.update(before)


def save(path: Path, contents: Any) -> Path:
    with importable(*classes_in(contents)):
        torch.save(contents, path)
    return path


def save_released(path: Path, weights: dict[str, Tensor], config: HypernetworkConfig, **changes: Any) -> Path:
    """A released checkpoint; `changes` are those of `settings`."""
    changes = {"lora": {}, "aggregator": {}} | changes
    return save(path, published(weights, config) | settings(config, **changes))


def with_program(path: Path, program: bytes) -> None:
    """Puts another pickle into a checkpoint, checksums right."""
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, program if name.endswith("data.pkl") else data)


def program_of(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
