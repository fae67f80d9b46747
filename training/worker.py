"""What each Ray Train worker runs: its share of every step, from the last checkpoint to the last step.

A step: wait for the batch, agree with the other workers on how many targets it has, encode its videos (frozen VLM), hypernetwork and
student forward and backward, some videos at a time where memory asks for it, and, where all workers' loss is one to learn from, update.
The first worker tells the driver's board about it, and writes the checkpoints, which all gather together. All decide alike, from what
they share.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import ray.train
import ray.train.torch
import torch
from jaxtyping import Float
from torch import Tensor

from infra.errors import BadInputError
from training import checkpoints
from training.batches import Batch, HeldExamples, Share, StreamedExamples, read_all
from training.engine import Engine, learning_rate
from training.floor import count_flops, matmul_rate
from training.held_out import Validation
from training.history import History
from training.incidents import Loss, OtherWorkerError, RefusedError, losses_of
from training.job import Job
from training.loss import KEPT_BYTES, TERMS, Encoder, Rows, TargetLoss, feature_bytes, text_of
from training.models import begun_from, frozen_vlm, new_hypernetwork
from training.signals import Asked
from training.streams import Source
from video2lora.hypernetwork import Hypernetwork, HypernetworkConfig
from video2lora.vlm import Features

N_NAMED_REJECTS = 20

T = TypeVar("T")


@dataclass
class Clock:
    """Seconds spent in each part of the training: in steps and between them."""

    seconds: dict[str, float]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


@dataclass(frozen=True)
class Learnt:
    """What a step learns from: means over all workers' targets, and sums over all workers."""

    loss: float
    terms: dict[str, float]  # those of TERMS that the loss is made of
    n_targets: int
    n_tokens: int  # read by the VLM: of videos, prompts and targets


@dataclass(frozen=True)
class Step(Learnt):
    """A finished one."""

    step: int
    at_ms: int
    grad_norm: float
    lr: float


@dataclass(frozen=True)
class Part:
    """Of a batch: as many of its videos as are learnt from at once, and their targets as the VLM reads them."""

    batch: Batch
    texts: list[Rows]


