"""(level, seed, index, split) -> Scene: what is in a clip and what happens in it.

Geometry is in units of the frame: x to the right, y downwards, both in [0, 1]; time is a share of the clip.
Level 1 shows one kind of object, in one to three copies that move together in a straight line.

The middle of each path is drawn without looking at the direction, from the same range on both axes, and objects move at an
even speed: a single frame of unknown time therefore says nothing about the direction, and questions on motion need several.

A scene is its attributes (`Scene.key`). Splits are cut by a hash of that key, so that train, validation and test never share
a scene: what is tested is a combination never trained on.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

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
SIZES = {"small": 0.11, "large": 0.16}  # radius
COUNTS = ("one", "two", "three")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPLITS = ("train", "validation", "test")

PATH = (0.28, 0.36)  # length of a path, in frame widths
SPACING = 2.25  # distance between neighbouring copies, in radii
TEST_SHARE, VALIDATION_SHARE = 0.15, 0.10  # of all attribute combinations


@dataclass(frozen=True)
class Group:
    """One kind of object: `count` equal copies that move together."""

    colour: str
    shape: str
    size: str
    count: int
    direction: str
    middle: tuple[float, float]
    path: float
    angle: float

    @property
    def key(self) -> str:
        return f"{self.count} {self.size} {self.colour} {self.shape} {self.direction}"

    def centres(self, time: float) -> list[tuple[float, float]]:
        """Where the copies are at a time in [0, 1]."""
        step_x, step_y = DIRECTIONS[self.direction]
        along = (time - 0.5) * self.path
        x, y = self.middle[0] + step_x * along, self.middle[1] + step_y * along
        ring = cluster_radius(self.count, SIZES[self.size])
        turns = [self.angle + 2 * np.pi * i / self.count for i in range(self.count)]
        return [(x + ring * np.cos(turn), y + ring * np.sin(turn)) for turn in turns]


@dataclass(frozen=True)
class Scene:
    """All that is true of a clip, apart from how it is filmed."""

    level: int
    background: str
    groups: tuple[Group, ...]
    tint: tuple[int, int, int]

    @property
    def key(self) -> str:
        """The attributes that make two scenes the same one."""
        return f"{self.background} | " + " + ".join(sorted(group.key for group in self.groups))


def cluster_radius(count: int, radius: float) -> float:
    """Distance of each copy from the middle of its group."""
    return 0.0 if count == 1 else SPACING * radius / (2 * np.sin(np.pi / count))


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
    if level != 1:
        raise ValueError(f"level: got {level}, expected 1")
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
    return Scene(level=level, background=background, groups=(_draw_group(rng),), tint=(tint[0], tint[1], tint[2]))


def _draw_group(rng: np.random.Generator) -> Group:
    size = str(rng.choice(list(SIZES)))
    count = int(rng.integers(1, len(COUNTS) + 1))
    path = float(rng.uniform(*PATH))
    margin = min(0.5, cluster_radius(count, SIZES[size]) + SIZES[size] + path / 2)
    return Group(
        colour=str(rng.choice(list(COLOURS))),
        shape=str(rng.choice(SHAPES)),
        size=size,
        count=count,
        direction=str(rng.choice(list(DIRECTIONS))),
        middle=(float(rng.uniform(margin, 1 - margin)), float(rng.uniform(margin, 1 - margin))),
        path=path,
        angle=float(rng.uniform(0, 2 * np.pi)),
    )
