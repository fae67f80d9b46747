"""Decoding with a deadline: video -> Frames in a child process that can be killed when libav hangs on a file.

A thread cannot be stopped inside a C library, and a crash there takes the whole worker along, so the decoder has a
process of its own, kept from clip to clip (starting one costs about 2 s) and replaced after a hang or a crash.

On the pipes each message is: length of the header (4 bytes, big endian), header (JSON), payload (as many bytes as the
header says). A request carries the path, which need not be text; a reply carries the pixels and the timestamps. No
pickle: the child reads files of strangers, so what it answers is checked for its shape and is never code.

The child ends with its parent: a thread in it waits for the end of the pipe. (PR_SET_PDEATHSIG would fire already
when the parent's thread ends that started the child.) It leads a process group, so the ffmpeg program that it may run
ends with it.
"""

import os
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from video2lora.video import Frames, RejectReason, Sampling, VideoDecodeError, check_decode_arguments, decode

START_TRIES = 3  # of a child that is killed while it starts
START_DEADLINE_S = 120.0  # ours: importing PyAV and torch takes 2 s, on a busy host with a cold disk up to a minute

_LENGTH = struct.Struct(">I")
_MAX_HEADER_BYTES = 2**16
_MAX_PAYLOAD_BYTES = 2**32  # over an hour of one 384 px frame per second


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    n_payload_bytes: int = Field(default=0, ge=0, le=_MAX_PAYLOAD_BYTES)


class _Request(_Message):
    """The arguments of `decode`; the payload is the path, as the file system spells it."""

    sampling: Sampling
    longest_edge_px: int
    start_s: float
    end_s: float | None


class _Reply(_Message):
    """Either a reason, or a shape (n_frames, height, width): then the payload is the pixels and the timestamps."""

    reason: RejectReason | None = None
    detail: str = ""
    shape: tuple[int, int, int] = (0, 0, 0)
    duration_s: float = 0.0


class _DiedError(Exception):
    """The child ended while it decoded; the message says how."""


