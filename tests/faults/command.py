"""A command in a process of its own, as a user starts it: followed by what it commits, ended with all that it started.

Every wait has an end; one that is reached raises TimeoutError with the command's last words.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

POLL_S = 0.005
LONGEST_S = 450.0  # for any command here, on a busy host


@dataclass(frozen=True)
class Ran:
    """What a command said, and its exit code (negative: the signal that ended it)."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """What the user is left with."""
        return (self.err.strip().splitlines() or [""])[-1]


@dataclass
class Running:
    """A command that runs."""

    process: "subprocess.Popen[bytes]"
    said: Path

    def wait_until(self, is_so: Callable[[], bool], *, what: str, timeout_s: float = LONGEST_S) -> None:
        """Raises TimeoutError, RuntimeError if the command ends first."""
        deadline_s = time.monotonic() + timeout_s
        while not is_so():
            if self.process.poll() is not None:
                raise RuntimeError(f"ended with {self.process.returncode} before {what}:\n{self._words()}")
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"not {what} after {timeout_s:.0f} s:\n{self._words()}")
            time.sleep(POLL_S)

    def ended(self, *, timeout_s: float = LONGEST_S) -> Ran:
        """Raises TimeoutError: a hang, with where each thread was (PYTHONFAULTHANDLER)."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            self.process.send_signal(signal.SIGABRT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
            raise TimeoutError(f"still running after {timeout_s:.0f} s:\n{self._words()}") from error
        return Ran(code, self._file("out").read_text(), self._file("err").read_text())

    def _file(self, name: str) -> Path:
        return self.said.with_suffix(f".{name}")

    def _words(self) -> str:
        return self._file("err").read_text(errors="replace")[-12000:]


@contextmanager
def running(*arguments: str, said: Path, environment: Mapping[str, str], program: str = "infra.cli") -> Iterator[Running]:
    """`python -m infra.cli ARGUMENTS` for the block; what is left of it then is killed. `said`: where its words go."""
    command = [sys.executable, "-m", program, *arguments]
    with said.with_suffix(".out").open("wb") as out, said.with_suffix(".err").open("wb") as err:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
    try:
        yield Running(process, said)
    finally:
        kill(below(process.pid), process.pid)
        process.wait()


def below(pid: int) -> list[psutil.Process]:
    """All that a process started, at any remove."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill(processes: list[psutil.Process], *pids: int) -> None:
    """SIGKILL to what is still there: the very processes that were seen, never another that has got their number since."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            one.kill()


def named(part: str, *, pid: int | None = None) -> list[psutil.Process]:
    """Processes below `pid` (this one, by default) whose command line has this part."""
    found = []
    for one in below(pid or os.getpid()):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if part in " ".join(one.cmdline()):
                found.append(one)
    return found
