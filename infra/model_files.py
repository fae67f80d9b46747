"""A recipe's name of a model -> where its files lie and which weights they are, before anything is loaded.

A folder is named by its content, a hub's model by its commit. No torch: a run with nothing to do starts none.
"""

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from infra.errors import BadInputError

HASHED_FILES = ("*.safetensors", "*config.json", "tokenizer.json")  # of a model folder: all that its words depend on


@dataclass(frozen=True)
class ModelFiles:
    """`folder` holds the config files at least; `path` is what transformers and vLLM are given."""

    path: str  # a folder, or a hub name
    revision: str | None  # the hub's commit; None for a folder
    identity: str
    folder: Path


def model_files(model: str, *, revision: str | None, setting: str) -> ModelFiles:
    """Of `tiny`, a folder or a hub name. Raises BadInputError, naming the recipe's `setting`, where there is no such model."""
    folder = Path(str(resources.files("video2lora.tiny") / "vlm") if model == "tiny" else model)
    if not folder.is_dir():
        folder = _hub_configs(model, revision, setting)
        return ModelFiles(model, folder.name, f"{model}@{folder.name}", folder)
    if revision is not None:
        raise BadInputError(f"{setting}.revision: got {revision!r} for {model!r}, which is a folder and has no revisions")
    name = "tiny" if model == "tiny" else folder.resolve().name
    return ModelFiles(str(folder.resolve()), None, f"{name}@{_digest(folder, setting)}", folder)


def _digest(folder: Path, setting: str) -> str:
    """A hash of weights, configs and tokenizer."""
    files = sorted({file for pattern in HASHED_FILES for file in folder.glob(pattern)})
    if not any(file.suffix == ".safetensors" for file in files):
        raise BadInputError(f"{setting}.model: {folder} holds no *.safetensors; give a model folder, a hub name, or 'tiny'")
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def _hub_configs(model: str, revision: str | None, setting: str) -> Path:
    """The folder of the hub's commit with the config files, fetched unless they are in the cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=["*config.json"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise BadInputError(
            f"{setting}.model: got {model!r}, which is neither 'tiny', nor a folder, nor a hub name in reach: {error}"
        ) from error
