"""Many adapters in one folder, each under its video's content id, with a catalogue of them and of the clips that gave none.

    made.json            what made every adapter in it: VLM, hypernetwork, sampling, chunking
    VIDEO_ID/            an adapter each, there whole or not at all
    catalogue.parquet    a row for each, keyed by content
    rejects.parquet      clips that gave no adapter, and why (the schema of every stage's rejects)

The folders are the truth and the catalogue follows: it is written every half minute and at the end, and what a killed run left out of it is
found in the folders by the next. One run writes at a time; a reader sees each file whole.
"""

import fcntl
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from infra.artifacts import REJECTS
from infra.errors import BadInputError, MadeFromOtherError, StorageError
from infra.objects import read_json, write_new
from infra.parquet import from_parquet
from infra.progress import say
from video2lora.video import Sampling

ADAPTER_CONFIG, PROVENANCE, WEIGHTS = "adapter_config.json", "provenance.json", "adapter_model.safetensors"
WRITE_EVERY_S = 30.0
N_SHOWN = 20
UNFINISHED = re.compile(r"\.([0-9a-f]{20}|\w+\.parquet)\.(new|old)-[0-9a-f]{12}")  # as `checkpoint.new_folder` and `_write` name them

CATALOGUE = pa.schema(
    [
        pa.field("video_id", pa.string()),  # content hash: the key
        pa.field("uri", pa.string()),  # of the clip it was made from; null where only the adapter was found
        pa.field("adapter", pa.string()),  # its folder, in the collection's
        pa.field("sampling", pa.string()),
        pa.field("n_frames", pa.int32()),
        pa.field("n_chunks", pa.int32()),
        pa.field("rank", pa.int32()),
        pa.field("n_bytes", pa.int64()),
        pa.field("vlm", pa.string()),
        pa.field("vlm_digest", pa.string()),
        pa.field("hypernetwork_digest", pa.string()),
        pa.field("created_at", pa.timestamp("us", tz="UTC")),
    ]
)


class Collection:
    """An open collection: what is in it, kept in memory, and the files that say so."""

    def __init__(self, folder: Path, rows: dict[str, dict[str, Any]], rejects: list[dict[str, Any]]) -> None:
        self.folder, self.rows, self.rejects = folder, rows, rejects
        self.written = time.monotonic()

    def __contains__(self, video_id: str) -> bool:
        return video_id in self.rows

    def add(self, video_id: str, uri: str) -> None:
        """Take the adapter that was saved under its id into the catalogue."""
        self.rows[video_id] = _row(self.folder / video_id, uri)
        if time.monotonic() - self.written > WRITE_EVERY_S:
            self.write()

    def found_again(self, video_id: str, uri: str) -> None:
        """A clip that has its adapter already: its address, where the catalogue lacks it."""
        row = self.rows[video_id]
        row["uri"] = row["uri"] or uri

    def settle(self, keys: set[str], rejects: list[dict[str, Any]]) -> None:
        """The clips `keys` were looked at and gave `rejects`; what was said of them before no longer counts."""
        kept = [row for row in self.rejects if row["key"] not in keys]
        self.rejects = list({row["key"]: row for row in kept + rejects}.values())  # a clip given twice is told once

    def write(self) -> None:
        """Raises StorageError."""
        rows = sorted(self.rows.values(), key=lambda row: row["video_id"])
        _write(self.folder / "catalogue.parquet", pa.Table.from_pylist(rows, schema=CATALOGUE))
        rejects = self.folder / "rejects.parquet"
        if self.rejects or rejects.exists():
            _write(rejects, pa.Table.from_pylist(self.rejects, schema=REJECTS.schema))
        self.written = time.monotonic()


