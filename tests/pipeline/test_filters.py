"""Frames and clips whose black share, frozen share and motion are known."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clips import regular, write_clip

from infra.config import FilterSettings
from pipeline.filters import Measures, luma, measure, refused
from video2lora.video import Frames, Sampling, decode

WIDTH_PX, HEIGHT_PX = 38, 26
ALL = {"min_motion": 0.5, "max_frozen_share": 0.5, "max_black_share": 0.5}


def frames_of(images: np.ndarray) -> Frames:
    return Frames(images=images, timestamps_s=np.arange(len(images)) * 0.5, duration_s=len(images) * 0.5)


def grey(levels: list[int]) -> Frames:
    """Plain pictures."""
    images = np.empty((len(levels), HEIGHT_PX, WIDTH_PX, 3), np.uint8)
    images[:] = np.array(levels, np.uint8)[:, None, None, None]
    return frames_of(images)


def write_pictures(path: Path, pictures: list[np.ndarray], *, crf: int = 12) -> Path:
    """A clip of 25 frames/s."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": str(crf), "preset": "ultrafast"})
        stream.height, stream.width, _ = pictures[0].shape
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def scene(i: int = 0) -> np.ndarray:
    """A coarse noise, moved by 3 i pixels."""
    coarse = np.random.default_rng(2).integers(40, 256, (12, 16, 3), dtype=np.uint8)
    return np.roll(coarse.repeat(8, axis=0).repeat(8, axis=1), 3 * i, axis=1)


def of_clip(path: Path, n_frames: int) -> Measures:
    return measure(decode(path, Sampling(n_frames=n_frames), longest_edge_px=128))


def test_luma_is_that_of_bt_601() -> None:
    colours = np.array([[[255, 0, 0]], [[0, 255, 0]], [[0, 0, 255]], [[90, 60, 30]]], np.uint8)
    expected = colours.astype(np.float64) @ [0.299, 0.587, 0.114]
    assert np.abs(luma(colours[None])[0] - expected).max() <= 0.5


def test_measures_plain_frames_by_hand() -> None:
    found = measure(grey([0, 25, 26, 26, 230]))
    assert found.black_share == pytest.approx(2 / 5)
    assert found.differences == pytest.approx(np.array([25, 1, 0, 204]) / 255)
    assert found.frozen_share == pytest.approx(1 / 4)
    assert found.motion == pytest.approx(230 / 255 / 4)


@pytest.mark.parametrize(("n_bright", "black_share"), [(19, 1.0), (20, 0.0)])
def test_a_picture_is_black_up_to_two_percent_of_its_pixels(n_bright: int, black_share: float) -> None:
    frames = grey([7, 7])
    assert HEIGHT_PX * WIDTH_PX == 988
    frames.images.reshape(2, -1, 3)[:, :n_bright] = 255
    assert measure(frames).black_share == black_share


@pytest.mark.parametrize(("level", "frozen_share"), [(120 + 25, 1.0), (120 + 26, 0.0)])
def test_frames_are_the_same_up_to_two_thousandths(level: int, frozen_share: float) -> None:
    """20 of 1,000 pixels differ by 25 / 255 or 26 / 255: by 0.00196 or 0.00204 on average."""
    images = np.full((2, 25, 40, 3), 120, np.uint8)
    images[1].reshape(-1, 3)[:20] = level
    assert measure(frames_of(images)).frozen_share == frozen_share


def test_a_darker_frame_is_as_far_as_a_brighter_one() -> None:
    assert measure(grey([3, 250])).motion == measure(grey([250, 3])).motion == pytest.approx(247 / 255)


def test_one_frame_says_nothing_of_motion() -> None:
    one = measure(grey([100]))
    assert (one.frozen_share, one.motion) == (0.0, None)
    assert refused(grey([100]), FilterSettings(max_frozen_share=0.0, min_motion=1.0)) is None


