"""The choice of timestamps, against transformers' formula for `published` and by hand for the others."""

import math

import numpy as np
import pydantic
import pytest

from video2lora.sampling import ClipRequest, Sampling, choose_timestamps, plan_frames, shown_at
from video2lora.video_file import RejectReason, VideoDecodeError


def request(sampling: Sampling, *, start_s: float = 0.0, end_s: float | None = None) -> ClipRequest:
    return ClipRequest(path="clip", sampling=sampling, longest_edge_px=384, start_s=start_s, end_s=end_s)


def smolvlm_frame_numbers(n_shown: int, rate: float, duration_s: float, *, n_frames: int, fps: float) -> list[int]:
    """`sample_frames` of transformers 5.19, models/smolvlm/video_processing_smolvlm.py, with skip_secs=1."""
    desired = max(1, min(round(fps * duration_s), n_frames))
    start, end = 0, n_shown - 1
    if duration_s - 2 > n_frames * fps:
        start, end = int(rate), int(n_shown - rate)
    start, end = max(0, start), min(end, n_shown - 1)
    if start >= end:
        start, end = 0, n_shown - 1
    return np.unique(np.linspace(start, end, desired, dtype=int)).tolist()


@pytest.mark.parametrize("n_shown", [1, 2, 11, 12, 13, 299, 300, 360, 3000])
@pytest.mark.parametrize("rate", [8.0, 25.0, 29.97])
def test_published_takes_the_frames_that_smolvlms_processor_takes(n_shown: int, rate: float) -> None:
    times_s = np.arange(n_shown) / rate
    sampling = Sampling(policy="published", n_frames=12, fps=1.0)
    timestamps_s = choose_timestamps(times_s, sampling, duration_s=n_shown / rate)
    expected = smolvlm_frame_numbers(n_shown, rate, n_shown / rate, n_frames=12, fps=1.0)
    assert shown_at(times_s, timestamps_s).tolist() == expected


@pytest.mark.parametrize("n_shown", [1, 5, 12, 23, 1000])
def test_uniform_always_gives_its_number_of_frames_from_first_to_last(n_shown: int) -> None:
    times_s = np.arange(n_shown) / 30
    plan = plan_frames(times_s, request(Sampling(n_frames=12)), last_frame_s=1 / 30)
    assert len(plan.frame_numbers) == len(plan.timestamps_s) == 12
    assert plan.frame_numbers[0] == 0 and plan.frame_numbers[-1] == n_shown - 1
    assert plan.duration_s == pytest.approx(n_shown / 30)


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
