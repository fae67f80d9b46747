"""The teacher's model in vLLM: frames and a prompt -> the text it writes. With `serving`, all that knows vLLM.

`find_model` reads a folder's or a hub repository's config (no torch, no vLLM) and names the weights; `Engine` starts vLLM in the
calling process. Prompts are the small VLM's and SmolVLM2's own (`video2lora.prompts`), greedy, on frames squashed to the model's
square and never tiled, so its words are those `video2lora.vlm.FrozenVLM` would write on the same frames (a test compares them).

Prompts go in as token ids: their length is known before anything is generated, and no text is tokenized twice. Each frame carries
its content hash, so a video is preprocessed and encoded once however many prompts it has, and they share its KV cache.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from infra.config import TeacherSettings
from infra.errors import BadInputError
from video2lora import prompts
from video2lora.jpeg import from_jpegs

GIB = 1 << 30
KV_BLOCK_TOKENS = 32  # vLLM's least on a CPU that is fast there; its default of 128 is longer than a small video's prompt
HASHED_FILES = ("*.safetensors", "*config.json", "tokenizer.json")  # of a model folder: all that the text depends on


@dataclass(frozen=True)
class Model:
    """A SmolVLM as its config describes it. `identity` names its weights: a folder's by content, a hub's by commit."""

    path: str  # a folder, or a hub name
    revision: str | None  # the hub's commit; None for a folder
    identity: str
    image_size_px: int
    n_image_tokens: int  # per frame
    max_positions: int
    n_kv_values: int  # that one token leaves in the KV cache, over all layers
    processor: str  # class name


@dataclass(frozen=True)
class Pictures:
    """A video's frames as the model's squares, each known by its content."""

    images: list[Image.Image]
    image_ids: list[str]


@dataclass(frozen=True)
class Request:
    """One prompt about one video, ready for the engine."""

    token_ids: list[int]  # with one image token per frame, or the engine will not have it
    n_image_ids: int
    n_tokens: int  # as the model reads it, each image token expanded
    pictures: Pictures


@dataclass(frozen=True)
class Written:
    """What the model wrote. `finish_reason` is "stop" or "length"; `n_tokens` counts the end token too."""

    text: str
    n_tokens: int
    finish_reason: str


class Engine:
    """A vLLM engine in this process: on the GPUs that Ray gave it, or on the CPU."""

    def __init__(self, model: Model, settings: TeacherSettings, *, n_frames: int, gpu: bool) -> None:
        """`n_frames` is the most that a video has."""
        from vllm import LLM, SamplingParams

        if not gpu:
            inspect_here()
        self.model = model
        self.llm = LLM(
            model=model.path,
            revision=model.revision,
            tokenizer_revision=model.revision,
            dtype=settings.dtype,
            max_model_len=max_model_len(model, settings),
            limit_mm_per_prompt={"image": n_frames},
            mm_processor_kwargs={"do_image_splitting": False, "do_resize": False},  # frames come as the model's squares
            hf_overrides=class_override(model),
            enable_prefix_caching=True,
            **({} if gpu else cpu_settings(model, settings)),
        )
        self.tokenizer = self.llm.get_tokenizer()
        self.image_id, end_id = self.tokenizer.convert_tokens_to_ids([prompts.IMAGE, prompts.END_OF_UTTERANCE])
        self.tokens_per_frame = len(self._encode(prompts.frame_placeholder(model.n_image_tokens)))
        self.sampling = SamplingParams(temperature=0.0, max_tokens=settings.max_tokens, stop_token_ids=[end_id], detokenize=False)

    def request(self, pictures: Pictures, *, prefix: str, prompt: str) -> Request:
        """`prefix` is `video_prefix` with a bare image token per frame. A prompt that spells an image token adds one."""
        token_ids = self._encode(prefix + prompt + prompts.ASSISTANT)
        n_image_ids = token_ids.count(self.image_id)
        return Request(token_ids, n_image_ids, len(token_ids) + n_image_ids * (self.tokens_per_frame - 1), pictures)

    def generate(self, requests: Sequence[Request]) -> list[Written]:
        """What the model writes, in the order of the requests. Keep a video's requests together: they share what is computed of it."""
        inputs: list[Any] = [
            {
                "prompt_token_ids": request.token_ids,
                "multi_modal_data": {"image": request.pictures.images},
                "multi_modal_uuids": {"image": request.pictures.image_ids},
            }
            for request in requests
        ]
        outputs = [one.outputs[0] for one in self.llm.generate(inputs, self.sampling, use_tqdm=False)]
        texts = self.tokenizer.batch_decode([list(one.token_ids) for one in outputs], skip_special_tokens=True)
        return [Written(text.strip(), len(one.token_ids), str(one.finish_reason)) for text, one in zip(texts, outputs, strict=True)]

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def pictures(jpegs: Sequence[bytes], *, size_px: int) -> Pictures:
    """As the method squashes them. Raises ValueError for damaged frames."""
    from video2lora.pixels import squash

    squares = squash(from_jpegs(jpegs), size_px)
    return Pictures([Image.fromarray(one) for one in squares], [hashlib.sha256(jpeg).hexdigest() for jpeg in jpegs])


