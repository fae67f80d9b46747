"""One Ray for a command: a private one on this machine, or the cluster that RAY_ADDRESS names."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import ray.data

from infra.config import Where

WORKER_ENVIRONMENT = {
    # bfloat16 products die with SIGILL on hosts that advertise AMX and forbid it; fp32 is untouched.
    "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
    # Without it, on Intel's CPUs, a row of a product depends on how many rows it is computed with: stored visual tokens would not be those
    # computed in a step to the bit. No slower (the same rate for products of 64 to 4,800 rows, side by side).
    "MKL_CBWR": "AVX512,STRICT",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",
}


@contextmanager
def cluster(where: Where) -> Iterator[None]:
    """Connect (or join what is connected already) for the block. A private Ray ends with the block."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "240")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # on every run it warns of how Ray Data starts its actors
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    for name, value in WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    local = where.ray_address == "local"
    ray.init(
        address=where.ray_address,
        num_cpus=where.n_cpus if local else None,
        include_dashboard=False if local else None,
        object_store_memory=1 << 30 if local else None,
        runtime_env={"env_vars": WORKER_ENVIRONMENT},
        log_to_driver=False,
        logging_level="ERROR",
    )
    quiet()
    try:
        yield
    finally:
        ray.shutdown()


def quiet() -> None:
    """Progress is ours to show: one line per stage, not Ray Data's own."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # or a worker's error arrives without its kind
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # an error is raised, and said once
