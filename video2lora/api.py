"""A clip into an adapter, and questions to it: the whole method in two calls, with no hidden state.

    from video2lora.api import ask, internalize
    adapter = internalize("clip.mp4")
    print(ask(adapter, "Which way does the object move?").text)

`load` gives the frozen VLM with its hypernetwork; pass it as `using` to load it once for many calls. Paper 3.2: the video is read once,
without the question; the answer is generated from the question's text alone.
"""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch

from video2lora.adapter import Adapter, load_adapter, save_adapter
from video2lora.checkpoint import hypernetwork_hash, load_hypernetwork, read_metadata
from video2lora.hypernetwork import Hypernetwork
from video2lora.lora import adapted
from video2lora.video import Frames, Sampling, content_id, decode, short_id
from video2lora.vlm import Answer, FrozenVLM, load_vlm

__all__ = ["Adapter", "Answer", "Internalizer", "ask", "internalize", "load", "load_adapter", "save_adapter"]


@dataclass(frozen=True)
class Internalizer:
    """A frozen VLM, the hypernetwork trained for it, and the frames it was trained on."""

    vlm: FrozenVLM
    hypernetwork: Hypernetwork
    sampling: Sampling
    longest_edge_px: int
    digest: str


def load(hypernetwork: str | Path = "tiny", *, device: str = "cpu") -> Internalizer:
    """The hypernetwork in a folder (`tiny`: the one that ships) and the VLM it names.

    Raises ValueError if the folder is no hypernetwork, or if the VLM's weights are not those it was trained for.
    """
    folder = resources.files("video2lora.tiny") / "hypernetwork" if str(hypernetwork) == "tiny" else hypernetwork
    folder = Path(str(folder))
    metadata = read_metadata(folder)
    vlm = load_vlm(metadata["vlm"]["model"], revision=metadata["vlm"]["revision"], device=device)
    if vlm.digest != metadata["vlm_digest"]:
        raise ValueError(f"{folder}: trained for VLM weights {metadata['vlm_digest']}, got {vlm.digest} from {vlm.name!r}")
    loaded = load_hypernetwork(folder).to(device).eval()
    frames = metadata["frames"]
    return Internalizer(vlm, loaded, Sampling(**frames["sampling"]), frames["longest_edge_px"], hypernetwork_hash(folder))


@torch.no_grad()
def internalize(video: str | Path | Frames, *, using: Internalizer | None = None) -> Adapter:
    """The adapter of one clip (a file, or frames already decoded). Raises VideoDecodeError for a file that is no usable video."""
    using = using or load()
    frames = video
    video_id = ""
    if not isinstance(frames, Frames):
        video_id = short_id(content_id(str(video)))
        frames = decode(str(video), using.sampling, longest_edge_px=using.longest_edge_px)
    features = using.vlm.features([frames])
    lora = using.hypernetwork.with_static(using.hypernetwork(features.hidden, features.mask))
    provenance = {
        "video_id": video_id,
        "vlm": using.vlm.name,
        "vlm_digest": using.vlm.digest,
        "hypernetwork_digest": using.digest,
        "sampling": using.sampling.model_dump(mode="json"),
    }
    return Adapter(lora=lora, provenance=provenance)


def ask(adapter: Adapter, question: str, *, vlm: FrozenVLM | None = None, max_new_tokens: int = 64) -> Answer:
    """The VLM's answer under an adapter. Raises ValueError if the VLM's weights are not those the adapter was made for."""
    vlm = vlm or load_vlm(adapter.provenance["vlm"])
    if vlm.digest != adapter.provenance["vlm_digest"]:
        raise ValueError(f"adapter: made for VLM weights {adapter.provenance['vlm_digest']}, got {vlm.digest} from {vlm.name!r}")
    with adapted(vlm.layers, adapter.lora):
        return vlm.generate(vlm.question_batch([question]), max_new_tokens=max_new_tokens)[0]
