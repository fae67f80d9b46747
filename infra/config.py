"""What and where. A recipe (YAML, strict) says what is made and holds only what differs from the paper's defaults, which stand here (of
evaluation and retraining, in modules of their own); the environment says where: data folder, MLflow, Ray, workers. There is no third
kind of setting.

A setting that does not exist or has the wrong type is refused with its path. Recipes that ship are named by their file's stem;
any other is given by path. Sources of the defaults: arXiv 2606.04351 section 4.1, appendix E, and the released checkpoints.
"""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, Field, SecretStr, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.errors import BadInputError
from infra.evaluation_config import AnswerSettings, EvaluationSettings, FigureSettings, JudgeSettings
from infra.retraining_config import PromotionSettings, RetrainingSettings
from infra.settings import Settings
from video2lora.sampling import Sampling

Read = TypeVar("Read", bound=BaseModel)


class VLMSettings(Settings):
    """The frozen VLM: `tiny` (ships with the project), a local folder, or a hub name at a revision."""

    model: str = "tiny"
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"


class FilterSettings(Settings):
    """Which clips are not worth a teacher's time; each is off (None) by default, and refuses with a reject. See pipeline/filters.py."""

    max_black_share: float | None = Field(default=None, ge=0, lt=1)  # of the sampled frames
    max_frozen_share: float | None = Field(default=None, ge=0, lt=1)  # of the pairs of neighbouring sampled frames
    min_motion: float | None = Field(default=None, gt=0, le=1)  # mean absolute luma difference of neighbouring sampled frames
    near_duplicate_bits: int | None = Field(default=None, ge=0, le=8)  # of 64, by which each frame of a copy may differ; 6 finds re-encodes


class FramesSettings(Settings):
    """Which frames are kept, and how large. Paper 4.1: at most 12 frames, longest edge 384 px."""

    sampling: Sampling = Sampling(policy="uniform", n_frames=12)
    longest_edge_px: int = Field(default=384, ge=8)
    jpeg_quality: int = Field(default=95, ge=1, le=100)
    deadline_s: float = Field(default=60.0, gt=0)
    filters: FilterSettings = FilterSettings()


