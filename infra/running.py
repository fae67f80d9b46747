"""The right to run over a data folder: taken, kept alive, recorded stage by stage, and given back. `infra.runs` says what is written where.

    with held(where, "run", {"source": source}) as running:
        with running.stage("train", n_gpus=8) as facts:
            facts["told"] = ...
        running.why = "..."

Whatever ends the block, the log says how: with the exit code of the error, with 130 and 143 of Ctrl-C and SIGTERM. Only a kill leaves it to
the next run to say that this one died.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from infra.config import Where
from infra.digests import now
from infra.errors import CommandError, StorageError, SupersededError, TerminatedError, command_error
from infra.heartbeat import PACE, Heart, Pace
from infra.log import Entry
from infra.progress import say
from infra.run_log import KeptLines, keeping
from infra.run_turns import begin, made_up
from infra.runs import Facts, RunAttempt, Runs, alive_folder, lines_folder, log_of

TERMINATED = "terminated; what was committed is kept, and the same command continues"


class Running:
    """An attempt that this process holds. For the main thread; only its heart beats beside."""

    def __init__(self, where: Where, runs: Runs, *, pace: Pace, lines: KeptLines) -> None:
        self.runs, self.mine, self.lines = runs, runs.attempts[-1], lines
        self.where = where.model_copy(update={"run": self.mine.run})
        self.log = log_of(where.data)
        self.why = "done"  # what its end is to say
        self.is_lost = False  # another run has taken its place
        self._can_be_interrupted, self._interrupting = False, threading.Lock()
        self._begun_s = time.monotonic()
        self._at: tuple[str, Facts, float] | None = None  # stage, what it put into its facts, when it began
        self.heart = Heart(alive_folder(where.data, self.mine.run, self.mine.number), pace, self._now_at, self._look)

    @property
    def earlier(self) -> list[RunAttempt]:
        """The attempts that this one goes on from."""
        return self.runs.going_on(self.mine.run)[:-1]

    @contextmanager
    def stage(self, title: str, *, n_gpus: float = 0.0, was_there: bool = False) -> Iterator[Facts]:
        """Enters the stage when the block ends, well or not, with what it put into the facts: `told`, a line; `n_gpus`, if it knows better.

        `was_there`: it had been finished before, and only looks. Raises SupersededError where another run took this one's place.
        """
        self.check()
        began_s = time.monotonic()
        facts: Facts = {"told": "", "n_gpus": n_gpus}
        self._at = title, facts, began_s
        failed = None
        try:
            yield facts
        except BaseException as error:
            failed = self.meaning(error)
            raise
        finally:
            self._at = None
            seconds = time.monotonic() - began_s
            entry = {
                "kind": "stage",
                "stage": title,
                "after_s": round(began_s - self._begun_s, 3),
                "seconds": round(seconds, 3),
                "gpu_hours": seconds / 3600 * facts["n_gpus"],
                "was_there": was_there,
                "failed": None if failed is None else _words(failed),
                **facts,
            }
            if failed is None:
                self._append(entry)
            else:
                self._append_if_possible(entry)

    def note(self, **facts: Any) -> None:
        """Enter what a later attempt of the run is to know. Raises SupersededError, StorageError."""
        self._append({"kind": "note", **facts})

    def check(self) -> None:
        """Raises SupersededError where another run took this one's place; StorageError."""
        self.runs.take(self.log.read(self.runs.version))
        if self.is_lost or not self.mine.is_open:
            raise self._superseded()

    def end(self, error: BaseException | None) -> None:
        """Enter the end, and how. Raises SupersededError, StorageError unless there is an error already."""
        words = self.why if error is None else _words(error)
        self.lines.note(f"{'error: ' if error else ''}{words}")
        seconds = time.monotonic() - self._begun_s
        entry = {"kind": "end", "exit_code": exit_code(error), "why": words, "seconds": round(seconds, 3), "gpu_hours": self.mine.gpu_hours}
        try:
            self.lines.keep(at_once=True)
        except StorageError as lost:
            say(f"run {self.mine.run}: what it said cannot be kept: {lost}")
        if error is None:
            self._append(entry)
        else:
            self._append_if_possible(entry)

    @contextmanager
    def told_to_end(self) -> Iterator[None]:
        """Inside, SIGTERM is an error like others; and so is it that another run has taken this one's place, when the heart sees it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGTERM)

        def take(_number: int, _frame: FrameType | None) -> None:
            signal.signal(signal.SIGTERM, before)
            raise TerminatedError(TERMINATED)

        signal.signal(signal.SIGTERM, take)
        self._can_be_interrupted = True
        try:
            yield
        finally:
            with self._interrupting:
                self._can_be_interrupted = False
            signal.signal(signal.SIGTERM, before)

    def meaning(self, error: BaseException) -> BaseException:
        """What ended a block, where a signal or the loss of its place is behind the error."""
        if self.is_lost and not isinstance(error, SupersededError):
            return self._superseded()
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM:  # Ray's handler, from when it is imported
            return TerminatedError(TERMINATED)
        return error

    def _superseded(self) -> SupersededError:
        closed = self.mine.closed or {}
        return SupersededError(
            f"{self.mine.line()} was taken for dead ({closed.get('why', 'its heart was still')}); what was committed is kept, and the run"
            " that took its place goes on from it"
        )

    def _now_at(self) -> Facts:
        """What the run is at, and when that is; asked by the heart's thread. `n_stages` are entered, and not what is told of here."""
        n_stages = len(self.mine.stages)  # first: a stage that ends meanwhile is the one told of, and not among them
        if (at := self._at) is None:
            return {"at": now(), "stage": None, "n_stages": n_stages, "seconds": 0.0, "gpu_hours": 0.0}
        title, facts, began_s = at
        seconds = time.monotonic() - began_s
        spent = {"seconds": round(seconds, 3), "gpu_hours": seconds / 3600 * facts["n_gpus"]}
        return {"at": now(), "stage": title, "n_stages": n_stages, **spent}

    def _look(self) -> None:
        """Keep what was said, and see whether another run has taken this one's place; in the heart's thread."""
        try:
            self.lines.keep()
            if not self.is_lost and any(self._is_my_death(entry) for entry in self.log.read(self.runs.version)):
                self.is_lost = True
                with self._interrupting:
                    if self._can_be_interrupted:
                        os.kill(os.getpid(), signal.SIGTERM)
        except StorageError:
            pass  # the beat that follows will say so

    def _is_my_death(self, entry: Entry) -> bool:
        return (entry["kind"], entry["run"], entry.get("attempt")) == ("died", self.mine.run, self.mine.number)

    def _append(self, entry: Entry) -> None:
        entry = {**entry, "run": self.mine.run, "attempt": self.mine.number, "at": now()}
        self.check()
        while not self.log.append(entry, number=self.runs.version):
            self.check()
        self.runs.take([entry])

    def _append_if_possible(self, entry: Entry) -> None:
        """While an error is on its way, which is not to be hidden by another."""
        try:
            self._append(entry)
        except CommandError as error:
            say(f"run {self.mine.run}: {entry['kind']} is not in the log of runs: {error}")


