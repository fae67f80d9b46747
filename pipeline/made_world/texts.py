"""Scene -> its summary, its caption, and questions with their answers.

A question family is what a question is about; FAMILIES lists those of each level. TEMPORAL holds the ones no single frame can answer:
a third of the families at level 1, half of them or more from level 2 on. A family that has no clear answer for a scene is not asked.
Wording varies; answers do not: one word each, drawn so that guessing from the question alone stays low.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.made_world.scene import BACKGROUNDS, COLOURS, COUNTS, DIRECTIONS, SHAPES, SIZES, SPEEDS, Group, Scene

SUMMARY_PROMPTS = ("Summarize the video.", "Give a summary of this video.", "What is this video about?")
CAPTION_PROMPTS = ("Caption the video.", "Write a short caption for this video.", "Describe the video briefly.")

FAMILIES = {
    1: ("colour", "shape", "size", "count", "background", "is_colour", "direction", "axis", "is_direction"),
    2: ("relation", "mover", "mover_shape", "n_moving", "same_way"),  # beside those of level 1
    3: ("speed", "appears", "disappears", "first_event"),  # beside those of levels 1 and 2
}
TEMPORAL = frozenset({"direction", "axis", "is_direction", "mover", "mover_shape", "n_moving", "same_way", *FAMILIES[3]})

ALONE = {  # wordings for a scene with one kind of object
    "colour": ("What colour is the object?", "Which colour does the shape have?", "Name the colour of the moving thing."),
    "shape": ("What shape is shown?", "Which shape is moving?", "What is the shape of the object?"),
    "size": ("How big is the object?", "What size is the shape?", "Is the object small or large?"),
    "count": ("How many objects are there?", "How many shapes are in the video?", "Count the objects."),
    "background": ("What colour is the background?", "Which background does the video have?", "Name the background colour."),
    "is_colour": ("Is the object {value}?", "Is the shape {value}?", "Does the video show something {value}?"),
    "direction": ("Which way does the object move?", "In which direction does the shape go?", "Where is the object moving to?"),
    "axis": (
        "Does the object move horizontally or vertically?", "Is the motion horizontal or vertical?", "Along which axis is the motion?",
    ),
    "is_direction": ("Does the object move {value}?", "Is the shape going {value}?", "Is {value} the direction of motion?"),
    "n_moving": ("How many objects move {value}?", "How many shapes go {value}?", "Count the objects that move {value}."),
    "speed": ("How fast does the object move?", "Is the object slow or fast?", "At which speed does the shape go?"),
}  # fmt: skip
AMONG = {  # wordings for a scene with several
    "colour": ("What colour is the {shape}?", "Which colour does the {shape} have?", "Name the colour of the {shape}."),
    "shape": ("What shape is the {colour} object?", "Which shape does the {colour} object have?", "Name the shape of the {colour} object."),
    "size": ("How big is the {colour} object?", "What size is the {colour} object?", "Is the {colour} object small or large?"),
    "count": ALONE["count"],
    "background": ALONE["background"],
    "is_colour": ("Is one of the objects {value}?", "Is there a {value} object?", "Does the video show something {value}?"),
    "direction": (
        "Which way does the {colour} object move?", "In which direction does the {colour} object go?",
        "Where is the {colour} object moving to?",
    ),
    "axis": (
        "Does the {colour} object move horizontally or vertically?", "Is the motion of the {colour} object horizontal or vertical?",
        "Along which axis does the {colour} object move?",
    ),
    "is_direction": (
        "Does the {colour} object move {value}?", "Is the {colour} object going {value}?", "Is {value} where the {colour} object goes?",
    ),
    "relation": (
        "At the start, is the {colour} object {value} of the {other} object?", "As the video starts, is {colour} {value} of {other}?",
        "Where it starts, is the {colour} object {value} of the {other} one?",
    ),
    "mover": ("Which colour moves {value}?", "What is the colour of the object that moves {value}?", "Name the colour that goes {value}."),
    "mover_shape": (
        "Which shape moves {value}?", "What is the shape of the object that moves {value}?", "Name the shape that goes {value}.",
    ),
    "n_moving": ALONE["n_moving"],
    "same_way": ("Do all objects move the same way?", "Do all shapes go in the same direction?", "Is there one direction for all objects?"),
    "speed": (
        "How fast does the {colour} object move?", "Is the {colour} object slow or fast?", "At which speed does the {colour} object go?",
    ),
    "appears": ("Which colour appears?", "What is the colour of the object that appears?", "Name the colour that comes into view."),
    "disappears": (
        "Which colour disappears?", "What is the colour of the object that disappears?", "Name the colour that goes out of view.",
    ),
    "first_event": (
        "Which colour appears or disappears first?", "What is the colour of the first object to come or go?",
        "Name the colour that comes or goes first.",
    ),
}  # fmt: skip
CLEAR_OF = 0.2  # least distance along an axis of two objects whose relation is asked, in frame widths


@dataclass(frozen=True)
class Question:
    family: str
    question: str
    answer: str


@dataclass(frozen=True)
class Asked:
    """What a wording is filled with, and the answer. `group` is what is asked about."""

    answer: str
    group: Group
    value: str = ""
    other: str = ""


def summary(scene: Scene) -> str:
    """All there is to say, apart from places, in one fixed form."""
    told = [f"{_subject(group, sized=True)} {_motion(group)}" for group in scene.groups]
    return f"{_joined(told).capitalize()} on a {scene.background} background.{_events(scene)}"


def caption(scene: Scene) -> str:
    """What moves where, without size and background."""
    return f"{_joined([f'{_subject(group, sized=False)} {_motion(group)}' for group in scene.groups]).capitalize()}.{_events(scene)}"


def families(level: int) -> tuple[str, ...]:
    """The families asked at a level."""
    return tuple(family for at in range(1, level + 1) for family in FAMILIES[at])


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """One question of each family that has a clear answer; its wording, object and yes or no drawn by `rng`."""
    wordings = ALONE if len(scene.groups) == 1 else AMONG
    asked = []
    for family in families(scene.level):
        one = _ask(family, scene, rng) if family in wordings else None
        if one is not None:
            wording = str(rng.choice(wordings[family]))
            fields = {"value": one.value, "other": one.other, "colour": one.group.colour, "shape": one.group.shape}
            asked.append(Question(family, wording.format(**fields), one.answer))
    return asked


def answers_of(family: str) -> tuple[str, ...]:
    """Every answer a family can have."""
    return {
        "shape": SHAPES,
        "mover_shape": SHAPES,
        "size": tuple(SIZES),
        "count": COUNTS,
        "n_moving": ("zero", *COUNTS),
        "background": tuple(BACKGROUNDS),
        "direction": tuple(DIRECTIONS),
        "axis": ("horizontal", "vertical"),
        "speed": tuple(SPEEDS),
    }.get(family, tuple(COLOURS) if family in ("colour", "mover", "appears", "disappears", "first_event") else ("yes", "no"))


def _ask(family: str, scene: Scene, rng: np.random.Generator) -> Asked | None:
    """A question of the family on the scene, or None where there is no clear one."""
    group = scene.groups[rng.integers(len(scene.groups))] if len(scene.groups) > 1 else scene.groups[0]
    if family in ("is_colour", "is_direction"):
        if family == "is_colour":
            return _yes_or_no(group, [one.colour for one in scene.groups], list(COLOURS), rng)
        return _yes_or_no(group, [group.direction], list(DIRECTIONS), rng)
    if family == "relation":
        return _relation(scene, rng)
    if family in ("mover", "mover_shape"):
        ways = [one.direction for one in scene.groups]
        lone = [one for one in scene.groups if ways.count(one.direction) == 1]
        return _of_one_of(lone, "colour" if family == "mover" else "shape", rng)
    if family == "n_moving":
        return _n_moving(scene, rng)
    if family in ("appears", "disappears"):
        seen = [one for one in scene.groups if one.event and one.event.kind == family]
        return _of_one_of(seen if len(seen) == 1 else [], "colour", rng)
    if family == "first_event":
        return Asked(scene.events[0], group) if len(scene.events) == 2 else None
    answers = {
        "colour": group.colour,
        "shape": group.shape,
        "size": group.size,
        "count": COUNTS[sum(one.count for one in scene.groups) - 1],
        "background": scene.background,
        "direction": group.direction,
        "axis": "horizontal" if group.direction in ("left", "right") else "vertical",
        "same_way": "yes" if len({one.direction for one in scene.groups}) == 1 else "no",
        "speed": group.speed or "",
    }
    return Asked(answers[family], group)


def _yes_or_no(group: Group, true: list[str], possible: list[str], rng: np.random.Generator) -> Asked:
    """As often yes as no."""
    if rng.random() < 0.5:
        return Asked("yes", group, value=true[0] if len(true) == 1 else str(rng.choice(true)))
    return Asked("no", group, value=str(rng.choice([value for value in possible if value not in true])))


def _of_one_of(groups: list[Group], what: str, rng: np.random.Generator) -> Asked | None:
    """A question whose answer is an attribute of one of `groups`, found by its direction."""
    if not groups:
        return None
    group = groups[rng.integers(len(groups))]
    return Asked(str(getattr(group, what)), group, value=group.direction)


def _relation(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """Of two single objects that are shown whole and well apart as the clip starts."""
    whole = []
    for axis, sides in enumerate((("left", "right"), ("above", "below"))):
        clear = [
            group for group in scene.groups
            if group.count == 1 and group.is_shown(0.0) and SIZES[group.size] <= group.start[axis] <= 1 - SIZES[group.size]
        ]  # fmt: skip
        for one in clear:
            for other in clear:
                if abs(one.start[axis] - other.start[axis]) >= CLEAR_OF:
                    truth = sides[one.start[axis] > other.start[axis]]
                    whole.append((one, other, truth, sides))
    if not whole:
        return None
    one, other, truth, sides = whole[rng.integers(len(whole))]
    said = str(rng.choice(sides))
    return Asked("yes" if said == truth else "no", one, value=said, other=other.colour)


def _n_moving(scene: Scene, rng: np.random.Generator) -> Asked:
    """Each number that is true of some direction is as likely as the others."""
    ways = list(DIRECTIONS)
    moving = [sum(group.count for group in scene.groups if group.direction == way) for way in ways]
    n = int(rng.choice(sorted(set(moving))))
    way = str(rng.choice([way for way, n_way in zip(ways, moving, strict=True) if n_way == n]))
    return Asked("zero" if n == 0 else COUNTS[n - 1], scene.groups[0], value=way)


def _subject(group: Group, *, sized: bool) -> str:
    plural = "" if group.count == 1 else ("es" if group.shape == "cross" else "s")
    size = f"{group.size} " if sized else ""
    return f"{COUNTS[group.count - 1]} {size}{group.colour} {group.shape}{plural}"


def _motion(group: Group) -> str:
    speed = {"slow": " slowly", "fast": " fast"}[group.speed] if group.speed else ""
    return f"{'moves' if group.count == 1 else 'move'} {group.direction}{speed}"


def _events(scene: Scene) -> str:
    """What comes and goes, in order, with a space before it; or nothing."""
    kinds = {group.colour: group.event.kind for group in scene.groups if group.event}
    told = [f"{colour} {kinds[colour]}" for colour in scene.events]
    if not told:
        return ""
    return f" First {told[0]}, then {told[1]}." if len(told) == 2 else f" {told[0].capitalize()}."


def _joined(told: list[str]) -> str:
    return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"
