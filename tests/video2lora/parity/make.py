"""Makes `down_proj.{safetensors,json}` beside it from numbers of the published hypernetwork (Frames2LoRA @27125c7).

Command: `python tests/video2lora/parity/make.py FOLDER`, FOLDER holding its random weights under the names of released
checkpoints, inputs and outputs (shared/parity; see its README). Writes 0.2 MB: the weights under our names, and inputs
and outputs as they are, lora_b transposed to our orientation.

The published attention has 16 heads of 128 whatever the latent width, 1 MB for a latent width of 16. A head of 128 over
latents of 16 has at most rank 16, so it is stored as a head of 16 that computes the same: with K = Q R (orthonormal Q),
queries x Q and keys R give the scores of queries and keys K; likewise values and outputs. sqrt(16 / 128) makes up for
the softmax scale. Done in fp64; our reading of the numbers without this step agrees as well (tried at 1e-6).
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from video2lora.published import D_HEAD, Released, config_of, our_weights


def narrow_heads(weights: dict[str, Tensor], d_latent: int) -> None:
    """Replaces each attention by one of head width `d_latent` that computes the same."""
    for prefix in [name.removesuffix("q_proj.weight") for name in weights if name.endswith("q_proj.weight")]:
        q, k, v, o = (weights[f"{prefix}{x}_proj.weight"].double() for x in "qkvo")
        k_basis, k_small = torch.linalg.qr(k.unflatten(0, (-1, D_HEAD)))
        v_basis, v_small = torch.linalg.qr(v.unflatten(0, (-1, D_HEAD)))
        n_kv_heads = k_basis.shape[0]
        q = q.unflatten(0, (n_kv_heads, -1, D_HEAD))
        o = o.unflatten(1, (n_kv_heads, -1, D_HEAD))
        q = torch.einsum("kgdi,kde->kgei", q, k_basis) * (d_latent / D_HEAD) ** 0.5
        o = torch.einsum("ikgd,kde->ikge", o, v_basis)
        small = (q.flatten(0, 2), k_small.flatten(0, 1), v_small.flatten(0, 1), o.flatten(1))
        for x, weight in zip("qkvo", small, strict=True):
            weights[f"{prefix}{x}_proj.weight"] = weight.float().contiguous()


def main(folder: Path) -> None:
    sizes = json.loads((folder / "down_proj.json").read_text())
    tensors = load_file(folder / "down_proj.safetensors")
    released = {k.removeprefix("weights."): t for k, t in tensors.items() if k.startswith("weights.")}
    weights = our_weights(released, config_of(Released(folder, released, settings={})), where=str(folder))
    narrow_heads(weights, sizes["d_latent"])
    kept = {f"weights.{name}": tensor for name, tensor in weights.items()}
    for name, tensor in tensors.items():
        if name.startswith("outputs."):
            kind, _, factor = name.removeprefix("outputs.").split(".")
            kept[f"outputs.{kind}.lora_{factor.lower()}"] = (tensor.mT if factor == "B" else tensor).contiguous()
        elif not name.startswith("weights."):
            kept[name] = tensor.bool() if name == "inputs.mask" else tensor
    config = {
        "n_layers": sizes["n_layers"],
        "d_vlm": sizes["d_vlm"],
        "target_modules": {"down_proj": [sizes["d_in"]["down_proj"], sizes["d_out"]["down_proj"]]},
        "r": sizes["r"],
        "n_latents": sizes["n_latents"],
        "n_blocks": sizes["n_blocks"],
        "d_latent": sizes["d_latent"],
        "d_head": sizes["d_latent"],
    }
    here = Path(__file__).parent
    save_file(kept, here / "down_proj.safetensors")
    facts = {"config": config, "scaling": sizes["scaling"], "composed_groups": sizes["composed_groups"]}
    (here / "down_proj.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
