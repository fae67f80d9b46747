"""The training loop of a worker: steps, validations, checkpoints, and the ways in which it can end.

    last step, or no better validation for long enough   a last checkpoint; the driver publishes the network
    the driver was told to end (SIGTERM)                  a checkpoint; the same command continues
    a node is to be taken away, a worker was terminated   a checkpoint, and on; when it is gone, Ray Train starts the workers anew
    a loss that must not be learnt from                   what led to it is kept
    bad input                                             said to the driver; a restart would not help

What one worker is asked, all act on in the same step: it goes around with the number of targets.
"""

import resource
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import ray
import torch

from infra.errors import BadInputError, CommandError, StageFailedError
from infra.stage import first_cause
from training import incidents
from training.job import Job
from training.profile import profiled
from training.signals import asked, listen
from training.worker import Step, Worker

TELL_EVERY_S = 1.0


class Teller:
    """Tells the board about the steps, about once a second. Workers but the first have none: nothing is told twice."""

    def __init__(self, board: Any | None) -> None:
        self.board = board
        self.last: ray.ObjectRef | None = None
        self.steps: list[Step] = []
        self.told = time.monotonic()

    def tell(self, kind: str, **content: Any) -> None:
        if self.board is not None:
            self.last = self.board.tell.remote({"kind": kind, **content})

    def step(self, step: Step, worker: Worker, *, is_last: bool) -> None:
        self.steps.append(step)
        if is_last or time.monotonic() - self.told > TELL_EVERY_S:
            steps = [asdict(one) for one in self.steps]
            facts = {"seconds": dict(worker.history.seconds), "floor_s_per_token": worker.floor_s_per_token, "memory_bytes": memory_bytes()}
            self.tell("steps", steps=steps, **facts)
            self.steps, self.told = [], time.monotonic()

    def is_to_end(self) -> bool:
        """Whether the board last answered that the driver ends. Does not wait for an answer."""
        return self.last is not None and bool(ray.wait([self.last], timeout=0)[0]) and bool(ray.get(self.last))

    def wait(self) -> None:
        """Until all that was told has arrived: messages keep their order."""
        if self.last is not None:
            ray.get(self.last)


def run(job: Job) -> None:
    """All that a worker does. Raises CommandErrors that a restart of the workers may mend; of others the board is told."""
    teller = Teller(job.board)
    try:
        worker = Worker(job)
        listen()
        train(worker, teller if worker.rank == 0 else Teller(None))
    except incidents.OtherWorkerError:
        pass
    except BadInputError as error:  # all workers end in the same step: a restart would not help
        teller.tell("error", error=error)
    except CommandError as error:
        cause, told = first_cause(error)
        teller.tell("error", error=type(cause)(told))
        raise
    finally:
        teller.wait()


def train(worker: Worker, teller: Teller) -> None:
    """All steps that are left, with validation and checkpoints between them."""
    history = worker.history
    teller.tell("start", step=history.step, seconds=dict(history.seconds))
    with profiled(worker.job.n_profiled if worker.rank == 0 else 0, worker.job.folder) as after_step:
        steps(worker, teller, after_step)
    worker.writer.wait()
    teller.tell("end", step=history.step, seconds=dict(history.seconds), rejected=worker.rejected)
    teller.wait()


def steps(worker: Worker, teller: Teller, after_step: Callable[[], None]) -> None:
    """Until the training or this attempt ends; `after_step` is called behind each."""
    settings, history = worker.settings, worker.history
    is_warned = False
    while not history.is_done(settings):
        with worker.clock.part("data"):  # in which workers wait for one another: Ray Train answers all of them alike
            mine = asked(to_end=teller.is_to_end())
        try:
            step, of_all = worker.train_step(mine)
        except incidents.RefusedError as refused:
            stop(worker, teller, str(refused))
            break
        after_step()
        is_last = step.step == settings.n_steps
        teller.step(step, worker, is_last=is_last or of_all.to_end)
        is_best = False
        if worker.validation and (is_last or step.step % settings.validate_every == 0):
            is_best = worker.validate()
            teller.tell("validation", score=history.validation[-1])
        is_going = of_all.to_leave or (of_all.to_save and not is_warned)
        if history.is_done(settings) or is_best or is_going or of_all.to_end or step.step % settings.checkpoint_every == 0:
            worker.save()
        if is_going:
            is_warned = True
            worker.writer.wait()
            teller.tell("saved", step=step.step)
            teller.wait()
            worker.wait_for_all()  # nobody leaves before the first worker has saved
        if mine.to_leave:
            raise StageFailedError(f"train: worker {worker.rank} was terminated (SIGTERM), step {step.step} is saved")
        if of_all.to_end:
            break


def stop(worker: Worker, teller: Teller, why: str) -> None:
    """Keep what led to a step that must not be learnt from. All workers come here together."""
    videos = worker.all_in_step()
    if worker.rank == 0:
        teller.tell("error", error=incidents.keep(worker.job.folder, why, worker.history, videos))


def memory_bytes() -> int:
    """The most this worker's process has had: of the accelerator where there is one, else of the host."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
