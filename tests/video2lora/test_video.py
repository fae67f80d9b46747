"""Decoding, against clips whose grey level is the number of the frame, and against a plain decode of everything."""

import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from clips import frame_numbers, regular, turn, write_audio, write_clip

from video2lora import pyav_decoder
from video2lora.ffmpeg_program import ffmpeg_program
from video2lora.pixels import fit
from video2lora.sampling import ClipRequest
from video2lora.video import (
    Frames,
    RejectReason,
    Sampling,
    VideoDecodeError,
    content_id,
    decode,
    decode_with_ffmpeg,
    probe,
)

B_FRAMES = {"g": "12", "bf": "3", "x264-params": "b-adapt=0:scenecut=0"}
OPEN_GOP = {"g": "12", "bf": "3", "x264-params": "b-adapt=0:scenecut=0:open-gop=1"}
ONE_GOP = {"g": "250", "bf": "2"}
IRREGULAR = [0, 40, 80, 85, 90, 400, 410, 1000, 1010, 1500, 1540, 1541, 1600, 3000]


def shown(times_ms: list[int], timestamps_s: np.ndarray, *, start_s: float = 0.0) -> list[int]:
    """The oracle: the last frame whose time is not after the timestamp."""
    elapsed_ms = [t - times_ms[0] for t in times_ms]
    return [max(i for i, t in enumerate(elapsed_ms) if t <= (s + start_s) * 1000 + 1e-3) for s in timestamps_s]


def request(path: Path, sampling: Sampling, *, start_s: float = 0.0, end_s: float | None = None) -> ClipRequest:
    return ClipRequest(path=path, sampling=sampling, longest_edge_px=384, start_s=start_s, end_s=end_s)


