"""A questions file -> `questions`: each with its video, and a file stands for its benchmarks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clips import regular, write_clip

from infra.artifacts import QUESTIONS, TABLES
from infra.config import Recipe, Where
from infra.errors import BadInputError, StorageError
from infra.storage import Table
from pipeline import manifest


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for i, name in enumerate(("a", "b")):
        write_clip(folder / f"{name}.mp4", regular(3 + i))
    return folder


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def asked(clips: Path, name: str, **others: Any) -> dict[str, Any]:
    return {"uri": f"{clips}/{name}.mp4", "question": "How many frames?", "references": ["four", "4"]} | others


def run(source: Path | str, data: Path, questions: str | None = None) -> str:
    """What is said of the questions."""
    videos, told = manifest.run(str(source), Recipe(), Where(data=str(data)), questions=questions).split("; ")
    assert videos == "videos: 2 rows, 0 rejects"
    return told


def table(data: Path) -> Table:
    return Table(str(data), "questions")


def by_benchmark(data: Path) -> dict[str, list[list[str]]]:
    found: dict[str, list[list[str]]] = {}
    for row in sorted(table(data).read().to_pylist(), key=lambda row: row["question"]):
        found.setdefault(row["benchmark"], []).append(row["references"])
    return found


def rejects_of(data: Path) -> dict[str, str]:
    return {row["key"]: row["reason"] for row in table(data).read_rejects().to_pylist()}


def test_questions_beside_the_list_find_their_videos(clips: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "list/clips.jsonl", [{"uri": f"{clips}/a.mp4"}, {"uri": f"{clips}/a.mp4", "end_s": 0.1}])
    rows = [asked(clips, "a", style="count", benchmark="frames"), asked(clips, "a"), asked(clips, "a", end_s=0.1)]
    write_jsonl(tmp_path / "list/questions.jsonl", rows)
    assert run(source, tmp_path / "data") == "questions: 3 rows, 0 rejects"
    whole, span = (row["video_id"] for row in Table(str(tmp_path / "data"), "videos").read().to_pylist())
    found = table(tmp_path / "data").read().to_pylist()
    assert [row["video_id"] for row in found] == [whole, whole, span]
    assert [(row["style"], row["benchmark"]) for row in found] == [("count", "frames"), ("", "questions"), ("", "questions")]
    assert all((row["question"], row["references"]) == ("How many frames?", ["four", "4"]) for row in found)
    assert len({row["question_id"] for row in found}) == 3


def test_the_second_run_writes_nothing(clips: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "asked.jsonl", [asked(clips, "a"), asked(clips, "nowhere")])
    assert run(clips, tmp_path / "data", source) == "questions: 1 rows, 1 rejects (question_without_video 1)"
    before = table(tmp_path / "data").state().version
    assert run(clips, tmp_path / "data", source) == "questions: 1 rows, 1 rejects (question_without_video 1)"
    assert table(tmp_path / "data").state().version == before


def test_a_file_stands_for_its_benchmarks(clips: Path, tmp_path: Path) -> None:
    """What it says of them replaces what was said before; questions and rejects of other files stay."""
    data = tmp_path / "data"
    one = write_jsonl(tmp_path / "one.jsonl", [asked(clips, "a"), asked(clips, "b"), asked(clips, "a", question="Why?", benchmark="why")])
    other = write_jsonl(tmp_path / "other.jsonl", [asked(clips, "a", style="other"), {"uri": "bad"}])
    assert run(clips, data, one) == "questions: 3 rows, 0 rejects"
    assert run(clips, data, other) == "questions: 4 rows, 1 rejects (bad_row 1)"
    assert by_benchmark(data) == {"one": [["four", "4"]] * 2, "why": [["four", "4"]], "other": [["four", "4"]]}
    ids = {row["question_id"] for row in table(data).read().to_pylist()}

    write_jsonl(tmp_path / "one.jsonl", [asked(clips, "a", references=["more"]), asked(clips, "gone")])
    assert run(clips, data, one) == "questions: 3 rows, 2 rejects (bad_row 1, question_without_video 1)"
    assert by_benchmark(data) == {"one": [["more"]], "why": [["four", "4"]], "other": [["four", "4"]]}
    assert {row["question_id"] for row in table(data).read().to_pylist()} < ids, "other references, the same question"

    write_jsonl(tmp_path / "other.jsonl", [asked(clips, "a", style="other"), asked(clips, "b", style="other")])
    assert run(clips, data, other) == "questions: 4 rows, 1 rejects (question_without_video 1)"
    assert rejects_of(data) == {f"{one}:2": "question_without_video"}

    write_jsonl(tmp_path / "one.jsonl", [asked(clips, "a"), asked(clips, "b"), asked(clips, "a", question="Why?", benchmark="why")])
    write_jsonl(tmp_path / "other.jsonl", [asked(clips, "a", style="other"), {"uri": "bad"}])
    assert run(clips, data, one) == "questions: 5 rows, 0 rejects"
    assert run(clips, data, other) == "questions: 4 rows, 1 rejects (bad_row 1)"
    assert {row["question_id"] for row in table(data).read().to_pylist()} == ids, "as they were first"
    assert by_benchmark(data) == {"one": [["four", "4"]] * 2, "why": [["four", "4"]], "other": [["four", "4"]]}


def test_a_reject_is_told_as_it_is_now(clips: Path, tmp_path: Path) -> None:
    """Also where it was none in between, and another one before that."""
    data, reasons = tmp_path / "data", []
    for row in ({"uri": "bad"}, asked(clips, "a"), asked(clips, "gone"), {"uri": "bad"}):
        source = write_jsonl(tmp_path / "asked.jsonl", [row])
        run(clips, data, source)
        reasons.append(rejects_of(data).get(f"{source}:1"))
    assert reasons == ["bad_row", None, "question_without_video", "bad_row"]


def test_more_videos_leave_the_questions_as_they_are(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/a.mp4").write_bytes((clips / "a.mp4").read_bytes())
    source = write_jsonl(tmp_path / "asked.jsonl", [asked(tmp_path / "clips", "a")])
    manifest.run(str(tmp_path / "clips"), Recipe(), Where(data=str(tmp_path / "data")), questions=source)
    before = table(tmp_path / "data").shards()
    (tmp_path / "clips/b.mp4").write_bytes((clips / "b.mp4").read_bytes())
    assert run(tmp_path / "clips", tmp_path / "data", source) == "questions: 1 rows, 0 rejects"
    assert table(tmp_path / "data").shards() == before


def test_questions_that_fit_no_video_become_rejects(clips: Path, tmp_path: Path) -> None:
    good = asked(clips, "a")
    rows = [
        good, good | {"uri": "nowhere.mp4"}, good | {"end_s": 1.0}, good, good | {"references": []}, good | {"references": "that"},
        good | {"question": ""}, {"uri": "a.mp4"}, {"question": "What?", "references": ["that"]},
    ]  # fmt: skip
    source = write_jsonl(tmp_path / "asked.jsonl", rows)
    assert run(clips, tmp_path / "data", source) == "questions: 1 rows, 8 rejects (bad_row 5, duplicate 1, question_without_video 2)"
    reasons = ["question_without_video"] * 2 + ["duplicate"] + ["bad_row"] * 5
    assert rejects_of(tmp_path / "data") == {f"{source}:{line}": reason for line, reason in enumerate(reasons, 2)}


def test_questions_that_are_not_there_are_refused_before_anything_is_written(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"asked\.jsonl: no such file"):
        run(clips, tmp_path / "data", str(tmp_path / "asked.jsonl"))
    assert not (tmp_path / "data").exists()


def test_rows_from_before_a_column_are_said_to_be(clips: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "asked.jsonl", [asked(clips, "a"), asked(clips, "b")])
    old = replace(QUESTIONS, schema=QUESTIONS.schema.remove(QUESTIONS.schema.get_field_index("task")))
    data = tmp_path / "data"
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(TABLES, "questions", old)
        run(clips, data, source)
        before = table(data).read().drop_columns(["question_id", "version"])
    for columns in (None, ["task"]):
        with pytest.raises(StorageError, match=f'^{table(data).folder}: .*"task".*: run the stage that makes it again$'):
            table(data).read(columns)
    assert table(data).read(["question"]).equals(before.select(["question"]))
