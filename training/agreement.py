"""Two judges' marks of the same answers -> how far they agree: Spearman's correlation with its interval, and how they differ on average.

Reads    judgements by the recipe's judge; those by its second judge, or people's marks: JSONL, {"question_id", "system", "score" in
         [0, 1]} a line, of the answers of the recipe's first training seed, which are those that its report shows.
Command  video2lora agreement [LABELS] --recipe RECIPE
Cost     seconds.

Paper, appendix A: Spearman 0.823 between judge and people on 200 answers, without an interval. Ours is a bootstrap over videos, as all of
our intervals are: answers about one video are not independent. A draw weighs the videos, so it changes how often each pair of marks
occurs and no mark: ranks come from a table of how often which marks meet, with ties at the middle of their ranks, as scipy has them.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from rich.table import Table as Grid
from rich.text import Text

from infra.artifacts import SYSTEMS
from infra.books import console
from infra.config import Recipe, Where
from infra.contents import contents_of
from infra.errors import BadInputError
from infra.evaluation_config import JudgeSettings
from infra.judged import judged
from infra.objects import read_bytes
from infra.progress import say
from infra.sets import answers_set, made_judgements
from infra.storage import Table

SEED = 0  # of the bootstrap
DRAWS_AT_ONCE = 500  # of the bootstrap: a table of marks each, in memory
MOST_SHOWN = 10  # lines of a file in one error

Pair = tuple[str, float, float]  # an answer's video, the judge's mark, the other's
Numbers = dict[str, Any]


class Label(BaseModel):
    """A person's mark of one system's answer to a question."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    question_id: str
    system: str
    score: float = Field(ge=0, le=1)

    @field_validator("system")
    @classmethod
    def _is_known(cls, system: str) -> str:
        if system not in SYSTEMS:
            raise ValueError(f"expected one of {', '.join(SYSTEMS)}")
        return system


def read_labels(path: str) -> list[Label]:
    """A file of marks, on a disk or in a bucket. Raises BadInputError that lists the lines which are none."""
    data = read_bytes(path)
    if data is None:
        raise BadInputError(f"{path}: no such file")
    labels: dict[tuple[str, str], Label] = {}
    wrong = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            label = Label.model_validate_json(line) if line.strip() else None
        except ValidationError as error:
            wrong.append(f"line {number}: {_what_is_wrong(error)}")
            continue
        if label is not None and labels.setdefault((label.question_id, label.system), label) is not label:
            wrong.append(f"line {number}: {label.question_id} by {label.system} has a mark already; give the mean of several people's")
    if wrong:
        rest = f"; and {len(wrong) - MOST_SHOWN} more" if len(wrong) > MOST_SHOWN else ""
        raise BadInputError(
            f'{path}: {len(wrong)} lines are not {{"question_id", "system", "score" in [0, 1]}}: {"; ".join(wrong[:MOST_SHOWN])}{rest}'
        )
    return list(labels.values())


def agreement_of(pairs: Sequence[Pair], *, n_draws: int, seed: int = SEED) -> Numbers:
    """Spearman's correlation, its 95 % interval by bootstrap over videos, and the mean of the judge's mark less the other's.

    None where it is not defined: of fewer than two pairs, or where one of the two gave everything the same mark. Draws of which that is
    so are left out of the interval, and counted.
    """
    videos, by_video = np.unique([video for video, _, _ in pairs], return_inverse=True)
    marks = [np.unique([pair[i] for pair in pairs], return_inverse=True) for i in (1, 2)]
    (first, at_first), (second, at_second) = marks
    tables = np.zeros((len(videos), len(first), len(second)))
    np.add.at(tables, (by_video, at_first, at_second), 1.0)
    found: Numbers = {"n": len(pairs), "n_videos": len(videos), "spearman": None, "low": None, "high": None}
    found["mean_difference"] = float(np.mean([judge - other for _, judge, other in pairs])) if pairs else None
    (value,) = spearman(tables.sum(axis=0, keepdims=True)) if pairs else (np.nan,)
    if np.isnan(value):
        return found
    draws = _draws(tables, n_draws=n_draws, rng=np.random.default_rng(seed))
    defined = draws[~np.isnan(draws)]
    low, high = np.quantile(defined, [0.025, 0.975]) if len(defined) else (np.nan, np.nan)
    interval = {"low": float(low), "high": float(high)} if len(videos) > 1 and len(defined) else {}
    return found | {"spearman": float(value)} | interval | {"n_draws": n_draws, "n_draws_undefined": n_draws - len(defined)}


