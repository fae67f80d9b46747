"""LoRA in PEFT's words on disk: `adapter_config.json` and `adapter_model.safetensors`, for the decoder layers of a VLM of transformers.

PEFT divides lora_alpha by the rank and we multiply directly, so lora_alpha is scaling * rank. target_modules is an expression that matches
the text model only: the vision tower has modules of the same last names. A key that matches nothing would load silently and answer as
the base model; `video2lora.export` proves each export's effect.
"""

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from video2lora.checkpoint import read_json, read_tensors, save_tensors, write_json
from video2lora.lora_algebra import Lora

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
BLOCK_OF_MODULE = {  # where the decoder layers of Llama (SmolVLM's) and Qwen keep their linear modules
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}
KEY = re.compile(r"base_model\.model\.(\w+(?:\.\w+)*)\.(\d+)\.(\w+)\.(\w+)\.lora_(A|B)\.weight")


def write_peft(lora: Lora, folder: Path, *, layers_path: str, base_model: str) -> None:
    """Two files into a folder that is there, factors in their own dtype. `layers_path` is where the VLM keeps its decoder layers.

    Raises ValueError where a module has no known place in a decoder layer, or a factor is not finite.
    """
    unknown = sorted(lora.lora_a.keys() - BLOCK_OF_MODULE.keys())
    if unknown:
        raise ValueError(f"modules {unknown} have no known place in a decoder layer; known: {sorted(BLOCK_OF_MODULE)}")
    tensors = {}
    for name, block in BLOCK_OF_MODULE.items():
        if name not in lora.lora_a:
            continue
        a, b = lora.lora_a[name], lora.lora_b[name]
        if not (a.isfinite().all() and b.isfinite().all()):
            raise ValueError(f"{name}: factors are not all finite in {a.dtype}; float16 holds numbers up to 65504")
        for layer in range(lora.n_layers):
            prefix = f"base_model.model.{layers_path}.{layer}.{block}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = _own_copy(a[0, layer])
            tensors[f"{prefix}.lora_B.weight"] = _own_copy(b[0, layer])
    write_json(_peft_config(lora, layers_path=layers_path, base_model=base_model), folder / CONFIG_FILE)
    save_tensors(tensors, folder / WEIGHTS_FILE, beside=folder / CONFIG_FILE, metadata={"format": "pt"})


def read_peft(folder: Path) -> tuple[Lora, str]:
    """What `write_peft` wrote, batch 1, on the CPU, and the path of the layers it is for.

    Raises ValueError naming what is wrong: a kind of LoRA that is not plain, keys that are not those of decoder layers, a layer missing,
    shapes that disagree.
    """
    r, scaling = _read_peft_config(folder / CONFIG_FILE)
    path = folder / WEIGHTS_FILE
    factors: dict[tuple[str, str], dict[int, Tensor]] = {}
    layers_paths = set()
    for key, tensor in read_tensors(path).items():
        match = KEY.fullmatch(key)
        if match is None or BLOCK_OF_MODULE.get(match[4]) != match[3]:
            raise ValueError(f"{path}: key {key!r} is not of the form {KEY.pattern}")
        if not tensor.is_floating_point():
            raise ValueError(f"{path}: {key!r} is {tensor.dtype}, expected floating-point numbers")
        layers_paths.add(match[1])
        factors.setdefault((match[4], match[5]), {})[int(match[2])] = tensor
    if len(layers_paths) != 1:
        raise ValueError(
            f"{path}: keys are of {sorted(layers_paths)}, expected layers of one path" if factors else f"{path}: holds no tensors"
        )
    lora = Lora(
        lora_a={name: _stacked(f, f"{path}: lora_A of {name}") for (name, ab), f in factors.items() if ab == "A"},
        lora_b={name: _stacked(f, f"{path}: lora_B of {name}") for (name, ab), f in factors.items() if ab == "B"},
        scaling=scaling,
    )
    if lora.r != r:
        raise ValueError(f"{path}: factors of rank {lora.r}, but r is {r} in {CONFIG_FILE}")
    return lora, layers_paths.pop()


def _peft_config(lora: Lora, *, layers_path: str, base_model: str) -> dict[str, Any]:
    lora_alpha = lora.scaling * lora.r
    modules = "|".join(rf"{BLOCK_OF_MODULE[name]}\.{name}" for name in sorted(lora.lora_a))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.r,
        "lora_alpha": int(lora_alpha) if lora_alpha == int(lora_alpha) else lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": rf".*{re.escape(layers_path)}\.\d+\.({modules})",
        "inference_mode": True,
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
    }


def _read_peft_config(path: Path) -> tuple[int, float]:
    config = read_json(path)
    if config.get("peft_type") != "LORA" or config.get("use_rslora") or config.get("use_dora"):
        raise ValueError(
            f"{path}: expected plain LoRA, got peft_type {config.get('peft_type')!r}, "
            f"use_rslora {config.get('use_rslora')!r}, use_dora {config.get('use_dora')!r}"
        )
    r, lora_alpha = config.get("r"), config.get("lora_alpha")
    if type(r) is not int or r < 1 or not isinstance(lora_alpha, int | float) or not math.isfinite(lora_alpha):
        raise ValueError(f"{path}: expected r, a positive whole number, and lora_alpha, a number; got {r!r} and {lora_alpha!r}")
    return r, lora_alpha / r


def _stacked(by_layer: dict[int, Tensor], where: str) -> Tensor:
    n_layers = max(by_layer) + 1
    missing = sorted(set(range(n_layers)) - by_layer.keys())
    shapes = sorted({tuple(tensor.shape) for tensor in by_layer.values()})
    if missing or len(shapes) > 1:
        raise ValueError(f"{where}: layers missing: {missing}; shapes {shapes}, expected one")
    return torch.stack([by_layer[layer] for layer in range(n_layers)])[None]


def _own_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