def same(one: Frames, other: Frames) -> bool:
    return (
        np.array_equal(one.images, other.images)
        and np.allclose(one.timestamps_s, other.timestamps_s)
        and abs(one.duration_s - other.duration_s) < 1e-6
    )


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts"])
@pytest.mark.parametrize("options", [B_FRAMES, OPEN_GOP, ONE_GOP], ids=["gops", "open-gop", "one-gop"])
def test_takes_the_frames_on_show_at_a_constant_rate(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    times_ms = regular(59)
    path = write_clip(tmp_path / name, times_ms, options=options)
    for sampling in [Sampling(n_frames=5), Sampling(n_frames=12), Sampling(policy="fps", fps=11, n_frames=0)]:
        frames = decode(path, sampling, longest_edge_px=384)
        assert frame_numbers(frames.images) == shown(times_ms, frames.timestamps_s)
        assert frames.duration_s == pytest.approx(59 * 0.04, abs=0.002)
    all_frames = decode(path, Sampling(n_frames=59), longest_edge_px=384)
    assert frame_numbers(all_frames.images) == list(range(59))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
@pytest.mark.parametrize("origin_ms", [0, 2345])
def test_takes_the_frames_on_show_at_a_variable_rate(tmp_path: Path, name: str, origin_ms: int) -> None:
    times_ms = [t + origin_ms for t in IRREGULAR]
    path = write_clip(tmp_path / name, times_ms, options={"g": "5", "bf": "2"})
    frames = decode(path, Sampling(n_frames=31), longest_edge_px=384)
    assert frame_numbers(frames.images) == shown(times_ms, frames.timestamps_s)
    assert frames.timestamps_s[-1] == pytest.approx(3.0)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts"])
@pytest.mark.parametrize("options", [B_FRAMES, OPEN_GOP], ids=["gops", "open-gop"])
def test_seeking_and_decoding_everything_agree_bit_for_bit(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    path = write_clip(tmp_path / name, regular(59), options=options)
    for clip in [
        request(path, Sampling(n_frames=59)),
        request(path, Sampling(n_frames=4)),
        request(path, Sampling(policy="published", fps=3)),
        request(path, Sampling(n_frames=7), start_s=0.5, end_s=1.7),
    ]:
        seeking = pyav_decoder._decode_by_seeking(clip)
        assert seeking is not None, "gave up seeking in a healthy clip"
        assert same(seeking, pyav_decoder._decode_everything(clip))


def test_decodes_no_more_than_the_gops_that_hold_chosen_frames(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", regular(59), options=B_FRAMES)
    with pyav_decoder._opened(path) as (container, stream):
        scan = pyav_decoder._scan(container, stream, end_s=None)
        assert scan is not None and len(scan.key_pts) == 5
        chosen = {int(scan.pts[50])}
        decoded = [frame.pts for frame in pyav_decoder._frames_from_keyframe(container, stream, scan, 4, chosen)]
    assert chosen <= set(decoded)
    assert min(decoded) == scan.pts[48] and len(decoded) < 59 - 48  # some B-frames are passed over


def test_a_span_counts_from_the_first_frame_and_excludes_its_end(tmp_path: Path) -> None:
    times_ms = [t + 700 for t in regular(50)]
    path = write_clip(tmp_path / "clip.mkv", times_ms, options=B_FRAMES)
    frames = decode(path, Sampling(n_frames=6), longest_edge_px=384, start_s=0.5, end_s=1.0)
    assert frame_numbers(frames.images) == shown(times_ms, frames.timestamps_s, start_s=0.5)
    assert frame_numbers(frames.images)[0] == 12 and frame_numbers(frames.images)[-1] == 24  # 0.48 s and 0.96 s
    assert frames.timestamps_s[0] == 0 and frames.duration_s == pytest.approx(0.5)
    with pytest.raises(VideoDecodeError, match="no_frames"):
        decode(path, Sampling(), longest_edge_px=384, start_s=2.1)


@pytest.mark.parametrize("n_frames", [1, 2, 5])
def test_a_clip_shorter_than_asked_repeats_its_frames(tmp_path: Path, n_frames: int) -> None:
    path = write_clip(tmp_path / "clip.mp4", regular(n_frames))
    numbers = frame_numbers(decode(path, Sampling(n_frames=12), longest_edge_px=384).images)
    assert len(numbers) == 12 and sorted(set(numbers)) == list(range(n_frames))
    assert len(decode(path, Sampling(policy="published"), longest_edge_px=384).images) == 1


@pytest.mark.parametrize("rotation_deg", [0, 90, 180, 270])
def test_phone_videos_are_turned_upright(tmp_path: Path, rotation_deg: int) -> None:
    path = turn(write_clip(tmp_path / "clip.mp4", regular(3), width_px=40, height_px=24), rotation_deg)
    images = decode(path, Sampling(n_frames=3), longest_edge_px=40).images
    assert images.shape[1:3] == ((24, 40) if rotation_deg % 180 == 0 else (40, 24))
    corners = [images[0, y, x].mean() > 200 for y, x in [(1, 1), (-2, 1), (-2, -2), (1, -2)]]  # counterclockwise
    assert corners.index(True) == rotation_deg // 90 and sum(corners) == 1
    info = probe(path)
    assert (info.rotation_deg, info.width_px, info.height_px) == (rotation_deg, 40, 24)


@pytest.mark.parametrize(("width_px", "height_px", "edge_px"), [(101, 57, 50), (57, 101, 50), (33, 1, 16), (31, 17, 384), (40, 24, 40)])
def test_frames_are_fitted_to_the_longest_edge(tmp_path: Path, width_px: int, height_px: int, edge_px: int) -> None:
    path = write_clip(tmp_path / "c.mkv", [0], width_px=width_px, height_px=height_px, codec="ffv1", pixels="bgr0")
    images = decode(path, Sampling(n_frames=1), longest_edge_px=edge_px).images
    with av.open(path) as container:
        full = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert max(images.shape[1:3]) == edge_px and np.array_equal(images[0], fit(full, edge_px))
    by_the_program = decode_with_ffmpeg(replace(request(path, Sampling(n_frames=1)), longest_edge_px=edge_px))
    assert by_the_program is not None and by_the_program.images.shape == images.shape


def test_avi_with_b_frames_stores_no_times_and_keeps_its_order(tmp_path: Path) -> None:
    options = {"bf": "2", "qmin": "1", "qmax": "1"}
    path = write_clip(tmp_path / "clip.avi", regular(30), codec="mpeg4", pixels="yuv420p", options=options)
    frames = decode(path, Sampling(n_frames=30), longest_edge_px=384)
    assert frame_numbers(frames.images) == list(range(30))


def test_a_clip_cut_off_midway_gives_the_frames_it_has(tmp_path: Path) -> None:
    for name in ["clip.mkv", "clip.mp4", "clip.ts"]:
        path = write_clip(tmp_path / name, regular(40), width_px=66, height_px=50, options={"g": "4"}, index_first=True)
        data = path.read_bytes()
        media = data.index(b"mdat") if path.suffix == ".mp4" else 0
        path.write_bytes(data[: (media + len(data)) // 2])
        numbers = frame_numbers(decode(path, Sampling(n_frames=12), longest_edge_px=384).images)
        assert len(numbers) == 12 and numbers[0] == 0 and 5 < numbers[-1] < 35 and numbers == sorted(numbers), name


def test_damage_midway_costs_frames_and_not_the_clip(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", regular(40), codec="mjpeg", pixels="yuvj444p")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = bytes(300)
    path.write_bytes(data)
    images = decode(path, Sampling(n_frames=12), longest_edge_px=384).images
    assert len(images) == 12


def test_the_ffmpeg_program_takes_the_same_frames(tmp_path: Path) -> None:
    regular_path = write_clip(tmp_path / "clip.mp4", regular(40), options=B_FRAMES)
    turned_path = turn(write_clip(tmp_path / "turned.mp4", IRREGULAR, width_px=40, height_px=24), 90)
    for path, times_ms in [(regular_path, regular(40)), (turned_path, IRREGULAR)]:
        ours = decode(path, Sampling(n_frames=9), longest_edge_px=384)
        theirs = decode_with_ffmpeg(request(path, Sampling(n_frames=9)))
        assert theirs is not None
        assert frame_numbers(theirs.images) == frame_numbers(ours.images) == shown(times_ms, ours.timestamps_s)
        assert np.abs(theirs.images.astype(int) - ours.images).mean() < 2
        np.testing.assert_allclose(theirs.timestamps_s, ours.timestamps_s, atol=1e-5)


def test_probe_reads_times_from_the_packets(tmp_path: Path) -> None:
    info = probe(write_clip(tmp_path / "clip.mp4", regular(50), options=B_FRAMES))
    assert (info.n_frames, info.codec, info.width_px, info.height_px, info.rotation_deg) == (50, "h264", 34, 26, 0)
    assert info.duration_s == pytest.approx(2.0, abs=0.002) and info.fps == pytest.approx(25, abs=0.1)
    variable = probe(write_clip(tmp_path / "variable.mkv", IRREGULAR))
    assert variable.n_frames == len(IRREGULAR) and 3.0 <= variable.duration_s < 4.5


def test_paths_are_paths_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_clip(tmp_path / "plain.mp4", regular(3))
    monkeypatch.chdir(tmp_path)
    for name in ["a:b.mp4", "-i.mp4", "per%cent %03d.mp4", "ümläut'.mp4", os.fsdecode(b"not-utf8-\xff.mp4")]:
        os.link(source, name)
        assert frame_numbers(decode(name, Sampling(n_frames=3), longest_edge_px=384).images) == [0, 1, 2]
        assert probe(name).n_frames == 3
    assert content_id("a:b.mp4") == content_id(source) and len(content_id(source)) == 64


HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
DASH = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S"><Period><AdaptationSet '
    'mimeType="video/mp2t"><Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>'
)


@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8"])
@pytest.mark.parametrize("text", [HLS, DASH, "ffconcat version 1.0\nfile '{}'\n"], ids=["hls", "dash", "concat"])
def test_a_playlist_opens_nothing_but_itself(text: str, name: str, tmp_path: Path) -> None:
    private = write_clip(tmp_path / "private.ts", regular(12))
    playlist = tmp_path / name
    for address in ("http://127.0.0.1:1/a.ts", str(private), private.as_uri(), private.name):
        playlist.write_text(text.format(address))
        for read in (lambda: decode(playlist, Sampling(), longest_edge_px=384), lambda: probe(playlist)):
            with pytest.raises(VideoDecodeError) as error:
                read()
            assert error.value.reason == RejectReason.NOT_A_VIDEO


def bad_file(folder: Path, kind: RejectReason) -> Path:
    """A file that decoding must refuse for this reason."""
    path = folder / "bad.mp4"
    if kind == RejectReason.UNREADABLE:
        path.mkdir()
    elif kind == RejectReason.EMPTY_FILE:
        path.touch()
    elif kind == RejectReason.NOT_A_VIDEO:
        path.write_text("This is not a video but a text.\n" * 50)
    elif kind == RejectReason.NO_VIDEO_STREAM:
        path = write_audio(folder / "bad.wav")
    elif kind == RejectReason.TRUNCATED:
        data = write_clip(path, regular(20)).read_bytes()
        path.write_bytes(data[: data.index(b"moov") - 4])  # the index comes last
    elif kind == RejectReason.TOO_LARGE:
        path = write_clip(folder / "bad.avi", regular(2), codec="rawvideo", pixels="bgr24")
        data = bytearray(path.read_bytes())
        struct.pack_into("<2i", data, data.index(b"strf") + 12, 12000, 12000)  # BITMAPINFOHEADER
        path.write_bytes(data)
    elif kind == RejectReason.DECODE_ERROR:
        data = bytearray(write_clip(path, regular(20)).read_bytes())
        data[data.index(b"mdat") + 4 : data.index(b"moov") - 4] = bytes(data.index(b"moov") - data.index(b"mdat") - 8)
        path.write_bytes(data)
    return path


@pytest.mark.parametrize("reason", [r for r in RejectReason if r not in (RejectReason.NO_FRAMES, RejectReason.DEADLINE)])
def test_bad_files_are_refused_for_their_reason(tmp_path: Path, reason: RejectReason) -> None:
    path = bad_file(tmp_path, reason)
    with pytest.raises(VideoDecodeError) as error:
        decode(path, Sampling(), longest_edge_px=384)
    assert error.value.reason is reason, error.value
    assert error.value.detail
    if reason is not RejectReason.DECODE_ERROR:  # probe decodes nothing
        with pytest.raises(VideoDecodeError) as error:
            probe(path)
        assert error.value.reason is reason, error.value


def test_a_stream_without_a_frame_and_an_index_without_its_media(tmp_path: Path) -> None:
    none = tmp_path / "none.y4m"
    none.write_bytes(b"YUV4MPEG2 W16 H16 F25:1 Ip C420jpeg\n")
    index_only = write_clip(tmp_path / "index.mp4", regular(20))
    data = index_only.read_bytes()
    index_only.write_bytes(data[: data.index(b"ftyp") + 24] + data[data.index(b"moov") - 4 :])
    for path, reason in [(none, RejectReason.NO_FRAMES), (index_only, RejectReason.TRUNCATED)]:
        with pytest.raises(VideoDecodeError) as error:
            decode(path, Sampling(), longest_edge_px=384)
        assert error.value.reason is reason, error.value


@contextmanager
def without_rights_of_root() -> Iterator[None]:
    """Root may read everything, so become nobody for a while; others are nobody enough."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_we_may_not_read(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", regular(2))
    path.chmod(0)
    with without_rights_of_root(), pytest.raises(VideoDecodeError) as error:
        decode(path, Sampling(), longest_edge_px=384)
    assert error.value.reason is RejectReason.UNREADABLE


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    with av.open(tmp_path / "cover.png", "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width = stream.height = 16
        stream.pix_fmt = "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))))
        container.mux(stream.encode(None))
    song = tmp_path / "song.mka"
    inputs = ["-i", write_audio(tmp_path / "s.wav"), "-i", tmp_path / "cover.png"]
    outputs = [
        "-map",
        "0",
        "-map",
        "1",
        "-c:a",
        "flac",
        "-c:v",
        "copy",
        "-disposition:v",
        "attached_pic",
        song.with_suffix(".flac"),
    ]
    subprocess.run([ffmpeg_program(), "-v", "error", "-y", *inputs, *outputs], check=True, stdin=subprocess.DEVNULL)
    for read in [lambda p: decode(p, Sampling(), longest_edge_px=384), probe]:
        with pytest.raises(VideoDecodeError) as error:
            read(song.with_suffix(".flac"))
        assert error.value.reason is RejectReason.NO_VIDEO_STREAM


@pytest.mark.parametrize(
    "arguments", [{"longest_edge_px": 0}, {"start_s": -1.0}, {"start_s": float("nan")}, {"start_s": 2.0, "end_s": 2.0}]
)
def test_arguments_that_make_no_sense_are_no_fault_of_the_video(tmp_path: Path, arguments: dict[str, float]) -> None:
    path = write_clip(tmp_path / "clip.mp4", regular(2))
    with pytest.raises(ValueError, match="got") as error:
        decode(path, Sampling(), **({"longest_edge_px": 384} | arguments))
    assert not isinstance(error.value, VideoDecodeError)
