"""A released checkpoint (`.pt` of Frames2LoRA) -> our config and weights; its names, shapes and orientation live here and nowhere else.

Such a file is one dict: tensors under the published names, the VLM's name, and two settings objects of packages that we do not import
(`inert.py`). Every size is read from the tensors. The settings decide what no tensor shows: the scaling (`lora_alpha`, multiplied
directly), whether the static adapter is used (`use_bias`), and, where there is no static adapter, how a head's rows split into A and B;
a variant of the network that ours is not is refused by its setting. Heads are 128 wide in all of them: their number is the rest.

With one target module the head is [n_layers, d_latent, d_in + d_out]. With several it is [n_layers, n_modules, d_latent, d_rows], modules
in the order of their names, d_rows that of the largest: a smaller module leaves its last rows unused, and we leave them out.
"""

import math
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from video2lora.hypernetwork import Hypernetwork, HypernetworkConfig, checked_config
from video2lora.inert import Inert, read_inert

D_HEAD = 128  # width of every attention head of the published network
PACKAGES = ("ctx_to_lora", "peft")  # whose objects released checkpoints hold
SETTINGS = ("base_model_name_or_path", "hypernet_config", "ctx_encoder_args")  # what stands beside the tensors
PERCEIVER = "aggregator.perceiver"
COMPILED = "_orig_mod."  # torch.compile puts it before every name
OUTPUT_TO_RESIDUAL = ("down_proj", "o_proj")  # modules whose d_out is d_vlm; of all others in a decoder layer it is d_in
# Settings of the published code that choose another network than the released ones; without the setting, the released one is meant.
VARIANTS: Mapping[tuple[str, ...], Any] = {
    ("hypernet_config", "per_rank_gen"): True,
    ("hypernet_config", "per_layer_processing"): False,
    ("hypernet_config", "extra_modules"): [],
    ("hypernet_config", "aggregator_config", "layer_to_layer_ctx_encoder"): True,
    ("hypernet_config", "aggregator_config", "num_self_attn_per_block"): 0,
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
N_NAMES_SHOWN = 3
MAX_LISTED = 4096  # entries of a setting, layers of a VLM among them
BLOCK_NAMES = {
    "norm_latents.weight": "input_latents_layernorm.weight",
    "norm_context.weight": "input_context_layernorm.weight",
    "attention.q_proj.weight": "self_attn.q_proj.weight",
    "attention.k_proj.weight": "self_attn.k_proj.weight",
    "attention.v_proj.weight": "self_attn.v_proj.weight",
    "attention.o_proj.weight": "self_attn.o_proj.weight",
    "norm_attended.weight": "post_attention_layernorm.weight",
    "norm_before_mlp.weight": "pre_ff_layernorm.weight",
    "mlp.gate_proj.weight": "mlp.gate_proj.weight",
    "mlp.up_proj.weight": "mlp.up_proj.weight",
    "mlp.down_proj.weight": "mlp.down_proj.weight",
    "norm_after_mlp.weight": "post_ff_layernorm.weight",
}
PRE_HEAD_NAMES = {"norm_before": "0", "up_proj": "2", "down_proj": "5", "norm_after": "6"}  # 1, 3 and 4 have no weights


@dataclass(frozen=True)
class Released:
    """What a released checkpoint holds. `base_model` is the VLM it was trained on, in the words of whoever trained it."""

    path: Path
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any]

    @property
    def base_model(self) -> str | None:
        name = self.settings.get("base_model_name_or_path")
        return name if isinstance(name, str) else None

    def setting(self, *path: str) -> Any:
        """What the settings objects say under this path; None where they say nothing."""
        found: Any = self.settings
        for name in path:
            state = found.state if isinstance(found, Inert) else found
            found = state.get(name) if isinstance(state, Mapping) else None
        return found


