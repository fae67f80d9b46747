"""Folders, JSONL and Parquet of videos -> `videos`: a video is its content, and each run adds to what there is."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clips import regular, write_clip

from infra.config import Recipe, Where
from infra.forget import forget
from infra.of_video import FORGOTTEN
from infra.stage import Order
from infra.storage import Table
from pipeline import manifest
from video2lora.video import content_id

CLIPS = {"a.mp4": 4, "b.mp4": 5, "c.mp4": 6}  # and their frames


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


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIPS, and other.mp4 of another content."""
    folder = tmp_path_factory.mktemp("written")
    for name, n_frames in (CLIPS | {"other.mp4": 7}).items():
        write_clip(folder / name, regular(n_frames))
    return folder


@pytest.fixture
def clips(written: Path, tmp_path: Path) -> Path:
    """CLIPS, to move and change, in <tmp_path>/clips."""
    (tmp_path / "clips").mkdir()
    for name in CLIPS:
        shutil.copy(written / name, tmp_path / "clips" / name)
    return tmp_path / "clips"


def run(source: Path | str, data: Path, questions: str | None = None) -> str:
    return manifest.run(str(source), Recipe(), Where(data=str(data)), questions=questions)


def rows_of(data: Path, name: str = "videos") -> list[dict[str, Any]]:
    return Table(str(data), name).read().to_pylist()


def rejects_of(data: Path, name: str = "videos") -> dict[str, str]:
    return {row["key"]: row["reason"] for row in Table(str(data), name).read_rejects().to_pylist()}


def uris_of(data: Path) -> dict[str, str]:
    """The address of each video; fails where one is there twice."""
    rows = rows_of(data)
    found = {row["video_id"]: row["uri"] for row in rows}
    assert len(found) == len(rows)
    return found


def id_of(path: Path) -> str:
    return content_id(path)[:20]


def n_commits(data: Path) -> int:
    return sum(entry["kind"] == "commit" for entry in Table(str(data), "videos").log.read())


def test_a_folder_gives_its_videos_however_deep(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path) == "videos: 3 rows, 0 rejects"
    rows = {row["uri"]: row for row in rows_of(tmp_path)}
    assert sorted(rows) == [str(folder / name) for name in ("deep/er/six.mkv", "deep/five.MP4", "four.mp4")]
    for uri, row in rows.items():
        assert row["video_id"] == content_id(uri)[:20]
        assert (row["split"], row["start_s"], row["end_s"]) == ("train", None, None)
    durations_s = [rows[uri]["duration_s"] for uri in sorted(rows)]
    assert durations_s == pytest.approx([0.24, 0.20, 0.16], abs=0.002)


