"""DeepSpeed against plain torch: the same weights after the same steps at every ZeRO stage, also across an interruption."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from infra.config import TrainingSettings
from training.engine import Engine, learning_rate

N_STEPS, N_BEFORE = 5, 3
STAGES = (0, 1, 2, 3)


def settings_of(stage: int) -> TrainingSettings:
    return TrainingSettings(n_steps=N_STEPS, lr=0.1, warmup=0.4, zero_stage=stage, max_grad_norm=0.5, weight_decay=0.1)  # type: ignore[arg-type]


def a_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 2))


def inputs(step: int, rank: int) -> torch.Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(10 * step + rank))


def plain(n_workers: int) -> dict[str, torch.Tensor]:
    """The oracle: torch's AdamW and clipping on the mean loss of all workers."""
    module, settings = a_module(), settings_of(0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1.0, betas=settings.betas, weight_decay=settings.weight_decay)
    for step in range(N_STEPS):
        optimizer.param_groups[0]["lr"] = learning_rate(step, settings)
        sum(module(inputs(step, rank)).square().mean() / n_workers for rank in range(n_workers)).backward()  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_(module.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def in_a_worker(rank: int, n_workers: int, folder: str) -> None:
    """At each stage N_BEFORE steps, a new engine from the gathered state, the other steps; the first worker writes the weights down."""
    import os

    os.environ["LOCAL_RANK"] = str(rank)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=n_workers)

    def some_steps(engine: Engine, steps: range) -> None:
        for step in steps:
            for part in inputs(step, rank).split((1, 2)):  # of 3 rows of 2 numbers
                engine.backward(engine.deepspeed(part).square().sum() / 6, is_last=len(part) == 2)
            engine.update(learning_rate(step, engine.settings))

    for stage in STAGES:
        first = Engine(a_module(), settings_of(stage))
        some_steps(first, range(N_BEFORE))
        module = a_module()
        module.load_state_dict(first.weights())
        second = Engine(module, settings_of(stage))
        second.restore(first.moments(), step=N_BEFORE, loss=second.deepspeed(inputs(9, rank)).mean())
        some_steps(second, range(N_BEFORE, N_STEPS))
        found: dict[str, Any] = second.weights()
        if rank == 0:
            torch.save(found, f"{folder}/{stage}.pt")
    torch.distributed.barrier()  # nobody leaves while another still listens
    os._exit(0)  # the work is done and written; gloo's threads, taken down with the interpreter, were seen to abort it


@pytest.mark.slow
def test_interrupted_training_in_parts_equals_plain_torch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(in_a_worker, args=(2, str(tmp_path)), nprocs=2)
    expected = plain(2)
    for stage in STAGES:
        found = torch.load(tmp_path / f"{stage}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-5)


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    settings = TrainingSettings(n_steps=100, lr=2.0, warmup=0.1)
    rates = [learning_rate(step, settings) for step in range(101)]
    assert rates[0] == 0 and rates[5] == pytest.approx(1.0) and rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0) and rates[100] == pytest.approx(0.0) and rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(0, TrainingSettings(warmup=0.0, lr=3.0)) == 3.0