class SceneSettings(Settings):
    """Videos cut into spans. Paper 4.1: single scenes, 2 or 3 adjacent scenes and full videos, mixed 60/30/10. See pipeline/scenes.py."""

    splits: tuple[Literal["train", "validation", "test"], ...] = ("train", "validation")  # a test video's questions are of all of it
    mix: tuple[float, float, float] = (0.6, 0.3, 0.1)
    threshold: float = Field(default=10.0, gt=0, le=100)  # percent of luma that changes at a cut; scdet's default, it advises 8 to 14
    min_scene_s: float = Field(default=0.6, gt=0)  # shorter ones join the one before; PySceneDetect's default
    deadline_s: float = Field(default=120.0, gt=0)  # to look for the scenes of one video: a whole decode
    seed: int = 0

    @field_validator("mix")
    @classmethod
    def _is_a_mixture(cls, mix: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(mix) < 0 or abs(sum(mix) - 1) > 1e-9:
            raise ValueError(f"got {mix}, expected shares of at least 0 whose sum is 1")
        return mix


class WorldSettings(Settings):
    """The made world of clips that the demo runs on."""

    level: int = Field(default=1, ge=1, le=3)
    seed: int = 0
    n_train: int = Field(default=1000, ge=1)
    n_validation: int = Field(default=40, ge=1)
    n_test: int = Field(default=60, ge=2)


class TeacherSettings(Settings):
    """Who writes the targets, and how. Paper 4.1: SmolVLM2 itself, greedy, at most 64 new tokens."""

    model: str = "tiny"
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    served_by: Literal["vllm", "endpoint"] = "vllm"  # endpoint: OpenAI-compatible, at VIDEO2LORA_TEACHER_ENDPOINT; dtype is its own affair
    prompts: str = "mixed"  # a set that ships (teacher/prompt_sets), or a YAML file
    max_tokens: int = Field(default=64, ge=1)
    unfinished: Literal["keep", "reject"] = "reject"  # texts cut off at max_tokens; the paper keeps them
    max_model_len: int = Field(default=8192, ge=16)
    logprobs: int = Field(default=0, ge=0, le=20)  # of the likeliest tokens at each place, kept with the targets; 20 is vLLM's own limit
    videos_per_block: int = Field(default=64, ge=1)


class ExamplesSettings(Settings):
    rows_per_shard: int = Field(default=64, ge=1)
    seed: int = 0


class HypernetworkSettings(Settings):
    """Sizes that do not follow from the VLM. Defaults: both released checkpoints."""

    target_modules: tuple[str, ...] = ("down_proj",)
    r: int = Field(default=16, ge=1)
    n_latents: int = Field(default=8, ge=1)
    n_blocks: int = Field(default=9, ge=1)
    d_latent: int = Field(default=512, ge=1)
    n_heads: int = Field(default=16, ge=1)
    n_kv_heads: int = Field(default=4, ge=1)
    d_head: int = Field(default=128, ge=1)
    n_pre_head_blocks: int = Field(default=1, ge=0)
    scaling: float | None = None
    static_adapter: bool = True
    normalise_features: bool = False
    opens_answer: bool = False  # whether features go on to "Assistant:"; published ones end with the user's turn
    read_every: int = Field(default=1, ge=1)  # layers in groups of so many read the features of their group's last layer; published: 1


HOW = ("zero_stage", "compile", "checkpoint_every", "checkpoints_kept")
"""Settings of training that change how it runs and not what comes out: a run goes on when they have changed."""


class TrainingSettings(Settings):
    """Paper appendix E (500M): 9,000 steps of 384 samples, AdamW, lr 1e-4, cosine to 0 after 3 % warm-up, clipped at 1.0.

    The loss of a target is ce_weight * CE + kl_weight * KL + l1_weight * L1; published: CE alone.
    """

    n_steps: int = Field(default=9000, ge=1)
    videos_per_step: int = Field(default=384, ge=1)  # over all workers
    targets_per_video: int = Field(default=1, ge=1)
    tasks: tuple[str, ...] | None = None  # which targets are trained on: summary, caption, question; None: all
    max_chunks: int = Field(default=1, ge=1)  # a step's videos are read in 1 to so many chunks whose adapters are composed; published: 1
    visual_tokens: Literal["computed", "stored"] = "computed"  # stored: by the table `visual_tokens`, and pictures are not read
    ce_weight: float = Field(default=1.0, ge=0)  # of the cross-entropy of a target's tokens
    kl_weight: float = Field(default=0.0, ge=0)  # of the divergence from the teacher's likeliest tokens (teacher.logprobs > 0)
    l1_weight: float = Field(default=0.0, ge=0)  # of the mean absolute value of the generated factors
    lr: float = Field(default=1e-4, gt=0)
    warmup: float = Field(default=0.03, ge=0, lt=1)  # share of the steps
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    zero_stage: Literal[0, 1, 2, 3] = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    newline_after_target: bool = True  # the chat template's line end is learnt too, as published
    start_from: str | None = None  # a hypernetwork's folder, or `tiny`: its weights before the first step; None: drawn by `seed`
    seed: int = 42
    compile: bool = False  # the hypernetwork by torch.compile
    checkpoint_every: int = Field(default=500, ge=1)
    checkpoints_kept: int = Field(default=2, ge=1)  # the last ones; the best by validation is kept beside them
    validate_every: int = Field(default=1000, ge=1)  # as the published code
    validation_answers: int = Field(default=100, ge=0)  # targets that are answered at each validation, as published; all count for its loss
    select: Literal["last", "loss", "exact_match"] = "last"  # the checkpoint that becomes the hypernetwork; paper: loss, of the validation
    patience: int | None = Field(default=None, ge=1)  # validations without a better one by `select` after which training ends
    max_loss_ratio: float | None = Field(default=10.0, gt=1)  # to the median of the last 100 steps: beyond it training stops


class Recipe(Settings):
    """What is made."""

    vlm: VLMSettings = VLMSettings()
    world: WorldSettings | None = None
    scenes: SceneSettings | None = None  # None: videos stay whole
    frames: FramesSettings = FramesSettings()
    teacher: TeacherSettings = TeacherSettings()
    examples: ExamplesSettings = ExamplesSettings()
    hypernetwork: HypernetworkSettings = HypernetworkSettings()
    training: TrainingSettings = TrainingSettings()
    answer: AnswerSettings = AnswerSettings()
    judge: JudgeSettings | None = None  # None: answers are scored by their words alone
    evaluation: EvaluationSettings = EvaluationSettings()
    figures: FigureSettings = FigureSettings()
    retraining: RetrainingSettings = RetrainingSettings()
    promotion: PromotionSettings = PromotionSettings()

    @model_validator(mode="after")
    def _evaluates_one_thing(self) -> Self:
        if self.answer.hypernetwork is not None and self.evaluation.seeds is not None:
            raise ValueError("answer.hypernetwork names one hypernetwork, and evaluation.seeds several trainings: leave out either")
        return self

    def of_seeds(self) -> list["Recipe"]:
        """The recipe once for each training that is evaluated."""
        seeds = self.evaluation.seeds or (self.training.seed,)
        return [self.model_copy(update={"training": self.training.model_copy(update={"seed": seed})}) for seed in seeds]

    def section(self, *names: str) -> dict[str, Any]:
        """The named parts as plain values: what a table's `made.json` records."""
        return {name: self.model_dump(mode="json")[name] for name in names}


class NodeGroup(Settings):
    """Up to `n` nodes alike, each with CPUs and GPUs under Ray's names for them."""

    n: int = Field(default=1, ge=1)
    CPU: float = Field(default=0.0, ge=0)
    GPU: float = Field(default=0.0, ge=0)


NODE_GROUPS = TypeAdapter(tuple[NodeGroup, ...])


class Where(BaseSettings):
    """The environment, read here and nowhere else. Variables: VIDEO2LORA_DATA and so on; MLFLOW_TRACKING_URI, RAY_ADDRESS as ever.

    Credentials (AWS_*, HF_TOKEN, MLflow's) are read by their own libraries and never pass through here.
    """

    model_config = SettingsConfigDict(env_prefix="VIDEO2LORA_", frozen=True, extra="ignore")

    data: str = "data"
    mlflow_tracking_uri: str | None = Field(default=None, validation_alias="MLFLOW_TRACKING_URI")  # None: sqlite in the data folder
    ray_address: str = Field(default="local", validation_alias="RAY_ADDRESS")
    ray_api: str | None = Field(default=None, validation_alias="RAY_API_SERVER_ADDRESS")  # URL of the job server that jobs are submitted to
    n_cpus: int | None = Field(default=None, ge=1)  # of a local Ray; None: all of the machine's
    grows_to: str | None = None  # JSON, what an autoscaler can make of the cluster: `NodeGroup`s; None: the nodes there are
    stall_s: float = Field(default=1800.0, gt=0)  # a stage in which nothing is finished for so long ends with an error
    teacher_cpus: float = Field(default=1.0, ge=0)
    teacher_gpus: float = Field(default=0.0, ge=0)  # per engine
    teacher_replicas: int | None = Field(default=None, ge=1)  # engines; None: as many as there is work and room for
    teacher_tensor_parallel: int | None = Field(default=None, ge=1)  # processes one model is spread over; None: the engine's GPUs, or 1
    teacher_max_num_seqs: int | None = Field(default=None, ge=1)  # prompts at once; None: the engine's choice, 32 of an endpoint
    teacher_max_num_batched_tokens: int | None = Field(default=None, ge=1)
    teacher_engine_process: bool | None = None  # vLLM in a process of its own; None: on a GPU, where preparing frames then costs it nothing
    teacher_endpoint: str | None = None  # URL up to /v1; its key is OPENAI_API_KEY, which the openai package reads by itself
    teacher_deadline_s: float = Field(default=120.0, gt=0)  # for an endpoint to answer one request
    training_workers: int = Field(default=2, ge=1)
    training_min_workers: int | None = Field(default=None, ge=1)  # go on with so few while others are lost; None: wait for all of them
    training_videos_at_once: int | None = Field(default=None, ge=1)  # per worker, of a step's; None: all. For what its memory takes
    training_held_bytes: int = Field(default=1 << 30, ge=0)  # of pictures or visual tokens that a worker holds; a larger split streams
    training_gpus: float = Field(default=0.0, ge=0)  # per worker
    roots: str | None = None  # folders and s3:// addresses, by commas: what a SOURCE may name beside its own. None: pipeline/roots.py
    run: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")  # logical run this is an attempt of; None: a new one
    webhook: SecretStr | None = None  # URL that gets a retraining's verdict; whoever has it may write there, so it is shown nowhere
    wordnet: str = "/usr/share/wordnet"  # folder of WordNet 3.0's database, for WUPS; Debian's wordnet-base puts it there

    @field_validator("grows_to")
    @classmethod
    def _check_groups(cls, text: str | None) -> str | None:
        if text is not None:
            NODE_GROUPS.validate_json(text)
        return text

    def groups(self) -> tuple["NodeGroup", ...]:
        """Of `grows_to`."""
        return () if self.grows_to is None else NODE_GROUPS.validate_json(self.grows_to)


def load_recipe(name_or_path: str) -> Recipe:
    """The recipe of a shipped name or of a YAML file. Raises BadInputError with the path of each setting that is wrong."""
    return read_yaml(Recipe, name_or_path, kind="recipe")


def read_yaml(model: type[Read], name_or_path: str, *, kind: str) -> Read:
    """The `kind` of a name that ships in infra/<kind>s, or of a YAML file. Raises BadInputError with the path of each wrong setting."""
    file, folder = Path(name_or_path), resources.files("infra") / f"{kind}s"
    shipped = folder / f"{name_or_path}.yaml"
    if file.suffix not in (".yaml", ".yml") and shipped.is_file():
        text = shipped.read_text()
    elif file.is_file():
        text = file.read_text()
    else:
        names = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir())
        raise BadInputError(f"{kind} {name_or_path!r}: no such file, and not one of {', '.join(names)}")
    try:
        return checked(model, yaml.safe_load(text) or {}, where=f"{kind} {name_or_path}")
    except yaml.YAMLError as error:
        raise BadInputError(f"{kind} {name_or_path}: not YAML: {error}") from error


