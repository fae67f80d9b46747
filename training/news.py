"""What workers tell while they train -> progress lines and MLflow metrics, in the driver.

Workers leave messages on a board (a small actor); a thread of the driver collects them while Ray Train's `fit` blocks. MLflow is
imported in that thread, so it delays neither the start of the training nor its steps, and no worker needs it.

A message is a dict of `kind` and what belongs to it:
    start       step                           the workers begin behind this step, also after a restart
    steps       losses [(step, loss)], n_targets
    validation  step, loss, exact_match, n_targets
    error       error, a CommandError
    end         seconds by part of a step, rejected {video_id: reason}
"""

import threading
from contextlib import ExitStack
from typing import Any

import ray

from infra.config import Recipe, Where
from infra.errors import CommandError
from infra.progress import Counter, counting, say
from infra.tracking import Metric, Run, open_run

COLLECT_EVERY_S = 0.5
STEPS_PER_POINT = 10  # of the loss curve in MLflow

Message = dict[str, Any]


class Board:
    """Where workers leave their messages: an actor, as `new_board` makes it."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def tell(self, message: Message) -> None:
        self.messages.append(message)

    def collect(self) -> list[Message]:
        """Messages since the last call."""
        found, self.messages = self.messages, []
        return found


def new_board() -> Any:
    """A handle of a new board, for workers and driver. It reserves no CPU."""
    return ray.remote(num_cpus=0)(Board).remote()


class News:
    """Takes messages in their order. `error` is the last one that the user can do something about."""

    def __init__(self, counter: Counter, tracked: Run | None, *, step: int) -> None:
        self.counter, self.tracked, self.step = counter, tracked, step
        self.n_targets = 0
        self.losses: list[float] = []
        self.error: CommandError | None = None

    def take(self, message: Message) -> None:
        match message:
            case {"kind": "start", "step": step}:
                if step != self.step:
                    say(f"train: workers were lost and started again behind step {step}")
                self.error = None
                self._advance(step)
            case {"kind": "steps", "losses": losses, "n_targets": n_targets}:
                self._steps(losses, n_targets)
            case {"kind": "validation", "step": step, "loss": loss, "exact_match": exact_match, "n_targets": n}:
                say(f"train: step {step}: validation loss {loss:.3f}, exact match {exact_match:.3f} of {n:.0f} targets")
                self._track([("validation_loss", loss, step), ("validation_exact_match", exact_match, step)])
            case {"kind": "error", "error": error}:
                self.error = error
            case {"kind": "end", "seconds": seconds, "rejected": rejected}:
                parts = ", ".join(f"{name} {took_s:.1f} s" for name, took_s in seconds.items())
                say(f"train: the first worker spent: {parts}")
                for video_id, reason in sorted(rejected.items()):
                    say(f"train: example {video_id} left out: {reason}")
            case _:
                raise ValueError(f"message: got {message}, expected one of training.news")

    def _steps(self, losses: list[tuple[int, float]], n_targets: int) -> None:
        points: list[Metric] = []
        for step, loss in losses:
            self.losses.append(loss)
            if step % STEPS_PER_POINT == 0:
                points.append(("loss", sum(self.losses) / len(self.losses), step))
                self.losses = []
        self._track(points)
        self.n_targets += n_targets
        done = self.counter.n_done + losses[-1][0] - self.step
        mean = sum(loss for _, loss in losses) / len(losses)
        self._advance(losses[-1][0], note=f"loss {mean:.3f}, {self.n_targets / max(1, done) * self.counter.per_s():.0f} targets/s")

    def _advance(self, step: int, *, note: str = "") -> None:
        self.counter.advance(step - self.step, note=note)
        self.step = step

    def _track(self, metrics: list[Metric]) -> None:
        if self.tracked is not None and metrics:
            self.tracked.log_metrics(metrics)


def follow(board: Any, recipe: Recipe, where: Where, *, done: threading.Event) -> CommandError | None:
    """Show and track what is told until `done` is set and all is collected. Returns the error that workers told, if any."""
    tracked, news = open_run(where, recipe), None
    with ExitStack() as stack:
        while True:
            is_last = done.is_set()  # asked before collecting, so that nothing told before is missed
            for message in ray.get(board.collect.remote()):
                if news is None:
                    step = message.get("step", 0)
                    counter = stack.enter_context(counting("train", "steps", recipe.training.n_steps - step))
                    news = News(counter, tracked, step=step)
                news.take(message)
            if is_last:
                return news.error if news else None
            done.wait(COLLECT_EVERY_S)
