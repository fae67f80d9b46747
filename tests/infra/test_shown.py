"""What the tables hold, in a line each and by video."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra import sets
from infra.storage import Table
from tests.infra.made_tables import IDS, RECIPE, WEIGHTS, make_root, row

Command = Callable[..., Any]

MADE = ["files", "videos", "questions", "scenes", "frames", "targets", "examples", "visual_tokens", "answers", "judgements"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("VIDEO2LORA_DATA", str(tmp_path / "data"))
    return make_root(tmp_path / "data")


def test_every_table_in_a_line(root: str, command: Command) -> None:
    frames = sets.frames_set(RECIPE, root)
    frames.begin({"more": 1}, [*IDS[1:], "f" * 20])
    found = {one["table"]: one for one in json.loads(command("ls", "--json").out)["tables"]}
    assert list(found) == MADE
    one = found["frames"]
    assert (one["n_rows"], one["n_rejects"], one["n_pending"], one["n_obsolete"], one["n_wanted"]) == (3, 1, 1, 1, 5)
    assert one["rejects"] == {"decode_error": 1} and one["set"] == frames.set and not one["complete"]
    assert one["made"] == sets.frames_made(RECIPE) and one["attempt"] == 2
    assert one["n_bytes"] == sum(path.stat().st_size for path in Path(frames.folder).glob("[sr]*/*.parquet"))
    assert found["targets"]["complete"] and found["targets"]["rejects"] == {"unfinished_target": 1}

    ran = command("ls")
    (line,) = [line for line in ran.out.splitlines() if "│ frames " in line]
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells[1:6] == [frames.set, "3", "1", "1", "1"] and cells[7] == "open"
    assert f"{frames.folder}: rejects: decode_error 1" in ran.out
    assert "Z" in cells[8] and cells[9]


def test_one_table_with_what_made_it(root: str, command: Command) -> None:
    ran = command("ls", "targets")
    assert WEIGHTS in ran.out and "│ frames " not in ran.out and "│ targets " in ran.out
    ran = command("ls", "rows")
    assert ran.code == 3 and "rows: no such table, expected one of files, " in ran.err


def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.setenv("VIDEO2LORA_DATA", str(tmp_path / "none"))
    assert json.loads(command("ls", "--json").out)["tables"] == []
    ran = command("show", "abc")
    assert ran.code == 3 and "no video in" in ran.err


def test_a_video_in_all_tables(root: str, command: Command) -> None:
    found = json.loads(command("show", IDS[1], "--json").out)
    assert found["video_id"] == IDS[1] and not found["forgotten"]
    tables = {one["table"]: one for one in found["tables"]}
    assert list(tables) == MADE
    assert [one["key"] for one in tables["answers"]["rows"]] == ["q10/ours", "q11/ours"]
    caption, summary = tables["targets"]["rows"]
    assert caption["kind"] == "reject" and caption["holds"]["reason"] == "unfinished_target"
    assert summary["kind"] == "row" and summary["holds"]["prompt"] == "Give a summary of this video."
    assert summary["holds"]["teacher"] == WEIGHTS and tables["targets"]["made"]["weights"] == WEIGHTS
    assert summary["run"]["attempt"] == 1 and ":" in summary["run"]["who"]
    targets = sets.made_targets(RECIPE, root)
    assert (Path(targets.folder) / summary["file"]).is_file() and (Path(targets.folder) / caption["file"]).is_file()
    (frames,) = tables["frames"]["rows"]
    assert "jpegs" not in frames["holds"] and frames["holds"]["timestamps_s"] == [0.0, 1.0]

    text = command("show", IDS[1]).out
    for said in ("unfinished_target", "Give a summary of this video.", summary["file"], "written by run 1 of ", "(obsolete)"):
        assert (said in text) == (said != "(obsolete)")


def test_a_video_that_was_rejected(root: str, command: Command) -> None:
    found = {one["table"]: one["rows"] for one in json.loads(command("show", IDS[2], "--json").out)["tables"]}
    assert "targets" not in found
    assert [one["holds"]["reason"] for one in found["frames"]] == ["decode_error"]


def test_an_obsolete_row_is_marked(root: str, command: Command) -> None:
    sets.frames_set(RECIPE, root).begin({"fewer": 1}, IDS[1:]).complete()
    assert f"{IDS[0]} (obsolete): row in shards/" in command("show", IDS[0]).out


def test_by_a_beginning_and_by_a_file_wherever_it_lies(root: str, tmp_path: Path, command: Command) -> None:
    moved = tmp_path / "elsewhere.mp4"
    shutil.copy(f"{root}/3.mp4", moved)
    for named in (IDS[3][:9], moved, f"{root}/3.mp4"):
        assert json.loads(command("show", named, "--json").out)["video_id"] == IDS[3]


def test_a_name_that_is_not_one_videos(root: str, tmp_path: Path, command: Command) -> None:
    ran = command("show", "")
    assert ran.code == 3 and "5 videos in" in ran.err and IDS[0] in ran.err
    ran = command("show", "zz")
    assert ran.code == 3 and "zz: no video in" in ran.err
    unknown = tmp_path / "unknown.mp4"
    unknown.write_bytes(b"another")
    ran = command("show", unknown)
    assert ran.code == 3 and "or this content" in ran.err
    unknown.write_bytes(b"")
    assert command("show", unknown).code == 3


def test_spans_of_a_file_are_found_by_it(root: str, command: Command) -> None:
    videos = Table(root, "videos")
    cut = row(videos, video_id="a" * 20, version="v1", uri=f"{root}/0.mp4", start_s=1.0, end_s=2.0, split="train")
    attempt = videos.begin({"spans": 1}, [*videos.wanted().to_pylist(), videos.spec.key_of(cut)])
    attempt.write([cut], [])
    attempt.complete()
    ran = command("show", f"{root}/0.mp4")
    assert ran.code == 3 and "2 videos in" in ran.err and "a" * 20 in ran.err


def test_a_forgotten_video_is_known_as_such(root: str, command: Command) -> None:
    command("forget", IDS[0], "--yes")
    assert f"video {IDS[0]}, forgotten" in command("show", IDS[0][:8]).out
