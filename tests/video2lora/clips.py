"""Tiny clips whose grey level is the number of the frame: the oracle for which frame was decoded.

Frame i is plain grey of level 8 + 4 i, up to frame 59, with a white corner at the top left that shows the orientation.
x264's quality is set so high that decoded levels are off by less than half a step.
"""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

MILLISECOND = Fraction(1, 1000)
LEVEL_OF_FIRST, LEVELS_PER_FRAME = 8, 4


def write_clip(
    path: Path,
    times_ms: Sequence[int],
    *,
    width_px: int = 34,
    height_px: int = 26,
    codec: str = "libx264",
    pixels: str = "yuv444p",
    options: dict[str, str] | None = None,
    index_first: bool = False,
) -> Path:
    """A clip whose frame i is on show from times_ms[i] on; the last lasts 40 ms."""
    options = {"qp": "4"} | (options or {}) if codec == "libx264" else options or {}
    faststart = {"movflags": "faststart"} if index_first and path.suffix == ".mp4" else {}
    with av.open(path, "w", container_options=faststart) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, pixels
        stream.codec_context.time_base = MILLISECOND if codec == "libx264" else Fraction(1, 25)
        for i, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(picture(i, width_px=width_px, height_px=height_px), format="rgb24")
            frame.time_base = MILLISECOND
            frame.pts = time_ms
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def picture(i: int, *, width_px: int, height_px: int) -> np.ndarray:
    """RGB; the corner is a quarter of each edge."""
    image = np.full((height_px, width_px, 3), LEVEL_OF_FIRST + LEVELS_PER_FRAME * i, np.uint8)
    image[: height_px // 4, : width_px // 4] = 255
    return image


def frame_numbers(images: np.ndarray) -> list[int]:
    """Which frames these are, from the grey of their centres; fails where a level is half a step off."""
    _, height, width, _ = images.shape
    centres = images[:, height // 2 : height // 2 + 4, width // 2 : width // 2 + 4].astype(np.float64)
    steps = (centres.mean(axis=(1, 2, 3)) - LEVEL_OF_FIRST) / LEVELS_PER_FRAME
    assert np.abs(steps - steps.round()).max() < 0.5, f"levels between two frames: {steps}"
    return [int(step) for step in steps.round()]


def regular(n_frames: int, *, frame_ms: int = 40) -> list[int]:
    """Times at a constant rate."""
    return [i * frame_ms for i in range(n_frames)]


def write_audio(path: Path) -> Path:
    """0.1 s of silence."""
    with av.open(path, "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn(path: Path, rotation_deg: int) -> Path:
    """Writes a rotation (counterclockwise) into the track header of an MP4, as phones do; ISO 14496-12, 8.3.2."""
    data = bytearray(path.read_bytes())
    cos, sin = {0: (1, 0), 90: (0, -1), 180: (-1, 0), 270: (0, 1)}[rotation_deg]
    matrix_at = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes of flags, times, layer and volume before it
    struct.pack_into(">9i", data, matrix_at, cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path
