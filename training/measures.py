"""Answers and questions -> the numbers of a report: plain Python and numpy, no storage, no page.

Gap closed is (ours - blind) / (base - blind): 0 is what the question alone gives away, 1 is the VLM with the video in its context.
Two systems are compared over the questions that both answered, in every training: `video2lora.equivalence` draws whole videos (questions
of one video share its adapter, so they are not independent) and trainings, for both sides alike (paired), and says what a claim is. A video
is a content there: spans of one file are drawn together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from infra.evaluation_config import EvaluationSettings
from training.costs import by_system
from video2lora.equivalence import claim, holm, with_interval
from video2lora.scoring import exact_match, token_f1

METRICS = ("exact_match", "token_f1")  # of a sweep
SCORES = ("judge", "token_f1", "exact_match", "rouge_l", "wups")  # of a report; the first one that there is leads
CLAIMS = (("ours", "base"), ("merged", "base"), ("composed", "base"), ("champion", "base"), ("ours", "champion"))
DIFFERENCES = (("ours", "blind"), ("ours", "caption"), ("ours", "sampled"), ("other_video", "blind"), ("static", "blind"))
GAP = ("ours", "blind", "base")
OF_QUESTION = ("question_id", "content", "benchmark", "style", "task")

Number = float | None
Facts = dict[str, Any]
Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Scored:
    """An answer with its scores in [0, 1], as a sweep compares them."""

    question_id: str
    content: str  # of the video; that of its file, where it is a span
    system: str
    exact_match: float
    token_f1: float


def score(answers: Sequence[Facts], questions: Sequence[Facts], *, contents: Mapping[str, str]) -> list[Scored]:
    """Rows of `answers` marked against the references of their questions; `contents` by video."""
    by_id = {row["question_id"]: row for row in questions}
    scored = []
    for row in answers:
        question = by_id[row["question_id"]]
        marked = exact_match(row["answer"], question["references"]), token_f1(row["answer"], question["references"])
        scored.append(Scored(row["question_id"], contents[question["video_id"]], row["system"], *marked))
    return scored


def sums_by_video(scored: Sequence[Scored], systems: Sequence[str], metric: str) -> Float[np.ndarray, "n_videos n_sums"]:
    """For each video: the number of questions that all `systems` answered, then each system's sum of scores over them."""
    values = {(one.question_id, one.system): getattr(one, metric) for one in scored}
    videos: dict[str, list[list[float]]] = {}
    for question_id, content in sorted({(one.question_id, one.content) for one in scored}):
        if all((question_id, system) in values for system in systems):
            videos.setdefault(content, []).append([1.0, *(values[question_id, system] for system in systems)])
    return np.array([np.sum(rows, axis=0) for rows in videos.values()]).reshape(-1, 1 + len(systems))


def numbers(rows: Sequence[Facts], systems: Sequence[str], settings: EvaluationSettings) -> Facts:
    """All that a report tells of its rows (report_rows.SCHEMA); `systems` in the order in which it names them."""
    of = marks(rows, systems)
    benchmarks = by_benchmark(of, settings)
    whole = overall(of, benchmarks, settings)
    costs = by_system(rows, systems)
    return {
        "counts": {"videos": len(set(of.labels("content"))), "questions": len(of.questions), "answers": len(rows)},
        "seeds": list(of.seeds),
        "scores": list(of.values),
        "primary": next(iter(of.values)),
        "systems": {one: costs[one] | {"scores": {name: whole["scores"][name][one] for name in of.values}} for one in systems},
        "gap_closed": whole["gap_closed"],
        "benchmarks": benchmarks,
        "overall": whole,
    }


@dataclass(frozen=True)
class Marks:
    """Answers of a report as arrays: what was asked, and of each score a value for every system, training and question."""

    systems: tuple[str, ...]
    seeds: tuple[int, ...]
    questions: tuple[Facts, ...]  # by OF_QUESTION
    values: Mapping[str, Float[np.ndarray, "n_systems n_seeds n_questions"]]  # NaN where there is none

    def where(self, mask: Bool[np.ndarray, " n_questions"]) -> "Marks":
        """Of these questions alone."""
        kept = tuple(one for one, is_kept in zip(self.questions, mask, strict=True) if is_kept)
        return Marks(self.systems, self.seeds, kept, {name: values[:, :, mask] for name, values in self.values.items()})

    def labels(self, column: str) -> np.ndarray:
        return np.array([one[column] for one in self.questions], dtype=object)

    def part(self, column: str, value: str) -> "Marks":
        return self.where(self.labels(column) == value)


def marks(rows: Sequence[Facts], systems: Sequence[str]) -> Marks:
    """Rows of `rows.parquet` as arrays. Questions stand in the order of their ids."""
    asked = {row["question_id"]: {name: row[name] for name in OF_QUESTION} for row in rows}
    place = {question_id: i for i, question_id in enumerate(sorted(asked))}
    seeds = tuple(dict.fromkeys(row["seed"] for row in rows))
    values = {name: np.full((len(systems), len(seeds), len(place)), np.nan) for name in SCORES}
    for row in rows:
        at = systems.index(row["system"]), seeds.index(row["seed"]), place[row["question_id"]]
        for name in SCORES:
            if row[name] is not None:
                values[name][at] = row[name]
    known = {name: found for name, found in values.items() if not np.isnan(found).all()}
    return Marks(tuple(systems), seeds, tuple(asked[question_id] for question_id in sorted(asked)), known)


