"""How often each file of a folder was opened, told by the system (inotify): work that was done is seen, whoever did it and lost it.

A clip is opened as often for each decode, so the opens beyond an undisturbed run's are decodes done again, also those of a process that was
killed before it wrote anything. Two equal events with nothing between them are one if nobody has read it yet; so closing is watched too.
"""

import ctypes
import os
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OPENED, CLOSED, OVERFLOW = 0x20, 0x10, 0x4000  # inotify(7)
EVENT = struct.Struct("iIII")


class Opened:
    """`counts` has the opens of each file name, up to the last `take` or the end of the block."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.counts: Counter[str] = Counter()

    def take(self) -> None:
        """Raises RuntimeError if the system has lost count."""
        while True:
            try:
                data = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                return
            at = 0
            while at < len(data):
                _, mask, _, length = EVENT.unpack_from(data, at)
                name = data[at + EVENT.size : at + EVENT.size + length].rstrip(b"\0").decode()
                if mask & OVERFLOW:
                    raise RuntimeError("inotify: more was opened than the system counted")
                if mask & OPENED and name:
                    self.counts[name] += 1
                at += EVENT.size + length


@contextmanager
def opened(folder: Path) -> Iterator[Opened]:
    """Counts opens of the folder's files for the block."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0 or libc.inotify_add_watch(fd, os.fsencode(folder), OPENED | CLOSED) < 0:
        raise OSError(ctypes.get_errno(), "inotify")
    watch = Opened(fd)
    try:
        yield watch
    finally:
        watch.take()
        os.close(fd)
