"""The numbers of what runs, for Prometheus: Ray exports them on the metrics port of the node where they arise.

There each has `ray_` before its name, and a counter `_total` behind it: `exported`. Told at commits, blocks and reports of the training,
never row by row. Nothing happens in a process that Ray is not up in, which this module never imports, and nothing here raises: a number
that cannot be told costs no stage. What each means to who operates the pipeline: docs/operating.md.
"""

import functools
import logging
import sys
import threading
import time
from collections import Counter as Counted
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SAY_AGAIN_S = (
    5.0  # Ray exports a gauge once (every 10 s, what was said since), and its nodes forget one that they heard nothing of for 20 s
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """One name and its labels. Units end a name, as Prometheus has it: seconds, bytes, tokens; a share is of 1."""

    name: str
    description: str
    labels: tuple[str, ...] = ()

    @property
    def exported(self) -> str:
        """As Prometheus sees it."""
        return f"ray_video2lora_{self.name}"


class Counter(Metric):
    """Only grows, from 0 when the node came up."""

    @property
    def exported(self) -> str:
        return f"{super().exported}_total"

    def add(self, n: float, **labels: str) -> None:
        if n > 0 and _is_up():  # Ray takes no 0
            _tell(self, "Counter", "inc", n, labels)


class Gauge(Metric):
    """What was said last, for as long as the process that said it is connected to Ray."""

    def set(self, value: float, **labels: str) -> None:
        if _is_up():
            _voice().say(self, value, labels)


ROWS = Counter("rows", "Keys committed, by what became of them: row or reject.", ("stage", "outcome"))
REJECTS = Counter("rejects", "Rejects committed, by their reason.", ("stage", "reason"))
STAGE_LEFT = Gauge("stage_left", "What a stage has still to do: keys to commit, or steps of the training.", ("stage",))
STAGE_SECONDS = Gauge("stage_seconds", "How long a stage had been running when it last told of progress.", ("stage",))
ENGINES = Gauge("teacher_engines", "Engines that a stage asked for.", ("stage",))
ENGINE_STARTS = Counter("teacher_starts", "Engines started, those that took the place of a dead one too.", ("stage",))
ENGINE_SECONDS = Counter("teacher_seconds", "Engines' seconds, by what they did: write, prepare, wait or start.", ("stage", "doing"))
TEACHER_TOKENS = Counter("teacher_tokens", "Tokens that engines read and wrote.", ("stage", "direction"))
TEACHER_PROMPTS = Counter("teacher_prompts", "Prompts that engines answered.", ("stage",))
TRAINING_STEP = Gauge("training_step", "The training's last step.")
TRAINING_LOSS = Gauge("training_loss", "Mean loss of the last steps told of.")
TRAINING_TARGETS_PER_S = Gauge("training_targets_per_s", "Targets learnt from in a second of steps, by all workers.")
TRAINING_TOKENS_PER_S = Gauge("training_tokens_per_s", "Tokens that the VLM read in a second of steps, of all workers.")
TRAINING_WAIT_SHARE = Gauge("training_wait_share", "Of the time of steps, that in which a worker waited for its batch.")
TRAINING_FLOOR_SHARE = Gauge("training_floor_share", "The least time that steps could take here, over that which they took.")
TRAINING_MEMORY_BYTES = Gauge("training_memory_bytes", "The most that the first worker has had: of its accelerator, or of the host.")
STORAGE_RETRIES = Counter("storage_retries", "Requests to a bucket that failed and were tried again.")
TRACKING_AWAY = Gauge("tracking_away", "1 while MLflow does not answer, else 0.")

STAGES_OF_TABLES = {
    "files": "manifest",
    "scenes": "manifest",
    "videos": "manifest",
    "questions": "manifest",
    "visual_tokens": "encode",
    "answers": "answer",
    "judgements": "judge",
}
"""Where a table's name is not its stage's."""


def begun(table: str, *, n_left: int) -> None:
    """A stage begins to make what is left of its table: from here on it is seen to stand still, if it does."""
    STAGE_LEFT.set(n_left, stage=STAGES_OF_TABLES.get(table, table))


def committed(table: str, *, n_rows: int, reasons: Sequence[str], n_left: int, seconds: float) -> None:
    """A stage committed rows and rejects of its table, `seconds` after it began to write, and has so many keys left."""
    stage = STAGES_OF_TABLES.get(table, table)
    ROWS.add(n_rows, stage=stage, outcome="row")
    ROWS.add(len(reasons), stage=stage, outcome="reject")
    for reason, n in Counted(reasons).items():
        REJECTS.add(n, stage=stage, reason=reason)
    STAGE_LEFT.set(n_left, stage=stage)
    STAGE_SECONDS.set(seconds, stage=stage)


def measured(table: str, sums: Mapping[str, float]) -> None:
    """What a block of an engine's came to, as `teacher.measures` has it; of other stages' blocks nothing is told."""
    stage = STAGES_OF_TABLES.get(table, table)
    for name, doing in (("engine_s", "write"), ("prepare_s", "prepare"), ("waiting_s", "wait"), ("startup_s", "start")):
        ENGINE_SECONDS.add(sums.get(name, 0.0), stage=stage, doing=doing)
    for name, direction in (("n_prompt_tokens", "read"), ("n_tokens", "written")):
        TEACHER_TOKENS.add(sums.get(name, 0.0), stage=stage, direction=direction)
    TEACHER_PROMPTS.add(sums.get("n_prompts", 0.0), stage=stage)
    ENGINE_STARTS.add(sums.get("n_starts", 0.0), stage=stage)


class _Voice:
    """Says gauges, and says them again: a stage that stands still is to be seen standing."""

    def __init__(self) -> None:
        self.said: dict[tuple[Metric, frozenset[tuple[str, str]]], float] = {}
        threading.Thread(target=self._again, name="metrics", daemon=True).start()

    def say(self, metric: Metric, value: float, labels: dict[str, str]) -> None:
        self.said[metric, frozenset(labels.items())] = value
        _tell(metric, "Gauge", "set", value, labels)

    def _again(self) -> None:
        while True:
            time.sleep(SAY_AGAIN_S)
            if not _is_up():
                self.said.clear()
            for (metric, labels), value in list(self.said.items()):
                _tell(metric, "Gauge", "set", value, dict(labels))


@functools.cache
def _voice() -> _Voice:
    """This process's, from the first gauge on."""
    return _Voice()


def _is_up() -> bool:
    """Whether this process is connected to a Ray; false too while Ray is still being imported."""
    is_initialized = getattr(sys.modules.get("ray"), "is_initialized", None)
    return is_initialized is not None and bool(is_initialized())


def _tell(metric: Metric, kind: str, method: str, value: float, labels: dict[str, str]) -> None:
    try:
        getattr(_of_ray(kind, metric), method)(value, labels)
    except Exception as error:  # whatever Ray raises while it goes down: see the module's docstring
        log.debug("%s: %r", metric.name, error)


@functools.cache
def _of_ray(kind: str, metric: Metric) -> Any:
    from ray.util import metrics

    return getattr(metrics, kind)(f"video2lora_{metric.name}", metric.description, metric.labels)
