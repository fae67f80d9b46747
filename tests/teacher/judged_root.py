"""A data root whose answers are to be judged: two videos, two questions and a caption, three systems, a training of each seed; no model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from made_examples import fill, fill_hypernetwork, write_examples

from infra.config import Recipe, Where
from infra.evaluation_config import AnswerSettings, EvaluationSettings, JudgeSettings
from infra.sets import answers_made, answers_set, frames_made, frames_set
from infra.storage import Table

QUESTIONS = (
    {"question_id": "q1", "video_id": "a", "task": "question", "question": "What colour is the ball?", "references": ["red", "scarlet"]},
    {"question_id": "q2", "video_id": "b", "task": "question", "question": "How many dogs?", "references": ["three"]},
    {"question_id": "c1", "video_id": "b", "task": "caption", "question": "Describe it.", "references": ["Three dogs run after a ball."]},
)
SYSTEMS = ("base", "ours", "blind")
ANSWERS = {
    ("q1", "base"): "red", ("q1", "ours"): "It is scarlet.", ("q1", "blind"): "blue",
    ("q2", "base"): "three", ("q2", "ours"): "three", ("q2", "blind"): "two",
    ("c1", "base"): "Three dogs run after a ball.", ("c1", "ours"): "Dogs run.", ("c1", "blind"): "A cat sleeps.",
}  # fmt: skip
N_WORDS = 8  # different ones: base and ours say the same to q2

Answers = Mapping[tuple[str, str], str]


def a_recipe(judge: JudgeSettings | None, *, seeds: tuple[int, ...] = (42,)) -> Recipe:
    answer = AnswerSettings(systems=SYSTEMS)
    return Recipe(answer=answer, judge=judge, evaluation=EvaluationSettings(seeds=seeds, n_draws=200))


def make_root(recipe: Recipe, folder: Path, *answers: Answers) -> Where:
    """`answers` of each seed of the recipe."""
    data = str(folder / "data")
    fill(Table(data, "videos"), [{"video_id": name, "uri": name, "split": "test"} for name in ("a", "b")])
    fill(Table(data, "questions"), [{**row, "benchmark": "toy"} for row in QUESTIONS])
    frames: list[dict[str, Any]] = [{"video_id": name, "jpegs": [b""], "timestamps_s": [0.0]} for name in ("a", "b")]
    fill(frames_set(recipe, data), frames, made=frames_made(recipe))
    examples = write_examples(recipe, data, [])
    for of_seed, said in zip(recipe.of_seeds(), answers, strict=True):
        fill_hypernetwork(of_seed, examples, {"config.json": b"{}"})
        rows = [{"question_id": question, "system": system, "answer": answer} for (question, system), answer in said.items()]
        fill(answers_set(of_seed, data), rows, made=answers_made(of_seed, data))
    return Where(data=data)
