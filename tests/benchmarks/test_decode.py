"""The benchmark's readers give the frames they are asked for: a reader that is fast because it takes another frame is no rival."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import decoders
from benchmarks.decode import Row, check_folder, frames_off, measure, neighbours, ratio, table, verdicts
from benchmarks.decoders import N_FRAMES, SELECT, Clip, ffmpeg_seeks, ffmpeg_selects, make_clip, ours, tools
from video2lora.video import probe

SMALL = "three repeats, GOP 10"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(decoders.GOPS, SMALL, (6, 10))
        patch.setattr(decoders, "PART_S", 2)
        return make_clip(SMALL, tmp_path_factory.mktemp("clips"), None, width_px=128, height_px=72)


def test_a_clip_is_what_it_says(clip: Clip) -> None:
    info = probe(clip.path)
    assert (info.n_frames, info.width_px, info.height_px, info.codec) == (clip.n_shown, 128, 72, "h264") == (150, 128, 72, "h264")
    assert info.duration_s == pytest.approx(6) and info.fps == pytest.approx(25)
    assert clip.size(None) == (72, 128) and clip.size(64) == (36, 64)


@pytest.mark.parametrize("read", [ours, ffmpeg_seeks, ffmpeg_selects])
def test_readers_take_the_frames_asked_for_at_both_sizes(clip: Clip, read: decoders.Read) -> None:
    plain = neighbours(clip)
    full, small = read(clip, None), read(clip, 64)
    assert full.shape == (N_FRAMES, 72, 128, 3) and small.shape == (N_FRAMES, 36, 64, 3)
    assert frames_off(clip, full, plain) == [0] * N_FRAMES
    away = np.abs(small[:, None].astype(int) - ours(clip, 64)[None]).mean(axis=(2, 3, 4))
    assert away.argmin(axis=1).tolist() == list(range(N_FRAMES))  # resizers differ by less than two frames do


def test_a_neighbouring_frame_is_noticed(clip: Clip) -> None:
    plain = neighbours(clip)
    images = np.stack([plain[int(number) + (1 if i == 3 else -1 if i == 5 else 0)] for i, number in enumerate(clip.numbers)])
    assert frames_off(clip, images, plain) == [0, 0, 0, 1, 0, -1, 0, 0, 0, 0, 0, 0]


def test_a_tiny_run_measures_every_tool_that_is_there(clip: Clip) -> None:
    readers, missing = tools()
    assert set(readers) | set(missing) >= {"ours", "torchcodec, approximate", "decord", "OpenCV, seek", SELECT}
    said: list[str] = []
    rows = measure(clip, readers, n_rounds=2, say=said.append)
    assert [row.tool for row in rows] == list(readers) and len(said) == 2
    assert all(row.n_off == 0 and min(row.resized_s + row.decode_s) > 0 for row in rows)
    assert {len(row.decode_s) for row in rows if row.tool != SELECT} == {2} and len(rows[-1].resized_s) == 1
    assert table(rows).count("\n") == 1 + len(rows)


def test_a_verdict_is_the_median_of_ratios_taken_round_by_round() -> None:
    assert ratio([1.0, 4.0, 3.0], [2.0, 4.0, 1.0]) == (1.0, 0.5, 3.0)
    rows = [
        Row("3 min, GOP 50", "ours", resized_s=[0.8, 1.6]),
        Row("3 min, GOP 50", "decord", resized_s=[1.0, 2.0]),
        Row("one GOP, 5 s", "ours", resized_s=[1.0]),
        Row("one GOP, 5 s", "decord", resized_s=[1.0]),
        Row("one GOP, 5 s", "OpenCV, seek", resized_s=[2.0]),
    ]
    assert verdicts(rows) == [
        "one GOP, 5 s: 1.00 of decord, target 1.10: reached",
        "3 min, GOP 50: 0.80 of decord, target 0.70: NOT reached",
    ]


def test_a_folder_is_checked_against_a_plain_decode(clip: Clip, capsys: pytest.CaptureFixture[str]) -> None:
    (Path(clip.path).parent / "notes.txt").write_text("no video")
    assert check_folder(Path(clip.path).parent) == 0
    assert capsys.readouterr().out == "clip-6-10.mp4: h264, 150 frames: same\n"
