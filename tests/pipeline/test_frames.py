"""Decoding by Ray Data, against clips whose grey level is the number of the frame; and each video decoded once, whatever comes later."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from clips import frame_numbers, regular, write_clip
from PIL import Image

from infra.artifacts import VIDEOS
from infra.attempt import ShardWriter
from infra.config import FilterSettings, FramesSettings, Recipe, Where
from infra.errors import BadInputError, StageFailedError, StorageError
from infra.sets import frames_set, sets_of
from infra.stage import failing
from infra.storage import Table
from pipeline import frames, manifest
from pipeline.known_files import with_versions
from video2lora.video import Sampling

Watch = Callable[[Path], AbstractContextManager[set[str]]]
RECIPE = Recipe(frames=FramesSettings(sampling=Sampling(n_frames=5), longest_edge_px=32, deadline_s=60.0))
N_FRAMES = (21, 13, 9, 41)


def recipe_with(**settings: Any) -> Recipe:
    return Recipe(frames=RECIPE.frames.model_copy(update=settings))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of N_FRAMES frames at 25/s, and one of which only a span counts."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "clips").mkdir()
    for n in N_FRAMES:
        write_clip(folder / f"clips/{n}.mp4", regular(n))
    rows = [f'{{"uri": "{n}.mp4"}}\n' for n in N_FRAMES] + ['{"uri": "41.mp4", "start_s": 0.4, "end_s": 0.81}\n']
    (folder / "clips/list.jsonl").write_text("".join(rows))
    manifest.run(str(folder / "clips/list.jsonl"), Recipe(), Where(data=str(folder / "data")))
    return folder


@pytest.fixture(scope="module")
def done(made: Path, tmp_path_factory: pytest.TempPathFactory, ray_of_two_cpus: None) -> Path:
    """The same, decoded."""
    folder = shutil.copytree(made / "data", tmp_path_factory.mktemp("done") / "data")
    assert frames.run(RECIPE, Where(data=str(folder))) == "frames: 5 rows, 0 rejects"
    return folder


@pytest.fixture
def videos(made: Path, tmp_path: Path) -> Path:
    """A data folder of this test's own: before the frames."""
    return shutil.copytree(made / "data", tmp_path / "data")


@pytest.fixture
def data(done: Path, tmp_path: Path) -> Path:
    """A data folder of this test's own: with frames."""
    return shutil.copytree(done, tmp_path / "data")


def frames_of(data: Path, recipe: Recipe = RECIPE) -> Table:
    return frames_set(recipe, str(data))


def rows_by_clip(data: Path, recipe: Recipe = RECIPE) -> dict[str, dict[str, Any]]:
    videos = {row["video_id"]: row for row in Table(str(data), "videos").read().to_pylist()}
    rows = frames_of(data, recipe).read().to_pylist()
    names = [Path(videos[row["video_id"]]["uri"]).stem + ("-span" if videos[row["video_id"]]["end_s"] else "") for row in rows]
    return dict(zip(names, rows, strict=True))


def commits(table: Table, *, attempt: int) -> list[str]:
    """Keys that a run committed, in their order."""
    entries = [entry for entry in table.log.read() if entry["kind"] == "commit" and entry["attempt"] == attempt]
    return [key for entry in entries for file in entry["add"] for key in file["keys"]]


def pixels(row: dict[str, Any]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in row["jpegs"]])


