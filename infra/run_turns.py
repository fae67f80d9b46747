"""Whose turn it is to run over a data folder: begun where nobody has it, or where whoever has it is dead; left where somebody is alive."""

import os
import socket
import uuid
from datetime import UTC, datetime
from typing import Literal

from infra.digests import now
from infra.errors import SupersededError
from infra.heartbeat import Pace, clear, last_facts, watch
from infra.objects import prove_written_once
from infra.progress import say
from infra.runs import Facts, RunAttempt, Runs, alive_folder, log_of, read


class OtherRunError(SupersededError):
    """Another run is alive in the data folder, so this one was not begun."""


def begin(root: str, name: str, *, command: str, asked: Facts, pace: Pace) -> Runs:
    """Append the attempt to the log; it is the last of the runs that are returned.

    Where another attempt of the same name is alive, waits for its end; for the heart of one that is still, until its lease has run out.
    Raises OtherRunError where a run of another name is alive, StorageError.
    """
    log, who, told = log_of(root), whoami(), ""
    while True:
        runs = read(root)
        if (holder := runs.holder) is None:
            if not runs.version:
                prove_written_once(f"{root.rstrip('/')}/runs")
            number = len(runs.of(name)) + 1
            entry = {"kind": "begin", "run": name, "attempt": number, "command": command, "asked": asked, "who": who, "at": now()}
            if log.append(entry, number=runs.version):
                return runs.take([entry])
            continue
        if told != holder.line():
            told = holder.line()
            say(f"{told} has not ended: watching its heart, for {pace.lease_s:g} s at most")
        state = look(root, runs, holder, pace=pace)
        if state == "dead":
            bury(root, runs, holder, who=who, pace=pace)
        elif state == "alive" and holder.run != name:
            raise OtherRunError(f"{holder.line()} is alive and has {root}: wait for its end (`video2lora runs`)")


def look(root: str, runs: Runs, holder: RunAttempt, *, pace: Pace) -> Literal["alive", "dead", "over"]:
    """Whether an open attempt is alive or dead, or the log says more by now; then the runs are read on. Raises StorageError."""
    log, version = log_of(root), runs.version

    def is_over() -> bool:
        runs.take(log.read(runs.version))
        return runs.version > version

    return watch(alive_folder(root, holder.run, holder.number), pace, is_over=is_over)


def bury(root: str, runs: Runs, holder: RunAttempt, *, who: str, pace: Pace) -> None:
    """Enter that an attempt died, unless it has said something meanwhile. Raises StorageError.

    What its last heartbeat tells of is booked to the month of that, unless that is a stage which it has entered since.
    """
    folder = alive_folder(root, holder.run, holder.number)
    at = last_facts(folder)
    if at.get("n_stages") != len(holder.stages):
        at = {}
    entry = {
        "kind": "died",
        "run": holder.run,
        "attempt": holder.number,
        "why": f"no heartbeat for {pace.lease_s:g} s, watched by {who}",
        "stage": at.get("stage"),
        "seconds": at.get("seconds", 0.0),
        "gpu_hours": at.get("gpu_hours", 0.0),
        "by": who,
        "at": now(),
    }
    if "at" in at:
        entry["spent_at"] = at["at"]  # by the dead one's own clock: it may be found weeks later
    if log_of(root).append(entry, number=runs.version):
        say(f"{holder.line()} is dead; taking its place")
        clear(folder)


def leave(root: str, *, name: str, command: str, why: str) -> None:
    """Enter that a command found another run alive and went away. Raises StorageError."""
    entry = {"kind": "left", "run": name, "command": command, "who": whoami(), "why": why, "at": now()}
    log, runs = log_of(root), read(root)
    while not log.append(entry, number=runs.version):
        runs.take(log.read(runs.version))


def made_up(command: str) -> str:
    """A name for a run that nobody named."""
    return f"{command}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"


def whoami() -> str:
    """Machine, process, and what no other process has."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
