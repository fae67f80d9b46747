"""What a piece of training costs: time, FLOPs and the most memory it holds at once; and the rate at which the device multiplies."""

import gc
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

MATMUL_EDGE = {"cpu": 1024, "cuda": 8192}
MATMUL_N = {"cpu": 2, "cuda": 20}  # products in a time
MATMUL_TRIES = 5


def flops(work: Callable[[], object]) -> int:
    """Of all matrix products, convolutions and attention, forward and backward; a multiplication and an addition count as two."""
    with FlopCounterMode(display=False, custom_mapping=_cpu_attention()) as counter:
        work()
    return int(counter.get_total_flops())


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square product at its best of some tries, on as many threads as PyTorch has now."""
    edge, n = MATMUL_EDGE[device.type], MATMUL_N[device.type]
    a, b = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    out = a @ b
    tries = [timed(lambda: [torch.mm(a, b, out=out) for _ in range(n)], device) for _ in range(MATMUL_TRIES)]
    return 2 * edge**3 * n / min(tries)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds, the device's queue waited for on both sides."""
    gc.collect()
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


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


def _cpu_attention() -> dict[Any, Any]:
    """PyTorch's counter knows the fused attention of GPUs alone."""
    aten = torch.ops.aten

    def forward(query: Any, key: Any, value: Any, *_args: Any, out_shape: Any = None, **_named: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def backward(grad: Any, query: Any, key: Any, value: Any, *_args: Any, out_shape: Any = None, **_named: Any) -> int:
        return int(sdpa_backward_flop_count(grad, query, key, value))

    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
