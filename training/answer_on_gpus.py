"""Blocks of questions -> answers, on the GPUs of a Ray cluster: the head, where a driver runs, need have none.

A block is answered as it would be in the driver, so answers do not depend on how many workers there are; its times are those of one GPU.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa

from infra.attempt import Attempt, ShardWriter
from infra.config import Recipe, Where
from infra.progress import Counter
from infra.resources import CPUS_PER_ENCODER
from training.answer import Block, load
from training.room import Workers, workers_that_fit

if TYPE_CHECKING:
    import ray.data

    from training.systems import Systems

STAGE = "answer"


class AnswerBlocks:
    """Holds the models of all systems."""

    def __init__(self, recipe: Recipe, where: Where, writer: ShardWriter, *, timed: frozenset[str], n_threads: int) -> None:
        self.recipe, self.where, self.writer, self.timed, self.n_threads = recipe, where, writer, timed, n_threads

    @cached_property
    def systems(self) -> "Systems":
        """Loaded in the first call: Ray says of what a constructor raises only that the actor died."""
        import torch

        torch.set_num_threads(self.n_threads)
        return load(self.recipe, self.where)

    def __call__(self, asked: pa.Table) -> pa.Table:
        """A block -> what describes the files that its answers and rejects came to."""
        from infra.flow import told  # brings Ray

        (text,) = asked["block"].to_pylist()
        one = json.loads(text)
        return told(self.writer.write(*self.systems(Block(one["others"], tuple(one["questions"])), self.timed)))


def build(
    todo: Sequence[Block], recipe: Recipe, where: Where, writer: ShardWriter, *, timed: frozenset[str], workers: Workers
) -> "ray.data.Dataset":
    """Blocks -> what describes the files they came to."""
    import ray.data

    # 1. a block's questions x systems, an actor per GPU. The block travels as JSON; the actor reads the frames itself.
    ds = ray.data.from_blocks([pa.table({"block": [json.dumps(asdict(block))]}) for block in todo])
    return ds.map_batches(
        AnswerBlocks,
        fn_constructor_args=(recipe, where.model_copy(update={"webhook": None}), writer),  # the secret stays in the driver
        fn_constructor_kwargs={"timed": timed, "n_threads": workers.n_threads},
        batch_size=1,  # a row is a block; with GPUs Ray Data asks for a number
        batch_format="pyarrow",
        num_cpus=CPUS_PER_ENCODER,
        num_gpus=where.training_gpus,
        compute=ray.data.ActorPoolStrategy(size=workers.n, max_tasks_in_flight_per_actor=1),
    )


def answer(todo: Sequence[Block], recipe: Recipe, where: Where, attempt: Attempt, counter: Counter, *, timed: frozenset[str]) -> None:
    """Commits as they come. Raises StageFailedError, StorageError, SupersededError, and what a worker raises."""
    from infra.cluster import cluster, nodes
    from infra.flow import commit_as_it_comes
    from infra.stage import failing

    with cluster(where), failing(STAGE):
        workers = workers_that_fit(nodes(where), where, n_blocks=len(todo), stage=STAGE)
        ds = build(todo, recipe, where, attempt.writer(), timed=timed, workers=workers)
        commit_as_it_comes(ds, attempt, counter, stall_s=where.stall_s)
