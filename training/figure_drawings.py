"""Figures that were made (figure.json) -> what the page draws of them: heatmaps, curves, each with its table.

`training/figures` makes the numbers and says what they mean; here they are only put into rows, columns and lines. A figure without
a single measured cell is left out.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from training.plots import Curves, curves, shade
from training.verdicts import signed

SCORE = "token_f1"  # the paper's, of every figure
SYSTEMS = {
    "ours": "ours",
    "again": "base, the video read again for each question",
    "frames": "base, frames kept",
    "connector": "base, visual tokens kept",
    "kv_cache": "base, KV cache kept",
}

Facts = Mapping[str, Any]
Drawing = dict[str, Any]


def drawings(figures: Sequence[Facts]) -> list[Drawing]:
    """In the order of the paper."""
    kinds: dict[str, Callable[[Facts], list[Drawing]]] = {
        "sweep": _sweep,
        "efficiency": _efficiency,
        "composition": _composition,
        "pruning": _pruning,
    }
    return [drawing for table, draw in kinds.items() for one in figures if one["table"] == table for drawing in draw(one)]


def _sweep(figure: Facts) -> list[Drawing]:
    cells = {(one["frame_cap"], one["longest_edge_px"]): one for one in figure["cells"] if one["n_videos"]}
    if not cells:
        return []
    caps, edges = (sorted({place[i] for place in cells}) for i in (0, 1))
    rivals = {place: "base" if one["n_base_fits"] == one["n_videos"] else "sampled" for place, one in cells.items()}

    def of(title: str, value: Callable[[Facts, str], float | None], text: Callable[[float], str], note: str, *, shaded: bool) -> Drawing:
        found = {place: value(one, rivals[place]) for place, one in cells.items()}
        reach = max((abs(one) for one in found.values() if one is not None), default=0.0)
        rows = []
        for cap in caps:
            line = []
            for edge in edges:
                one, rival = found.get((cap, edge)), rivals.get((cap, edge))
                told = "–" if one is None else text(one) + (" *" if rival == "sampled" else "")
                line.append({"text": told, "shade": shade(one, reach) if shaded else ""})
            frames = [cells[cap, edge]["frames"] for edge in edges if (cap, edge) in cells]
            rows.append({"name": f"{cap} (in fact {frames[0]['mean']:.1f})", "cells": line})
        columns = [f"{edge} px" for edge in edges]
        return {"title": title, "curves": None, "table": _table(title, "Frames at most", columns, rows, note)}

    starred = "sampled" in rivals.values()
    fits = "* base does not fit its context for every clip: fewer of its frames stand in for it." if starred else ""
    clips = _clips(figure)
    about = f"{clips} In brackets the mean number of frames the clips had. {fits}".rstrip()
    return [
        of("Sweep: token F1, ours − base", _difference, signed, about, shaded=True),
        of("Sweep: time to the first token, base over ours", _speedup, lambda one: f"{one:.1f} ×", fits, shaded=False),
        of("Sweep: input tokens, base over ours", _reduction, lambda one: f"{one:.1f} ×", fits, shaded=False),
    ]


def _clips(figure: Facts) -> str:
    """How much was drawn, and what of it could not be measured."""
    return f"{figure['n_questions']} questions about {figure['n_videos']} clips.{_left_out(figure)}"


def _left_out(figure: Facts) -> str:
    if not figure["left_out"]:
        return ""
    reasons = Counter(one["reason"] for one in figure["left_out"])
    measured = [one["n_videos"] for one in figure.get("cells", [])]
    told = f" Measured: {min(measured)} to {max(measured)} clips." if measured else ""
    return f" Left out: {', '.join(f'{n} for {reason}' for reason, n in sorted(reasons.items()))}.{told}"


def _difference(cell: Facts, rival: str) -> float | None:
    found = (cell["differences"].get(f"ours - {rival}") or {}).get(SCORE)
    return None if found is None else float(found["value"])


def _speedup(cell: Facts, rival: str) -> float | None:
    return _ratio(cell["systems"], rival, "ttft_s")


def _reduction(cell: Facts, rival: str) -> float | None:
    return _ratio(cell["systems"], rival, "n_input_tokens")


def _ratio(systems: Facts, rival: str, name: str) -> float | None:
    both = [(systems.get(system) or {}).get(name) for system in (rival, "ours")]
    return None if None in both or not both[1] else float(both[0] / both[1])


def _efficiency(figure: Facts) -> list[Drawing]:
    spread = figure["amortised_s"]
    if not spread:
        return []
    n_questions = [int(n) for n in next(iter(spread.values()))]
    lines = {SYSTEMS.get(system, system): [of[str(n)]["value"] for n in n_questions] for system, of in spread.items()}
    columns = [f"n = {n}" for n in n_questions]
    title = "Seconds for each of n questions about a video, preparing included"
    parts = "; ".join(f"{part} {1000 * one['value']:.1f} ms" for part, one in figure["parts_s"].items() if one["value"] is not None)
    note = f"Medians, mean over {figure['n_measured']} clips, on {figure['device']}. Parts: {parts}.{_left_out(figure)}"
    drawn = curves([float(n) for n in n_questions], lines)
    return [{"title": title, "curves": drawn, "table": _table("The same as numbers", "Rival", columns, _rows(lines, 4), note)}]


def _composition(figure: Facts) -> list[Drawing]:
    cells = [one for one in figure["cells"] if one["n_videos"]]
    if not cells:
        return []
    systems = list(dict.fromkeys(system for one in cells for system in one["systems"]))
    fits = [(one["n_one_pass_fits"], one["n_videos"]) if "one_pass" in one["systems"] else (0, 0) for one in cells]
    lines = {system.replace("_", " "): [_score(one["systems"].get(system)) for one in cells] for system in systems}
    rows = _rows(lines, 3)
    for told, (n, n_videos) in zip(rows[systems.index("one_pass")]["cells"] if "one_pass" in systems else (), fits, strict=False):
        told["text"] += f" (fits {n}/{n_videos})" if n < n_videos else ""
    title = "Composition: token F1 by the number of chunks"
    note = f"{_clips(figure)} A clip of few frames has a chunk for each and no more."
    if any(n < n_videos for n, n_videos in fits):
        note += " Fits n/m: one pass is of the n clips of m whose frames fit the VLM at once."
    chunks = [one["n_chunks"] for one in cells]
    drawn = _drawn([float(n) for n in chunks], lines)
    return [{"title": title, "curves": drawn, "table": _table("The same as numbers", "Adapter", list(map(str, chunks)), rows, note)}]


def _pruning(figure: Facts) -> list[Drawing]:
    cells = [one for one in figure["cells"] if one["n_videos"]]
    if not cells:
        return []
    systems = list(cells[0]["systems"])
    rows = [
        {"name": one["kept"], "cells": [{"text": _text(_score(one["systems"].get(system)), 3), "shade": ""} for system in systems]}
        for one in cells
    ]
    title = "Pruning: token F1 with some directions of the adapter's rank"
    note = f"{_clips(figure)} Directions by strength, strongest first."
    columns = [system.replace("_", " ") for system in systems]
    return [{"title": title, "curves": None, "table": _table(title, "Kept", columns, rows, note)}]


def _drawn(x: Sequence[float], lines: Mapping[str, Sequence[float | None]]) -> Curves | None:
    return curves(x, lines) if len(x) > 1 else None


def _score(system: Facts | None) -> float | None:
    return None if system is None else system[SCORE]


def _rows(lines: Mapping[str, Sequence[float | None]], digits: int) -> list[Drawing]:
    return [{"name": name, "cells": [{"text": _text(one, digits), "shade": ""} for one in line]} for name, line in lines.items()]


def _text(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _table(title: str, corner: str, columns: Sequence[str], rows: Sequence[Facts], note: str) -> Drawing:
    return {"title": title, "corner": corner, "columns": columns, "rows": rows, "note": note}