def test_the_second_run_does_nothing(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(clips, tmp_path / "data")
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    capsys.readouterr()
    assert run(clips, tmp_path / "data") == first
    assert capsys.readouterr().err == f"manifest: {tmp_path}/data/videos has all of {clips}, nothing to do\n"
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


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
    found = rows_of(tmp_path)
    assert [os.path.relpath(row["uri"], folder) for row in found] == ["four.mp4", "deep/five.MP4"] + ["deep/er/six.mkv"] * 3
    assert [row["split"] for row in found] == ["test", "validation", "train", "train", "train"]
    assert [(row["start_s"], row["end_s"]) for row in found[2:]] == [(None, 0.1), (0.1, None), (None, None)]
    assert len({row["video_id"] for row in found}) == 5


def test_from_zero_on_is_from_the_beginning_on(folder: Path, tmp_path: Path) -> None:
    """No clip is in two splits because one row says where it begins."""
    rows: list[dict[str, Any]] = [
        {"uri": "four.mp4"},
        {"uri": "four.mp4", "start_s": 0, "split": "test"},
        {"uri": "four.mp4", "end_s": 0.1},
    ]
    source = write_jsonl(folder / "twice.jsonl", [*rows, rows[2] | {"start_s": 0.0}])
    assert run(source, tmp_path) == "videos: 2 rows, 2 rejects (duplicate 2)"
    assert [row["split"] for row in rows_of(tmp_path)] == ["train", "train"]


def test_parquet_says_the_same_as_jsonl(folder: Path, tmp_path: Path) -> None:
    rows = [{"uri": "four.mp4", "split": "test", "start_s": None}, {"uri": "deep/five.MP4", "split": None, "start_s": 0.04}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "list.parquet")
    run(folder / "list.parquet", tmp_path / "parquet")
    run(write_jsonl(folder / "same.jsonl", rows), tmp_path / "jsonl")
    assert rows_of(tmp_path / "parquet") == rows_of(tmp_path / "jsonl")


def test_a_killed_run_goes_on_behind_what_is_committed(clips: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "undisturbed")
    examined = manifest.examine(manifest.read_source(str(clips)), str(tmp_path))
    videos = Table(str(tmp_path), "videos")
    attempt = Order(videos, examined.asked(), manifest.changes(examined, videos).wanted).begin()
    attempt.write([row for row in rows_of(tmp_path / "undisturbed") if row["video_id"] == examined.videos[1].video_id], [])
    (first,) = videos.shards()
    assert not videos.is_complete()
    assert run(clips, tmp_path) == "videos: 3 rows, 0 rejects"
    assert len(videos.shards()) == 2 and first in videos.shards(), "what was there is not made again"
    by_id = {row["video_id"]: row for row in rows_of(tmp_path)}
    assert by_id == {row["video_id"]: row for row in rows_of(tmp_path / "undisturbed")}


def test_a_video_that_moved_is_the_same_one_at_its_new_address(clips: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "data")
    before = {row["video_id"]: row for row in rows_of(tmp_path / "data")}
    (clips / "deep").mkdir()
    (clips / "b.mp4").rename(clips / "deep/moved.mp4")
    assert run(clips, tmp_path / "data") == "videos: 3 rows, 0 rejects"
    moved = id_of(clips / "deep/moved.mp4")
    after = {row["video_id"]: row for row in rows_of(tmp_path / "data")}
    assert after[moved] == before[moved] | {"uri": f"{clips}/deep/moved.mp4", "version": after[moved]["version"]}
    assert {name: row for name, row in after.items() if name != moved} == {name: row for name, row in before.items() if name != moved}
    (clips / "deep/moved.mp4").rename(clips / "b.mp4")
    run(clips, tmp_path / "data")
    assert {row["video_id"]: row for row in rows_of(tmp_path / "data")} == before


def test_a_video_that_is_there_twice_is_one(clips: Path, tmp_path: Path) -> None:
    shutil.copy(clips / "a.mp4", clips / "z.mp4")
    assert run(clips, tmp_path / "data") == "videos: 3 rows, 1 rejects (duplicate 1)"
    assert uris_of(tmp_path / "data")[id_of(clips / "a.mp4")] == f"{clips}/a.mp4"
    assert rejects_of(tmp_path / "data") == {f"{clips}/z.mp4": "duplicate"}
    (clips / "a.mp4").unlink()  # then the other one is it
    assert run(clips, tmp_path / "data") == "videos: 3 rows, 0 rejects"
    assert uris_of(tmp_path / "data")[id_of(clips / "z.mp4")] == f"{clips}/z.mp4"


def test_a_changed_file_is_another_video_until_it_is_changed_back(clips: Path, written: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "data")
    old, new = id_of(written / "b.mp4"), id_of(written / "other.mp4")
    (was,) = (row for row in rows_of(tmp_path / "data") if row["video_id"] == old)
    shutil.copy(written / "other.mp4", clips / "b.mp4")
    for _ in range(2):  # the second time there is nothing to do
        assert run(clips, tmp_path / "data") == "videos: 3 rows, 1 rejects (superseded 1)"
        assert uris_of(tmp_path / "data") == {
            id_of(written / "a.mp4"): f"{clips}/a.mp4",
            id_of(written / "c.mp4"): f"{clips}/c.mp4",
            new: f"{clips}/b.mp4",
        }
        (said,) = Table(str(tmp_path / "data"), "videos").read_rejects().to_pylist()
        assert (said["key"], said["detail"]) == (f"{old}/{was['version']}", f"{clips}/b.mp4 holds {new} now")
    shutil.copy(written / "b.mp4", clips / "b.mp4")
    assert run(clips, tmp_path / "data") == "videos: 3 rows, 1 rejects (superseded 1)"
    assert [row for row in rows_of(tmp_path / "data") if row["video_id"] == old] == [was]
    assert list(rejects_of(tmp_path / "data").values()) == ["superseded"] and new not in uris_of(tmp_path / "data")


def test_a_superseded_video_that_is_found_elsewhere_is_no_reject(clips: Path, written: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "data")
    shutil.copy(clips / "b.mp4", clips / "elsewhere.mp4")  # at once
    shutil.copy(written / "other.mp4", clips / "b.mp4")
    assert run(clips, tmp_path / "data") == "videos: 4 rows, 0 rejects"
    (clips / "elsewhere.mp4").write_bytes((clips / "a.mp4").read_bytes() + b" ")
    assert run(clips, tmp_path / "data") == "videos: 4 rows, 1 rejects (superseded 1)"
    shutil.copy(written / "b.mp4", clips / "later.mp4")  # and later
    assert run(clips, tmp_path / "data") == "videos: 5 rows, 0 rejects"
    assert uris_of(tmp_path / "data")[id_of(written / "b.mp4")] == f"{clips}/later.mp4"
    (clips / "later.mp4").rename(clips / "elsewhere.mp4")  # where it has been before
    assert run(clips, tmp_path / "data") == "videos: 4 rows, 1 rejects (superseded 1)"
    assert uris_of(tmp_path / "data")[id_of(written / "b.mp4")] == f"{clips}/elsewhere.mp4"


def test_what_vanishes_from_a_source_stays(clips: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "data")
    before, commits = rows_of(tmp_path / "data"), n_commits(tmp_path / "data")
    (clips / "b.mp4").unlink()
    assert run(clips, tmp_path / "data") == "videos: 3 rows, 0 rejects"
    assert rows_of(tmp_path / "data") == before and n_commits(tmp_path / "data") == commits


def test_sources_add_up(clips: Path, written: Path, tmp_path: Path) -> None:
    """Rows and rejects of one SOURCE are left alone by another, also where it lies in it, or names the same file."""
    (tmp_path / "others").mkdir()
    shutil.copy(written / "other.mp4", tmp_path / "others/x.mp4")
    (clips / "zero.mp4").touch()
    listed = write_jsonl(clips / "list.jsonl", [{"uri": "a.mp4", "end_s": 0.1}, {"uri": "gone.mp4"}])
    rejects = {f"{clips}/zero.mp4": "empty_file", f"{listed}:2": "missing"}
    assert run(clips, tmp_path / "data") == "videos: 3 rows, 1 rejects (empty_file 1)"
    assert run(listed, tmp_path / "data") == "videos: 4 rows, 2 rejects (empty_file 1, missing 1)"
    assert run(tmp_path / "others", tmp_path / "data") == "videos: 5 rows, 2 rejects (empty_file 1, missing 1)"
    before, commits = rows_of(tmp_path / "data"), n_commits(tmp_path / "data")
    for source in (clips, listed, tmp_path / "others", clips):
        assert run(source, tmp_path / "data") == "videos: 5 rows, 2 rejects (empty_file 1, missing 1)"
        assert rows_of(tmp_path / "data") == before and rejects_of(tmp_path / "data") == rejects
    assert n_commits(tmp_path / "data") == commits, "nothing was said twice"


def test_the_source_named_last_says_address_and_split(clips: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "data")
    (tmp_path / "copies").mkdir()
    shutil.copy(clips / "a.mp4", tmp_path / "copies/a.mp4")
    listed = write_jsonl(tmp_path / "copies/list.jsonl", [{"uri": "a.mp4", "split": "test"}])
    assert run(listed, tmp_path / "data") == "videos: 3 rows, 0 rejects"
    (row,) = (row for row in rows_of(tmp_path / "data") if row["video_id"] == id_of(clips / "a.mp4"))
    assert (row["uri"], row["split"]) == (f"{tmp_path}/copies/a.mp4", "test")
    run(clips, tmp_path / "data")
    (row,) = (row for row in rows_of(tmp_path / "data") if row["video_id"] == id_of(clips / "a.mp4"))
    assert (row["uri"], row["split"]) == (f"{clips}/a.mp4", "train")


def test_rejects_are_looked_at_again_on_each_run(clips: Path, written: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "list.jsonl", [{"uri": f"{clips}/a.mp4"}, {"uri": f"{clips}/late.mp4"}])
    key = f"{source}:2"
    for there, reason in ((None, "missing"), (b"", "empty_file"), (b"ok", None), (None, "missing"), (b"", "empty_file")):
        if there is None:
            (clips / "late.mp4").unlink(missing_ok=True)
        else:
            (clips / "late.mp4").write_bytes(there and (written / "other.mp4").read_bytes())
        run(source, tmp_path / "data")
        assert rejects_of(tmp_path / "data") == ({} if reason is None else {key: reason})
    assert len(rows_of(tmp_path / "data")) == 2, "found once, it stays"


def test_what_was_forgotten_stays_out(clips: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "data")
    forgotten = id_of(clips / "b.mp4")
    told = FORGOTTEN + forgotten
    forget(str(tmp_path / "data"), forgotten)
    for _ in range(2):
        assert run(clips, tmp_path / "data") == "videos: 2 rows, 1 rejects (forgotten 1)"
        assert forgotten not in uris_of(tmp_path / "data") and rejects_of(tmp_path / "data") == {told: "forgotten"}
    (clips / "b.mp4").rename(clips / "z.mp4")  # it is known by its content
    asked = write_jsonl(tmp_path / "asked.jsonl", [{"uri": f"{clips}/z.mp4", "question": "What?", "references": ["that"]}])
    assert run(clips, tmp_path / "data", asked) == (
        "videos: 2 rows, 2 rejects (forgotten 2); questions: 0 rows, 1 rejects (question_without_video 1)"
    )
    assert rejects_of(tmp_path / "data") == {told: "forgotten", f"{clips}/z.mp4": "forgotten"}


def test_a_survey_tells_what_a_run_would_find_and_reads_no_file(clips: Path, written: Path, tmp_path: Path) -> None:
    where = Where(data=str(tmp_path / "data"))
    run(clips, tmp_path / "data")
    shutil.copy(written / "other.mp4", clips / "new.mp4")
    (clips / "b.mp4").write_bytes(b"changed")
    rows = [{"uri": f"clips/{name}"} for name in ("a.mp4", "b.mp4", "new.mp4", "gone.mp4")]
    source = write_jsonl(tmp_path / "list.jsonl", [*rows, {"split": "test"}])
    n_bytes = (written / "other.mp4").stat().st_size + len(b"changed")
    expected = manifest.Survey(known=1, changed=1, new=1, missing=1, bad=1, n_bytes_to_read=n_bytes)
    assert manifest.survey(source, Recipe(), where) == expected
