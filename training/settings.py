"""Settings of a recipe and of the environment that do not go together, found before anything is read or started."""

from infra.config import Recipe, Where
from infra.errors import BadInputError


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
    if settings.ce_weight == settings.kl_weight == 0:
        raise BadInputError("recipe: training.ce_weight, training.kl_weight: got 0 for both, expected one of them to teach anything")
    if settings.kl_weight and not recipe.teacher.logprobs:
        raise BadInputError("recipe: training.kl_weight: needs the teacher's log-probabilities, and teacher.logprobs is 0")
    if settings.patience is not None and settings.select == "last":
        raise BadInputError("recipe: training.patience: waits for a better validation, so training.select must be loss or exact_match")
    if settings.select == "exact_match" and not settings.validation_answers:
        raise BadInputError("recipe: training.select: exact_match needs answers, and training.validation_answers is 0")
