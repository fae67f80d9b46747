"""The choice of timestamps, against transformers' own for `published` (golden/make.py) and by hand for the others."""

import json
import math
from pathlib import Path

import numpy as np
import pydantic
import pytest
from clips import frame_numbers, regular, write_clip
from golden.cases import CLIPS, SAMPLINGS

from video2lora.sampling import ClipRequest, Sampling, choose_timestamps, plan_frames
from video2lora.video import decode
from video2lora.video_file import RejectReason, VideoDecodeError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "processor.json").read_text())


def request(sampling: Sampling, *, start_s: float = 0.0, end_s: float | None = None) -> ClipRequest:
    return ClipRequest(path="clip", sampling=sampling, longest_edge_px=384, start_s=start_s, end_s=end_s)


def test_published_takes_the_frames_that_smolvlms_processor_takes() -> None:
    """Golden values of `sample_frames`; clips whose times are exact, in ms (Matroska), and in 1/90000 s (MPEG)."""
    for (n_shown, rate), golden in zip(CLIPS, GOLDEN["frame_numbers"], strict=True):
        for ticks_per_s in (1e12, 1000, 90000):
            ends_s = np.round(np.arange(n_shown + 1) / rate * ticks_per_s) / ticks_per_s
            for (n_frames, fps), expected in zip(SAMPLINGS, golden, strict=True):
                sampling = request(Sampling(policy="published", n_frames=n_frames, fps=fps))
                plan = plan_frames(ends_s[:-1], sampling, last_frame_s=ends_s[-1] - ends_s[-2])
                assert plan.frame_numbers.tolist() == expected, (n_shown, rate, ticks_per_s, sampling)
                assert plan.timestamps_s.tolist() == ends_s[expected].tolist()


@pytest.mark.parametrize("n_shown", [1, 5, 12, 23, 1000])
def test_uniform_always_gives_its_number_of_frames_from_first_to_last(n_shown: int) -> None:
    times_s = np.arange(n_shown) / 30
    plan = plan_frames(times_s, request(Sampling(n_frames=12)), last_frame_s=1 / 30)
    assert len(plan.frame_numbers) == len(plan.timestamps_s) == 12
    assert plan.frame_numbers[0] == 0 and plan.frame_numbers[-1] == n_shown - 1
    assert plan.duration_s == pytest.approx(n_shown / 30)


def test_1024_uniform_frames_are_1024_of_a_short_clip_too(tmp_path: Path) -> None:
    sampling = Sampling(policy="uniform", n_frames=1024)
    assert sampling.name == "uniform-1024"
    frames = decode(write_clip(tmp_path / "clip.mp4", regular(5)), sampling, longest_edge_px=34)
    assert frames.images.shape == (1024, 26, 34, 3) and frames.timestamps_s.shape == (1024,)
    numbers = np.array(frame_numbers(frames.images))
    assert np.bincount(numbers).tolist() == [256, 256, 256, 255, 1]  # the last is on show at the very end of linspace alone
    assert (np.diff(frames.timestamps_s) > 0).all() and frames.timestamps_s[[0, -1]].tolist() == pytest.approx([0, 0.16])
    long = plan_frames(np.arange(3001) / 30, request(sampling), last_frame_s=1 / 30)
    assert len(np.unique(long.frame_numbers)) == 1024


def test_rounding_does_not_move_a_timestamp_before_its_frame() -> None:
    times_s = np.arange(2 * 11 + 1) / 30  # every second frame: linspace(...) lands a rounding error beside the times
    assert plan_frames(times_s, request(Sampling(n_frames=12)), last_frame_s=1 / 30).frame_numbers.tolist() == [*range(0, 23, 2)]


def test_uniform_follows_time_and_not_frame_numbers() -> None:
    times_s = np.array([0.0, 0.1, 0.2, 0.3, 4.0])
    assert plan_frames(times_s, request(Sampling(n_frames=5)), last_frame_s=0.1).frame_numbers.tolist() == [
        0,
        3,
        3,
        3,
        4,
    ]


def test_fps_takes_one_frame_per_interval_and_its_cap_thins_out_the_whole_clip() -> None:
    times_s = np.arange(101) / 10  # 0 to 10 s
    every_2_s = choose_timestamps(times_s, Sampling(policy="fps", fps=0.5, n_frames=0), duration_s=10.1)
    assert every_2_s.tolist() == [0, 2, 4, 6, 8, 10]
    capped = choose_timestamps(times_s, Sampling(policy="fps", fps=0.5, n_frames=3), duration_s=10.1)
    assert capped.tolist() == [0, 5, 10]
    one = choose_timestamps(times_s[:1], Sampling(policy="fps", fps=0.5), duration_s=0.1)
    assert one.tolist() == [0]


def test_a_span_is_half_open_and_begins_with_the_frame_on_show() -> None:
    times_s = 7.0 + np.arange(10) * 1.0  # any origin
    plan = plan_frames(times_s, request(Sampling(n_frames=3), start_s=2.5, end_s=5.0), last_frame_s=1.0)
    assert plan.frame_numbers.tolist() == [2, 3, 4]
    np.testing.assert_allclose(plan.timestamps_s, [0, 0.75, 1.5])
    assert plan.duration_s == 2.5
    tiny = plan_frames(times_s, request(Sampling(n_frames=3), start_s=2.5, end_s=2.6), last_frame_s=1.0)
    assert tiny.frame_numbers.tolist() == [2, 2, 2]
    beyond = plan_frames(times_s, request(Sampling(n_frames=2), start_s=8.0, end_s=99.0), last_frame_s=1.0)
    assert beyond.frame_numbers.tolist() == [8, 9] and beyond.duration_s == 2.0


def test_no_frames_is_an_error_with_its_reason() -> None:
    for times_s, start_s in [(np.zeros(0), 0.0), (np.arange(3) / 10, 0.3)]:
        with pytest.raises(VideoDecodeError) as error:
            plan_frames(times_s, request(Sampling(), start_s=start_s), last_frame_s=0.1)
        assert error.value.reason is RejectReason.NO_FRAMES


def test_names_are_keys() -> None:
    samplings = [
        Sampling(),
        Sampling(policy="published"),
        Sampling(policy="fps", fps=2, n_frames=0),
        Sampling(policy="fps", fps=0.5, n_frames=64),
    ]
    assert [s.name for s in samplings] == ["uniform-12", "published-12-1fps", "fps-2", "fps-0.5-max-64"]


@pytest.mark.parametrize("settings", [{"n_frames": 0}, {"n_frames": -1, "policy": "fps"}, {"fps": 0}, {"fps": math.inf}, {"n_frame": 3}])
def test_sampling_refuses_what_gives_no_frames(settings: dict[str, float]) -> None:
    with pytest.raises(pydantic.ValidationError):
        Sampling(**settings)
