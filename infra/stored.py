"""An adapter on disk -> one that answers: with the static part that its hypernetwork keeps, and the VLM it was made for."""

import gc
import os
from importlib import resources
from pathlib import Path

import torch

from infra.errors import BadInputError
from infra.fetch import fetched, public_name
from infra.progress import say
from infra.reader import content_of
from video2lora import api
from video2lora.adapter import with_static
from video2lora.checkpoint import hypernetwork_hash, load_hypernetwork
from video2lora.frames_folder import read_folder
from video2lora.lora_algebra import compress, concatenate
from video2lora.pretrained import load_vlm
from video2lora.video import Frames, Sampling, decode
from video2lora.vlm import FrozenVLM


def whole(folder: Path, *, hypernetwork: str | None = None) -> api.Adapter:
    """The adapter in a folder; `hypernetwork` says where the one that made it is now, if it moved.

    Raises BadInputError where it is not found, ValueError for what is no adapter, or another hypernetwork.
    """
    adapter = api.load_adapter(folder)
    if adapter.has_all:
        return adapter
    name = hypernetwork or str(adapter.provenance.get("hypernetwork"))
    place = Path(str(resources.files("video2lora.tiny") / "hypernetwork")) if name == "tiny" else Path(name)
    if not place.is_dir():
        raise BadInputError(
            f"{folder} was stored without the static adapter, and its hypernetwork is not at {name!r}: say where with --hypernetwork"
        )
    return with_static(adapter, load_hypernetwork(place).static_lora(), hypernetwork_digest=hypernetwork_hash(place))


def release_memory(device: str) -> None:
    """Give back what models that are gone have held of a GPU, for another process to have."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def vlm_of(adapter: api.Adapter, *, model: str | None, revision: str | None, device: str, dtype: str | None) -> FrozenVLM:
    """The VLM it was made for, or the same weights from another place; in the dtype it was made in, unless another is asked for.

    Raises ValueError where there is no such model.
    """
    made = adapter.provenance
    if model is None:
        model, revision = str(made["vlm"]), revision or made.get("vlm_revision")
    return load_vlm(model, revision=revision, device=device, dtype=dtype or made.get("vlm_dtype", "float32"))


def compressed(adapter: api.Adapter, rank: int) -> api.Adapter:
    """At most of this rank, with the relative error in its provenance; one that is comes back as it is.

    The static part stays apart where the rank leaves room for it, so that the adapter can still be composed; else both are compressed
    together.
    """
    if adapter.lora.r <= rank:
        return adapter
    static_r = adapter.provenance.get("static_r")
    if static_r is not None and rank > static_r:
        lora, loss = compress(adapter.generated, rank - static_r)
        lora = concatenate([lora, adapter.static]) if static_r else lora
    else:
        lora, loss = compress(adapter.lora, rank)
        static_r = None
    facts = {"static_r": static_r, "compression_error": round(float(loss.total[0]), 6)}
    return api.Adapter(lora=lora, provenance={**adapter.provenance, **facts})


def frames_like(adapter: api.Adapter, clip: str, *, pictures_per_s: float) -> Frames:
    """Of `clip`, the frames that were read of the adapter's video; says so if it is another one.

    Raises VideoDecodeError, StorageError; BadInputError where the adapter does not say how its frames were chosen.
    """
    made = adapter.provenance
    if "sampling" not in made or "longest_edge_px" not in made:
        raise BadInputError(f"the adapter of video {made['video_id']!r} does not say how its frames were chosen: no baseline for it")
    sampling, longest_edge_px = Sampling(**made["sampling"]), made["longest_edge_px"]
    with fetched(clip) as path:
        video_id = content_of(path)
        if video_id != made["video_id"]:
            say(f"note: {public_name(clip)} is video {video_id}, and the adapter is of {made['video_id']}")
        if os.path.isdir(path):
            return read_folder(Path(path), sampling, longest_edge_px=longest_edge_px, fps=pictures_per_s)
        return decode(path, sampling, longest_edge_px=longest_edge_px)


def check_device(device: str) -> None:
    """Raises BadInputError for a GPU where PyTorch sees none."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BadInputError(f"--device: got {device!r}, but PyTorch {torch.__version__} sees no GPU here; expected cpu")


def absolute(model: str) -> str:
    """A folder's full path, for provenance outlives the working directory; other names as they are."""
    return os.path.abspath(model) if model != "tiny" and os.path.isdir(model) else model
