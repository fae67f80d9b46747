"""`frames` x `targets` -> `examples`: what training reads, a row per video with all its targets, shuffled, in even shards.

Reads: `frames`, `targets`, the split of `videos`. Writes: `examples`; videos that no target came for go to rejects.
Command: `video2lora examples`. Cost: about 1 ms per video; with log-probabilities, the reading of a file of targets beside each of frames.

A video's place in the shuffled order is drawn beforehand from the ids alone (sorted, then permuted by the recipe's
seed), so content and order are the same on any cluster and after any interruption. Each shard of frames is read by one task,
which is handed the texts of its videos: a join would send the frames through a shuffle of its own. The one shuffle left is
the sort by place. The teacher's log-probabilities (10 kB a target) never pass the driver: it says in which files they are.

A video whose targets or split have changed is another version of its row: the old one leaves, by writing the shards that held
it anew, so that training can read shards whole.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.artifacts import EXAMPLES, LOGPROBS, TARGETS
from infra.attempt import Attempt, reject
from infra.config import Recipe, Where, load_recipe, load_where
from infra.digests import short_hash
from infra.errors import StageFailedError, StorageError
from infra.objects import read_json
from infra.progress import counting, say
from infra.sets import examples_made, examples_set, frames_set, hypernetworks_of, made_targets
from infra.stage import Order, failing, summary
from infra.state import ROWS
from infra.storage import Table, read_shard

if TYPE_CHECKING:
    import ray.data

STAGE = "examples"
NO_TARGETS = "none"  # the version of a video that no target came for
TEXTS = ("task", "prompt", "target")
FRAME_COLUMNS = ["video_id", "jpegs", "timestamps_s", "duration_s"]
LOOKUP = pa.schema(
    [
        EXAMPLES.schema.field("video_id"),
        EXAMPLES.schema.field("version"),
        ("place", pa.int64()),
        EXAMPLES.schema.field("split"),
        (
            "targets",
            pa.list_(pa.struct({name: pa.string() for name in (*TEXTS, "key", "file")})),
        ),  # file: of its log-probabilities, or null
    ]
)


def targets_by_video(targets: pa.Table) -> dict[str, list[dict[str, str]]]:
    """Each video's targets with their keys, sorted by prompt_id."""
    targets = targets.append_column("key", TARGETS.keys_of(targets))
    found: dict[str, list[dict[str, str]]] = {}
    for row in targets.sort_by([("video_id", "ascending"), ("prompt_id", "ascending")]).to_pylist():
        found.setdefault(row["video_id"], []).append({name: row[name] for name in (*TEXTS, "key")})
    return found


def lookup_table(
    video_ids: list[str], targets: pa.Table, videos: pa.Table, *, seed: int, files: Mapping[str, str] | None = None
) -> pa.Table:
    """What is added to the frames of each video that has targets, in the shuffled order; `place` counts from 0.

    `files` holds the address of each target's log-probabilities by its key, where the recipe has them.
    """
    found = targets_by_video(targets)
    splits = dict(zip(videos["video_id"].to_pylist(), videos["split"].to_pylist(), strict=True))
    names = sorted(name for name in video_ids if name in found)
    shuffled = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    rows = [
        {
            "video_id": name,
            "version": short_hash([splits[name], [{text: one[text] for text in TEXTS} for one in found[name]]]),
            "place": i,
            "split": splits[name],
            "targets": [{**one, "file": files[one["key"]] if files else None} for one in found[name]],
        }
        for i, name in enumerate(shuffled)
    ]
    return pa.Table.from_pylist(rows, schema=LOOKUP)


def attach_targets(frames: pa.Table, lookup: pa.Table) -> pa.Table:
    """Frames of the videos in the lookup, with its columns beside them; the log-probabilities of their targets are read here."""
    rows = pc.index_in(frames["video_id"].combine_chunks(), value_set=lookup["video_id"].combine_chunks())
    frames, added = frames.filter(rows.is_valid()), lookup.take(rows.drop_null())
    for name in ("version", "place", "split"):
        frames = frames.append_column(name, added[name])
    return frames.append_column("targets", _with_logprobs(added["targets"].combine_chunks()))


