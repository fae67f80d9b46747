"""Places on axes and shades, by hand."""

import pytest

from training.plots import WIDTH, curves, difference_axis, round_step, shade


def test_an_axis_is_symmetric_and_holds_every_interval_and_margin() -> None:
    axis = difference_axis([{"value": -0.1, "low": -0.25, "high": 0.03, "margin": 0.05}, {"value": None, "low": None, "high": None}])
    assert axis.low == -axis.high == pytest.approx(-0.28)
    assert axis.ticks == pytest.approx((-0.2, -0.1, 0, 0.1, 0.2))
    assert (axis.x(axis.low), axis.x(0.0), axis.x(0.14), axis.x(9.0)) == (0, WIDTH / 2, 0.75 * WIDTH, WIDTH)


@pytest.mark.parametrize("claims", [[], [{"value": 0.0, "low": 0.0, "high": 0.0}], [{"value": 0.0, "low": -1e-16, "high": 1e-16}]])
def test_an_axis_of_nothing_is_still_one(claims: list[dict[str, float]]) -> None:
    axis = difference_axis(claims)
    assert axis.high >= 0.01 and 0.0 in axis.ticks


@pytest.mark.parametrize(("about", "step"), [(0.14, 0.1), (0.6, 0.5), (2.0, 2.0), (1.99, 1.0), (0.049, 0.02), (37.0, 20.0)])
def test_steps_are_round(about: float, step: float) -> None:
    assert round_step(about) == pytest.approx(step)


def test_shades_grow_with_the_value() -> None:
    assert [shade(value, 0.4) for value in (None, 0.0, 0.05, 0.1, 0.11, 0.4, -0.4, -0.2)] == ["", "z", "p1", "p1", "p2", "p4", "n4", "n2"]
    assert shade(0.0, 0.0) == "z"


def test_curves_have_a_gap_where_there_is_no_value() -> None:
    drawn = curves([1.0, 2.0, 4.0], {"whole": [3.0, 2.0, 1.0], "part": [None, 2.0, None]}, width=560.0, height=220.0)
    (_, whole), (_, part) = drawn.paths
    assert whole.count("L") == 2 and part.count("M") == 1 and "L" not in part
    assert len(drawn.marks) == 4 and [label for _, label in drawn.x_ticks] == ["1", "2", "4"]
    heights = [y for line, _, y in drawn.marks if line == 0]
    assert heights == sorted(heights) and drawn.y_ticks[0] == (220 - 26, "0"), "down is more"
