"""Folders, JSONL and Parquet of videos -> `videos` and `questions`."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clips import regular, write_clip

from infra.config import Recipe, Where
from infra.errors import MadeFromOtherError
from infra.storage import Table
from pipeline import manifest
from pipeline.sources import resolve
from video2lora.video import content_id


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of 4, 5 and 6 frames, one of them deeper; two files that are no videos; a hidden copy."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "deep/er").mkdir(parents=True)
    write_clip(folder / "four.mp4", regular(4))
    write_clip(folder / "deep/five.MP4", regular(5))
    write_clip(folder / "deep/er/six.mkv", regular(6))
    (folder / "read me.txt").write_text("no video")
    (folder / "._four.mp4").write_bytes(b"what macOS leaves")
    return folder


def run(source: Path | str, data: Path, questions: str | None = None) -> str:
    return manifest.run(str(source), Recipe(), Where(data=str(data)), questions=questions)


def rows_of(data: Path, name: str) -> list[dict[str, Any]]:
    return Table(str(data), name).read().to_pylist()


def rejects_of(data: Path, name: str) -> dict[str, str]:
    return {row["key"]: row["reason"] for row in Table(str(data), name).read_rejects().to_pylist()}


def test_a_folder_gives_its_videos_however_deep(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path) == "videos: 3 rows, 0 rejects"
    rows = {row["uri"]: row for row in rows_of(tmp_path, "videos")}
    assert sorted(rows) == [str(folder / name) for name in ("deep/er/six.mkv", "deep/five.MP4", "four.mp4")]
    for uri, row in rows.items():
        assert row["video_id"] == content_id(uri)[:20]
        assert (row["split"], row["start_s"], row["end_s"]) == ("train", None, None)
    durations_s = [rows[uri]["duration_s"] for uri in sorted(rows)]
    assert durations_s == pytest.approx([0.24, 0.20, 0.16], abs=0.002)


def test_the_second_run_does_nothing_and_changed_content_is_noticed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "clips"
    source.mkdir()
    write_clip(source / "a.mp4", regular(4))
    first = run(source, tmp_path / "data")
    assert run(source, tmp_path / "data") == first
    assert "is complete, nothing to do" in capsys.readouterr().err
    write_clip(source / "a.mp4", regular(5))
    with pytest.raises(MadeFromOtherError, match="source: there"):
        run(source, tmp_path / "data")


def test_jsonl_with_splits_spans_and_any_name_for_the_path(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"uri": "four.mp4", "split": "test"},
        {"path": str(folder / "deep/five.MP4"), "split": "validation", "title": "columns beside are not looked at"},
        {"video": "./deep/er/../er/six.mkv", "start_s": 0, "end_s": 0.1},
        {"video": "deep/er/six.mkv", "start_s": 0.1},
        {"uri": f"file://{folder}/deep/er/six.mkv"},
    ]
    source = write_jsonl(folder / "list.jsonl", rows)
    assert run(source, tmp_path) == "videos: 5 rows, 0 rejects"
    found = rows_of(tmp_path, "videos")
    assert [os.path.relpath(row["uri"], folder) for row in found] == ["four.mp4", "deep/five.MP4"] + ["deep/er/six.mkv"] * 3
    assert [row["split"] for row in found] == ["test", "validation", "train", "train", "train"]
    assert [(row["start_s"], row["end_s"]) for row in found[2:]] == [(0, 0.1), (0.1, None), (None, None)]
    assert len({row["video_id"] for row in found}) == 5


def test_parquet_says_the_same_as_jsonl(folder: Path, tmp_path: Path) -> None:
    rows = [{"uri": "four.mp4", "split": "test", "start_s": None}, {"uri": "deep/five.MP4", "split": None, "start_s": 0.04}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "list.parquet")
    run(folder / "list.parquet", tmp_path / "parquet")
    run(write_jsonl(folder / "same.jsonl", rows), tmp_path / "jsonl")
    assert rows_of(tmp_path / "parquet", "videos") == rows_of(tmp_path / "jsonl", "videos")


def test_a_killed_run_goes_on_behind_what_is_committed(folder: Path, tmp_path: Path) -> None:
    source = manifest.read_source(str(folder))
    examined = manifest.examine(source)
    videos = Table(str(tmp_path), "videos")
    assert videos.begin(examined.made_from())
    videos.commit([manifest.video_row(examined.videos[1])], [])
    assert run(folder, tmp_path) == "videos: 3 rows, 0 rejects"
    assert len(videos.shards()) == 2
    assert len({row["video_id"] for row in rows_of(tmp_path, "videos")}) == 3


def test_questions_beside_the_list_find_their_videos(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list").mkdir()
    source = write_jsonl(
        tmp_path / "list/clips.jsonl", [{"uri": str(folder / "four.mp4")}, {"uri": str(folder / "four.mp4"), "end_s": 0.1}]
    )
    asked = {"uri": str(folder / "four.mp4"), "question": "How many frames?", "references": ["four", "4"]}
    rows = [asked | {"style": "count", "benchmark": "frames"}, asked, asked | {"end_s": 0.1}]
    write_jsonl(tmp_path / "list/questions.jsonl", rows)
    assert run(source, tmp_path / "data") == "videos: 2 rows, 0 rejects; questions: 3 rows, 0 rejects"
    whole, span = (row["video_id"] for row in rows_of(tmp_path / "data", "videos"))
    found = rows_of(tmp_path / "data", "questions")
    assert [row["video_id"] for row in found] == [whole, whole, span]
    assert [(row["style"], row["benchmark"]) for row in found] == [("count", "frames"), ("", "questions"), ("", "questions")]
    assert all(row["question"] == asked["question"] and row["references"] == asked["references"] for row in found)
    assert len({row["question_id"] for row in found}) == 3
    assert run(source, tmp_path / "data") == "videos: 2 rows, 0 rejects; questions: 3 rows, 0 rejects"


def test_other_questions_for_the_same_videos_are_refused(folder: Path, tmp_path: Path) -> None:
    row = {"uri": str(folder / "four.mp4"), "question": "How many?", "references": ["four"]}
    run(folder, tmp_path / "data", write_jsonl(tmp_path / "one.jsonl", [row]))
    with pytest.raises(MadeFromOtherError, match="questions: there"):
        run(folder, tmp_path / "data", write_jsonl(tmp_path / "one.jsonl", [row | {"references": ["4"]}]))


@pytest.mark.parametrize(
    ("path", "address"),
    [("a.mp4", "/list/a.mp4"), ("/b/a.mp4", "/b/a.mp4"), ("s3://b/a.mp4", "s3://b/a.mp4"), ("a/../s3:/b.mp4", "/list/s3:/b.mp4")],
)
def test_addresses_that_are_taken(path: str, address: str) -> None:
    assert resolve(path, "/list") == address


@pytest.mark.parametrize("path", ["../a.mp4", "a/../../b.mp4", "http://host/a.mp4", "zip://a.mp4::s3://b/c.zip", "a\0.mp4"])
def test_addresses_that_are_not(path: str) -> None:
    with pytest.raises(ValueError):
        resolve(path, "/list")
