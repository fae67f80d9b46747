"""Training's checkpoints, on a disk or in a bucket: weights, AdamW's moments and what the run knows, independent of the number of workers.

    <data>/hypernetwork/checkpoints/step-00000500-3f2a9c1b/
        hypernetwork.safetensors, config.json    as `video2lora.checkpoint` writes them: usable as they are
        optimizer.safetensors                    AdamW's moments by parameter name
        state.json                               written last, with the hash of each file: without it there is no checkpoint

Names are never used twice, so what a killed worker left half written is never read and never written to again. The last few are kept,
and the best one by validation. Training waits for a copy of the state in host memory; a thread writes it.
"""

import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from infra.errors import StorageError
from infra.objects import read_json, write_new
from infra.progress import say
from infra.s3_requests import tried

if TYPE_CHECKING:
    from torch import Tensor

    from video2lora.hypernetwork import Hypernetwork

NETWORK_FILES = ("hypernetwork.safetensors", "config.json")
OPTIMIZER_FILE = "optimizer.safetensors"

T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """A committed one: its address, and its `state.json`: step, losses, validation, hashes of its files."""

    folder: str
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])


def latest(folder: str) -> Checkpoint | None:
    """The committed checkpoint of the highest step, or None."""
    return next(_committed(folder), None)


def of_step(folder: str, step: int) -> Checkpoint | None:
    """The committed checkpoint of a step, or None."""
    return next((found for found in _committed(folder) if found.step == step), None)


class Writer:
    """Saves in a thread, one checkpoint at a time; the next waits for the one before. What a save raises is raised by the next call."""

    def __init__(self, folder: str, *, kept: int) -> None:
        self.folder, self.kept = folder, kept
        self.pool = ThreadPoolExecutor(1)
        self.last: Future[Checkpoint] | None = None

    def save(self, hypernetwork: "Hypernetwork", moments: "dict[str, Tensor]", *, state: dict[str, Any], metadata: dict[str, Any]) -> None:
        """As `save`; the tensors must not change any more. Then all but the last ones and the best are removed, by who is furthest."""
        self.wait()
        self.last = self.pool.submit(self._save, hypernetwork, moments, state=state, metadata=metadata)

    def wait(self) -> None:
        """Until what was handed over is committed. Raises StorageError."""
        if self.last is not None:
            self.last.result()

    def _save(
        self, hypernetwork: "Hypernetwork", moments: "dict[str, Tensor]", *, state: dict[str, Any], metadata: dict[str, Any]
    ) -> Checkpoint:
        saved = save(hypernetwork, moments, self.folder, state=state, metadata=metadata)
        try:
            newest = latest(self.folder)
            if newest is None or newest.step <= saved.step:  # else whoever is ahead (this one was only paused) knows which is the best
                prune(self.folder, kept=self.kept, best_step=state["best_step"])
        except StorageError as error:  # this one is whole, and the next may have them removed
            say(f"train: old checkpoints stay: {error}")
        return saved


def save(
    hypernetwork: "Hypernetwork", moments: "dict[str, Tensor]", folder: str, *, state: dict[str, Any], metadata: dict[str, Any]
) -> Checkpoint:
    """Write and commit a checkpoint. `metadata` goes into config.json. Raises StorageError."""
    from safetensors.torch import save_file

    from video2lora.checkpoint import save_hypernetwork

    address = f"{folder}/step-{state['step']:08d}-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as temporary:
        local = Path(temporary) / "checkpoint"
        save_hypernetwork(hypernetwork, local, metadata=metadata)
        save_file(moments, local / OPTIMIZER_FILE)
        state = {**state, "sha256": {name: _sha256(local / name) for name in (*NETWORK_FILES, OPTIMIZER_FILE)}}
        fs, inner = fsspec.core.url_to_fs(address)
        _stored("written", address, lambda: fs.makedirs(inner, exist_ok=True))
        for name in state["sha256"]:
            _stored("written", f"{address}/{name}", partial(fs.put_file, str(local / name), f"{inner}/{name}"))
        if isinstance(fs, LocalFileSystem):
            for path in (*(f"{inner}/{name}" for name in state["sha256"]), inner):
                _stored("written", path, partial(_to_disk, path))
    write_new(f"{address}/state.json", json.dumps(state, indent=1).encode())
    return Checkpoint(address, state)


def load(checkpoint: Checkpoint) -> "tuple[Hypernetwork, dict[str, Tensor]]":
    """Hypernetwork and moments, on the CPU. Raises StorageError if a file is not the one that was committed."""
    from video2lora.checkpoint import load_hypernetwork, read_tensors

    with tempfile.TemporaryDirectory() as temporary:
        local = Path(temporary)
        for name in (*NETWORK_FILES, OPTIMIZER_FILE):
            (local / name).write_bytes(read(checkpoint, name))
        return load_hypernetwork(local), read_tensors(local / OPTIMIZER_FILE)


def read(checkpoint: Checkpoint, name: str) -> bytes:
    """One file of a checkpoint. Raises StorageError if it is not the one that was committed."""
    fs, inner = fsspec.core.url_to_fs(f"{checkpoint.folder}/{name}")
    data: bytes = _stored("read", f"{checkpoint.folder}/{name}", lambda: fs.cat_file(inner))
    if hashlib.sha256(data).hexdigest() != checkpoint.state["sha256"][name]:
        raise StorageError(f"{checkpoint.folder}/{name} was changed since it was written: remove {checkpoint.folder} to go on before it")
    return data


def prune(folder: str, *, kept: int, best_step: int | None = None) -> None:
    """Remove all but the last `kept` committed checkpoints and that of the best step, and what was never committed before them.

    Raises StorageError.
    """
    committed = list(_committed(folder))
    if len(committed) < kept:
        return
    spared = {one.folder for one in committed if one.step == best_step}
    for path in _folders(folder):
        if path < committed[kept - 1].folder and path not in spared:
            fs, inner = fsspec.core.url_to_fs(path)
            _stored("removed", path, partial(fs.rm, inner, recursive=True))


def _committed(folder: str) -> Iterator[Checkpoint]:
    """The last one first."""
    for path in reversed(_folders(folder)):
        state = read_json(f"{path}/state.json")
        if state is not None:
            yield Checkpoint(path, state)


def _folders(folder: str) -> list[str]:
    """Addresses of all checkpoints, committed or not, by step."""
    fs, inner = fsspec.core.url_to_fs(folder)
    fs.invalidate_cache()
    if not _stored("read", folder, lambda: fs.isdir(inner)):
        return []
    found = _stored("listed", folder, lambda: fs.ls(inner, detail=False))
    return sorted(f"{folder}/{path.rstrip('/').rsplit('/', 1)[-1]}" for path in found)


def _stored(what: str, address: str, request: Callable[[], T]) -> T:
    """The request's result; tried again while a bucket is only unwell. Raises StorageError."""
    try:
        return tried(what, address, request)
    except OSError as error:
        raise StorageError(f"{address} cannot be {what}: {error}; the last whole checkpoint stays, run again to continue") from error


def _to_disk(path: str) -> None:
    """A file's content, or a folder's names, which would otherwise be lost with the power though `state.json` is there."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