def find_model(settings: TeacherSettings) -> Model:
    """Reads config files, and a folder's weights to name them. Raises BadInputError if there is no SmolVLM with safetensors."""
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
        text, vision = config["text_config"], config["vision_config"]
        return Model(
            path=path,
            revision=revision,
            identity=identity,
            image_size_px=vision["image_size"],
            n_image_tokens=(vision["image_size"] // vision["patch_size"] // config["scale_factor"]) ** 2,
            max_positions=text["max_position_embeddings"],
            n_kv_values=2 * text["num_hidden_layers"] * text["num_key_value_heads"] * text["head_dim"],
            processor=json.loads((folder / "processor_config.json").read_text())["processor_class"],
        )
    except (OSError, ValueError, KeyError) as error:
        raise BadInputError(f"teacher.model: {settings.model}: expected a SmolVLM's config files in {folder}, got {error!r}") from error


def max_model_len(model: Model, settings: TeacherSettings) -> int:
    """Tokens of prompt and answer together: the recipe's, but never more than the model has positions for."""
    return min(settings.max_model_len, model.max_positions)


def engine_environment(model: Model, *, gpu: bool, n_threads: int) -> dict[str, str]:
    """What vLLM and torch read from the environment of the process that an engine starts in."""
    variables = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}  # on a CPU a warning per request is 5 % of the time
    if model.revision is None:
        variables["HF_HUB_OFFLINE"] = "1"
    if not gpu:  # in the calling process, vLLM starts in 15 s; with a process of its own it takes 150
        variables |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(n_threads)}
    return variables


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


def class_override(model: Model) -> dict[str, Any]:
    """Which of vLLM's two classes serves the model: SmolVLM's, or Idefics3's, which has the same modules and parameter names.

    vLLM's SmolVLM class builds transformers' SmolVLMProcessor, whose video half needs torchvision, and torchvision has no build
    beside a CPU torch. The Idefics3 processor does the same to single frames; the small VLM's folder names that one.
    """
    try:
        import torchvision  # noqa: F401

        has_torchvision = True
    except (ImportError, RuntimeError):  # RuntimeError: a CUDA build beside a CPU torch
        has_torchvision = False
    if has_torchvision and model.processor == "SmolVLMProcessor":
        return {}
    return {"architectures": ["Idefics3ForConditionalGeneration"], "model_type": "idefics3"}


def inspect_here() -> None:
    """Give vLLM the class it would otherwise look up in a child process, so as not to wake CUDA: 12 s on a machine's first run."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.idefics3 import Idefics3ForConditionalGeneration

    ModelRegistry.register_model("Idefics3ForConditionalGeneration", Idefics3ForConditionalGeneration)


def cpu_settings(model: Model, settings: TeacherSettings) -> dict[str, Any]:
    """On a GPU, vLLM's own choices stand; here they would compile for minutes and take 90 % of the memory."""
    bytes_per_token = model.n_kv_values * (4 if settings.dtype == "float32" else 2)
    return {
        "enforce_eager": True,
        "block_size": KV_BLOCK_TOKENS,
        "kv_cache_memory_bytes": max(GIB, 4 * max_model_len(model, settings) * bytes_per_token),
        "max_num_seqs": 128,
        "max_num_batched_tokens": max(8192, max_model_len(model, settings)),
    }
