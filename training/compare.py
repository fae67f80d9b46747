"""Two reports on the same questions: what B's systems do better or worse than A's, with intervals, and which questions changed most.

Reads    report.json and rows.parquet of both: reports of this data folder, or folders anywhere (what MLflow keeps of a run).
Writes   nothing, or an HTML page in the report's manner.
Command  video2lora compare RUN_A RUN_B [-o changes.html]
Cost     two demos' reports of 3,240 answers: 2 s.

A question is the same in both if id, text and references are; what only one has, or has otherwise, is counted and left out. Trainings of
the same seeds are paired; else each side is averaged over its own, and the interval speaks of clips alone. Marks of
different judges are not compared.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.table import Table as Grid
from rich.text import Text

from infra.artifacts import SYSTEMS
from infra.books import console
from infra.config import Where
from infra.errors import BadInputError
from infra.evaluation_config import JudgeModel
from infra.objects import read_bytes, read_json, write_new
from infra.parquet import from_parquet
from infra.sets import REPORTS
from training.measures import Marks, marks, sums
from training.report_rows import SCHEMA
from training.report_table import number, plain
from training.verdicts import SCORE_NAMES, TOGETHER, interval_text, signed
from video2lora.equivalence import with_interval

N_CHANGED = 20  # questions that are printed
SIDES = ("A", "B")

Facts = dict[str, Any]


def run(run_a: str, run_b: str, where: Where, *, output: Path | None, as_json: bool) -> None:
    """Print the differences, and with `output` write a page. Raises BadInputError, StorageError."""
    if output is not None and output.exists():
        raise BadInputError(f"{output} is there already: name a new file")
    folders = [folder_of(name, where.data) for name in (run_a, run_b)]
    sides = [read_rows(folder) for folder in folders]
    numbers, kept = compared(sides, names=folders, judges=[judge_of(read_json(f"{folder}/report.json")) for folder in folders])
    print(json.dumps(numbers, indent=1)) if as_json else print_tables(numbers)
    if output is not None:
        from training import page  # jinja2: not needed to print

        html = page.render_comparison(numbers, _shown(kept, numbers), lines=lines(numbers)).encode()
        if not write_new(str(output), html):
            raise BadInputError(f"{output} is there already: name a new file")
        if not as_json:
            print(f"compare: open {output}")


def folder_of(name: str, root: str) -> str:
    """A report's folder, by its address or its name. Raises BadInputError where there is none."""
    tried = [name.rstrip("/"), f"{root.rstrip('/')}/{REPORTS}/{name.strip('/')}"]
    for folder in tried:
        if read_json(f"{folder}/report.json") is not None:
            return folder
    raise BadInputError(f"{name}: no report.json in {' nor in '.join(tried)}: give a report's folder, or its name under {REPORTS}/")


def read_rows(folder: str) -> list[Facts]:
    """Rows of a report. Raises BadInputError where they are not there or not a report's."""
    path = f"{folder}/rows.parquet"
    data = read_bytes(path)
    if data is None:
        raise BadInputError(f"{path} is not there: the report is not complete, or its files were not copied together")
    try:
        rows = from_parquet(data, SCHEMA.names)
    except (pa.ArrowException, KeyError) as error:
        raise BadInputError(f"{path} is not the rows of a report ({error}); make the report anew") from error
    if not rows.num_rows:
        raise BadInputError(f"{path} has no rows: there is nothing to compare")
    unknown = sorted({str(system) for system in rows["system"].to_pylist()} - set(SYSTEMS))
    if unknown:
        raise BadInputError(f"{path} has a system {unknown[0]!a}, expected {', '.join(SYSTEMS)}; make the report anew")
    return list(rows.to_pylist())


def judge_of(report: Any) -> Facts | None:
    """What tells a judge from others: how it was asked, and the set of its judgements, named by its weights and rubrics too."""
    if not isinstance(report, dict):
        return None
    recipe, told = report.get("recipe"), report.get("judge")
    judge = recipe.get("judge") if isinstance(recipe, dict) else None
    if not isinstance(judge, dict):
        return None
    asked = {name: judge[name] for name in JudgeModel.model_fields if name in judge}
    return asked | {"set": told.get("set") if isinstance(told, dict) else None}


