"""Frames with PyAV: decodes the groups of pictures that hold chosen frames, or everything where that is not safe.

A first pass reads the packets and decodes nothing. Its times are the file's own, so the choice is right for variable
rates and for headers that lie, and it tells which groups of pictures (GOPs, from one keyframe to the next) hold chosen
frames. The second pass decodes those alone: it seeks only when the next frame lies in a later GOP than the decoder
stands in, passes over frames that no other frame refers to, and stops once it has fed a GOP's last chosen frame.

Frames it does not find with exactly the expected time (damaged files, hidden frames, packets without times) make it
give up for a plain decode of everything: slower, and right for all that can be decoded. One decoder thread: clips run
in parallel, not frames. Pixels are taken as square, as the processors of the published models do, and a mirrored
picture is not turned back.
"""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import Float64, Int64, UInt8

from video2lora.pixels import fit, resize
from video2lora.sampling import ClipRequest, Frames, plan_frames
from video2lora.video_file import (
    FORMATS,
    MAX_FRAME_PX,
    RejectReason,
    VideoDecodeError,
    check_frame_size,
    ffmpeg_url,
    quarter_turns,
    unopened,
)

# Containers that store the order of decoding and no times: with frames out of order, libav's times are guesses.
_NO_PRESENTATION_TIMES = ("avi", "h264", "hevc", "m4v", "mpegvideo")

_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": FORMATS}  # a playlist named .mp4 must not make us read what it names


@dataclass(frozen=True)
class _Scan:
    """What the packets say: times of frames and keyframes, ascending, in the stream's time base."""

    pts: Int64[np.ndarray, " n_shown"]
    key_pts: Int64[np.ndarray, " n_keyframes"]
    key_dts: Int64[np.ndarray, " n_keyframes"]  # decode times, which index entries hold; pts where there is none
    last_frame_s: float  # how long the last frame is on show


def decode_with_pyav(clip: ClipRequest) -> Frames:
    """Raises VideoDecodeError."""
    try:
        frames = _decode_by_seeking(clip)
    except av.FFmpegError:  # a file in which one cannot seek
        frames = None
    try:
        return frames or _decode_everything(clip)
    except av.FFmpegError as error:
        raise VideoDecodeError(RejectReason.DECODE_ERROR, str(error)) from error


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file at its start, with a fresh decoder. Raises VideoDecodeError."""
    try:
        container = av.open(ffmpeg_url(path), options=_OPTIONS, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        raise unopened(path, str(error)) from error
    with container:
        yield container, _video_stream(container)


def _video_stream(container: InputContainer) -> VideoStream:
    """The first video stream that is no cover picture, set to one thread. Raises VideoDecodeError."""
    covers = av.stream.Disposition.attached_pic
    stream = next((s for s in container.streams.video if not s.disposition & covers), None)
    if stream is None:
        raise VideoDecodeError(RejectReason.NO_VIDEO_STREAM, f"{container.name} has no video stream")
    if stream.codec_context is None:
        raise VideoDecodeError(RejectReason.DECODE_ERROR, f"no decoder for the video stream of {container.name}")
    check_frame_size(stream.codec_context.width, stream.codec_context.height)
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PX)}  # the stream may ask for more than the header
    return stream


def _decode_by_seeking(clip: ClipRequest) -> Frames | None:
    """Decodes the GOPs that hold chosen frames; None where a frame is not found with exactly its time."""
    with _opened(clip.path) as (container, stream):
        scan = _scan(container, stream, end_s=clip.end_s)
        if scan is None:
            return None
        time_base = _time_base_s(stream)
        plan = plan_frames(scan.pts * time_base, clip, last_frame_s=scan.last_frame_s)
        numbers, place = np.unique(plan.frame_numbers, return_inverse=True)
        images = []
        for frame in _seek_frames(container, stream, scan, [int(pts) for pts in scan.pts[numbers]]):
            if frame is None:
                return None
            images.append(_picture(frame, clip.longest_edge_px))
    return Frames(images=_stack([images[i] for i in place]), timestamps_s=plan.timestamps_s, duration_s=plan.duration_s)


def _frame_s(stream: VideoStream, duration: int | None) -> float:
    """How long a frame is on show that the file gives this duration; without one, as long as the mean."""
    if duration:
        return duration * _time_base_s(stream)
    return float(1 / stream.average_rate) if stream.average_rate else 0.0


def _time_base_s(stream: VideoStream) -> float:
    """Seconds that a time stamp of 1 means."""
    if stream.time_base is None:
        raise VideoDecodeError(RejectReason.DECODE_ERROR, "the video stream has no time base")
    return float(stream.time_base)


def _scan(container: InputContainer, stream: VideoStream, *, end_s: float | None) -> _Scan | None:
    """Reads the packets up to the span's end; None if their times cannot be trusted or there is no keyframe."""
    if stream.codec_context.has_b_frames and container.format.name in _NO_PRESENTATION_TIMES:
        return None
    shown: dict[int, int] = {}  # pts -> duration
    keys: dict[int, int] = {}  # pts -> dts
    first: int | None = None
    stop = None if end_s is None else end_s / _time_base_s(stream)
    for packet in _packets(container, stream):
        if packet.pts is None:
            return None
        if packet.is_keyframe:
            keys[packet.pts] = packet.pts if packet.dts is None else packet.dts
        if not packet.is_discard:  # an edit list cuts off what lies before the clip's first frame
            shown[packet.pts] = packet.duration or 0
            first = packet.pts if first is None else min(first, packet.pts)
        if stop is not None and first is not None and packet.dts is not None and packet.dts - first >= stop:
            break  # no later packet is shown earlier than this one is decoded
    if not shown or not keys or min(keys) > min(shown):  # cut out of a longer video: begins before its first keyframe
        return None
    pts, key_pts = np.array(sorted(shown)), np.array(sorted(keys))
    key_dts = np.array([keys[int(key)] for key in key_pts])
    last_frame_s = _frame_s(stream, shown[int(pts[-1])])
    return _Scan(pts=pts, key_pts=key_pts, key_dts=key_dts, last_frame_s=last_frame_s)


