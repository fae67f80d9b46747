"""The log of runs, to look at. Whether an open attempt lives is seen by watching its heart for a few beats, and by no clock."""

import json
from collections.abc import Sequence
from typing import Any

from rich.table import Table as Grid
from rich.text import Text

from infra.books import console
from infra.errors import BadInputError
from infra.heartbeat import Pace
from infra.log import Entry
from infra.progress import say
from infra.run_log import kept
from infra.run_turns import look
from infra.runs import RunAttempt, Runs, lines_folder, read

GLANCE = Pace(lease_s=3 * Pace.beat_s)

Facts = dict[str, Any]


def runs(root: str, *, pace: Pace = GLANCE) -> list[Facts]:
    """Each attempt and each command that left, in the order of the log. Raises StorageError."""
    told = read(root)
    life = _life(root, told, pace)
    found = [_attempt(one, life) for one in told.attempts] + [_left(one) for one in told.left]
    return sorted(found, key=lambda one: one["number"])


def run(roots: Sequence[str], name: str, *, pace: Pace = GLANCE) -> list[Facts]:
    """One run's attempts, with their stages, of the data folder that has it. Raises BadInputError where none has it, StorageError."""
    root, told, attempts = _known(roots, name)
    life = _life(root, told, pace) if any(one.is_open for one in attempts) else None
    return [_attempt(one, life) | {"asked": one.begun["asked"], "stages": one.stages, "notes": one.notes} for one in attempts]


def print_json(found: list[Facts]) -> None:
    print(json.dumps(found, indent=1))


def print_runs(found: list[Facts]) -> None:
    """A line each."""
    if not found:
        print("no run yet")
        return
    grid = Grid("run", "attempt", "command", "begun", "state", "GPU-hours", "why")
    for one in found:
        attempt, hours = ("", "") if one["attempt"] is None else (str(one["attempt"]), f"{one['gpu_hours']:.2f}")
        grid.add_row(one["run"], attempt, one["command"], _when(one["at"]), one["state"], hours, Text(one["why"]))
    console().print(grid)


def print_run(found: list[Facts]) -> None:
    """Each attempt, and a line for each of its stages."""
    for one in found:
        print(f"{one['run']}, attempt {one['attempt']}: {one['command']} by {one['who']}, begun {_when(one['at'])}: {one['state']}")
        if one["why"]:
            print(f"  {one['why']}")
        for note in one["notes"]:
            print(f"  {_when(note['at'])}: {note['why']}")
        grid = Grid("after s", "stage", "seconds", "GPU-hours", "what there was then")
        for stage in one["stages"]:
            said = f"failed: {stage['failed']}" if stage["failed"] else stage["told"]
            numbers = f"{stage['after_s']:.1f}", f"{stage['seconds']:.1f}", f"{stage['gpu_hours']:.3f}"
            grid.add_row(numbers[0], stage["stage"], *numbers[1:], Text(said))
        if one["stages"]:
            console().print(grid)
    print(f"GPU-hours: {sum(one['gpu_hours'] for one in found):.3f}")


def print_log(roots: Sequence[str], name: str) -> None:
    """What the driver of each attempt said. Raises BadInputError where there is no run of this name, StorageError."""
    root, _, attempts = _known(roots, name)
    for one in attempts:
        print(f"--- {one.line()}")
        for line in kept(lines_folder(root, one.run, one.number)):
            print(line)


def _known(roots: Sequence[str], name: str) -> tuple[str, Runs, list[RunAttempt]]:
    for root in roots:
        told = read(root)
        if attempts := told.of(name):
            return root, told, attempts
    raise BadInputError(f"{name}: no such run in {', '.join(roots)}; `video2lora runs` names those there are")


def _life(root: str, told: Runs, pace: Pace) -> str | None:
    """What can be said of the attempt that is open; None where none is, or not any more."""
    while (holder := told.holder) is not None:
        say(f"{holder.line()} has not ended: watching its heart, for {pace.lease_s:g} s at most")
        state = look(root, told, holder, pace=pace)
        if state != "over":
            return "running" if state == "alive" else f"no heartbeat for {pace.lease_s:g} s"
    return None


def _attempt(one: RunAttempt, life: str | None) -> Facts:
    closed = one.closed or {}
    state = life or "running"
    if closed:
        code = closed.get("exit_code")
        state = "died" if code is None else "done" if code == 0 else f"ended with {code}"
    return {
        "number": one.number_in_log,
        "run": one.run,
        "attempt": one.number,
        "command": one.begun["command"],
        "who": one.begun["who"],
        "at": one.begun["at"],
        "state": state,
        "why": closed.get("why", ""),
        "seconds": closed.get("seconds") if closed.get("kind") == "end" else None,
        "gpu_hours": one.gpu_hours,
        "exit_code": closed.get("exit_code"),
    }


def _left(entry: Entry) -> Facts:
    facts = {name: entry[name] for name in ("run", "command", "who", "at", "why")}
    return facts | {"number": entry["number"], "attempt": None, "state": "left", "seconds": None, "gpu_hours": 0.0, "exit_code": 0}


def _when(at: str) -> str:
    return at.replace("T", " ").split(".")[0]
