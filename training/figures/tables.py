"""A figure's numbers -> its table on standard output, with the paper's beside them where the model is one of the paper's."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from training.costs import size_text
from training.figures import paper
from training.figures.efficiency import PARTS, SYSTEMS
from training.report_table import plain

Facts = Mapping[str, Any]


def sweep(found: Facts, model: str | None) -> RenderableType:
    """A line a cell. Where the base does not fit on every video, ours is compared with `sampled`."""
    headings = ["frames", "px", "really", "base", "sampled", "ours", "F1, ours − base", "exact match", "broken base", "ours"]
    headings += ["tokens base", "ours", "first token base, ms", "ours", "faster"] + (["paper F1", "faster", "tokens"] if model else [])
    rows = []
    for cell in found["cells"]:
        systems, n_videos = cell["systems"], cell["n_videos"]
        against = "base" if "sampled" not in systems else "sampled"
        rival, ours = systems.get(against, {}), systems.get("ours", {})
        base_f1 = score(systems.get("base", {}).get("token_f1"))
        star = " *" if against == "sampled" else ""
        if cell["n_base_fits"] < n_videos:
            base_f1 = f"{base_f1} (fits {cell['n_base_fits']}/{n_videos})" if "base" in systems else "does not fit"
        of = cell["differences"].get(f"ours - {against}", {})
        rows.append(
            [
                str(cell["frame_cap"]), str(cell["longest_edge_px"]), spread(cell["frames"]), base_f1,
                score(systems.get("sampled", {}).get("token_f1")), score(ours.get("token_f1")),
                difference(of.get("token_f1")) + star, difference(of.get("exact_match")) + star, share(rival.get("degenerate")) + star,
                share(ours.get("degenerate")), score(rival.get("n_input_tokens"), 0) + star, score(ours.get("n_input_tokens"), 0),
                starred(ms(rival.get("ttft_s")), star), ms(ours.get("ttft_s")),
                starred(times(rival.get("ttft_s"), ours.get("ttft_s")), star),
                *beside_sweep(cell, model),
            ]
        )  # fmt: skip
    below = [f"{cell['n_below_cap']} of {cell['n_videos']} at {cell['frame_cap']}" for cell in found["cells"] if cell["n_below_cap"]]
    notes = [f"clips of fewer frames than the cap: {'; '.join(dict.fromkeys(below))}"] if below else []
    if any("sampled" in cell["systems"] for cell in found["cells"]):
        notes.append("* base does not fit its context for every clip: fewer of its frames (sampled) stand in for it")
    return told(grid("Frames and resolution; differences with 95 % intervals over videos", headings, rows), found, notes)


def beside_sweep(cell: Facts, model: str | None) -> list[str]:
    """The paper's cell of this cap and edge."""
    if model is None:
        return []
    one = paper.SWEEP.get((model, cell["frame_cap"], cell["longest_edge_px"]))
    return ["", "", ""] if one is None else [f"{one.token_f1:+.2f}", f"{one.faster:g}x", f"{one.fewer_tokens:g}x"]


def efficiency(found: Facts, model: str | None) -> RenderableType:
    """Parts, systems, and the cost of a question when n are asked."""
    if not found["n_measured"]:
        return told(Text("no video could be measured"), found, [])
    parts = grid(
        f"Parts of a video, on {found['device']}; means with 95 % intervals over {found['n_measured']} videos, "
        f"{spread(found['frames'])} frames",
        ["part", "ms"],
        [[part, interval_ms(found["parts_s"][part])] for part in PARTS],
    )
    rows = []
    for system in SYSTEMS:
        of = found["systems"][system]
        pays = "" if system == "ours" else "never" if of["break_even"] is None else f"{of['break_even']:.1f} questions"
        costs = [interval_ms(of["prepare_s"]), interval_ms(of["query_s"]), score(of["n_input_tokens"], 0), size_text(of["kept_bytes"])]
        rows.append([system, *costs, pays])
    headings = ["system", "prepare, ms", "first token, ms", "tokens", "kept per video", "ours pays after"]
    systems = grid("What is done once, and for each question", headings, rows)
    numbers = list(next(iter(found["amortised_s"].values())))
    rows = [[system, *(ms(found["amortised_s"][system][n]["value"]) for n in numbers)] for system in SYSTEMS]
    if model:
        own = paper.AMORTISED_S[model]
        rows.append([f"paper, ours ({model})", *(ms(own.get(int(n))) for n in numbers)])
        rows.append([f"paper, base ({model})", *(ms(paper.BASE_S[model]) if n == "1" else "" for n in numbers)])
    spread_over = grid("ms a question when n are asked: (preparing + n questions) / n", ["system", *numbers], rows)
    return told(Group(parts, systems, spread_over), found, [])


