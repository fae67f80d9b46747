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
from infra.objects import read_json, write_new
from infra.outputs import Output
from infra.parquet import to_parquet
from infra.sets import (
    FIGURES,
    REPORTS,
    answers_set,
    champion_folder,
    examples_set,
    frames_set,
    made_output,
    made_targets,
    outputs_of,
    trained_hypernetwork,
)
from infra.state import REJECTS
from infra.storage import Table
from training import costs, measures, report_rows
from training.answer import captions, frames_of
from training.report_table import print_tables

FILES = ("report.json", "report.html", "rows.parquet")

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
    config = read_json(f"{trained_hypernetwork(recipe.of_seeds()[0], where.data).folder}/config.json")
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
            kv_bytes_per_token=kv_bytes_per_token(recipe),
        ),
        "judge": of_judge(recipe, where, rows),
        "rejects": rejects_by_reason(recipe, where),
        "figures": [{"name": one.name, **read_json(f"{one.folder}/figure.json")} for one in figures],
        "recipe": recipe.model_dump(mode="json"),
        "hypernetwork": config["metadata"],
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
    """The report's folder, what makes it, and its figures. Raises BadInputError where answers or judgements are not complete."""
    inputs: Facts = {"answers": [answers_set(one, where.data).made_from() for one in recipe.of_seeds()]}
    if recipe.judge is not None:
        said = report_rows.judgements_of(recipe.judge, recipe, where, columns=["judgement_id", "points"])
        inputs["judgements"] = digest(f"{row['judgement_id']} {row['points']}" for row in said.to_pylist())
    figures = figures_of(recipe, where)
    inputs["figures"] = [one.name for one in figures]  # each is named by a hash of what made it
    made = {"stage": "report", "recipe": recipe.model_dump(mode="json"), "inputs": inputs}
    return made_output(where.data, REPORTS, recipe.vlm.model.rstrip("/").rsplit("/", 1)[-1], made), made, figures


def figures_of(recipe: Recipe, where: Where) -> list[Output]:
    """Complete figures of the recipe's hypernetworks."""
    own = [trained_hypernetwork(one, where.data).made_from() for one in recipe.of_seeds()]
    complete = (one for one in outputs_of(where.data, FIGURES) if one.is_complete())
    return [one for one in complete if one.made_from()["hypernetwork"] in own]


def attach(recipe: Recipe, where: Where, files: dict[str, bytes]) -> None:
    """The files as artifacts of the MLflow run."""
    from infra.tracking import log_artifacts

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in files]
        for path in paths:
            path.write_bytes(files[path.name])
        log_artifacts(where, recipe, [str(path) for path in paths])


def kv_bytes_per_token(recipe: Recipe) -> int:
    """Bytes of the keys and values that the VLM's text model keeps of one token."""
    from transformers import AutoConfig

    from video2lora.pretrained import vlm_path

    text = AutoConfig.from_pretrained(vlm_path(recipe.vlm.model), revision=recipe.vlm.revision).text_config
    d_head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    n_bytes: int = {"float32": 4, "bfloat16": 2}[recipe.vlm.dtype] * 2 * text.num_hidden_layers * text.num_key_value_heads * d_head
    return n_bytes


def of_judge(recipe: Recipe, where: Where, rows: list[Facts]) -> Facts | None:
    """Who judged, how many answers have no judgement and why, and how far a second judge agrees; None without a judge."""
    if recipe.judge is None:
        return None
    from training.agreement import with_second

    rejects = report_rows.judgements_of(recipe.judge, recipe, where, columns=["key", "reason"], kind=REJECTS)
    return {
        "model": recipe.judge.model,
        "n_judged": sum(row["judge"] is not None for row in rows),
        "missing": dict(Counter(row["system"] for row in rows if row["judge"] is None)),
        "rejects": dict(Counter(rejects["reason"].to_pylist())),
        "agreement": with_second(recipe, where) if recipe.judge.second is not None else None,
    }


def rejects_by_reason(recipe: Recipe, where: Where) -> list[Facts]:
    """Rejects of all stages, counted, with one detail as an example."""
    targets = made_targets(recipe, where.data)
    tables = [Table(where.data, "videos"), Table(where.data, "questions"), frames_set(recipe, where.data), targets]
    tables += [examples_set(recipe, targets), *(answers_set(one, where.data) for one in recipe.of_seeds())]
    rows = [row for table in tables for row in table.read_rejects().to_pylist()]
    counts = Counter((row["stage"], row["reason"]) for row in rows)
    example = {(row["stage"], row["reason"]): row["detail"] for row in reversed(rows)}
    return [{"stage": stage, "reason": reason, "n": n, "example": example[stage, reason]} for (stage, reason), n in sorted(counts.items())]


def main() -> None:
    """python -m training.report [RECIPE]"""
    print(run(load_recipe(sys.argv[1] if len(sys.argv) > 1 else "demo"), load_where()))


if __name__ == "__main__":
    main()
