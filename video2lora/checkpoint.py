"""A hypernetwork on disk: a folder of `hypernetwork.safetensors` and `config.json`.

`config.json` holds the format's version, the whole HypernetworkConfig, the hash of the weights and free metadata (VLM, run, step,
figures). Nothing is pickled, so reading a checkpoint runs no code; `load_published` reads the released ones, which are pickled, without
running any either.

A folder is written under another name and renamed, so a reader sees the old one or the new one, never half of one.
Replacing an old folder takes two renames: a crash between them leaves no folder of that name, and both versions beside
it as `.NAME.old-*` and `.NAME.new-*`.
"""

import hashlib
import json
import os
import reprlib
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from video2lora.hypernetwork import Hypernetwork, HypernetworkConfig, checked_config
from video2lora.published import Released, config_of, our_weights, read_released

FORMAT = "video2lora-hypernetwork-1"
WEIGHTS_FILE = "hypernetwork.safetensors"
CONFIG_FILE = "config.json"
N_NAMES_SHOWN = 5


def save_hypernetwork(hypernetwork: Hypernetwork, folder: Path, *, metadata: Mapping[str, Any]) -> None:
    """Writes weights in their own dtype, config and `metadata` (JSON values); replaces an older checkpoint there.

    Raises ValueError where `folder` holds something else.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in hypernetwork.state_dict().items()}
    config = {"format": FORMAT, "hypernetwork": hypernetwork.config.model_dump(mode="json"), "metadata": dict(metadata)}
    with new_folder(folder, marker=WEIGHTS_FILE) as new:
        write_json(config, new / CONFIG_FILE)  # before the weights, which may be large: metadata that JSON has no word for ends it here
        save_tensors(weights, new / WEIGHTS_FILE, beside=new / CONFIG_FILE)
        write_json(config | {"weights_sha256": _sha256(new / WEIGHTS_FILE)}, new / CONFIG_FILE)


def load_hypernetwork(folder: Path) -> Hypernetwork:
    """The hypernetwork on the CPU, in the dtype it was saved in, ready to train on.

    Raises ValueError naming what is wrong: no checkpoint, one of another format, an unknown or bad config key, a tensor missing, extra or
    of another shape, weights that are not those that were saved.
    """
    written = _read_config(folder)
    path = folder / WEIGHTS_FILE
    config = checked_config(written["hypernetwork"], where=str(folder / CONFIG_FILE))
    hypernetwork = _without_weights(config)
    expected: dict[str, Tensor] = hypernetwork.state_dict()
    weights = read_tensors(path)
    missing, extra = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or extra:
        raise ValueError(
            f"{path}: tensors missing: {_some(missing)}; tensors unknown: {_some(extra)}; {CONFIG_FILE} expects {len(expected)}"
        )
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape or not tensor.is_floating_point():
            raise ValueError(
                f"{path}: {name} is {tensor.dtype} {tuple(tensor.shape)}, expected floating-point "
                f"{tuple(expected[name].shape)} from {CONFIG_FILE}"
            )
    # Absent in folders written before the hash was. A damaged header shows above; damaged numbers show nowhere else.
    saved = written.get("weights_sha256")
    if saved is not None and (found := _sha256(path)) != saved:
        raise ValueError(
            f"{path}: SHA-256 is {found}, {CONFIG_FILE} says {saved}: damaged, or of another checkpoint than {CONFIG_FILE}; copy both again"
        )
    hypernetwork.load_state_dict(weights, assign=True)
    return hypernetwork


def load_published(path: str | Path) -> Hypernetwork:
    """The hypernetwork of a released checkpoint (`.pt`), on the CPU, in its dtype; the weights stay in the file until they are used.

    Nothing in the file is run or imported. Sizes come from the tensors, with one or several target modules (published.py says how they are
    laid out); attention heads are 128 wide. Raises ValueError naming the file and what is wrong with it.
    """
    return hypernetwork_of(read_released(Path(path)))


def hypernetwork_of(released: Released) -> Hypernetwork:
    """Raises ValueError naming the file and the tensor or setting that does not fit."""
    config = config_of(released)
    hypernetwork = _without_weights(config)
    hypernetwork.load_state_dict(our_weights(released.tensors, config, where=str(released.path)), assign=True)
    return hypernetwork


def read_metadata(folder: Path) -> dict[str, Any]:
    """What `save_hypernetwork` was given as metadata. Raises ValueError where the folder is no checkpoint."""
    metadata: dict[str, Any] = _read_config(folder)["metadata"]
    return metadata


def hypernetwork_hash(folder: Path) -> str:
    """SHA-256 in hex of the config of the network and its weights; metadata does not count."""
    network = json.dumps(_read_config(folder)["hypernetwork"], sort_keys=True).encode()
    return hashlib.sha256(network + b"\n" + _sha256(folder / WEIGHTS_FILE).encode()).hexdigest()


@contextmanager
def new_folder(folder: Path, *, marker: str) -> Iterator[Path]:
    """An empty folder to write in, which becomes `folder` on leaving without an error and disappears with one.

    An older `folder` is replaced if it is empty or holds a file named `marker`; otherwise ValueError, before any work.
    """
    folder = Path(os.path.abspath(folder))  # which has a name, as `.` and `..` have none
    if folder.exists() and _is_stood_in(folder):
        raise ValueError(f"{folder} is where this command runs, and is replaced as a whole: run it from outside")
    if folder.exists() and not (folder / marker).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} exists and has no {marker}: not overwriting what is something else")
    suffix = uuid.uuid4().hex[:12]
    new, old = (folder.with_name(f".{folder.name}.{age}-{suffix}") for age in ("new", "old"))
    new.mkdir(parents=True)
    try:
        yield new
        for path in (*new.rglob("*"), new):
            if not path.is_symlink() and (path.is_dir() or path.is_file()):
                _sync(path)  # or a power failure could leave the name with nothing in it
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _is_stood_in(folder: Path) -> bool:
    try:
        return Path.cwd().is_relative_to(folder)
    except FileNotFoundError:  # removed under this process
        return False


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if path.is_file():  # of a folder some file systems refuse it
            raise
    finally:
        os.close(handle)


def save_tensors(tensors: dict[str, Tensor], path: Path, *, beside: Path, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file beside one that is there, which says who may read it. Raises OSError, also where safetensors has its own."""
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:  # a full disk, for one
        raise OSError(f"{path.name}: {error}") from error
    shutil.copymode(beside, path)  # safetensors lets only the owner read


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
    except OSError as error:
        raise ValueError(f"{path}: cannot read: {error}") from error
    except SafetensorError as error:
        size = path.stat().st_size
        raise ValueError(
            f"{path}: cannot read: damaged, cut short or no safetensors file ({size} bytes; {error}); copy it again"
        ) from error


