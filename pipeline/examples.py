"""`frames` x `targets` -> `examples`: what training reads, a row per video with all its targets, shuffled, in even shards.

Reads: `frames`, `targets`, the split of `videos`. Writes: `examples`; videos that no target came for go to rejects.
Command: `video2lora examples`. Cost: about 1 ms per video.

A video's place in the shuffled order is drawn beforehand from the ids alone (sorted, then permuted by the recipe's
seed), so content and order are the same on any cluster and after any interruption. The texts are handed to every task as
one table and looked up: they are about 1 % of the bytes, and a join would send the frames through a shuffle of its own.
The one shuffle left is the sort by place.
"""

import sys
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.artifacts import EXAMPLES
from infra.config import Recipe, Where, load_recipe, load_where
from infra.errors import StageFailedError
from infra.progress import counting, say
from infra.stage import failing, summary
from infra.storage import Table, reject

if TYPE_CHECKING:
    import ray
    import ray.data

STAGE = "examples"
FRAME_COLUMNS = ["video_id", "jpegs", "timestamps_s", "duration_s"]
LOOKUP = pa.schema(
    [
        EXAMPLES.schema.field("video_id"),
        ("place", pa.int64()),
        EXAMPLES.schema.field("split"),
        EXAMPLES.schema.field("targets"),
    ]
)


def targets_by_video(targets: pa.Table) -> dict[str, list[dict[str, str]]]:
    """Each video's targets, sorted by prompt_id."""
    order = [("video_id", "ascending"), ("prompt_id", "ascending"), ("teacher", "ascending")]
    found: dict[str, list[dict[str, str]]] = {}
    for row in targets.sort_by(order).to_pylist():
        found.setdefault(row["video_id"], []).append({name: row[name] for name in ("task", "prompt", "target")})
    return found


def lookup_table(video_ids: list[str], targets: pa.Table, videos: pa.Table, *, seed: int) -> pa.Table:
    """What is added to the frames of each video that has targets, in the shuffled order; `place` counts from 0."""
    found = targets_by_video(targets)
    splits = dict(zip(videos["video_id"].to_pylist(), videos["split"].to_pylist(), strict=True))
    names = sorted(name for name in video_ids if name in found)
    shuffled = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    rows = [{"video_id": name, "place": i, "split": splits[name], "targets": found[name]} for i, name in enumerate(shuffled)]
    return pa.Table.from_pylist(rows, schema=LOOKUP)


def attach_targets(frames: pa.Table, lookup: pa.Table) -> pa.Table:
    """Frames of the videos in the lookup, with its columns beside them."""
    rows = pc.index_in(frames["video_id"].combine_chunks(), value_set=lookup["video_id"].combine_chunks())
    frames, added = frames.filter(rows.is_valid()), lookup.take(rows.drop_null())
    for name in ("place", "split", "targets"):
        frames = frames.append_column(name, added[name])
    return frames


def build(ds: "ray.data.Dataset", lookup: "ray.ObjectRef") -> "ray.data.Dataset":
    """Rows of `frames` -> rows of `examples`, and their `place`."""
    # 1. frames -> examples, n to at most n. Tasks of a whole core (the default): they copy bytes and nothing else.
    attach = partial(_attach, lookup=lookup)
    ds = ds.map_batches(attach, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)
    # 2. examples -> examples in their places, n to n. Ray's sort, which spills to disk where memory is short.
    return ds.sort("place")


def run(recipe: Recipe, where: Where) -> str:
    """Raises BadInputError, MadeFromOtherError, StorageError, RowsLostError, StageFailedError."""
    frames, targets, examples = (Table(where.data, name) for name in ("frames", "targets", "examples"))
    inputs = {"frames": frames.made_from(), "targets": targets.made_from()}
    if not examples.begin({"stage": STAGE, **recipe.section("examples"), "inputs": inputs}):
        say(f"examples: {examples.folder} is complete, nothing to do")
        return summary(examples)
    video_ids, done = frames.read(["video_id"])["video_id"].to_pylist(), examples.done_keys()
    videos = Table(where.data, "videos").read(["video_id", "split"])
    lookup = lookup_table(video_ids, targets.read(), videos, seed=recipe.examples.seed)
    without = sorted(set(video_ids) - set(lookup["video_id"].to_pylist()) - done)
    if without:
        examples.commit([], [reject(STAGE, name, "no_targets", "the teacher wrote nothing for it") for name in without])
    left = lookup.filter(pa.array([name not in done for name in lookup["video_id"].to_pylist()], pa.bool_()))
    if len(left):
        _write(frames, left, examples, where=where, rows_per_shard=recipe.examples.rows_per_shard)
    examples.complete(n_in=len(video_ids))
    return summary(examples)


def main() -> None:
    print(run(load_recipe(sys.argv[1]), load_where()))


def _write(frames: Table, lookup: pa.Table, examples: Table, *, where: Where, rows_per_shard: int) -> None:
    """Shards are committed in order, so what a killed run left undone begins at a shard's edge."""
    import ray.data  # here, so that a run with nothing to do starts in a second

    from infra.cluster import cluster

    with cluster(where), failing(STAGE), counting(STAGE, "videos", len(lookup)) as counter:
        if ray.cluster_resources().get("CPU", 0.0) < 1:
            raise StageFailedError("examples: the Ray cluster has less than 1 CPU")
        ds = build(ray.data.read_parquet(frames.shards()).select_columns(FRAME_COLUMNS), ray.put(lookup))
        for batch in ds.iter_batches(batch_size=rows_per_shard, batch_format="pyarrow"):
            shard = cast(pa.Table, batch)
            rows = shard.select(EXAMPLES.schema.names).to_pylist()
            examples.commit(rows, [], place=shard["place"][0].as_py() // rows_per_shard)
            counter.advance(len(rows))


def _attach(frames: pa.Table, *, lookup: "ray.ObjectRef") -> pa.Table:
    import ray

    return attach_targets(frames, ray.get(lookup))


if __name__ == "__main__":
    main()
