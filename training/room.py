"""How many workers of a stage that runs the VLM find room in a cluster: as training does, one for each share of its GPUs or cores."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from infra.config import Where
from infra.errors import StageFailedError
from infra.resources import CPUS_PER_ENCODER


@dataclass(frozen=True)
class Workers:
    """How many work at once, and with how many threads each."""

    n: int
    n_threads: int


def workers_that_fit(nodes: Sequence[dict[str, float]], where: Where, *, n_blocks: int, stage: str) -> Workers:
    """One per training worker, as far as there are blocks and room; `nodes` are the resources of each.

    Raises StageFailedError for no room: Ray would wait for ever.
    """
    able = [node for node in nodes if node.get("CPU", 0.0) > 0 and node.get("GPU", 0.0) >= where.training_gpus]  # all of them, of no GPUs
    cores = [node["CPU"] for node in able]
    room = int(sum(cores)) or int(sum(cores) >= CPUS_PER_ENCODER)
    if where.training_gpus:
        room = sum(min(int(node["CPU"] / CPUS_PER_ENCODER), int(node["GPU"] / where.training_gpus + 1e-9)) for node in able)
    if room < 1:
        needed = f"{CPUS_PER_ENCODER} CPUs" + (f" and {where.training_gpus:g} GPUs" if where.training_gpus else "")
        raise StageFailedError(f"{stage}: the Ray cluster has less than the {needed} of one worker")
    n = min(where.training_workers, room, n_blocks)
    return Workers(n, max(1, int(min(cores)) // math.ceil(n / len(cores))))
