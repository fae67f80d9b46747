"""Scene -> what the small VLM's throw-away heads are asked in training: facts of frames and clips, places, patches.

At level 1 a fact is about the one kind of object there is. From level 2 on it is about a colour, "none" where no object has it:
what has which shape and goes where must be bound together to be named.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.made_world.scene import BACKGROUNDS, COLOURS, COUNTS, DIRECTIONS, SHAPES, SIZES, SPEEDS, Group, Scene, offset
from video2lora.tiny.heads import IGNORE

NONE = "none"


@dataclass(frozen=True)
class Labels:
    """Of one clip with its frames at `times`."""

    facts: dict[str, int]
    places: np.ndarray  # [n_frames, n_slots, 2] in [0, 1), NaN where a slot shows nothing
    patches: np.ndarray  # [n_frames, n_patches], number of the shape that covers each patch, or IGNORE
    offsets: np.ndarray  # [n_frames, n_patches, 2], of a patch from the middle of what covers it


def frame_facts(level: int) -> dict[str, tuple[str, ...]]:
    """Facts a single frame shows, with their possible values."""
    return {name: values for name, values in clip_facts(level).items() if not name.endswith(("direction", "speed"))}


def clip_facts(level: int) -> dict[str, tuple[str, ...]]:
    """All facts of a clip, with their possible values."""
    shared = {"background": tuple(BACKGROUNDS), "count": COUNTS}
    kinds = {"shape": SHAPES, "size": tuple(SIZES), "direction": tuple(DIRECTIONS)}
    if level == 1:
        return {"colour": tuple(COLOURS)} | shared | kinds
    if level == 3:
        kinds |= {"speed": tuple(SPEEDS)}
    return shared | {f"{colour} {kind}": (NONE, *values) for colour in COLOURS for kind, values in kinds.items()}


def n_slots(level: int) -> int:
    """How many things have a place: one at level 1, one of each colour from level 2 on."""
    return 1 if level == 1 else len(COLOURS)


def labels_of(scene: Scene, times: np.ndarray, *, side: int) -> Labels:
    """Labels of a clip whose frames are cut into `side` x `side` patches."""
    patches, offsets = zip(*(_patches(scene, time, side) for time in times), strict=True)
    return Labels(
        facts={name: values.index(_value(scene, name)) for name, values in clip_facts(scene.level).items()},
        places=np.stack([_places(scene, time) for time in times]),
        patches=np.stack(patches),
        offsets=np.stack(offsets),
    )


def _value(scene: Scene, name: str) -> str:
    if name == "background":
        return scene.background
    if name == "count":
        return COUNTS[sum(group.count for group in scene.groups) - 1]
    *of, kind = name.split()
    named = [group for group in scene.groups if not of or [group.colour] == of]
    return str(getattr(named[0], kind)) if named else NONE


def _places(scene: Scene, time: float) -> np.ndarray:
    places = np.full((n_slots(scene.level), 2), np.nan, dtype=np.float32)
    for group in scene.groups:
        if group.is_shown(time):
            places[_slot(scene, group)] = group.middle(time)
    return places


def _slot(scene: Scene, group: Group) -> int:
    return 0 if scene.level == 1 else list(COLOURS).index(group.colour)


def _patches(scene: Scene, time: float, side: int) -> tuple[np.ndarray, np.ndarray]:
    middles = (np.arange(side) + 0.5) / side
    y, x = np.meshgrid(middles, middles, indexing="ij")
    shown, offsets = np.full((side, side), IGNORE), np.zeros((side, side, 2), dtype=np.float32)
    for group in scene.groups:
        for centre_x, centre_y in group.centres(time) if group.is_shown(time) else ():
            away = offset(np.stack([x, y], -1), (centre_x, centre_y))
            inside = np.hypot(away[..., 0], away[..., 1]) < SIZES[group.size] + 0.25 / side
            shown[inside] = SHAPES.index(group.shape)
            offsets[inside] = away[inside]
    return shown.reshape(-1), offsets.reshape(-1, 2)
