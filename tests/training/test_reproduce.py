"""Each table by its command: a report's as the paper has them, a figure's made once, printed twice, and the paper's numbers beside."""

import json
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from made_figures import make
from rich.console import Console

from infra.config import Recipe, VLMSettings, Where
from infra.errors import BadInputError
from infra.objects import write_new
from infra.sets import REPORTS, made_output
from training import reproduce
from training.figures import report_tables, tables

SMALL = {"frame_caps": (2,), "longest_edges_px": (19,), "n_rounds": 1, "n_questions": (1, 5), "n_chunks": (1, 2), "kept_directions": (1,)}


def claimed(value: float, *, margin: float = 0.05, system: str = "ours") -> dict[str, Any]:
    edges = {"value": value, "low": value - 0.02, "high": value + 0.02, "margin": margin}
    return {"system": system, "against": "base", **edges, "noninferior": value - 0.02 > -margin, "equivalent": abs(value) + 0.02 < margin}


def part(task: str, base: float, ours: float, *, styles: dict[str, Any] | None = None) -> dict[str, Any]:
    claims = [claimed(ours - base), claimed(ours - base, margin=0.15), claimed(0.3, system="merged")]
    means = {"base": base, "ours": ours}
    scores = {"judge": means, "token_f1": means}
    found = {"task": task, "n_questions": 500, "n_videos": 100, "scores": scores, "claims": {"judge": claims, "token_f1": claims[:1]}}
    return found | ({} if styles is None else {"styles": styles})


BENCHMARKS = {
    "plm_rcap": part("caption", 0.30, 0.29, styles={"": part("caption", 0.30, 0.29)}),
    "vdc": part("caption", 0.50, 0.40, styles={"camera": part("caption", 0.40, 0.20), "short": part("caption", 0.6, 0.6)}),
    "nextqa": part("question", 0.50, 0.51, styles={"": part("question", 0.50, 0.51)}),
}
RECIPE = Recipe(vlm=VLMSettings(model="models/SmolVLM2-500M-Video-Instruct"))


def write_report(where: Where, recipe: Recipe, benchmarks: dict[str, Any], *, more: str = "") -> None:
    made = {"stage": "report", "recipe": recipe.model_dump(mode="json"), "inputs": {"more": more}}
    output = made_output(where.data, REPORTS, "report", made)
    output.begin(made)
    numbers = {"scores": ["judge", "token_f1"], "benchmarks": benchmarks, "recipe": recipe.model_dump(mode="json")}
    write_new(f"{output.folder}/report.json", json.dumps(numbers).encode())
    output.complete()


@pytest.fixture
def where(tmp_path: Path) -> Where:
    where = Where(data=str(tmp_path / "data"))
    write_report(where, RECIPE, BENCHMARKS)
    write_report(where, RECIPE.model_copy(update={"vlm": VLMSettings()}), {})
    return where


