"""How fast training could go on this device: the operations that a call takes, over the rate at which matrices are multiplied here.

The share of that floor which a step reaches is its MFU (PaLM, arXiv 2204.02311, appendix B), with the rate measured in place of a data
sheet's: what is left is memory traffic, launches, waiting. Counted are matrix products, convolutions and attention; attention as if it
were not causal, its backward pass with the scores computed again, as PyTorch's kernels do.
"""

import time

import torch
from torch.utils.flop_counter import FlopCounterMode

RATE_S = 0.3  # for which matrices are multiplied, three times at least
MATRIX_EDGE = {"cuda": 8192, "cpu": 2048}  # 1.4 ms on an H100 in bfloat16; 0.1 s on 2 cores in float32


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of several products of two large square matrices."""
    edge = MATRIX_EDGE[device.type]
    a, b = (torch.randn(edge, edge, device=device, dtype=dtype) for _ in range(2))
    started, times_s = time.perf_counter(), list[float]()
    while len(times_s) < 3 or time.perf_counter() - started < RATE_S:
        synchronise(device)
        began = time.perf_counter()
        torch.mm(a, b)
        synchronise(device)
        times_s.append(time.perf_counter() - began)
    return 2 * edge**3 / min(times_s)


def synchronise(device: torch.device) -> None:
    """Wait for what the device was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_flops() -> FlopCounterMode:
    """`with count_flops() as counted: ...` then `counted.get_total_flops()`, backward passes included.

    What torch.compile has compiled is not seen. PyTorch's own counter knows no attention on CPUs (2.13).
    """
    counter, aten = FlopCounterMode(display=False), torch.ops.aten
    known = counter.flop_registry
    known[aten._scaled_dot_product_flash_attention_for_cpu] = known[aten._scaled_dot_product_flash_attention]
    known[aten._scaled_dot_product_flash_attention_for_cpu_backward] = known[aten._scaled_dot_product_flash_attention_backward]
    return counter
