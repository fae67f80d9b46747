"""The ffmpeg program, in a child process that is killed when its time is over: `probe`, and frames PyAV cannot read.

ffmpeg-python builds every command (lists of arguments, no shell). The program is the one on PATH, else the static one
in the wheel of imageio-ffmpeg. That wheel has no ffprobe, so `probe` copies the packets into ffmpeg's `framecrc`
muxer, which writes one line per packet: codec, size, and the time of every frame rather than what the header claims,
on all versions of ffmpeg alike. It reads the whole file (about 1 s per GB) and decodes nothing. Only the rotation
comes from ffmpeg's log.

Frames take two runs: one lists the times of all frames that can be decoded, one writes those that were chosen, by
number, as PPM pictures, each with its size in front. Slower than PyAV by the second decode, and used only where PyAV
fails.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any

import ffmpeg
import imageio_ffmpeg
import numpy as np
from jaxtyping import Float64, Int64, UInt8

from video2lora.pixels import LARGEST_EDGE_PX
from video2lora.video_file import (
    FORMATS,
    MAX_FRAME_PX,
    RejectReason,
    VideoDecodeError,
    check_file,
    check_frame_size,
    ffmpeg_url,
    quarter_turns,
    unopened,
)

PROBE_TIMEOUT_S = 30.0  # ours; 1 s per GB on a warm disk
READ_TIMEOUT_S = 120.0  # ours, for each of the two runs; minutes of 1080p decode in it on one core

_NO_TIME = ("NOPTS", str(-(2**63)))  # AV_NOPTS_VALUE, as different versions write it
_INPUT = "<input>"  # stands for the file while a command is built: ffmpeg-python refuses paths that are not UTF-8
_LISTED_FRAME = re.compile(rb"^frame:\d+\s+pts:(-?\d+)", re.MULTILINE)
_ROTATION = re.compile(r"^\s+display ?matrix: rotation of (-?[\d.]+) degrees", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds, from its packets; width and height as stored, before the rotation.

    `fps` is the mean over the clip (0.0 for one frame that lasts no time), `n_frames` the packets that are there, and
    `rotation_deg` how far to turn a picture counterclockwise to show it: 0, 90, 180 or 270.
    """

    duration_s: float
    fps: float
    width_px: int
    height_px: int
    rotation_deg: int
    codec: str
    n_frames: int


@dataclass
class _FrameList:
    """What `framecrc` wrote: per stream (its number as text) the header fields, and the times of the video's frames."""

    fields: dict[str, dict[str, str]] = field(default_factory=dict)
    times: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # (pts, duration) in the time base

    def video(self) -> str | None:
        """The number of the video stream."""
        return next((n for n, fields in self.fields.items() if fields.get("media_type") == "video"), None)


@cache
def ffmpeg_program() -> str:
    """Path of ffmpeg: the one on PATH unless that is older than 5.1, which has no -fps_mode; else imageio-ffmpeg's."""
    found = shutil.which("ffmpeg")
    if found is not None:
        told = subprocess.run([found, "-hide_banner", "-version"], capture_output=True, text=True, errors="replace", check=False).stdout
        version = re.match(r"ffmpeg version n?(\d+)\.(\d+)", told)
        if version is None or (int(version[1]), int(version[2])) >= (5, 1):  # one built from a commit names that
            return found
    return str(imageio_ffmpeg.get_ffmpeg_exe())