class DeadlineDecoder:
    """`decode` in a child process; use it as a context manager, or call `close`. Threads take turns.

    The child starts with the first `decode`, and again with the next one after it was killed or died.
    """

    def __init__(self, *, deadline_s: float) -> None:
        if not deadline_s > 0:
            raise ValueError(f"deadline_s: got {deadline_s}, expected > 0")
        self._deadline_s = deadline_s
        self._child: subprocess.Popen[bytes] | None = None
        self._turn, self._stopped = threading.Lock(), False

    @property
    def child_pid(self) -> int | None:
        """Process id of the child; None while there is none."""
        return None if self._child is None else self._child.pid

    def decode(
        self,
        path: str | os.PathLike[str],
        sampling: Sampling,
        *,
        longest_edge_px: int,
        start_s: float = 0.0,
        end_s: float | None = None,
    ) -> Frames:
        """As `video.decode`. Raises VideoDecodeError too with "deadline", and "decode_error" where the clip ended two children.

        One that dies may have been ended for no fault of the clip's (memory, an operator), so the clip is tried in another.
        """
        check_decode_arguments(longest_edge_px=longest_edge_px, start_s=start_s, end_s=end_s)
        request = _Request(
            n_payload_bytes=len(os.fsencode(path)),
            sampling=sampling,
            longest_edge_px=longest_edge_px,
            start_s=start_s,
            end_s=end_s,
        )
        with self._turn:
            try:
                reply, payload = self._ask(request, path)
            except _DiedError:
                if self._stopped:
                    raise
                try:
                    reply, payload = self._ask(request, path)
                except _DiedError as error:
                    raise VideoDecodeError(RejectReason.DECODE_ERROR, f"{error}, twice") from error
        return _frames_of(reply, payload)

    def _ask(self, request: "_Request", path: str | os.PathLike[str]) -> "tuple[_Reply, bytearray]":
        """Raises VideoDecodeError (deadline), _DiedError."""
        child = self._running_child()
        try:
            _write_message(child.stdin.fileno(), request, [os.fsencode(path)])  # type: ignore[union-attr]
            return _read_reply(child, time.monotonic() + self._deadline_s)
        except TimeoutError as error:
            self._kill()
            raise VideoDecodeError(RejectReason.DEADLINE, f"not decoded after {self._deadline_s} s") from error
        except (EOFError, BrokenPipeError) as error:
            raise _DiedError(self._how_it_died()) from error
        except BaseException:  # a reply that makes no sense, Ctrl-C: what is left in the pipe belongs to no one
            self._kill()
            raise

    def stop(self) -> None:
        """Ends the child whatever it does, at once and for good; `close` would wait for it. A `decode` under way or to come raises."""
        self._stopped = True
        if (pid := self.child_pid) is not None:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def close(self) -> None:
        """Ends the child. A later `decode` starts a new one."""
        with self._turn:
            self._kill()

    def __enter__(self) -> "DeadlineDecoder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _running_child(self) -> "subprocess.Popen[bytes]":
        """The child, ready for a request. Raises RuntimeError if it does not start."""
        if self._stopped:
            raise RuntimeError("the decode process was stopped")
        if self._child is not None and self._child.poll() is None:
            return self._child
        for tries_left in reversed(range(START_TRIES)):
            self._kill()
            self._child = child = _started()
            if self._stopped:  # meanwhile
                self._kill()
                raise RuntimeError("the decode process was stopped")
            try:
                _read_reply(child, time.monotonic() + START_DEADLINE_S)  # it says that it is there
                return child
            except (EOFError, TimeoutError) as error:
                died = self._how_it_died()
                if not tries_left or (child.returncode or 0) >= 0:  # that it was killed says nothing of the next one
                    raise RuntimeError(f"the decode process did not start: {died}, see its traceback above") from error
        raise AssertionError("the last try returns or raises")

    def _how_it_died(self) -> str:
        """Kills and forgets the child, and says how it ended."""
        child = self._child
        if child is None:
            return "there is no decode process"
        try:
            status = child.wait(timeout=5)  # its pipe is closed, so it is ending
        except subprocess.TimeoutExpired:
            status = 0
        self._kill()
        if status < 0:
            return f"the decode process was ended by signal {-status} ({signal.Signals(-status).name})"
        return f"the decode process ended with status {status}"

    def _kill(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        with suppress(ProcessLookupError):  # all of it may have ended
            os.killpg(child.pid, signal.SIGKILL)  # its process group: the ffmpeg program too
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def _started() -> "subprocess.Popen[bytes]":
    source = str(Path(__file__).resolve().parent.parent)  # the child finds this package where the parent found it
    search = [source, os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [source]
    return subprocess.Popen(
        [sys.executable, "-m", "video2lora.decode_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(search)},
        start_new_session=True,
    )


def _read_reply(child: "subprocess.Popen[bytes]", deadline: float) -> tuple[_Reply, bytearray]:
    """Raises TimeoutError at the deadline (on the monotonic clock), EOFError when the child is gone."""
    assert child.stdout is not None
    fd = child.stdout.fileno()
    poll = select.poll()  # select.select fails for descriptors above 1023, and Ray's workers have many
    poll.register(fd, select.POLLIN)

    def read_some(buffer: memoryview) -> int:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            raise TimeoutError
        return os.readv(fd, [buffer])

    header, payload = _read_message(read_some)
    return _Reply.model_validate_json(header), payload


def _frames_of(reply: _Reply, payload: bytearray) -> Frames:
    """Raises the VideoDecodeError that the reply carries; ValueError if its payload has not the promised shape."""
    if reply.reason is not None:
        raise VideoDecodeError(reply.reason, reply.detail)
    n_frames, height, width = reply.shape
    n_pixel_bytes = n_frames * height * width * 3
    if min(reply.shape) < 1 or len(payload) != n_pixel_bytes + 8 * n_frames:
        raise ValueError(f"decode process: got {len(payload)} bytes for the shape {reply.shape}")
    pixels = np.frombuffer(payload, np.uint8, n_pixel_bytes).reshape(n_frames, height, width, 3)
    timestamps_s = np.frombuffer(payload, np.dtype("<f8"), n_frames, offset=n_pixel_bytes).astype(np.float64)
    return Frames(images=pixels, timestamps_s=timestamps_s, duration_s=reply.duration_s)


def _write_message(fd: int, header: _Message, payload: list[bytes]) -> None:
    """Writes all of it; waits while the pipe is full. Raises BrokenPipeError when no one reads."""
    text = header.model_dump_json().encode()
    for part in [_LENGTH.pack(len(text)), text, *payload]:
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(fd, rest) :]


def _read_message(read_some: Callable[[memoryview], int]) -> tuple[bytearray, bytearray]:
    """Header and payload; `read_some` fills the front of a buffer and returns how much. Raises EOFError, ValueError."""
    (n_header_bytes,) = _LENGTH.unpack(_read_exactly(read_some, _LENGTH.size))
    if n_header_bytes > _MAX_HEADER_BYTES:
        raise ValueError(f"decode process: got a header of {n_header_bytes} bytes, expected <= {_MAX_HEADER_BYTES}")
    header = _read_exactly(read_some, n_header_bytes)
    n_payload_bytes = _Message.model_validate_json(header, extra="ignore").n_payload_bytes
    return header, _read_exactly(read_some, n_payload_bytes)


def _read_exactly(read_some: Callable[[memoryview], int], n_bytes: int) -> bytearray:
    buffer = bytearray(n_bytes)
    rest = memoryview(buffer)
    while rest:
        n_read = read_some(rest)
        if n_read == 0:
            raise EOFError
        rest = rest[n_read:]
    return buffer


# --- the child ---


def _answer(header: bytearray, payload: bytearray) -> tuple[_Reply, list[bytes]]:
    """Decodes what a request asks for. An error other than VideoDecodeError is a fault of ours and ends the child."""
    request = _Request.model_validate_json(header)
    try:
        frames = decode(
            os.fsdecode(bytes(payload)),
            request.sampling,
            longest_edge_px=request.longest_edge_px,
            start_s=request.start_s,
            end_s=request.end_s,
        )
    except VideoDecodeError as error:
        return _Reply(reason=error.reason, detail=error.detail[:1000].encode(errors="replace").decode()), []
    n_frames, height, width, _ = frames.images.shape
    parts = [frames.images.tobytes(), frames.timestamps_s.astype("<f8").tobytes()]
    n_payload_bytes = sum(len(part) for part in parts)
    shape = (n_frames, height, width)
    return _Reply(n_payload_bytes=n_payload_bytes, shape=shape, duration_s=frames.duration_s), parts


def _queue_requests(requests: "queue.SimpleQueue[tuple[bytearray, bytearray]]") -> None:
    """Runs in a thread; at the end of standard input it ends this process and those it started, whatever they do."""
    try:
        while True:
            requests.put(_read_message(lambda buffer: os.readv(0, [buffer])))
    finally:
        os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> None:
    """Serves requests from standard input until it ends; whatever else is printed goes to standard error."""
    if os.getpgrp() != os.getpid():
        raise SystemExit("video2lora.decode_process is started by DeadlineDecoder, in a session of its own")
    replies = os.dup(1)
    os.dup2(2, 1)
    import torch  # resizes the frames; imported here, where no clip's time is running

    torch.set_num_threads(1)
    requests: queue.SimpleQueue[tuple[bytearray, bytearray]] = queue.SimpleQueue()
    threading.Thread(target=_queue_requests, args=(requests,), daemon=True).start()
    _write_message(replies, _Reply(), [])
    while True:
        reply, payload = _answer(*requests.get())
        _write_message(replies, reply, payload)


if __name__ == "__main__":
    main()
