"""Joining and shuffling by Ray Data, against the same done in a few lines of Python."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.config import ExamplesSettings, Recipe, Where
from infra.errors import BadInputError, MadeFromOtherError
from infra.storage import Table
from pipeline import examples

N_VIDEOS, ROWS_PER_SHARD = 23, 5
RECIPE = Recipe(examples=ExamplesSettings(rows_per_shard=ROWS_PER_SHARD, seed=3))
WITHOUT = ("v07", "v15")  # the teacher wrote nothing for them
SPLITS = ("train", "train", "test", "train", "validation")


def names() -> list[str]:
    return [f"v{i:02d}" for i in range(N_VIDEOS)]


def frames_row(name: str) -> dict[str, Any]:
    jpegs = [f"{name} frame {i}".encode() for i in range(3)]
    numbers = {"timestamps_s": [0.0, 0.5, 1.0], "duration_s": 1.1, "height_px": 2, "width_px": 3}
    return {"video_id": name, "sampling": "uniform-3", "jpegs": jpegs} | numbers


def target_rows(name: str) -> list[dict[str, Any]]:
    """Between one and three, written in the wrong order."""
    n_targets = 1 + int(name[1:]) % 3
    rows = [{"prompt_id": f"p{i}", "task": f"task{i}", "prompt": f"prompt {i}", "target": f"{name} {i}"} for i in range(n_targets)]
    return [{"video_id": name, "teacher": "t", "n_tokens": 1, "finish_reason": "stop"} | row for row in reversed(rows)]


def write_table(data: Path, name: str, blocks: list[list[dict[str, Any]]]) -> None:
    table = Table(str(data), name)
    assert table.begin({"stage": f"test of {name}"})
    for rows in blocks:
        table.commit(rows, [])
    table.complete(n_in=sum(map(len, blocks)))


def write_inputs(data: Path) -> Where:
    """Shards are read in the order of random names, so two folders differ in the order of their inputs."""
    splits = [{"video_id": name, "uri": f"/{name}.mp4", "split": SPLITS[i % len(SPLITS)]} for i, name in enumerate(names())]
    write_table(data, "videos", [splits])
    write_table(data, "frames", [[frames_row(name) for name in names()[i::4]] for i in range(4)])
    write_table(data, "targets", [target_rows(name) for name in names() if name not in WITHOUT])
    return Where(data=str(data))


def expected() -> list[dict[str, Any]]:
    kept = [name for name in names() if name not in WITHOUT]
    shuffled = [kept[i] for i in np.random.default_rng(3).permutation(len(kept))]
    return [
        {key: frames_row(name)[key] for key in ("video_id", "jpegs", "timestamps_s", "duration_s")}
        | {"split": SPLITS[int(name[1:]) % len(SPLITS)]}
        | {"targets": [{key: row[key] for key in ("task", "prompt", "target")} for row in reversed(target_rows(name))]}
        for name in shuffled
    ]


def shard_sizes(table: Table) -> list[int]:
    return [pq.read_metadata(path).num_rows for path in table.shards()]


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_one_row_per_video_with_its_targets_in_the_shuffled_order(tmp_path: Path) -> None:
    where, table = write_inputs(tmp_path), Table(str(tmp_path), "examples")
    line = "examples: 21 rows, 2 rejects (no_targets 2)"
    assert examples.run(RECIPE, where) == line
    assert table.read().to_pylist() == expected()
    assert shard_sizes(table) == [5, 5, 5, 5, 1]
    rejects = {(row["stage"], row["key"], row["reason"]) for row in table.read_rejects().to_pylist()}
    assert rejects == {("examples", name, "no_targets") for name in WITHOUT}
    before = table.shards()
    assert examples.run(RECIPE, where) == line
    assert table.shards() == before


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_a_killed_run_ends_with_the_same_shards(tmp_path: Path) -> None:
    where, table = write_inputs(tmp_path), Table(str(tmp_path), "examples")
    inputs = {name: Table(str(tmp_path), name).made_from() for name in ("frames", "targets")}
    assert table.begin({"stage": "examples", **RECIPE.section("examples"), "inputs": inputs})
    for place in (0, 1):
        table.commit(expected()[place * ROWS_PER_SHARD : (place + 1) * ROWS_PER_SHARD], [], place=place)
    assert examples.run(RECIPE, where) == "examples: 21 rows, 2 rejects (no_targets 2)"
    assert table.read().to_pylist() == expected()
    assert shard_sizes(table) == [5, 5, 5, 5, 1]


def test_another_seed_gives_another_order_of_the_same_videos() -> None:
    import pyarrow as pa

    from infra.artifacts import TARGETS, VIDEOS

    targets = pa.Table.from_pylist([row for name in names() for row in target_rows(name)], schema=TARGETS.schema)
    videos = pa.Table.from_pylist([{"video_id": name, "split": "train"} for name in names()], schema=VIDEOS.schema)
    one, other = (examples.lookup_table(names(), targets, videos, seed=seed) for seed in (0, 1))
    assert one["video_id"].to_pylist() != other["video_id"].to_pylist()
    assert set(one["video_id"].to_pylist()) == set(other["video_id"].to_pylist())
    backwards = examples.lookup_table(names()[::-1], targets.take(list(range(len(targets)))[::-1]), videos, seed=0)
    assert backwards.equals(one)


def test_other_inputs_or_settings_are_refused_and_missing_ones_named(tmp_path: Path) -> None:
    where = Where(data=str(tmp_path))
    with pytest.raises(BadInputError, match="frames is not there"):
        examples.run(RECIPE, where)
    write_inputs(tmp_path)
    inputs = {name: Table(str(tmp_path), name).made_from() for name in ("frames", "targets")}
    Table(str(tmp_path), "examples").begin({"stage": "examples", **RECIPE.section("examples"), "inputs": inputs})
    other = Recipe(examples=ExamplesSettings(rows_per_shard=ROWS_PER_SHARD, seed=4))
    with pytest.raises(MadeFromOtherError, match=r"examples\.seed: there 3, here 4"):
        examples.run(other, where)