@contextmanager
def opened(folder: Path, made_by: Mapping[str, Any]) -> Iterator[Collection]:
    """The collection in a folder, made if it is not there, for one writer; its tables are written on leaving, whatever ends the block.

    `made_by` is what makes its adapters, JSON values by name. Raises MadeFromOtherError naming both sides, BadInputError, StorageError.
    """
    if (folder / PROVENANCE).exists():
        raise BadInputError(f"{folder} is an adapter, expected a new folder or a collection of adapters: give another one with -o")
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        others = [one.name for one in folder.iterdir() if not (one.name.startswith(".") or (one / PROVENANCE).exists())]
    if others and not (folder / "made.json").exists():
        raise BadInputError(f"{folder} holds {others[0]!r}, expected a new folder or a collection of adapters: give another one with -o")
    with _locked(folder):
        _check_made_by(folder, made_by)
        with storing(folder):
            collection = _complete(folder, made_by)
        collection.write()
        try:
            yield collection
        finally:
            collection.write()


def read_catalogue(folder: Path) -> list[dict[str, Any]]:
    """Rows of the catalogue. Raises BadInputError if there is none that can be read."""
    return _read(folder / "catalogue.parquet", CATALOGUE)


def adapter_folder(folder: Path, video: str | None) -> Path:
    """The adapter that is meant: the folder itself, or of a collection the one whose id (or its beginning) is `video`.

    Raises BadInputError where that is none, or several.
    """
    if not (folder / "catalogue.parquet").is_file():
        if video is not None:
            raise BadInputError(f"--video: got {video!r}, but {folder} is no collection of adapters: it has no catalogue.parquet")
        return folder
    rows = read_catalogue(folder)
    found = [row for row in rows if row["video_id"].startswith(video or "")]
    if len(found) == 1:
        name = str(found[0]["adapter"])
        if name in ("", ".", "..") or name != os.path.basename(name):  # a catalogue may come from a stranger
            raise BadInputError(f"{folder / 'catalogue.parquet'}: adapter: got {name!r}, expected the name of a folder in {folder}")
        return folder / name
    some = ", ".join(f"{row['video_id']} ({row['uri']})" for row in (found or rows)[:5])
    asked = f"--video: got {video!r}" if video else "--video: got nothing"
    raise BadInputError(f"{asked}, which fits {len(found)} of the {len(rows)} adapters in {folder}, expected one: {some}")


def inspect(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What a collection holds, as JSON values and as lines for a person. Raises BadInputError, StorageError."""
    rows = read_catalogue(folder)
    rejects = _read(folder / "rejects.parquet", REJECTS.schema, absent_is_empty=True)
    made_by = read_json(str(folder / "made.json")) or {}
    lines = [f"{folder}: {len(rows)} adapters, {sum(row['n_bytes'] for row in rows)} bytes; {len(rejects)} clips gave none"]
    lines += [f"  {name:20} {json.dumps(value)}" for name, value in made_by.items()]
    lines += [f"  {row['video_id']}  rank {row['rank']}, {row['n_frames']} frames  {row['uri']}" for row in rows[:N_SHOWN]]
    lines += [f"  and {len(rows) - N_SHOWN} more in catalogue.parquet"] if len(rows) > N_SHOWN else []
    lines += [f"  no adapter: {row['key']}: {row['reason']}: {row['detail']}" for row in rejects[:N_SHOWN]]
    return {"folder": str(folder), "made_by": made_by, "adapters": rows, "rejects": rejects}, lines


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """What the disk says, as StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}; run the same command again, it continues") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with storing(folder):
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInputError(f"{folder}: another run is writing to it; wait for it to end, or give another folder with -o") from error
        except OSError:  # a file system without locks: two runs at once would do work twice, and lose none
            say(f"{folder}: cannot be locked; let no other run write to it")
        _remove_unfinished(folder)
        yield
    finally:
        os.close(handle)  # and with it the lock, as when the process is killed


def _remove_unfinished(folder: Path) -> None:
    """What a run left that was killed while it wrote: nobody else is writing now."""
    for left in folder.iterdir():
        if not UNFINISHED.fullmatch(left.name):
            continue
        with storing(left):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()


