"""`examples` -> `visual_tokens`: what the frozen VLM's vision tower and connector make of each video, computed once and kept.

Reads: `examples` of the splits train and validation. Writes: `visual_tokens`, a file for each file of examples with the videos in the
same order; pictures that cannot be decoded go to rejects.
Command: `video2lora encode`; `video2lora train` runs it where the recipe says `training.visual_tokens: stored`.
Cost: the vision tower on every picture once (2.6 TFLOP a video of 12 frames at 500M), and 1.5 MB a video there, 4.0 MB at 2.2B.

Hidden states of all layers would save more of a step and take 30 to 40 times the room. Each video goes through the tower alone, so its
tokens do not depend on which others are there. A row names the VLM that made it by a digest of the weights, which training compares with
that of the VLM it has loaded; a set is named by what is known without loading one.
"""

import sys
import time
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.artifacts import VISUAL_TOKENS
from infra.attempt import Attempt, ShardWriter, reject
from infra.config import Recipe, Where, load_recipe, load_where
from infra.errors import BadInputError
from infra.model_files import model_files
from infra.progress import counting, say
from infra.resources import CPUS_PER_ENCODER
from infra.sets import examples_set, made_targets, visual_tokens_made, visual_tokens_set
from infra.stage import Order, failing, summary
from infra.state import ROWS, among
from infra.storage import Table, read_shard
from training.room import Workers, workers_that_fit
from video2lora.jpeg import from_jpegs
from video2lora.sampling import Frames
from video2lora.video_file import RejectReason

if TYPE_CHECKING:
    import ray.data
    from torch import Tensor

    from video2lora.vlm import FrozenVLM

STAGE = "encode"
SPLITS = ("train", "validation")  # a test video is encoded when it is asked about, once
PICTURE_COLUMNS = ["video_id", "jpegs", "timestamps_s", "duration_s"]

Row = dict[str, Any]


def vlm_name(vlm: "FrozenVLM") -> str:
    """The column `vlm`."""
    return f"{vlm.digest}+{vlm.dtype}"


def tokens_row(example: Row, vlm: "FrozenVLM") -> Row:
    """PICTURE_COLUMNS of an example -> a row of `visual_tokens`. Raises ValueError for pictures that are none or not as many as times."""
    import torch

    pixels = from_jpegs(example["jpegs"] or [])
    if len(pixels) != len(example["timestamps_s"]):
        raise ValueError(f"{len(pixels)} pictures and {len(example['timestamps_s'])} timestamps")
    frames = Frames(pixels, np.array(example["timestamps_s"], dtype=np.float64), example["duration_s"])
    tokens = vlm.frame_tokens([frames]).cpu().contiguous()
    sizes = dict(zip(("n_pictures", "n_image_tokens", "d_vlm"), tokens.shape, strict=True))
    return {"video_id": example["video_id"], "vlm": vlm_name(vlm), "tokens": tokens.view(torch.uint8).numpy().tobytes(), **sizes}


def as_tensor(row: Row, vlm: "FrozenVLM") -> "Tensor":
    """A row's tokens, float [n_pictures, n_image_tokens, d_vlm] on the CPU. Raises BadInputError where another VLM made them."""
    import torch

    check_fresh(row, vlm)
    tokens = torch.frombuffer(bytearray(row["tokens"]), dtype=vlm.model.dtype)
    return tokens.view(row["n_pictures"], row["n_image_tokens"], row["d_vlm"])


def check_fresh(row: Row, vlm: "FrozenVLM") -> None:
    """Raises BadInputError unless a row's tokens are this VLM's, in its dtype."""
    if row["vlm"] != vlm_name(vlm):
        raise BadInputError(
            f"visual_tokens: those of {row['video_id']} are by the VLM {row['vlm']}, and {vlm.name!r} is {vlm_name(vlm)} now: "
            "set vlm.revision to the one that made them, or move the table away and run `video2lora encode`"
        )


def token_files(table: Table, video_ids: Iterable[str]) -> dict[str, list[str]]:
    """Address of each file that holds tokens of these videos -> those videos; from the log alone. Videos without tokens are in none."""
    live = among(table.state().live(), pa.array(video_ids, pa.string()))
    found: dict[str, list[str]] = {}
    for row in live.filter(pc.equal(live["kind"], ROWS)).to_pylist():
        found.setdefault(f"{table.folder}/{row['path']}", []).append(row["key"])
    return found


def read_tokens(addresses: Sequence[str], video_ids: Sequence[str]) -> pa.Table:
    """Rows of `visual_tokens` in the order of `video_ids`, as far as they are in these files. Raises StorageError."""
    wanted = pa.array(video_ids, pa.string())
    parts = [VISUAL_TOKENS.schema.empty_table()]
    for address in addresses:
        rows = read_shard(address)
        parts.append(rows.filter(pc.is_in(rows["video_id"], value_set=wanted)))
    rows = pa.concat_tables(parts)
    return rows.take(pc.index_in(wanted, value_set=rows["video_id"].combine_chunks()).drop_null())


