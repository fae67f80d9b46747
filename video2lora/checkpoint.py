"""A hypernetwork on disk: a folder of `hypernetwork.safetensors` and `config.json`.

`config.json` holds the format's version, the whole HypernetworkConfig and free metadata (VLM, run, step, figures).
Nothing is pickled, so reading a checkpoint runs no code; the published ones are pickled objects with code of packages
that a user does not have.

A folder is written under another name and renamed, so a reader sees the old one or the new one, never half of one.
Replacing an old folder takes two renames: a crash between them leaves no folder of that name, and both versions beside
it as `.NAME.old-*` and `.NAME.new-*`.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from video2lora.hypernetwork import Hypernetwork, HypernetworkConfig

FORMAT = "video2lora-hypernetwork-1"
WEIGHTS_FILE = "hypernetwork.safetensors"
CONFIG_FILE = "config.json"


def save_hypernetwork(hypernetwork: Hypernetwork, folder: Path, *, metadata: Mapping[str, Any]) -> None:
    """Writes weights in their own dtype, config and `metadata` (JSON values); replaces an older checkpoint there.

    Raises ValueError where `folder` holds something else.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in hypernetwork.state_dict().items()}
    config = {"format": FORMAT, "hypernetwork": hypernetwork.config.model_dump(mode="json"), "metadata": dict(metadata)}
    with new_folder(folder, marker=WEIGHTS_FILE) as new:
        write_json(config, new / CONFIG_FILE)
        save_file(weights, new / WEIGHTS_FILE)
        shutil.copymode(new / CONFIG_FILE, new / WEIGHTS_FILE)  # safetensors lets only the owner read


def load_hypernetwork(folder: Path) -> Hypernetwork:
    """The hypernetwork on the CPU, in the dtype it was saved in, ready to train on.

    Raises ValueError naming what is wrong: no checkpoint, an unknown or bad config key, a tensor missing, extra or of
    another shape.
    """
    written = _read_config(folder)
    try:
        config = HypernetworkConfig.model_validate(written["hypernetwork"])
    except ValidationError as error:
        raise ValueError(f"{folder / CONFIG_FILE}: {error}") from error
    with torch.device("meta"):
        hypernetwork = Hypernetwork(config)
    expected: dict[str, Tensor] = hypernetwork.state_dict()
    weights = read_tensors(folder / WEIGHTS_FILE)
    missing, extra = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or extra:
        raise ValueError(f"{folder / WEIGHTS_FILE}: tensors missing: {missing}; tensors unknown: {extra}")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape or not tensor.is_floating_point():
            raise ValueError(
                f"{folder / WEIGHTS_FILE}: {name} is {tensor.dtype} {tuple(tensor.shape)}, expected floating-point "
                f"{tuple(expected[name].shape)} from {CONFIG_FILE}"
            )
    hypernetwork.load_state_dict(weights, assign=True)
    return hypernetwork


def read_metadata(folder: Path) -> dict[str, Any]:
    """What `save_hypernetwork` was given as metadata. Raises ValueError where the folder is no checkpoint."""
    metadata: dict[str, Any] = _read_config(folder)["metadata"]
    return metadata


def hypernetwork_hash(folder: Path) -> str:
    """SHA-256 in hex of the config of the network and its weights; metadata does not count."""
    network = json.dumps(_read_config(folder)["hypernetwork"], sort_keys=True).encode()
    with (folder / WEIGHTS_FILE).open("rb") as weights:
        weights_hash = hashlib.file_digest(weights, "sha256").hexdigest()
    return hashlib.sha256(network + b"\n" + weights_hash.encode()).hexdigest()


@contextmanager
def new_folder(folder: Path, *, marker: str) -> Iterator[Path]:
    """An empty folder to write in, which becomes `folder` on leaving without an error and disappears with one.

    An older `folder` is replaced if it is empty or holds a file named `marker`; otherwise ValueError, before any work.
    """
    if folder.exists() and not (folder / marker).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} exists and has no {marker}: not overwriting what is something else")
    suffix = uuid.uuid4().hex[:12]
    new, old = (folder.with_name(f".{folder.name}.{age}-{suffix}") for age in ("new", "old"))
    new.mkdir(parents=True)
    try:
        yield new
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_json(value: Mapping[str, Any], path: Path) -> None:
    """Indented UTF-8 JSON. Raises ValueError for what JSON has no word for, NaN included."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"{path.name}: only JSON values can be written: {error}") from error
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError naming the path where the file is missing or is something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot read: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, on the CPU. Raises ValueError naming the path where it is none."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot read: {error}") from error


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise ValueError(f"{folder} is not a hypernetwork checkpoint: expected {CONFIG_FILE} and {WEIGHTS_FILE} in it")
    config = read_json(folder / CONFIG_FILE)
    if config.get("format") != FORMAT:
        raise ValueError(f"{folder / CONFIG_FILE}: format is {config.get('format')!r}, expected {FORMAT!r}")
    expected = {"format", "hypernetwork", "metadata"}
    if config.keys() != expected:
        raise ValueError(f"{folder / CONFIG_FILE}: keys are {sorted(config)}, expected {sorted(expected)}")
    return config
