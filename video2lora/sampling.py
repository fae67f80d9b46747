"""Which frames of a video the model sees: a policy and the frames' times -> timestamps -> the frames on show then.

Everything here is arithmetic on times that were read from the file, so that every way to decode picks the same
frames. Times come from the packets or frames themselves, never from a header: headers lie (a header may promise 29.6
s that are not there) and rates vary within a file. The frame on show at time t is the last whose time is <= t.

`uniform` is the default: one fixed number of frames gives one shape for every batch. `published` repeats the choice
that SmolVLM's processor makes (transformers, `SmolVLMVideoProcessor.sample_frames`), for comparisons with published
numbers; it works on frame numbers and yields fewer frames for short clips.
"""

import math
import os
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64, UInt8
from pydantic import BaseModel, ConfigDict, Field, model_validator

from video2lora.video_file import RejectReason, VideoDecodeError

PUBLISHED_SKIP_S = 1.0  # SmolVLMVideoProcessor.sample_frames, skip_secs=1
SAME_INSTANT_S = 1e-6  # times this close are one; containers count in 1/90000 s or coarser
SAME_RATE_PER_S = 0.01  # a rate this close to a whole number is it: times in ms blur 60/s over 10 s by 0.006; 29.97 is 0.03 away


class Sampling(BaseModel):
    """How frames are chosen; `fps` (1/s) serves `published` and `fps`, and n_frames caps both.

    For the policy `fps`, n_frames=0 means no cap. Raises ValueError (pydantic's) for n_frames < 1 elsewhere, fps <= 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Literal["uniform", "published", "fps"] = "uniform"
    n_frames: int = Field(default=12, ge=0)
    fps: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _has_frames(self) -> "Sampling":
        if self.n_frames == 0 and self.policy != "fps":
            raise ValueError(f"n_frames: got 0 with policy {self.policy!r}, expected >= 1 (0 is for policy 'fps')")
        return self

    @property
    def name(self) -> str:
        """The key in the table of frames: "uniform-12", "published-12-1fps", "fps-2", "fps-2-max-64"."""
        if self.policy == "uniform":
            return f"uniform-{self.n_frames}"
        if self.policy == "published":
            return f"published-{self.n_frames}-{self.fps:g}fps"
        return f"fps-{self.fps:g}" + (f"-max-{self.n_frames}" if self.n_frames else "")


@dataclass(frozen=True)
class Frames:
    """RGB pictures of one clip or span, in order; timestamps_s and duration_s count from the span's start.

    Timestamps are the instants asked for: the picture is the one on show then. Neighbours may hold the same picture.
    """

    images: UInt8[np.ndarray, "n_frames height width 3"]
    timestamps_s: Float64[np.ndarray, " n_frames"]
    duration_s: float


@dataclass(frozen=True)
class ClipRequest:
    """One span of one file, and what is wanted of it: the arguments of `video.decode`."""

    path: str | os.PathLike[str]
    sampling: Sampling
    longest_edge_px: int
    start_s: float
    end_s: float | None


@dataclass(frozen=True)
class Plan:
    """What to decode: for each timestamp (from the span's start) the number of its frame in the list of times."""

    frame_numbers: Int64[np.ndarray, " n_frames"]
    timestamps_s: Float64[np.ndarray, " n_frames"]
    duration_s: float


def choose_timestamps(
    times_s: Float64[np.ndarray, " n_shown"], sampling: Sampling, *, duration_s: float
) -> Float64[np.ndarray, " n_frames"]:
    """Ascending timestamps for a span whose frames are shown from `times_s` (ascending, at least one) on.

    `duration_s` reaches to the end of the last frame. Timestamps of `published` are times of frames; those of the
    others lie between the first frame's time and the last one's.
    """
    first, last = float(times_s[0]), float(times_s[-1])
    if sampling.policy == "uniform":
        return np.linspace(first, last, sampling.n_frames)
    if sampling.policy == "fps":
        n_wanted = math.floor((last - first + SAME_INSTANT_S) * sampling.fps) + 1
        if 0 < sampling.n_frames < n_wanted:  # a cap thins out the whole span: the end of a long video counts too
            return np.linspace(first, last, sampling.n_frames)
        return np.minimum(first + np.arange(n_wanted) / sampling.fps, last)
    return times_s[_published_numbers(len(times_s), sampling, duration_s=round(duration_s, 6))]


def _published_numbers(n_shown: int, sampling: Sampling, *, duration_s: float) -> Int64[np.ndarray, " n_frames"]:
    """Numbers of the frames that SmolVLM's processor takes; `duration_s` free of rounding errors, for it is compared and rounded."""
    n_wanted = max(1, min(round(sampling.fps * duration_s), sampling.n_frames))
    start, stop = 0, n_shown - 1
    if duration_s - 2 * PUBLISHED_SKIP_S > sampling.n_frames * sampling.fps:  # seconds > frames / s: as published
        rate_per_s = n_shown / duration_s
        if abs(rate_per_s - round(rate_per_s)) < SAME_RATE_PER_S:
            rate_per_s = round(rate_per_s)
        start, stop = int(PUBLISHED_SKIP_S * rate_per_s), min(int(n_shown - PUBLISHED_SKIP_S * rate_per_s), n_shown - 1)
    if start >= stop:
        start, stop = 0, n_shown - 1
    return np.unique(np.linspace(start, stop, n_wanted, dtype=np.int64))


def shown_at(times_s: Float64[np.ndarray, " n_shown"], timestamps_s: Float64[np.ndarray, " n_frames"]) -> Int64[np.ndarray, " n_frames"]:
    """Number of the last frame whose time is <= the timestamp; the first frame for a timestamp before it."""
    return np.maximum(np.searchsorted(times_s, timestamps_s + SAME_INSTANT_S, side="right") - 1, 0)


def plan_frames(times_s: Float64[np.ndarray, " n_shown"], clip: ClipRequest, *, last_frame_s: float) -> Plan:
    """Chooses the frames of the span [start_s, end_s), which counts from the clip's first frame.

    `times_s` ascend from any origin; `last_frame_s` is how long the last frame is on show. The frame on show at start_s
    belongs to the span. Raises VideoDecodeError (no_frames) for no times, or a span after the clip's end.
    """
    start_s = clip.start_s
    if len(times_s) == 0:
        raise VideoDecodeError(RejectReason.NO_FRAMES, "the video stream has no frame")
    times_s = times_s - times_s[0]
    clip_end_s = float(times_s[-1]) + last_frame_s
    if start_s > 0 and start_s >= clip_end_s - SAME_INSTANT_S:
        raise VideoDecodeError(RejectReason.NO_FRAMES, f"the span begins at {start_s} s, the clip ends at {clip_end_s:.3f} s")
    span_end_s = clip_end_s if clip.end_s is None else min(clip.end_s, clip_end_s)
    first = int(shown_at(times_s, np.array([start_s]))[0])
    stop = len(times_s) if span_end_s == clip_end_s else int(np.searchsorted(times_s, span_end_s - SAME_INSTANT_S))
    span_s = np.maximum(times_s[first : max(stop, first + 1)], start_s) - start_s
    duration_s = span_end_s - start_s
    timestamps_s = choose_timestamps(span_s, clip.sampling, duration_s=duration_s)
    return Plan(frame_numbers=first + shown_at(span_s, timestamps_s), timestamps_s=timestamps_s, duration_s=duration_s)