def checked(model: type[Read], values: Any, *, where: str) -> Read:
    """Settings of plain values. Raises BadInputError that begins with `where`, with the path of each wrong one."""
    try:  # through JSON, where strict models take lists for tuples and nothing else for anything
        return model.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        wrong = []
        for item in error.errors():
            got = "" if isinstance(item["input"], dict) else f" (got {item['input']!r})"  # settings that do not go together say which
            wrong.append(f"{'.'.join(map(str, item['loc'])) or model.__name__.lower()}: {item['msg']}{got}")
        raise BadInputError(f"{where}: " + "; ".join(wrong)) from error


def load_where() -> Where:
    """The environment's settings. Raises BadInputError naming the variable."""
    try:
        return Where()
    except ValidationError as error:
        wrong = [_told(item) for item in error.errors()]
        raise BadInputError("environment: " + "; ".join(wrong)) from error


def variables(where: Where) -> dict[str, str]:
    """The settings that were set, as the environment has them."""
    found = {}
    for name in sorted(where.model_fields_set):
        value = getattr(where, name)
        if value is not None:
            found[_variable(name)] = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    return found


def where_of(found: Mapping[str, str]) -> Where:
    """Settings of another environment, a cluster's, under those of this one. Raises BadInputError naming the variable."""
    own = variables(load_where())
    fields = {_variable(name): str(field.validation_alias or name) for name, field in Where.model_fields.items()}
    settings: dict[str, Any] = {fields[name]: value for name, value in {**found, **own}.items() if name in fields}
    try:
        return Where(**settings)
    except ValidationError as error:
        wrong = [_told(item) for item in error.errors()]
        raise BadInputError("the cluster's environment: " + "; ".join(wrong)) from error


def _told(wrong: Any) -> str:
    """What pydantic finds wrong with a variable, by the variable's name."""
    name = str(wrong["loc"][0])
    return f"{_variable(name) if name in Where.model_fields else name}: {wrong['msg']} (got {wrong['input']!r})"


def _variable(field: str) -> str:
    alias = Where.model_fields[field].validation_alias
    return str(alias) if alias else f"VIDEO2LORA_{field.upper()}"