def probe(path: str | os.PathLike[str], *, timeout_s: float = PROBE_TIMEOUT_S) -> VideoInfo:
    """Reads all packets of the first video stream that is no cover picture.

    Raises VideoDecodeError: missing, unreadable, empty_file, not_a_video, no_video_stream, truncated, no_frames,
    too_large, decode_error (no size), deadline.
    """
    check_file(path)
    file = _input()  # "V": no cover pictures; "?": a sound file is no error, it is to be told from a broken one
    output, log = _run(path, ffmpeg.output(file["V:0?"], file["a:0?"], "pipe:", f="framecrc", c="copy"), timeout_s=timeout_s)
    frame_list = _parse_framecrc(output)
    video = frame_list.video()
    if not frame_list.fields:
        raise unopened(path, _last_line(log))
    if video is None:
        raise VideoDecodeError(RejectReason.NO_VIDEO_STREAM, f"{os.fspath(path)} has no video stream")
    fields, times = frame_list.fields[video], frame_list.times.get(video, [])
    width_px, height_px = (int(size) for size in fields.get("dimensions", "0x0").split("x"))
    check_frame_size(width_px, height_px)
    if not times:
        raise VideoDecodeError(RejectReason.NO_FRAMES, f"the video stream of {os.fspath(path)} has no packet")
    if not width_px or not height_px:
        raise VideoDecodeError(RejectReason.DECODE_ERROR, f"the frames of {os.fspath(path)} have no size")
    first = min(pts for pts, _ in times)
    duration_s = float((max(pts + duration for pts, duration in times) - first) * Fraction(fields["tb"]))
    turned = _ROTATION.search(log)
    return VideoInfo(
        duration_s=duration_s,
        fps=len(times) / duration_s if duration_s > 0 else 0.0,
        width_px=width_px,
        height_px=height_px,
        rotation_deg=quarter_turns(float(turned[1])) * 90 if turned else 0,
        codec=fields["codec_id"],
        n_frames=len(times),
    )


def list_frames(path: str | os.PathLike[str], *, timeout_s: float) -> tuple[Float64[np.ndarray, " n_shown"], float]:
    """Times in seconds of all frames that ffmpeg can decode (none: empty), and how long the last is on show.

    The times come from a filter: encoders would round them to the mean rate. Raises VideoDecodeError (deadline).
    """
    frames = _input(max_pixels=MAX_FRAME_PX)["V:0"].filter("settb", "1/1000000")
    frames = frames.filter("metadata", mode="add", key="n", value="0")  # the next prints frames that have metadata
    frames = frames.filter("metadata", mode="print", file="pipe:1")
    output, _ = _run(path, frames.output("pipe:1", f="null", fps_mode="passthrough"), timeout_s=timeout_s)
    times_s = np.array([int(pts) for pts in _LISTED_FRAME.findall(output)], dtype=np.float64) / 1e6
    last_frame_s = float(np.median(np.diff(times_s))) if len(times_s) > 1 else 0.0
    return np.maximum.accumulate(times_s), last_frame_s


def read_frames(
    path: str | os.PathLike[str],
    frame_numbers: Int64[np.ndarray, " n_chosen"],
    *,
    longest_edge_px: int,
    timeout_s: float,
) -> UInt8[np.ndarray, "n_chosen height width 3"]:
    """The frames with these numbers (ascending, no repeats) in the list of `list_frames`, turned upright.

    Raises VideoDecodeError (deadline, decode_error).
    """
    chosen = "+".join(f"eq(n,{number})" for number in frame_numbers)
    frames = _input(max_pixels=MAX_FRAME_PX)["V:0"].filter("select", chosen)
    frames = frames.filter("scale", flags="lanczos", **_fitted_size(longest_edge_px))
    command = frames.output("pipe:", f="image2pipe", vcodec="ppm", pix_fmt="rgb24", fps_mode="passthrough")
    output, log = _run(path, command, timeout_s=timeout_s)
    images = _parse_ppm(output)
    if len(images) != len(frame_numbers) or len({image.shape for image in images}) != 1:
        raise VideoDecodeError(RejectReason.DECODE_ERROR, f"ffmpeg gave {len(images)} frames of {len(frame_numbers)}: {_last_line(log)}")
    return np.stack(images)


def _fitted_size(longest_edge_px: int) -> dict[str, str]:
    """`pixels.fitted_size` in the words of ffmpeg's scale filter, which knows the upright frame's iw and ih. Its Lanczos is its own."""
    edge = min(longest_edge_px, LARGEST_EDGE_PX)
    height, width = f"trunc({edge}/(iw/ih))", f"trunc({edge}*(iw/ih))"
    return {
        "w": f"if(gte(iw,ih),{edge},max(1,{width}+mod({width},2)))",
        "h": f"if(gte(iw,ih),max(1,{height}+mod({height},2)),{edge})",
    }


