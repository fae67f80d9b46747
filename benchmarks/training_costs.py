"""What a piece of training costs: time, FLOPs and the most memory it holds at once."""

import gc
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.floor import count_flops, synchronise


def flops(work: Callable[[], object]) -> int:
    """Forward and backward, by the trainer's own counter."""
    with count_flops() as counted:
        work()
    return int(counted.get_total_flops())


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds, the device's queue waited for on both sides."""
    gc.collect()
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Held at once by what `work` makes, gradients included; what was there before does not count."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with LiveBytes() as live:
        work()
    return live.peak


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make while it is active, backward passes included, until each is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._know((args, kwargs))  # an operation may write into what is there, or give a view of it
        result = func(*args, **(kwargs or {}))
        for storage, n_bytes in self._know(result):
            self.live += n_bytes
            weakref.finalize(storage, self._forget, n_bytes)
        self.peak = max(self.peak, self.live)
        return result

    def _know(self, tree: Any) -> list[tuple[torch.UntypedStorage, int]]:
        """Storages that were not known, and their bytes; known from now on."""
        new = []
        for leaf in tree_leaves(tree):
            if isinstance(leaf, torch.Tensor) and (storage := leaf.untyped_storage()) not in self.known:
                self.known.add(storage)
                new.append((storage, storage.nbytes()))
        return new

    def _forget(self, n_bytes: int) -> None:
        self.live -= n_bytes
