"""Logical runs of a data folder: one at a time, over as many attempts and clusters as it takes, and told for good.

    <data>/runs/log/                     a numbered log (`infra.log`) of all runs
        begin   run, attempt, command, asked, who, at               at most one attempt is open: begun, and neither ended nor died
        stage   stage, seconds, n_gpus, gpu_hours, told, failed     a stage that ended, well or not
        note    what was decided, for a later attempt of the run
        died    why, by, gpu_hours                                  said by whoever found its heart still (`infra.heartbeat`)
        end     exit_code, why, seconds, gpu_hours
        left    why                                                 a command that found another run alive, and went away
    <data>/runs/alive/<run>-<attempt>/   its heartbeat
    <data>/runs/logs/<run>/<attempt>/    what its driver said (`infra.run_log`)

To begin is to append to the log, and a number of it is given once; so of two schedulers that fire at once one goes on. An attempt that was
only paused and wakes finds `died` in the log before its own next entry, ends with SupersededError, and cannot promote, for whoever took its
place has claimed the promotions' log. GPU-hours are seconds by the holder's own clock that only goes forward, times the stage's GPUs; those
of a run that died are what it last said of itself, of a stage that is not entered. They count to the UTC month that stands in the entry.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from infra.errors import StorageError
from infra.log import Entry, Log

Facts = dict[str, Any]


@dataclass
class RunAttempt:
    """An attempt of a logical run, as the log has it."""

    run: str
    number: int
    begun: Entry
    number_in_log: int
    stages: list[Entry] = field(default_factory=list)
    notes: list[Entry] = field(default_factory=list)
    closed: Entry | None = None  # its `end` or `died`

    @property
    def is_open(self) -> bool:
        return self.closed is None

    @property
    def ended_well(self) -> bool:
        return self.closed is not None and self.closed["kind"] == "end" and self.closed["exit_code"] == 0

    @property
    def gpu_hours(self) -> float:
        """Of its stages, and of the one that it died in."""
        at_death = [self.closed] if self.closed is not None and self.closed["kind"] == "died" else []
        return float(sum(entry["gpu_hours"] for entry in [*self.stages, *at_death]))

    def line(self) -> str:
        return f"run {self.run} (attempt {self.number}, {self.begun['command']} by {self.begun['who']}, begun {self.begun['at']})"


class Runs:
    """The log up to `version` entries, taken together."""

    def __init__(self) -> None:
        self.version = 0
        self.attempts: list[RunAttempt] = []
        self.left: list[Entry] = []
        self._by_name: dict[tuple[str, int], RunAttempt] = {}
        self._booked: list[Entry] = []  # with GPU-hours

    def take(self, entries: Iterable[Entry]) -> "Runs":
        """Take the next entries. Raises StorageError for what is none."""
        for entry in entries:
            try:
                self._take(entry)
            except (KeyError, TypeError) as error:
                raise StorageError(f"entry {self.version} of the log of runs is none: {error!r}") from error
            self.version += 1
        return self

    @property
    def holder(self) -> RunAttempt | None:
        """The attempt that is open."""
        return self.attempts[-1] if self.attempts and self.attempts[-1].is_open else None

    def of(self, run: str) -> list[RunAttempt]:
        """Its attempts, in order."""
        return [one for one in self.attempts if one.run == run]

    def going_on(self, run: str) -> list[RunAttempt]:
        """The attempts of a run that the next one continues: those since one ended well."""
        found: list[RunAttempt] = []
        for one in self.of(run):
            found = [] if one.ended_well else [*found, one]
        return found

    def gpu_hours_of(self, month: str) -> float:
        """Of all runs in a month of UTC, "2026-11". A stage counts to the month in which it ended, or was last heard of."""
        return float(sum(entry["gpu_hours"] for entry in self._booked if (entry.get("spent_at") or entry["at"]).startswith(month)))

    def _take(self, entry: Entry) -> None:
        if entry["kind"] == "left":
            self.left.append({**entry, "number": self.version})
            return
        name = (entry["run"], entry["attempt"])
        if entry["kind"] == "begin":
            self._by_name[name] = RunAttempt(*name, entry, self.version)
            self.attempts.append(self._by_name[name])
            return
        attempt = self._by_name[name]
        match entry["kind"]:
            case "stage":
                attempt.stages.append(entry)
                self._booked.append(entry)
            case "note":
                attempt.notes.append(entry)
            case "died":
                attempt.closed = entry
                self._booked.append(entry)
            case "end":
                attempt.closed = entry
            case kind:
                raise KeyError(f"kind {kind!r}")


def read(root: str) -> Runs:
    """All runs of a data folder. Raises StorageError."""
    return Runs().take(log_of(root).read())


def log_of(root: str) -> Log:
    return Log(f"{root.rstrip('/')}/runs/log")


def alive_folder(root: str, run: str, attempt: int) -> str:
    """Of its heartbeat."""
    return f"{root.rstrip('/')}/runs/alive/{run}-{attempt}"


def lines_folder(root: str, run: str, attempt: int) -> str:
    """Of what its driver said."""
    return f"{root.rstrip('/')}/runs/logs/{run}/{attempt}"
