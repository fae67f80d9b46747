"""What workers agree on, between two processes: they wait for one another, and bad input of one ends both."""

import os
import time
from pathlib import Path

import pytest
import torch

from infra.errors import BadInputError

LATE_S = 1.0


def in_a_worker(rank: int, folder: str) -> None:
    from training.incidents import OtherWorkerError
    from training.worker import Worker

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    worker = Worker.__new__(Worker)  # without models and data
    worker.device = torch.device("cpu")
    worker.wait_for_all()
    started = time.monotonic()
    if rank == 0:
        time.sleep(LATE_S)
    worker.wait_for_all()
    told = [f"{time.monotonic() - started >= 0.9 * LATE_S}", worker.agreed(lambda: "both")]

    def one_finds() -> str:
        if rank == 1:
            raise BadInputError("bad")
        return "made"

    try:
        worker.agreed(one_finds)
    except (BadInputError, OtherWorkerError) as error:
        told.append(type(error).__name__)
    Path(folder, str(rank)).write_text(" ".join(told))
    worker.wait_for_all()
    os._exit(0)  # as in test_engine


@pytest.mark.slow
def test_workers_wait_for_one_another_and_end_together(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(in_a_worker, args=(str(tmp_path),), nprocs=2)
    assert (tmp_path / "0").read_text() == "True both OtherWorkerError"
    assert (tmp_path / "1").read_text() == "True both BadInputError"
