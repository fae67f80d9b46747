"""Our frames against a full plain decode, bit for bit: every frame of a clip fetched alone, and few and many of them together.

The oracle shares no code with our way to choose and seek: it decodes from the first packet to the last and takes a frame by its time. The
clips are made here, of noise that moves, so that no frame looks like another and a lost reference shows in the pixels.
"""

import bisect
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import regular, turn

from benchmarks.decode import plain_frames, upright
from video2lora import pyav_decoder
from video2lora.pixels import fit
from video2lora.sampling import ClipRequest, Sampling
from video2lora.video import decode

MILLISECOND = Fraction(1, 1000)
N_SHOWN = 61
JITTERED = [i * 40 + (i * i * 7) % 31 for i in range(N_SHOWN - 5)] + [4000, 4001, 4030, 6000, 6500]  # and two gaps


@dataclass(frozen=True)
class Kind:
    """How a clip is encoded. `seeks`: whether the fast way is to manage, or gives up for a decode of everything."""

    codec: str
    options: dict[str, str] = field(default_factory=dict)
    name: str = "clip.mkv"
    pixels: str = "yuv420p"
    size_px: tuple[int, int] = (96, 64)
    times_ms: tuple[int, ...] = tuple(regular(N_SHOWN))
    rotation_deg: int = 0
    seeks: bool = True


def x264(parameters: str, **options: str) -> dict[str, str]:
    return {"x264-params": f"threads=1:scenecut=0:{parameters}"} | options


KINDS = {
    "constant rate, no B-frames": Kind("libx264", x264("keyint=10:bframes=0"), "clip.mp4"),
    "variable rate": Kind("libx264", x264("keyint=10:bframes=3"), "clip.mp4", times_ms=tuple(JITTERED)),
    "variable rate, from 2.3 s on": Kind("libx264", x264("keyint=9:bframes=2"), times_ms=tuple(t + 2345 for t in JITTERED)),
    "B-pyramid, weighted": Kind("libx264", x264("keyint=12:bframes=5:b-adapt=0:b-pyramid=normal:weightp=2:ref=4"), "clip.mp4"),
    "B-pyramid, strict": Kind("libx264", x264("keyint=12:bframes=5:b-adapt=0:b-pyramid=strict")),
    "adaptive B-frames": Kind("libx264", x264("keyint=25:bframes=8:b-adapt=2"), "clip.ts"),
    "open GOP": Kind("libx264", x264("keyint=12:bframes=3:b-adapt=0:open-gop=1"), "clip.mp4"),
    "open GOP, ts": Kind("libx264", x264("keyint=12:bframes=3:b-adapt=0:open-gop=1"), "clip.ts"),
    "GOP of 250": Kind("libx264", x264("keyint=250:min-keyint=250:bframes=3"), "clip.mp4", times_ms=tuple(regular(267))),
    "one GOP": Kind("libx264", x264("keyint=infinite:bframes=2")),
    "intra refresh": Kind("libx264", x264("keyint=15:intra-refresh=1:bframes=0"), "clip.mp4", seeks=False),
    "turned": Kind("libx264", x264("keyint=10:bframes=2"), "clip.mp4", rotation_deg=90),
    "10 bit": Kind("libx264", x264("keyint=12:bframes=3"), "clip.mp4", pixels="yuv420p10le"),
    "4:4:4, odd size": Kind("libx264", x264("keyint=12:bframes=3"), pixels="yuv444p", size_px=(97, 65)),
    "several slices": Kind("libx264", x264("keyint=12:bframes=3:slices=3"), "clip.mp4"),
    "interlaced": Kind("libx264", x264("keyint=12:bframes=3:tff=1"), "clip.mp4"),
    "interlaced, ts": Kind("libx264", x264("keyint=12:bframes=3:bff=1"), "clip.ts"),
    "HEVC, open GOP": Kind("libx265", {"x265-params": "keyint=12:bframes=4:open-gop=1:log-level=none:pools=1"}, "clip.mp4"),
    "HEVC, 10 bit": Kind("libx265", {"x265-params": "keyint=12:bframes=4:open-gop=0:log-level=none:pools=1"}, pixels="yuv420p10le"),
    "MPEG-2, B-frames": Kind("mpeg2video", {"g": "12", "bf": "2"}, "clip.ts"),
    "MPEG-2, program stream": Kind("mpeg2video", {"g": "12", "bf": "2"}, "clip.mpg"),
    "MPEG-2, interlaced": Kind("mpeg2video", {"g": "12", "bf": "2", "flags": "+ildct+ilme"}),
    "MPEG-4, B-frames": Kind("mpeg4", {"g": "12", "bf": "2"}, "clip.mp4"),
    "MPEG-4, B-frames in AVI": Kind("mpeg4", {"g": "12", "bf": "2"}, "clip.avi", seeks=False),
    "VP9, hidden frames, odd size": Kind("libvpx-vp9", {"g": "20", "lag-in-frames": "16", "cpu-used": "8"}, "clip.webm", size_px=(97, 65)),
    "AV1": Kind("libsvtav1", {"g": "16", "preset": "12", "svtav1-params": "lp=1"}, "clip.mp4"),
    "stills": Kind("mjpeg", {}, pixels="yuvj420p"),
}


