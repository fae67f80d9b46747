"""One Ray for a command: a private one on this machine, or the cluster that RAY_ADDRESS names."""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.data

from infra.config import Where
from infra.errors import CommandError, StageFailedError
from infra.progress import say
from infra.resources import grown_nodes

WORKER_ENVIRONMENT = {
    # bfloat16 products die with SIGILL on hosts that advertise AMX and forbid it; fp32 is untouched.
    "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
    # Without it, on Intel's CPUs, a row of a product depends on how many rows it is computed with: stored visual tokens would not be those
    # computed in a step to the bit. No slower (the same rate for products of 64 to 4,800 rows, side by side).
    "MKL_CBWR": "AVX512,STRICT",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
# Ray Train's, for its workers to be there: a node that is started first has an image to fetch.
START_TIMEOUT, START_S, NODE_START_S = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "180", "1200"

SLOW_S = 60.0  # to start in, before that is said
REACH_S = 30.0  # for a cluster's head to be there; Ray itself goes on for more than four minutes


@contextmanager
def cluster(where: Where) -> Iterator[None]:
    """Connect (or join what is connected already) for the block. A private Ray ends with the block.

    Raises StageFailedError where Ray does not start, or is not to be reached.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "240")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # on every run it warns of how Ray Data starts its actors
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    for name, value in WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault(START_TIMEOUT, NODE_START_S if where.groups() else START_S)  # Ray Train hands its own variables on to its workers
    _reach(where.ray_address)
    local = where.ray_address == "local"
    _start(
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


def _reach(address: str) -> None:
    """Wait until somebody listens at HOST:PORT; other forms of an address are left to Ray. Raises StageFailedError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        return
    until_s, has_waited = time.monotonic() + REACH_S, False
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
            return
        except (OSError, OverflowError) as error:  # a port beyond 65535 is the latter
            if time.monotonic() + 1 > until_s or isinstance(error, OverflowError):
                raise StageFailedError(
                    f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}): start it (`ray start --head`) and run the same command"
                    " again, or unset RAY_ADDRESS for a Ray of this machine's own"
                ) from error
        if not has_waited:
            say(f"Ray ({address}): nobody answers there yet; trying for {REACH_S:.0f} s")
        has_waited = True
        time.sleep(1)


def _start(*, address: str, **options: Any) -> None:
    """On a busy machine the parts of a private Ray may wait for each other longer than they allow; it is then started once more."""
    waiting = threading.Timer(SLOW_S, say, [f"Ray ({address}) has not started in {SLOW_S:.0f} s; this machine may be busy"])
    waiting.daemon = True
    waiting.start()
    try:
        for n_left in (1, 0) if address == "local" else (0,):
            try:
                ray.init(address=address, **options)
                return
            except CommandError:  # SIGTERM
                raise
            except Exception as error:  # some of Ray's own are nothing more than that
                ray.shutdown()
                told = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                if not n_left:
                    raise StageFailedError(f"Ray ({address}) did not start: {told}; run the same command again, it continues") from error
    finally:
        waiting.cancel()


def nodes(where: Where) -> list[dict[str, float]]:
    """Resources of each node, by Ray's names: of those that live, or where the cluster grows by itself, of all that it can have.

    So many workers are asked for as find room there, and what Ray cannot place now is what its autoscaler starts nodes for.
    """
    return grown_nodes(where) or [node["Resources"] for node in ray.nodes() if node["Alive"]]


def quiet() -> None:
    """Progress is ours to show: one line per stage, not Ray Data's own."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # or a worker's error arrives without its kind
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # an error is raised, and said once
