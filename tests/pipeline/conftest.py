"""One private Ray for each of the modules that need one, the builders of tiny clips that the decoder's tests use, and a watch on files."""

import ctypes
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "video2lora"))  # clips.py

OPENED_OR_READ = 0x20 | 0x1  # IN_OPEN, IN_ACCESS of inotify(7)
EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows

Watch = Callable[[Path], AbstractContextManager[set[str]]]


@pytest.fixture(scope="module")
def ray_of_two_cpus() -> Iterator[None]:
    """Stages join it instead of starting one each."""
    from infra.cluster import cluster
    from infra.config import Where

    with cluster(Where(n_cpus=2)):
        yield


@pytest.fixture
def opened() -> Watch:
    """`with opened(folder) as names:` then `names` are the files right in it that any process opened, libav's and Ray's own too."""
    return _opened


@contextmanager
def _opened(folder: Path) -> Iterator[set[str]]:
    """The kernel tells (inotify), so nothing has to be replaced; `stat` and listing a folder are no events of its files."""
    libc = ctypes.CDLL(None, use_errno=True)
    queue = libc.inotify_init1(os.O_NONBLOCK)
    assert queue >= 0 and libc.inotify_add_watch(queue, bytes(folder), OPENED_OR_READ) >= 0, os.strerror(ctypes.get_errno())
    names: set[str] = set()
    try:
        yield names
        with suppress(BlockingIOError):
            while told := os.read(queue, 1 << 16):
                names.update(_names(told))
    finally:
        os.close(queue)


def _names(told: bytes) -> Iterator[str]:
    at = 0
    while at < len(told):
        *_, n_bytes = EVENT.unpack_from(told, at)
        name = os.fsdecode(told[at + EVENT.size : at + EVENT.size + n_bytes].rstrip(b"\0"))
        if name:  # none: the folder itself was listed
            yield name
        at += EVENT.size + n_bytes