class EncodeVideos:
    """Holds the frozen VLM."""

    def __init__(self, recipe: Recipe, writer: ShardWriter, *, device: str, n_threads: int) -> None:
        self.recipe, self.writer, self.device, self.n_threads = recipe, writer, device, n_threads

    @cached_property
    def vlm(self) -> "FrozenVLM":
        """Loaded in the first call: Ray says of what a constructor raises only that the actor died."""
        import torch

        from training.models import frozen_vlm

        torch.set_num_threads(self.n_threads)
        return frozen_vlm(self.recipe, device=self.device)

    def __call__(self, asked: pa.Table) -> pa.Table:
        """A row of `blocks_of` -> what describes the files they came to."""
        from infra.flow import told  # brings Ray

        started = time.monotonic()
        (block,) = asked.to_pylist()
        examples = read_shard(block["address"], PICTURE_COLUMNS)
        examples = examples.filter(pc.is_in(examples["video_id"], value_set=pa.array(block["video_ids"], pa.string())))
        rows, rejects = self.encode(examples)
        return told(self.writer.write(rows, rejects), {"encoder_s": time.monotonic() - started})

    def encode(self, examples: pa.Table) -> tuple[list[Row], list[Row]]:
        """Rows of `visual_tokens`, and rejects."""
        rows, rejects = [], []
        for example in examples.to_pylist():
            try:
                rows.append(tokens_row(example, self.vlm))
            except (ValueError, TypeError) as error:  # damaged, or null where a list should be
                rejects.append(reject(STAGE, example["video_id"], RejectReason.DECODE_ERROR.value, str(error)))
        return rows, rejects


def build(ds: "ray.data.Dataset", recipe: Recipe, writer: ShardWriter, *, training_gpus: float, workers: Workers) -> "ray.data.Dataset":
    """Blocks of what to encode, one for each file of examples -> what describes the files they came to."""
    import ray.data

    # 1. videos of a file of examples -> a file of tokens and one of rejects. An actor per training worker, with its GPU or its share of
    #    the cores; it reads the examples itself, so only addresses travel. One block at a time each, or the first actor takes several.
    return ds.map_batches(
        EncodeVideos,
        fn_constructor_args=(recipe, writer),
        fn_constructor_kwargs={"device": "cuda" if training_gpus else "cpu", "n_threads": workers.n_threads},
        batch_size=1,  # a row is a block; with GPUs Ray Data asks for a number
        batch_format="pyarrow",
        num_cpus=CPUS_PER_ENCODER,
        num_gpus=training_gpus,
        compute=ray.data.ActorPoolStrategy(size=workers.n, max_tasks_in_flight_per_actor=1),
    )


def table_of(recipe: Recipe, where: Where) -> Table:
    """The recipe's visual tokens. Reads the VLM's files, where it is a folder, to name it. Raises BadInputError where it is none."""
    return visual_tokens_set(recipe, where.data, weights=_weights(recipe))


def order(recipe: Recipe, where: Where) -> Order:
    """What the stage is to make. Raises BadInputError where the examples are not complete."""
    weights, examples = _weights(recipe), _examples(recipe, where)
    asked = {"inputs": {"examples": examples.made_from()}}
    rows = examples.read(["video_id", "split"])
    wanted = rows.filter(pc.is_in(rows["split"], value_set=pa.array(SPLITS)))["video_id"].to_pylist()
    tokens = visual_tokens_set(recipe, where.data, weights=weights)
    return Order(tokens, asked, sorted(wanted), visual_tokens_made(recipe, weights=weights))


def run(recipe: Recipe, where: Where) -> str:
    """Raises BadInputError, StorageError, RowsLostError, StageFailedError, SupersededError."""
    ordered = order(recipe, where)
    tokens = ordered.table
    if tokens.finished(ordered.asked):
        say(f"encode: {tokens.folder} is complete, nothing to do")
        return summary(tokens)
    attempt = ordered.begin()
    examples = _examples(recipe, where)
    rows = examples.read(["video_id", "version"])
    left = rows.filter(pc.is_in(rows["video_id"], value_set=pa.array(sorted(attempt.left), pa.string())))
    measures = _encode(blocks_of(examples, left), attempt, recipe, where) if len(left) else None
    attempt.complete(measures=measures)
    return summary(tokens)


def main() -> None:
    print(run(load_recipe(sys.argv[1]), load_where()))


def blocks_of(examples: Table, left: pa.Table) -> list[pa.Table]:
    """For each file of examples, a row: its address and those of its videos that are left to encode."""
    files = examples.shards_of(examples.spec.keys_of(left).to_pylist())
    return [pa.table({"address": [address], "video_ids": [[key.split("/")[0] for key in keys]]}) for address, keys in files.items()]


def _weights(recipe: Recipe) -> str:
    return model_files(recipe.vlm.model, revision=recipe.vlm.revision, setting="vlm").identity


def _examples(recipe: Recipe, where: Where) -> Table:
    return examples_set(recipe, made_targets(recipe, where.data))


def _encode(blocks: list[pa.Table], attempt: Attempt, recipe: Recipe, where: Where) -> dict[str, float]:
    """Returns what was measured."""
    import ray.data  # here, so that a run with nothing to do starts in a second

    from infra.cluster import cluster, nodes
    from infra.flow import commit_as_it_comes

    n_videos = sum(len(block["video_ids"][0]) for block in blocks)
    with cluster(where), failing(STAGE), counting(STAGE, "videos", n_videos) as counter:
        workers = workers_that_fit(nodes(where), where, n_blocks=len(blocks), stage=STAGE)
        ds = build(ray.data.from_blocks(blocks), recipe, attempt.writer(), training_gpus=where.training_gpus, workers=workers)
        return commit_as_it_comes(ds, attempt, counter, stall_s=where.stall_s)


if __name__ == "__main__":
    main()