def read_released(path: Path) -> Released:
    """Tensors (mapped from the file) and settings. Raises ValueError for a file that holds anything else, or asks for code."""
    contents = read_inert(path, packages=PACKAGES)
    if not isinstance(contents, dict):
        raise ValueError(f"{path}: holds a {type(contents).__name__}, expected a dict of tensors by name")
    tensors: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, value in contents.items():
        if name in SETTINGS:
            continue
        if not isinstance(name, str) or not (name.isascii() and name.isprintable()):
            raise ValueError(f"{path}: holds something under {reprlib.repr(name)}, expected names of tensors")
        if type(value) not in (Tensor, nn.Parameter):
            what = "an object" if isinstance(value, Inert) else f"a {type(value).__name__}"
            raise ValueError(
                f"{path}: {reprlib.repr(name)} is {what}, expected a tensor; beside tensors a checkpoint has {', '.join(SETTINGS)}"
            )
        tensor = _plain(value, f"{path}: {name}")
        # Blocks that share weights, in a variant of the published network, are the same numbers as blocks of their own.
        memory = tensor.untyped_storage().data_ptr()
        tensors[name.removeprefix(COMPILED)] = tensor.clone() if memory in taken else tensor
        taken.add(memory)
    dtypes = sorted({str(tensor.dtype) for tensor in tensors.values()})
    if len(dtypes) > 1:
        raise ValueError(f"{path}: tensors are {', '.join(dtypes)}, expected one dtype")
    return Released(path, tensors, {name: contents[name] for name in SETTINGS if name in contents})


def config_of(released: Released) -> HypernetworkConfig:
    """Sizes from the tensors, the rest from the settings.

    Raises ValueError naming the file and the tensor or setting: one is missing, or does not fit the others or the network that we have.
    """
    for path, supported in VARIANTS.items():
        value = _comparable(released.setting(*path))
        if value is not None and (type(value) is not type(supported) or value != supported):
            raise ValueError(
                f"{released.path}: {'.'.join(path)} is {reprlib.repr(value)}, expected {supported!r} as in the released checkpoints"
            )
    modules = sorted(name.removeprefix("scaler_A.") for name in released.tensors if name.startswith("scaler_A."))
    if not modules:
        raise ValueError(f"{released.path}: has no scaler_A.MODULE, so it is no checkpoint of the published hypernetwork")
    _, n_layers, r, _ = _shape(released, f"scaler_A.{modules[0]}", n_axes=4)
    n_latents, d_latent = _shape(released, f"{PERCEIVER}.encoder.latents_q", n_axes=2)
    _, d_vlm = _shape(released, f"{PERCEIVER}.modality_projection.gate_proj.weight", n_axes=2)
    values = {
        "n_layers": n_layers,
        "d_vlm": d_vlm,
        "target_modules": _module_sizes(released, modules, d_vlm),
        "r": r,
        "n_latents": n_latents,
        "n_blocks": _count(released, re.escape(PERCEIVER) + r"\.encoder\.layers\.(\d+)\."),
        "d_latent": d_latent,
        "n_heads": _n_heads(released, "q_proj"),
        "n_kv_heads": _n_heads(released, "k_proj"),
        "d_head": D_HEAD,
        "n_pre_head_blocks": _count(released, r"layers\.(\d+)\."),
        "scaling": _scaling(released, r),
        "static_adapter": released.setting("hypernet_config", "use_bias") is not False and f"bias_A.{modules[0]}" in released.tensors,
    }
    config = checked_config(values, where=str(released.path))
    _check_settings(released, config)
    return config


def our_weights(tensors: Mapping[str, Tensor], config: HypernetworkConfig, *, where: str) -> dict[str, Tensor]:
    """Published names, shapes and orientation -> the state dict of our Hypernetwork of `config`, a view of `tensors` wherever it can be.

    Raises ValueError with the published names of tensors that are missing, unknown or of another shape.
    """
    names = dict(_names(config))
    unused = () if config.static_adapter else tuple(f"bias_{x}.{module}" for x in "AB" for module in config.target_modules)
    missing = sorted(set(names.values()) - tensors.keys())
    unknown = sorted(tensors.keys() - set(names.values()) - set(unused))
    if missing or unknown:
        raise ValueError(f"{where}: tensors missing: {_some(missing)}; tensors unknown: {_some(unknown)}")
    weights = {}
    for ours, (shape, to_ours) in _conversions(config).items():
        tensor = tensors[names[ours]]
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{where}: {names[ours]} is {tuple(tensor.shape)}, expected {shape} from the other tensors")
        weights[ours] = to_ours(tensor).contiguous()
    return weights


