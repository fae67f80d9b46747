"""A run that is held by a process of its own: what the tests of runs kill, stop and wake. As a program, it does what it is told by lines of
standard input, and answers each with a line of JSON.

    commit KEY       a row of a table, begun when the run was
    promote          the hypernetwork `challenger`, as the run that claimed it when it began
    shift HOURS      this machine's clock jumps; what Python asks for the time sees it
    stage HOURS      the stage it is in ends, and another begins
    end              the run ends well
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
QUICK = {"beat_s": 0.2, "lease_s": 5.0}
CHALLENGER = "toy-1"


class Shifted(datetime):
    """The time of a clock that was set wrong."""

    by = timedelta(0)

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + cls.by


def shift(hours: float) -> None:
    """Of this process, from now on: all that asks Python for a time of day."""
    import infra.digests
    import infra.run_turns

    if infra.digests.datetime is not Shifted:
        infra.digests.datetime = infra.run_turns.datetime = Shifted  # type: ignore[misc]
        real = time.time
        time.time = lambda: real() + Shifted.by.total_seconds()
    Shifted.by += timedelta(hours=hours)


def write_challenger(root: str) -> None:
    from infra.objects import write_new

    config = {"hypernetwork": {"r": 1}, "weights_sha256": "0" * 64, "metadata": {"vlm": {"model": "toy"}}}
    write_new(f"{root}/hypernetworks/{CHALLENGER}/config.json", json.dumps(config).encode())


def serve(root: str, name: str | None, pace: dict[str, float], hours: float) -> None:
    """Hold a run and do what is asked."""
    from infra.config import Where
    from infra.heartbeat import Pace
    from infra.promotions import claim, promote
    from infra.running import held
    from infra.storage import Table

    if hours:
        shift(hours)
    with held(Where(data=root, run=name), "run", {"by": "test"}, pace=Pace(**pace)) as running:
        attempt = Table(root, "frames", "made-1a2b3c4d").begin({"of": running.mine.run}, ["k0", "k1", "k2"])
        expected = claim(root, vlm="toy", by=running.mine.run)
        answer(held=running.mine.run, attempt=running.mine.number)
        lines = map(str.split, sys.stdin)
        while True:
            with running.stage("train", n_gpus=3600.0) as facts:
                facts["told"] = "a stage"
                words = do(lines, root, attempt, expected, promote, running.mine.run)
            if words[:1] != ["stage"]:
                break
        running.why = "told to"


def do(lines: Iterator[list[str]], root: str, attempt: Any, expected: int, promote: Any, run: str) -> list[str]:
    """Up to the end of a stage."""
    from infra.attempt import reject

    for words in lines:
        match words:
            case ["commit", key]:
                answer(committed=attempt.write([], [reject("frames", key, "static")]))
            case ["promote"]:
                promote(root, CHALLENGER, expected=expected, verdict={"why": "test"}, by=run)
                answer(promoted=True)
            case ["shift", hours]:
                shift(float(hours))
                answer(shifted=datetime.now(UTC).isoformat())
            case _:
                return words
    return []


def answer(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


class Holder:
    """Such a process, from outside."""

    def __init__(self, root: str, *, name: str | None = None, hours: float = 0.0, pace: dict[str, float] = QUICK) -> None:
        program = [sys.executable, "-m", "tests.infra.run_holder", json.dumps([root, name, pace, hours])]
        self.process = subprocess.Popen(
            program, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )

    def read(self) -> dict[str, Any]:
        """Its next answer; raises EOFError with what it said if there is none any more."""
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        if not line:
            raise EOFError(self.process.stderr.read())
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, words: str) -> dict[str, Any]:
        self.tell(words)
        return self.read()

    def tell(self, words: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{words}\n")

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def ended(self) -> tuple[int, str]:
        """Exit code and what it said; its standard input is closed, unless it is gone."""
        with suppress(BrokenPipeError):
            _, said = self.process.communicate(timeout=60)
            return self.process.returncode, said
        return self.process.wait(60), ""


@contextmanager
def holder(root: str, **how: Any) -> Iterator[Holder]:
    """A process for the block; what is left of it is killed."""
    one = Holder(root, **how)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait()
        for pipe in (one.process.stdin, one.process.stdout, one.process.stderr):
            with suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]


if __name__ == "__main__":
    from infra.errors import CommandError

    try:
        serve(*json.loads(sys.argv[1]))
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
