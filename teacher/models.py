"""Which model writes: a recipe's name of it -> where its files lie, which weights they are, and what its config says of its size.

Reads config files and, of a folder, its weights to name them by content; a hub's are named by their commit. No torch, no vLLM, so that
a run with nothing to do starts neither. A model behind an endpoint is known by name alone: what serves it may change unseen, which is
why its targets are a set of their own.
"""

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from infra.config import TeacherSettings
from infra.errors import BadInputError

HASHED_FILES = ("*.safetensors", "*config.json", "tokenizer.json")  # of a model folder: all that the text depends on


@dataclass(frozen=True)
class SmolVLM:
    """What only a SmolVLM's config says: its frames are squares, each of which becomes this many tokens."""

    image_size_px: int
    n_image_tokens: int  # per frame
    processor: str  # class name


@dataclass(frozen=True)
class Model:
    """A model as its config describes it. `identity` names its weights: a folder's by content, a hub's by commit."""

    path: str  # a folder, or a hub name, or an endpoint's name for it
    revision: str | None  # the hub's commit; None for a folder
    identity: str
    max_positions: int | None = None  # None: an endpoint's affair
    n_kv_values: int = 0  # that one token leaves in the KV cache, over all layers; 0: not to be told from the config
    smolvlm: SmolVLM | None = None  # None: another family, which goes through its own chat template


def find_model(settings: TeacherSettings) -> Model:
    """Raises BadInputError if there is no such model, or none with safetensors."""
    if settings.served_by == "endpoint":
        return Model(settings.model, None, f"{settings.model}@{settings.revision or 'endpoint'}")
    folder = Path(str(resources.files("video2lora.tiny") / "vlm") if settings.model == "tiny" else settings.model)
    if folder.is_dir():
        if settings.revision is not None:
            raise BadInputError(
                f"teacher.revision: got {settings.revision!r} for {settings.model!r}, which is a folder and has no revisions"
            )
        name = "tiny" if settings.model == "tiny" else folder.resolve().name
        path, revision, identity = str(folder.resolve()), None, f"{name}@{_folder_digest(folder)}"
    else:
        folder = _hub_configs(settings)
        path, revision = settings.model, folder.name
        identity = f"{path}@{revision}"
    try:
        config = json.loads((folder / "config.json").read_text())
        return Model(path, revision, identity, **_sizes(config), smolvlm=_smolvlm(config, folder))
    except (OSError, ValueError, KeyError) as error:
        raise BadInputError(f"teacher.model: {settings.model}: expected a model's config files in {folder}, got {error!r}") from error


def max_model_len(model: Model, settings: TeacherSettings) -> int:
    """Tokens of prompt and answer together: the recipe's, but never more than the model has positions for."""
    return min(settings.max_model_len, model.max_positions or settings.max_model_len)


def _sizes(config: dict[str, Any]) -> dict[str, Any]:
    """Of the language model, whose config stands in a config of its own in some families and at the top in others."""
    text = next((config[name] for name in ("text_config", "llm_config", "language_config") if name in config), config)
    n_heads = text.get("num_attention_heads")
    d_head = text.get("head_dim") or (text["hidden_size"] // n_heads if n_heads and "hidden_size" in text else 0)
    n_values = 2 * text.get("num_hidden_layers", 0) * (text.get("num_key_value_heads") or n_heads or 0) * d_head
    return {"max_positions": text.get("max_position_embeddings"), "n_kv_values": n_values}


def _smolvlm(config: dict[str, Any], folder: Path) -> SmolVLM | None:
    if config["model_type"] != "smolvlm":
        return None
    vision = config["vision_config"]
    return SmolVLM(
        image_size_px=vision["image_size"],
        n_image_tokens=(vision["image_size"] // vision["patch_size"] // config["scale_factor"]) ** 2,
        processor=json.loads((folder / "processor_config.json").read_text())["processor_class"],
    )


def _folder_digest(folder: Path) -> str:
    """A hash of weights, configs and tokenizer."""
    files = sorted({file for pattern in HASHED_FILES for file in folder.glob(pattern)})
    if not any(file.suffix == ".safetensors" for file in files):
        raise BadInputError(f"teacher.model: {folder} holds no *.safetensors; give a model folder, a hub name, or 'tiny'")
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def _hub_configs(settings: TeacherSettings) -> Path:
    """The folder of the hub's commit with the config files, fetched unless they are in the cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(settings.model, revision=settings.revision, allow_patterns=["*config.json"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise BadInputError(
            f"teacher.model: got {settings.model!r}, which is neither 'tiny', nor a folder, nor a hub name in reach: {error}"
        ) from error
