"""A recipe, its examples and the environment -> what the workers are to read, or why they cannot be trained on.

Only ids, splits and times of the examples are read here, and the log of where they lie.
"""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from infra.artifacts import EXAMPLES
from infra.config import Recipe, Where
from infra.errors import BadInputError
from infra.storage import Table
from training.streams import Shard, Source
from training.visual_tokens import token_files


@dataclass(frozen=True)
class Plan:
    """What the workers read, and whether each of them holds the whole training split."""

    train: Source
    validation: Source | None
    is_held: bool


def plan(recipe: Recipe, where: Where, examples: Table, *, visual_tokens: Table | None = None) -> Plan:
    """`visual_tokens` where they are stored. Raises BadInputError if the recipe cannot be trained on these examples by these workers."""
    rows = examples.read(["video_id", "version", "split", "timestamps_s"])
    train, validation = (_source(rows, examples, recipe, split, visual_tokens) for split in ("train", "validation"))
    if not train.shards:
        raise BadInputError(f"{examples.folder}: no example of the split `train`")
    if recipe.training.select != "last" and not validation.shards:
        raise BadInputError(f"{examples.folder}: no example of the split `validation`, by which training.select chooses")
    n_bytes = _bytes(rows, recipe) if visual_tokens is None else _stored_bytes(train, visual_tokens)
    return Plan(train, validation if validation.shards else None, n_bytes <= where.training_held_bytes)


def _source(rows: pa.Table, examples: Table, recipe: Recipe, split: str, visual_tokens: Table | None) -> Source:
    keys = EXAMPLES.keys_of(rows.filter(pc.equal(rows["split"], split))).to_pylist()
    video_ids = [key.split("/")[0] for key in keys]
    stored = {} if visual_tokens is None else token_files(visual_tokens, video_ids)
    file_of = {video_id: file for file, of_file in stored.items() for video_id in of_file}
    shards = []
    for address, of_shard in sorted(examples.shards_of(keys).items(), key=lambda one: min(one[1])):  # their names are drawn
        files = {file_of[video_id] for key in of_shard if (video_id := key.split("/")[0]) in file_of}
        shards.append(Shard(address, len(of_shard), tuple(sorted(files))))
    return Source(tuple(shards), split, recipe.training.tasks, stored_tokens=visual_tokens is not None)


def _bytes(rows: pa.Table, recipe: Recipe) -> int:
    """Of the training split's decoded pictures, at most."""
    n_frames = pc.sum(pc.list_value_length(rows.filter(pc.equal(rows["split"], "train"))["timestamps_s"])).as_py()
    return int(n_frames) * recipe.frames.longest_edge_px**2 * 3


def _stored_bytes(train: Source, visual_tokens: Table) -> int:
    """Of the files with the training split's visual tokens, which hardly compress."""
    files = {f"{visual_tokens.folder}/{path}": file.n_bytes for path, file in visual_tokens.state().files.items()}
    return sum(files[name] for name in {name for shard in train.shards for name in shard.token_files})