def sums(of: Marks, name: str, systems: Sequence[str]) -> Float[np.ndarray, "n_seeds n_videos n_sums"]:
    """Per training and video: the number of questions that all `systems` have this score of, then each system's sum over them."""
    if name not in of.values or not set(systems) <= set(of.systems):
        return np.zeros((len(of.seeds), 0, 1 + len(systems)))
    values = of.values[name][[of.systems.index(system) for system in systems]]
    known = ~np.isnan(values).any((0, 1))
    counted = np.concatenate([np.ones_like(values[:1]), values])[:, :, known]
    videos, place = np.unique(of.labels("content")[known].astype(str), return_inverse=True)
    return _by_place(counted, place, len(videos))


def _by_place(
    values: Float[np.ndarray, "n_sums n_seeds n_questions"], place: Int[np.ndarray, " n_questions"], n_videos: int
) -> Float[np.ndarray, "n_seeds n_videos n_sums"]:
    found = np.zeros((n_videos, values.shape[1], values.shape[0]))
    np.add.at(found, place, values.transpose(2, 1, 0))
    return found.transpose(1, 0, 2)


def means(of: Marks, name: str) -> dict[str, Number]:
    """Of each system over the questions that it has this score of, all trainings together."""
    return {system: _mean(of.values[name][i]) for i, system in enumerate(of.systems)}


def gap_closed(of: Marks, name: str, settings: EvaluationSettings) -> Facts:
    """(ours - blind) / (base - blind) with its interval; None where base is not better than blind, or a system is missing."""
    return with_interval(sums(of, name, GAP), lambda drawn: gap_ratio(*drawn[:, 1:].T), n_draws=settings.n_draws)


def gap_ratio(
    ours: Float[np.ndarray, " n_sets"], blind: Float[np.ndarray, " n_sets"], base: Float[np.ndarray, " n_sets"]
) -> Float[np.ndarray, " n_sets"]:
    """Of sums or means over the same questions; NaN where base is not better than blind."""
    gap = base - blind
    return np.where(gap > 0, (ours - blind) / np.where(gap > 0, gap, 1.0), np.nan)


def difference(of: Marks, name: str, pair: tuple[str, str], settings: EvaluationSettings) -> Facts:
    """Mean of the first system minus that of the second over questions both answered, with its interval."""
    found = with_interval(sums(of, name, pair), lambda drawn: (drawn[:, 1] - drawn[:, 2]) / drawn[:, 0], n_draws=settings.n_draws)
    return {"system": pair[0], "against": pair[1], **found}


def claims(of: Marks, name: str, pairs: Pairs, settings: EvaluationSettings) -> list[Facts]:
    """What is claimed of each pair: that the first is not worse than the second, and as good, by each margin of this score."""
    margins = (settings.judge_margin, settings.margin) if name == "judge" else (settings.margin,)
    found = []
    for system, against in pairs:
        summed = sums(of, name, (system, against))
        for margin in dict.fromkeys(margins):
            one = claim(summed, margin=margin, alpha=settings.alpha, n_draws=settings.n_draws)
            if one is not None:
                found.append({"system": system, "against": against, **asdict(one)})
    return found


def part(of: Marks, settings: EvaluationSettings, *, claimed: Pairs = CLAIMS, compared: Pairs = DIFFERENCES) -> Facts:
    """All that is said of some questions: `claimed` and `compared` are pairs of systems."""
    tasks = sorted(set(of.labels("task")))
    there = [pair for pair in compared if set(pair) <= set(of.systems)]
    return {
        "task": tasks[0] if len(tasks) == 1 else "mixed",
        "n_questions": len(of.questions),
        "n_videos": len(set(of.labels("content"))),
        "scores": {name: means(of, name) for name in of.values},
        "gap_closed": {name: gap_closed(of, name, settings) for name in of.values},
        "claims": {name: claims(of, name, claimed, settings) for name in of.values},
        "differences": {name: [difference(of, name, pair, settings) for pair in there] for name in of.values},
    }


def overall(of: Marks, benchmarks: Mapping[str, Facts], settings: EvaluationSettings) -> Facts:
    """Of all questions; of one benchmark that is its own part."""
    if len(benchmarks) > 1:
        return part(of, settings)
    return {name: value for one in benchmarks.values() for name, value in one.items() if name != "styles"}


def by_benchmark(of: Marks, settings: EvaluationSettings) -> dict[str, Facts]:
    """Each benchmark's part, and of each of its styles; claims hold p-values corrected over benchmarks (Holm) beside their own."""
    found = {}
    for name in sorted(set(of.labels("benchmark"))):
        own = of.part("benchmark", name)
        styles = {style: own.part("style", style) for style in sorted(set(own.labels("style")))}
        of_styles = {style: part(one, settings, claimed=CLAIMS[:1], compared=()) for style, one in styles.items()}
        found[name] = part(own, settings) | {"styles": of_styles}
    families: dict[tuple[Any, ...], list[Facts]] = {}
    for one in found.values():
        for name, claimed in one["claims"].items():
            for fact in claimed:
                families.setdefault((name, fact["system"], fact["against"], fact["margin"]), []).append(fact)
    for family in families.values():
        for p in ("p_noninferior", "p_equivalent"):
            for fact, corrected in zip(family, holm([fact[p] for fact in family]), strict=True):
                fact[f"{p}_holm"] = corrected
    return found


def _mean(values: Float[np.ndarray, "..."]) -> Number:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None
