"""Shards of `examples` -> rows ready to train on, by Ray Data: read in windows of some shards, pictures decoded, in an order of their own.

A window is one task: it reads whole shards, permutes their rows by (seed, epoch, window), and hands them on a few at a time. Where visual
tokens are stored, it reads those of its videos instead of their pictures. Every row of a stream carries its place in the order of all
steps; Ray Data deals rows of one each to the workers in turn, in order.

The driver needs no more of a stream than how many rows each shard has, so a run of millions of samples is described by some kilobytes.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.artifacts import EXAMPLES, VISUAL_TOKENS
from infra.errors import StorageError
from infra.storage import read_shard
from training.visual_tokens import read_tokens
from video2lora.jpeg import from_jpegs
from video2lora.sampling import Frames
from video2lora.video_file import RejectReason

if TYPE_CHECKING:
    import ray.data

SHARDS_PER_WINDOW = 4  # mixed: with the default of 64 rows a shard, 256 videos. Shards hold a shuffled order already
ROWS_AT_ONCE = 4  # decoded between two yields of a window: 12 frames of 384 px are 5.3 MB a row
DECODE_CPUS = 0.05  # so little that a task finds room beside training workers that fill what is left of a cluster (ray#44687)
TOKEN_COLUMNS = ("vlm", "tokens", "n_pictures", "n_image_tokens", "d_vlm")
READ = pa.schema(
    [
        pa.field("place", pa.int64()),  # in the order of all steps; null where a split is read as it lies
        EXAMPLES.schema.field("video_id"),
        pa.field("pixels", pa.binary()),  # uint8 [n_frames, height, width, 3], C order; null where visual tokens stand in
        pa.field("height_px", pa.int32()),
        pa.field("width_px", pa.int32()),
        *(VISUAL_TOKENS.schema.field(name) for name in TOKEN_COLUMNS),
        EXAMPLES.schema.field("timestamps_s"),
        EXAMPLES.schema.field("duration_s"),
        EXAMPLES.schema.field("targets"),
        pa.field("reason", pa.string()),  # null, or why the row is rejected
        pa.field("detail", pa.string()),
    ]
)


Row = dict[str, Any]


@dataclass(frozen=True)
class Shard:
    """A file of `examples`, how many rows of the split it has, and the files with its videos' visual tokens if those are stored."""

    address: str
    n_rows: int
    token_files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """What of the examples is read. `tasks` names the targets that are trained on, None: all."""

    shards: tuple[Shard, ...]
    split: str
    tasks: tuple[str, ...] | None = None
    stored_tokens: bool = False

    @property
    def n_rows(self) -> int:
        return sum(shard.n_rows for shard in self.shards)


@dataclass(frozen=True)
class Window:
    """Shards that one task reads. Without an order their rows come as they lie."""

    shards: tuple[Shard, ...]
    order: tuple[int, ...] | None = None  # seed of their rows' permutation
    skip: int = 0  # rows at its beginning that were trained on before
    first_place: int = 0  # of the first row that is not skipped


def windows(source: Source, *, seed: int, first_place: int, n_places: int) -> Iterator[Window]:
    """Windows of all epochs that hold the places [first_place, first_place + n_places), and rows behind them to the window's end."""
    epoch, place = first_place // source.n_rows, first_place // source.n_rows * source.n_rows
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(len(source.shards))
        for number, at in enumerate(range(0, len(order), SHARDS_PER_WINDOW)):
            shards = tuple(source.shards[i] for i in order[at : at + SHARDS_PER_WINDOW])
            n = sum(shard.n_rows for shard in shards)
            if place + n > first_place:
                skip = max(0, first_place - place)
                yield Window(shards, (seed, epoch, number), skip, place + skip)
            place += n
            if place >= first_place + n_places:
                return
        epoch += 1


def read_window(window: Window, source: Source) -> Iterator[pa.Table]:
    """Rows of READ, a few at a time. Raises StorageError for a file that is gone or has other rows than it had."""
    columns = ["video_id", "timestamps_s", "duration_s", "targets", "split", *([] if source.stored_tokens else ["jpegs"])]
    rows = pa.concat_tables(read_shard(shard.address, columns) for shard in window.shards)
    rows = rows.filter(pc.equal(rows["split"], source.split))
    n_expected = sum(shard.n_rows for shard in window.shards)
    if len(rows) != n_expected:
        raise StorageError(
            f"{window.shards[0].address}: got {len(rows)} rows of {source.split}, expected {n_expected}: run the command again"
        )
    order = np.arange(len(rows)) if window.order is None else np.random.default_rng(window.order).permutation(len(rows))
    tokens = _visual_tokens(window, rows["video_id"]) if source.stored_tokens else None
    for at in range(window.skip, len(order), ROWS_AT_ONCE):
        chosen = order[at : at + ROWS_AT_ONCE]
        stored = [None] * len(chosen) if tokens is None else tokens.take(chosen).to_pylist()
        read = [
            read_row(row, stored=of_video, tasks=source.tasks) for row, of_video in zip(rows.take(chosen).to_pylist(), stored, strict=True)
        ]
        if window.order is not None:
            read = [{**row, "place": window.first_place + at - window.skip + i} for i, row in enumerate(read)]
        yield pa.Table.from_pylist(read, schema=READ)