def rows(table: str, where: Where, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    reproduce.run(table, RECIPE, where, as_json=True)
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_captions_have_both_margins_an_average_and_the_papers_line(where: Where, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows("captions", where, capsys)
    told = [(row["benchmark"], row["score"], row["margin"]) for row in found]
    judge = [("plm_rcap", "judge", 0.05), ("plm_rcap", "judge", 0.15), ("vdc", "judge", 0.05), ("vdc", "judge", 0.15)]
    token_f1 = [("plm_rcap", "token_f1", 0.05), ("vdc", "token_f1", 0.05)]
    assert told == [*judge, ("average", "judge", None), *token_f1, ("average", "token_f1", None)]
    vdc, average = found[3], found[4]
    assert vdc["value"] == pytest.approx(-0.10) and vdc["noninferior"] and not found[2]["noninferior"]
    assert vdc["paper"] == {
        "base": 0.515, "ours": 0.406, "difference": -0.108, "low": -0.118, "high": -0.098, "equivalent": True, "noninferior": True,
    }  # fmt: skip
    assert (average["base"], average["ours"], average["value"]) == pytest.approx((0.40, 0.345, -0.055))
    assert average["paper"]["ours"] == 0.309


def test_verdicts_are_the_reports_after_its_correction(where: Where, capsys: pytest.CaptureFixture[str]) -> None:
    """Taken alone the claim holds (p 0.0225), over four benchmarks it does not."""
    of = part("caption", 0.30, 0.30)
    for one in of["claims"]["judge"]:
        one |= {"p_noninferior_holm": 0.0899, "p_equivalent_holm": 0.0225}
    write_report(where, RECIPE, {"vdc": of, "mine": part("mixed", 0.3, 0.3)}, more="corrected")
    reproduce.run("captions", RECIPE, where, as_json=True)
    said = capsys.readouterr()
    judge = [row for row in json.loads(said.out) if row["score"] == "judge"]
    assert [(row["noninferior"], row["equivalent"]) for row in judge] == [(False, True), (False, True)]
    assert "left out, as they have questions and captions: mine;" in said.err


def test_questions_are_of_their_task_alone(where: Where, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows("questions", where, capsys)
    assert {row["benchmark"] for row in found} == {"nextqa"} and found[0]["paper"]["ours"] == 0.547
    assert found[-1]["paper"]["ours"] == 0.068


def test_styles_are_of_benchmarks_that_have_several(where: Where, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows("styles", where, capsys)
    told = [(row["benchmark"], row["style"], row["score"]) for row in found]
    assert told == [("vdc", style, score) for style in ("camera", "short") for score in ("judge", "token_f1")]
    assert found[0]["recovered"] == pytest.approx(0.5) and found[0]["paper"] == {"base": 0.310, "ours": 0.131}
    assert found[1]["paper"] is None, "tables 2 and 3 are the judge's alone"


def test_tables_are_printed_with_the_papers_beside(where: Where, capsys: pytest.CaptureFixture[str]) -> None:
    reproduce.run("captions", RECIPE, where, as_json=False)
    out = capsys.readouterr().out
    assert "-0.100 [-0.120, -0.080]" in out and "-0.108 [-0.118, -0.098]" in out and "paper base" in out
    reproduce.run("styles", RECIPE, where, as_json=False)
    assert "50.0 %" in capsys.readouterr().out
    report = {"scores": ["judge"], "benchmarks": BENCHMARKS, "recipe": RECIPE.model_dump(mode="json")}
    grid = report_tables.grid_of("captions", report_tables.claims(report, "caption", None), None)
    assert len(grid.columns) == 9, "without the paper's where the model is another"


def test_texts_from_data_do_not_control_a_terminal() -> None:
    out = StringIO()
    Console(file=out, width=80).print(tables.grid("title\x1b[2J", ["a\x07"], [["[red]b\x1b[31m\x9b"]]))
    assert "[red]b" in out.getvalue() and not set("\x1b\x07\x9b") & set(out.getvalue())


def test_the_newest_report_of_the_recipe_counts(where: Where, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(where, RECIPE, {"vdc": part("caption", 0.7, 0.6)}, more="made later")
    assert {row["base"] for row in rows("captions", where, capsys)} == {0.7}


def test_what_is_missing_is_named(tmp_path: Path, where: Where) -> None:
    with pytest.raises(BadInputError, match="run `video2lora report` first"):
        reproduce.run("captions", RECIPE, Where(data=str(tmp_path / "nowhere")), as_json=False)
    other = RECIPE.model_copy(update={"vlm": VLMSettings()})
    with pytest.raises(BadInputError, match="captions: the newest report has no benchmark of task caption"):
        reproduce.run("captions", other, where, as_json=False)


def test_every_figure_is_made_once_and_printed_with_the_papers_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, there = make(tmp_path, **SMALL)
    for table, words in {
        "sweep": ["faster", "1 for not_a_video"],
        "efficiency": ["kv_cache", "connector", "kept per video"],
        "composition": ["composed", "shuffled", "direction"],
        "pruning": ["but the strongest", "strongest direction"],
    }.items():
        reproduce.run(table, recipe, there, as_json=False)
        first = capsys.readouterr()
        assert "nothing to do" not in first.err and all(word in first.out for word in words), first.out
        assert "paper" not in first.out
        reproduce.run(table, recipe, there, as_json=True)
        second = capsys.readouterr()
        found = json.loads(second.out)
        assert "complete, nothing to do" in second.err and found["table"] == table and found["n_videos"] == 4
        reproduce.run(table, recipe, there, as_json=False)
        assert capsys.readouterr().out == first.out
        for model in ("500M", "2.2B"):
            reproduce.print_figure(table, found, model, as_json=False)
            printed = capsys.readouterr().out
            assert ("paper" in printed) == ((table, model) != ("pruning", "500M")), printed
    shutil.rmtree(tmp_path / "vlm")
    reproduce.run("sweep", recipe, there, as_json=True)
    assert json.loads(capsys.readouterr().out)["table"] == "sweep", "what is made needs no model"
