"""Joining and shuffling by Ray Data, against the same done in a few lines of Python; and what changed is made anew, alone."""

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from infra.artifacts import EXAMPLES, LOGPROBS, TARGETS, VIDEOS
from infra.config import ExamplesSettings, FramesSettings, Recipe, TeacherSettings, Where
from infra.errors import BadInputError, StorageError
from infra.sets import examples_set, frames_made, frames_set, made_targets, targets_made, targets_set
from infra.stage import Order
from infra.storage import Table
from pipeline import examples
from video2lora.video import Sampling

Watch = Callable[[Path], AbstractContextManager[set[str]]]
N_VIDEOS, ROWS_PER_SHARD, N_FRAME_FILES, N_TARGET_FILES = 23, 5, 4, 3
RECIPE = Recipe(frames=FramesSettings(sampling=Sampling(n_frames=3)), examples=ExamplesSettings(rows_per_shard=ROWS_PER_SHARD, seed=3))
WITH_LOGPROBS = RECIPE.model_copy(update={"teacher": TeacherSettings(logprobs=2)})
WITHOUT = ("v07", "v15")  # the teacher wrote nothing for them
SPLITS = ("train", "train", "test", "train", "validation")


def target_rows(name: str) -> list[dict[str, str]]:
    """Between one and three, written in the wrong order."""
    n_targets = 1 + int(name[1:]) % 3
    return [{"prompt_id": f"p{i}", "task": f"task{i}", "prompt": f"prompt {i}", "target": f"{name} {i}"} for i in range(n_targets)][::-1]


@dataclass
class World:
    """What the inputs say of each video that is there."""

    splits: dict[str, str] = field(default_factory=lambda: {f"v{i:02d}": SPLITS[i % len(SPLITS)] for i in range(N_VIDEOS)})
    targets: dict[str, list[dict[str, str]]] = field(
        default_factory=lambda: {f"v{i:02d}": target_rows(f"v{i:02d}") for i in range(N_VIDEOS) if f"v{i:02d}" not in WITHOUT}
    )


def frames_row(name: str) -> dict[str, Any]:
    jpegs = [f"{name} frame {i}".encode() for i in range(3)]
    numbers = {"timestamps_s": [0.0, 0.5, 1.0], "duration_s": 1.1, "height_px": 2, "width_px": 3}
    return {"video_id": name, "sampling": "uniform-3", "jpegs": jpegs} | numbers


def write_table(order: Order, rows: list[dict[str, Any]], *, n_files: int = 1) -> None:
    """Rows that are not there yet."""
    attempt = order.begin()
    left = [row for row in rows if order.table.spec.key_of(row) in attempt.left]
    for i in range(n_files):
        attempt.write(left[i::n_files], [])
    attempt.complete()


def logprobs_of(text: str) -> dict[str, list[Any]]:
    """As many tokens as letters, of the 2 likeliest each; every number is of this text alone."""
    ids = [ord(letter) for letter in text]
    return {
        "token_ids": ids,
        "top_token_ids": [other for one in ids for other in (one, one + len(text))],
        "top_logprobs": [value for one in ids for value in (-one / 256, -float(len(text)))],
    }


def write_inputs(data: Path, world: World, *, recipe: Recipe = RECIPE) -> Where:
    """Files are read in the order of random names, so two folders differ in the order of their inputs."""
    root = str(data)
    videos = [{"video_id": name, "version": split, "uri": f"/{name}.mp4", "split": split} for name, split in world.splits.items()]
    write_table(Order(Table(root, "videos"), {"of": repr(world)}, [VIDEOS.key_of(row) for row in videos]), videos)
    frames = Order(frames_set(RECIPE, root), {"of": repr(world)}, list(world.splits), frames_made(RECIPE))
    write_table(frames, [frames_row(name) for name in world.splits], n_files=N_FRAME_FILES)
    others = {"version": "v", "teacher": "t", "n_tokens": 1, "finish_reason": "stop"}
    targets = [{"video_id": name} | others | row | {"version": row["target"][-8:]} for name, rows in world.targets.items() for row in rows]
    targets = [row | logprobs_of(row["target"]) for row in targets]  # also where the recipe asks for none: they are not to be read
    table, made = targets_set(recipe, root, weights="w"), targets_made(recipe, weights="w")
    write_table(Order(table, {"of": repr(world)}, [TARGETS.key_of(row) for row in targets], made), targets, n_files=N_TARGET_FILES)
    return Where(data=root)


