"""(level, seed, index, split) -> Scene: what is in a clip and what happens in it.

Geometry is in units of the frame: x to the right, y downwards; time is a share of the clip. The frame has no border: what leaves
it on one side comes in on the opposite one. An object may therefore start anywhere, wherever it goes, and its place in any one
frame says nothing about its direction: questions on motion need several frames.

| level | what a scene holds |
|---|---|
| 1 | one kind of object in one to three copies, which move together in a straight line |
| 2 | up to three objects in one to three groups, each of its own colour, shape and direction |
| 3 | as 2; groups are slow or fast, and may appear or disappear while the clip runs |

A scene is its attributes (`Scene.key`). Splits are cut by a hash of that key, so that train, validation and test never share
a scene: what is tested is a combination never trained on.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

COLOURS = {
    "red": (222, 48, 48),
    "green": (44, 176, 72),
    "blue": (52, 92, 232),
    "yellow": (240, 216, 48),
    "purple": (160, 56, 196),
    "orange": (244, 140, 32),
}
BACKGROUNDS = {"black": (14, 14, 14), "gray": (120, 120, 120), "white": (240, 240, 240), "brown": (104, 66, 38)}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": 0.09, "large": 0.14}  # radius
COUNTS = ("one", "two", "three")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS = {"slow": (0.20, 0.26), "fast": (0.42, 0.48)}  # length of a path, in frame widths: below a half, so that no way round is shorter
EVENTS = ("appears", "disappears")
SPLITS = ("train", "validation", "test")
LEVELS = (1, 2, 3)

PATH = (0.32, 0.42)  # below level 3
EVENTS_AT = {(0.10, 0.28): ("appears",), (0.40, 0.60): EVENTS, (0.72, 0.90): ("disappears",)}  # so that each is seen twice in 4 frames
SHARED_OUT = {1: ((1,),), 2: ((2,), (1, 1), (1, 1)), 3: ((3,), (1, 2), (2, 1), (1, 1, 1), (1, 1, 1))}  # objects to groups, from level 2 on
SPACING = 2.25  # distance between neighbouring copies, in radii
APART = 1.15  # least distance of two groups' copies as the clip starts, in sums of their radii
SAME_WAY_SHARE = 0.5  # of scenes with several groups
TEST_SHARE, VALIDATION_SHARE = 0.15, 0.10  # of all attribute combinations


@dataclass(frozen=True)
class Event:
    """A group that comes or goes: `kind` is one of EVENTS, `time` in (0, 1)."""

    kind: str
    time: float


@dataclass(frozen=True)
class Group:
    """One kind of object: `count` equal copies that move together. `speed` is None below level 3."""

    colour: str
    shape: str
    size: str
    count: int
    direction: str
    start: tuple[float, float]
    path: float
    angle: float
    speed: str | None = None
    event: Event | None = None

    @property
    def key(self) -> str:
        parts = (str(self.count), self.size, self.colour, self.shape, self.direction, self.speed, self.event and self.event.kind)
        return " ".join(part for part in parts if part)

    def middle(self, time: float) -> tuple[float, float]:
        """The middle of the group at a time in [0, 1], each coordinate in [0, 1)."""
        step_x, step_y = DIRECTIONS[self.direction]
        return (self.start[0] + step_x * time * self.path) % 1.0, (self.start[1] + step_y * time * self.path) % 1.0

    def centres(self, time: float) -> list[tuple[float, float]]:
        """Where the copies are at a time in [0, 1], whether they can be seen or not."""
        x, y = self.middle(time)
        ring = cluster_radius(self.count, SIZES[self.size])
        turns = [self.angle + 2 * np.pi * i / self.count for i in range(self.count)]
        return [((x + ring * np.cos(turn)) % 1.0, (y + ring * np.sin(turn)) % 1.0) for turn in turns]

    def is_shown(self, time: float) -> bool:
        """Whether the group can be seen at a time in [0, 1]."""
        return self.event is None or bool(time >= self.event.time) == (self.event.kind == "appears")


@dataclass(frozen=True)
class Scene:
    """All that is true of a clip, apart from how it is filmed. Later groups are drawn over earlier ones."""

    level: int
    background: str
    groups: tuple[Group, ...]
    tint: tuple[int, int, int]

    @property
    def key(self) -> str:
        """The attributes that make two scenes the same one: neither places nor times nor shades."""
        groups = " + ".join(sorted(group.key for group in self.groups))
        return " | ".join((self.background, groups, *self.events))

    @property
    def events(self) -> list[str]:
        """Colours of the groups that come or go, in the order of time."""
        timed = [(group.event.time, group.colour) for group in self.groups if group.event]
        return [colour for _, colour in sorted(timed)]


def cluster_radius(count: int, radius: float) -> float:
    """Distance of each copy from the middle of its group."""
    return 0.0 if count == 1 else SPACING * radius / (2 * np.sin(np.pi / count))


def offset(places: Any, origin: Any) -> Float[np.ndarray, "*shape"]:
    """The shorter way from `origin` to `places` in a frame without borders, each coordinate in [-0.5, 0.5)."""
    return (np.subtract(places, origin) + 0.5) % 1.0 - 0.5


def split_of(key: str) -> str:
    """The split a scene belongs to, from its attributes alone."""
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32
    if share < TEST_SHARE:
        return "test"
    return "validation" if share < TEST_SHARE + VALIDATION_SHARE else "train"


def draw_scene(level: int, *, seed: int, index: int, split: str) -> Scene:
    """The scene of number `index`; the same numbers always give the same scene.

    Raises ValueError for a level or split that does not exist.
    """
    if level not in LEVELS:
        raise ValueError(f"level: got {level}, expected one of {', '.join(map(str, LEVELS))}")
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}")
    rng = np.random.default_rng([level, seed, SPLITS.index(split), index])
    while True:
        scene = _draw(level, rng)
        if split_of(scene.key) == split:
            return scene


def _draw(level: int, rng: np.random.Generator) -> Scene:
    background = str(rng.choice(list(BACKGROUNDS)))
    tint = tuple(int(value) for value in rng.integers(-10, 11, 3))
    n_objects = int(rng.integers(1, len(COUNTS) + 1))
    counts = (n_objects,) if level == 1 else SHARED_OUT[n_objects][rng.integers(len(SHARED_OUT[n_objects]))]
    n_groups = len(counts)
    colours, shapes = rng.permutation(list(COLOURS)), rng.permutation(SHAPES)
    directions = _draw_directions(n_groups, rng)
    events = _draw_events(n_groups, rng) if level == 3 else [None] * n_groups
    speeds = [str(speed) for speed in rng.choice(list(SPEEDS), n_groups)] if level == 3 else [None] * n_groups
    sizes = rng.choice(list(SIZES), n_groups)
    while True:
        groups = tuple(
            Group(
                colour=str(colours[i]),
                shape=str(shapes[i]),
                size=str(sizes[i]),
                count=counts[i],
                direction=directions[i],
                start=(float(rng.uniform()), float(rng.uniform())),
                path=float(rng.uniform(*(SPEEDS[speed] if (speed := speeds[i]) else PATH))),
                angle=float(rng.uniform(0, 2 * np.pi)),
                speed=speeds[i],
                event=events[i],
            )
            for i in range(n_groups)
        )
        if _are_apart(groups):
            return Scene(level=level, background=background, groups=groups, tint=(tint[0], tint[1], tint[2]))


def _draw_directions(n_groups: int, rng: np.random.Generator) -> list[str]:
    """One for each group; several groups go the same way in a fixed share of the scenes."""
    ways = list(DIRECTIONS)
    if n_groups > 1 and rng.random() < SAME_WAY_SHARE:
        return [str(rng.choice(ways))] * n_groups
    while True:
        drawn = [str(way) for way in rng.choice(ways, n_groups)]
        if n_groups == 1 or len(set(drawn)) > 1:
            return drawn


def _draw_events(n_groups: int, rng: np.random.Generator) -> list[Event | None]:
    """At most two groups come or go, at times well apart; one stays, so that no frame is empty."""
    drawn: list[Event | None] = [None] * n_groups
    n_events = int(rng.integers(min(n_groups, 3)))
    spans = rng.permutation(len(EVENTS_AT))[:n_events]
    for i, span in zip(rng.permutation(n_groups), spans, strict=False):
        (earliest, latest), kinds = list(EVENTS_AT.items())[span]
        drawn[i] = Event(str(rng.choice(kinds)), float(rng.uniform(earliest, latest)))
    return drawn


def _are_apart(groups: Sequence[Group]) -> bool:
    """Whether no two groups overlap as the clip starts. Where they go plays no part, or the first frame would tell it."""
    for i, one in enumerate(groups):
        for other in groups[:i]:
            least = APART * (SIZES[one.size] + SIZES[other.size])
            between = offset(np.array(one.centres(0.0))[:, None], np.array(other.centres(0.0)))
            if np.hypot(between[..., 0], between[..., 1]).min() < least:
                return False
    return True
