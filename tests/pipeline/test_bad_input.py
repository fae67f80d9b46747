"""Input as it comes: each bad clip or row becomes a reject with its reason and the run goes on; a bad command is one clear line."""

import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clips import frame_numbers, regular, turn, write_audio, write_clip
from PIL import Image

from infra.attempt import ShardWriter
from infra.config import FramesSettings, Recipe, Where
from infra.errors import BadInputError
from infra.sets import frames_set
from infra.storage import Table
from pipeline import frames, manifest
from pipeline.known_files import with_versions
from pipeline.sources import read_source
from video2lora.video import Sampling

RECIPE = Recipe(frames=FramesSettings(sampling=Sampling(n_frames=5), longest_edge_px=64, deadline_s=60.0))
HUGE_PX = 2200
VARIABLE_MS = [0, 40, 80, 85, 90, 400, 410, 1000, 1010, 1500]


def run_manifest(source: Path | str, data: Path) -> str:
    return manifest.run(str(source), RECIPE, Where(data=str(data)))


def rejects_of(table: Table) -> dict[str, str]:
    return {row["key"]: row["reason"] for row in table.read_rejects().to_pylist()}


def videos_of(data: Path) -> Table:
    return Table(str(data), "videos")


def write_good_and_bad(folder: Path) -> None:
    folder.mkdir()
    (folder / "zero.mp4").touch()
    (folder / "text.mp4").write_text("This is not a video but a text.\n" * 50)
    whole = write_clip(folder / "whole.mp4", regular(20)).read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: whole.index(b"moov") - 4])  # the index comes last
    write_audio(folder / "audio.avi").rename(folder / "audio.mp4")
    write_clip(folder / "one.mp4", [0])
    write_clip(folder / "short.mp4", regular(3))
    write_clip(folder / "odd.mp4", regular(5), width_px=35, height_px=27)
    write_clip(folder / "huge.mp4", regular(5), width_px=HUGE_PX, height_px=1100)
    turn(write_clip(folder / "phone.mp4", regular(5)), 90)
    write_clip(folder / "variable.mp4", VARIABLE_MS)
    (folder / "nowhere.mp4").symlink_to(folder / "gone.mp4")


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_bad_clips_become_rejects_and_odd_ones_are_read(tmp_path: Path) -> None:
    write_good_and_bad(tmp_path / "clips")
    assert run_manifest(tmp_path / "clips", tmp_path) == "videos: 10 rows, 2 rejects (empty_file 1, missing 1)"
    clips = tmp_path / "clips"
    assert rejects_of(videos_of(tmp_path)) == {f"{clips}/zero.mp4": "empty_file", f"{clips}/nowhere.mp4": "missing"}
    line = frames.run(RECIPE, Where(data=str(tmp_path)))
    assert line == "frames: 7 rows, 3 rejects (no_video_stream 1, not_a_video 1, truncated 1)"
    names = {row["video_id"]: Path(row["uri"]).stem for row in videos_of(tmp_path).read().to_pylist()}
    table = frames_set(RECIPE, str(tmp_path))
    rejected = {names[key]: reason for key, reason in rejects_of(table).items()}
    assert rejected == {"text": "not_a_video", "truncated": "truncated", "audio": "no_video_stream"}
    rows = {names[row["video_id"]]: row for row in table.read().to_pylist()}
    shapes = {name: (row["width_px"], row["height_px"]) for name, row in rows.items()}
    assert shapes == {"whole": (64, 48), "one": (64, 48), "short": (64, 48), "odd": (64, 50), "huge": (64, 32), "phone": (48, 64),
                      "variable": (64, 48)}  # fmt: skip
    shown = {name: np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in row["jpegs"]]) for name, row in rows.items()}
    assert frame_numbers(shown["one"]) == [0] * 5
    assert frame_numbers(shown["short"]) == [0, 0, 1, 1, 2]
    assert frame_numbers(shown["odd"]) == frame_numbers(shown["huge"]) == frame_numbers(shown["phone"]) == [0, 1, 2, 3, 4]
    assert frame_numbers(shown["variable"]) == [0, 4, 6, 8, 9]  # on show at 0, 375, 750, 1125, 1500 ms


def test_a_clip_that_we_may_not_read_becomes_a_reject() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own lie below one that is root's alone
        Path(folder).chmod(0o777)
        write_clip(Path(folder, "clip.mp4"), regular(2)).chmod(0)
        source = read_source(folder)
        root = os.geteuid() == 0
        if root:  # may read everything, so become nobody for a while
            os.seteuid(65534)
        try:
            examined = manifest.examine(source, f"{folder}/data")
        finally:
            if root:
                os.seteuid(0)
        assert [(one["key"], one["reason"]) for one in examined.rejects] == [(f"{folder}/clip.mp4", "unreadable")]
        assert not examined.videos
        assert list(rejects_of(Table(f"{folder}/data", "files")).values()) == ["unreadable"]


def test_what_is_no_regular_file_becomes_a_reject_and_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    write_clip(tmp_path / "clip.mp4", regular(2))
    examined = manifest.examine(read_source(str(tmp_path)), str(tmp_path / "data"))
    assert [(one["key"], one["reason"]) for one in examined.rejects] == [(f"{tmp_path}/pipe.mp4", "unreadable")]
    assert [one.key for one in examined.videos] == [f"{tmp_path}/clip.mp4"]


