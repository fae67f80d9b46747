"""A released checkpoint (`.pt` of Frames2LoRA) -> a hypernetwork of ours: safetensors and config.json, for the VLM it was trained for.

Reads    the `.pt`, of which nothing is run or imported (video2lora/published.py), and the VLM, for its sizes and the digest of its weights.
Writes   DIR/hypernetwork.safetensors and DIR/config.json, with where they come from and the frames the released ones were trained on.
Command  `video2lora import-checkpoint FILE.pt --vlm NAME_OR_PATH [--revision R] -o DIR`
Cost     the VLM is loaded once, in bf16: a minute and 4.4 GB of memory for the 2.2B; the checkpoint's 0.9 GB are mapped.

Sizes are all that can be compared: a released checkpoint names its VLM but not its weights. So a fine-tuned VLM of the same sizes is taken,
and its digest becomes what `load` asks for.
"""

import hashlib
from pathlib import Path
from typing import Any, Final

from infra.config import FramesSettings, VLMSettings
from infra.errors import BadInputError
from video2lora.checkpoint import hypernetwork_of, save_hypernetwork
from video2lora.hypernetwork import HypernetworkConfig
from video2lora.pretrained import load_vlm
from video2lora.published import Released, read_released
from video2lora.sampling import Sampling
from video2lora.vlm import FrozenVLM

DTYPE: Final = "bfloat16"  # of the VLM that the released hypernetworks read; published implementation
FRAMES = FramesSettings(sampling=Sampling(policy="published", n_frames=12, fps=1.0), longest_edge_px=384)  # published training script


def run(file: str, *, vlm: str, revision: str | None, output: Path) -> str:
    """What was made, in a line. `vlm` is a local folder or a hub name at `revision`.

    Raises BadInputError if the file is no released checkpoint, the VLM is not there, its sizes are others, or `output` is something else.
    """
    try:
        released = read_released(Path(file))
        hypernetwork = hypernetwork_of(released)
        is_folder = vlm != "tiny" and Path(vlm).is_dir()
        frozen = load_vlm(str(Path(vlm).resolve()) if is_folder else vlm, revision=revision, dtype=DTYPE)
        check_sizes(hypernetwork.config, frozen, file=file)
        save_hypernetwork(hypernetwork, output, metadata=_metadata(released, frozen))
    except ValueError as error:
        raise BadInputError(str(error)) from error
    config = hypernetwork.config
    n_parameters = sum(parameter.numel() for parameter in hypernetwork.parameters())
    trained_on = f", trained on {released.base_model!a} by its own account" if released.base_model else ""
    return (
        f"{output}: hypernetwork of {file}{trained_on}, for {vlm}: {n_parameters / 1e6:.2f} M parameters, {config.n_layers} layers, "
        f"{', '.join(sorted(config.target_modules))}, rank {config.r}, scaling {config.lora_scaling:g}"
    )


def check_sizes(config: HypernetworkConfig, vlm: FrozenVLM, *, file: str) -> None:
    """Raises ValueError with the checkpoint's sizes and the VLM's where they differ."""
    try:
        modules = vlm.module_sizes(sorted(config.target_modules))
    except ValueError as error:
        raise ValueError(f"{file}: of another VLM than {vlm.name!r}: {error}") from error
    found = {"n_layers": len(vlm.layers), "d_vlm": vlm.d_vlm, **modules}
    made_for = {"n_layers": config.n_layers, "d_vlm": config.d_vlm, **config.target_modules}
    differing = [name for name in made_for if made_for[name] != found[name]]
    if differing:
        raise ValueError(
            f"{file}: made for a VLM of {_listed(made_for, differing)}, got {vlm.name!r} of {_listed(found, differing)}; "
            f"--vlm takes the one it was trained for"
        )


def _listed(sizes: dict[str, Any], names: list[str]) -> str:
    """Sizes in a message; of a module they are (d_in, d_out)."""
    return ", ".join(f"{name} {sizes[name]}" for name in names)


def _metadata(released: Released, vlm: FrozenVLM) -> dict[str, Any]:
    """As training writes it, as far as a released checkpoint tells."""
    with released.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "vlm": VLMSettings(model=vlm.name, revision=vlm.revision, dtype=DTYPE).model_dump(mode="json"),
        "frames": FRAMES.model_dump(mode="json"),
        "vlm_digest": vlm.digest,
        "made_from": {"stage": "import-checkpoint", "file": released.path.name, "sha256": digest, "base_model": released.base_model},
    }
