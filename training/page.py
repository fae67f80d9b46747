"""A report's or a comparison's numbers and the rows to look through -> one HTML page that opens from disk.

No server, no network, no file beside it: pictures are data: URIs, style and script stand in the page, and its Content-Security-Policy
names the hashes of these two and forbids everything else. Every text comes from outside (clips, questions, a model's answers): jinja2
escapes what stands in the page; rows lie in it as JSON that cannot spell a tag, and the script puts them up as text and nothing else.
Should that ever fail, a script in an answer would still not run. Without a script the tables are there, and the rows are not.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from training import plots, verdicts
from training.costs import size_text
from training.figure_drawings import drawings
from training.gallery import SEED, Shown
from training.report_table import number

SYSTEM_NAMES = {
    "base": "base: the video in context",
    "sampled": "base, on fewer frames where all do not fit",
    "ours": "ours: the video's adapter, no visual token",
    "merged": "ours, merged into the weights",
    "composed": "ours, composed from the adapters of chunks",
    "other_video": "another video's adapter",
    "static": "the static adapter alone",
    "blind": "blind: the question alone",
    "caption": "the teacher's caption as text",
    "champion": "champion: another hypernetwork's adapter",
}

Facts = Mapping[str, Any]


def render_report(numbers: Facts, shown: Shown) -> str:
    """The page of a report. `numbers` is the value of report.json."""
    return _render(
        "report.html.j2",
        shown,
        numbers=numbers,
        verdicts=verdicts.verdicts(numbers),
        drawings=drawings(numbers["figures"]),
        axes={name: _axes(numbers, name) for name in numbers["scores"]},
        forests={name: verdicts.forests(numbers, name) for name in numbers["scores"]},
        alpha=numbers["recipe"]["evaluation"]["alpha"],
    )


def render_comparison(numbers: Facts, shown: Shown, *, lines: Sequence[str]) -> str:
    """The page of two reports side by side. `numbers` is what `compare` found, `lines` say what was compared."""
    return _render("compare.html.j2", shown, numbers=numbers, lines=lines)


def _render(template: str, shown: Shown, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "score": number,
        "interval": verdicts.interval_text,
        "signed": verdicts.signed,
        "size": size_text,
        "number": _number,
        "pretty": _pretty,
    }
    style = environment.get_template("page.css.j2").render()
    script = environment.get_template("page.js.j2").render()
    return environment.get_template(template).render(
        **values,
        shown=shown,
        data=Markup(inert_json({**shown.data, "score_names": verdicts.SCORE_NAMES})),
        order_seed=SEED,
        names=SYSTEM_NAMES,
        short=verdicts.NAMES,
        score_names=verdicts.SCORE_NAMES,
        holds=verdicts.holds,
        axis_of=plots.difference_axis,
        width=plots.WIDTH,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _axes(numbers: Facts, name: str) -> dict[str, plots.Axis]:
    """One for all claims of a score, one for its controls, which are larger."""
    claimed = [one for forest in verdicts.forests(numbers, name) for rows in forest.rows.values() for one in rows]
    return {"claims": plots.difference_axis(claimed), "controls": plots.difference_axis(numbers["overall"]["differences"][name])}


def inert_json(value: Any) -> str:
    """JSON that no HTML parser takes for anything else: no <, > or &, and ASCII alone, so no line separator and no half a surrogate."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
