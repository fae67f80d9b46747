"""A clip into an adapter, and questions to it: the whole method in two calls, with no hidden state.

    from video2lora.api import ask, internalize
    adapter = internalize("clip.mp4")
    print(ask(adapter, "Which way does the object move?").text)

`load` gives the frozen VLM with its hypernetwork; pass it as `using` to load it once for many calls. Paper 3.2: the video is read once,
without the question; the answer is generated from the question's text alone.

A video of more frames than `frames_per_chunk` is read in chunks whose adapters are joined in rank (paper 5.6), so 1,024 frames take the
memory of one chunk. The chunks' deltas add up as they are, in any order; their rank adds up too, and `max_rank` compresses it.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from video2lora.adapter import Adapter, check_made_for, load_adapter, save_adapter
from video2lora.checkpoint import hypernetwork_hash, load_hypernetwork, read_metadata
from video2lora.frames_folder import PICTURES_PER_S, folder_id, read_folder
from video2lora.generation import Decoding
from video2lora.hypernetwork import Hypernetwork
from video2lora.lora import adapted
from video2lora.lora_algebra import Lora, compose, compress, select, slice_rank, stack
from video2lora.pretrained import load_vlm
from video2lora.video import Frames, Sampling, content_id, decode, short_id
from video2lora.vlm import Answer, FrozenVLM

__all__ = [
    "Adapter", "Answer", "Decoding", "Internalizer", "ask", "ask_all", "internalize", "internalize_batch",
    "load", "load_adapter", "read_frames", "save_adapter", "stream", "video_id_of",
]  # fmt: skip

FRAMES_PER_CHUNK = 64  # 4,900 of a SmolVLM2's 8,192 positions; what its own processor takes of a video at most


@dataclass(frozen=True)
class Internalizer:
    """A frozen VLM, the hypernetwork trained for it, and the frames it was trained on. `name` is the hypernetwork's, or its folder."""

    vlm: FrozenVLM
    hypernetwork: Hypernetwork
    sampling: Sampling
    longest_edge_px: int
    digest: str
    name: str

    def sampled(self, sampling: Sampling) -> "Internalizer":
        """The same, choosing other frames than it was trained on."""
        return replace(self, sampling=sampling)


