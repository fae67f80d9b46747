"""What may ask a training to save or to end, as one worker sees it: the driver, Ray's word that a node goes away, a SIGTERM of its own.

Ray Train runs the training in a thread, and Python takes signals in the main thread alone: so the handler is set by a task of the worker's
own actor, which runs there. It takes one SIGTERM; a second one ends the process as Ray has it.
"""

import signal
import threading
from dataclasses import dataclass
from types import FrameType

import ray
import ray.train

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