def _names(config: HypernetworkConfig) -> Iterator[tuple[str, str]]:
    """Each tensor of ours and where it is in a released checkpoint; the several heads are all in one tensor."""
    for part in ("gate_proj", "up_proj", "down_proj"):
        yield f"perceiver.projection.{part}.weight", f"{PERCEIVER}.modality_projection.{part}.weight"
    yield from _resampler_names("encoder", config.n_blocks)
    yield from _resampler_names("decoder", 1)
    for i in range(config.n_pre_head_blocks):
        for ours, published in PRE_HEAD_NAMES.items():
            for kind in ("weight", "bias"):
                yield f"pre_head.{i}.{ours}.{kind}", f"layers.{i}.mlp.{published}.{kind}"
    for module in config.target_modules:
        yield f"heads.{module}.weight", "head.weight"
        for x in "AB":
            yield f"heads.{module}.scale_{x.lower()}", f"scaler_{x}.{module}"
            if config.static_adapter:
                yield f"static.{module}.lora_{x.lower()}", f"bias_{x}.{module}"


def _resampler_names(resampler: str, n_blocks: int) -> Iterator[tuple[str, str]]:
    here, there = f"perceiver.{resampler}", f"{PERCEIVER}.{resampler}"
    yield f"{here}.latents", f"{there}.latents_q"
    yield f"{here}.norm.weight", f"{there}.layernorm.weight"
    for i in range(n_blocks):
        for ours, published in BLOCK_NAMES.items():
            yield f"{here}.blocks.{i}.{ours}", f"{there}.layers.{i}.{published}"


def _conversions(config: HypernetworkConfig) -> dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]]:
    """Of each tensor of ours: the published shape, and what makes it ours."""
    with torch.device("meta"):
        expected = Hypernetwork(config).state_dict()
    modules = sorted(config.target_modules)
    d_rows = max(d_in + d_out for d_in, d_out in config.target_modules.values())

    def head(module: str) -> Callable[[Tensor], Tensor]:
        i, d = modules.index(module), sum(config.target_modules[module])
        return lambda tensor: tensor if len(modules) == 1 else tensor[:, i, :, :d].clone(memory_format=torch.contiguous_format)

    found: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {}
    for name, tensor in expected.items():
        shape = tuple(tensor.shape)
        if name.startswith("heads.") and name.endswith(".weight"):
            axes = (len(modules),) if len(modules) > 1 else ()
            found[name] = (config.n_layers, *axes, config.d_latent, d_rows), head(name.split(".")[1])
        elif ".scale_" in name:
            found[name] = (1, *shape), lambda tensor: tensor[0]
        elif name.startswith("static.") and name.endswith(".lora_b"):
            found[name] = (shape[0], shape[2], shape[1]), lambda tensor: tensor.mT
        else:
            found[name] = shape, lambda tensor: tensor
    return found


def _shape(released: Released, name: str, *, n_axes: int) -> tuple[int, ...]:
    tensor = released.tensors.get(name)
    if tensor is None:
        raise ValueError(f"{released.path}: tensor {name} is missing")
    if tensor.ndim != n_axes:
        raise ValueError(f"{released.path}: {name} is {tuple(tensor.shape)}, expected {n_axes} axes")
    return tuple(tensor.shape)


def _count(released: Released, pattern: str) -> int:
    return len({match[1] for name in released.tensors if (match := re.match(pattern, name))})


def _n_heads(released: Released, projection: str) -> int:
    name = f"{PERCEIVER}.encoder.layers.0.self_attn.{projection}.weight"
    rows, _ = _shape(released, name, n_axes=2)
    if rows == 0 or rows % D_HEAD:
        raise ValueError(f"{released.path}: {name} has {rows} rows, expected a multiple of {D_HEAD}, the width of published heads")
    return rows // D_HEAD


