"""Progress of a long step: a live line with rate and time left on a terminal, plain lines every few seconds where there is none."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_EVERY_S = 10.0


class Counter:
    """Counts units done; `advance` is cheap enough to call for every unit."""

    def __init__(self, what: str, unit: str, total: int) -> None:
        self.what, self.unit, self.total = what, unit, total
        self.n_done, self.note = 0, ""
        self.started = self.told = time.monotonic()
        self.bar: Progress | None = None
        self.task: TaskID | None = None

    def advance(self, n: int = 1, *, note: str = "") -> None:
        """Count `n` more units; `note` is shown beside them (a loss, say)."""
        self.n_done += n
        self.note = note or self.note
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=self.n_done, rate=f"{self.per_s():.1f} {self.unit}/s {self.note}")
        elif time.monotonic() - self.told >= PLAIN_EVERY_S:
            self.told = time.monotonic()
            say(self.line())

    def per_s(self) -> float:
        return self.n_done / max(1e-9, time.monotonic() - self.started)

    def line(self) -> str:
        left_s = (self.total - self.n_done) / max(1e-9, self.per_s())
        return f"{self.what}: {self.n_done}/{self.total} {self.unit}, {self.per_s():.1f}/s, {left_s:.0f} s left {self.note}".rstrip()


@contextmanager
def counting(what: str, unit: str, total: int) -> Iterator[Counter]:
    """Show progress of `total` units while the block runs, and one closing line with the rate."""
    counter = Counter(what, unit, total)
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
            counter.bar, counter.task = bar, bar.add_task(what, total=total, rate="")
            yield counter
    else:
        yield counter
    seconds = time.monotonic() - counter.started
    say(f"{what}: {counter.n_done} {unit} in {seconds:.1f} s, {counter.per_s():.1f}/s {counter.note}".rstrip())


def say(line: str) -> None:
    """One plain line to standard error, where progress goes; standard output is for results."""
    print(line, file=sys.stderr, flush=True)
