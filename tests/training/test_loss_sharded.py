"""A step of all three terms through DeepSpeed at every ZeRO stage, two workers with unlike batches, against plain torch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_examples import an_example, write_vlm
from torch import Tensor

from infra.config import TrainingSettings
from training.batches import Batch, Example, TeacherTokens
from training.engine import Engine, learning_rate
from training.loss import Encoder, TargetLoss, text_of
from video2lora.hypernetwork import Hypernetwork, HypernetworkConfig
from video2lora.pretrained import load_vlm

STAGES, N_WORKERS, N_CHUNKS = (1, 2, 3), 2, 2
SETTINGS = TrainingSettings(n_steps=2, warmup=0.0, lr=0.01, max_grad_norm=0.5)
WEIGHTS = torch.tensor([1.0, 0.3, 0.7])


def a_student(folder: str) -> TargetLoss:
    vlm = load_vlm(folder)
    config = HypernetworkConfig(
        n_layers=len(vlm.layers), d_vlm=vlm.d_vlm, target_modules=vlm.module_sizes(["down_proj"]), r=3, n_latents=5, n_blocks=1,
        d_latent=24, n_heads=2, n_kv_heads=1, d_head=12, normalise_features=True,
    )  # fmt: skip
    hypernetwork = Hypernetwork(config, seed=5, checkpoint_projection=True)  # as on GPUs
    with torch.no_grad():
        hypernetwork.heads["down_proj"].scale_b.normal_(std=0.1, generator=torch.Generator().manual_seed(6))
    return TargetLoss(hypernetwork, vlm)


def a_batch(student: TargetLoss, rank: int) -> Batch:
    """Two videos of four pictures, or one of a single one, which is one chunk whatever is asked."""
    examples = [taught(student, an_example(i, n_frames=4)) for i in range(2)] if rank == 0 else [taught(student, an_example(2, n_frames=1))]
    return Batch(tuple(examples), tuple(one.targets for one in examples))


def taught(student: TargetLoss, one: Example) -> Example:
    targets = []
    for target in one.targets[:2]:
        ids = np.array(student.vlm.target_ids(target.text), np.int32)
        top_ids = np.stack([ids, ids + 1], axis=1)
        targets.append(replace(target, teacher=TeacherTokens(ids, top_ids, np.log(np.full(top_ids.shape, 0.4, np.float32)))))
    return replace(one, targets=tuple(targets))


def loss_of(module: torch.nn.Module, student: TargetLoss, rank: int) -> Tensor:
    """`module` is the student, or DeepSpeed around it."""
    batch = a_batch(student, rank)
    features = Encoder(student.vlm, opens_answer=True, keeps=False)(batch.examples, n_chunks=N_CHUNKS)
    terms: Tensor = module(features, text_of(student.vlm, batch, newline=True, kl=True))
    return (WEIGHTS[:, None] * terms).sum(0).mean()


def in_a_worker(rank: int, folder: str) -> None:
    import os

    os.environ["LOCAL_RANK"] = str(rank)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=N_WORKERS)
    for stage in STAGES:
        student = a_student(folder)
        engine = Engine(student, SETTINGS.model_copy(update={"zero_stage": stage}))
        engine.backward(loss_of(engine.deepspeed, student, rank))
        engine.update(learning_rate(0, engine.settings))
        found = engine.moments()
        if rank == 0:
            torch.save(found, f"{folder}/stage-{stage}.pt")
    torch.distributed.barrier()
    os._exit(0)  # as in test_engine


@pytest.mark.slow
def test_a_step_at_every_stage_is_that_of_plain_torch(tmp_path: Path) -> None:
    write_vlm(tmp_path)
    torch.multiprocessing.spawn(in_a_worker, args=(str(tmp_path),), nprocs=N_WORKERS)
    student = a_student(str(tmp_path))
    sum(loss_of(student, student, rank) / N_WORKERS for rank in range(N_WORKERS)).backward()  # type: ignore[union-attr]
    torch.nn.utils.clip_grad_norm_(student.parameters(), SETTINGS.max_grad_norm)
    for stage in STAGES:
        found = torch.load(tmp_path / f"stage-{stage}.pt", weights_only=True)
        for name, parameter in student.named_parameters():
            first_moment = (1 - SETTINGS.betas[0]) * parameter.grad
            assert first_moment.any() or name == "hypernetwork.static.down_proj.lora_a", name  # its B is zero
            torch.testing.assert_close(found[f"exp_avg/{name}"], first_moment, rtol=1e-4, atol=1e-5 * float(first_moment.abs().max()))
