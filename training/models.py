"""A recipe -> its two models: the frozen VLM, and a hypernetwork that fits it, new or begun from another's weights."""

from infra.config import Recipe
from infra.errors import BadInputError
from infra.hypernetworks import identity, local_hypernetwork
from video2lora.checkpoint import load_hypernetwork
from video2lora.hypernetwork import Hypernetwork, checked_config
from video2lora.pretrained import load_vlm
from video2lora.vlm import FrozenVLM

STARTED = "recipe: training.start_from"


def frozen_vlm(recipe: Recipe, *, device: str) -> FrozenVLM:
    """Raises BadInputError if the recipe's VLM is not there."""
    try:
        return load_vlm(recipe.vlm.model, revision=recipe.vlm.revision, dtype=recipe.vlm.dtype, device=device)
    except ValueError as error:
        raise BadInputError(f"recipe: {error}") from error


def new_hypernetwork(recipe: Recipe, vlm: FrozenVLM) -> Hypernetwork:
    """As the recipe says and as the VLM's sizes demand. Raises BadInputError if they do not fit."""
    settings = recipe.hypernetwork.model_dump()
    try:
        settings["target_modules"] = vlm.module_sizes(settings["target_modules"])
        config = checked_config({**settings, "n_layers": len(vlm.layers), "d_vlm": vlm.d_vlm}, where="hypernetwork")
    except ValueError as error:
        raise BadInputError(f"recipe: {error}") from error
    return Hypernetwork(config, seed=recipe.training.seed)


def begun_from(recipe: Recipe, vlm: FrozenVLM, folder: str, *, weights_sha256: str) -> Hypernetwork:
    """As `new_hypernetwork`, with the weights in a folder, in fp32. `weights_sha256` is what they were when the training began.

    Raises BadInputError where they are others now, or of another shape.
    """
    config = new_hypernetwork(recipe, vlm).config
    found = identity(folder, named_by=STARTED)["weights_sha256"]
    if found != weights_sha256:
        raise BadInputError(f"{STARTED}: {folder} holds weights {found}, and this training began from {weights_sha256}")
    with local_hypernetwork(folder) as local:
        try:
            there = load_hypernetwork(local)
        except ValueError as error:
            raise BadInputError(f"{STARTED}: {error}") from error
    if there.config != config:
        here = config.model_dump(mode="json")
        different = {name: value for name, value in there.config.model_dump(mode="json").items() if here[name] != value}
        told = ", ".join(f"{name} {value} there, {here[name]} here" for name, value in different.items())
        raise BadInputError(f"{STARTED}: {folder} is another network than the recipe's hypernetwork for this VLM: {told}")
    return there.float()