def compared(
    sides: Sequence[Sequence[Facts]], *, names: Sequence[str], judges: Sequence[Facts | None] = (None, None)
) -> tuple[Facts, list[list[Facts]]]:
    """The numbers, and of each side the rows that count. Raises BadInputError where the two have no question or no system in common.

    `judges` say whose marks are each side's; those of two judges are no score of both.
    """
    asked = [{_identity(row) for row in rows} for rows in sides]
    ids = [{identity[0] for identity in one} for one in asked]
    same = {identity[0] for identity in asked[0] & asked[1]}
    by_system = [{row["system"] for row in rows} for rows in sides]
    systems = [system for system in dict.fromkeys(row["system"] for row in sides[1]) if system in by_system[0]]
    if not same or not systems:
        what = "question" if not same else "system"
        raise BadInputError(f"{names[0]} and {names[1]} have no {what} in common: there is nothing to compare")
    kept = [[row for row in rows if row["question_id"] in same and row["system"] in systems] for rows in sides]
    of = [marks(rows, systems) for rows in kept]
    scores = [name for name in of[0].values if name in of[1].values and (name != "judge" or judges[0] == judges[1])]
    if not scores:
        raise BadInputError(f"{names[0]} and {names[1]} have no score in common: there is nothing to compare")
    paired = set(of[0].seeds) == set(of[1].seeds)
    both = joined(of[0], of[1], scores, paired=paired)
    benchmarks = sorted(set(both.labels("benchmark")))
    parts = {name: both.part("benchmark", name) for name in benchmarks} | ({TOGETHER: both} if len(benchmarks) > 1 else {})
    numbers = {
        "runs": dict(zip(SIDES, names, strict=True)),
        "counts": {
            "same": len(same),
            "changed": len((ids[0] & ids[1]) - same),
            "only_A": len(ids[0] - ids[1]),
            "only_B": len(ids[1] - ids[0]),
        },
        "seeds": {side: list(one.seeds) for side, one in zip(SIDES, of, strict=True)},
        "paired_seeds": paired,
        "systems": systems,
        "only_systems": {side: sorted(one - set(systems)) for side, one in zip(SIDES, by_system, strict=True)},
        "judges": dict(zip(SIDES, judges, strict=True)),
        "scores": scores,
        "primary": scores[0],
        "differences": {
            name: [_difference(part, benchmark, name, s) for benchmark, part in parts.items() for s in systems] for name in scores
        },
        "changed_most": changed_most(both, scores[0], {row["question_id"]: row for row in kept[1]}, systems),
    }
    return numbers, kept


def joined(a: Marks, b: Marks, scores: Sequence[str], *, paired: bool) -> Marks:
    """Both sides as one: systems of A, then of B, by names that tell them apart. A question that one side lacks is left out."""
    ids = [{one["question_id"]: i for i, one in enumerate(side.questions)} for side in (a, b)]
    questions = [one for one in b.questions if one["question_id"] in ids[0]]
    places = [[of[one["question_id"]] for one in questions] for of in ids]
    values = {}
    for name in scores:
        of_sides = []
        for side, place in zip((a, b), places, strict=True):
            of_side = side.values[name][:, [side.seeds.index(seed) for seed in sorted(side.seeds)]][:, :, place]
            of_sides.append(of_side if paired else of_side.mean(1, keepdims=True))
        values[name] = np.concatenate(of_sides)
    systems = tuple(f"{system}, {side}" for side, one in zip(SIDES, (a, b), strict=True) for system in one.systems)
    return Marks(systems, tuple(sorted(a.seeds)) if paired else (0,), tuple(questions), values)


def _difference(both: Marks, benchmark: str, name: str, system: str) -> Facts:
    """B less A, over the questions that both sides' system answered in every training."""
    summed = sums(both, name, [f"{system}, {side}" for side in SIDES])
    n, *totals = summed.sum((0, 1))
    means = {side: float(total / n) if n else None for side, total in zip(SIDES, totals, strict=True)}
    return {"benchmark": benchmark, "system": system, **means, **with_interval(summed, _b_less_a)}


def _b_less_a(drawn: np.ndarray) -> np.ndarray:
    difference: np.ndarray = (drawn[:, 2] - drawn[:, 1]) / drawn[:, 0]
    return difference


