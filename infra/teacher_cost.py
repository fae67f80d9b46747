"""Prompts that are pending -> tokens to write and read, and hours on how many engines, at the rate last measured here.

Tokens per prompt are the mean of this set's rows, or of what was measured with these weights, or the recipe's limit: which it was is said.
Engines are those that will start, as far as it is known what there is room for (`infra.resources`), and an endpoint's GPUs are not ours.
The rate is one engine's, of the newest run of any set with the same weights that wrote something (see teacher/measures.py); without one,
hours are not guessed.
"""

import math
from typing import Any

import pyarrow.compute as pc

from infra.config import Recipe, Where
from infra.resources import engines_for, expected_room, gpus_per_engine
from infra.sets import sets_of
from infra.stage import Order
from infra.state import ROWS
from infra.storage import Table

N_SAMPLED = 16  # files of this set's rows, whose mean stands for all

Facts = dict[str, Any]


def teacher_cost(order: Order, recipe: Recipe, where: Where, *, n_prompts: int) -> Facts:
    """Raises StorageError."""
    measured = last_measured(where.data, order.made["weights"])
    per_target, how = _tokens_per_target(order.table, measured, recipe)
    n_engines = engines_for(n_prompts, where, room=expected_room(where))
    facts: Facts = {
        "weights": order.made["weights"],
        "n_prompts": n_prompts,
        "output_tokens": round(n_prompts * per_target),
        "output_tokens_from": how,
        "input_tokens": None,
        "n_engines": n_engines,
        "n_gpus": n_engines * gpus_per_engine(recipe.teacher.served_by, where),
        "measured": measured,
        "hours": 0.0 if not n_prompts else None,
    }
    if measured is not None:
        facts["hours"] = facts["output_tokens"] / measured["tokens_per_s"] / n_engines / 3600
        if measured["prompt_tokens_per_prompt"] is not None:
            facts["input_tokens"] = round(n_prompts * measured["prompt_tokens_per_prompt"])
    return facts


def last_measured(root: str, weights: str) -> Facts | None:
    """Of the newest run with these weights that wrote something: one engine's rate, and tokens per prompt. None if there was none."""
    found = []
    for table, made in sets_of(root, "targets"):
        if made.get("weights") == weights:
            found += [(entry["at"], table.set, entry["measures"]) for entry in table.log.read() if _tells(entry)]
    if not found:
        return None
    at, name, measures = sorted(found, key=lambda one: one[0])[-1]  # of one second, the later in its log
    n_tokens, n_prompts = measures["n_tokens"], measures.get("n_prompts") or 0
    return {
        "set": name,
        "at": at,
        "tokens_per_s": n_tokens / _up_s(measures),
        "tokens_per_prompt": n_tokens / n_prompts if n_prompts else None,
        "prompt_tokens_per_prompt": measures["n_prompt_tokens"] / n_prompts if n_prompts and measures.get("n_prompt_tokens") else None,
        "device": measures.get("device"),
        "n_engines": measures.get("n_engines"),
    }


def print_cost(facts: Facts) -> None:
    """Lines on what the teacher would cost."""
    n_engines, measured = facts["n_engines"], facts["measured"]
    about = "" if facts["is_exact"] else "about "
    read = "tokens to read not measured" if facts["input_tokens"] is None else f"{facts['input_tokens']:,} tokens to read"
    print(
        f"teacher {facts['weights']}: {about}{facts['n_prompts']:,} prompts pending, {read}, "
        f"{facts['output_tokens']:,} to write ({facts['output_tokens_from']})"
    )
    if not facts["n_prompts"]:
        return
    on = f"{n_engines} engine{'s' if n_engines > 1 else ''}, {facts['n_gpus']:g} GPUs"
    if measured is None:
        print(f"hours: never measured here with these weights; {on} (VIDEO2LORA_TEACHER_REPLICAS, VIDEO2LORA_TEACHER_GPUS)")
        return
    device = f" on {measured['device']}" if measured["device"] else ""
    rate = f"{measured['tokens_per_s']:,.1f} tokens/s of an engine{device}, measured here in {measured['set']}, {measured['at']}"
    print(f"hours: {about}{facts['hours']:,.2f} on {on}, start-up excluded, at {rate}")


def _tokens_per_target(table: Table, measured: Facts | None, recipe: Recipe) -> tuple[float, str]:
    """Mean tokens, and what they are the mean of."""
    state = table.state()
    found, n = 0, 0
    for path in state.paths(ROWS)[:N_SAMPLED]:
        tokens = table.read_file(state.files[path], ["n_tokens"])["n_tokens"]
        found, n = found + (pc.sum(tokens).as_py() or 0), n + len(tokens)
    if n:
        return found / n, f"mean of {n:,} rows of this set"
    if measured is not None and measured["tokens_per_prompt"] is not None:
        return measured["tokens_per_prompt"], f"mean measured in {measured['set']}"
    return float(recipe.teacher.max_tokens), "teacher.max_tokens of the recipe for each, as no row is there"


def _tells(entry: Facts) -> bool:
    measures = entry.get("measures") or {}
    return entry["kind"] == "complete" and bool(measures.get("n_tokens")) and math.isfinite(_up_s(measures)) and _up_s(measures) > 0


def _up_s(measures: Facts) -> float:
    """Seconds that engines were up and not starting, all together."""
    return float(sum(measures.get(name) or 0.0 for name in ("engine_s", "prepare_s", "waiting_s")))
