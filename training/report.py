"""`answers` (and `judgements`) -> a report: its numbers (report.json), its rows (rows.parquet), a page to look at (report.html).

Reads    answers of every training seed, questions, frames, targets (bytes of the captions), judgements where the recipe has a judge,
         rejects of every stage, the hypernetwork's config.json, and the figures that were made of it.
Writes   reports/<VLM>-<hash of recipe and inputs>/: made.json, the three files, and last complete.json; a second run prints the tables
         from what is there. The files are attached to the MLflow run, if MLflow is in reach.
Command  video2lora report --recipe demo
Cost     the demo's 3,240 answers: about 4 s of one core, MLflow not counted.

Paper section 4.3 compares adapter and base; we add what it leaves out: blind, another video's adapter, the static adapter
alone, the teacher's caption as text. `measures` says how each number comes about, `page` and `gallery` how the page does.
"""

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra.config import Recipe, Where, load_recipe, load_where
from infra.digests import digest
from infra.errors import BadInputError
from infra.evaluation_config import JudgeModel
from infra.hypernetworks import champion_folder, vlm_label
from infra.objects import read_json, write_new
from infra.outputs import Output
from infra.parquet import to_parquet
from infra.sets import (
    FIGURES,
    REPORTS,
    answers_set,
    evaluated_hypernetwork,
    examples_set,
    frames_set,
    made_judgements,
    made_output,
    made_targets,
    outputs_of,
)
from infra.state import REJECTS
from infra.storage import Table
from training import costs, measures, report_rows
from training.answer import captions, frames_of
from training.report_table import print_tables

FILES = ("report.json", "report.html", "rows.parquet")
VERSION = 3  # raised when the same inputs would give other numbers

Facts = dict[str, Any]


def build(recipe: Recipe, where: Where, made_from: Facts, figures: list[Output]) -> dict[str, bytes]:
    """The report's files by name. Raises BadInputError where there is no answer to report."""
    from training import gallery, page  # jinja2 and pictures: not needed to find that there is nothing to do

    # 1. rows: question x system x training
    rows = report_rows.read(recipe, where)
    videos = {row["video_id"] for row in rows}
    frames = frames_of(recipe, where)
    frames = frames.filter(pc.is_in(frames["video_id"], pa.array(sorted(videos), pa.string())))
    # 2. scores, claims, costs
    systems = [system for system in recipe.answer.systems if any(row["system"] == system for row in rows)]
    told = measures.numbers(rows, systems, recipe.evaluation)
    config = read_json(f"{evaluated_hypernetwork(recipe.of_seeds()[0], where.data)[0]}/config.json")
    champion = champion_folder(recipe)
    said = captions(made_targets(recipe, where.data).read().to_pylist()) if "caption" in systems else {}
    numbers = {
        **told,
        "split": recipe.answer.split,
        "kept_bytes_per_video": costs.kept_bytes(
            told["systems"],
            jpeg_bytes=[sum(map(len, one)) for one in frames["jpegs"].to_pylist()],
            captions=[text for video_id, text in said.items() if video_id in videos],
            hypernetwork=config["hypernetwork"],
            champion=None if champion is None else read_json(f"{champion.rstrip('/')}/config.json")["hypernetwork"],
            n_chunks=recipe.answer.n_chunks,
            n_kv_values=n_kv_values(recipe),
        ),
        "judge": of_judge(recipe, where, rows),
        "rejects": rejects_by_reason(recipe, where),
        "drawn": {
            "benchmarks": Table(where.data, "questions").made_from()["asked"].get("benchmarks", {}),  # of those that were drawn
            "question_ids": sorted({row["question_id"] for row in rows}),
        },
        "figures": [{"name": one.name, **read_json(f"{one.folder}/figure.json")} for one in figures],
        "recipe": recipe.model_dump(mode="json"),
        "hypernetwork": config.get("metadata", {}),
        "made_from": made_from,
    }
    # 3. files
    shown = gallery.show(rows, frames, systems=systems, scores=told["scores"])
    return {
        "report.json": json.dumps(numbers, indent=1).encode(),
        "report.html": page.render_report(numbers, shown).encode(),
        "rows.parquet": to_parquet(pa.Table.from_pylist(rows, report_rows.SCHEMA)),
    }


def run(recipe: Recipe, where: Where) -> str:
    """Make the report, or say that it is there, and print its tables. Raises BadInputError, StorageError."""
    report, made_from, figures = output_of(recipe, where)
    fresh = report.begin(made_from)
    if fresh:
        files = build(recipe, where, made_from, figures)
        attach(recipe, where, files)
        for name in FILES:
            write_new(f"{report.folder}/{name}", files[name])
        report.complete()
    numbers = read_json(f"{report.folder}/report.json")
    print_tables(numbers)
    gap = numbers["gap_closed"][numbers["primary"]]["value"]
    told = "gap closed: not measured" if gap is None else f"gap closed {gap:.2f}"
    return f"report: {'' if fresh else 'complete, nothing to do; '}{told}; open {report.folder}/report.html"


