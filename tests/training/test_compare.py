"""Two reports side by side: what counts, differences against numpy, what is printed and drawn, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from made_rows import a_row, rows_of

from infra.config import Where
from infra.errors import BadInputError
from infra.parquet import to_parquet
from training import compare, report_rows, report_table

SHARES_A, SHARES_B = ({"base": 0.9, "ours": 0.6, "blind": 0.3}, {"base": 0.9, "ours": 0.8, "static": 0.3})


def write(folder: Path, rows: list[dict[str, Any]]) -> str:
    folder.mkdir(parents=True)
    (folder / "report.json").write_text("{}")
    (folder / "rows.parquet").write_bytes(to_parquet(pa.Table.from_pylist(rows, report_rows.SCHEMA)))
    return str(folder)


@pytest.fixture(scope="module")
def sides() -> list[list[dict[str, Any]]]:
    """A lacks the last video, B the first; of one question the references differ, of another the text. Seeds stand in another order."""
    a, b = rows_of(31, shares=SHARES_A, draw=1), rows_of(31, shares=SHARES_B, draw=2, seeds=(3, 7))
    a = [row for row in a if row["video_id"] != "v0030"]
    b = [row for row in b if row["video_id"] != "v0000"]
    for row in b:
        if row["question_id"] == "v0001-toy_qa-colour":
            row["references"] = ["dark red"]
        if row["question_id"] == "v0002-toy_qa-colour":
            row["question"] = "Which colour is it?"
    return [a, b]


@pytest.fixture(scope="module")
def numbers(sides: list[list[dict[str, Any]]]) -> dict[str, Any]:
    return compare.compared(sides, names=["one", "two"])[0]


def test_only_questions_that_are_the_same_count(numbers: dict[str, Any]) -> None:
    assert numbers["counts"] == {"same": 3 * 29 - 2, "changed": 2, "only_A": 3, "only_B": 3}
    assert (numbers["systems"], numbers["only_systems"]) == (["base", "ours"], {"A": ["blind"], "B": ["static"]})
    told = " ".join(compare.lines(numbers))
    assert "85 questions are the same" in told and "2 whose text or references differ" in told and "systems that only A has: blind" in told


def test_differences_are_paired_by_question_and_training(sides: list[list[dict[str, Any]]], numbers: dict[str, Any]) -> None:
    assert numbers["paired_seeds"]
    values = []
    for rows in sides:
        own = {(r["question_id"], r["seed"]): r["token_f1"] for r in rows if (r["system"], r["benchmark"]) == ("ours", "toy_qa")}
        values.append(own)
    left_out = ("v0001-toy_qa-colour", "v0002-toy_qa-colour")
    both = [key for key in values[0] if key in values[1] and key[0] not in left_out]
    expected = np.mean([values[1][key] - values[0][key] for key in both])
    (got,) = [one for one in numbers["differences"]["token_f1"] if (one["benchmark"], one["system"]) == ("toy_qa", "ours")]
    assert got["value"] == pytest.approx(expected) and got["n_questions"] == len(both) / 2 == 56
    assert got["low"] < got["value"] < got["high"]
    in_order = [sorted(rows, key=lambda row: row["seed"]) for rows in sides]
    (same,) = [
        one
        for one in compare.compared(in_order, names=["one", "two"])[0]["differences"]["token_f1"]
        if (one["benchmark"], one["system"]) == ("toy_qa", "ours")
    ]
    assert (got["low"], got["high"]) == (same["low"], same["high"])
    assert got["A"] == pytest.approx(np.mean([values[0][key] for key in both]))
    benchmarks = [(one["benchmark"], one["system"]) for one in numbers["differences"]["exact_match"]]
    assert benchmarks == [(of, system) for of in ("toy_captions", "toy_qa", "all together") for system in ("base", "ours")]
    captions = numbers["differences"]["exact_match"][0]
    assert (captions["value"], captions["A"], captions["n_questions"]) == (None, None, 0)


def test_a_report_and_itself_differ_by_nothing(sides: list[list[dict[str, Any]]]) -> None:
    numbers, _ = compare.compared([sides[0], sides[0]], names=["one", "one"])
    known = [one for of in numbers["differences"].values() for one in of if one["value"] is not None]
    assert known and all((one["value"], one["low"], one["high"]) == (0, 0, 0) for one in known)
    assert numbers["changed_most"] == []


def test_other_trainings_are_averaged(sides: list[list[dict[str, Any]]]) -> None:
    one_seed = [row for row in sides[1] if row["seed"] == 3]
    numbers, _ = compare.compared([sides[0], one_seed], names=["one", "two"])
    assert not numbers["paired_seeds"] and numbers["seeds"] == {"A": [7, 3], "B": [3]}
    (got,) = [one for one in numbers["differences"]["token_f1"] if (one["benchmark"], one["system"]) == ("all together", "ours")]
    kept = {row["question_id"] for row in sides[0]} & {row["question_id"] for row in sides[1]}
    kept -= {"v0001-toy_qa-colour", "v0002-toy_qa-colour"}
    a, b = (
        np.mean([row["token_f1"] for row in rows if row["system"] == "ours" and row["question_id"] in kept])
        for rows in (sides[0], one_seed)
    )
    assert got["value"] == pytest.approx(b - a)
    assert any("averaged over its own" in line for line in compare.lines(numbers))


def test_means_are_of_the_questions_that_both_answered() -> None:
    a = [a_row(f"v{i}-q", system, value) for i, value in enumerate((1.0, 0.0, 0.5)) for system in ("ours", "base")]
    b = [row | {"token_f1": 1.0} for row in a if (row["question_id"], row["system"]) != ("v0-q", "ours")]
    numbers, _ = compare.compared([a, b], names=["one", "two"])
    (got,) = [one for one in numbers["differences"]["token_f1"] if one["system"] == "ours"]
    assert (got["A"], got["B"], got["value"], got["n_questions"]) == (0.25, 1.0, 0.75, 2)


def test_marks_of_different_judges_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, folders = rows_of(3, judged=True), {}
    sets = {"one": ("a", "r1"), "two": ("a", "r2"), "three": ("b", "r1"), "four": ("a", "r1"), "none": (None, None)}
    for name, (model, said) in sets.items():
        folders[name] = write(tmp_path / name, rows)
        judge = None if model is None else {"model": model, "n_tries": len(name), "second": None}
        report: dict[str, Any] = {"recipe": {"judge": judge}, "judge": judge and {"model": model, "set": said}}
        (tmp_path / name / "report.json").write_text(json.dumps(report))
    for name in sets:
        compare.run(folders["one"], folders[name], Where(data=str(tmp_path)), output=None, as_json=True)
        numbers = json.loads(capsys.readouterr().out)
        told = [line for line in compare.lines(numbers) if "not by the same judge" in line]
        same = name in ("one", "four")  # how often it is asked again for a broken reply is no other judge
        assert ("judge" in numbers["scores"]) == same and len(told) == (not same)
        if name == "two":
            assert told[0].endswith("A's by a (set r1), B's by a (set r2)")


@pytest.mark.parametrize("report", [3, [], {}, {"recipe": 3}, {"recipe": {"judge": 3}, "judge": 3}])
def test_a_report_that_tells_of_no_judge_has_none(report: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (write(tmp_path / name, rows_of(3)) for name in ("one", "other"))
    (tmp_path / "other" / "report.json").write_text(json.dumps(report))
    compare.run(one, other, Where(data=str(tmp_path)), output=None, as_json=True)
    assert json.loads(capsys.readouterr().out)["judges"] == {"A": None, "B": None}


def test_what_could_control_a_terminal_is_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;title\x07\x9b31m[bold]x"
    a = [a_row(f"v{i}{evil}-q", "ours", value, benchmark=evil, style=evil) for i, value in enumerate((1.0, 0.0))]
    b = [row | {"token_f1": 0.5} for row in a]
    compare.run(write(tmp_path / "a", a), write(tmp_path / f"b{evil}", b), Where(data=str(tmp_path)), output=None, as_json=False)
    printed = capsys.readouterr().out
    assert "]0;title31m[bold]x" in printed and not {"\x1b", "\x07", "\x9b"} & set(printed)
    assert report_table.plain(evil).plain == "]0;title31m[bold]x"


def test_what_changed_most_comes_first() -> None:
    a = [a_row(f"v-{i}", "ours", value) for i, value in enumerate((0.5, 1.0, 0.2, 0.3))]
    b = [a_row(f"v-{i}", "ours", value) for i, value in enumerate((0.5, 0.1, 0.9, 0.4))]
    changed = compare.compared([a, b], names=["one", "two"])[0]["changed_most"]
    assert [one["question_id"] for one in changed] == ["v-1", "v-2", "v-3"]
    assert [one["change"] for one in changed] == pytest.approx([-0.9, 0.7, 0.1])


def test_it_prints_and_renders(sides: list[list[dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "data" / "reports" / "one", sides[0])
    two, where = write(tmp_path / "two", sides[1]), Where(data=str(tmp_path / "data"))
    page = tmp_path / "page.html"
    compare.run("one", two, where, output=page, as_json=False)
    printed = capsys.readouterr().out
    assert "token F1: B - A" in printed and "85 questions are the same" in printed and f"open {page}" in printed
    html = page.read_text()
    assert html.startswith("<!doctype html>") and "Differences, B − A" in html and 'class="whisker"' in html
    compare.run("one", two, where, output=None, as_json=True)
    assert json.loads(capsys.readouterr().out)["counts"]["same"] == 85
    with pytest.raises(BadInputError, match=r"page\.html is there already: name a new file"):
        compare.run("one", two, where, output=page, as_json=False)


def test_what_is_no_report_is_refused(sides: list[list[dict[str, Any]]], tmp_path: Path) -> None:
    one, where = write(tmp_path / "one", sides[0]), Where(data=str(tmp_path))
    with pytest.raises(BadInputError, match=r"nothing-there: no report\.json in nothing-there nor in .*/reports/nothing-there"):
        compare.run(one, "nothing-there", where, output=None, as_json=False)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "report.json").write_text("{}")
    with pytest.raises(BadInputError, match=r"half/rows\.parquet is not there"):
        compare.run(one, str(tmp_path / "half"), where, output=None, as_json=False)
    (tmp_path / "half" / "rows.parquet").write_bytes(b"PAR1 no, not quite PAR1")
    with pytest.raises(BadInputError, match=r"half/rows\.parquet is not the rows of a report"):
        compare.run(one, str(tmp_path / "half"), where, output=None, as_json=False)
    (tmp_path / "half" / "rows.parquet").write_bytes(to_parquet(pa.table({"question_id": ["a"]})))
    with pytest.raises(BadInputError, match=r"half/rows\.parquet is not the rows of a report"):
        compare.run(one, str(tmp_path / "half"), where, output=None, as_json=False)
    odd = write(tmp_path / "odd", [a_row("v-1", "\x1b[31m", 1.0)])
    with pytest.raises(BadInputError, match=r"odd/rows\.parquet has a system '\\x1b\[31m', expected base, sampled"):
        compare.run(one, odd, where, output=None, as_json=False)
    for name, rows, what in (
        ("other", [a_row("else", "ours", 1.0)], "question"),
        ("systems", [sides[0][0] | {"system": "static"}], "system"),
    ):
        with pytest.raises(BadInputError, match=f"have no {what} in common"):
            compare.run(one, write(tmp_path / name, rows), where, output=None, as_json=False)
