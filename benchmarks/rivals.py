"""The systems that `benchmarks.answering` compares: ways to answer questions about a video, by what they keep of it.

    again        nothing is kept: every question encodes the video again and reads it (the paper's comparison)
    connector    the visual tokens are kept, and read again with every question
    kv cache     the keys and values of the whole video prompt are kept
    ours         the generated adapter is kept and applied per request; many videos may share a batch
    ours merged  the same, added to the weights before the first question: one video at a time

All read the same prompts through the same code and generate by the same loop. The rivals with the video in context must answer alike, and
so must both of ours: `tests/benchmarks` holds them to it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from video2lora.generation import Decoding
from video2lora.hypernetwork import Hypernetwork
from video2lora.kept_cache import KeptLayer, n_shared, split
from video2lora.lora import adapted, merged
from video2lora.lora_algebra import Lora, compose, stack
from video2lora.sampling import Frames
from video2lora.vlm import FrozenVLM, TextBatch

FRAMES_PER_CHUNK = 64
QUESTION = "What happens in this video, and where does it happen?"
OTHER_QUESTION = "Who is it?"  # tells where the part of the prompt ends that all questions share

Kept = dict[str, Tensor]


@dataclass(frozen=True)
class Bench:
    """What all rivals share."""

    vlm: FrozenVLM
    hypernetwork: Hypernetwork
    n_new_tokens: int

    @property
    def device(self) -> torch.device:
        return self.vlm.device

    @property
    def decoding(self) -> Decoding:
        return Decoding(max_new_tokens=self.n_new_tokens)


@dataclass(frozen=True)
class Rival(ABC):
    """One way to answer questions about a video. What it keeps of a video is a dict of tensors, as it would be stored."""

    bench: Bench
    name: ClassVar[str]
    batches: ClassVar[bool] = True  # may different videos share a batch?

    @abstractmethod
    def prepare(self, video: Frames) -> Kept:
        """Reads the video once."""

    @abstractmethod
    def ready(self, kept: list[Kept]) -> AbstractContextManager[Any]:
        """Whatever is done once before questions about these videos, a row of the batch each; gives what `steps` needs."""

    @abstractmethod
    def steps(self, state: Any, videos: list[Frames]) -> Iterator[Tensor]:
        """One question about each video: the ids of the answers, step by step."""


class Again(Rival):
    name = "again"

    def prepare(self, video: Frames) -> Kept:
        return {}

    def ready(self, kept: list[Kept]) -> AbstractContextManager[Any]:
        return nullcontext()

    def steps(self, state: Any, videos: list[Frames]) -> Iterator[Tensor]:
        vlm = self.bench.vlm
        batch = vlm.video_batch(videos, [QUESTION] * len(videos))
        return vlm.token_steps(batch, decoding=self.bench.decoding, frame_tokens=vlm.frame_tokens(videos))


class Connector(Rival):
    name = "connector"

    def prepare(self, video: Frames) -> Kept:
        return {"tokens": self.bench.vlm.frame_tokens([video])}

    def ready(self, kept: list[Kept]) -> AbstractContextManager[Any]:
        return nullcontext(torch.cat([one["tokens"] for one in kept]))

    def steps(self, state: Any, videos: list[Frames]) -> Iterator[Tensor]:
        vlm = self.bench.vlm
        return vlm.token_steps(vlm.video_batch(videos, [QUESTION] * len(videos)), decoding=self.bench.decoding, frame_tokens=state)


class KVCache(Rival):
    name = "kv cache"

    def prepare(self, video: Frames) -> Kept:
        vlm = self.bench.vlm
        shared, _ = _shared_and_rest(vlm, video)
        cache = DynamicCache(config=vlm.model.config.get_text_config())
        vlm.prefill(shared, cache=cache, frame_tokens=vlm.frame_tokens([video]))
        return {f"{kind}.{i}": getattr(layer, kind) for i, layer in enumerate(cache.layers) for kind in ("keys", "values")}

    def ready(self, kept: list[Kept]) -> AbstractContextManager[Any]:
        def together(name: str) -> Tensor:
            return torch.cat([one[name] for one in kept])

        cache = Cache(layers=[KeptLayer(together(f"keys.{i}"), together(f"values.{i}")) for i in range(len(kept[0]) // 2)])
        return nullcontext(cache)

    def steps(self, state: Any, videos: list[Frames]) -> Iterator[Tensor]:
        for layer in state.layers:
            layer.forget()
        _, rest = _shared_and_rest(self.bench.vlm, videos[0])
        rows = torch.zeros(len(videos), dtype=torch.long, device=self.bench.device)
        batch = TextBatch(rest.input_ids[rows], rest.mask[rows], rest.positions[rows])
        return self.bench.vlm.token_steps(batch, decoding=self.bench.decoding, cache=state)


class Ours(Rival):
    name = "ours"

    def prepare(self, video: Frames) -> Kept:
        vlm, hypernetwork = self.bench.vlm, self.bench.hypernetwork
        chunks = _chunks(video)
        with torch.no_grad():
            made = []
            for chunk in chunks:
                features = vlm.features([chunk])
                made.append(hypernetwork(features.hidden, features.mask))
                del features
            lora = compose(stack(made), [len(chunks)])
        factors = {"lora_a": lora.lora_a, "lora_b": lora.lora_b}
        return {f"{kind}.{name}": tensor for kind, of in factors.items() for name, tensor in of.items()}

    def ready(self, kept: list[Kept]) -> AbstractContextManager[Any]:
        lora = stack([self.lora_of(one) for one in kept])
        return adapted(self.bench.vlm.layers, lora)

    def steps(self, state: Any, videos: list[Frames]) -> Iterator[Tensor]:
        vlm = self.bench.vlm
        return vlm.token_steps(vlm.question_batch([QUESTION] * len(videos)), decoding=self.bench.decoding)

    def lora_of(self, kept: Kept) -> Lora:
        dtype = self.bench.vlm.model.dtype

        def of(kind: str) -> dict[str, Tensor]:
            return {name.split(".", 1)[1]: tensor.to(dtype) for name, tensor in kept.items() if name.startswith(kind)}

        return Lora(of("lora_a"), of("lora_b"), scaling=self.bench.hypernetwork.config.lora_scaling)


class OursMerged(Ours):
    name = "ours merged"
    batches = False

    def ready(self, kept: list[Kept]) -> AbstractContextManager[Any]:
        return merged(self.bench.vlm.layers, self.lora_of(kept[0]))


def _shared_and_rest(vlm: FrozenVLM, video: Frames) -> tuple[TextBatch, TextBatch]:
    """The prompt up to where questions begin to differ, and from there on; the rest's mask covers both."""
    prompts = [vlm.video_batch([video], [question]) for question in (QUESTION, OTHER_QUESTION)]
    return split(prompts[0], n_shared(prompts))


def _chunks(video: Frames) -> list[Frames]:
    n = len(video.images)
    return [
        Frames(video.images[i : i + FRAMES_PER_CHUNK], video.timestamps_s[i : i + FRAMES_PER_CHUNK], video.duration_s)
        for i in range(0, n, FRAMES_PER_CHUNK)
    ]