def _packets(container: InputContainer, stream: VideoStream) -> "Iterator[av.Packet[VideoStream]]":
    """The packets from the present position on; a file that breaks off ends there."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            return
        if packet.size:  # the last one is empty and asks the decoder for what it holds back
            yield packet


def _seek_frames(container: InputContainer, stream: VideoStream, scan: _Scan, chosen: list[int]) -> Iterator[VideoFrame | None]:
    """One frame for each chosen pts (ascending), None and the end for one that is not found.

    Decoding begins with the file's first packet even where no frame of its GOP is chosen: it may say which x264 made
    the video, and libavcodec decodes 4:4:4 of old versions differently (wrong pictures after a seek without it).
    """
    gops = (np.searchsorted(scan.key_pts, np.array(chosen), side="right") - 1).tolist()
    if gops[0] > 0:
        container.seek(int(scan.key_dts[0]), stream=stream, backward=True)
        for packet in itertools.islice(_packets(container, stream), 1):
            _decoded(stream, packet)
    wanted: dict[int, set[int]] = {}
    for pts, gop in zip(chosen, gops, strict=True):
        wanted.setdefault(gop, set()).add(pts)
    decoder: Iterator[VideoFrame] = iter(())
    decoder_gop, is_brief = -1, True
    for pts, gop in zip(chosen, gops, strict=True):
        if gop > decoder_gop:
            decoder = _frames_from_keyframe(container, stream, scan, gop, wanted[gop], is_brief=is_brief)
            decoder_gop = gop
        frame = _first_from(decoder, pts)
        if is_brief and frame is not None and frame.interlaced_frame:  # its other field may be a packet that was not read
            is_brief = False
            decoder = _frames_from_keyframe(container, stream, scan, gop, wanted[gop], is_brief=is_brief)
            frame = _first_from(decoder, pts)
        if frame is None or frame.pts != pts:
            yield None
            return
        yield frame


def _first_from(decoder: Iterator[VideoFrame], pts: int) -> VideoFrame | None:
    """The next frame that is not shown before pts; one without a time is told from the chosen one by its caller."""
    return next((frame for frame in decoder if frame.pts is None or frame.pts >= pts), None)


def _frames_from_keyframe(
    container: InputContainer, stream: VideoStream, scan: _Scan, gop: int, chosen: set[int], *, is_brief: bool = True
) -> Iterator[VideoFrame]:
    """Frames shown from the keyframe on; of frames that nothing refers to, only the chosen ones.

    If is_brief, the decoder gives what it holds back as soon as it was fed all chosen frames: a frame needs nothing that
    is decoded after it (10 % less CPU at a GOP of 50), but its packet must be a whole frame, and not one of its two fields.
    Otherwise the decoder is fed until the caller has what it wants.
    """
    key_pts, missing = int(scan.key_pts[gop]), set(chosen)
    for packet in _packets_from_keyframe(container, stream, scan, gop):
        # One thread: the decoder looks at the setting while it takes this very packet.
        stream.codec_context.skip_frame = "DEFAULT" if packet.pts in chosen else "NONREF"
        yield from (frame for frame in _decoded(stream, packet) if frame.pts is None or frame.pts >= key_pts)
        missing.discard(packet.pts)
        if is_brief and not missing:
            break
    yield from (frame for frame in _decoded(stream, None) if frame.pts is None or frame.pts >= key_pts)


def _packets_from_keyframe(container: InputContainer, stream: VideoStream, scan: _Scan, gop: int) -> Iterator["av.Packet[VideoStream]"]:
    """The packets from this keyframe to the end, none if seeking does not lead to it.

    MPEG program streams land inside a packet and stamp the next ones wrongly, so a second try starts a GOP earlier.
    """
    key_pts = int(scan.key_pts[gop])
    for earlier in (gop, max(gop - 1, 0), 0):
        container.seek(int(scan.key_dts[earlier]), stream=stream, backward=True)
        packets = _packets(container, stream)
        for packet in packets:
            if packet.is_keyframe and packet.pts == key_pts:
                yield packet
                yield from packets
                return
            if packet.dts is not None and packet.dts > key_pts:
                break


def _decoded(stream: VideoStream, packet: "av.Packet[VideoStream] | None") -> list[VideoFrame]:
    """What the decoder gives for a packet (None: what it held back); nothing for a damaged one."""
    try:
        return stream.codec_context.decode(packet)
    except av.FFmpegError:
        return []


def _decode_everything(clip: ClipRequest) -> Frames:
    """Decodes the clip twice: for the times of its frames, then for the chosen pictures. Raises VideoDecodeError."""
    with _opened(clip.path) as (container, stream):
        times_s, last_frame_s = _times_of_all_frames(container, stream)
    if len(times_s) == 0:
        raise _nothing_decoded(clip)
    plan = plan_frames(times_s, clip, last_frame_s=last_frame_s)
    numbers, place = np.unique(plan.frame_numbers, return_inverse=True)
    with _opened(clip.path) as (container, stream):
        frames = itertools.islice(_all_frames(container, stream), int(numbers[-1]) + 1)
        wanted = set(numbers.tolist())
        images = [_picture(frame, clip.longest_edge_px) for i, frame in enumerate(frames) if i in wanted]
    return Frames(images=_stack([images[i] for i in place]), timestamps_s=plan.timestamps_s, duration_s=plan.duration_s)


def _all_frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Every frame that can be decoded, from the present position."""
    for packet in _packets(container, stream):
        yield from _decoded(stream, packet)
    yield from _decoded(stream, None)


