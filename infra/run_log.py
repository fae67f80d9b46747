"""What a run's driver says on standard error, kept in storage while it runs: it outlives the machine that said it.

    <folder>/00000000.txt, 00000001.txt, ...    lines, each after the time (UTC) at which it was said

A part is written every `KEEP_EVERY_S` in which something was said, and one at the end: what a killed driver said in its last half minute is
lost. Progress bars are for a terminal and are left out.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TextIO, cast

from infra.digests import now
from infra.objects import names, read_bytes, write_new

KEEP_EVERY_S = 30.0
ESCAPE = "\x1b"  # begins what moves a terminal's cursor


class KeptLines:
    """Standard error that passes everything on, and keeps whole lines until `keep` writes them down."""

    def __init__(self, stream: TextIO, folder: str) -> None:
        self.stream, self.folder, self.encoding = stream, folder, stream.encoding
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._partial, self._n_parts, self._kept_s = "", 0, time.monotonic()
        self._lines: list[str] = []

    def write(self, text: str) -> int:
        self.stream.write(text)
        with self._lock:
            *whole, self._partial = (self._partial + text).split("\n")
            self._note(whole)
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def note(self, line: str) -> None:
        """Keep a line that is said elsewhere."""
        with self._lock:
            self._note([line])

    def keep(self, *, at_once: bool = False) -> None:
        """Write down what was said since the last part, unless that is short ago. Raises StorageError; the lines wait for the next time."""
        with self._writing:
            with self._lock:
                lines = list(self._lines)
            if not lines or (not at_once and time.monotonic() - self._kept_s < KEEP_EVERY_S):
                return
            self._kept_s = time.monotonic()
            data = "".join(f"{line}\n" for line in lines).encode()
            while not write_new(f"{self.folder}/{self._n_parts:08d}.txt", data):  # one that was written though storage said no
                self._n_parts += 1
            self._n_parts += 1
            with self._lock:
                del self._lines[: len(lines)]

    def _note(self, lines: list[str]) -> None:
        at = now()
        self._lines += [f"{at} {line}" for line in lines if line.strip() and ESCAPE not in line]


@contextmanager
def keeping(stream: TextIO, folder: str) -> Iterator[KeptLines]:
    """For the block, what is said on standard error goes to the stream and is kept."""
    lines = KeptLines(stream, folder)
    with redirect_stderr(cast(TextIO, lines)):
        yield lines


def kept(folder: str) -> Iterator[str]:
    """The lines, part by part. Raises StorageError."""
    for name in names(folder):
        data = read_bytes(f"{folder}/{name}") if name.endswith(".txt") else None
        if data is not None:
            yield from data.decode(errors="replace").splitlines()
