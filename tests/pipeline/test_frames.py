"""Decoding by Ray Data, against clips whose grey level is the number of the frame."""

import contextlib
import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from clips import frame_numbers, regular, write_clip
from PIL import Image

from infra.artifacts import VIDEOS
from infra.config import FramesSettings, Recipe, Where
from infra.errors import BadInputError, MadeFromOtherError, StageFailedError, StorageError
from infra.stage import failing
from infra.storage import Table
from pipeline import frames, manifest
from video2lora.video import Sampling

RECIPE = Recipe(frames=FramesSettings(sampling=Sampling(n_frames=5), longest_edge_px=32, deadline_s=30.0))
N_FRAMES = (21, 13, 9, 41)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Videos of N_FRAMES frames at 25/s, and one of which only a span counts."""
    (tmp_path / "clips").mkdir()
    for n in N_FRAMES:
        write_clip(tmp_path / f"clips/{n}.mp4", regular(n))
    rows = [f'{{"uri": "{n}.mp4"}}\n' for n in N_FRAMES] + ['{"uri": "41.mp4", "start_s": 0.4, "end_s": 0.81}\n']
    (tmp_path / "clips/list.jsonl").write_text("".join(rows))
    manifest.run(str(tmp_path / "clips/list.jsonl"), Recipe(), Where(data=str(tmp_path)))
    return tmp_path


def rows_by_clip(data: Path) -> dict[str, dict[str, Any]]:
    videos = {row["video_id"]: row for row in Table(str(data), "videos").read().to_pylist()}
    rows = Table(str(data), "frames").read().to_pylist()
    names = [Path(videos[row["video_id"]]["uri"]).stem + ("-span" if videos[row["video_id"]]["end_s"] else "") for row in rows]
    return dict(zip(names, rows, strict=True))


def pixels(row: dict[str, Any]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in row["jpegs"]])


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_each_video_gives_its_chosen_frames_once(data: Path) -> None:
    assert frames.run(RECIPE, Where(data=str(data))) == "frames: 5 rows, 0 rejects"
    rows = rows_by_clip(data)
    assert sorted(rows) == ["13", "21", "41", "41-span", "9"]
    for n in N_FRAMES:
        row = rows[str(n)]
        assert frame_numbers(pixels(row)) == [(n - 1) * i // 4 for i in range(5)]
        assert row["timestamps_s"] == pytest.approx([(n - 1) * i / 100 for i in range(5)])
        assert row["duration_s"] == pytest.approx(n / 25, abs=0.002)
    assert frame_numbers(pixels(rows["41-span"])) == [10, 12, 15, 17, 20]
    assert all((row["sampling"], row["width_px"], row["height_px"]) == ("uniform-5", 32, 24) for row in rows.values())


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_a_killed_run_goes_on_and_a_complete_one_starts_nothing(data: Path) -> None:
    videos, table = Table(str(data), "videos"), Table(str(data), "frames")
    made_from = {"stage": "frames", **RECIPE.section("frames"), "inputs": {"videos": videos.made_from()}}
    assert table.begin(made_from)
    first = videos.read().to_pylist()[0]
    decoder = frames.DecodeVideos(RECIPE.frames)
    table.commit([frames.frames_row(first["video_id"], decoder.decode(first), RECIPE.frames)], [])
    decoder.decoder.close()
    assert frames.run(RECIPE, Where(data=str(data))) == "frames: 5 rows, 0 rejects"
    assert len(rows_by_clip(data)) == 5
    again = (
        "import sys; from pipeline import frames; from infra.config import Recipe, Where;"
        f"r = Recipe.model_validate_json({RECIPE.model_dump_json()!r});"
        f"print(frames.run(r, Where(data={str(data)!r})), 'ray' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout == "frames: 5 rows, 0 rejects False False\n"
    assert "is complete, nothing to do" in done.stderr


def test_frames_of_another_recipe_are_refused(data: Path) -> None:
    table = Table(str(data), "frames")
    table.begin({"stage": "frames", **RECIPE.section("frames"), "inputs": {"videos": Table(str(data), "videos").made_from()}})
    other = Recipe(frames=RECIPE.frames.model_copy(update={"longest_edge_px": 40}))
    with pytest.raises(MadeFromOtherError, match=r"frames\.longest_edge_px: there 32, here 40"):
        frames.run(other, Where(data=str(data)))


def test_frames_without_videos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="run the stage that makes it first"):
        frames.run(RECIPE, Where(data=str(tmp_path)))


def test_the_plan_fits_the_cluster() -> None:
    assert [frames.decoders_that_fit(n) for n in (0.9, 1.0, 2.0, 16.0)] == [1, 1, 2, 16]
    with pytest.raises(StageFailedError, match=r"has 0\.5 CPUs"):
        frames.decoders_that_fit(0.5)


def hold_both(pipes: list[Path], found: list[bool], done: threading.Event) -> None:
    """Opening a pipe waits for a reader; writing to the first, with the second open too, fails if its reader has gone."""
    with open(pipes[0], "wb", buffering=0) as one, open(pipes[1], "wb", buffering=0) as other:
        found.append(one.write(b"no") == other.write(b"no"))
    while not done.wait(0.05):  # let go whoever opens them again
        for pipe in pipes:
            with contextlib.suppress(OSError):
                os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_two_cpus_decode_two_clips_at_a_time(tmp_path: Path) -> None:
    import ray.data

    pipes = [tmp_path / "one.mp4", tmp_path / "other.mp4"]
    for pipe in pipes:
        os.mkfifo(pipe)
    rows = [{"video_id": pipe.stem, "uri": str(pipe), "split": "test"} for pipe in pipes]
    ds = ray.data.from_arrow([pa.Table.from_pylist([row], schema=VIDEOS.schema) for row in rows])
    found: list[bool] = []
    done = threading.Event()
    thread = threading.Thread(target=hold_both, args=(pipes, found, done))
    thread.start()
    outcomes = frames.build(ds, RECIPE.frames.model_copy(update={"deadline_s": 300.0}), n_decoders=2).take_all()
    done.set()
    thread.join()
    assert found == [True]
    assert sorted(row["reject"]["key"] for row in outcomes) == ["one/uniform-5", "other/uniform-5"]


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_what_stops_a_worker_is_one_clear_error() -> None:
    import ray

    @ray.remote
    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(StorageError, match=r"^the bucket is out of reach$"), failing("frames"):
        ray.get(fail.remote(StorageError("the bucket is out of reach")))
    with pytest.raises(StageFailedError, match=r"^frames: .*memory is broken; run the same command again"), failing("frames"):
        ray.get(fail.remote(RuntimeError("the memory is broken")))