def _input(**options: int) -> Any:
    """One thread, nothing but one file; ffmpeg itself turns phone videos upright. Options are of the decoder."""
    return ffmpeg.input(_INPUT, protocol_whitelist="file", format_whitelist=FORMATS, threads=1, **options)


def _run(path: str | os.PathLike[str], command: Any, *, timeout_s: float) -> tuple[bytes, str]:
    """Standard output and log of an ffmpeg command, whatever its exit status: a damaged file may still give frames."""
    arguments = ffmpeg.compile(command.global_args("-hide_banner", "-nostdin"), cmd=ffmpeg_program())
    arguments = [ffmpeg_url(path) if argument == _INPUT else argument for argument in arguments]
    try:
        done = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:  # subprocess.run has killed it by now
        raise VideoDecodeError(RejectReason.DEADLINE, f"ffmpeg was not done after {timeout_s} s") from error
    return done.stdout, done.stderr.decode(errors="replace")


def _parse_framecrc(output: bytes) -> _FrameList:
    """Header lines are "#field stream: value", packet lines "stream, dts, pts, duration, size, checksum[, F=flags]"."""
    result = _FrameList()
    for line in output.decode(errors="replace").splitlines():
        if line.startswith("#"):
            name, _, value = line[1:].partition(":")
            field_name, _, stream = name.partition(" ")
            if stream:
                result.fields.setdefault(stream, {})[field_name] = value.strip()
            continue
        columns = [column.strip() for column in line.split(",")]
        if len(columns) >= 6:
            stream, dts, pts, duration = columns[:4]
            stamp = dts if pts in _NO_TIME else pts
            is_empty = int(columns[4]) == 0  # AVI repeats the frame before so
            if stamp not in _NO_TIME and not is_empty and not _is_discarded(columns):
                result.times.setdefault(stream, []).append((int(stamp), int(duration)))
    return result


def _is_discarded(columns: list[str]) -> bool:
    """An edit list cuts this packet's frame off (AV_PKT_FLAG_DISCARD = 4)."""
    return any(column.startswith("F=") and int(column[2:], 16) & 4 for column in columns)


def _parse_ppm(output: bytes) -> list[UInt8[np.ndarray, "_height _width 3"]]:
    """Pictures one after the other, each "P6 <width> <height> 255 " and its pixels; a last one cut short is dropped."""
    images, at = [], 0
    while header := re.compile(rb"P6\s(\d+)\s(\d+)\s255\s").match(output, at):
        width, height = int(header[1]), int(header[2])
        at = header.end() + width * height * 3
        if at > len(output):
            break
        images.append(np.frombuffer(output, np.uint8, width * height * 3, header.end()).reshape(height, width, 3))
    return images


def _last_line(log: str) -> str:
    lines = log.strip().splitlines()
    return lines[-1].strip() if lines else "ffmpeg wrote no log"


def scene_changes(
    path: str | os.PathLike[str], *, threshold: float, timeout_s: float = READ_TIMEOUT_S
) -> Float64[np.ndarray, " n_changes"]:
    """Seconds from the clip's first frame at which a picture differs abruptly from the one before (ffmpeg's `scdet`); ascending.

    `threshold` is in percent of the mean absolute luma difference (scdet: default 10, "good values are in the range
    8 to 14"). Every frame is decoded; what cannot be decoded changes no scene. Raises VideoDecodeError (deadline).
    """
    frames = _input(max_pixels=MAX_FRAME_PX)["V:0"].filter("setpts", "PTS-STARTPTS").filter("settb", "1/1000000")
    frames = frames.filter("scdet", threshold=threshold)
    frames = frames.filter("metadata", mode="print", key="lavfi.scd.time", file="pipe:1")  # frames that have this key alone
    output, _ = _run(path, frames.output("pipe:1", f="null", fps_mode="passthrough"), timeout_s=timeout_s)
    return np.array([int(pts) for pts in _LISTED_FRAME.findall(output)], dtype=np.float64) / 1e6