def composition(found: Facts, model: str | None) -> RenderableType:
    """A line for each number of chunks."""
    systems = ("composed", "whole", "one_pass", "half")
    headings = ["chunks", "really", "frames", *(f"F1 {one}" for one in systems), "composed − whole", "− one pass", "− half", "broken"]
    headings += ["same reversed", "shuffled"] + (["paper composed", "whole"] if model else [])
    rows, is_partial = [], False
    for cell in found["cells"]:
        of = cell["systems"]
        pairs = [difference(cell["differences"].get(f"composed - {one}", {}).get("token_f1")) for one in systems[1:]]
        same = [share(cell["same_answers"].get(one)) for one in ("reversed", "shuffled")]
        beside = [score(one) for one in paper.COMPOSED_F1[model]] if model and cell["n_chunks"] == 2 else [""] * (2 if model else 0)
        means = [score(of.get(one, {}).get("token_f1")) for one in systems]
        if cell["n_one_pass_fits"] < cell["n_videos"] and cell["n_chunks"] > 1:
            means[2] = f"{means[2]} (fits {cell['n_one_pass_fits']}/{cell['n_videos']})"
            is_partial = True
        broken = share(of.get("composed", {}).get("degenerate"))
        chunks = [str(cell["n_chunks"]), spread(cell["chunks"]), spread(cell["frames"])]
        rows.append([*chunks, *means, *pairs, broken, *same, *beside])
    grids = [grid("Composition; differences of token F1 with 95 % intervals over videos", headings, rows)]
    styles = sorted({style for cell in found["cells"] for style in cell["styles"]})
    if len(styles) > 1:
        headings = ["style", *(f"{cell['n_chunks']}" for cell in found["cells"])]
        of_style = []
        for style in styles:
            by_cell = [cell["styles"].get(style, {}).get("token_f1", {}).get("composed") for cell in found["cells"]]
            of_style.append([style, *(score(one) for one in by_cell)])
        grids.append(grid("Token F1 of composed by style and number of chunks", headings, of_style))
    notes = ["fits n/m: one pass is of the n clips of m whose frames fit the VLM at once; − one pass compares on those alone"]
    return told(Group(*grids), found, notes if is_partial else [])


def pruning(found: Facts, model: str | None) -> RenderableType:
    """A line for each choice of directions."""
    names = list(found["cells"][0]["systems"])
    headings = ["kept", "directions"]
    for name in names:
        headings += [f"F1 {name.replace('_', ' ')}", "exact match", "F1 − that of all", "broken"]
    pruned = paper.PRUNED_F1.get(model or "")
    rows = []
    for cell in found["cells"]:
        row = [cell["kept"].replace("-", " "), str(cell["n_kept"])]
        for name in names:
            of = cell["systems"][name]
            against = difference((cell["to_all"][name] or {}).get("token_f1"))
            row += [score(of["token_f1"]), score(of["exact_match"]), against, share(of["degenerate"])]
        rows.append(row + ([score(pruned.get(cell["kept"]), 4)] if pruned else []))
    whole = found["cells"][0]
    strongest = ", ".join(f"{direction} in {n}" for direction, n in whole["strongest"].items())
    notes = [f"strongest direction: {strongest} of {whole['n_videos']} videos; {whole['n_orders']} orders of strength among them"]
    return told(grid("Directions of the adapter's rank", headings + (["paper F1"] if pruned else []), rows), found, notes)


def told(body: RenderableType, found: Facts, notes: Sequence[str]) -> RenderableType:
    """The tables, and below them how much they are of and what was left out."""
    lines = [f"{found['n_questions']} questions about {found['n_videos']} videos", *notes]
    if found["left_out"]:
        reasons: dict[str, int] = {}
        for one in found["left_out"]:
            reasons[one["reason"]] = reasons.get(one["reason"], 0) + 1
        lines.append("left out: " + ", ".join(f"{n} for {reason}" for reason, n in sorted(reasons.items())))
    return Group(body, *map(plain, lines))


def grid(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Grid:
    """Texts may come from data: none is read as markup, none controls a terminal."""
    made = Grid(title=plain(title), title_justify="left")
    for number, heading in enumerate(headings):
        made.add_column(plain(heading), justify="right" if number else "left")
    for row in rows:
        made.add_row(*map(plain, row))
    return made


def score(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def starred(told: str, star: str) -> str:
    """An empty cell stays empty."""
    return told + star if told else ""


def ms(value_s: float | None) -> str:
    return "" if value_s is None else f"{1000 * value_s:.1f}"


def times(base: float | None, ours: float | None) -> str:
    return "" if not base or not ours else f"{base / ours:.1f}x"


def spread(one: Facts) -> str:
    """A mean, and between what its values lie where they differ."""
    if one["mean"] is None:
        return "–"
    return f"{one['mean']:g}" if one["min"] == one["max"] else f"{one['mean']:.1f} ({one['min']}–{one['max']})"


def difference(one: Facts | None) -> str:
    """With its sign and interval."""
    if not one or one["value"] is None:
        return "–"
    edges = "" if one["low"] is None else f" [{one['low']:+.3f}, {one['high']:+.3f}]"
    return f"{one['value']:+.3f}{edges}"


def interval_ms(one: Facts) -> str:
    edges = "" if one["low"] is None else f" [{1000 * one['low']:.1f}, {1000 * one['high']:.1f}]"
    return f"{1000 * one['value']:.1f}{edges}"