def _without_weights(config: HypernetworkConfig) -> Hypernetwork:
    with torch.device("meta"):
        return Hypernetwork(config)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _some(names: list[str]) -> str:
    return ", ".join(names[:N_NAMES_SHOWN]) + (f" and {len(names) - N_NAMES_SHOWN} more" if len(names) > N_NAMES_SHOWN else "") or "none"


def _read_config(folder: Path) -> dict[str, Any]:
    absent = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if absent:
        raise ValueError(f"{folder} is not a hypernetwork checkpoint: it has no {' and no '.join(absent)}")
    config = read_json(folder / CONFIG_FILE)
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{folder / CONFIG_FILE}: format is {reprlib.repr(config.get('format'))}, this version of video2lora reads {FORMAT!r}: use the "
            f"version that wrote it, or make the hypernetwork again"
        )
    expected = {"format", "hypernetwork", "metadata"}
    if config.keys() - {"weights_sha256"} != expected:
        raise ValueError(f"{folder / CONFIG_FILE}: keys are {sorted(config)}, expected {sorted(expected)} and perhaps weights_sha256")
    if not isinstance(config["metadata"], dict):
        raise ValueError(f"{folder / CONFIG_FILE}: metadata is {reprlib.repr(config['metadata'])}, expected a JSON object")
    return config