def test_each_video_gives_its_chosen_frames_once(done: Path) -> None:
    rows = rows_by_clip(done)
    assert sorted(rows) == ["13", "21", "41", "41-span", "9"]
    for n in N_FRAMES:
        row = rows[str(n)]
        assert frame_numbers(pixels(row)) == [(n - 1) * i // 4 for i in range(5)]
        assert row["timestamps_s"] == pytest.approx([(n - 1) * i / 100 for i in range(5)])
        assert row["duration_s"] == pytest.approx(n / 25, abs=0.002)
    assert frame_numbers(pixels(rows["41-span"])) == [10, 12, 15, 17, 20]
    assert all((row["sampling"], row["width_px"], row["height_px"]) == ("uniform-5", 32, 24) for row in rows.values())


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_a_killed_run_goes_on_behind_what_is_committed(videos: Path, done: Path) -> None:
    table, first = frames_of(videos), Table(str(videos), "videos").read().to_pylist()[0]
    attempt = frames.order(RECIPE, Where(data=str(videos))).begin()
    decoder = frames.DecodeVideos(RECIPE.frames, attempt.writer())
    attempt.write([frames.frames_row(first["video_id"], decoder.decode(first), RECIPE.frames)], [])
    decoder.decoder.close()
    assert frames.run(RECIPE, Where(data=str(videos))) == "frames: 5 rows, 0 rejects"
    assert rows_by_clip(videos) == rows_by_clip(done), "as an undisturbed run's"
    assert len(commits(table, attempt=2)) == 4 and first["video_id"] not in commits(table, attempt=2)


def test_a_finished_run_imports_no_ray_opens_no_video_and_writes_nothing(made: Path, data: Path, opened: Watch) -> None:
    before = sorted(path for path in data.rglob("*") if path.is_file())
    again = (
        "import sys; from pipeline import frames; from infra.config import Recipe, Where;"
        f"r = Recipe.model_validate_json({RECIPE.model_dump_json()!r});"
        f"print(frames.run(r, Where(data={str(data)!r})), 'ray' in sys.modules, 'torch' in sys.modules)"
    )
    with opened(made / "clips") as names:
        ran = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert ran.stdout == "frames: 5 rows, 0 rejects False False\n"
    assert ran.stderr == f"frames: {frames_of(data).folder} is complete, nothing to do\n"
    assert names == set() and sorted(path for path in data.rglob("*") if path.is_file()) == before


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_only_videos_that_are_new_are_decoded(made: Path, data: Path, tmp_path: Path, opened: Watch) -> None:
    """Of another SOURCE: one that moved there, a duplicate, one whose split changed, a new one."""
    table, before = frames_of(data), rows_by_clip(data)
    shards = {path: Path(path).read_bytes() for path in table.shards()}
    (tmp_path / "more").mkdir()
    shutil.copy(made / "clips/13.mp4", tmp_path / "more/13.mp4")
    shutil.copy(made / "clips/9.mp4", tmp_path / "more/9.mp4")
    shutil.copy(made / "clips/9.mp4", tmp_path / "more/copy.mp4")
    write_clip(tmp_path / "more/new.mp4", regular(17))
    rows = [{"uri": "13.mp4"}, {"uri": "9.mp4", "split": "test"}, {"uri": "copy.mp4"}, {"uri": "new.mp4"}]
    (tmp_path / "more/list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = Where(data=str(data))
    assert manifest.run(str(tmp_path / "more/list.jsonl"), RECIPE, where) == "videos: 6 rows, 1 rejects (duplicate 1)"
    with opened(made / "clips") as old, opened(tmp_path / "more") as new:
        assert frames.run(RECIPE, where) == "frames: 6 rows, 0 rejects"
    assert (old, new) == (set(), {"new.mp4"})
    after = rows_by_clip(data)
    assert frame_numbers(pixels(after["new"])) == [0, 4, 8, 12, 16]
    assert {name: row for name, row in after.items() if name != "new"} == before
    assert commits(table, attempt=2) == [after["new"]["video_id"]]
    assert {path: Path(path).read_bytes() for path in table.shards() if path in shards} == shards
    (tmp_path / "more/13.mp4").rename(tmp_path / "more/moved.mp4")
    manifest.run(str(tmp_path / "more"), RECIPE, where)
    with opened(tmp_path / "more") as names:  # a run that finds nothing to decode starts no Ray either
        assert frames.run(RECIPE, where) == "frames: 6 rows, 0 rejects"
    assert names == set() and commits(table, attempt=3) == []
    assert "moved" in rows_by_clip(data) and "13" not in rows_by_clip(data)


def test_a_set_is_named_by_what_its_pictures_depend_on(data: Path) -> None:
    """Another size or sampling is another set, filters too; how long a decode may take is nothing that a row shows."""
    others = [
        recipe_with(longest_edge_px=40), recipe_with(sampling=Sampling(n_frames=4)), recipe_with(jpeg_quality=90),
        recipe_with(filters=FilterSettings(min_motion=0.1)), recipe_with(filters=FilterSettings(near_duplicate_bits=4)),
    ]  # fmt: skip
    assert len({frames_of(data, recipe).set for recipe in [RECIPE, *others]}) == 6
    assert frames_of(data).set.startswith("uniform-5-32px-") and frames_of(data, others[0]).set.startswith("uniform-5-40px-")
    assert frames_of(data, recipe_with(deadline_s=1.0)) == frames_of(data)
    version = frames_of(data).state().version
    assert frames.run(recipe_with(deadline_s=1.0), Where(data=str(data))) == "frames: 5 rows, 0 rejects"
    assert frames_of(data).state().version == version


def grey(path: Path, levels: list[int], *, seed: int | None = None, qp: int = 4) -> None:
    """A clip of one second to each level; or of noise pictures of that seed, brightened by the levels."""
    import av

    rng = np.random.default_rng(seed)
    pattern = rng.integers(0, 100, (6, 8)).repeat(16, 0).repeat(16, 1)[..., None] if seed is not None else np.zeros((96, 128, 1))
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=1, options={"qp": str(qp), "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for i, level in enumerate(levels):
            image = np.broadcast_to(np.roll(pattern, 16 * i, axis=1) + level, (96, 128, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode(None))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_of_two_cpus")
def test_filters_refuse_with_a_reason_in_a_set_beside_the_others(data: Path, tmp_path: Path) -> None:
    limits = FilterSettings(max_black_share=0.5, max_frozen_share=0.5, min_motion=0.05, near_duplicate_bits=4)
    recipe, where = recipe_with(filters=limits), Where(data=str(data))
    before = frames_of(data).read(), frames_of(data).state().version
    (tmp_path / "more").mkdir()
    grey(tmp_path / "more/black.mp4", [0, 0, 0, 0, 200])
    grey(tmp_path / "more/frozen.mp4", [90, 90, 90, 90, 200])
    grey(tmp_path / "more/static.mp4", [90, 92, 94, 96, 98])
    grey(tmp_path / "more/moving.mp4", [0, 40, 80, 120, 150], seed=1)
    grey(tmp_path / "more/moving-worse.mp4", [0, 40, 80, 120, 150], seed=1, qp=20)
    grey(tmp_path / "more/other.mp4", [0, 40, 80, 120, 150], seed=2)
    splits = {path.name: "test" if path.stem == "moving-worse" else "train" for path in (tmp_path / "more").iterdir()}
    rows = [json.dumps({"uri": name, "split": split}) for name, split in splits.items()]
    (tmp_path / "more/list.jsonl").write_text("\n".join(rows))
    assert manifest.run(str(tmp_path / "more/list.jsonl"), recipe, where) == "videos: 11 rows, 0 rejects"
    moving = next(row for row in Table(str(data), "videos").read().to_pylist() if row["uri"].endswith("/moving.mp4"))
    killed = frames.order(recipe, where).begin()
    decode = frames.DecodeVideos(recipe.frames, killed.writer())
    killed.write([frames.frames_row(moving["video_id"], decode.decode(moving), recipe.frames)], [])
    decode.decoder.close()
    # Clips of plain grey: those of few frames hardly change between five, and two others are copies to a hash that sees no level.
    assert frames.run(recipe, where) == "frames: 3 rows, 8 rejects (black 1, frozen 1, near_duplicate 2, static 4)"
    names = {
        row["video_id"]: Path(row["uri"]).stem + ("-span" if row["end_s"] else "") for row in Table(str(data), "videos").read().to_pylist()
    }
    table, found = frames_of(data, recipe), {}
    for row in table.read_rejects().to_pylist():
        found.setdefault(row["reason"], {})[names[row["key"]]] = row
    copies = {frozenset((name, names[row["detail"].split()[-1]])) for name, row in found.pop("near_duplicate").items()}
    assert copies == {frozenset(("moving", "moving-worse")), frozenset(("21", "41"))}
    assert {reason: set(rows) for reason, rows in found.items()} == {
        "black": {"black"},
        "frozen": {"frozen"},
        "static": {"static", "9", "13", "41-span"},
    }
    kept = {names[name] for name in table.read(["video_id"])["video_id"].to_pylist()}
    assert "other" in kept and all(len(kept & pair) == 1 for pair in copies)
    assert kept & {"moving", "moving-worse"} == {"moving-worse"}, "it is tested on; and the run that decoded the other one was killed"
    assert (frames_of(data).read(), frames_of(data).state().version) == before
    assert [one.set for one, _ in sets_of(str(data), "frames")] == [frames_of(data).set, table.set]


def hashed_row(video_id: str, hashes: list[int]) -> dict[str, Any]:
    return {"video_id": video_id, "sampling": "uniform-5", "jpegs": [b""], "timestamps_s": [0.0], "duration_s": 1.0, "hashes": hashes}


def write_videos(data: Path, names: str) -> None:
    table = Table(str(data), "videos")
    attempt = table.begin({"of": names}, [f"{name}/v" for name in names])
    rows = [{"video_id": name, "version": "v", "uri": f"/{name}.mp4", "split": "train"} for name in names]
    attempt.write([row for row in rows if f"{row['video_id']}/v" in attempt.left], [])
    attempt.complete()


def test_of_near_duplicates_the_one_of_an_earlier_run_stays_and_else_the_first_by_id(tmp_path: Path) -> None:
    """Whatever was decoded first, also by a run that was killed. All is decoded here, so no Ray starts."""
    recipe, where = recipe_with(filters=FilterSettings(near_duplicate_bits=2)), Where(data=str(tmp_path))
    table, seen = frames_of(tmp_path, recipe), []
    hashes = {"c": [0b1], "d": [0b11], "e": [0b111 << 9], "f": [0b1], "a": [0b111], "b": [0b11111], "g": [0b11 << 9]}
    write_videos(tmp_path, "cdef")
    for name in "fd":
        frames.order(recipe, where).begin().write([hashed_row(name, hashes[name])], [])
    attempt = frames.order(recipe, where).begin()
    for name in "ec":
        attempt.write([hashed_row(name, hashes[name])], [])
    assert frames.run(recipe, where) == "frames: 2 rows, 2 rejects (near_duplicate 2)"
    seen.append({row["key"]: row["detail"].split()[-1] for row in table.read_rejects().to_pylist()})
    write_videos(tmp_path, "abcdefg")
    frames.order(recipe, where).begin().write([hashed_row(name, hashes[name]) for name in "gba"], [])
    assert frames.run(recipe, where) == "frames: 3 rows, 4 rejects (near_duplicate 4)"
    seen.append({row["key"]: row["detail"].split()[-1] for row in table.read_rejects().to_pylist()})
    assert seen == [{"d": "c", "f": "c"}, {"d": "c", "f": "c", "a": "c", "g": "e"}]
    assert sorted(table.read(["video_id"])["video_id"].to_pylist()) == ["b", "c", "e"]


def test_a_file_that_changed_since_the_manifest_gives_no_frames_of_the_video_it_held(data: Path, tmp_path: Path) -> None:
    """Written over, the like with what cannot be decoded, and touched only."""
    where = Where(data=str(data))
    (tmp_path / "more").mkdir()
    for n in (5, 6, 7):
        write_clip(tmp_path / f"more/{n}.mp4", regular(n))
    manifest.run(str(tmp_path / "more"), RECIPE, where)
    rows = {Path(row["uri"]).stem: row for row in Table(str(data), "videos").read().to_pylist()}
    write_clip(tmp_path / "more/5.mp4", regular(8))
    (tmp_path / "more/6.mp4").write_bytes(b"half a delivery")
    os.utime(tmp_path / "more/7.mp4", (1, 1))

    assert frames.run(RECIPE, where) == "frames: 6 rows, 2 rejects (superseded 2)"
    rejects = frames_of(data).read_rejects().to_pylist()
    assert {row["key"] for row in rejects} == {rows["5"]["video_id"], rows["6"]["video_id"]}
    assert all("run that again" in row["detail"] for row in rejects)
    (tmp_path / "more/6.mp4").unlink()
    assert manifest.run(str(tmp_path / "more"), RECIPE, where) == "videos: 8 rows, 1 rejects (superseded 1)"
    write_clip(tmp_path / "more/6.mp4", regular(6))  # as it was
    assert frames.run(RECIPE, where) == "frames: 8 rows, 0 rejects"
    assert frame_numbers(pixels(rows_by_clip(data)["6"])) == [0, 1, 2, 3, 5]


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


@pytest.mark.slow
@pytest.mark.usefixtures("ray_of_two_cpus")
def test_two_cpus_decode_two_clips_at_a_time(tmp_path: Path) -> None:
    import ray.data

    pipes = [tmp_path / "one.mp4", tmp_path / "other.mp4"]
    for pipe in pipes:
        os.mkfifo(pipe)
    rows = [{"video_id": pipe.stem, "uri": str(pipe), "split": "test"} for pipe in pipes]
    videos = with_versions(pa.Table.from_pylist(rows, schema=VIDEOS.schema), str(tmp_path))
    ds = ray.data.from_arrow([videos.slice(i, 1) for i in range(2)])
    found: list[bool] = []
    done = threading.Event()
    thread = threading.Thread(target=hold_both, args=(pipes, found, done))
    thread.start()
    writer = ShardWriter(frames_of(tmp_path), 1)
    told = frames.build(ds, RECIPE.frames.model_copy(update={"deadline_s": 300.0}), writer, n_decoders=2).take_all()
    done.set()
    thread.join()
    assert found == [True]
    assert sorted(json.loads(row["file"])["keys"] for row in told) == [["one"], ["other"]]


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
