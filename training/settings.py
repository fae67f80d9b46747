"""Settings of a recipe and of the environment that do not go together, found before anything is read or started."""

from infra.config import Recipe, Where
from infra.errors import BadInputError
from infra.hypernetworks import address_of, identity


def check(recipe: Recipe, where: Where) -> None:
    """Raises BadInputError for settings that do not go together."""
    settings, n_workers = recipe.training, where.training_workers
    if settings.videos_per_step < n_workers:
        raise BadInputError(
            f"recipe: training.videos_per_step: got {settings.videos_per_step}, expected at least one for each of the {n_workers} workers "
            "(VIDEO2LORA_TRAINING_WORKERS)"
        )
    if where.training_min_workers is not None and where.training_min_workers > n_workers:
        raise BadInputError(f"environment: VIDEO2LORA_TRAINING_MIN_WORKERS: got {where.training_min_workers}, expected at most {n_workers}")
    if recipe.answer.hypernetwork is not None:
        raise BadInputError(
            f"recipe: answer.hypernetwork: got {recipe.answer.hypernetwork!r}, so what this recipe trains would not be what is evaluated:"
            " leave it out to train; `video2lora evaluate` alone takes it, and trains nothing"
        )
    if where.training_gpus not in (0.0, 1.0):  # DeepSpeed takes the GPU of the worker's place on its node, whatever Ray gave it
        raise BadInputError(
            f"environment: VIDEO2LORA_TRAINING_GPUS: got {where.training_gpus:g}, expected 0 or 1 to train, as a worker is one process on"
            " one GPU; for more, set VIDEO2LORA_TRAINING_WORKERS"
        )
    if settings.ce_weight == settings.kl_weight == 0:
        raise BadInputError("recipe: training.ce_weight, training.kl_weight: got 0 for both, expected one of them to teach anything")
    if settings.kl_weight and not recipe.teacher.logprobs:
        raise BadInputError("recipe: training.kl_weight: needs the teacher's log-probabilities, and teacher.logprobs is 0")
    if settings.patience is not None and settings.select == "last":
        raise BadInputError("recipe: training.patience: waits for a better validation, so training.select must be loss or exact_match")
    if settings.select == "exact_match" and not settings.validation_answers:
        raise BadInputError("recipe: training.select: exact_match needs answers, and training.validation_answers is 0")
    if settings.start_from is not None:
        _check_start(recipe, settings.start_from)


def _check_start(recipe: Recipe, name: str) -> None:
    """As far as the recipe tells the sizes; those that the VLM decides, workers compare. Raises BadInputError."""
    there = identity(address_of(name), named_by="recipe: training.start_from")["hypernetwork"]
    there = {**there, "target_modules": sorted(there["target_modules"])}
    here = recipe.hypernetwork.model_dump(mode="json")
    here["target_modules"] = sorted(here["target_modules"])
    different = [name for name in here.keys() & there.keys() if here[name] != there[name]]
    if different:
        told = "; ".join(f"hypernetwork.{one}: {there[one]} there, {here[one]} in the recipe" for one in sorted(different))
        raise BadInputError(f"recipe: training.start_from: {name} is a hypernetwork of other sizes: {told}")