def spearman(tables: Float[np.ndarray, "n_tables n_first n_second"]) -> Float[np.ndarray, " n_tables"]:
    """Of tables of how often which marks meet, marks in their order; NaN where all are the same."""
    n = tables.sum(axis=(1, 2))
    ranks = [_centred_ranks(tables.sum(axis=axis)) for axis in (2, 1)]
    covariance = np.einsum("tij,ti,tj->t", tables, *ranks)
    variances = [(tables.sum(axis=axis) * rank**2).sum(axis=1) for axis, rank in zip((2, 1), ranks, strict=True)]
    with np.errstate(invalid="ignore", divide="ignore"):
        found: np.ndarray = np.where(
            (n > 1) & (variances[0] > 0) & (variances[1] > 0), covariance / np.sqrt(variances[0] * variances[1]), np.nan
        )
    return found


def with_second(recipe: Recipe, where: Where) -> Numbers | None:
    """Of the recipe's judge and its second one; None where the recipe has none or either has not judged yet. Raises StorageError."""
    judge = recipe.judge
    if judge is None or judge.second is None:
        return None
    try:
        tables = made_judgements(judge, where.data), made_judgements(judge.second, where.data)
    except BadInputError:
        return None
    videos: dict[str, str] = {}  # of each set of words the first that it was said of
    questions = _questions(where)
    contents = contents_of(where.data, {question["video_id"] for question in questions.values()})
    for one in recipe.of_seeds():
        for row in answers_set(one, where.data).read(["question_id", "answer"]).to_pylist():
            question = questions[row["question_id"]]
            key = judged(question, row["answer"]).judgement_id
            content = contents[question["video_id"]]
            videos[key] = min(content, videos.get(key, content))
    first, second = (_scores(table, list(videos)) for table in tables)
    both = sorted(first.keys() & second.keys())
    asked = set(tables[1].wanted().to_pylist()) & videos.keys()
    numbers = _measured(recipe, [(videos[key], first[key], second[key]) for key in both])
    return {"judge": judge.model, "other": judge.second.model, **numbers, "n_unmatched": len(asked - set(both))}


def with_people(recipe: Recipe, where: Where, labels: Sequence[Label]) -> Numbers:
    """Of the recipe's judge and people's marks. Raises BadInputError where the judge has marked none of what they marked."""
    judge = _judge(recipe)
    questions, table = _questions(where), made_judgements(judge, where.data)
    rows = answers_set(recipe.of_seeds()[0], where.data).read(["question_id", "system", "answer"]).to_pylist()
    answers = {(row["question_id"], row["system"]): row["answer"] for row in rows}
    contents = contents_of(where.data, {question["video_id"] for question in questions.values()})
    keys = {}
    for label in labels:
        place = label.question_id, label.system
        if place in answers:
            keys[place] = judged(questions[label.question_id], answers[place]).judgement_id
    scores = _scores(table, sorted(set(keys.values())))
    pairs, unmatched = [], []
    for label in labels:
        key = keys.get((label.question_id, label.system))
        if key in scores:
            pairs.append((contents[questions[label.question_id]["video_id"]], scores[key], label.score))
        else:
            unmatched.append(f"{label.question_id} by {label.system} ({'not judged' if key else 'not answered'})")
    if unmatched:
        shown = ", ".join(unmatched[:MOST_SHOWN]) + (", ..." if len(unmatched) > MOST_SHOWN else "")
        say(f"agreement: {len(unmatched)} of {len(labels)} marks are of no judged answer: {shown}")
    if not pairs:
        raise BadInputError(f"none of the {len(labels)} marks is of an answer that {judge.model} judged: see question_id and system")
    return {"judge": judge.model, "other": "people", **_measured(recipe, pairs), "n_unmatched": len(unmatched)}