class Worker:
    """Models, data and state of one training worker, loaded once."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.n_threads)
        context = ray.train.get_context()
        self.job, self.settings = job, job.recipe.training
        self.rank, self.n_workers = context.get_world_rank(), context.get_world_size()
        self.share = Share(self.rank, self.n_workers, self.settings.videos_per_step)
        self.n_parts = -(-self.share.per_step // (self.n_workers * (job.videos_at_once or self.share.per_step)))
        self.in_step = list[Loss]()  # this worker's videos of the present step
        self.device = ray.train.torch.get_device()
        self.vlm = self.agreed(lambda: frozen_vlm(job.recipe, device=str(self.device)))
        checkpoint = self.gathered(checkpoints.latest(f"{job.folder}/checkpoints"))[0]  # one who was cut off may write another meanwhile
        self.history = History.of(checkpoint.state) if checkpoint else History()
        self.clock, self.rejected = Clock(self.history.seconds), self.history.rejected
        hypernetwork, moments = self.agreed(lambda: checkpoints.load(checkpoint) if checkpoint else (self.first_hypernetwork(), None))
        self.student = TargetLoss(hypernetwork.to(self.device), self.vlm, dtype=self.settings.dtype)
        self.weights = torch.tensor([getattr(self.settings, f"{name}_weight") for name in TERMS], device=self.device)  # of each term
        self.encoder = Encoder(self.vlm, opens_answer=job.recipe.hypernetwork.opens_answer, keeps=False)
        steps = self.steps_from_here()
        first = next(steps)
        self.steps = chain([first], steps)
        self.validation = self.validation_of(job.validation) if job.validation else None
        self.floor_s_per_token = self.floor(first[0].batch) if self.rank == 0 else 0.0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        hypernetwork.perceiver.checkpoint_projection = self.device.type == "cuda"  # there it is memory that limits the batch
        if self.settings.compile:
            hypernetwork.compile()
        self.engine = Engine(self.student, self.settings)
        if moments is not None:
            loss = self.engine.deepspeed(self.features(first[0].batch), first[0].texts)[0].mean()
            self.engine.restore(moments, step=self.history.step, loss=loss)
        self.writer = checkpoints.Writer(f"{job.folder}/checkpoints", kept=self.settings.checkpoints_kept)

    def first_hypernetwork(self) -> Hypernetwork:
        """Before the first step. Raises BadInputError."""
        if self.job.start_from is None:
            return new_hypernetwork(self.job.recipe, self.vlm)
        weights_sha256 = self.job.made_from["start_from"]["weights_sha256"]
        return begun_from(self.job.recipe, self.vlm, self.job.start_from, weights_sha256=weights_sha256)

    def batches_from_here(self) -> Iterator[Batch]:
        """This worker's batches from the present step on. Held examples also say whether all their features can be kept."""
        seed, n, first_step = self.settings.seed, self.settings.targets_per_video, self.history.step
        shard = ray.train.get_dataset_shard("train")
        if not self.job.is_held:
            n_rows = self.job.train.n_rows
            streamed = StreamedExamples(shard, n_rows=n_rows, seed=seed, n_targets=n, vlm=self.vlm, on_reject=self.reject)
            return streamed.batches(self.share, first_step=first_step)
        examples = list(read_all(shard, vlm=self.vlm, on_reject=self.reject))
        if not examples:
            raise BadInputError(f"examples: not one training video can be used, the first: {next(iter(self.rejected.values()), 'none')}")
        n_bytes = sum(feature_bytes(self.vlm, one, max_chunks=self.settings.max_chunks) for one in examples)
        self.encoder.keeps = n_bytes <= KEPT_BYTES
        return HeldExamples(examples, seed=seed, n_targets=n).batches(self.share, first_step=first_step)

    def validation_of(self, source: Source) -> Validation:
        examples = list(read_all(ray.train.get_dataset_shard("validation"), vlm=self.vlm, on_reject=self.reject))
        if not examples:
            raise BadInputError(f"examples: not one of {source.n_rows} validation videos can be used")
        return Validation(examples, self.job.recipe, rank=self.rank, n_workers=self.n_workers)

    def reject(self, row: dict[str, Any]) -> None:
        self.rejected[row["video_id"]] = f"{row['reason']}: {row['detail']}"

    def features(self, batch: Batch) -> Features:
        """Of the batch's videos, in as many chunks as the present step has."""
        drawn = np.random.default_rng([self.settings.seed, self.history.step]).integers(self.settings.max_chunks)
        with self.clock.part("encode"):
            return self.encoder(batch.examples, n_chunks=1 + int(drawn))

    def steps_from_here(self) -> Iterator[list[Part]]:
        """This worker's part of each step, as `agreed`. All workers must ask for the next together."""
        batches = self.batches_from_here()
        while True:
            yield self.agreed(lambda: self.parts_of(next(batches)))

    def parts_of(self, batch: Batch) -> list[Part]:
        return [self.part_of(part) for part in batch.parts(self.n_parts)]

    def part_of(self, batch: Batch) -> Part:
        newline, kl = self.settings.newline_after_target, self.settings.kl_weight > 0
        return Part(batch, text_of(self.vlm, batch, newline=newline, kl=kl))

    def agreed(self, make: Callable[[], T]) -> T:
        """What `make` gives on this worker. All workers must call it together, and go on or end together: where one of them finds bad
        input, it raises BadInputError, and the others OtherWorkerError.
        """
        made, bad = list[T](), list[BadInputError]()
        try:
            made.append(make())
        except BadInputError as error:
            bad.append(error)
        if self.summed([float(len(bad))])[0]:
            raise bad[0] if bad else OtherWorkerError
        return made[0]

    def floor(self, batch: Batch) -> float:
        """The least seconds a token can take all workers together: the operations of a step over the rate of matrix products here.

        Before there is an engine, on a step that is thrown away: counting changes which of PyTorch's operations are called. Of one video
        of the batch: nothing is computed twice yet for want of memory, so more of them need not fit in.
        """
        part = self.part_of(batch.parts(max(1, len(batch.examples)))[0])
        if self.encoder.keeps:
            self.features(part.batch)  # all steps but the first find them
        with count_flops() as counted:
            features = self.features(part.batch)
            self.student(features, part.texts).sum().backward()
        self.student.zero_grad(set_to_none=True)
        return (
            counted.get_total_flops()
            / n_tokens(features, part.texts)
            / matmul_rate(self.device, getattr(torch, self.settings.dtype))
            / self.n_workers
        )

    def terms(self, part: Part) -> tuple[Float[Tensor, "n_terms n_targets"], int]:
        """Of the loss of each of its targets; and the tokens that the VLM reads."""
        features = self.features(part.batch)
        with self.clock.part("loss"):
            terms: Tensor = self.engine.deepspeed(features, part.texts)
        losses = (self.weights @ terms.detach()).tolist()
        self.in_step += losses_of(part.batch, losses, torch.cat([rows.video_of_row for rows in part.texts]).tolist())
        return terms if part.batch.counts else terms * 0.0, n_tokens(features, part.texts)

    def backward(self, parts: Sequence[Part], *, n_targets: float) -> Learnt:
        """Losses and gradients of the step's targets, of which all workers have `n_targets`. Raises RefusedError."""
        sums = torch.zeros(len(TERMS) + 1, dtype=torch.float64)
        self.in_step = []
        for i, part in enumerate(parts):
            terms, n_read = self.terms(part)
            with self.clock.part("loss"):
                loss = (self.weights @ terms).sum() / n_targets * self.n_workers  # by which the engine divides again
                self.engine.backward(loss, is_last=i == len(parts) - 1)
                sums += torch.tensor([*terms.detach().sum(1).tolist(), n_read], dtype=torch.float64)
        with self.clock.part("loss"):
            *of_terms, n_read_by_all = self.summed(sums.tolist())
        means = [value / n_targets for value in of_terms]
        mean = sum(weight * value for weight, value in zip(self.weights.tolist(), means, strict=True))
        if why := self.history.refused(mean, max_ratio=self.settings.max_loss_ratio):
            raise RefusedError(why)
        used = {name: value for name, weight, value in zip(TERMS, self.weights.tolist(), means, strict=True) if weight}
        return Learnt(mean, used, round(n_targets), round(n_read_by_all))

    def train_step(self, asked: Asked) -> tuple[Step, Asked]:
        """One step of all workers, and what they were `asked` together. Raises RefusedError where it must not be learnt from, and as
        `agreed`.
        """
        with self.clock.part("data"):  # this worker's own, and those that others still wait for
            parts = next(self.steps)
            n_targets, *n_asked = self.summed([sum(part.batch.n_targets for part in parts), *astuple(asked)])
        learnt = self.backward(parts, n_targets=max(1.0, n_targets))  # 0 where no worker has a video that can be used
        lr = learning_rate(self.history.step, self.settings)
        with self.clock.part("update"):
            grad_norm = self.engine.update(lr)
        if not math.isfinite(grad_norm):
            raise RefusedError(f"gradient norm {grad_norm}")
        at_ms = self.history.enter(learnt.loss)
        step = Step(**asdict(learnt), step=self.history.step, at_ms=at_ms, grad_norm=grad_norm, lr=lr)
        return step, Asked(*(n > 0 for n in n_asked))

    def summed(self, values: list[float]) -> list[float]:
        """Over all workers, each number by itself."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        sums: list[float] = tensor.tolist()
        return sums

    def validate(self) -> bool:
        """Enter a validation into the history; True if it is the best so far."""
        assert self.validation is not None
        with self.clock.part("validation"):
            if self.history.blind is None:
                self.history.blind = self.validation.blind(self.vlm, self.summed)
            # ZeRO 3 has no whole weights on any worker and gathers them at every call; answers take as many calls as they are long.
            whole = with_weights(self.student.hypernetwork.config, self.engine.weights()).to(self.device)
            student = TargetLoss(whole, self.vlm, dtype=self.settings.dtype)
            score = self.validation.score(student, self.encoder, self.summed)
        now = {"step": float(self.history.step), "at_ms": float(self.history.at_ms[-1])}
        return self.history.take({**now, **score, **self.history.blind}, self.settings)

    def all_in_step(self) -> list[Loss]:
        """Every worker's videos of the present step. All workers must call it together."""
        return [one for of_worker in self.gathered(self.in_step) for one in of_worker]

    def wait_for_all(self) -> None:
        """Until every worker has come here. Of no numbers at all nothing is summed, and none would wait."""
        self.summed([0.0])

    def gathered(self, mine: Any) -> list[Any]:
        """What each worker gives, by rank. All workers must call it together."""
        found = [None] * self.n_workers
        torch.distributed.all_gather_object(found, mine)
        return found

    def save(self) -> None:
        """Gather the state on all workers; a thread of the first one writes it."""
        with self.clock.part("checkpoint"):
            weights, moments = self.engine.weights(), self.engine.moments()
            for rejected in self.gathered(self.rejected):  # of a stream, each worker sees its own rows alone
                self.rejected.update(rejected)
            if self.rank == 0:
                hypernetwork = with_weights(self.student.hypernetwork.config, weights)
                state = self.history.state() | {"is_held": self.job.is_held}
                self.writer.save(hypernetwork, moments, state=state, metadata=self.metadata())

    def metadata(self) -> dict[str, Any]:
        """What the hypernetwork's config.json says about where it comes from."""
        return {
            **self.job.recipe.section("vlm", "frames", "hypernetwork", "training"),
            "vlm_digest": self.vlm.digest,
            "made_from": self.job.made_from,
            "step": self.history.step,
            "seconds": dict(self.history.seconds),
            "losses": self.history.curve(),
            "validation": list(self.history.validation),
            "n_rejected": len(self.rejected),
            "rejected": dict(sorted(self.rejected.items())[:N_NAMED_REJECTS]),
        }


def n_tokens(features: Features, groups: Sequence[Rows]) -> int:
    """That the VLM reads in a step: of videos, prompts and targets."""
    return int(features.mask.sum()) + sum(int(rows.texts.mask.sum()) for rows in groups)


def with_weights(config: HypernetworkConfig, weights: dict[str, Tensor]) -> Hypernetwork:
    """A hypernetwork with the trained parameters of a TargetLoss, by their names there."""
    with torch.device("meta"):
        hypernetwork = Hypernetwork(config)
    hypernetwork.load_state_dict({name.removeprefix("hypernetwork."): value for name, value in weights.items()}, assign=True)
    return hypernetwork
