"""Scene -> its summary, its caption, and questions with their answers.

A question family is what a question is about. TEMPORAL lists the families no single frame can answer (at level 1 a third of them).
Wording varies; answers do not: one word each, drawn so that each is equally frequent, which keeps guessing from the question low.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.made_world.scene import BACKGROUNDS, COLOURS, COUNTS, DIRECTIONS, SHAPES, SIZES, Group, Scene

SUMMARY_PROMPTS = ("Summarize the video.", "Give a summary of this video.", "What is this video about?")
CAPTION_PROMPTS = ("Caption the video.", "Write a short caption for this video.", "Describe the video briefly.")

QUESTIONS = {
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
}  # fmt: skip
TEMPORAL = frozenset({"direction", "axis", "is_direction"})


@dataclass(frozen=True)
class Question:
    family: str
    question: str
    answer: str


def summary(scene: Scene) -> str:
    """All there is to say, in one fixed form."""
    (group,) = scene.groups
    return f"{_subject(group, sized=True).capitalize()} {_verb(group)} {group.direction} on a {scene.background} background."


def caption(scene: Scene) -> str:
    """What moves where, without size and background."""
    (group,) = scene.groups
    return f"{_subject(group, sized=False).capitalize()} {_verb(group)} {group.direction}."


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """One question of each family, its wording and its yes or no drawn by `rng`."""
    (group,) = scene.groups
    asked = []
    for family, wordings in QUESTIONS.items():
        value, answer = _value_and_answer(family, scene, group, rng)
        asked.append(Question(family, str(rng.choice(wordings)).format(value=value), answer))
    return asked


def _value_and_answer(family: str, scene: Scene, group: Group, rng: np.random.Generator) -> tuple[str, str]:
    """What a template is filled with, and the answer."""
    if family in ("is_colour", "is_direction"):
        truth, choices = (group.colour, COLOURS) if family == "is_colour" else (group.direction, DIRECTIONS)
        if rng.random() < 0.5:
            return truth, "yes"
        return str(rng.choice([choice for choice in choices if choice != truth])), "no"
    answers = {
        "colour": group.colour,
        "shape": group.shape,
        "size": group.size,
        "count": COUNTS[group.count - 1],
        "background": scene.background,
        "direction": group.direction,
        "axis": "horizontal" if group.direction in ("left", "right") else "vertical",
    }
    return "", answers[family]


def answers_of(family: str) -> tuple[str, ...]:
    """Every answer a family can have."""
    return {
        "colour": tuple(COLOURS),
        "shape": SHAPES,
        "size": tuple(SIZES),
        "count": COUNTS,
        "background": tuple(BACKGROUNDS),
        "direction": tuple(DIRECTIONS),
        "axis": ("horizontal", "vertical"),
    }.get(family, ("yes", "no"))


def _subject(group: Group, *, sized: bool) -> str:
    plural = "" if group.count == 1 else ("es" if group.shape == "cross" else "s")
    size = f"{group.size} " if sized else ""
    return f"{COUNTS[group.count - 1]} {size}{group.colour} {group.shape}{plural}"


def _verb(group: Group) -> str:
    return "moves" if group.count == 1 else "move"