def run(recipe: Recipe, where: Where, *, labels: str | None, as_json: bool) -> None:
    """Prints the agreement. Raises BadInputError, StorageError."""
    numbers = with_people(recipe, where, read_labels(labels)) if labels is not None else _by_second(recipe, where)
    if as_json:
        print(json.dumps(numbers, indent=1))
    else:
        _print(numbers)


def _by_second(recipe: Recipe, where: Where) -> Numbers:
    if _judge(recipe).second is None:
        raise BadInputError("agreement: give a file of people's marks, or set judge.second in the recipe and run `video2lora judge`")
    numbers = with_second(recipe, where)
    if numbers is None:
        raise BadInputError(f"{where.data}/judgements: not by both judges of this recipe yet: run `video2lora judge` first")
    return numbers


def _judge(recipe: Recipe) -> JudgeSettings:
    if recipe.judge is None:
        raise BadInputError("recipe: judge is not set, so there are no marks to compare; see docs/judge.md")
    return recipe.judge


def _questions(where: Where) -> Mapping[str, dict[str, Any]]:
    return {row["question_id"]: row for row in Table(where.data, "questions").read().to_pylist()}


def _scores(table: Table, keys: list[str]) -> dict[str, float]:
    """By the words' key; also of words that the last run of the table, which may be another recipe's, did not ask for."""
    rows = table.read_keys(keys, ["judgement_id", "score"])
    return dict(zip(rows["judgement_id"].to_pylist(), rows["score"].to_pylist(), strict=True))


def _measured(recipe: Recipe, pairs: Sequence[Pair]) -> Numbers:
    return agreement_of(pairs, n_draws=recipe.evaluation.n_draws)


def _draws(
    tables: Float[np.ndarray, "n_videos n_first n_second"], *, n_draws: int, rng: np.random.Generator
) -> Float[np.ndarray, " n_draws"]:
    """The correlation in as many samples of videos, drawn with replacement."""
    n_videos = len(tables)
    flat, found = tables.reshape(n_videos, -1), []
    for at in range(0, n_draws, DRAWS_AT_ONCE):
        weights = rng.multinomial(n_videos, np.full(n_videos, 1 / n_videos), size=min(DRAWS_AT_ONCE, n_draws - at))
        found.append(spearman((weights @ flat).reshape(-1, *tables.shape[1:])))
    return np.concatenate(found)


def _centred_ranks(counts: Float[np.ndarray, "n_tables n_marks"]) -> Float[np.ndarray, "n_tables n_marks"]:
    """Of each mark, given how often it occurs: the middle of the ranks it takes up, less the mean rank."""
    ranks: np.ndarray = counts.cumsum(axis=1) - (counts - 1) / 2 - (counts.sum(axis=1, keepdims=True) + 1) / 2
    return ranks


def _what_is_wrong(error: ValidationError) -> str:
    return ", ".join(f"{'.'.join(map(str, item['loc'])) or 'row'}: {item['msg']}" for item in error.errors(include_url=False))


def _print(numbers: Numbers) -> None:
    grid = Grid(title=Text(f"{numbers['judge']} and {numbers['other']}"), title_justify="left")
    for heading in ("Spearman", "95 % interval", "answers", "videos", "mean difference", "not matched"):
        grid.add_column(heading, justify="right")
    interval = "–" if numbers["low"] is None else f"{numbers['low']:.3f} to {numbers['high']:.3f}"
    value, difference = ("–" if one is None else f"{one:.3f}" for one in (numbers["spearman"], numbers["mean_difference"]))
    grid.add_row(value, interval, str(numbers["n"]), str(numbers["n_videos"]), difference, str(numbers["n_unmatched"]))
    console().print(grid)
