"""Hypernetworks that are named from outside: by a recipe's setting, by a person, by the log of promotions. What each is, wherever it lies.

A trained one has a folder of its own under <data>/hypernetworks (`infra.sets`); any other folder with a config.json and a
hypernetwork.safetensors will do too: an imported one, a copy in a bucket, or `tiny`, the one that ships.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import BadInputError
from infra.objects import read_bytes, read_json
from infra.s3 import S3, fetch

if TYPE_CHECKING:
    from infra.config import Recipe

HYPERNETWORKS = "hypernetworks"  # the folder of all that were trained

Made = dict[str, Any]


def address_of(name: str) -> str:
    """Of a folder as a recipe has it; `tiny` is the one that ships."""
    return str(resources.files("video2lora.tiny") / "hypernetwork") if name == "tiny" else name.rstrip("/")


def champion_folder(recipe: "Recipe") -> str | None:
    """Where the hypernetwork of the system `champion` lies, None where nobody asks for one.

    Raises BadInputError where only one of answer.champion and answer.systems names it.
    """
    folder = recipe.answer.champion
    if folder is None and "champion" in recipe.answer.systems:
        raise BadInputError("recipe: answer.systems has champion, and answer.champion names no hypernetwork: set it to a folder, or `tiny`")
    if folder is not None and "champion" not in recipe.answer.systems:
        raise BadInputError(f"recipe: answer.champion: got {folder!r}, and answer.systems has no champion: add it there, or leave out both")
    return None if folder is None else address_of(folder)


def identity(folder: str, *, named_by: str) -> Made:
    """What a hypernetwork is, wherever it lies: its config and its weights. `named_by` begins the error, as "recipe: answer.champion".

    Raises BadInputError where the folder holds none, StorageError.
    """
    config = read_json(f"{folder.rstrip('/')}/config.json")
    if not isinstance(config, dict) or "hypernetwork" not in config:
        raise BadInputError(f"{named_by}: {folder} holds no hypernetwork (a config.json and hypernetwork.safetensors)")
    digest = config.get("weights_sha256")  # as saved, and checked when they are loaded; absent in folders of before it was
    if digest is None:
        data = read_bytes(f"{folder.rstrip('/')}/hypernetwork.safetensors")
        if data is None:
            raise BadInputError(f"{named_by}: {folder.rstrip('/')}/hypernetwork.safetensors is not there")
        digest = hashlib.sha256(data).hexdigest()
    return {"hypernetwork": config["hypernetwork"], "weights_sha256": digest}


def adapters_digest(made: Made) -> str:
    """The `hypernetwork_digest` that adapters by this `identity` carry: `video2lora.checkpoint.hypernetwork_hash`, weights unread."""
    network = json.dumps(made["hypernetwork"], sort_keys=True).encode()
    return hashlib.sha256(network + b"\n" + str(made["weights_sha256"]).encode()).hexdigest()


@contextmanager
def local_hypernetwork(folder: str) -> Iterator[Path]:
    """A hypernetwork's folder on this machine, fetched for the block if it is in a bucket. Raises BadInputError where it is none."""
    if not folder.startswith(S3):
        yield Path(folder.removeprefix("file://"))
        return
    with tempfile.TemporaryDirectory() as fetched:
        for name in ("config.json", "hypernetwork.safetensors"):
            try:
                fetch(f"{folder.rstrip('/')}/{name}", f"{fetched}/{name}")
            except (FileNotFoundError, PermissionError) as error:
                raise BadInputError(f"{folder} holds no hypernetwork that can be read: {error}") from error
        yield Path(fetched)


def vlm_label(model: str) -> str:
    """A VLM as folders, the registry and the promotions call it: the last part of its name."""
    return model.rstrip("/").rsplit("/", 1)[-1]