def _module_sizes(released: Released, modules: list[str], d_vlm: int) -> dict[str, tuple[int, int]]:
    """(d_in, d_out) of each target module: from the static adapter, else the settings, else the one head's rows and d_vlm."""
    told = _told_sizes(released)
    sizes: dict[str, tuple[int, int]] = {}
    for module in modules:
        if f"bias_A.{module}" in released.tensors:
            sizes[module] = (
                _shape(released, f"bias_A.{module}", n_axes=3)[2],
                _shape(released, f"bias_B.{module}", n_axes=3)[2],
            )
        elif module in told:
            sizes[module] = told[module]
        elif len(modules) == 1:
            other = _shape(released, "head.weight", n_axes=3)[2] - d_vlm
            sizes[module] = (other, d_vlm) if module in OUTPUT_TO_RESIDUAL else (d_vlm, other)
        else:
            raise ValueError(
                f"{released.path}: has neither bias_A.{module} nor hypernet_config.feature_sizes to tell d_in and d_out of one of several "
                f"target modules ({', '.join(modules)})"
            )
        if module in told and told[module] != sizes[module]:
            raise ValueError(f"{released.path}: {module} has (d_in, d_out) = {sizes[module]}, hypernet_config.feature_sizes {told[module]}")
    return sizes


def _told_sizes(released: Released) -> dict[str, tuple[int, int]]:
    match released.setting("hypernet_config", "feature_sizes"):
        case (dict() as d_in, dict() as d_out) if all(type(n) is int for sizes in (d_in, d_out) for n in sizes.values()):
            return {str(name): (d_in[name], d_out[name]) for name in d_in.keys() & d_out.keys()}
    return {}


def _scaling(released: Released, r: int) -> float | None:
    """`lora_alpha`, which the published code multiplies by as it is; None where that is 2 r^1.5 or is not told."""
    value = released.setting("hypernet_config", "lora_config", "lora_alpha")
    if value is None:
        return None
    if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{released.path}: hypernet_config.lora_config.lora_alpha is {reprlib.repr(value)}, expected a number above 0")
    return None if math.isclose(value, 2 * r**1.5) else float(value)


def _check_settings(released: Released, config: HypernetworkConfig) -> None:
    """Raises ValueError where the settings speak of another adapter than the tensors make."""
    said: dict[tuple[str, ...], Any] = {
        ("layer_indices",): list(range(config.n_layers)),
        ("lora_config", "target_modules"): sorted(config.target_modules),
        ("lora_config", "r"): config.r,
    }
    for path, found in said.items():
        value = _comparable(released.setting("hypernet_config", *path))
        if value is not None and (type(value) is not type(found) or value != found):
            raise ValueError(
                f"{released.path}: hypernet_config.{'.'.join(path)} is {reprlib.repr(value)}, but {reprlib.repr(found)} in the tensors"
            )


def _comparable(value: Any) -> Any:
    """A plain value, or a list of such (a set sorted), as it is; anything else as a text, which equals nothing that we expect."""
    if type(value) is Tensor and value.device.type == "cpu" and value.layout is torch.strided and value.numel() <= MAX_LISTED:
        value = value.tolist()
    if isinstance(value, set | frozenset):
        value = sorted(map(str, value))
    if isinstance(value, list | tuple) and len(value) <= MAX_LISTED and all(type(one) in (int, str) for one in value):
        return list(value)
    return value if value is None or type(value) in (bool, int, float, str) else reprlib.repr(value)


def _plain(tensor: Tensor, where: str) -> Tensor:
    """Without whatever the pickle hung on it. Raises ValueError for what is no dense floating-point tensor with memory of its own size."""
    tensor = Tensor.detach(tensor)
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.dtype not in DTYPES:
        raise ValueError(f"{where} is {tensor.dtype}, {tensor.layout}, on {tensor.device}; expected dense {' or '.join(map(str, DTYPES))}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"{where} is {tuple(tensor.shape)}, more than the {tensor.untyped_storage().nbytes()} bytes the file has for it")
    return tensor


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:N_NAMES_SHOWN]) or "none"
    return shown + (f" and {len(names) - N_NAMES_SHOWN} more" if len(names) > N_NAMES_SHOWN else "")
