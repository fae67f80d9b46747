"""A video -> the checkpoints under a root that were trained on it, told from what each says it was made from.

A hypernetwork's config.json names the set of examples it was trained on and the digest of their keys. The set's log, replayed up to where
its books were closed on just these keys, says which videos they were, also after their rows are gone. Where a link of this chain is
missing, so is the answer: "cannot tell", and why.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

from infra.artifacts import TABLES
from infra.digests import digest
from infra.errors import StorageError
from infra.log import Entry
from infra.objects import read_bytes, read_json
from infra.state import ROWS, State, among
from infra.storage import Table

DEPTH = 4  # folders below the root in which a hypernetwork is looked for
Verdict = Literal["trained on it", "not trained on it", "cannot tell"]


@dataclass(frozen=True)
class Trained:
    """A hypernetwork or a checkpoint of one, and whether the video was among what it was trained on."""

    folder: str
    verdict: Verdict
    why: str


def trained(root: str, video_id: str) -> list[Trained]:
    """Every hypernetwork and checkpoint under the root. Raises StorageError."""
    return [Trained(folder, *_verdict(root, made, video_id)) for folder, made in _hypernetworks(root)]


def print_trained(found: list[Trained]) -> None:
    """One line each; those that have nothing to do with the video are counted."""
    for one in found:
        if one.verdict != "not trained on it":
            print(f"{one.folder}: {one.verdict}: {one.why}")
    n_other = sum(one.verdict == "not trained on it" for one in found)
    print(f"{len(found)} hypernetworks and checkpoints, {n_other} of them not trained on it")


def _hypernetworks(root: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Folders with a hypernetwork that training made, and what it says it was made from."""
    fs, inner = fsspec.core.url_to_fs(root)
    fs.invalidate_cache()
    if not fs.isdir(inner):
        return
    for folder in sorted(one["name"] for one in fs.ls(inner, detail=True) if one["type"] == "directory"):
        if folder.rstrip("/").rsplit("/", 1)[-1] in TABLES:
            continue
        for path in sorted(fs.find(folder, maxdepth=DEPTH)):
            if path.endswith("/config.json"):
                address = f"{root.rstrip('/')}{path[len(inner.rstrip('/')) :].removesuffix('/config.json')}"
                config = read_json(f"{address}/config.json")
                metadata = config.get("metadata") if isinstance(config, dict) else None
                if isinstance(metadata, dict):
                    yield address, metadata.get("made_from") or {}


def _verdict(root: str, made_from: dict[str, Any], video_id: str) -> tuple[Verdict, str]:
    if made_from.get("stage") != "train":
        return "cannot tell", "it does not say what it was trained on"
    try:
        examples = made_from["inputs"]["examples"]
        table, asked_for = Table(root, "examples", examples["set"]), examples["rows"]
    except (KeyError, TypeError):
        return "cannot tell", "it does not name its examples"
    found = closed_on(table, asked_for)
    if found is None:
        return "cannot tell", f"the log of {table.folder} knows of no examples with digest {asked_for}"
    try:
        state, keys = _then(table, *found)
    except StorageError as error:
        return "cannot tell", str(error)
    of_video = keys.filter(pc.starts_with(keys, f"{video_id}/"))
    if not len(of_video):
        return "not trained on it", f"not among the {len(keys)} examples"
    split = _split(table, state, of_video[0].as_py())
    if split == "test":
        return "not trained on it", "in the split test of its examples"
    return "trained on it", f"among the {len(keys)} examples" + (f", split {split}" if split else "; their split is not known any more")


def closed_on(table: Table, rows: str) -> tuple[list[Entry], Entry] | None:
    """The log up to where books were closed on rows of this digest, the last time, and the entry that closed them; None where it never was.

    Raises StorageError.
    """
    entries = list(table.log.read())
    for number in range(len(entries) - 1, -1, -1):
        if entries[number]["kind"] == "complete" and entries[number]["rows"] == rows:
            return entries[: number + 1], entries[number]
    return None


def _then(table: Table, entries: list[Entry], completed: Entry) -> tuple[State, pa.ChunkedArray]:
    """The table as it was then, and the keys of its rows. Raises StorageError where the keys that were wanted cannot be read."""
    state = State().take(entries)
    live = state.live()
    keys = live.filter(pc.equal(live["kind"], ROWS))["key"]
    if digest(keys) != completed["rows"]:  # rows stood beside them that were not wanted
        keys = among(pa.table({"key": keys}), table.wanted(state))["key"]
    return state, keys


def _split(table: Table, state: State, key: str) -> str:
    """Of an example, "" where its file is gone."""
    path = among(state.live(), pa.array([key]))["path"][0].as_py()
    if read_bytes(f"{table.folder}/{path}") is None:
        return ""
    found = table.read_file(state.files[path], ["video_id", "version", "split"])
    rows = found.filter(pc.equal(table.spec.keys_of(found), key))
    return str(rows["split"][0].as_py() or "") if len(rows) else ""
