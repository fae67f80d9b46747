"""Training's checkpoints, on a disk or in a bucket: weights, AdamW's moments and what the run knows, independent of the number of workers.

    <data>/hypernetwork/checkpoints/step-00000500-3f2a9c1b/
        hypernetwork.safetensors, config.json    as `video2lora.checkpoint` writes them: usable as they are
        optimizer.safetensors                    AdamW's moments by parameter name
        state.json                               written last, with the hash of each file: without it there is no checkpoint

Names are never used twice, so what a killed worker left half written is never read and never written to again. The last two are kept.
"""

import hashlib
import json
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec

from infra.errors import StorageError
from infra.objects import read_json, write_new

if TYPE_CHECKING:
    from torch import Tensor

    from video2lora.hypernetwork import Hypernetwork

KEPT = 2
NETWORK_FILES = ("hypernetwork.safetensors", "config.json")
OPTIMIZER_FILE = "optimizer.safetensors"


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
    for path in reversed(_folders(folder)):
        state = read_json(f"{path}/state.json")
        if state is not None:
            return Checkpoint(path, state)
    return None


def save(
    hypernetwork: "Hypernetwork", moments: "dict[str, Tensor]", folder: str, *, state: dict[str, Any], metadata: dict[str, Any]
) -> Checkpoint:
    """Write and commit a checkpoint, then remove all but the last KEPT. `metadata` goes into config.json. Raises StorageError."""
    from safetensors.torch import save_file

    from video2lora.checkpoint import save_hypernetwork

    address = f"{folder}/step-{state['step']:08d}-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as temporary:
        local = Path(temporary) / "checkpoint"
        save_hypernetwork(hypernetwork, local, metadata=metadata)
        save_file(moments, local / OPTIMIZER_FILE)
        state = {**state, "sha256": {name: _sha256(local / name) for name in (*NETWORK_FILES, OPTIMIZER_FILE)}}
        fs, inner = fsspec.core.url_to_fs(address)
        try:
            fs.makedirs(inner, exist_ok=True)
            for name in state["sha256"]:
                fs.put_file(str(local / name), f"{inner}/{name}")
        except OSError as error:
            raise StorageError(f"{address} cannot be written: {error}; the checkpoint before it is whole, run again to continue") from error
    write_new(f"{address}/state.json", json.dumps(state, indent=1).encode())
    prune(folder, kept=KEPT)
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
    try:
        data: bytes = fs.cat_file(inner)
    except OSError as error:
        raise StorageError(f"{checkpoint.folder}/{name} cannot be read ({error})") from error
    if hashlib.sha256(data).hexdigest() != checkpoint.state["sha256"][name]:
        raise StorageError(f"{checkpoint.folder}/{name} was changed since it was written: remove {checkpoint.folder} to go on before it")
    return data


def prune(folder: str, *, kept: int) -> None:
    """Remove all but the last `kept` committed checkpoints, and what was never committed before them."""
    folders = _folders(folder)
    committed = [path for path in folders if read_json(f"{path}/state.json") is not None]
    oldest = committed[-kept] if len(committed) >= kept else ""
    for path in folders:
        if path < oldest:
            fs, inner = fsspec.core.url_to_fs(path)
            fs.rm(inner, recursive=True)


def _folders(folder: str) -> list[str]:
    """Addresses of all checkpoints, committed or not, by step."""
    fs, inner = fsspec.core.url_to_fs(folder)
    fs.invalidate_cache()
    if not fs.isdir(inner):
        return []
    return sorted(f"{folder}/{path.rstrip('/').rsplit('/', 1)[-1]}" for path in fs.ls(inner, detail=False))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
