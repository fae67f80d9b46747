"""Which model writes: a recipe's name of it -> where its files lie, which weights they are, and what its config says of its size.

Reads config files and, of a folder, its weights to name them (`infra.model_files`). No torch, no vLLM, so that a run with nothing to do
starts neither. A model behind an endpoint is known by name alone: what serves it may change unseen, which is why its targets are a set
of their own.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.config import TeacherSettings
from infra.errors import BadInputError
from infra.model_files import model_files


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
    section: str = "teacher"  # of the recipe, which names it: for what is said of a setting


def find_model(settings: TeacherSettings, *, section: str = "teacher") -> Model:
    """Raises BadInputError, naming the recipe's section, if there is no such model, or none with safetensors."""
    if settings.served_by == "endpoint":
        return Model(settings.model, None, f"{settings.model}@{settings.revision or 'endpoint'}", section=section)
    files = model_files(settings.model, revision=settings.revision, setting=section)
    try:
        config = json.loads((files.folder / "config.json").read_text())
        return Model(files.path, files.revision, files.identity, **_sizes(config), smolvlm=_smolvlm(config, files.folder), section=section)
    except (OSError, ValueError, KeyError) as error:
        raise BadInputError(
            f"{section}.model: {settings.model}: expected a model's config files in {files.folder}, got {error!r}"
        ) from error


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
