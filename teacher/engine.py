"""What every engine is, whatever serves the model: frames and prompts of some videos -> what the model writes about them.

A clip without frames is a prompt of words alone, as judges are asked. What is written can be held to a JSON schema.
Three do it: vLLM with SmolVLM's own prompts, vLLM with any other model's chat template (both `teacher.vllm_engine`), and an
OpenAI-compatible endpoint (`teacher.endpoint`). `start` chooses. Whatever is wrong with one prompt is that prompt's `Refused`; an engine
that cannot go on raises EngineDiedError, and whoever called it starts another.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from infra.config import TeacherSettings, Where
from infra.errors import BadInputError
from teacher.models import Model
from teacher.prompts import Prompt
from video2lora import prompts

MAX_DETAIL = 300  # characters of what went wrong


class EngineDiedError(Exception):
    """The engine cannot go on: its process is gone, the model failed, or the endpoint is out of reach."""


@dataclass(frozen=True)
class Clip:
    """A video's frames and what to ask about them; or, without frames, prompts of words alone, and an id for them."""

    video_id: str
    jpegs: Sequence[bytes]
    timestamps_s: Sequence[float]
    duration_s: float
    prompts: Sequence[Prompt]


@dataclass(frozen=True)
class Written:
    """What the model wrote. `finish_reason` is "stop" or "length"; `n_tokens` counts the end token too.

    The last three where log-probabilities were asked for: the tokens, and of each the k likeliest and their values, [n_tokens, k] flat.
    """

    text: str
    n_tokens: int
    finish_reason: str
    n_prompt_tokens: int
    token_ids: list[int] | None = None
    top_token_ids: list[int] | None = None
    top_logprobs: list[float] | None = None


@dataclass(frozen=True)
class Refused:
    """Why there is no text: a reject's reason and detail."""

    reason: str
    detail: str


@dataclass
class Spent:
    """Seconds that the engine was at work, and that it was idle while frames and prompts were prepared for it."""

    engine_s: float = 0.0
    prepare_s: float = 0.0
    since: float = 0.0

    def begin(self) -> None:
        self.since = time.monotonic()

    def lap(self, *, idle: bool) -> None:
        """Count the time since the last lap, or the beginning."""
        now = time.monotonic()
        if idle:
            self.prepare_s += now - self.since
        else:
            self.engine_s += now - self.since
        self.since = now


@dataclass(frozen=True)
class EngineOptions:
    """Where and how engines run: what of the environment concerns one of them."""

    gpu: bool = False
    gpu_share: float = 1.0  # of one GPU's memory
    process: bool = False  # vLLM in a process of its own
    tensor_parallel: int = 1
    n_threads: int = 1  # on a CPU
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    endpoint: str | None = None
    deadline_s: float = 120.0


class Engine(Protocol):
    """Holds what is slow to start. `spent` sums up over all calls."""

    spent: Spent

    def write(self, clips: Sequence[Clip]) -> list[list[Written | Refused]]:
        """For each clip, in the order of its prompts. Raises EngineDiedError, after which only `stop` may be called."""

    def stop(self) -> None:
        """End it and its processes; also when it has died."""


def engine_options(where: Where) -> EngineOptions:
    """Raises BadInputError for settings that cannot be had together."""
    gpu = where.teacher_gpus > 0
    tensor_parallel = where.teacher_tensor_parallel or max(1, int(where.teacher_gpus))
    if gpu and tensor_parallel > max(1.0, where.teacher_gpus):
        raise BadInputError(
            f"environment: teacher_tensor_parallel: got {tensor_parallel}, more than the {where.teacher_gpus:g} GPUs of an engine "
            "(VIDEO2LORA_TEACHER_GPUS)"
        )
    process = where.teacher_engine_process if where.teacher_engine_process is not None else gpu
    return EngineOptions(
        gpu=gpu,
        gpu_share=min(1.0, where.teacher_gpus) if gpu else 1.0,
        process=process or tensor_parallel > 1,
        tensor_parallel=tensor_parallel,
        n_threads=max(1, round(where.teacher_cpus)),
        max_num_seqs=where.teacher_max_num_seqs,
        max_num_batched_tokens=where.teacher_max_num_batched_tokens,
        endpoint=where.teacher_endpoint,
        deadline_s=where.teacher_deadline_s,
    )


def start(
    model: Model, settings: TeacherSettings, options: EngineOptions, *, n_frames: int, schema: dict[str, Any] | None = None
) -> Engine:
    """The engine the recipe asks for; `n_frames` is the most that a video has, `schema` of JSON what texts are held to as far as it can.

    Raises BadInputError where the model cannot be asked about so many frames, or the environment lacks the endpoint.
    """
    if settings.served_by == "endpoint":
        from teacher.endpoint import EndpointEngine

        return EndpointEngine(model, settings, options, schema=schema)
    from teacher.vllm_engine import VllmEngine

    return VllmEngine(model, settings, options, n_frames=n_frames, schema=schema)


def spoken(clip: Clip) -> list[str]:
    """The words around a chat's frames, one before each and one after the last: when each was seen, as SmolVLM2 is told."""
    if not clip.jpegs:
        return [""]
    prefix = prompts.video_prefix(clip.timestamps_s, clip.duration_s, placeholder=prompts.IMAGE)
    return [piece.strip() for piece in prefix.removeprefix(prompts.START).split(prompts.IMAGE)]


def one_line(error: object) -> str:
    """What went wrong, short enough for a reject, and the same each time: without addresses in memory."""
    return re.sub(r" object at 0x[0-9a-f]+", "", " ".join(f"{type(error).__name__}: {error}".split()))[:MAX_DETAIL]