def expected(world: World, *, has_logprobs: bool = False) -> list[dict[str, Any]]:
    """In the shuffled order; without the version."""
    nothing = dict.fromkeys(LOGPROBS)
    kept = sorted(set(world.splits) & set(world.targets))
    shuffled = [kept[i] for i in np.random.default_rng(3).permutation(len(kept))]
    return [
        {key: frames_row(name)[key] for key in ("video_id", "jpegs", "timestamps_s", "duration_s")}
        | {"split": world.splits[name]}
        | {
            "targets": [
                {key: row[key] for key in ("task", "prompt", "target")} | (logprobs_of(row["target"]) if has_logprobs else nothing)
                for row in reversed(world.targets[name])
            ]
        }
        for name in shuffled
    ]


def table_of(data: Path, recipe: Recipe = RECIPE) -> Table:
    return examples_set(recipe, made_targets(recipe, str(data)))


def read(table: Table) -> list[dict[str, Any]]:
    """Without the version."""
    return table.read().drop_columns("version").to_pylist()


def in_shards(table: Table) -> list[str]:
    """Ids of all rows in the files, which training reads whole."""
    return [name for path in table.shards() for name in pq.read_table(path)["video_id"].to_pylist()]


def shard_sizes(table: Table) -> list[int]:
    return [pq.read_metadata(path).num_rows for path in table.shards()]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, ray_of_two_cpus: None) -> Path:
    data = tmp_path_factory.mktemp("done")
    assert examples.run(RECIPE, write_inputs(data, World())) == "examples: 21 rows, 2 rejects (no_targets 2)"
    return data


@pytest.fixture
def data(done: Path, tmp_path: Path) -> Path:
    """A copy of this test's own."""
    return shutil.copytree(done, tmp_path / "data")


@pytest.mark.slow
def test_one_row_per_video_with_its_targets_in_the_shuffled_order(done: Path) -> None:
    table = table_of(done)
    assert read(table) == expected(World())
    assert shard_sizes(table) == [5, 5, 5, 5, 1]
    rejects = {(row["stage"], row["key"], row["reason"]) for row in table.read_rejects().to_pylist()}
    assert rejects == {("examples", f"{name}/none", "no_targets") for name in WITHOUT}
    versions = table.read(["version"])["version"].to_pylist()
    assert len(set(versions)) == len(versions) and {len(version) for version in versions} == {8}


