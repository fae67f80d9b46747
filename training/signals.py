"""What may ask a training to save or to end. As one worker sees it: the driver, Ray's word that a node goes away, a SIGTERM of its own; as
the driver does: SIGTERM and Ctrl-C.

Ray Train runs the training in a thread, and Python takes signals in the main thread alone: so the handler is set by a task of the worker's
own actor, which runs there. It takes one SIGTERM; a second one ends the process as Ray has it.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import ray
import ray.train

from infra.progress import say

TERMINATED = threading.Event()
"""Whether this process got a SIGTERM: it has one disposition for all its threads."""


@dataclass(frozen=True)
class Asked:
    """Of one worker, or of all of them together."""

    to_end: bool = False  # the driver ends: save, and be done
    to_save: bool = False  # a node of the group is going away: save once, and go on as long as it lasts
    to_leave: bool = False  # this process was terminated: save, and leave


def asked(*, to_end: bool) -> Asked:
    """Of this worker, now."""
    return Asked(to_end=to_end, to_save=ray.train.get_preemption_info() is not None, to_leave=TERMINATED.is_set())


def listen() -> None:
    """Take the next SIGTERM of this process. To be called in the worker's thread; returns when it is so."""
    ray.get(ray.get_runtime_context().current_actor.execute.remote(_take_one))


def _take_one() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def take(_number: int, _frame: FrameType | None) -> None:
        TERMINATED.set()
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, take)


@contextmanager
def asked_to_end(board: Any) -> Iterator[list[int]]:
    """Inside, a first SIGTERM or Ctrl-C asks the workers to save and to end, and is entered into the list; a second one does as before."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def take(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        restore()
        board.end.remote()
        say("train: waiting for the workers to save (the same signal again ends at once)")

    for number in before:
        signal.signal(number, take)
    try:
        yield came
    finally:
        restore()


def aside(call: Callable[[], object]) -> None:
    """`call` in a thread of its own, which ends with the process: in the main thread Ray Train takes Ctrl-C for itself and exits with 0."""
    ended: Future[None] = Future()

    def run() -> None:
        try:
            call()
            ended.set_result(None)
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    ended.result()
