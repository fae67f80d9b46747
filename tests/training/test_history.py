"""What is decided from a training's past: which loss is refused, which validation is the best, when waiting ends."""

import json
import math
from typing import Any

import pytest
from made_examples import an_example

from infra.config import TrainingSettings
from infra.errors import StageFailedError
from training.batches import Batch
from training.history import History
from training.incidents import keep, losses_of


def a_history(losses: list[float]) -> History:
    history = History()
    for loss in losses:
        history.enter(loss)
    return history


def test_it_survives_json_to_the_bit() -> None:
    history = a_history([0.1 + 0.2, 1 / 3, math.pi])
    history.take({"step": 3.0, "loss": 0.7, "exact_match": 0.25}, TrainingSettings(select="loss"))
    again = History.of(json.loads(json.dumps(history.state() | {"sha256": {}})))
    assert again == history and again.step == 3 and again.best_step == 3


@pytest.mark.parametrize(
    ("losses", "loss", "refused"),
    [
        ([], math.nan, True),
        ([2.0] * 3, math.inf, True),
        ([2.0] * 3, 900.0, False),  # too early to tell
        ([2.0] * 10, 20.1, True),
        ([2.0] * 10, 19.9, False),
        ([2.0] * 10 + [0.01] * 100, 0.5, False),  # 50 times the last ones, and less than where it began
        ([2.0] * 10 + [0.01] * 100, 2.1, True),
    ],
)
def test_which_losses_are_refused(losses: list[float], loss: float, refused: bool) -> None:
    assert (a_history(losses).refused(loss, max_ratio=10.0) is not None) == refused
    if math.isfinite(loss):
        assert a_history(losses).refused(loss, max_ratio=None) is None


def scored(settings: TrainingSettings, values: list[tuple[float, float]]) -> tuple[History, list[bool]]:
    history = History()
    best = [history.take({"step": 10.0 * (i + 1), "loss": loss, "exact_match": match}, settings) for i, (loss, match) in enumerate(values)]
    return history, best


def test_the_best_is_chosen_and_waited_for() -> None:
    values = [(0.9, 0.1), (0.7, 0.3), (0.8, 0.4), (0.75, 0.2)]
    history, best = scored(TrainingSettings(select="loss", patience=2), values)
    assert best == [True, True, False, False] and history.best_step == 20 and history.ended
    history, best = scored(TrainingSettings(select="exact_match", patience=2), values)
    assert best == [True, True, True, False] and history.best_step == 30 and not history.ended
    history, best = scored(TrainingSettings(), values)
    assert best == [False] * 4 and history.best_step is None and not history.ended


def test_the_curve_has_at_most_100_points_and_loses_no_step() -> None:
    history = a_history([float(i) for i in range(250)])
    curve = history.curve()
    assert len(curve) == 84 and curve[0] == (3, 1.0) and curve[-1] == (250, 249.0)
    assert a_history([1.0, 2.0]).curve() == [(1, 1.0), (2, 2.0)] and History().curve() == []


def test_what_led_to_an_end_is_kept_and_named(tmp_path: Any) -> None:
    examples = tuple(an_example(i) for i in range(3))
    batch = Batch(examples, tuple(one.targets[:2] for one in examples))
    videos = losses_of(batch, [5.0, 1.0, 7.0, 3.0, math.nan, 2.0], [2, 0, 2, 0, 1, 1])
    assert [(one.video_id, one.loss) for one in videos if one.video_id != "video-001"] == [("video-000", 2.0), ("video-002", 6.0)]
    error = keep(str(tmp_path), "loss nan", a_history([1.0] * 120), videos)
    assert isinstance(error, StageFailedError)
    assert "stopped at step 121: loss nan" in str(error) and "video-001 (nan), video-002 (6), video-000 (2)" in str(error)
    (file,) = (tmp_path / "stopped").iterdir()
    kept = json.loads(file.read_text())
    assert kept["step"] == 120 and len(kept["losses_before"]) == 100
    assert [one["video_id"] for one in kept["videos"]] == ["video-001", "video-002", "video-000"]
    assert kept["videos"][1]["targets"][0] == [examples[2].targets[0].prompt, examples[2].targets[0].text]
    assert losses_of(Batch(examples[:1], (examples[0].targets[:1],), counts=False), [0.0], [0]) == []
