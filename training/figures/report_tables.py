"""A report's numbers as the paper's tables 1 to 4: a line for each benchmark or style, base and ours, with the paper's own beside them.

The paper's verdicts are by its margins, 0.15 on the judge and 0.05 on token F1, each benchmark taken alone; ours by those of the recipe
(the report claims the judge's score at both), a line says by which, and after Holm's correction over benchmarks, as in the report.
"""

from collections.abc import Mapping
from dataclasses import asdict
from statistics import fmean
from typing import Any

from rich.table import Table as Grid

from training.figures import paper
from training.figures.tables import difference, grid, score
from training.verdicts import holds

PAIR = ("ours", "base")
PAPERS = {"caption": paper.CAPTIONS, "question": paper.QUESTIONS}

Facts = Mapping[str, Any]


def claims(report: Facts, task: str, model: str | None) -> list[dict[str, Any]]:
    """Tables 1 and 4: a line for each score, benchmark and margin; then the mean of the benchmarks, which has no interval here."""
    rows, alpha = [], report["recipe"]["evaluation"]["alpha"]
    for name in report["scores"]:
        own = {benchmark: of for benchmark, of in report["benchmarks"].items() if of["task"] == task}
        found = [
            {
                "benchmark": benchmark, "score": name, "n_videos": of["n_videos"], "n_questions": of["n_questions"],
                "base": of["scores"][name]["base"], "ours": of["scores"][name]["ours"],
                **{key: one[key] for key in ("value", "low", "high", "margin")},
                **{what: holds(one, what, alpha) for what in ("equivalent", "noninferior")},
            }
            for benchmark, of in own.items()
            for one in of["claims"].get(name, [])
            if (one["system"], one["against"]) == PAIR
        ]  # fmt: skip
        rows += found
        if len({row["benchmark"] for row in found}) > 1:
            of_one = list({row["benchmark"]: row for row in found}.values())
            means = {key: fmean(row[key] for row in of_one) for key in ("base", "ours", "value")}
            rows.append({"benchmark": paper.AVERAGE, "score": name, **means, "low": None, "high": None, "margin": None})
    papers = PAPERS[task]
    for row in rows:
        theirs = papers.get((model or "", row["score"]), {}).get(row["benchmark"])
        row["paper"] = None if theirs is None else asdict(theirs)
    return rows


def mixed(report: Facts) -> list[str]:
    """Benchmarks that have questions and captions, and so stand in neither of the two tables."""
    return [benchmark for benchmark, of in report["benchmarks"].items() if of["task"] not in PAPERS]


def styles(report: Facts, model: str | None) -> list[dict[str, Any]]:
    """Tables 2 and 3, of every benchmark that has several styles."""
    rows = []
    for benchmark, of in report["benchmarks"].items():
        for style, one in of["styles"].items() if len(of["styles"]) > 1 else ():
            for name in report["scores"]:
                means = one["scores"].get(name, {})
                if means.get("base") is None or means.get("ours") is None:
                    continue
                claimed: Facts = next((c for c in one["claims"].get(name, []) if (c["system"], c["against"]) == PAIR), {})
                theirs = paper.STYLES.get(model or "", {}).get(benchmark, {}).get(style) if name == "judge" else None
                rows.append(
                    {
                        "benchmark": benchmark, "style": style, "score": name, "n_questions": one["n_questions"],
                        "base": means["base"], "ours": means["ours"], "recovered": means["ours"] / means["base"] if means["base"] else None,
                        **{key: claimed.get(key) for key in ("value", "low", "high")},
                        "paper": None if theirs is None else {"base": theirs[0], "ours": theirs[1]},
                    }
                )  # fmt: skip
    return rows


def grid_of(table: str, rows: list[dict[str, Any]], model: str | None) -> Grid:
    """Either table's rows, as a grid."""
    is_styles = table == "styles"
    headings = ["benchmark", *(["style"] if is_styles else []), "score", "questions", "base", "ours", "ours − base"]
    headings += ["recovered"] if is_styles else ["margin", "Eq", "NI"]
    if model:
        headings += ["paper base", "ours"] + ([] if is_styles else ["ours − base", "Eq", "NI"])
    lines = []
    for row in rows:
        line = [row["benchmark"], *([row["style"]] if is_styles else []), row["score"], str(row.get("n_questions", ""))]
        line += [score(row["base"]), score(row["ours"]), difference(row)]
        told = [] if is_styles else [score(row["margin"], 2), *(verdict(row.get(what)) for what in ("equivalent", "noninferior"))]
        line += [recovered(row)] if is_styles else told
        theirs = row["paper"]
        if model and theirs is None:
            line += [""] * (2 if is_styles else 5)
        elif model:
            line += [score(theirs["base"]), score(theirs["ours"])]
            by_paper = difference({**theirs, "value": theirs["difference"]}) if not is_styles else ""
            line += [] if is_styles else [by_paper, verdict(theirs["equivalent"]), verdict(theirs["noninferior"])]
        lines.append(line)
    beside = f", beside arXiv 2606.04351's ({model})" if model else ""
    return grid(f"{table}: base is the video in context, ours its adapter; 95 % intervals over videos{beside}", headings, lines)


def verdict(holds: bool | None) -> str:
    return "–" if holds is None else "Y" if holds else "no"


def recovered(row: Facts) -> str:
    return "–" if row["recovered"] is None else f"{100 * row['recovered']:.1f} %"