@contextmanager
def held(where: Where, command: str, asked: Facts, *, pace: Pace = PACE) -> Iterator[Running]:
    """Hold the data folder for the block, as an attempt of the run that `where` names, or of a new one.

    Raises OtherRunError where another run is alive, SupersededError, StorageError.
    """
    runs = begin(where.data, where.run or made_up(command), command=command, asked=asked, pace=pace)
    mine = runs.attempts[-1]
    with keeping(sys.stderr, lines_folder(where.data, mine.run, mine.number)) as lines:
        running = Running(where, runs, pace=pace, lines=lines)
        running.heart.start()
        try:
            with running.told_to_end():
                say(f"run {mine.run}, attempt {mine.number}: {command} over {where.data}")
                yield running
        except BaseException as error:
            meant = running.meaning(error)
            running.end(meant)
            if meant is error:
                raise
            raise meant from error
        else:
            running.end(None)
        finally:
            running.heart.stop()


def exit_code(error: BaseException | None) -> int:
    """That the command line ends with."""
    if error is None:
        return 0
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    known = command_error(error)
    return 1 if known is None else known.exit_code


def _words(error: BaseException) -> str:
    """What a user is told of it."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command continues"
    known = command_error(error)
    return str(known) if known is not None else f"{type(error).__name__}: {error}".splitlines()[0]