def test_a_decode_that_hangs_ends_at_the_deadline_and_the_next_clip_is_read(tmp_path: Path) -> None:
    write_clip(tmp_path / "pipe.mp4", regular(7))
    write_clip(tmp_path / "clip.mp4", regular(9))
    run_manifest(tmp_path, tmp_path / "data")
    videos = videos_of(tmp_path / "data").read()
    ids = {Path(row["uri"]).stem: row["video_id"] for row in videos.to_pylist()}
    (tmp_path / "pipe.mp4").unlink()
    os.mkfifo(tmp_path / "pipe.mp4")
    table = frames_set(RECIPE, str(tmp_path))
    decode = frames.DecodeVideos(RECIPE.frames.model_copy(update={"deadline_s": 2.0}), ShardWriter(table, 1))
    told = decode(with_versions(videos, str(tmp_path / "data"))).to_pylist()
    decode.decoder.close()
    files = {one["kind"]: pq.read_table(f"{table.folder}/{one['path']}").to_pylist() for one in (json.loads(row["file"]) for row in told)}
    assert [row["video_id"] for row in files["rows"]] == [ids["clip"]]
    assert [(row["key"], row["reason"]) for row in files["rejects"]] == [(ids["pipe"], "deadline")]


def test_rows_that_are_not_what_they_should_be_become_rejects(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", regular(3))
    (tmp_path / "copy.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    rows = [
        '{"uri": "a.mp4"}', '{"split": "test"}', '{"uri": ""}', '{"uri": null}', '{"uri": "copy.mp4"}',
        '{"uri": "copy.mp4", "split": "test"}', '{"uri": "a.mp4", "split": "dev"}', '{"uri": 7}', '{"uri": "a.mp4", "start_s": "1"}',
        '{"uri": "a.mp4", "start_s": 2, "end_s": 1}', '{"uri": "a.mp4", "end_s": NaN}', "{", "[1]", '{"uri": "../a.mp4"}',
        '{"uri": "http://127.0.0.1:1/a.mp4"}', '{"uri": "\\ud800.mp4"}', "", '{"uri": "b.mp4"}',
    ]  # fmt: skip
    (tmp_path / "list.jsonl").write_text("\n".join(rows))
    source = tmp_path / "list.jsonl"
    line = run_manifest(source, tmp_path / "data")
    assert line == "videos: 1 rows, 16 rejects (bad_row 10, duplicate 2, missing 1, no_path 3)"
    reasons = ["no_path"] * 3 + ["duplicate"] * 2 + ["bad_row"] * 10 + ["missing"]
    numbers = [*range(2, 17), 18]
    assert rejects_of(videos_of(tmp_path / "data")) == {f"{source}:{n}": reason for n, reason in zip(numbers, reasons, strict=True)}
    details = {row["key"]: row["detail"] for row in videos_of(tmp_path / "data").read_rejects().to_pylist()}
    assert f"is {source}:1 (train)" in details[f"{source}:6"] and "(test)" in details[f"{source}:6"]
    assert "split" in details[f"{source}:7"] and "'dev'" in details[f"{source}:7"]


def name_of_surrogates(folder: Path) -> None:
    (folder / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"a name in Latin-1")


def test_a_name_that_is_no_text_becomes_a_reject(tmp_path: Path) -> None:
    name_of_surrogates(tmp_path)
    write_clip(tmp_path / "a.mp4", regular(3))
    assert run_manifest(tmp_path, tmp_path / "data") == "videos: 1 rows, 1 rejects (bad_row 1)"
    assert rejects_of(videos_of(tmp_path / "data")) == {f"{tmp_path}/caf\\udce9.mp4": "bad_row"}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing", None, "no such file or folder"),
        ("empty.jsonl", b"", "empty, expected one JSON object per line"),
        ("clip.mp4", b"\0\0\0\x18ftypisom\xff\xfe", "expected a folder of videos, a JSONL or a Parquet file"),
        ("text.jsonl", b"one\ntwo\n", "not JSONL"),
        ("other.jsonl", b'{"file": "a.mp4"}\n', "no row has a path; expected a column uri, path, video"),
        ("broken.parquet", b"PAR1 and no more", "not a Parquet file that can be read"),
    ],
)
def test_a_source_that_is_none_is_refused_by_name(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    source = tmp_path / name
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(BadInputError, match=says) as error:
        run_manifest(source, tmp_path / "data")
    assert str(source) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()


def test_a_folder_or_a_parquet_file_without_videos_is_refused(tmp_path: Path) -> None:
    (tmp_path / "read me.txt").write_text("no video")
    with pytest.raises(BadInputError, match="no video file in it"):
        run_manifest(tmp_path, tmp_path / "data")
    for rows, says in (([{"file": "a.mp4"}], "no row has a path"), ([], "no rows in it")):
        pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema([("file", pa.string())])), tmp_path / "list.parquet")
        with pytest.raises(BadInputError, match=says):
            run_manifest(tmp_path / "list.parquet", tmp_path / "data")


FULL = """
import resource, sys
from infra.config import Recipe, Where
from infra.errors import CommandError
from pipeline import manifest
resource.setrlimit(resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY))  # an entry of the log fits, a Parquet file of rows does not
try:
    manifest.run(sys.argv[1], Recipe(), Where(data=sys.argv[2]))
except CommandError as error:
    print(error)
    raise SystemExit(error.exit_code)
"""


def test_storage_that_takes_no_more_is_one_clear_line_and_the_next_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    write_clip(tmp_path / "clips/a.mp4", regular(3))
    data = tmp_path / "data"
    command = [sys.executable, "-c", FULL, str(tmp_path / "clips"), str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 5, done.stderr
    assert "cannot be written" in done.stdout and done.stdout.count("\n") == 1
    assert all(not Table(str(data), name).is_complete() and not Table(str(data), name).shards() for name in ("files", "videos"))
    assert not list(data.rglob("*.part"))
    assert run_manifest(tmp_path / "clips", data) == "videos: 1 rows, 0 rejects"