@pytest.fixture(params=KINDS, ids=lambda name: name.replace(", ", "-").replace(" ", "_"))
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def clip(kind: Kind, tmp_path: Path) -> Path:
    """Frame i is on show from times_ms[i] on. Noise that slides, a box that jumps, and a level that drifts (for weighted prediction)."""
    width, height = kind.size_px
    noise = np.random.default_rng(7).integers(0, 200, (height, width, 3), dtype=np.uint8)
    noise = noise // 2 + np.roll(noise, 1, axis=0) // 4 + np.roll(noise, 1, axis=1) // 4
    path = tmp_path / kind.name
    with av.open(path, "w") as container:
        stream = container.add_stream(kind.codec, rate=25, options=kind.options)
        stream.width, stream.height, stream.pix_fmt = width, height, kind.pixels
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, 25) if kind.times_ms == tuple(regular(len(kind.times_ms))) else MILLISECOND
        for i, time_ms in enumerate(kind.times_ms):
            image = np.roll(noise, (i, 2 * i), axis=(0, 1)) + np.uint8(i % 50)
            image[(5 * i) % (height - 9) :, (11 * i) % (width - 9) :][:9, :9] = (i * 37) % 256
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.time_base, frame.pts = MILLISECOND, time_ms
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return turn(path, kind.rotation_deg) if kind.rotation_deg else path


def test_our_frames_are_those_of_a_full_decode(kind: Kind, clip: Path) -> None:
    plain = [(time_s, upright(frame)) for time_s, frame in plain_frames(clip)]
    times_s, n_shown, edge_px = [time_s - plain[0][0] for time_s, _ in plain], len(plain), max(plain[0][1].shape)
    assert n_shown == len(kind.times_ms)
    assert all(not np.array_equal(plain[i][1], plain[i + 1][1]) for i in range(n_shown - 1)), "two frames look the same"

    def shown(time_s: float, longest_edge_px: int) -> np.ndarray:
        return fit(plain[bisect.bisect_right(times_s, time_s + 1e-6) - 1][1], longest_edge_px)

    for n_frames in (1, 2, 3, 7, 12, n_shown, n_shown + 5):
        frames = decode(clip, Sampling(n_frames=n_frames), longest_edge_px=edge_px)
        expected = [shown(time_s, edge_px) for time_s in np.linspace(0, times_s[-1], n_frames)]
        assert np.array_equal(frames.images, np.stack(expected)), f"{n_frames} frames of the whole clip"
    for i, time_s in enumerate(times_s):
        alone = decode(clip, Sampling(n_frames=1), longest_edge_px=edge_px, start_s=time_s)
        assert np.array_equal(alone.images[0], shown(time_s, edge_px)), f"frame {i} alone"
    span = decode(clip, Sampling(n_frames=5), longest_edge_px=40, start_s=times_s[20], end_s=times_s[33])
    expected = [shown(time_s, 40) for time_s in np.linspace(times_s[20], times_s[32], 5)]
    assert np.array_equal(span.images, np.stack(expected)), "5 frames of a span"


def test_the_fast_way_is_taken_where_it_can_be(kind: Kind, clip: Path) -> None:
    for n_frames in (5, N_SHOWN):
        request = ClipRequest(path=clip, sampling=Sampling(n_frames=n_frames), longest_edge_px=96, start_s=0.0, end_s=None)
        assert (pyav_decoder._decode_by_seeking(request) is not None) == kind.seeks
