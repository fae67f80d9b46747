"""`examples` of one split -> the videos and targets of each training step, by Ray Data.

Pictures are decoded in Ray Data's tasks and travel as uint8. A split that fits into a worker's memory is read once: every
worker then holds all of it and takes its own places of one global order, so the order of the data depends on the seed alone
and a continued run, on any number of workers, goes on with the very next video. A larger split streams: every epoch reads the
shards in another order, split evenly among the workers; a continued run begins at the start of the epoch it was in.

Which targets a video is trained on is drawn from (seed, epoch, video_id), the same for any number of workers.
A row that cannot be decoded trains nothing, is counted and named in the checkpoint, and stops nobody.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Float32, Int32

from infra.artifacts import EXAMPLES
from infra.errors import BadInputError
from video2lora.jpeg import from_jpegs
from video2lora.video import Frames, RejectReason

if TYPE_CHECKING:
    import ray.data

HELD_BYTES = 1 << 30  # decoded pictures a worker holds; beyond that they stream. Ours: leaves 2 GiB workers their model
SHUFFLED_BATCHES = 8  # of a streamed epoch, the batches whose rows are mixed; the shards are shuffled when they are made
DECODE_CPUS = 0.5  # a fraction, so that decoding finds room beside training workers on a machine of 2 cores (ray#44687)
DECODED = pa.schema(
    [
        EXAMPLES.schema.field("video_id"),
        pa.field("pixels", pa.binary()),  # uint8 [n_frames, height, width, 3], C order
        pa.field("height_px", pa.int32()),
        pa.field("width_px", pa.int32()),
        EXAMPLES.schema.field("timestamps_s"),
        EXAMPLES.schema.field("duration_s"),
        EXAMPLES.schema.field("targets"),
        pa.field("reason", pa.string()),  # null, or why the row is rejected
        pa.field("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class TeacherTokens:
    """The teacher's own tokens of a target, and for each the k it held likeliest (its own among them or not)."""

    token_ids: Int32[np.ndarray, " n_tokens"]
    top_token_ids: Int32[np.ndarray, "n_tokens k"]
    top_logprobs: Float32[np.ndarray, "n_tokens k"]


@dataclass(frozen=True)
class Target:
    """What the model is to write after a prompt, without any frame."""

    task: str
    prompt: str
    text: str
    teacher: TeacherTokens | None = None  # where the recipe keeps log-probabilities


@dataclass(frozen=True)
class Example:
    """A video and all its targets: decoded, or with what the VLM's vision tower made of it in the place of pictures (0 x 0 px)."""

    video_id: str
    frames: Frames
    targets: tuple[Target, ...]
    visual_tokens: Float[torch.Tensor, "n_pictures n_image_tokens d_vlm"] | None = None


@dataclass(frozen=True)
class Batch:
    """A worker's share of one step: videos, and for each of them its targets."""

    examples: tuple[Example, ...]
    targets: tuple[tuple[Target, ...], ...]

    @property
    def n_targets(self) -> int:
        return sum(map(len, self.targets))


@dataclass(frozen=True)
class Share:
    """Which part of each step a worker takes: `per_worker` videos of `per_worker * n_workers`."""

    rank: int
    n_workers: int
    per_worker: int