def _times_of_all_frames(container: InputContainer, stream: VideoStream) -> tuple[Float64[np.ndarray, " n_shown"], float]:
    """Ascending seconds, and how long the last frame is on show. A frame without a time follows on the one before.

    Decoders give frames in the order they are shown; where their times are not in that order, the order is right.
    """
    time_base, last_frame_s = _time_base_s(stream), 0.0
    times_s: list[float] = []
    for frame in _all_frames(container, stream):
        stamp = frame.dts if frame.pts is None else frame.pts
        follows_s = times_s[-1] + last_frame_s if times_s else 0.0
        times_s.append(follows_s if stamp is None else stamp * time_base)
        last_frame_s = _frame_s(stream, frame.duration)
    return np.sort(np.array(times_s, dtype=np.float64)), last_frame_s


def _nothing_decoded(clip: ClipRequest) -> VideoDecodeError:
    """Says why there was no frame, from what the file promises and what is there."""
    with _opened(clip.path) as (container, stream):
        first = next(_packets(container, stream), None)
        if first is not None and not first.is_corrupt:
            return VideoDecodeError(RejectReason.DECODE_ERROR, f"no frame of {container.name} can be decoded")
        if first is not None or stream.frames > 0:
            detail = f"{container.name} breaks off before the end of its first frame"
            return VideoDecodeError(RejectReason.TRUNCATED, detail)
        return VideoDecodeError(RejectReason.NO_FRAMES, f"the video stream of {container.name} has no frame")


def _picture(frame: VideoFrame, longest_edge_px: int) -> UInt8[np.ndarray, "height width 3"]:
    """RGB, upright, the longest edge longest_edge_px: turned first, as the processor sees no other frames."""
    rgb = frame.to_ndarray(format="rgb24", threads=1)
    return fit(np.ascontiguousarray(np.rot90(rgb, quarter_turns(float(frame.rotation)))), longest_edge_px)


def _stack(images: list[UInt8[np.ndarray, "_height _width 3"]]) -> UInt8[np.ndarray, "n_chosen height width 3"]:
    """One array; a stream that changes its size midway takes the size of its first chosen frame."""
    height_px, width_px, _ = images[0].shape
    return np.concatenate([resize(image[None], height_px, width_px) for image in images])
