"""Whether a run fits: the frames into the model's context, the engines into the cluster. Asked before anything starts."""

from collections.abc import Mapping, Sequence

from infra.config import Where
from infra.errors import BadInputError, StageFailedError
from infra.progress import say
from infra.resources import engine_room, engines_for
from teacher.lasting import Plan
from teacher.models import max_model_len


def check_room(plan: Plan) -> None:
    """Says where the model has fewer positions than the recipe asks for. Raises BadInputError where the context has no room for a prompt.

    Of a model that is no SmolVLM, only its processor knows what a frame takes: its engine asks it, as it starts.
    """
    model, settings, section = plan.model, plan.settings, plan.model.section
    if model.max_positions is not None and model.max_positions < settings.max_model_len:
        say(f"{section}.max_model_len: got {settings.max_model_len}, taking the model's own {model.max_positions}")
    if settings.served_by == "vllm" and plan.longest < 1:
        raise BadInputError(
            f"recipe: {section}.max_tokens: got {settings.max_tokens}, which of the {max_model_len(model, settings)} tokens of the context "
            f"leaves none for a prompt; take fewer, or a larger {section}.max_model_len"
        )
    n_needed = plan.n_frames * (model.smolvlm.n_image_tokens if model.smolvlm is not None else 0)
    if n_needed > plan.longest:
        raise BadInputError(
            f"recipe: {section}.max_model_len: {plan.n_frames} frames are {n_needed} tokens, and {plan.longest} is all that "
            f"max_model_len and max_tokens leave; take fewer frames or a larger max_model_len"
        )


def engine_count(n_prompts: int, nodes: Sequence[Mapping[str, float]], where: Where, *, stage: str = "targets") -> int:
    """How many engines to start; `nodes` are the resources of each.

    Raises StageFailedError where the cluster has no room for one, or for as many as are asked for.
    """
    room = engine_room(nodes, where)
    if room < (where.teacher_replicas or 1):  # Ray would wait for ever
        engine = f"{where.teacher_cpus:g} CPUs and {where.teacher_gpus:g} GPUs on one node"
        there = ", ".join(f"{node.get('CPU', 0.0):g} CPUs and {node.get('GPU', 0.0):g} GPUs" for node in nodes)
        raise StageFailedError(
            f"{stage}: {where.teacher_replicas or 1} engine(s) of {engine} are to start, and there is room for {room} in the Ray"
            f" cluster ({there}); see VIDEO2LORA_TEACHER_*"
        )
    return engines_for(n_prompts, where, room=room)
