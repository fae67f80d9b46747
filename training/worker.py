"""What each Ray Train worker runs: its share of every step, from the last checkpoint to the last step.

A step: wait for the batch, encode its videos (frozen VLM, kept features), hypernetwork + student forward and backward, update (ZeRO's
reduction included). Rank 0 tells the driver's board about losses, and writes the checkpoints, which all workers gather together.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from jaxtyping import Float

from infra.config import Recipe
from infra.errors import BadInputError, CommandError
from training import checkpoints
from training.batches import Batch, HeldExamples, Share, StreamedExamples, draw, read_all
from training.engine import Engine
from training.loss import Encoder, TargetLoss, text_of, validate
from video2lora.hypernetwork import Hypernetwork, HypernetworkConfig, checked_config
from video2lora.pretrained import load_vlm
from video2lora.vlm import FrozenVLM

TELL_EVERY_S = 1.0
N_LOSSES = 100  # points of the loss curve that checkpoints keep
VALIDATION_VIDEOS = 16  # at a time
N_NAMED_REJECTS = 20


@dataclass(frozen=True)
class Job:
    """What a worker is told. `n_streamed` counts the rows of a training split too large to hold; 0: hold it."""

    recipe: Recipe
    folder: str  # of the hypernetwork; checkpoints are in it
    made_from: dict[str, Any]
    n_streamed: int
    n_threads: int
    validates: bool
    board: Any  # handle of the Board actor


@dataclass
class Clock:
    """Seconds spent in each part of the training: in steps and between them."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