def lookup_by_shard(shards: Mapping[str, Sequence[str]], lookup: pa.Table) -> list[pa.Table]:
    """For each shard of `frames`, its address and the rows of the lookup for its videos."""
    places = {name: i for i, name in enumerate(lookup["video_id"].to_pylist())}
    blocks = []
    for address, video_ids in shards.items():
        rows = lookup.take([places[name] for name in video_ids])
        blocks.append(rows.append_column("address", pa.repeat(pa.scalar(address), len(rows))))
    return blocks


def build(ds: "ray.data.Dataset") -> "ray.data.Dataset":
    """Blocks of `lookup_by_shard` -> rows of `examples`, and their `place`."""
    # 1. shard -> its frames that have targets, with them, n to at most n. Tasks of a whole core (the default): they copy bytes.
    ds = ds.map_batches(_read_and_attach, batch_size=None, batch_format="pyarrow")
    # 2. examples -> examples in their places, n to n. Ray's sort, which spills to disk where memory is short.
    return ds.sort("place")


def asked(recipe: Recipe, where: Where) -> dict[str, Any]:
    """What the stage is asked for. Raises BadInputError where an input is not complete."""
    targets = made_targets(recipe, where.data)
    tables = {"videos": Table(where.data, "videos"), "frames": frames_set(recipe, where.data), "targets": targets}
    return {"inputs": {name: table.made_from() for name, table in tables.items()}}


def order(recipe: Recipe, where: Where) -> Order:
    """A row for each video that has frames: a version of it that no other split or targets have."""
    return _ordered(recipe, where)[0]


def run(recipe: Recipe, where: Where) -> str:
    """Raises BadInputError, StorageError, RowsLostError, StageFailedError, SupersededError."""
    targets = made_targets(recipe, where.data)
    examples = examples_set(recipe, targets)
    if examples.finished(asked(recipe, where)):
        say(f"examples: {examples.folder} is complete, nothing to do")
        return summary(examples)
    ordered, lookup, without = _ordered(recipe, where)
    attempt = ordered.begin()
    attempt.write([], [reject(STAGE, key, "no_targets", "the teacher wrote nothing for it") for key in without if key in attempt.left])
    stale = set(attempt.state.live()["key"].to_pylist()) - set(ordered.wanted)
    for name in _trainings_on(examples) if stale else ():
        say(f"examples: {name} was begun on what is replaced now: where it still streams, or was to go on, it cannot; `train` begins anew")
    n_stale = attempt.drop(stale)  # training reads whole shards
    if n_stale:
        say(f"examples: {n_stale} files held examples of other targets or videos, and were written anew without them")
    left = lookup.filter(pc.is_in(EXAMPLES.keys_of(lookup), value_set=pa.array(sorted(attempt.left), pa.string())))
    if len(left):
        _write(frames_set(recipe, where.data), left, attempt, where=where, rows_per_shard=recipe.examples.rows_per_shard)
    attempt.complete()
    return summary(examples)


def main() -> None:
    print(run(load_recipe(sys.argv[1]), load_where()))


def _ordered(recipe: Recipe, where: Where) -> tuple[Order, pa.Table, list[str]]:
    """The order, what is added to each video's frames, and the keys of videos that have frames and no targets."""
    targets = made_targets(recipe, where.data)
    videos = Table(where.data, "videos").read(["video_id", "split"])
    frames = frames_set(recipe, where.data).keys()  # from the log: reading the column would be reading every picture
    video_ids = frames.filter(pc.is_in(frames, value_set=videos["video_id"])).to_pylist()  # some may be of videos that have left
    files = _files(targets) if recipe.teacher.logprobs else None
    lookup = lookup_table(video_ids, targets.read([*TARGETS.key, *TEXTS]), videos, seed=recipe.examples.seed, files=files)
    without = [f"{name}/{NO_TARGETS}" for name in sorted(set(video_ids) - set(lookup["video_id"].to_pylist()))]
    examples = examples_set(recipe, targets)
    wanted = sorted([*EXAMPLES.keys_of(lookup).to_pylist(), *without])
    return Order(examples, asked(recipe, where), wanted, examples_made(recipe, targets)), lookup, without


