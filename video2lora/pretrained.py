"""A frozen VLM from `tiny` (ships with the project), a folder or a hub name: checked, named by its weights, and ready to be asked.

transformers fills weights that a folder lacks with random ones, and says so in a log; here that is an error, as is everything else that
would make a model that is not the one asked for. `FAMILIES` are the models we know.
"""

import hashlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2_5_VLForConditionalGeneration,
    SmolVLMForConditionalGeneration,
)

from video2lora.family import Family
from video2lora.qwen2_5_vl import Qwen25VL
from video2lora.smolvlm import SmolVLM
from video2lora.vlm import FrozenVLM

FAMILIES: dict[type[PreTrainedModel], Callable[[Any, PreTrainedTokenizerBase], Family]] = {
    SmolVLMForConditionalGeneration: SmolVLM,
    Qwen2_5_VLForConditionalGeneration: Qwen25VL,
}


def load_vlm(model: str = "tiny", *, revision: str | None = None, dtype: str = "float32", device: str = "cpu") -> FrozenVLM:
    """`tiny`, a local folder, or a hub name at a revision.

    Raises ValueError if there is no such model, its files are damaged or lack weights, it is of no family we know, or a revision is
    asked of what has none.
    """
    path = vlm_path(model)
    if revision is not None and Path(path).is_dir():
        raise ValueError(f"vlm.revision: got {revision!r} for {model!r}, which is a folder and has no revisions; leave it out")
    try:
        loaded, report = AutoModelForImageTextToText.from_pretrained(
            path, revision=revision, dtype=getattr(torch, dtype), output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        what = "a damaged or unknown model folder" if Path(path).is_dir() else "neither 'tiny', nor a model folder, nor a hub name in reach"
        at = f" at revision {revision!r}" if revision else ""
        raise ValueError(f"vlm.model: got {model!r}{at}, which is {what}: {_first_line(error)}") from error
    if lacking := sorted(report["missing_keys"]):
        raise ValueError(f"vlm.model: {model!r} lacks {len(lacking)} of its weights, {lacking[0]} the first: it would answer at random")
    family = FAMILIES.get(type(loaded))
    if family is None:
        known = ", ".join(kind.__name__ for kind in FAMILIES)
        raise ValueError(
            f"vlm.model: {model!r} is a {type(loaded).__name__}, expected one of {known} (video2lora/family.py says how to add one)"
        )
    loaded.eval().requires_grad_(False).to(device)
    without_cudnn_attention(device)
    return FrozenVLM(family(loaded, tokenizer), model, weights_digest(loaded), revision)


def without_cudnn_attention(device: str) -> None:
    """Have torch leave out cuDNN's attention, which torch 2.13 prefers on Hopper and Blackwell in bfloat16. To be called with CUDA up.

    It is reported to go wrong where a row's mask lets nothing through, as of padding: NaN (unslothai/unsloth#9848), gradients of NaN
    (pytorch#196678), wrong greedy text with few KV heads (pytorch#193893). From the reports: never seen by us, who have had no such GPU.
    """
    if torch.device(device).type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def vlm_path(model: str) -> str:
    """Where transformers and vLLM find a model: the folder that ships for `tiny`, else what was given."""
    return str(resources.files("video2lora.tiny") / "vlm") if model == "tiny" else model


def weights_digest(module: nn.Module) -> str:
    """A hash of all weights by name, rounded to bfloat16, so that it is the same in whatever dtype they were loaded: what adapters
    and checkpoints are tied to."""
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
