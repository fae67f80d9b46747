"""How fast is an answer about a video, and what must be kept for it: the adapter against its honest rivals, all in one run.

    again        nothing is kept: every question encodes the video again and reads it (the paper's comparison)
    connector    the visual tokens are kept, and read again with every question
    kv cache     the keys and values of the whole video prompt are kept
    ours         the generated adapter is kept and applied per request; many videos may share a batch
    ours merged  the same, added to the weights before the first question: one video at a time

The static adapter is the same for every video, so it is merged into the weights once for both of ours, and only the generated factors
are kept. Kept things are stored in bfloat16. `cold` reads them from a file (in the page cache) first; `warm` has them in memory. Videos
are random pixels of the model's size: decoding is not in any time, and random weights take the time of trained ones. A video that does
not fit the VLM's positions is 64 sampled frames to the rivals, the fair peer there, and chunks of 64 joined in rank to ours.

Command  python -m benchmarks.answering --size 500m        (torch and transformers only; --model DIR for a model of your own)
Cost     500m on 2 CPU cores: 40 minutes at 12, 64 and 256 frames.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Cache, DynamicCache, DynamicLayer
from transformers.utils import logging

from benchmarks.models import SIZES, random_vlm
from video2lora.generation import Decoding
from video2lora.hypernetwork import Hypernetwork, HypernetworkConfig
from video2lora.lora import adapted, merged
from video2lora.lora_algebra import Lora, compose, stack
from video2lora.sampling import Frames
from video2lora.smolvlm import SmolVLM
from video2lora.vlm import FrozenVLM, TextBatch, load_vlm

FRAMES_PER_CHUNK = 64
PEER_FRAMES = 64  # what a VLM is shown of a video that does not fit
QUESTION = "What happens in this video, and where does it happen?"
OTHER_QUESTION = "Who is it?"  # tells where the part of the prompt ends that all questions share
NO_GPU = "\nNo GPU was to be had: these are times of a CPU, where a prompt costs far more against a single token than on a GPU.\n"
WARM_BUDGET_S = 60.0  # of one system's rounds: slow ones have fewer, at least one
ROOM_TOKENS = 128  # that a kept cache has for question and answer

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


class KeptLayer(DynamicLayer):
    """A layer of a kept cache with room behind it: a new token is written in place, and a new question forgets the last one.

    transformers' DynamicLayer copies all it holds at every token; its StaticLayer attends to empty room. Neither would be fair.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.n_kept = self.n = keys.shape[2]
        room = (0, 0, 0, ROOM_TOKENS)
        self.all_keys, self.all_values = (torch.nn.functional.pad(one, room) for one in (keys, values))
        self.lazy_initialization(keys, values)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, self.n = self.n, self.n + key_states.shape[2]
        self.all_keys[:, :, start : self.n] = key_states
        self.all_values[:, :, start : self.n] = value_states
        self.keys, self.values = self.all_keys[:, :, : self.n], self.all_values[:, :, : self.n]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.n

    def forget(self) -> None:
        self.n = self.n_kept


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


@dataclass
class Row:
    """A line of the table; times in seconds."""

    system: str
    n_frames: int  # of the video
    n_shown: int  # to this system
    rank: int | None
    n_input_tokens: int
    kept_bytes: int
    prepare_s: float
    cold_s: float
    warm_s: float = 0.0
    warm_all_s: list[float] = field(default_factory=list)
    tokens_per_s: float = 0.0
    n_batch: int = 0
    batch_tokens_per_s: float | None = None