def read_row(row: Row, *, stored: Row | None = None, tasks: Sequence[str] | None = None) -> Row:
    """A row of `examples` -> a row of READ; where it cannot be used, one with a reason and nothing to train on."""
    targets = [one for one in row["targets"] or () if tasks is None or one["task"] in tasks]
    if not targets:
        return _rejected(row, "no_targets", f"the row has no target{'' if tasks is None else ' of ' + ', '.join(tasks)}")
    kept = {"targets": targets, **{name: row[name] for name in ("video_id", "timestamps_s", "duration_s")}}
    if stored is not None:
        if stored["tokens"] is None:
            return _rejected(row, RejectReason.DECODE_ERROR.value, "it has no visual tokens")
        return {**kept, **{name: stored[name] for name in TOKEN_COLUMNS}}
    try:
        pixels = from_jpegs(row["jpegs"])
        if len(pixels) != len(row["timestamps_s"]):
            raise ValueError(f"{len(pixels)} pictures and {len(row['timestamps_s'])} timestamps")
    except (ValueError, TypeError) as error:  # damaged, or null where a list should be
        return _rejected(row, RejectReason.DECODE_ERROR.value, str(error)[:200])
    return {**kept, "height_px": pixels.shape[1], "width_px": pixels.shape[2], "pixels": pixels.tobytes()}


def as_frames(row: Row) -> Frames:
    """The frames of a row of READ that was not rejected; where visual tokens stand in for pictures, those are of 0 x 0 px."""
    if row["pixels"] is None:
        pixels = np.zeros((len(row["timestamps_s"]), 0, 0, 3), dtype=np.uint8)
    else:
        pixels = np.frombuffer(row["pixels"], dtype=np.uint8).reshape(-1, row["height_px"], row["width_px"], 3)
    return Frames(pixels, np.array(row["timestamps_s"], dtype=np.float64), row["duration_s"])


def build(source: Source, order: Sequence[Window]) -> "ray.data.Dataset":
    """Windows -> rows of READ in the windows' order."""
    import ray
    import ray.data

    # 1. window -> its rows, 1 to n. A task decodes about 2,000 pictures of 384 px in 10 s.
    ds = ray.data.from_blocks([pa.table({"window": [json.dumps(asdict(window))]}) for window in order])
    at_once = ray.data.TaskPoolStrategy(size=max(2, int(ray.cluster_resources().get("CPU", 0.0)) // 2))
    options = {"num_cpus": DECODE_CPUS, "compute": at_once, "fn_kwargs": {"source": source}}
    return ds.map_batches(_read, batch_size=None, batch_format="pyarrow", **options)


def whole(source: Source) -> "ray.data.Dataset":
    """Every row of the split, once, as it lies."""
    return build(source, [Window((shard,)) for shard in source.shards])


def stream(source: Source, *, seed: int, first_place: int, n_places: int) -> "ray.data.Dataset":
    """The places from `first_place` on, at least as many as are asked for, one to a block: `streaming_split` deals blocks out in turn,
    in an order that is kept by `preserve_order`, which the reader sets. Splits end with the shortest: ask for at least one more per worker.
    """
    ds = build(source, list(windows(source, seed=seed, first_place=first_place, n_places=n_places)))
    # Any row is larger. `repartition` does the same by tasks of a whole CPU: where workers leave no node so much, it waits for ever.
    ds.context.target_max_block_size = 1
    return ds


def _read(block: pa.Table, source: Source) -> Iterator[pa.Table]:
    (text,) = block["window"].to_pylist()
    plain = json.loads(text)
    shards = tuple(Shard(**{**one, "token_files": tuple(one["token_files"])}) for one in plain["shards"])
    order = None if plain["order"] is None else tuple(plain["order"])
    return read_window(Window(shards, order, plain["skip"], plain["first_place"]), source)


def _visual_tokens(window: Window, video_ids: pa.ChunkedArray) -> pa.Table:
    """A row for each video, in their order; null where there are none."""
    files = sorted({file for shard in window.shards for file in shard.token_files})
    found = read_tokens(files, video_ids.to_pylist())
    return found.take(pc.index_in(video_ids, value_set=found["video_id"]))


def _rejected(row: Row, reason: str, detail: str) -> Row:
    return {"video_id": row["video_id"], "reason": reason, "detail": detail}