def test_a_clip_with_black_frames(tmp_path: Path) -> None:
    """33 frames, the first 12 black: of 11 sampled, 3.2 apart, the first 4 are."""
    black = np.zeros_like(scene())
    path = write_pictures(tmp_path / "a.mp4", [black] * 12 + [scene(i) for i in range(21)])
    assert of_clip(path, 11).black_share == pytest.approx(4 / 11)


def test_a_clip_that_stands_still_for_a_while(tmp_path: Path) -> None:
    """31 frames that move and 30 that are the last of them; each 5th is sampled."""
    moving = [scene(i) for i in range(31)]
    path = write_pictures(tmp_path / "a.mp4", moving + [moving[-1]] * 30)
    found = of_clip(path, 13)
    assert found.frozen_share == pytest.approx(6 / 12)
    assert found.differences[6:].max() < 0.002 < 0.05 < found.differences[:6].min()


def test_motion_of_a_clip_is_that_of_its_levels(tmp_path: Path) -> None:
    """Each frame is 4 levels brighter than the one before, but for a corner of 6 x 8 px; each 3rd is sampled."""
    path = write_clip(tmp_path / "a.mp4", regular(31))
    frames = decode(path, Sampling(n_frames=11), longest_edge_px=34)
    assert measure(frames).motion == pytest.approx(12 / 255 * (1 - 48 / 884), rel=0.05)


def test_a_still_that_was_encoded_moves_less_than_anything_that_moves(tmp_path: Path) -> None:
    """As clips from the web are encoded: the first frame coarser than those after it."""
    still = of_clip(write_pictures(tmp_path / "still.mp4", [scene()] * 60, crf=30), 12)
    moving = of_clip(write_pictures(tmp_path / "moving.mp4", [scene(i) for i in range(60)], crf=30), 12)
    assert still.motion is not None and moving.motion is not None
    assert still.motion < 0.003 < 0.05 < moving.motion
    assert (still.frozen_share >= 0.8, moving.frozen_share) == (True, 0.0)


def test_all_filters_are_off_by_default() -> None:
    assert refused(grey([0, 0, 0]), FilterSettings()) is None


@pytest.mark.parametrize(
    ("settings", "levels", "expected"),
    [
        ({"max_black_share": 0.5}, [0, 0, 9, 200, 99], ("black", "0.600 of 5 frames are black, expected <= 0.5")),
        ({"max_black_share": 0.6}, [0, 0, 9, 200, 99], None),
        ({"max_frozen_share": 0.4}, [50, 50, 50, 99, 99, 50], ("frozen", "0.600 of 5 frames equal the next, expected <= 0.4")),
        ({"max_frozen_share": 0.6}, [50, 50, 50, 99, 99, 50], None),
        ({"min_motion": 0.021}, [50, 55, 60], ("static", "frames differ from the next by 0.01961 on average, expected >= 0.021")),
        ({"min_motion": 0.019}, [50, 55, 60], None),
        (ALL, [0, 0, 0], ("black", "1.000 of 3 frames are black, expected <= 0.5")),
        (ALL, [90, 90, 90], ("frozen", "1.000 of 2 frames equal the next, expected <= 0.5")),
        (ALL, [90, 91, 92], ("static", "frames differ from the next by 0.00392 on average, expected >= 0.5")),
        ({"near_duplicate_bits": 6}, [0, 0, 0], None),
    ],
)
def test_refuses_with_what_was_measured_and_the_limit(
    settings: dict[str, Any], levels: list[int], expected: tuple[str, str] | None
) -> None:
    assert refused(grey(levels), FilterSettings(**settings)) == expected


@pytest.mark.parametrize(
    "wrong",
    [{"max_black_share": 1.0}, {"max_frozen_share": -0.1}, {"min_motion": 0.0}, {"near_duplicate_bits": 9}, {"max_black_share": "0.5"}],
)
def test_limits_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FilterSettings(**wrong)
