"""What workers tell while they train -> progress lines and MLflow metrics, in the driver.

Workers leave messages on a board (a small actor); a thread of the driver collects them while Ray Train's `fit` blocks. MLflow is
imported in that thread, so it delays neither the start of the training nor its steps, and no worker needs it. The board's answer to a
message is whether the driver was told to end.

A message is a dict of `kind` and what belongs to it:
    start       step, seconds by part of it    the workers begin behind this step, also after a restart
    steps       steps [worker.Step as dict], seconds by part, floor_s_per_token of all workers, memory_bytes
    validation  score
    saved       step                           because a node is going away
    error       error, a CommandError
    end         step, seconds by part of a step, rejected {video_id: reason}
"""

import threading
import time
from contextlib import ExitStack
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from infra import metrics
from infra.config import Recipe, Where
from infra.errors import CommandError
from infra.progress import Counter, counting, say
from infra.tracking import Point, Run, open_run

COLLECT_EVERY_S = 0.5

Message = dict[str, Any]


class Board:
    """Where workers leave their messages: an actor, as `new_board` makes it."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.is_ending = False

    def tell(self, message: Message) -> bool:
        """True if the training is to end."""
        self.messages.append(message)
        return self.is_ending

    def collect(self) -> list[Message]:
        """Messages since the last call."""
        found, self.messages = self.messages, []
        return found

    def end(self) -> None:
        """From now on every message is answered so."""
        self.is_ending = True


def new_board() -> Any:
    """A handle of a new board, for workers and driver. It reserves no CPU, and is on the driver's node: no other may take it away."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()


class News:
    """Takes messages in their order. `error` is the last one that the user can do something about."""

    def __init__(self, counter: Counter, tracked: Run | None, *, step: int) -> None:
        self.counter, self.tracked, self.step = counter, tracked, step
        self.has_begun = False
        self.seconds: dict[str, float] = {}  # by part, since the workers began
        self.error: CommandError | None = None

    def take(self, message: Message) -> None:
        match message:
            case {"kind": "start", "step": step, "seconds": seconds}:
                if self.has_begun:
                    say(f"train: workers were lost and started again behind step {step}")
                self.has_begun, self.error, self.seconds = True, None, seconds
                self._advance(step)
            case {"kind": "steps"}:
                self._steps(message)
            case {"kind": "validation", "score": score}:
                self._validation(score)
            case {"kind": "saved", "step": step}:
                say(f"train: a worker or its node is going away; step {step} is saved")
            case {"kind": "error", "error": error}:
                self.error = error
            case {"kind": "end", "seconds": seconds, "rejected": rejected}:
                parts = ", ".join(f"{name} {took_s:.1f} s" for name, took_s in seconds.items())
                metrics.STAGE_LEFT.set(0, stage="train")
                say(f"train: the first worker spent: {parts}; waiting for data {waiting_share(seconds):.1%} of its steps")
                for video_id, reason in sorted(rejected.items()):
                    say(f"train: example {video_id} left out: {reason}")
            case _:
                raise ValueError(f"message: got {message}, expected one of training.news")

    def _steps(self, message: Message) -> None:
        steps, seconds = message["steps"], message["seconds"]
        since = {name: took_s - self.seconds.get(name, 0.0) for name, took_s in seconds.items()}
        self.seconds = seconds
        took_s = max(1e-9, sum(since.get(name, 0.0) for name in STEP_PARTS))
        n_tokens = sum(one["n_tokens"] for one in steps)
        rates = {
            "targets_per_s": sum(one["n_targets"] for one in steps) / took_s,
            "tokens_per_s": n_tokens / took_s,
            "floor_share": n_tokens * message["floor_s_per_token"] / took_s,
            "data_wait_share": waiting_share(since),
            "memory_bytes": float(message["memory_bytes"]),
        }
        last, at_ms = steps[-1]["step"], steps[-1]["at_ms"]
        self._track([point for one in steps for point in step_points(one)] + [(name, value, at_ms, last) for name, value in rates.items()])
        mean = sum(one["loss"] for one in steps) / len(steps)
        shares = f"{rates['floor_share']:.0%} of the floor, {rates['data_wait_share']:.0%} waiting for data"
        self._advance(last, note=f"loss {mean:.3f}, {rates['targets_per_s']:.0f} targets/s, {shares}")
        self._show({"step": float(last), "loss": mean, **rates})

    def _validation(self, score: dict[str, float]) -> None:
        step = int(score["step"])
        told = f"train: step {step}: validation loss {score['loss']:.3f} of {score['n_targets']:.0f} targets"
        if score["n_answered"]:
            told += f"; exact match {score['exact_match']:.3f}, token F1 {score['token_f1']:.3f} of {score['n_answered']:.0f} answers"
            told += f" (another video's adapter {score['other_exact_match']:.3f}, none {score['blind_exact_match']:.3f})"
        say(told)
        self._track(validation_points(score))

    def _show(self, now: dict[str, float]) -> None:
        metrics.TRAINING_STEP.set(now["step"])
        metrics.TRAINING_LOSS.set(now["loss"])
        metrics.TRAINING_TARGETS_PER_S.set(now["targets_per_s"])
        metrics.TRAINING_TOKENS_PER_S.set(now["tokens_per_s"])
        metrics.TRAINING_FLOOR_SHARE.set(now["floor_share"])
        metrics.TRAINING_WAIT_SHARE.set(now["data_wait_share"])
        metrics.TRAINING_MEMORY_BYTES.set(now["memory_bytes"])
        metrics.STAGE_LEFT.set(self.counter.total - self.counter.n_done, stage="train")
        metrics.STAGE_SECONDS.set(time.monotonic() - self.counter.started, stage="train")

    def _advance(self, step: int, *, note: str = "") -> None:
        self.counter.advance(step - self.step, note=note)
        self.step = step

    def _track(self, points: list[Point]) -> None:
        if self.tracked is not None and points:
            self.tracked.log_points(points)


STEP_PARTS = ("data", "encode", "loss", "update")


def waiting_share(seconds: dict[str, float]) -> float:
    """Of the time of steps, that in which a worker waits for its batch."""
    return seconds.get("data", 0.0) / max(1e-9, sum(seconds.get(name, 0.0) for name in STEP_PARTS))


def step_points(step: dict[str, Any]) -> list[Point]:
    """A step's own metrics; the terms only where the loss is made of several."""
    values = {"loss": step["loss"], "grad_norm": step["grad_norm"], "lr": step["lr"]}
    if len(step["terms"]) > 1:
        values |= {f"loss_{name}": value for name, value in step["terms"].items()}
    return [(name, value, step["at_ms"], step["step"]) for name, value in values.items()]


def validation_points(score: dict[str, float]) -> list[Point]:
    """A validation's metrics."""
    at = int(score["at_ms"]), int(score["step"])
    return [(f"validation_{name}", value, *at) for name, value in score.items() if name not in ("step", "at_ms")]


def follow(board: Any, recipe: Recipe, where: Where, *, made_from: dict[str, Any], done: threading.Event) -> CommandError | None:
    """Show and track what is told until `done` is set and all is collected. Returns the error that workers told, if any."""
    tracked, news = open_run(where, recipe, made_from=made_from), None
    with ExitStack() as stack:
        if tracked is not None:
            stack.enter_context(tracked)
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
