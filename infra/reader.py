"""Clips -> content ids and frames, several at a time and ahead of the model.

Each decoder is a child process, which a clip that crashes or hangs it costs and nothing else. A content is decoded once, however many clips
have it, and not at all where it is known: then hashing it is all that is done.
"""

import os
import stat
import threading
from collections import deque
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from infra.attempt import reject
from infra.errors import StorageError
from infra.fetch import OutOfReachError, Received, fetched, public_name, stored_uri
from infra.progress import say
from video2lora import api
from video2lora.decode_process import DeadlineDecoder
from video2lora.frames_folder import read_folder
from video2lora.video import Frames, RejectReason, Sampling, VideoDecodeError

STAGE = "internalize"
DECODE_DEADLINE_S = 600.0  # ours: 1,024 frames from two hours of 1080p take minutes
MAX_READERS = 8
LARGE_BYTES = 100_000_000  # a download of more is announced


class OtherVideoError(Exception):
    """The clip is there, and holds another video than it did."""


@dataclass(frozen=True)
class Read:
    """A clip that was looked at: frames to make an adapter of; or why there are none; or neither, where its content is known already."""

    clip: str
    video_id: str = ""
    frames: Frames | None = None
    error: VideoDecodeError | OutOfReachError | OtherVideoError | None = None

    @property
    def name(self) -> str:
        """As it was given, without secrets."""
        return public_name(self.clip)

    def reject(self) -> dict[str, Any]:
        """The row that says why it gave no adapter. A server out of reach says nothing about the video, and is asked again next time."""
        reason, detail = str(RejectReason.UNREADABLE), str(self.error)
        if isinstance(self.error, VideoDecodeError):
            reason, detail = self.error.reason.value, self.error.detail
        elif isinstance(self.error, OtherVideoError):
            reason = "superseded"
        return reject(STAGE, stored_uri(self.clip), reason, " ".join(detail.split()))


class Decoder:
    """A local file or folder of pictures -> the frames that a hypernetwork reads, in a child process that can be killed."""

    def __init__(self, sampling: Sampling, *, longest_edge_px: int, pictures_per_s: float) -> None:
        self.sampling, self.longest_edge_px, self.pictures_per_s = sampling, longest_edge_px, pictures_per_s
        self.process = DeadlineDecoder(deadline_s=DECODE_DEADLINE_S)

    def __call__(self, path: str) -> Frames:
        """Raises VideoDecodeError."""
        if os.path.isdir(path):
            return read_folder(Path(path), self.sampling, longest_edge_px=self.longest_edge_px, fps=self.pictures_per_s)
        return self.process.decode(path, self.sampling, longest_edge_px=self.longest_edge_px)


class Reader:
    """Clips -> `Read`s, with as many threads as decoders."""

    def __init__(self, decoders: Sequence[Decoder], *, known: Container[str], wanted: Container[str] | None = None) -> None:
        """Contents that are `known` are not decoded; where some are `wanted`, others are not either, and are an OtherVideoError."""
        self.decoders, self.known, self.wanted = decoders, known, wanted
        self.free: SimpleQueue[Decoder] = SimpleQueue()
        for decoder in decoders:
            self.free.put(decoder)
        self.taken: set[str] = set()
        self.taking, self.stopped = threading.Lock(), threading.Event()

    def read_all(self, clips: Sequence[str], *, ahead: int) -> Iterator[Read]:
        """In order. Frames of at most `ahead` clips wait in memory. Raises StorageError where a download cannot be kept."""
        pool = ThreadPoolExecutor(len(self.decoders))
        waiting: deque[Future[Read]] = deque()
        try:
            for clip in clips:
                waiting.append(pool.submit(self.read, clip))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also in the middle: what is being decoded or fetched is given up
            self.stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for decoder in self.decoders:
                decoder.process.stop()
            pool.shutdown(wait=True)
            for decoder in self.decoders:
                decoder.process.close()

    def read(self, clip: str) -> Read:
        video_id = ""
        try:
            with fetched(clip, received=self._received(clip)) as path:
                video_id = content_of(path)
                if self.wanted is not None and video_id not in self.wanted:
                    return Read(clip, video_id, error=OtherVideoError(f"holds video {video_id} now"))
                if not self._is_new(video_id):
                    return Read(clip, video_id)
                return Read(clip, video_id, frames=self._decoded(path))
        except (VideoDecodeError, OutOfReachError) as error:
            return Read(clip, video_id, error=error)

    def _is_new(self, video_id: str) -> bool:
        with self.taking:
            new = video_id not in self.known and video_id not in self.taken
            self.taken.add(video_id)
        return new

    def _decoded(self, path: str) -> Frames:
        decoder = self.free.get()
        try:
            return decoder(path)
        finally:
            self.free.put(decoder)

    def _received(self, clip: str) -> Received:
        told = False

        def tell(_n_bytes: int, total: int | None) -> None:
            nonlocal told
            if self.stopped.is_set():
                raise StorageError(f"{public_name(clip)}: given up")
            if total and total > LARGE_BYTES and not told:
                told = True
                say(f"fetching {public_name(clip)}, {total / 1e6:.0f} MB")

        return tell


def content_of(path: str) -> str:
    """The id of a file's or a folder's content. Raises VideoDecodeError, also for what is neither: reading a pipe may never end."""
    try:
        if os.path.exists(path) and not (stat.S_ISREG(os.stat(path).st_mode) or os.path.isdir(path)):
            raise VideoDecodeError(RejectReason.UNREADABLE, f"{path} is neither a file nor a folder of pictures")
        return api.video_id_of(path)
    except OSError as error:
        raise VideoDecodeError(RejectReason.UNREADABLE, str(error)) from error
