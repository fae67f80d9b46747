"""A video's LoRA on disk: a folder that PEFT and vLLM load, and beside it where the LoRA came from.

Files: `adapter_config.json` and `adapter_model.safetensors` as PEFT writes them for SmolVLM, and `provenance.json`.
The generated and the static adapter are already one, of rank 2r, for PEFT knows one pair of factors per module. PEFT
divides lora_alpha by the rank and we multiply directly, so lora_alpha is scaling * rank.

target_modules is an expression that matches the text model only: the vision tower has modules of the same last names.
A key that matches nothing would load silently and answer as the base model; the tests therefore compare answers.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from video2lora.checkpoint import new_folder, read_json, read_tensors, write_json
from video2lora.lora import Lora

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PROVENANCE_FILE = "provenance.json"
REQUIRED_PROVENANCE = ("video_id", "vlm")
TEXT_LAYERS = "model.text_model.layers"  # path of the decoder layers in SmolVLMForConditionalGeneration
BLOCK_OF_MODULE = {  # where Llama's decoder layer, which is SmolVLM's, keeps its linear modules
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}
KEY = re.compile(rf"base_model\.model\.{re.escape(TEXT_LAYERS)}\.(\d+)\.(\w+)\.(\w+)\.lora_(A|B)\.weight")


@dataclass(frozen=True)
class Adapter:
    """One video's LoRA (batch 1, static adapter included) and its provenance, JSON values by name.

    Provenance has at least `video_id` and `vlm`, the name or path of the VLM it was made for; hashes of the VLM and the
    hypernetwork, sampling and so on as the maker knows them. Raises ValueError for another batch or a missing name.
    """

    lora: Lora
    provenance: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.lora.batch != 1:
            raise ValueError(f"an adapter holds one video's LoRA, got a batch of {self.lora.batch}")
        missing = [name for name in REQUIRED_PROVENANCE if not isinstance(self.provenance.get(name), str)]
        if missing:
            raise ValueError(f"provenance lacks {missing} (as text); it has {sorted(self.provenance)}")


def save_adapter(adapter: Adapter, folder: Path) -> None:
    """Writes a PEFT folder, factors in their own dtype; replaces an adapter of ours that is there.

    Raises ValueError where `folder` holds something else, or a module has no known place in a decoder layer.
    """
    lora = adapter.lora
    unknown = sorted(lora.lora_a.keys() - BLOCK_OF_MODULE.keys())
    if unknown:
        raise ValueError(f"modules {unknown} have no known place in a decoder layer; known: {sorted(BLOCK_OF_MODULE)}")
    tensors = {}
    for name, block in BLOCK_OF_MODULE.items():
        if name not in lora.lora_a:
            continue
        for layer in range(lora.n_layers):
            prefix = f"base_model.model.{TEXT_LAYERS}.{layer}.{block}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = _own_copy(lora.lora_a[name][0, layer])
            tensors[f"{prefix}.lora_B.weight"] = _own_copy(lora.lora_b[name][0, layer])
    with new_folder(folder, marker=PROVENANCE_FILE) as new:
        write_json(_peft_config(adapter), new / CONFIG_FILE)
        write_json(adapter.provenance, new / PROVENANCE_FILE)
        save_file(tensors, new / WEIGHTS_FILE, metadata={"format": "pt"})
        shutil.copymode(new / CONFIG_FILE, new / WEIGHTS_FILE)  # safetensors lets only the owner read


def load_adapter(folder: Path) -> Adapter:
    """Reads what `save_adapter` wrote, on the CPU.

    Raises ValueError naming what is wrong: no adapter, a kind of LoRA that is not plain, keys that are not those of a
    SmolVLM text model, a layer missing, shapes that disagree.
    """
    absent = [name for name in (CONFIG_FILE, WEIGHTS_FILE, PROVENANCE_FILE) if not (folder / name).is_file()]
    if absent:
        raise ValueError(f"{folder} is not an adapter of video2lora: it has no {', '.join(absent)}")
    r, scaling = _read_peft_config(folder / CONFIG_FILE)
    path = folder / WEIGHTS_FILE
    factors: dict[tuple[str, str], dict[int, Tensor]] = {}
    for key, tensor in read_tensors(path).items():
        match = KEY.fullmatch(key)
        if match is None or BLOCK_OF_MODULE.get(match[3]) != match[2]:
            raise ValueError(f"{path}: key {key!r} is not of the form {KEY.pattern}")
        factors.setdefault((match[3], match[4]), {})[int(match[1])] = tensor
    if not factors:
        raise ValueError(f"{path}: holds no tensors")
    lora = Lora(
        lora_a={name: _stacked(f, f"{path}: lora_A of {name}") for (name, ab), f in factors.items() if ab == "A"},
        lora_b={name: _stacked(f, f"{path}: lora_B of {name}") for (name, ab), f in factors.items() if ab == "B"},
        scaling=scaling,
    )
    if lora.r != r:
        raise ValueError(f"{path}: factors of rank {lora.r}, but r is {r} in {CONFIG_FILE}")
    return Adapter(lora=lora, provenance=read_json(folder / PROVENANCE_FILE))


def _peft_config(adapter: Adapter) -> dict[str, Any]:
    lora = adapter.lora
    lora_alpha = lora.scaling * lora.r
    modules = "|".join(rf"{BLOCK_OF_MODULE[name]}\.{name}" for name in sorted(lora.lora_a))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.provenance["vlm"],
        "r": lora.r,
        "lora_alpha": int(lora_alpha) if lora_alpha == int(lora_alpha) else lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": rf".*text_model\.layers\.\d+\.({modules})",
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
    if not isinstance(r, int) or r < 1 or not isinstance(lora_alpha, int | float):
        raise ValueError(f"{path}: expected r, a positive whole number, and lora_alpha; got {r!r} and {lora_alpha!r}")
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
