"""Numbers -> what the page's drawings need: places on an axis, paths of curves, shades of a heatmap. The templates draw.

Everything is in units of the drawing's own viewBox; a text alternative stands beside each drawing as a table.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH = 300.0  # of a drawing with one axis
NARROWEST = 0.01  # of half an axis of differences
N_SHADES = 4  # of a heatmap, on each side of zero

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """A horizontal axis from `low` to `high` with round ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def x(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return round(WIDTH * (inside - self.low) / (self.high - self.low), 2)


def difference_axis(claims: Sequence[Facts]) -> Axis:
    """Symmetric about zero, wide enough for every interval and margin; never so narrow that rounding is drawn as a difference."""
    edges = [one[name] for one in claims for name in ("low", "high", "value", "margin") if one.get(name) is not None]
    reach = max(NARROWEST, 1.12 * max([abs(edge) for edge in edges], default=0.1))
    step = round_step(reach / 2)
    n = math.floor(reach / step)
    return Axis(-reach, reach, tuple(i * step for i in range(-n, n + 1)))


def round_step(about: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is at most `about`."""
    power = 10.0 ** math.floor(math.log10(about))
    return next(factor * power for factor in (5, 2, 1) if factor * power <= about * (1 + 1e-9))


def shade(value: float | None, reach: float) -> str:
    """A class of the style sheet: n4 to n1 below zero, p1 to p4 above, z at zero, nothing where there is no value."""
    if value is None:
        return ""
    level = 0 if reach <= 0 else min(N_SHADES, math.ceil(N_SHADES * abs(value) / reach - 1e-9))
    return "z" if level == 0 else f"{'n' if value < 0 else 'p'}{level}"


@dataclass(frozen=True)
class Curves:
    """Several lines over the same numbers: paths in a drawing of `width` by `height`, and ticks of its axes as (place, label)."""

    width: float
    height: float
    paths: tuple[tuple[str, str], ...]  # name, SVG path
    marks: tuple[tuple[int, float, float], ...]  # which line, x, y
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def curves(x: Sequence[float], lines: Mapping[str, Sequence[float | None]], *, width: float = 560.0, height: float = 220.0) -> Curves:
    """Lines from zero up; x is placed by its rank, since it grows by factors. Where a line has no value it has a gap."""
    values = [value for line in lines.values() for value in line if value is not None]
    top = 1.08 * max(values, default=1.0) or 1.0
    left, bottom = 52.0, height - 26.0
    places = [round(left + 14 + i * (width - left - 28) / max(1, len(x) - 1), 2) for i in range(len(x))]

    def y(value: float) -> float:
        return round(bottom - value / top * (bottom - 8), 2)

    paths, marks = [], []
    for number, (name, line) in enumerate(lines.items()):
        steps, drawing = [], False
        for place, value in zip(places, line, strict=True):
            if value is not None:
                steps.append(f"{'L' if drawing else 'M'}{place} {y(value)}")
                marks.append((number, place, y(value)))
            drawing = value is not None
        paths.append((name, " ".join(steps)))
    step = round_step(top / 3)
    y_ticks = tuple((y(i * step), f"{i * step:g}") for i in range(math.floor(top / step) + 1))
    return Curves(width, height, tuple(paths), tuple(marks), tuple(zip(places, [f"{one:g}" for one in x], strict=True)), y_ticks)