def _trainings_on(examples: Table) -> list[str]:
    """Hypernetworks whose training on this set was begun and has not ended."""
    begun = [one for one in hypernetworks_of(examples.root) if not one.is_complete()]
    made = {one.name: read_json(f"{one.folder}/made.json") or {} for one in begun}
    return [name for name, one in made.items() if (one.get("inputs", {}).get("examples") or {}).get("set") == examples.set]


def _write(frames: Table, lookup: pa.Table, attempt: Attempt, *, where: Where, rows_per_shard: int) -> None:
    """Shards of the same videos in the same order, whatever was committed before them."""
    import ray.data  # here, so that a run with nothing to do starts in a second

    from infra.cluster import cluster, nodes
    from infra.flow import arriving

    with cluster(where), failing(STAGE), counting(STAGE, "videos", len(lookup)) as counter:
        if not any(node.get("CPU", 0.0) >= 1 for node in nodes(where)):
            raise StageFailedError("examples: no node of the Ray cluster has 1 CPU")
        shards = frames.shards_of(lookup["video_id"].to_pylist())
        ds = build(ray.data.from_blocks(lookup_by_shard(shards, lookup)))
        writer = attempt.writer()
        for batch in arriving(ds, batch_size=rows_per_shard, stall_s=where.stall_s):
            rows = batch.select(EXAMPLES.schema.names).cast(EXAMPLES.schema)
            counter.advance(attempt.commit([writer.write_file(rows, ROWS, place=batch["place"][0].as_py() // rows_per_shard)]))


def _files(targets: Table) -> dict[str, str]:
    """The address of each target by its key, from the log."""
    return {key: address for address, keys in targets.shards_of(targets.keys().to_pylist()).items() for key in keys}


def _with_logprobs(targets: pa.ListArray) -> pa.ListArray:
    """Targets of the lookup, as EXAMPLES has them. Raises StorageError."""
    flat, ends = targets.flatten(), np.cumsum(pc.list_value_length(targets))
    columns = {name: pc.struct_field(flat, name) for name in TEXTS}
    keys, files = pc.struct_field(flat, "key"), pc.struct_field(flat, "file")
    written = pa.concat_tables([pa.schema(LOGPROBS).append(pa.field("key", pa.string())).empty_table(), *_written(keys, files)])
    rows = pc.index_in(keys, value_set=written["key"].combine_chunks())
    columns |= {name: written[name].combine_chunks().take(rows) for name in LOGPROBS}
    return pa.ListArray.from_arrays(pa.array([0, *ends], pa.int32()), pa.StructArray.from_arrays(columns.values(), names=list(columns)))


def _written(keys: pa.Array, files: pa.Array) -> Iterator[pa.Table]:
    """Log-probabilities of these targets by key, file by file; other rows may stand in a file, also older ones of a key."""
    for address in pc.unique(files).drop_null().to_pylist():
        found = read_shard(address, [*TARGETS.key, *LOGPROBS])
        found = found.append_column("key", TARGETS.keys_of(found)).select([*LOGPROBS, "key"])
        wanted = keys.filter(pc.equal(files, address))
        found = found.filter(pc.is_in(found["key"], value_set=wanted))
        if len(found) != len(wanted):
            raise StorageError(f"{address} has {len(found)} of {len(wanted)} targets: `video2lora verify --repair` has it made again")
        yield found


def _read_and_attach(lookup: pa.Table) -> pa.Table:
    (address,) = set(lookup["address"].to_pylist())
    return attach_targets(read_shard(address, FRAME_COLUMNS), lookup.combine_chunks())


if __name__ == "__main__":
    main()
