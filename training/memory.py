"""How much memory a block of code takes at most, and how much there is: of a GPU by PyTorch's books, of a CPU by Linux's (proc(5))."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def peak_bytes(device: torch.device) -> Iterator[Callable[[], int]]:
    """Yields what then says how many bytes more were taken at most than at the start: of the GPU, or by this process."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's own peak begins anew
        before = _bytes_of("/proc/self/status", "VmRSS")
        yield lambda: _bytes_of("/proc/self/status", "VmHWM") - before


def free_bytes(device: torch.device) -> int:
    """What can be taken before a process is killed for it. A GPU says so itself: there it is without bound."""
    return sys.maxsize if device.type == "cuda" else _bytes_of("/proc/meminfo", "MemAvailable")


def _bytes_of(path: str, name: str) -> int:
    (line,) = (line for line in Path(path).read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024  # both files count in kB of 1,024