def _check_made_by(folder: Path, made_by: Mapping[str, Any]) -> None:
    path = str(folder / "made.json")
    if read_json(path) is None:
        write_new(path, json.dumps(made_by, indent=1, sort_keys=True).encode())
    _check_alike(folder, read_json(path), made_by)


def _check_alike(place: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Of the values that both name. Raises MadeFromOtherError."""
    different = [name for name in sorted(there.keys() & here.keys()) if there[name] != here[name]]
    if different:
        told = "; ".join(f"{name}: there {json.dumps(there[name])}, here {json.dumps(here[name])}" for name in different)
        raise MadeFromOtherError(f"{place} was made by something else: {told}. Give another folder with -o, or remove this one.")


def _complete(folder: Path, made_by: Mapping[str, Any]) -> Collection:
    """The catalogue as it was written, without adapters that are gone and with those that it lacks."""
    listed = {row["video_id"]: row for row in _read(folder / "catalogue.parquet", CATALOGUE, absent_is_empty=True)}
    rejects = _read(folder / "rejects.parquet", REJECTS.schema, absent_is_empty=True)
    rows: dict[str, dict[str, Any]] = {}
    for place in sorted(folder.iterdir()):
        if place.name.startswith(".") or not (place / PROVENANCE).is_file():
            continue
        try:
            if place.name in listed and _n_bytes(place) >= listed[place.name]["n_bytes"]:
                rows[place.name] = listed[place.name]
                continue
            provenance = _provenance(place)
            row = _row(place, listed.get(place.name, {}).get("uri"))
            with safe_open(place / WEIGHTS, framework="numpy"):  # raises where the file is not as long as it says
                pass
        except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
            say(f"{place}: not an adapter that can be read ({error}); it is made anew when its clip comes")
            continue
        _check_alike(place, {**provenance, "sampling": row["sampling"]}, made_by)
        if row["video_id"] == place.name:
            rows[place.name] = row
    return Collection(folder, rows, rejects)


def _row(place: Path, uri: str | None) -> dict[str, Any]:
    provenance = _provenance(place)
    config = json.loads((place / ADAPTER_CONFIG).read_text())
    return {
        "video_id": provenance["video_id"],
        "uri": uri,
        "adapter": place.name,
        "sampling": Sampling(**provenance["sampling"]).name,
        "n_frames": provenance["n_frames"],
        "n_chunks": provenance["n_chunks"],
        "rank": config["r"],
        "n_bytes": _n_bytes(place),
        "vlm": provenance["vlm"],
        "vlm_digest": provenance["vlm_digest"],
        "hypernetwork_digest": provenance["hypernetwork_digest"],
        "created_at": datetime.fromtimestamp((place / PROVENANCE).stat().st_mtime, UTC),
    }


def _n_bytes(place: Path) -> int:
    return sum(file.stat().st_size for file in place.iterdir())


def _provenance(place: Path) -> dict[str, Any]:
    provenance = json.loads((place / PROVENANCE).read_text())
    if not isinstance(provenance, dict):
        raise ValueError(f"{PROVENANCE}: expected a JSON object")
    return provenance


def _read(path: Path, schema: pa.Schema, *, absent_is_empty: bool = False) -> list[dict[str, Any]]:
    if absent_is_empty and not path.exists():
        return []
    try:
        rows: list[dict[str, Any]] = from_parquet(path.read_bytes(), schema.names).cast(schema).to_pylist()
    except FileNotFoundError as error:
        raise BadInputError(f"{path.parent} is no collection of adapters: there is no {path.name} in it") from error
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise BadInputError(
            f"{path} is no table of video2lora that can be read ({error}); move it away: the adapters are still there"
        ) from error
    return rows


def _write(path: Path, table: pa.Table) -> None:
    """Beside the old one, then in its place."""
    part = path.with_name(f".{path.name}.new-{uuid.uuid4().hex[:12]}")
    try:
        with storing(path):
            with part.open("wb") as file:
                pq.write_table(table, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()