def measure(
    bench: Bench, *, n_frames: int, n_rounds: int, n_batch: int, say: Callable[[str], None], known: Sequence[Row] = ()
) -> list[Row]:
    """All systems on one video of `n_frames`, taking turns; then a batch of `n_batch` different videos where they can have one.

    Where the video does not fit the VLM, rows of `known` that were taken on PEER_FRAMES are the rivals', and are not measured again.
    """
    video = made_video(bench.vlm, n_frames)
    fits = _fits(bench.vlm, video)
    peer = video if fits else made_video(bench.vlm, PEER_FRAMES)
    rows = {} if fits else {row.system: replace(row, n_frames=n_frames) for row in known if row.n_frames == row.n_shown == PEER_FRAMES}
    kv_cache = KVCache(bench)
    rivals = [
        one for one in (Again(bench), Connector(bench), kv_cache, Ours(bench), OursMerged(bench)) if _is_ours(one) or one.name not in rows
    ]
    shown = {rival.name: video if _is_ours(rival) else peer for rival in rivals}
    kept: dict[str, Kept] = {}
    with static_merged(bench), tempfile.TemporaryDirectory() as folder:
        for rival in rivals:
            same = isinstance(rival, OursMerged)  # as what `ours` keeps
            kept[rival.name], seconds = (
                (kept["ours"], rows["ours"].prepare_s) if same else _timed(bench, partial(rival.prepare, shown[rival.name]))
            )
            rows[rival.name] = _row(bench, rival, kept[rival.name], n_frames, shown[rival.name], seconds, Path(folder))
            say(f"{n_frames} frames: {rival.name}: prepared in {seconds:.2f} s, keeps {rows[rival.name].kept_bytes / 1e6:.2f} MB")
        for _ in range(n_rounds):
            for rival in rivals:
                of = rows[rival.name].warm_all_s
                if sum(of) < WARM_BUDGET_S:
                    of.append(_first_token(bench, rival, kept[rival.name], shown[rival.name]))
        for rival in rivals:
            row = rows[rival.name]
            row.warm_s = statistics.median(row.warm_all_s)
            row.cold_s = row.cold_s or row.warm_s  # nothing is read from a file
            source = kv_cache if isinstance(rival, Again | Connector) else rival  # after the first token these read such a cache too
            row.tokens_per_s = _rate(bench, source, [kept[source.name]], [shown[source.name]])
            if rival.batches and n_batch > 1:
                row.n_batch = n_batch
                row.batch_tokens_per_s = _rate(bench, source, [kept[source.name]] * n_batch, [shown[source.name]] * n_batch)
            say(f"{n_frames} frames: {rival.name}: first token {row.warm_s * 1e3:.1f} ms warm, {row.cold_s * 1e3:.1f} ms cold")
    return [rows[name] for name in ("again", "connector", "kv cache", "ours", "ours merged")]


def made_video(vlm: FrozenVLM, n_frames: int) -> Frames:
    """Random pixels, one frame a second, of the model's own size."""
    edge = vlm.family.image_size_px  # type: ignore[attr-defined]
    images = np.random.default_rng(n_frames).integers(0, 256, (n_frames, edge, edge, 3), dtype=np.uint8)
    return Frames(images, np.arange(n_frames, dtype=np.float64), float(n_frames))


@contextmanager
def static_merged(bench: Bench) -> Iterator[None]:
    """The static adapter in the weights, as a server would have it."""
    static = bench.hypernetwork.static_lora().map(lambda factor: factor.detach())
    with merged(bench.vlm.layers, static):
        yield


def made_hypernetwork(vlm: FrozenVLM) -> Hypernetwork:
    """A fresh one of the published sizes for this VLM, rank 16 on down_proj, with multipliers of B that let its adapters act."""
    sizes = vlm.module_sizes(["down_proj"])
    config = HypernetworkConfig(n_layers=len(vlm.layers), d_vlm=vlm.d_vlm, target_modules=sizes)
    hypernetwork = Hypernetwork(config).eval().requires_grad_(False).to(vlm.device)
    for head in hypernetwork.heads.values():
        head.scale_b.fill_(1e-3)
    return hypernetwork if vlm.model.dtype == torch.float32 else hypernetwork.to(vlm.model.dtype)


def break_even(row: Row, rival: Row) -> float | None:
    """Number of questions from which on preparing and asking costs less than the rival's; None: it never does for good."""
    saved_s, paid_s = rival.warm_s - row.warm_s, row.prepare_s - rival.prepare_s
    return None if saved_s <= 0 else max(0.0, paid_s / saved_s)


