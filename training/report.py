"""`answers` -> <data>/report: what the figures are (report.json), a page to look at (report.html), a table on standard output.

Reads    answers, questions, frames, targets (bytes of the captions), rejects of every stage, the hypernetwork's config.json and made.json.
Writes   report/made.json, report.json, report.html, and last complete.json; a second run prints the table from what is there.
         Both files are attached to the MLflow run, if MLflow is in reach.
Command  video2lora report --recipe demo
Cost     the demo's 3,240 answers: about 4 s of one core, MLflow not counted.

Paper section 4.3 compares adapter and base; we add what it leaves out: blind, another video's adapter, the static adapter
alone, the teacher's caption as text. `measures` says how each number comes about, `gallery` how the page does.
"""

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from infra.config import Recipe, Where, load_recipe, load_where
from infra.errors import BadInputError
from infra.objects import read_json, write_new
from infra.outputs import Output
from infra.sets import answers_set, examples_set, frames_set, made_targets, trained_hypernetwork
from infra.storage import Table
from training import measures
from training.answer import captions, frames_of

FILES = ("report.json", "report.html")
NARROWEST = 110  # columns of a terminal that the table needs


def build(recipe: Recipe, where: Where, made_from: dict[str, Any]) -> dict[str, bytes]:
    """The report's files by name. Raises BadInputError where there is no answer to report."""
    from training import gallery  # jinja2 and pictures: not needed to find that there is nothing to do

    # 1. rows
    answers = answers_set(recipe, where.data).read().to_pylist()
    if not answers:
        raise BadInputError(f"{where.data}/answers is empty: all questions were rejected, there is nothing to report")
    answered = {row["question_id"] for row in answers}
    questions = [row for row in Table(where.data, "questions").read().to_pylist() if row["question_id"] in answered]
    videos = {row["video_id"] for row in questions}
    frames = [row for row in frames_of(recipe, where).to_pylist() if row["video_id"] in videos]
    # 2. scores, means, intervals
    scored = measures.score(answers, questions)
    systems = recipe.answer.systems
    config = read_json(f"{trained_hypernetwork(recipe, where.data).folder}/config.json")
    said = captions(made_targets(recipe, where.data).read().to_pylist()) if "caption" in systems else {}
    kept = measures.kept_bytes(
        scored,
        frames=frames,
        captions=said,
        hypernetwork=config["hypernetwork"],
        kv_bytes_per_token=kv_bytes_per_token(recipe),
    )
    clips = gallery.sample_clips(scored, questions=questions, frames=frames)
    numbers = {
        "counts": {"videos": len(videos), "questions": len(questions), "answers": len(answers)},
        "systems": measures.by_system(scored, systems),
        "kept_bytes_per_video": {system: kept[system] for system in systems},
        "gap_closed": {metric: measures.gap_closed(scored, metric) for metric in measures.METRICS},
        "differences": measures.differences(scored, systems),
        "families": measures.by_family(scored, systems),
        "rejects": rejects_by_reason(recipe, where),
        "gallery": {"seed": gallery.SEED, "n_clips": len(clips)},
        "recipe": recipe.model_dump(mode="json"),
        "hypernetwork": config["metadata"],
        "made_from": made_from,
    }
    # 3. files
    return {
        "report.json": json.dumps(numbers, indent=1).encode(),
        "report.html": gallery.render(numbers, clips).encode(),
    }


def run(recipe: Recipe, where: Where) -> str:
    """Make the report, or say that it is there, and print its table. Raises BadInputError, MadeFromOtherError, StorageError."""
    report = Output(where.data, "report")
    made_from = {
        "stage": "report",
        "recipe": recipe.model_dump(mode="json"),
        "inputs": {"answers": answers_set(recipe, where.data).made_from()},
    }
    fresh = report.begin(made_from)
    if fresh:
        files = build(recipe, where, made_from)
        attach(recipe, where, files)
        for name in FILES:
            write_new(f"{report.folder}/{name}", files[name])
        report.complete()
    numbers = read_json(f"{report.folder}/report.json")
    print_tables(numbers)
    gap = numbers["gap_closed"]["exact_match"]["value"]
    told = "gap closed: not measured" if gap is None else f"gap closed {gap:.2f}"
    return f"report: {'' if fresh else 'complete, nothing to do; '}{told}; open {report.folder}/report.html"


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


def rejects_by_reason(recipe: Recipe, where: Where) -> list[dict[str, Any]]:
    """Rejects of all stages, counted, with one detail as an example."""
    targets = made_targets(recipe, where.data)
    tables = [Table(where.data, "videos"), Table(where.data, "questions"), frames_set(recipe, where.data), targets]
    tables += [examples_set(recipe, targets), answers_set(recipe, where.data)]
    rows = [row for table in tables for row in table.read_rejects().to_pylist()]
    counts = Counter((row["stage"], row["reason"]) for row in rows)
    example = {(row["stage"], row["reason"]): row["detail"] for row in reversed(rows)}
    return [{"stage": stage, "reason": reason, "n": n, "example": example[stage, reason]} for (stage, reason), n in sorted(counts.items())]


def print_tables(numbers: dict[str, Any]) -> None:
    """Systems and families, on standard output."""
    console = Console()
    console = Console(width=max(console.width, NARROWEST))
    counts = numbers["counts"]
    systems = Grid(
        title=f"{counts['questions']} questions about {counts['videos']} clips of split {numbers['recipe']['answer']['split']}",
        title_justify="left",
    )
    for heading in ("system", "exact match", "token F1", "input tokens", "visual", "first token ms", "kept per video"):
        systems.add_column(heading, justify="left" if heading in ("system", "kept per video") else "right")
    for system, row in numbers["systems"].items():
        ttft_ms = None if row["ttft_s"] is None else 1000 * row["ttft_s"]
        kept = "\n".join(f"{form} {measures.size_text(n_bytes)}" for form, n_bytes in numbers["kept_bytes_per_video"][system].items())
        costs = (_text(row["n_input_tokens"], 1), _text(row["n_visual_tokens"], 1), _text(ttft_ms, 1))
        systems.add_row(system, _text(row["exact_match"]), _text(row["token_f1"]), *costs, kept)
    console.print(systems)
    families = Grid(title="exact match by family", title_justify="left")
    for heading in ("family", "questions", *numbers["systems"], "gap closed"):
        families.add_column(heading, justify="left" if heading == "family" else "right")
    for family, row in numbers["families"].items():
        scores = [_text(row["exact_match"][system]) for system in numbers["systems"]]
        families.add_row(family, str(row["n_questions"]), *scores, _text(row["gap_closed"]["exact_match"]["value"]))
    console.print(families)
    gap = numbers["gap_closed"]["exact_match"]
    interval = "" if gap["low"] is None else f", 95 % interval {gap['low']:.3f} to {gap['high']:.3f} over clips"
    console.print(f"gap closed, (ours - blind) / (base - blind): {_text(gap['value'])}{interval}", highlight=False)


def _text(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def main() -> None:
    """python -m training.report [RECIPE]"""
    print(run(load_recipe(sys.argv[1] if len(sys.argv) > 1 else "demo"), load_where()))


if __name__ == "__main__":
    main()
