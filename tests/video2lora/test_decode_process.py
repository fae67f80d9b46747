"""Decoding in a child process: the same frames, and what happens when it hangs, dies or loses its parent."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from clips import frame_numbers, regular, write_clip

from video2lora import decode_process
from video2lora.decode_process import DeadlineDecoder
from video2lora.video import RejectReason, Sampling, VideoDecodeError, decode

PATIENT_S = 60.0


@pytest.fixture(scope="module")
def decoder() -> Iterator[DeadlineDecoder]:
    with DeadlineDecoder(deadline_s=PATIENT_S) as decoder:
        yield decoder


@pytest.fixture
def hanging(tmp_path: Path) -> Path:
    """A "video" that is opened for ever: a pipe that no one writes to."""
    path = tmp_path / "pipe.mp4"
    os.mkfifo(path)
    return path


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or waits for a parent that does not ask how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until_ended(pid: int) -> None:
    until = time.monotonic() + 30
    while not has_ended(pid):
        assert time.monotonic() < until, f"process {pid} still runs"
        time.sleep(0.02)


def test_gives_the_same_frames_from_one_child(decoder: DeadlineDecoder, tmp_path: Path) -> None:
    path = write_clip(tmp_path / os.fsdecode(b"not-utf8-\xff.mp4"), regular(31), options={"g": "7"})
    pids = set()
    for sampling, start_s, end_s in [(Sampling(), 0.0, None), (Sampling(policy="fps", fps=9), 0.2, 0.9)]:
        there = decoder.decode(path, sampling, longest_edge_px=29, start_s=start_s, end_s=end_s)
        here = decode(path, sampling, longest_edge_px=29, start_s=start_s, end_s=end_s)
        assert np.array_equal(there.images, here.images) and there.images.dtype == np.uint8
        assert np.array_equal(there.timestamps_s, here.timestamps_s)
        assert there.duration_s == here.duration_s
        pids.add(decoder.child_pid)
    assert len(pids) == 1


def test_bad_files_keep_their_reason_and_the_child(decoder: DeadlineDecoder, tmp_path: Path) -> None:
    decoder.decode(write_clip(tmp_path / "clip.mp4", regular(2)), Sampling(), longest_edge_px=384)
    pid = decoder.child_pid
    (tmp_path / "text.mp4").write_text("no video" * 99)
    for name, reason in [("none.mp4", RejectReason.MISSING), ("text.mp4", RejectReason.NOT_A_VIDEO)]:
        with pytest.raises(VideoDecodeError) as error:
            decoder.decode(tmp_path / name, Sampling(), longest_edge_px=384)
        assert error.value.reason is reason and name in error.value.detail
    with pytest.raises(ValueError, match="longest_edge_px: got 0"):
        decoder.decode(tmp_path / "clip.mp4", Sampling(), longest_edge_px=0)
    assert decoder.child_pid == pid


def test_a_decode_that_hangs_is_killed_and_the_next_clip_is_decoded(hanging: Path, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", regular(5))
    with DeadlineDecoder(deadline_s=3.0) as decoder:
        threading.Timer(1.0, lambda: pids.append(decoder.child_pid)).start()
        pids: list[int | None] = []
        begun = time.monotonic()
        with pytest.raises(VideoDecodeError) as error:
            decoder.decode(hanging, Sampling(), longest_edge_px=384)
        assert error.value.reason is RejectReason.DEADLINE
        assert 3.0 <= time.monotonic() - begun < decode_process.START_DEADLINE_S
        assert decoder.child_pid is None and pids[0] is not None and has_ended(pids[0])
        assert frame_numbers(decoder.decode(path, Sampling(n_frames=5), longest_edge_px=384).images) == [0, 1, 2, 3, 4]
        child = decoder.child_pid
        assert child is not None
    assert has_ended(child)


def end_readers(pipe: Path, decoder: DeadlineDecoder, sent: signal.Signals, *, n: int, first: Callable[[], object]) -> None:
    """Ends the next `n` children that open the pipe, while they wait for what it says; calls `first` before."""
    for _ in range(n):
        while True:
            with contextlib.suppress(OSError):  # opening it to write fails until there is a reader
                descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
                break
            time.sleep(0.02)
        first()
        pid = decoder.child_pid
        assert pid is not None
        os.kill(pid, sent)
        while decoder.child_pid == pid:  # its threads may hold the pipe a while longer
            time.sleep(0.02)
        os.close(descriptor)


def test_a_clip_that_ends_two_children_is_rejected_and_says_how(hanging: Path, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", regular(5))
    with DeadlineDecoder(deadline_s=PATIENT_S) as decoder:
        decoder.decode(path, Sampling(), longest_edge_px=384)
        pid = decoder.child_pid
        killer = threading.Thread(target=end_readers, args=(hanging, decoder, signal.SIGSEGV), kwargs={"n": 2, "first": lambda: None})
        killer.start()
        with pytest.raises(VideoDecodeError, match=r"signal 11 \(SIGSEGV\), twice") as error:
            decoder.decode(hanging, Sampling(), longest_edge_px=384)
        killer.join()
        assert error.value.reason is RejectReason.DECODE_ERROR
        decoder.decode(path, Sampling(), longest_edge_px=384)
        assert decoder.child_pid not in (None, pid)


def test_a_clip_whose_child_is_killed_once_is_decoded_by_the_next(hanging: Path, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", regular(5))
    with DeadlineDecoder(deadline_s=PATIENT_S) as decoder:
        decoder.decode(path, Sampling(), longest_edge_px=384)
        swap = partial(os.replace, path, hanging)  # what hung is a clip when it is tried again
        killer = threading.Thread(target=end_readers, args=(hanging, decoder, signal.SIGKILL), kwargs={"n": 1, "first": swap})
        killer.start()
        assert frame_numbers(decoder.decode(hanging, Sampling(n_frames=5), longest_edge_px=384).images) == [0, 1, 2, 3, 4]
        killer.join()
        idle = decoder.child_pid
        assert idle is not None
        os.kill(idle, signal.SIGKILL)  # while it waits for work: no clip is to blame
        os.waitid(os.P_PID, idle, os.WEXITED | os.WNOWAIT)
        assert len(decoder.decode(hanging, Sampling(), longest_edge_px=384).images) == 12


def test_one_that_is_stopped_decodes_no_more_and_is_not_waited_for(hanging: Path) -> None:
    with DeadlineDecoder(deadline_s=PATIENT_S) as decoder:
        found: list[BaseException] = []

        def work() -> None:
            try:
                decoder.decode(hanging, Sampling(), longest_edge_px=384)
            except BaseException as error:
                found.append(error)

        worker = threading.Thread(target=work)
        worker.start()
        while decoder.child_pid is None:
            time.sleep(0.02)
        pid = decoder.child_pid
        decoder.stop()
        worker.join(PATIENT_S / 2)
        assert not worker.is_alive() and len(found) == 1
        assert not psutil.pid_exists(pid) and decoder.child_pid is None, "another child was started"
        with pytest.raises(RuntimeError, match="was stopped"):
            decoder.decode(hanging, Sampling(), longest_edge_px=384)


def test_the_child_ends_with_its_parent_even_while_it_hangs(hanging: Path) -> None:
    program = (
        "import sys, threading, time\n"
        "from video2lora.decode_process import DeadlineDecoder\n"
        "from video2lora.video import Sampling\n"
        "decoder = DeadlineDecoder(deadline_s=600.0)\n"
        "hang = lambda: decoder.decode(sys.argv[1], Sampling(), longest_edge_px=384)\n"
        "threading.Thread(target=hang, daemon=True).start()\n"
        "while decoder.child_pid is None: time.sleep(0.01)\n"
        "time.sleep(1)\n"
        "print(decoder.child_pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    root = str(Path(decode_process.__file__).parent.parent)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(hanging)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not has_ended(child)
        parent.kill()
    wait_until_ended(child)


def test_messages_of_another_shape_are_refused() -> None:
    reply = decode_process._Reply(shape=(2, 3, 5), duration_s=1.0)
    with pytest.raises(ValueError, match="got 7 bytes"):
        decode_process._frames_of(reply, bytearray(7))
    oversized = iter([b"\xff\xff\xff\xff"])

    def read_some(buffer: memoryview) -> int:
        part = next(oversized)
        buffer[: len(part)] = part
        return len(part)

    with pytest.raises(ValueError, match="header of 4294967295 bytes"):
        decode_process._read_message(read_some)


def test_deadline_is_positive() -> None:
    with pytest.raises(ValueError, match="deadline_s: got 0"):
        DeadlineDecoder(deadline_s=0.0)
