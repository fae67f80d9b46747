"""How fast is an answer about a video, and what must be kept for it: the adapter against its honest rivals, all in one run.

Who they are: `benchmarks.rivals`. The static adapter is the same for every video, so it is merged into the weights once for both of ours,
and only the generated factors are kept. Kept things are stored in bfloat16. `cold` reads them from a file (in the page cache) first; `warm`
has them in memory. Videos are random pixels of the model's size: decoding is not in any time, and random weights take the time of trained
ones. A video that does not fit the VLM's positions is 64 sampled frames to the rivals, the fair peer there, and chunks of 64 joined in rank
to ours.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from benchmarks.models import SIZES, random_vlm
from benchmarks.rivals import QUESTION, Again, Bench, Connector, Kept, KVCache, Ours, OursMerged, Rival
from video2lora.hypernetwork import Hypernetwork, HypernetworkConfig
from video2lora.kept_cache import ROOM_TOKENS
from video2lora.lora import merged
from video2lora.pretrained import load_vlm
from video2lora.sampling import Frames
from video2lora.smolvlm import SmolVLM
from video2lora.vlm import FrozenVLM

PEER_FRAMES = 64  # what a VLM is shown of a video that does not fit
NO_GPU = "\nNo GPU was to be had: these are times of a CPU, where a prompt costs far more against a single token than on a GPU.\n"
WARM_BUDGET_S = 60.0  # of one system's rounds: slow ones have fewer, at least one


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
        _wait(bench)
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