def changed_most(both: Marks, name: str, rows: Mapping[str, Facts], systems: Sequence[str]) -> list[Facts]:
    """Questions with the largest changes of ours (else of the first system), means over trainings; those that did not change are none."""
    system = "ours" if "ours" in systems else systems[0]
    a, b = (both.values[name][both.systems.index(f"{system}, {side}")].mean(0) for side in SIDES)
    change = np.nan_to_num(b - a)
    found = []
    for i in np.argsort(-np.abs(change), kind="stable")[:N_CHANGED]:
        if change[i] != 0:
            row = rows[both.questions[i]["question_id"]]
            facts = {column: row[column] for column in ("question_id", "benchmark", "style", "question", "references")}
            found.append({**facts, "system": system, "A": float(a[i]), "B": float(b[i]), "change": float(change[i])})
    return found


def print_tables(numbers: Facts) -> None:
    """On standard output."""
    out = console()
    for line in lines(numbers):
        out.print(plain(line), highlight=False)
    for name, found in numbers["differences"].items():
        grid = Grid(title=f"{SCORE_NAMES[name]}: B - A", title_justify="left")
        for heading in ("benchmark", "system", "questions", "A", "B", "difference, 95 % interval"):
            grid.add_column(heading, justify="left" if heading in ("benchmark", "system") else "right")
        for one in found:
            means = [number(one[side]) for side in SIDES]
            grid.add_row(plain(one["benchmark"]), plain(one["system"]), str(one["n_questions"]), *means, Text(interval_text(one)))
        out.print(grid)
    grid = Grid("question", "benchmark", "style", "A", "B", "change", title="changed most", title_justify="left")
    for one in numbers["changed_most"]:
        texts = [plain(one[column]) for column in ("question_id", "benchmark", "style")]
        grid.add_row(*texts, number(one["A"]), number(one["B"]), signed(one["change"]))
    if numbers["changed_most"]:
        out.print(grid)


def lines(numbers: Facts) -> list[str]:
    """What is compared, in words."""
    counts, seeds = numbers["counts"], numbers["seeds"]
    found = [f"{side}: {numbers['runs'][side]}, training seeds {', '.join(map(str, seeds[side]))}" for side in SIDES]
    found.append(
        f"{counts['same']} questions are the same in both; left out: {counts['only_A']} that only A has, "
        f"{counts['only_B']} that only B has, {counts['changed']} whose text or references differ"
    )
    for side, systems in numbers["only_systems"].items():
        found += [f"systems that only {side} has: {', '.join(systems)}"] if systems else []
    judges = numbers["judges"]
    if judges["A"] != judges["B"]:
        told = ", ".join(f"{side}'s by {_judge_text(judges[side])}" for side in SIDES)
        found.append(f"marks by a judge are left out, for they are not by the same judge, weights and rubrics: {told}")
    if not numbers["paired_seeds"]:
        found.append("the training seeds differ: each side is averaged over its own, and intervals speak of clips alone")
    return found


def _shown(kept: Sequence[Sequence[Facts]], numbers: Facts) -> Any:
    """What the page lets one look through: the first training's answers of both sides."""
    from training import gallery

    systems = [f"{system}, {side}" for system in numbers["systems"] for side in SIDES]
    rows = []
    for side, own in zip(SIDES, kept, strict=True):
        rows += [row | {"system": f"{row['system']}, {side}"} for row in own if row["seed"] == numbers["seeds"][side][0]]
    asked = gallery.questions_of(rows, systems, numbers["scores"])
    leading = "ours" if "ours" in numbers["systems"] else numbers["systems"][0]
    pair = systems.index(f"{leading}, B"), systems.index(f"{leading}, A")
    seeds = " and ".join(str(numbers["seeds"][side][0]) for side in SIDES)
    in_order = gallery.in_order(asked, pair)
    return gallery.shown(in_order, {}, systems=systems, scores=numbers["scores"], pair=pair, n_all=len(asked), training_seed=seeds)


def _identity(row: Facts) -> tuple[str, str, tuple[str, ...]]:
    return row["question_id"], row["question"], tuple(row["references"])


def _judge_text(judge: Mapping[str, Any] | None) -> str:
    return "none" if judge is None else f"{judge.get('model')} (set {judge['set'] or 'not named'})"
