"""The two benchmarks that nobody published: the recipe's made world, and anyone's own questions in JSON Lines.

made_world   renders the clips (as `video2lora clips`) and takes the test clips and what is asked of them
jsonl        uri, question, references and, where wanted, style, task (question, caption), benchmark, start_s, end_s: a row of `manifest`'s
             questions file, whose video need not be in a manifest
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from infra.config import Recipe, Where
from infra.digests import short_hash
from infra.errors import BadInputError
from pipeline.benchmarks.catalogue import JSONL, MADE_WORLD
from pipeline.benchmarks.draw import drawn
from pipeline.benchmarks.found import Folder
from pipeline.benchmarks.items import Item, read_file
from pipeline.benchmarks.wanted import Wanted
from pipeline.made_world import clips
from pipeline.source_rows import QuestionRow, parse_question
from pipeline.sources import Source, SourceRow, read_jsonl, read_source


def made_world(recipe: Recipe, where: Where, *, n: int | None, seed: int) -> Wanted:
    """The made world's test clips and questions. Raises BadInputError where the recipe has none, and as `clips.run`."""
    clips.run(recipe, where)
    folder = f"{where.data.rstrip('/')}/clips"
    source, asked = read_source(f"{folder}/clips.jsonl"), read_jsonl(f"{folder}/questions.jsonl")
    videos = replace(source, rows=[row for row in source.rows if row.fields.get("split") == "test"])
    tested = {row.path for row in videos.rows}
    asked = replace(asked, rows=[row for row in asked.rows if row.path in tested])
    chosen, _, told = _drawn(asked, benchmark=MADE_WORLD, n=n, seed=seed)
    world = recipe.world.model_dump(mode="json") if recipe.world else {}
    return Wanted(MADE_WORLD, videos, chosen, told | {"world": world})


def jsonl(annotations: Sequence[str], folder: str | None, where: Where, *, n: int | None, seed: int) -> Wanted:
    """A file of rows; its stem is the benchmark of those that name none. Raises BadInputError, StorageError."""
    if len(annotations) != 1:
        raise BadInputError(f"{JSONL}: got {len(annotations)} annotation files, expected one (run it once for each)")
    asked = read_jsonl(annotations[0], where.roots)
    if folder is not None:
        asked = replace(asked, folder=Folder(folder, where.roots).address)
    name = asked.address.rsplit("/", 1)[-1].split(".")[0]
    chosen, parsed, told = _drawn(asked, benchmark=name, n=n, seed=seed)
    if not parsed:
        why = parse_question(asked.rows[0], asked.roots, benchmark=name)
        detail = why["detail"] if isinstance(why, dict) else ""
        raise BadInputError(f"{asked.address}: no row asks anything: {detail}; expected uri, question and references")
    videos: dict[tuple[object, ...], SourceRow] = {}
    for row in chosen.rows:
        one = parsed.get(row.key)
        if one is not None:
            fields = {"uri": one.uri, "split": "test", "start_s": one.start_s, "end_s": one.end_s}
            videos.setdefault((one.uri, *one.span), SourceRow(row.key, fields))
    file = read_file(annotations[0])
    return Wanted(name, replace(chosen, rows=list(videos.values())), chosen, told | {"files": {file.name: file.digest}})


def _drawn(asked: Source, *, benchmark: str, n: int | None, seed: int) -> tuple[Source, dict[str, QuestionRow], dict[str, Any]]:
    """The rows that are asked, with all that are none; the good ones by their keys; and how they were drawn."""
    parsed: dict[str, QuestionRow] = {}
    for row in asked.rows:
        one = parse_question(row, asked.roots, benchmark=benchmark)
        if isinstance(one, QuestionRow):
            parsed[row.key] = one
    by_key, items = {row.key: row for row in asked.rows}, []
    for key, one in parsed.items():
        # The path as it was written: a folder that moved is asked the same.
        name = short_hash([by_key[key].path, *one.span, one.benchmark, one.style, one.question], n_digits=20)
        items.append(Item(key, name, (one.uri,), tuple(one.references)))
    chosen = drawn(items, n=n or 0, seed=seed, by="question")
    rows = [by_key[item.key] for item in chosen] + [row for row in asked.rows if row.key not in parsed]
    return replace(asked, rows=rows), parsed, {"n": n or 0, "seed": seed, "n_drawn": len(chosen), "n_of_all": len(items)}