def load(
    hypernetwork: str | Path = "tiny",
    *,
    vlm: str | None = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
) -> Internalizer:
    """The hypernetwork in a folder (`tiny`: the one that ships) and the VLM it names, or the same VLM from another place.

    Raises ValueError if the folder is no hypernetwork, or if the VLM's weights are not those it was trained for.
    """
    folder = resources.files("video2lora.tiny") / "hypernetwork" if str(hypernetwork) == "tiny" else hypernetwork
    folder = Path(str(folder))
    metadata = read_metadata(folder)
    try:
        trained, frames = metadata["vlm"], metadata["frames"]
        sampling, longest_edge_px, digest = Sampling(**frames["sampling"]), int(frames["longest_edge_px"]), str(metadata["vlm_digest"])
        model = vlm or trained["model"]
        at = revision if vlm else revision or trained["revision"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: its metadata does not say for which VLM and frames it was trained: {error!r}") from error
    frozen = load_vlm(model, revision=at, dtype=dtype or trained["dtype"], device=device)
    if frozen.digest != digest:
        wanted = f"{trained['model']!r}" + (f" at revision {trained['revision']}" if trained["revision"] else "")
        got = f"{frozen.name!r}" + (f" at revision {at}" if at else "")
        raise ValueError(f"{folder}: trained for the VLM {wanted} with weights {digest}; {got} has weights {frozen.digest}")
    loaded = load_hypernetwork(folder).to(device).eval().requires_grad_(False)
    return Internalizer(frozen, loaded, sampling, longest_edge_px, hypernetwork_hash(folder), str(hypernetwork))


def video_id_of(path: str | Path) -> str:
    """What names a clip (a file, or a folder of pictures): 20 hex digits of its content's SHA-256. Raises VideoDecodeError."""
    return short_id(folder_id(Path(path)) if Path(path).is_dir() else content_id(path))


def read_frames(path: str | Path, *, using: Internalizer, fps: float = PICTURES_PER_S) -> Frames:
    """The frames this hypernetwork reads of a file, or of a folder of pictures that were taken `fps` a second.

    Raises VideoDecodeError for what is no usable video.
    """
    if Path(path).is_dir():
        return read_folder(Path(path), using.sampling, longest_edge_px=using.longest_edge_px, fps=fps)
    return decode(str(path), using.sampling, longest_edge_px=using.longest_edge_px)


def internalize(
    video: str | Path | Frames,
    *,
    using: Internalizer | None = None,
    frames_per_chunk: int = FRAMES_PER_CHUNK,
    max_rank: int | None = None,
) -> Adapter:
    """The adapter of one clip: a file, a folder of pictures, or frames already decoded. Raises VideoDecodeError as `read_frames`."""
    using = using or load()
    video_id = "" if isinstance(video, Frames) else video_id_of(video)
    frames = video if isinstance(video, Frames) else read_frames(video, using=using)
    (adapter,) = internalize_batch([frames], using=using, video_ids=[video_id], frames_per_chunk=frames_per_chunk, max_rank=max_rank)
    return adapter


@torch.no_grad()
def internalize_batch(
    videos: Sequence[Frames],
    *,
    using: Internalizer,
    video_ids: Sequence[str],
    frames_per_chunk: int = FRAMES_PER_CHUNK,
    max_rank: int | None = None,
) -> list[Adapter]:
    """An adapter each, static adapter included; chunks of all videos go through the model together, as many at a time as there are videos.

    With `max_rank`, the composed chunks are compressed (truncated SVD) so that adapter and static adapter together have at most that
    rank; the relative error is in the provenance. Raises ValueError for frames_per_chunk < 1, a video without frames, a max_rank that
    the static adapter alone takes, or chunks that do not fit the VLM's positions.
    """
    static_r = using.hypernetwork.config.r if using.hypernetwork.config.static_adapter else 0
    if frames_per_chunk < 1:
        raise ValueError(f"frames_per_chunk: got {frames_per_chunk}, expected >= 1")
    if max_rank is not None and max_rank <= static_r:
        raise ValueError(f"max_rank: got {max_rank}, expected more than {static_r}, the static adapter's rank")
    for video_id, video in zip(video_ids, videos, strict=True):
        if len(video.images) == 0:
            raise ValueError(f"video {video_id or '(given as frames)'}: got no frames, expected at least one")
    chunked = [_chunks(video, frames_per_chunk) for video in videos]
    chunks = [chunk for of_one in chunked for chunk in of_one]
    made = [_generated(chunks[i : i + len(videos)], using) for i in range(0, len(chunks), len(videos))]
    composed = compose(stack(made), [len(of_one) for of_one in chunked])
    adapters = []
    for i, video in enumerate(videos):
        n_chunks = len(chunked[i])
        lora = slice_rank(select(composed, torch.tensor([i])), 0, n_chunks * using.hypernetwork.config.r)  # without `compose`'s zero rows
        facts: dict[str, Any] = {"n_frames": len(video.images), "frames_per_chunk": frames_per_chunk, "n_chunks": n_chunks}
        if max_rank is not None and lora.r + static_r > max_rank:
            lora, loss = compress(lora, max_rank - static_r)
            facts["compression_error"] = round(float(loss.total[0]), 6)
        lora = using.hypernetwork.with_static(lora)
        adapters.append(Adapter(lora=lora, provenance={"video_id": video_ids[i], **_provenance(using), **facts, "static_r": static_r}))
    return adapters


def ask(adapter: Adapter, question: str, *, vlm: FrozenVLM | None = None, decoding: Decoding | None = None) -> Answer:
    """The VLM's answer under an adapter. Raises ValueError if the VLM's weights are not those the adapter was made for."""
    made = adapter.provenance
    vlm = vlm or load_vlm(made["vlm"], revision=made.get("vlm_revision"), dtype=made.get("vlm_dtype", "float32"))
    return ask_all(adapter, [question], vlm=vlm, decoding=decoding)[0]


def ask_all(
    adapter: Adapter | None,
    questions: Sequence[str],
    *,
    vlm: FrozenVLM,
    decoding: Decoding | None = None,
    video: Frames | None = None,
) -> list[Answer]:
    """Answers to several questions at once: under an adapter, or with `video` in context, or (neither) blind.

    Raises ValueError if the adapter was made for another VLM, or a question does not fit the VLM's positions.
    """
    decoding = decoding or Decoding()
    batch, tokens = _asked(questions, vlm, video)
    if adapter is None:
        return vlm.generate(batch, decoding=decoding, frame_tokens=tokens)
    check_made_for(adapter, vlm)
    with adapted(vlm.layers, adapter.lora):
        return vlm.generate(batch, decoding=decoding, frame_tokens=tokens)


def stream(
    adapter: Adapter | None, question: str, *, vlm: FrozenVLM, decoding: Decoding | None = None, video: Frames | None = None
) -> Iterator[str]:
    """The answer piece by piece as it is generated; the pieces together are `ask_all`'s. Raises as `ask_all`, before the first piece."""
    batch, tokens = _asked([question], vlm, video)
    if adapter is not None:
        check_made_for(adapter, vlm)
    return _pieces(adapter, vlm.stream(batch, decoding=decoding or Decoding(), frame_tokens=tokens), vlm)


def _pieces(adapter: Adapter | None, pieces: Iterator[str], vlm: FrozenVLM) -> Iterator[str]:
    lora = None if adapter is None else adapter.lora.map(lambda factor: factor.to(vlm.device, vlm.model.dtype))
    while True:
        with nullcontext() if lora is None else adapted(vlm.layers, lora):  # there while the model runs, not while the caller does
            piece = next(pieces, None)
        if piece is None:
            return
        yield piece


def _asked(questions: Sequence[str], vlm: FrozenVLM, video: Frames | None) -> tuple[Any, Any]:
    if video is None:
        return vlm.question_batch(questions), None
    tokens = vlm.frame_tokens([video])
    return vlm.video_batch([video] * len(questions), questions), tokens.repeat(len(questions), 1, 1)


def _chunks(video: Frames, n_frames: int) -> list[Frames]:
    """As few as hold all frames, of sizes that differ by one at most; times stay those of the whole video."""
    n_chunks = -(-len(video.images) // n_frames)
    edges = [len(video.images) * i // n_chunks for i in range(n_chunks + 1)]
    return [Frames(video.images[start:stop], video.timestamps_s[start:stop], video.duration_s) for start, stop in pairwise(edges)]


def _generated(chunks: Sequence[Frames], using: Internalizer) -> Lora:
    features = using.vlm.features(chunks, opens_answer=using.hypernetwork.config.opens_answer)
    return using.hypernetwork(features.hidden, features.mask)


def _provenance(using: Internalizer) -> dict[str, Any]:
    return {
        "vlm": using.vlm.name,
        "vlm_revision": using.vlm.revision,
        "vlm_digest": using.vlm.digest,
        "vlm_dtype": using.vlm.dtype,
        "layers_path": using.vlm.layers_path,
        "hypernetwork": using.name,
        "hypernetwork_digest": using.digest,
        "sampling": using.sampling.model_dump(mode="json"),
        "longest_edge_px": using.longest_edge_px,
    }
