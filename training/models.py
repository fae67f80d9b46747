"""A recipe -> its two models: the frozen VLM, and a hypernetwork that fits it."""

from infra.config import Recipe
from infra.errors import BadInputError
from video2lora.hypernetwork import Hypernetwork, checked_config
from video2lora.pretrained import load_vlm
from video2lora.vlm import FrozenVLM


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
