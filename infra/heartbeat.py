"""Whether a run lives, told without any wall clock: it counts in storage, and who wants to know watches whether the count moves.

    <folder>/00000000, then 00000001, ...    one object at a time, with what the run is at

A holder writes number n + 1 and removes n every `beat_s`; a bucket that refuses to remove stops no heart. An observer looks again and
again, and if nothing has moved for `lease_s` of its own waiting, the run is dead to it: two machines need not agree on the time, and a
clock that jumps harms nobody. A process that was stopped, or cut off from storage, for as long looks dead too. So it may wake, and what it
writes then must be refused by other means (`infra.runs`).
"""

import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from infra.errors import StorageError
from infra.objects import names, read_json, remove, write_new
from infra.progress import say

LAST_BEAT_S = 10.0  # that a run's end waits for its heart

Facts = dict[str, Any]


@dataclass(frozen=True)
class Pace:
    """How often a run beats, and how long it may be still before another takes its place. Each beat is three requests in a bucket."""

    beat_s: float = 5.0
    lease_s: float = 150.0  # a request that hears nothing (60 s) and another that follows it (60 s) are no death

    @property
    def poll_s(self) -> float:
        """Between two looks."""
        return self.beat_s / 2


PACE = Pace()


class Heart:
    """Beats in a daemon thread until it is stopped.

    `at` says what the run is at, without asking anybody; what else is to be done from time to time, `then` does after each beat. Neither
    must raise.
    """

    def __init__(self, folder: str, pace: Pace, at: Callable[[], Facts], then: Callable[[], None]) -> None:
        self.folder, self.pace, self.at, self.then = folder, pace, at, then
        self._stopping = threading.Event()
        self._is_away = False
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends it, and removes the last beat; not waited for while storage is away, as the thread ends with the process."""
        self._stopping.set()
        self._thread.join(LAST_BEAT_S)

    def _beat_on(self) -> None:
        number = 0
        while True:
            number += self._beat(number)
            self.then()
            if self._stopping.wait(self.pace.beat_s):
                break
        clear(self.folder)

    def _beat(self, number: int) -> bool:
        """Whether the number was written. Storage that is away is said once: the run goes on, and will see how far it gets."""
        was_written = False
        try:
            write_new(f"{self.folder}/{number:08d}", json.dumps(self.at()).encode())
            was_written = True
            if number:
                remove(f"{self.folder}/{number - 1:08d}")
        except StorageError as error:
            if not self._is_away:
                say(f"heartbeat: {error}")
            self._is_away = True
        else:
            self._is_away = False
        return was_written


def watch(folder: str, pace: Pace, *, is_over: Callable[[], bool]) -> Literal["alive", "dead", "over"]:
    """Looks until the count moves (alive), `is_over` says that there is nothing to watch any more, or the lease has run out (dead).

    Looks are counted, and not time: who was stopped between two of them has not waited for longer than one. Raises StorageError.
    """
    first = last_beat(folder)
    for _ in range(math.ceil(pace.lease_s / pace.poll_s)):
        time.sleep(pace.poll_s)
        if is_over():
            return "over"
        if last_beat(folder) > first:
            return "alive"
    return "dead"


def last_beat(folder: str) -> int:
    """The number that is there, -1 for none. Raises StorageError."""
    return max((int(name) for name in names(folder) if name.isdecimal()), default=-1)


def last_facts(folder: str) -> Facts:
    """What the last beat said; empty where there is none. Raises StorageError."""
    number = last_beat(folder)
    found = read_json(f"{folder}/{number:08d}") if number >= 0 else None
    return found if isinstance(found, dict) else {}


def clear(folder: str) -> None:
    """Remove what is left of a run that beats no more; what cannot be removed stays, and harms nobody."""
    try:
        for name in names(folder):
            remove(f"{folder}/{name}")
    except StorageError as error:
        say(f"heartbeat: {error}")
