"""A report's numbers -> what holds and what does not, in plain words: the head of its page, and of what the command prints.

Only the leading score is told in words (the judge's where there is one, else token F1), the rest stands in the tables. A claim counts as
held after Holm's correction over benchmarks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NAMES = {
    "base": "base",
    "sampled": "base on fewer frames",
    "ours": "ours",
    "merged": "ours merged into the weights",
    "composed": "ours composed of chunks",
    "other_video": "another video's adapter",
    "static": "the static adapter",
    "blind": "the question alone",
    "caption": "the teacher's caption",
    "champion": "the champion",
}
TOGETHER = "all together"
SCORE_NAMES = {"judge": "judge", "token_f1": "token F1", "exact_match": "exact match", "rouge_l": "ROUGE-L", "wups": "WUPS"}

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """A sentence with what it rests on, and whether it is good news; None where nothing is claimed."""

    holds: bool | None
    text: str
    detail: str = ""


@dataclass(frozen=True)
class Forest:
    """One claim, benchmark by benchmark. Each row's facts stand in the order of `margins`, and differ in nothing but their verdicts."""

    system: str
    against: str
    margins: tuple[float, ...]
    rows: dict[str, list[Facts]]


def forests(numbers: Facts, name: str) -> list[Forest]:
    """The claims of a score. What all benchmarks say together comes last, where there are several."""
    parts = dict(numbers["benchmarks"])
    if len(parts) > 1:
        parts[TOGETHER] = numbers["overall"]
    found: dict[tuple[str, str], dict[str, list[Facts]]] = {}
    for benchmark, one in parts.items():
        for claimed in one["claims"][name]:
            found.setdefault((claimed["system"], claimed["against"]), {}).setdefault(benchmark, []).append(claimed)
    return [Forest(*pair, tuple(one["margin"] for one in next(iter(rows.values()))), rows) for pair, rows in found.items()]


def verdicts(numbers: Facts) -> list[Verdict]:
    """In the order in which they matter. `numbers` is the value of report.json."""
    name, alpha = numbers["primary"], numbers["recipe"]["evaluation"]["alpha"]
    found = []
    for forest in forests(numbers, name):
        rows = {benchmark: claimed for benchmark, claimed in forest.rows.items() if benchmark != TOGETHER}
        found += [_claim({of: claimed[i] for of, claimed in rows.items()}, name, alpha) for i in range(len(forest.margins))]
    return [*_unmarked(numbers), *found, *_losing(numbers, name), *_controls(numbers, name), *_broken(numbers)]


def _unmarked(numbers: Facts) -> list[Verdict]:
    """Answers that the judge gave no mark: claims are of the others, and need not hold for all."""
    missing = (numbers.get("judge") or {}).get("missing", {})
    if not missing:
        return []
    of = ", ".join(f"{n} of {NAMES[system]}" for system, n in missing.items())
    why = ", ".join(f"{reason} {n}" for reason, n in numbers["judge"]["rejects"].items())
    return [Verdict(None, f"{sum(missing.values())} answers have no mark by the judge: what is claimed is of the others", f"{of} ({why})")]


def interval_text(one: Facts) -> str:
    """A difference with its sign and interval; – where there is none."""
    if one["value"] is None:
        return "–"
    edges = "" if one["low"] is None else f" [{signed(one['low'])}, {signed(one['high'])}]"
    return signed(one["value"]) + edges


def signed(value: float) -> str:
    """With a true minus sign."""
    return f"{round(value, 3) + 0.0:+.3f}".replace("-", "−")  # + 0.0, or a zero may be a negative one


def holds(claimed: Facts, what: str, alpha: float) -> bool:
    """Whether a claim holds, after Holm's correction where it is one of several."""
    corrected = claimed.get(f"p_{what}_holm")
    return bool(claimed[what] and (corrected is None or corrected <= alpha))


def _claim(claimed: Mapping[str, Facts], name: str, alpha: float) -> Verdict:
    """One claim over all benchmarks: whether the first system is not worse, and as good, and where it does worst."""
    worse, equal = ({of: holds(one, what, alpha) for of, one in claimed.items()} for what in ("noninferior", "equivalent"))
    worst = min(claimed, key=lambda of: claimed[of]["value"])
    one = claimed[worst]
    first, both = one["smallest_noninferior"], one["smallest_equivalent"]
    alone = "taken alone, " if len(claimed) > 1 else ""  # Holm's correction is of p-values, and says nothing of a margin
    least = f"{first:.3f}" + (f", equivalent from {both:.3f}" if both > first else "")
    said = f"{interval_text(one)}; {alone}would hold from a margin of {least}"
    held = all(worse.values())
    pair = f"{NAMES[one['system']]} {'is' if held else 'is not shown to be'} as good as {NAMES[one['against']]}"
    text = f"{pair} within {one['margin']:g} on {SCORE_NAMES[name]}"
    if len(claimed) == 1:
        few = one["low"] is None or one["low"] > -one["margin"]  # the interval would do, were it of more clips
        known = "equivalent" if equal[worst] else "not worse" if held else "too few clips to tell" if few else "it may be worse"
        return Verdict(held, text, f"{known}, {said}")
    counted = f"not worse on {sum(worse.values())} of {len(claimed)} benchmarks, equivalent on {sum(equal.values())}"
    return Verdict(held, text, f"{counted}; worst on {worst}, {said}")


def _losing(numbers: Facts, name: str) -> list[Verdict]:
    """Styles in which ours does worse than base beyond chance: the whole interval is below 0. Each is taken alone."""
    losing = []
    for benchmark, one in numbers["benchmarks"].items():
        for style, of in one["styles"].items():
            claimed = next((c for c in of["claims"][name] if (c["system"], c["against"]) == ("ours", "base")), None)
            if len(one["styles"]) > 1 and claimed is not None and claimed["high"] is not None and claimed["high"] < 0:
                losing.append((claimed["value"], f"{benchmark}, {style} ({interval_text(claimed)})"))
    if not losing:
        return []
    worst, n = "; ".join(text for _, text in sorted(losing)[:4]), len(losing)
    return [Verdict(False, f"ours loses to base beyond chance in {n} style{'s' if n > 1 else ''}, each taken alone", worst)]


def _controls(numbers: Facts, name: str) -> list[Verdict]:
    """What another video's adapter and the static one gain over the question alone: the less, the more answers are about the video."""
    margin = numbers["recipe"]["evaluation"]["margin"]
    found = []
    for one in numbers["overall"]["differences"][name]:
        told = f"{NAMES[one['system']]} over {NAMES[one['against']]}: {interval_text(one)} on {SCORE_NAMES[name]}"
        if one["value"] is None or one["low"] is None:
            continue
        if one["system"] == "ours":
            found.append(Verdict(one["low"] > 0 if one["against"] == "blind" else None, told))
        else:
            small, some = one["high"] < margin, one["low"] > 0
            said = "too uncertain to say what it means"
            if small:
                said = f"less than {margin:g}, as it should be: answers depend on the video"
            elif some:
                said = "some of what adapters gain is how answers look, not what the video shows"
            found.append(Verdict(True if small else False if some else None, told, said))
    return found


def _broken(numbers: Facts) -> list[Verdict]:
    """Systems with broken answers."""
    broken = {system: (sum(of["degenerate"].values()), of["n_answers"]) for system, of in numbers["systems"].items()}
    told = ", ".join(f"{NAMES[system]} {100 * n / n_all:.1f} %" for system, (n, n_all) in broken.items() if n)
    return [Verdict(None, f"broken answers: {told or 'none'}", "empty, repeating themselves, or in another script")]