@pytest.mark.slow
def test_a_finished_run_imports_no_ray_and_writes_nothing(data: Path) -> None:
    before = sorted(path for path in data.rglob("*") if path.is_file())
    again = (
        "import sys; from pipeline import examples; from infra.config import Recipe, Where;"
        f"r = Recipe.model_validate_json({RECIPE.model_dump_json()!r});"
        f"print(examples.run(r, Where(data={str(data)!r})), 'ray' in sys.modules, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert ran.stdout == "examples: 21 rows, 2 rejects (no_targets 2) False False\n"
    assert ran.stderr == f"examples: {table_of(data).folder} is complete, nothing to do\n"
    assert sorted(path for path in data.rglob("*") if path.is_file()) == before


@pytest.mark.slow
@pytest.mark.usefixtures("ray_of_two_cpus")
def test_a_killed_run_ends_with_the_same_shards(done: Path, tmp_path: Path) -> None:
    where = write_inputs(tmp_path, World())
    attempt, whole = examples.order(RECIPE, where).begin(), table_of(done).read().to_pylist()
    for place in (0, 1):
        attempt.write(whole[place * ROWS_PER_SHARD : (place + 1) * ROWS_PER_SHARD], [], place=place)
    first = table_of(tmp_path).shards()
    assert examples.run(RECIPE, where) == "examples: 21 rows, 2 rejects (no_targets 2)"
    assert table_of(tmp_path).read().to_pylist() == whole, "inputs were read in another order"
    assert shard_sizes(table_of(tmp_path)) == [5, 5, 5, 5, 1] and table_of(tmp_path).shards()[:2] == first


@pytest.mark.slow
@pytest.mark.usefixtures("ray_of_two_cpus")
def test_what_changed_is_made_anew_and_nothing_else(data: Path, opened: Watch) -> None:
    """A target's text, a split, a video that left, and one that the teacher wrote for now."""
    table, world = table_of(data), World()
    before = {row["video_id"]: row for row in table.read().to_pylist()}
    held = {path: (Path(path).read_bytes(), set(pq.read_table(path)["video_id"].to_pylist())) for path in table.shards()}
    world.targets["v03"][0]["target"] = "another text"
    world.splits["v04"] = "test"
    del world.splits["v05"]
    world.targets["v07"] = target_rows("v07")
    where = write_inputs(data, world)
    assert examples.run(RECIPE, where) == "examples: 21 rows, 1 rejects (no_targets 1)"
    after = {row["video_id"]: row for row in table.read().to_pylist()}
    by_id = {row["video_id"]: row for row in expected(world)}
    assert {name: {key: row[key] for key in row if key != "version"} for name, row in after.items()} == by_id
    assert {name for name in after if before.get(name) != after[name]} == {"v03", "v04", "v07"}
    assert {before[name]["version"] == after[name]["version"] for name in ("v03", "v04")} == {False}
    assert sorted(in_shards(table)) == sorted(after), "stale rows have left the files"
    untouched = {path for path, (_, ids) in held.items() if ids.isdisjoint({"v03", "v04", "v05"})}
    assert untouched and untouched == set(table.shards()) & held.keys()
    assert all(Path(path).read_bytes() == held[path][0] for path in untouched)
    assert not [path for path in held if path not in untouched and Path(path).exists()], "the old files are gone"
    assert [row["key"] for row in table.read_rejects().to_pylist()] == ["v15/none"]

    back = copy.deepcopy(world)
    back.targets["v03"] = target_rows("v03")
    write_inputs(data, back)
    shards = Path(frames_set(RECIPE, str(data)).folder, "shards")
    (needed,) = (path.name for path in shards.iterdir() if "v03" in pq.read_table(path)["video_id"].to_pylist())
    with opened(shards) as names:
        assert examples.run(RECIPE, where) == "examples: 21 rows, 1 rejects (no_targets 1)"
    assert names == {needed}, "of the pictures, only the file that holds the video's"
    again = {row["video_id"]: row for row in table.read().to_pylist()}
    assert again == after | {"v03": before["v03"]} and sorted(in_shards(table)) == sorted(again)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_of_two_cpus")
def test_log_probabilities_arrive_with_their_own_targets(tmp_path: Path) -> None:
    """Also of a target that was said anew and of one that is wanted no longer, which stand in files beside the others."""
    world = World()
    write_inputs(tmp_path, world, recipe=WITH_LOGPROBS)
    world.targets["v03"][0]["target"] = "a longer text"
    world.targets["v04"].pop()
    where = write_inputs(tmp_path, world, recipe=WITH_LOGPROBS)
    assert examples.run(WITH_LOGPROBS, where) == "examples: 21 rows, 2 rejects (no_targets 2)"
    table = table_of(tmp_path, WITH_LOGPROBS)
    assert read(table) == expected(world, has_logprobs=True)
    assert shard_sizes(table) == [5, 5, 5, 5, 1]


def lookup_of(world: World, where: Where, recipe: Recipe, *, has_logprobs: bool) -> pa.Table:
    """Of all videos that have frames."""
    targets, videos = made_targets(recipe, where.data), Table(where.data, "videos").read(["video_id", "split"])
    files = {key: address for address, keys in targets.shards_of(targets.keys().to_pylist()).items() for key in keys}
    return examples.lookup_table(list(world.splits), targets.read(), videos, seed=3, files=files if has_logprobs else None)


def test_log_probabilities_are_read_where_frames_are_and_only_where_asked_for(tmp_path: Path, opened: Watch) -> None:
    world = World()
    where = write_inputs(tmp_path, world, recipe=WITH_LOGPROBS)
    frames = frames_set(RECIPE, where.data).read(examples.FRAME_COLUMNS)
    folder = Path(made_targets(WITH_LOGPROBS, where.data).folder, "shards")
    for has_logprobs in (True, False):
        lookup = lookup_of(world, where, WITH_LOGPROBS, has_logprobs=has_logprobs)
        with opened(folder) as names:
            attached = examples.attach_targets(frames, lookup).sort_by("place").select(EXAMPLES.schema.names).cast(EXAMPLES.schema)
        assert attached.drop_columns("version").to_pylist() == expected(world, has_logprobs=has_logprobs)
        assert len(names) == (N_TARGET_FILES if has_logprobs else 0)
        part = lookup.filter(pc.is_in(lookup["video_id"], value_set=pa.array(["v04", "v09"])))
        few = examples.attach_targets(frames, part.slice(1))
        assert few["targets"].to_pylist() == attached.filter(pc.equal(attached["video_id"], few["video_id"][0]))["targets"].to_pylist()


def test_a_target_that_left_its_file_is_no_silent_gap(tmp_path: Path) -> None:
    world = World()
    where = write_inputs(tmp_path, world, recipe=WITH_LOGPROBS)
    lookup = lookup_of(world, where, WITH_LOGPROBS, has_logprobs=True)
    shard = made_targets(WITH_LOGPROBS, where.data).shards()[0]
    rows = pq.read_table(shard)
    pq.write_table(rows.slice(1), shard)
    with pytest.raises(StorageError, match=rf"has {len(rows) - 1} of {len(rows)} targets: `video2lora verify --repair`"):
        examples.attach_targets(frames_set(RECIPE, where.data).read(examples.FRAME_COLUMNS), lookup)


def test_another_seed_gives_another_order_of_the_same_videos() -> None:
    names, rows = list(World().splits), [{"video_id": name} | row for name, its in World().targets.items() for row in its]
    targets = pa.Table.from_pylist(rows, schema=TARGETS.schema)
    videos = pa.Table.from_pylist([{"video_id": name, "split": "train"} for name in names], schema=VIDEOS.schema)
    one, other = (examples.lookup_table(names, targets, videos, seed=seed) for seed in (0, 1))
    assert one["video_id"].to_pylist() != other["video_id"].to_pylist()
    assert set(EXAMPLES.keys_of(one).to_pylist()) == set(EXAMPLES.keys_of(other).to_pylist())
    backwards = examples.lookup_table(names[::-1], targets.take(list(range(len(targets)))[::-1]), videos, seed=0)
    assert backwards.equals(one)


def test_a_version_says_split_and_targets() -> None:
    def version(split: str, *texts: str) -> str:
        rows = [{"video_id": "v", "prompt_id": f"p{i}", "task": "t", "prompt": "p", "target": text} for i, text in enumerate(texts)]
        videos = pa.table({"video_id": ["v"], "split": [split]})
        return str(examples.lookup_table(["v"], pa.Table.from_pylist(rows, schema=TARGETS.schema), videos, seed=0)["version"][0])

    assert version("train", "a", "b") == version("train", "a", "b")
    assert len({version("train", "a", "b"), version("test", "a", "b"), version("train", "a"), version("train", "b", "a")}) == 4


def test_other_settings_are_a_set_beside_and_missing_inputs_are_named(tmp_path: Path) -> None:
    where = Where(data=str(tmp_path))
    with pytest.raises(BadInputError, match="no complete set of this recipe's teacher and frames: run `video2lora targets` first"):
        examples.run(RECIPE, where)
    write_inputs(tmp_path, World())
    other = RECIPE.model_copy(update={"examples": ExamplesSettings(rows_per_shard=ROWS_PER_SHARD, seed=4)})
    assert table_of(tmp_path).folder != table_of(tmp_path, other).folder
    frames_set(RECIPE, str(tmp_path)).begin({"of": "a run that was killed"}, ["v00"])
    with pytest.raises(BadInputError, match=r"frames/uniform-3-384px-\w{8} is not there or not complete"):
        examples.run(RECIPE, where)
