"""What Ray Train is handed: the function that every worker runs, and what it is told.

Nothing heavy is imported here: Ray Train's controller unpickles both, and would import PyTorch and transformers for no use, which holds
every start up by 10 s on 2 cores.
"""

from dataclasses import dataclass
from typing import Any

from infra.config import Recipe
from training.streams import Source


@dataclass(frozen=True)
class Job:
    """What a worker is told."""

    recipe: Recipe
    folder: str  # of the hypernetwork; checkpoints are in it
    made_from: dict[str, Any]
    train: Source
    validation: Source | None
    is_held: bool  # the training split, by every worker; else it streams
    n_threads: int
    videos_at_once: int | None  # of a worker's share of a step; None: all
    start_from: str | None  # address of the hypernetwork whose weights come before the first step; None: new ones
    board: Any  # handle of the Board actor
    n_profiled: int = 0  # steps of the first worker, into the folder


def work(config: dict[str, Any]) -> None:
    """`config` holds the Job."""
    from training.loop import run

    run(config["job"])
