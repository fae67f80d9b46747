"""Some steps of a training worker -> a torch profile of them: every operation and kernel, when it ran and for how long."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from infra.objects import write_new

WARM_STEPS = 2  # before a profile: the first ones allocate memory and choose kernels


@contextmanager
def profiled(n_steps: int, folder: str) -> Iterator[Callable[[], None]]:
    """A torch profile of `n_steps` steps, WARM_STEPS from here: yields what is to be called after every step.

    It comes to <folder>/profile-TIME.json.gz, which https://ui.perfetto.dev and chrome://tracing open. None for 0 steps; StorageError.
    """
    if not n_steps:
        yield lambda: None
        return

    def write(done: profile) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "profile.json.gz"
            done.export_chrome_trace(str(file))
            write_new(f"{folder}/profile-{time.strftime('%Y%m%d-%H%M%S')}.json.gz", file.read_bytes())

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    steps = schedule(skip_first=WARM_STEPS - 1, wait=0, warmup=1, active=n_steps, repeat=1)
    with profile(activities=activities, schedule=steps, on_trace_ready=write) as running:
        yield running.step