def table(rows: list[Row]) -> str:
    """Markdown."""
    head = (
        "| frames | system | shown | rank | input tokens | kept | prepare | first token, cold | warm | warm ÷ again | warm ÷ kv cache | "
        "tokens/s, 1 video | tokens/s, videos at once | pays for itself after |"
    )
    lines = [head, "|" + "---|" * head.count("| ")]
    for row in rows:
        of = {one.system: one for one in rows if one.n_frames == row.n_frames}
        pays = break_even(row, of["again"]) if row.system != "again" else None
        after = "" if row.system == "again" else "never" if pays is None else f"{pays:.1f} questions"
        batch = "" if row.batch_tokens_per_s is None else f"{row.batch_tokens_per_s:.1f} ({row.n_batch})"
        cells = [
            row.n_frames, row.system, row.n_shown, "" if row.rank is None else row.rank, row.n_input_tokens, _bytes(row.kept_bytes),
            f"{row.prepare_s:.2f} s", f"{row.cold_s * 1e3:.0f} ms", f"{row.warm_s * 1e3:.0f} ms", f"{row.warm_s / of['again'].warm_s:.4f}",
            f"{row.warm_s / of['kv cache'].warm_s:.2f}", f"{row.tokens_per_s:.1f}", batch, after,
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the times were taken on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "gpu": gpu, "cpu": _cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "python": platform.python_version(),
        "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip


def _row(bench: Bench, rival: Rival, kept: Kept, n_frames: int, shown: Frames, prepare_s: float, folder: Path) -> Row:
    path = folder / f"{rival.name.replace(' ', '_')}-{n_frames}.safetensors"
    stored = {name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in kept.items()}
    save_file(stored, path)
    rank = next((tensor.shape[2] for name, tensor in kept.items() if name.startswith("lora_a")), None)
    vlm = bench.vlm
    batch = vlm.question_batch([QUESTION]) if isinstance(rival, Ours) else vlm.video_batch([shown], [QUESTION])
    cold_s = 0.0
    if kept:
        _cold(bench, rival, path, shown)  # warms up
        cold_s = statistics.median(_cold(bench, rival, path, shown) for _ in range(1 if isinstance(rival, Connector) else 3))
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    return Row(rival.name, n_frames, len(shown.images), rank, batch.input_ids.shape[1], n_bytes, prepare_s, cold_s)


def _is_ours(rival: Rival) -> bool:
    return isinstance(rival, Ours)


def _cold(bench: Bench, rival: Rival, path: Path, video: Frames) -> float:
    """From the file to the first token."""

    def first() -> None:
        dtype = bench.vlm.model.dtype
        kept = {name: tensor.to(dtype) for name, tensor in load_file(path, device=str(bench.device)).items()}
        with rival.ready([kept]) as state:
            next(rival.steps(state, [video])).tolist()

    return _timed(bench, first)[1]


def _first_token(bench: Bench, rival: Rival, kept: Kept, video: Frames) -> float:
    with rival.ready([kept]) as state:
        return _timed(bench, lambda: next(rival.steps(state, [video])).tolist())[1]


def _rate(bench: Bench, rival: Rival, kept: list[Kept], videos: list[Frames]) -> float:
    """Tokens a second after the first one, all rows together."""
    with rival.ready(kept) as state:
        steps = rival.steps(state, videos)
        next(steps)
        started = time.perf_counter()
        n = sum(len(ids) for ids in steps)
        _wait(bench)
        return n / (time.perf_counter() - started)


def _timed(bench: Bench, work: Callable[[], Any]) -> tuple[Any, float]:
    gc.collect()
    _wait(bench)
    started = time.perf_counter()
    result = work()
    _wait(bench)
    return result, time.perf_counter() - started


def _wait(bench: Bench) -> None:
    if bench.device.type == "cuda":
        torch.cuda.synchronize()


def _shared_and_rest(vlm: FrozenVLM, video: Frames) -> tuple[TextBatch, TextBatch]:
    """The prompt up to where questions begin to differ, and from there on; the rest's mask covers both."""
    whole, other = (vlm.video_batch([video], [question]) for question in (QUESTION, OTHER_QUESTION))
    n = min(whole.input_ids.shape[1], other.input_ids.shape[1])
    at = int((whole.input_ids[0, :n] != other.input_ids[0, :n]).nonzero()[0])
    shared = replace(whole, input_ids=whole.input_ids[:, :at], mask=whole.mask[:, :at], positions=whole.positions[..., :at])
    return shared, replace(whole, input_ids=whole.input_ids[:, at:], positions=whole.positions[..., at:])


def _chunks(video: Frames) -> list[Frames]:
    n = len(video.images)
    return [
        Frames(video.images[i : i + FRAMES_PER_CHUNK], video.timestamps_s[i : i + FRAMES_PER_CHUNK], video.duration_s)
        for i in range(0, n, FRAMES_PER_CHUNK)
    ]


def _fits(vlm: FrozenVLM, video: Frames) -> bool:
    return vlm.video_batch([video], [QUESTION]).input_ids.shape[1] + ROOM_TOKENS <= vlm.n_positions


def _bytes(n: int) -> str:
    return f"{n / 1e6:.1f} MB" if n >= 1e5 else f"{n / 1e3:.1f} kB" if n else "none"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _vlm(arguments: argparse.Namespace, device: str, dtype: str) -> FrozenVLM:
    if arguments.model:
        return load_vlm(arguments.model, dtype=dtype, device=device)
    model, tokenizer = random_vlm(arguments.size, dtype=getattr(torch, dtype), device=device)
    return FrozenVLM(SmolVLM(model, tokenizer), f"random {arguments.size}", "random")


def _result(arguments: argparse.Namespace, vlm: FrozenVLM, rows: list[Row], dtype: str) -> str:
    facts: Mapping[str, Any] = {**machine(), "model": vlm.name, "dtype": dtype, "rounds": arguments.rounds}
    command = "python -m benchmarks.answering " + " ".join(sys.argv[1:])
    no_gpu = "" if torch.cuda.is_available() else NO_GPU
    said = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    data = json.dumps([row.__dict__ for row in rows], indent=1)
    return f"# Answering: the adapter and its rivals\n\nCommand: `{command}`\n{no_gpu}\n{said}\n\n{table(rows)}\n\n```json\n{data}\n```\n"


def main() -> None:
    """python -m benchmarks.answering"""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.answering", description="The adapter against its rivals: one table.")
    parser.add_argument("--size", choices=tuple(SIZES), default="500m", help="SmolVLM2 of this size with random weights")
    parser.add_argument("--model", help="instead: `tiny`, a model folder, or a hub name")
    parser.add_argument("--frames", type=int, nargs="+", help="default 12 64 256, and 1024 on a GPU")
    parser.add_argument("--rounds", type=int, default=25, help="that each warm time is the median of, unless they take a minute")
    parser.add_argument("--batch", type=int, default=8, help="different videos at once")
    parser.add_argument("--new-tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("-o", "--output", type=Path, help="Markdown file; default: print alone")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = arguments.dtype or ("bfloat16" if device == "cuda" else "float32")
    vlm = _vlm(arguments, device, dtype)
    bench = Bench(vlm, made_hypernetwork(vlm), arguments.new_tokens)
    frames = arguments.frames or ([12, 64, 256, 1024] if device == "cuda" else [12, 64, 256])
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started:7.1f} s] {line}", file=sys.stderr, flush=True)

    rows: list[Row] = []
    for n_frames in frames:
        rows += measure(bench, n_frames=n_frames, n_rounds=arguments.rounds, n_batch=arguments.batch, say=say, known=rows)
        if arguments.output:  # a long run that is stopped leaves what it has measured
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(_result(arguments, vlm, rows, dtype))
    print(table(rows))


if __name__ == "__main__":
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    main()
