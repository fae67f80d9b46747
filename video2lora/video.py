"""A video file -> Frames: chosen RGB pictures, small enough for the model, with the times they are shown at.

`probe` says what a file holds, `choose_timestamps` when to look, `decode` gives the pictures. PyAV decodes; what it
cannot read goes to the ffmpeg program, which may know more formats, at the price of decoding twice in a child process.

Nothing here ends a decode that hangs or survives one that crashes: `decode_process.DeadlineDecoder` does, for clips of
strangers. Decoding stays in uint8 RGB and on one thread (floats cost 2.3 times the time downstream).
"""

import os

import numpy as np

from video2lora.ffmpeg_program import READ_TIMEOUT_S, VideoInfo, list_frames, probe, read_frames
from video2lora.pyav_decoder import decode_with_pyav
from video2lora.sampling import ClipRequest, Frames, Sampling, choose_timestamps, plan_frames
from video2lora.video_file import MAX_FRAME_PX, RejectReason, VideoDecodeError, check_file, content_id, short_id

__all__ = [
    "MAX_FRAME_PX",
    "Frames",
    "RejectReason",
    "Sampling",
    "VideoDecodeError",
    "VideoInfo",
    "check_decode_arguments",
    "choose_timestamps",
    "content_id",
    "decode",
    "probe",
    "short_id",
]

_OTHER_PROGRAM_MAY_READ = (
    RejectReason.NOT_A_VIDEO,
    RejectReason.TRUNCATED,
    RejectReason.DECODE_ERROR,
)


def decode(
    path: str | os.PathLike[str],
    sampling: Sampling,
    *,
    longest_edge_px: int,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> Frames:
    """Decodes the chosen frames of the span [start_s, end_s) of the first video stream that is no cover picture.

    Pictures are upright and keep their aspect; small ones are enlarged to the longest edge, as SmolVLM's processor does.
    The span counts from the clip's first frame. A clip cut off midway is a shorter clip. Raises VideoDecodeError, with
    "deadline" only where the ffmpeg program, asked when PyAV fails, takes longer than READ_TIMEOUT_S; ValueError for an
    edge < 1 px or a span without length.
    """
    check_decode_arguments(longest_edge_px=longest_edge_px, start_s=start_s, end_s=end_s)
    check_file(path)
    clip = ClipRequest(path=path, sampling=sampling, longest_edge_px=longest_edge_px, start_s=start_s, end_s=end_s)
    try:
        return decode_with_pyav(clip)
    except VideoDecodeError as error:
        if error.reason not in _OTHER_PROGRAM_MAY_READ or not os.path.isfile(path):
            raise
        frames = decode_with_ffmpeg(clip)
        if frames is None:
            raise
        return frames


def check_decode_arguments(*, longest_edge_px: int, start_s: float, end_s: float | None) -> None:
    """Raises ValueError for an edge < 1 px, a negative or infinite start, an end that is not after the start."""
    if longest_edge_px < 1:
        raise ValueError(f"longest_edge_px: got {longest_edge_px}, expected >= 1")
    if not 0 <= start_s < float("inf"):
        raise ValueError(f"start_s: got {start_s}, expected >= 0")
    if end_s is not None and not end_s > start_s:
        raise ValueError(f"end_s: got {end_s}, expected more than start_s = {start_s}")


def decode_with_ffmpeg(clip: ClipRequest) -> Frames | None:
    """The same frames from the ffmpeg program, resized by it; None if it cannot decode any."""
    times_s, last_frame_s = list_frames(clip.path, timeout_s=READ_TIMEOUT_S)
    if len(times_s) == 0:
        return None
    plan = plan_frames(times_s, clip, last_frame_s=last_frame_s)
    numbers, place = np.unique(plan.frame_numbers, return_inverse=True)
    images = read_frames(clip.path, numbers, longest_edge_px=clip.longest_edge_px, timeout_s=READ_TIMEOUT_S)
    return Frames(images=images[place], timestamps_s=plan.timestamps_s, duration_s=plan.duration_s)
