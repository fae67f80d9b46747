"""A model and the environment -> how vLLM is started and asked: its arguments, and the variables of the process that starts it.

On a GPU vLLM's own choices stand but for what the user sets. On a CPU they would compile for minutes, take 90 % of the memory, and start
a process of their own in twice the time. Measured there: 15 s in the calling process, 31 s with one of its own.
"""

from functools import cache
from typing import Any

from infra.config import TeacherSettings
from teacher.engine import EngineOptions
from teacher.models import Model, max_model_len

GIB = 1 << 30
GPU_MEMORY = 0.9  # of an engine's share of a GPU; vLLM's own 0.92 is of the whole
THINKS = "deepseek_r1"  # vLLM's parser of <think>...</think> whose opening stands in the prompt, whatever the family
REPLY_TOKENS = 256  # of max_tokens, kept free of thinking for what is to fit a schema: a judgement of 40 words takes about 100
KV_BLOCK_TOKENS = 32  # vLLM's least on a CPU that is fast there; its default of 128 is longer than a small video's prompt


def engine_environment(model: Model, options: EngineOptions) -> dict[str, str]:
    """What vLLM and torch read from the environment of the process that an engine starts in."""
    variables = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}  # on a CPU a warning per request is 5 % of the time
    variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(options.process))
    variables["VLLM_WORKER_MULTIPROCESSING_METHOD"] = "spawn"  # a fork of a process with threads, as an actor is, may hang
    if model.revision is None:
        variables["HF_HUB_OFFLINE"] = "1"
    if not options.gpu:
        variables["OMP_NUM_THREADS"] = str(options.n_threads)
    return variables


def llm_arguments(model: Model, settings: TeacherSettings, options: EngineOptions, *, n_frames: int) -> dict[str, Any]:
    """Of vLLM's `LLM`."""
    arguments: dict[str, Any] = {
        "model": model.path,
        "revision": model.revision,
        "tokenizer_revision": model.revision,
        "dtype": settings.dtype,
        "max_model_len": max_model_len(model, settings),
        "limit_mm_per_prompt": {"image": n_frames},
        "enable_prefix_caching": True,
        "tensor_parallel_size": options.tensor_parallel,
        **({} if options.gpu else cpu_settings(model, settings)),
    }
    if options.gpu_share < 1:  # vLLM takes nearly all of a GPU, and nothing would be left for the others that share it
        arguments["gpu_memory_utilization"] = GPU_MEMORY * options.gpu_share
    if model.smolvlm is not None:
        arguments["mm_processor_kwargs"] = {"do_image_splitting": False, "do_resize": False}  # frames come as the model's squares
        arguments["hf_overrides"] = class_override(model)
    elif not has_torchvision():  # which vLLM's own classes of most families import; those of transformers do without
        arguments["model_impl"] = "transformers"
    limits = {"max_num_seqs": options.max_num_seqs, "max_num_batched_tokens": options.max_num_batched_tokens}
    return arguments | {name: value for name, value in limits.items() if value is not None}


def sampling_arguments(
    settings: TeacherSettings, *, end_ids: list[int], schema: dict[str, Any] | None = None, thinks: bool = False
) -> dict[str, Any]:
    """Of vLLM's `SamplingParams`: greedy, one output per prompt, when it is finished."""
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    most = settings.max_tokens
    return {
        "temperature": 0.0,
        "max_tokens": most,
        "stop_token_ids": end_ids,
        "detokenize": False,
        "logprobs": settings.logprobs or None,
        "output_kind": RequestOutputKind.FINAL_ONLY,
        "structured_outputs": StructuredOutputsParams(json=schema) if schema else None,
        "thinking_token_budget": max(most // 2, most - REPLY_TOKENS) if thinks else None,
    }


def schema_settings(*, thinks: bool) -> dict[str, Any]:
    """Of vLLM's `LLM`, where texts are to fit a JSON schema: without blanks, of which a model may write any number between two values."""
    settings: dict[str, Any] = {"structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True}}
    return settings | ({"reasoning_parser": THINKS} if thinks else {})


def opens_thinking(model: Model) -> bool:
    """Whether the model's own prompt ends with an open `<think>`, so that it thinks before it replies.

    One that only may think (Qwen3's hybrids) does not where a schema holds from the first token: it replies at once.
    """
    if model.smolvlm is not None:
        return False
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.path, revision=model.revision)
    if not tokenizer.chat_template or not {"<think>", "</think>"} <= tokenizer.get_vocab().keys():
        return False
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "?"}], add_generation_prompt=True, tokenize=False)
    return bool(prompt.rstrip().endswith("<think>"))


def cpu_settings(model: Model, settings: TeacherSettings) -> dict[str, Any]:
    """What takes the place of vLLM's own choices on a CPU."""
    bytes_per_token = model.n_kv_values * (4 if settings.dtype == "float32" else 2)
    return {
        "enforce_eager": True,
        "block_size": KV_BLOCK_TOKENS,
        "kv_cache_memory_bytes": max(GIB, 4 * max_model_len(model, settings) * bytes_per_token),
        "max_num_seqs": 128,
        "max_num_batched_tokens": max(8192, max_model_len(model, settings)),
    }


def class_override(model: Model) -> dict[str, Any]:
    """Which of vLLM's two classes serves a SmolVLM: SmolVLM's, or Idefics3's, which has the same modules and parameter names.

    vLLM's SmolVLM class builds transformers' SmolVLMProcessor, whose video half needs torchvision, and torchvision has no build
    beside a CPU torch. The Idefics3 processor does the same to single frames; the small VLM's folder names that one.
    """
    if has_torchvision() and model.smolvlm is not None and model.smolvlm.processor == "SmolVLMProcessor":
        return {}
    return {"architectures": ["Idefics3ForConditionalGeneration"], "model_type": "idefics3"}


@cache
def has_torchvision() -> bool:
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):  # RuntimeError: a CUDA build beside a CPU torch
        return False
    return True


def inspect_here() -> None:
    """Give vLLM the class it would otherwise look up in a child process, so as not to wake CUDA: 12 s on a machine's first run."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.idefics3 import Idefics3ForConditionalGeneration

    ModelRegistry.register_model("Idefics3ForConditionalGeneration", Idefics3ForConditionalGeneration)
