"""What a hypernetwork has seen in training: contents of the videos that it was trained and validated on, in its folder as seen.json.

    {"contents": [...], "is_all": true}     short ids of contents; `is_all` is false where it began from weights of which that is not known

Written when a training begins, since shards of examples are replaced later. A hypernetwork that began from another's weights has seen what
that one has. A test video counts as seen by its content, whichever span of it was trained on, and under whatever name.
"""

import json
from dataclasses import dataclass

import pyarrow.compute as pc

from infra.contents import contents_of
from infra.objects import read_json, write_new
from infra.storage import Table

SEEN = "seen.json"


@dataclass(frozen=True)
class Seen:
    """Short ids of contents; `is_all` says whether there may be others."""

    contents: frozenset[str] = frozenset()
    is_all: bool = False


def write_seen(folder: str, examples: Table, *, start_from: str | None) -> None:
    """For a hypernetwork that is trained on these examples, from the weights in the folder `start_from`. Raises StorageError."""
    if read_json(f"{folder}/{SEEN}") is not None:
        return
    before = Seen(is_all=True) if start_from is None else read_seen(start_from)
    rows = examples.read(["video_id", "split"])
    taught = rows.filter(pc.not_equal(rows["split"], "test"))["video_id"].to_pylist()
    contents = before.contents | set(contents_of(examples.root, taught).values())
    write_new(f"{folder}/{SEEN}", json.dumps({"contents": sorted(contents), "is_all": before.is_all}).encode())


def read_seen(folder: str) -> Seen:
    """Of a hypernetwork's folder; where it does not say, anything may have been seen. Raises StorageError."""
    found = read_json(f"{folder.rstrip('/')}/{SEEN}")
    return Seen() if found is None else Seen(frozenset(found["contents"]), found["is_all"])
