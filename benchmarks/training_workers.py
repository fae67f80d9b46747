"""Two workers against one: processes of one thread each, which average their gradients by a plain all-reduce over gloo after each pass.

Neither DeepSpeed nor Ray is in it: what they add is start-up and, with ZeRO, the same bytes in two collectives. Within a round the first
process does a step alone, the other one asleep, then both do one together.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from transformers.utils import logging

from benchmarks.training_bench import made_bench
from benchmarks.training_rivals import Bench, ours


def speed_ups(model: str, *, n_videos: int, n_frames: int, n_targets: int, n_rounds: int) -> list[float]:
    """Samples a second of two workers ÷ those of one, round by round; each worker has `n_videos` of its own, with frames stored."""
    with tempfile.TemporaryDirectory() as temporary:
        sizes = {"n_videos": n_videos, "n_frames": n_frames, "n_targets": n_targets}
        multiprocessing.spawn(_work, (model, sizes, n_rounds, Path(temporary)), nprocs=2)
        told: list[float] = json.loads((Path(temporary) / "ratios").read_text())
    return told


def _work(rank: int, model: str, sizes: dict[str, Any], n_rounds: int, shared: Path) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{shared}/group", rank=rank, world_size=2)
    bench = made_bench(model, **sizes, device="cpu")
    _step(bench, together=True)  # not counted: AdamW makes its moments
    ratios = []
    for _ in range(n_rounds):
        alone_s = _timed(bench, together=False) if rank == 0 else 0.0
        dist.barrier()
        together_s = _timed(bench, together=True)
        dist.barrier()
        ratios.append(2 * alone_s / together_s)
    if rank == 0:
        (shared / "ratios").write_text(json.dumps(ratios))
    dist.destroy_process_group()


def _timed(bench: Bench, *, together: bool) -> float:
    started = time.perf_counter()
    _step(bench, together=together)
    return time.perf_counter() - started


def _step(bench: Bench, *, together: bool) -> None:
    ours(bench, "jpegs")
    if together:
        grads = [parameter.grad for parameter in bench.student.parameters() if parameter.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad) / 2)
    bench.update()