def output_of(recipe: Recipe, where: Where) -> tuple[Output, Facts, list[Output]]:
    """The report's folder, what makes it, and its figures. Raises BadInputError where answers are not complete, or one was not judged."""
    inputs: Facts = {"answers": [answers_set(one, where.data).made_from() for one in recipe.of_seeds()]}
    inputs["wordnet"] = Path(where.wordnet).is_dir()  # without it there is no WUPS
    if recipe.judge is not None:
        inputs["judgements"] = _said_by(recipe.judge, recipe, where)
        report_rows.check_judged(recipe, where)
        if recipe.judge.second is not None:
            try:
                inputs["second"] = _said_by(recipe.judge.second, recipe, where)
            except BadInputError:  # it has not finished, and the report says nothing of it
                inputs["second"] = None
    figures = figures_of(recipe, where)
    inputs["figures"] = [one.name for one in figures]  # each is named by a hash of what made it
    made = {"stage": "report", "version": VERSION, "recipe": recipe.model_dump(mode="json"), "inputs": inputs}
    return made_output(where.data, REPORTS, vlm_label(recipe.vlm.model), made), made, figures


def _said_by(judge: JudgeModel, recipe: Recipe, where: Where) -> str:
    """A digest of what a judge said of the recipe's answers, and by which weights and rubrics."""
    said = report_rows.judgements_of(judge, recipe, where, columns=["judgement_id", "points"]).to_pylist()
    return digest([made_judgements(judge, where.data).set, *(f"{row['judgement_id']} {row['points']}" for row in said)])


def figures_of(recipe: Recipe, where: Where) -> list[Output]:
    """Complete figures of the recipe's hypernetworks, by its settings and the questions that there are now."""
    if not outputs_of(where.data, FIGURES):
        return []
    from training.figures.composition import Composition  # torch and transformers: not needed where there is no figure
    from training.figures.efficiency import Efficiency
    from training.figures.figure import figure_output
    from training.figures.frames_resolution import Sweep
    from training.figures.pruning import Pruning

    every = (Sweep(), Efficiency(), Composition(), Pruning())
    found = [figure_output(figure, one, where) for one in recipe.of_seeds() for figure in every]
    return [one for one in found if one.is_complete()]


def attach(recipe: Recipe, where: Where, files: dict[str, bytes]) -> None:
    """The files as artifacts of the MLflow run."""
    from infra.tracking import log_artifacts

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in files]
        for path in paths:
            path.write_bytes(files[path.name])
        log_artifacts(where, recipe, [str(path) for path in paths])


def n_kv_values(recipe: Recipe) -> int:
    """Numbers in the keys and values that the VLM's text model keeps of one token."""
    from transformers import AutoConfig

    from video2lora.pretrained import vlm_path

    text = AutoConfig.from_pretrained(vlm_path(recipe.vlm.model), revision=recipe.vlm.revision).text_config
    d_head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    n_values: int = 2 * text.num_hidden_layers * text.num_key_value_heads * d_head
    return n_values


def of_judge(recipe: Recipe, where: Where, rows: list[Facts]) -> Facts | None:
    """Who judged, how many answers have no judgement and why, and how far a second judge agrees; None without a judge."""
    if recipe.judge is None:
        return None
    from training.agreement import with_second

    rejects = report_rows.judgements_of(recipe.judge, recipe, where, columns=["key", "reason"], kind=REJECTS)
    return {
        "model": recipe.judge.model,
        "set": made_judgements(recipe.judge, where.data).set,  # named by its weights and rubrics too
        "n_judged": sum(row["judge"] is not None for row in rows),
        "missing": dict(Counter(row["system"] for row in rows if row["judge"] is None)),
        "rejects": dict(Counter(rejects["reason"].to_pylist())),
        "agreement": with_second(recipe, where) if recipe.judge.second is not None else None,
    }


def rejects_by_reason(recipe: Recipe, where: Where) -> list[Facts]:
    """Rejects of all stages, counted, with one detail as an example."""
    tables = [Table(where.data, "videos"), Table(where.data, "questions"), frames_set(recipe, where.data)]
    if recipe.answer.hypernetwork is None:  # else nothing was trained here
        targets = made_targets(recipe, where.data)
        tables += [targets, examples_set(recipe, targets)]
    tables += [answers_set(one, where.data) for one in recipe.of_seeds()]
    rows = [row for table in tables for row in table.read_rejects().to_pylist()]
    counts = Counter((row["stage"], row["reason"]) for row in rows)
    example = {(row["stage"], row["reason"]): row["detail"] for row in reversed(rows)}
    return [{"stage": stage, "reason": reason, "n": n, "example": example[stage, reason]} for (stage, reason), n in sorted(counts.items())]


def main() -> None:
    """python -m training.report [RECIPE]"""
    print(run(load_recipe(sys.argv[1] if len(sys.argv) > 1 else "demo"), load_where()))


if __name__ == "__main__":
    main()
