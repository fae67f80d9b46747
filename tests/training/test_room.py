"""How many workers find room."""

from typing import Any

import pytest

from infra.config import Where
from infra.errors import StageFailedError
from training.room import Workers, workers_that_fit


def test_a_worker_each_for_training_as_far_as_there_is_room() -> None:
    def fit(nodes: list[dict[str, float]], n_blocks: int = 99, **where: Any) -> Workers:
        return workers_that_fit(nodes, Where(data="d", **where), n_blocks=n_blocks, stage="encode")

    assert fit([{"CPU": 7.0}], training_workers=3) == Workers(3, 2)
    assert fit([{"CPU": 7.0}], training_workers=3, n_blocks=2) == Workers(2, 3)
    assert fit([{"CPU": 2.0}], training_workers=5) == Workers(2, 1)
    assert fit([{"CPU": 11.0, "GPU": 1.0}, {"CPU": 13.0, "GPU": 1.0}, {}], training_workers=5, training_gpus=0.5) == Workers(4, 5)
    assert fit([{"CPU": 20.0, "GPU": 3.0}, {"CPU": 20.0, "GPU": 3.0}], training_workers=9, training_gpus=2).n == 2, "a worker has one node"
    one_has_gpus = [{"CPU": 2.0}, {"CPU": 3.0}, {"CPU": 64.0, "GPU": 8.0}]
    assert fit(one_has_gpus, training_workers=8, training_gpus=1) == Workers(8, 8), "threads are of the node that has GPUs"
    for nodes in ([{"CPU": 4.0, "GPU": 1.0}], [{"GPU": 8.0}]):
        with pytest.raises(StageFailedError, match=r"encode: .* less than the 0\.9 CPUs and 2 GPUs of one worker"):
            fit(nodes, training_gpus=2)