def decode_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `examples` -> a row of DECODED; where it cannot be used, one with a reason and no pixels."""
    try:
        pixels = from_jpegs(row["jpegs"])
        if len(pixels) != len(row["timestamps_s"]):
            raise ValueError(f"{len(pixels)} pictures and {len(row['timestamps_s'])} timestamps")
    except (ValueError, TypeError) as error:  # damaged, or null where a list should be
        return {"video_id": row["video_id"], "reason": RejectReason.DECODE_ERROR.value, "detail": str(error)[:200]}
    if not row["targets"]:
        return {"video_id": row["video_id"], "reason": "no_targets", "detail": "the row has no target"}
    size = {"height_px": pixels.shape[1], "width_px": pixels.shape[2]}
    kept = {name: row[name] for name in ("video_id", "timestamps_s", "duration_s", "targets")}
    return {**kept, **size, "pixels": pixels.tobytes()}


def decode_block(block: pa.Table) -> pa.Table:
    """Rows of `examples` -> as many rows of DECODED."""
    return pa.Table.from_pylist([decode_row(row) for row in block.to_pylist()], schema=DECODED)


def example(row: dict[str, Any]) -> Example:
    """A row of DECODED that was not rejected."""
    pixels = np.frombuffer(row["pixels"], dtype=np.uint8).reshape(-1, row["height_px"], row["width_px"], 3)
    frames = Frames(pixels, np.array(row["timestamps_s"], dtype=np.float64), row["duration_s"])
    return Example(row["video_id"], frames, tuple(Target(one["task"], one["prompt"], one["target"]) for one in row["targets"]))


def draw(one: Example, *, n: int, seed: int, epoch: int) -> tuple[Target, ...]:
    """`n` different targets of the video (all, if it has fewer), by (seed, epoch, video_id) alone."""
    key = hashlib.sha256(f"{seed}/{epoch}/{one.video_id}".encode()).digest()
    chosen = np.random.default_rng(int.from_bytes(key[:8])).permutation(len(one.targets))[:n]
    return tuple(one.targets[i] for i in sorted(chosen))


def build(shards: list[str], split: str, *, seed: int) -> "ray.data.Dataset":
    """Shards of `examples` -> decoded rows of one split, in another order of shards at every execution."""
    import ray.data
    from ray.data.expressions import col

    # 1. shard -> rows of the split. Ray Data applies the filter while reading, so other splits' pictures are never loaded.
    ds = ray.data.read_parquet(shards, shuffle=ray.data.FileShuffleConfig(seed=seed), num_cpus=DECODE_CPUS)
    ds = ds.filter(expr=col("split") == split, num_cpus=DECODE_CPUS)
    # 2. JPEG -> uint8, n rows to n rows; fused with the read. One task decodes about 2,000 pictures of 384 px in 10 s.
    return ds.map_batches(decode_block, batch_size=64, batch_format="pyarrow", num_cpus=DECODE_CPUS)


class HeldExamples:
    """All examples of a split in memory, ordered by video_id; batches are places of one endless seeded order."""

    def __init__(self, examples: Sequence[Example], *, seed: int, n_targets: int) -> None:
        self.examples = sorted(examples, key=lambda one: one.video_id)
        self.seed, self.n_targets = seed, n_targets

    def batches(self, share: Share, *, first_step: int) -> Iterator[Batch]:
        """A worker's batches from `first_step` (0 is the first) on, without end. An epoch's rest joins the next one's start."""
        orders = _Orders(len(self.examples), self.seed)
        place = first_step * share.per_worker * share.n_workers
        while True:
            mine = range(place + share.rank, place + share.per_worker * share.n_workers, share.n_workers)
            chosen = [(self.examples[orders.index(at)], at // len(self.examples)) for at in mine]
            targets = tuple(draw(one, n=self.n_targets, seed=self.seed, epoch=epoch) for one, epoch in chosen)
            yield Batch(tuple(one for one, _ in chosen), targets)
            place += share.per_worker * share.n_workers


class StreamedExamples:
    """A worker's part of a split that Ray Data splits anew for every epoch; every part has as many rows."""

    def __init__(
        self, shard: "ray.data.DataIterator", *, n_rows: int, seed: int, n_targets: int, on_reject: Callable[[dict[str, Any]], None]
    ) -> None:
        """`n_rows` of the whole split; `on_reject` is called with each row of DECODED that has a reason."""
        self.shard, self.n_rows, self.seed, self.n_targets, self.on_reject = shard, n_rows, seed, n_targets, on_reject

    def batches(self, share: Share, *, first_step: int) -> Iterator[Batch]:
        """Batches without end, from the start of the epoch that `first_step` is in. Rejected rows leave a smaller batch.

        Workers step together, so a batch without one good row is the one before again; BadInputError if there is none before.
        The rows that fill no batch at the end of an epoch are dropped: other ones each time.
        """
        good: tuple[Example, ...] = ()
        epoch = first_step * share.per_worker * share.n_workers // self.n_rows
        while True:
            blocks = self.shard.iter_batches(
                batch_size=share.per_worker,
                batch_format="pyarrow",
                prefetch_batches=2,
                drop_last=True,
                local_shuffle_buffer_size=SHUFFLED_BATCHES * share.per_worker,
                local_shuffle_seed=self.seed + epoch,
            )
            for block in blocks:
                good = tuple(good_examples(block, self.on_reject)) or good
                if not good:
                    raise BadInputError("examples: not one of a whole batch of rows can be decoded: make the examples anew")
                yield Batch(good, tuple(draw(one, n=self.n_targets, seed=self.seed, epoch=epoch) for one in good))
            epoch += 1


def good_examples(block: pa.Table, on_reject: Callable[[dict[str, Any]], None]) -> Iterator[Example]:
    """Examples of a block of DECODED; its rejects go to `on_reject`."""
    for row in block.to_pylist():
        if row["reason"] is None:
            yield example(row)
        else:
            on_reject(row)


def read_all(shard: "ray.data.DataIterator", on_reject: Callable[[dict[str, Any]], None]) -> Iterator[Example]:
    """Every example of a worker's shard, once."""
    for block in shard.iter_batches(batch_size=64, batch_format="pyarrow", prefetch_batches=1):
        yield from good_examples(block, on_reject)


class _Orders:
    """Place in the endless order -> index of an example; keeps the orders of the last two epochs."""

    def __init__(self, n: int, seed: int) -> None:
        if n < 1:
            raise ValueError("examples: got none, expected at least one to order")
        self.n, self.seed = n, seed
        self.orders: dict[int, np.ndarray] = {}

    def index(self, place: int) -> int:
        epoch, at = divmod(place, self.n)
        if epoch not in self.orders:
            self.orders = {old: order for old, order in self.orders.items() if old == epoch - 1}
            self.orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.n)
        return int(self.orders[epoch][at])