class Worker:
    """Models, data and state of one training worker, loaded once."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.n_threads)
        context = ray.train.get_context()
        self.job, self.settings = job, job.recipe.training
        self.rank, self.n_workers = context.get_world_rank(), context.get_world_size()
        self.share = Share(self.rank, self.n_workers, self.settings.videos_per_step // self.n_workers)
        self.clock, self.rejected = Clock(), dict[str, str]()
        device = ray.train.torch.get_device()
        self.vlm = frozen_vlm(job.recipe, device=str(device))
        checkpoint = checkpoints.latest(f"{job.folder}/checkpoints")
        hypernetwork, moments = checkpoints.load(checkpoint) if checkpoint else (new_hypernetwork(job.recipe, self.vlm), None)
        hypernetwork.perceiver.checkpoint_projection = device.type == "cuda"  # there it is memory that limits the batch
        self.student = TargetLoss(hypernetwork.to(device), self.vlm, dtype=self.settings.dtype)
        self.engine = Engine(self.student, self.settings, videos_per_worker=self.share.per_worker)
        self.encoder = Encoder(self.vlm, opens_answer=job.recipe.hypernetwork.opens_answer)
        self.step = checkpoint.step if checkpoint else 0
        self.losses: list[tuple[int, float]] = checkpoint.state["losses"] if checkpoint else []
        self.since_point: list[float] = []  # losses since the curve's last point
        self.scores: list[dict[str, float]] = checkpoint.state["validation"] if checkpoint else []
        self.n_counted = 0  # of the validation batches
        self.validation = self.validation_batches() if job.validates else []
        self.batches = self.batches_from_here()
        if moments is not None:
            batch = next(self.batches)
            self.engine.restore(moments, step=self.step, loss=self.loss(batch))
            self.batches = chain([batch], self.batches)

    def batches_from_here(self) -> Iterator[Batch]:
        """This worker's batches from the present step on."""
        seed, n = self.settings.seed, self.settings.targets_per_video
        shard = ray.train.get_dataset_shard("train")
        if self.job.n_streamed:
            streamed = StreamedExamples(shard, n_rows=self.job.n_streamed, seed=seed, n_targets=n, on_reject=self.reject)
            return streamed.batches(self.share, first_step=self.step)
        examples = list(read_all(shard, self.reject))
        if not examples:
            raise BadInputError(f"examples: not one training video can be decoded, the first: {next(iter(self.rejected.values()), 'none')}")
        return HeldExamples(examples, seed=seed, n_targets=n).batches(self.share, first_step=self.step)

    def validation_batches(self) -> list[Batch]:
        """This worker's validation videos, in the same batches with the same drawn targets every time."""
        examples = sorted(read_all(ray.train.get_dataset_shard("validation"), self.reject), key=lambda one: one.video_id)
        mine = examples[self.rank :: self.n_workers]
        n, seed = self.settings.targets_per_video, self.settings.seed
        parts = [mine[i : i + VALIDATION_VIDEOS] for i in range(0, len(mine), VALIDATION_VIDEOS)]
        self.n_counted = len(parts)
        n_rounds = math.ceil(len(examples[:: self.n_workers]) / VALIDATION_VIDEOS)
        parts += [examples[:1]] * (n_rounds - len(parts))  # ZeRO 3 gathers parameters, so all workers must do as many
        return [Batch(tuple(part), tuple(draw(one, n=n, seed=seed, epoch=0) for one in part)) for part in parts]

    def reject(self, row: dict[str, Any]) -> None:
        self.rejected[row["video_id"]] = f"{row['reason']}: {row['detail']}"

    def loss(self, batch: Batch) -> Float[torch.Tensor, ""]:
        """Mean over the batch's targets, with its gradient."""
        with self.clock.part("encode"):
            features = self.encoder(batch.examples)
        with self.clock.part("loss"):
            losses: torch.Tensor = self.engine.deepspeed(features, text_of(self.vlm, batch, newline=self.settings.newline_after_target))
            return losses.mean()

    def train_step(self) -> tuple[float, int]:
        """One step of all workers: this one's loss and its number of targets."""
        with self.clock.part("data"):
            batch = next(self.batches)
        loss = self.loss(batch)
        with self.clock.part("loss"):
            self.engine.backward(loss)
            value = float(loss.detach())
        with self.clock.part("update"):
            self.engine.update(self.step)
        self.step += 1
        self.since_point.append(value)
        if self.step % max(1, self.settings.n_steps // N_LOSSES) == 0:
            self.losses.append((self.step, round(sum(self.since_point) / len(self.since_point), 5)))
            self.since_point = []
        return value, batch.n_targets

    def validate(self) -> dict[str, float]:
        """Mean loss and share of exact greedy answers over all workers' validation targets."""
        sums = torch.zeros(3, device=self.vlm.device)
        with self.clock.part("validation"):
            for i, batch in enumerate(self.validation):
                found = validate(
                    self.student,
                    self.encoder,
                    batch,
                    newline=self.settings.newline_after_target,
                    max_new_tokens=self.job.recipe.answer.max_new_tokens,
                )
                sums += torch.tensor(found, device=sums.device) * (i < self.n_counted)
            torch.distributed.all_reduce(sums)
        loss, n_right, n = sums.tolist()
        self.scores.append({"step": self.step, "loss": loss / n, "exact_match": n_right / n, "n_targets": n})
        return self.scores[-1]

    def save(self) -> None:
        """Gather the state on all workers; the first one writes it."""
        with self.clock.part("checkpoint"):
            weights, moments = self.engine.weights(), self.engine.moments()
            if self.rank == 0:
                state = {"step": self.step, "losses": self.losses, "validation": self.scores}
                hypernetwork = with_weights(self.student.hypernetwork.config, weights)
                checkpoints.save(hypernetwork, moments, f"{self.job.folder}/checkpoints", state=state, metadata=self.metadata())

    def metadata(self) -> dict[str, Any]:
        """What the hypernetwork's config.json says about where it comes from. Losses are those of the first worker."""
        return {
            **self.job.recipe.section("vlm", "frames", "hypernetwork", "training"),
            "vlm_digest": self.vlm.digest,
            "made_from": self.job.made_from,
            "step": self.step,
            "losses": self.losses,
            "validation": self.scores,
            "n_rejected": len(self.rejected),
            "rejected": dict(sorted(self.rejected.items())[:N_NAMED_REJECTS]),
        }


def work(config: dict[str, Any]) -> None:
    """The function that Ray Train runs in every worker. `config` holds the Job."""
    job: Job = config["job"]
    try:
        _train(Worker(job))
    except BadInputError as error:  # every worker has the same input, so all end here: a restart would not help
        ray.get(job.board.tell.remote({"kind": "error", "error": error}))
    except CommandError as error:
        ray.get(job.board.tell.remote({"kind": "error", "error": error}))
        raise


def frozen_vlm(recipe: Recipe, *, device: str) -> FrozenVLM:
    """Raises BadInputError if the recipe's VLM is not there."""
    try:
        return load_vlm(recipe.vlm.model, revision=recipe.vlm.revision, dtype=recipe.vlm.dtype, device=device)
    except ValueError as error:
        raise BadInputError(f"recipe: {error}") from error


def new_hypernetwork(recipe: Recipe, vlm: FrozenVLM) -> Hypernetwork:
    """As the recipe says and as the VLM's sizes demand. Raises BadInputError if they do not fit."""
    settings = recipe.hypernetwork.model_dump()
    try:
        settings["target_modules"] = vlm.module_sizes(settings["target_modules"])
        config = checked_config({**settings, "n_layers": len(vlm.layers), "d_vlm": vlm.d_vlm}, where="hypernetwork")
    except ValueError as error:
        raise BadInputError(f"recipe: {error}") from error
    return Hypernetwork(config, seed=recipe.training.seed)


def with_weights(config: HypernetworkConfig, weights: dict[str, torch.Tensor]) -> Hypernetwork:
    """A hypernetwork with the trained parameters of a TargetLoss, by their names there."""
    with torch.device("meta"):
        hypernetwork = Hypernetwork(config)
    hypernetwork.load_state_dict({name.removeprefix("hypernetwork."): value for name, value in weights.items()}, assign=True)
    return hypernetwork


class Teller:
    """Tells the board about the steps, about once a second. Workers but the first have no board: nothing is told twice."""

    def __init__(self, board: Any | None) -> None:
        self.board = board
        self.last: ray.ObjectRef | None = None
        self.losses: list[tuple[int, float]] = []
        self.n_targets, self.told = 0, time.monotonic()

    def tell(self, kind: str, **content: Any) -> None:
        if self.board is not None:
            self.last = self.board.tell.remote({"kind": kind, **content})

    def step(self, step: int, loss: float, *, n_targets: int, is_last: bool) -> None:
        self.losses.append((step, loss))
        self.n_targets += n_targets
        if is_last or time.monotonic() - self.told > TELL_EVERY_S:
            self.tell("steps", losses=self.losses, n_targets=self.n_targets)
            self.losses, self.n_targets, self.told = [], 0, time.monotonic()


def _train(worker: Worker) -> None:
    """All steps that are left, with validation and checkpoints between them."""
    settings, teller = worker.settings, Teller(worker.job.board if worker.rank == 0 else None)
    teller.tell("start", step=worker.step)
    while worker.step < settings.n_steps:
        loss, n_targets = worker.train_step()
        is_last = worker.step == settings.n_steps
        teller.step(worker.step, loss, n_targets=n_targets * worker.n_workers, is_last=is_last)
        if worker.job.validates and (is_last or worker.step % settings.validate_every == 0):
            teller.tell("validation", **worker.validate())
        if is_last or worker.step % settings.checkpoint_every == 0:
            worker.save()
    teller.tell("end", seconds=worker.clock.seconds, rejected=worker.rejected)
    if teller.last is not None:
        ray.get(teller.last)  # messages arrive in order: with the last one all are there, and the worker may end
