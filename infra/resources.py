"""What each stage of a command needs of a cluster, and whether the cluster has it: asked before anything starts, where Ray would wait.

Numbers are the environment's (`infra.config.Where`); a stage that takes as many as there is room for needs one at least. An engine or a
worker has all it asks for on one node, so room is counted node by node.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table as Grid

from infra.books import console
from infra.config import Recipe, Where
from infra.jobs import STAGES

CPUS_PER_DECODER = 0.9  # of a core each; a rest stays free for Ray Data's own tasks, which actors would otherwise lock out
CPUS_PER_ENCODER = 0.9  # likewise
PROMPTS_PER_ENGINE = 3000  # below this, one more engine takes longer to start than it saves (measured on a CPU)

WHOLE = ("manifest", "frames", "targets", "examples", "train", "answer", "judge", "report")
COMMANDS: dict[str, tuple[str, ...]] = {  # what can be submitted, and the stages that it runs
    **{name: (name,) for name in ("manifest", *STAGES)},
    "evaluate": ("train", "answer", "judge", "report"),
    "demo": ("clips", *WHOLE),
    "run": ("clips", *WHOLE),
    "retrain": ("clips", *WHOLE),
}
WITH_SOURCE = ("manifest", "run", "retrain")  # commands that take a SOURCE; the first must have one


@dataclass(frozen=True)
class Node:
    """A node, or a group of up to `n` alike. `address` is None where there is none yet."""

    name: str
    n_cpus: float
    n_gpus: float = 0.0
    n: int = 1
    address: str | None = None

    def room(self, need: "Need") -> int:
        """How many of what is needed find room here."""
        parts = [(self.n_cpus, need.n_cpus), (self.n_gpus, need.n_gpus)]
        return self.n * min((int(there / asked + 1e-9) for there, asked in parts if asked > 0), default=need.n_least)


def grown(where: Where) -> list[Node]:
    """What a cluster that grows by itself can have."""
    return [Node(f"group {i}", one.CPU, one.GPU, n=one.n) for i, one in enumerate(where.groups(), 1)]


def grown_nodes(where: Where) -> list[dict[str, float]]:
    """The same node by node, by Ray's names for what each has."""
    return [{"CPU": one.CPU, "GPU": one.GPU} for one in where.groups() for _ in range(one.n)]


@dataclass(frozen=True)
class Need:
    """`n_least` units of a stage that must find room; `told` is how many there will be."""

    stage: str
    unit: str
    told: str
    n_least: int
    n_cpus: float
    n_gpus: float
    settings: str = ""


def stages(command: str, source: str | None, recipe: Recipe) -> list[str]:
    """What the command runs, in its order."""
    found = list(COMMANDS[command])
    if source is not None or recipe.world is None:
        found = [one for one in found if one != "clips" or command == "clips"]
    if recipe.judge is None:
        found = [one for one in found if one != "judge" or command == "judge"]
    if "train" in found and recipe.training.visual_tokens == "stored":
        found.insert(found.index("train"), "encode")
    return found


def needs(found: Iterable[str], recipe: Recipe, where: Where) -> list[Need]:
    """Of the stages that run on the cluster's nodes. The others run in the job's own process, on the head."""
    n_engines = where.teacher_replicas
    n_workers = where.training_min_workers or where.training_workers
    engines = "as many as fit" if n_engines is None else str(n_engines)
    workers = str(where.training_workers) if n_workers == where.training_workers else f"{n_workers} to {where.training_workers}"
    setting = "VIDEO2LORA_TEACHER_REPLICAS, _CPUS, _GPUS"
    engine = (n_engines or 1, where.teacher_cpus)
    training = "VIDEO2LORA_TRAINING_WORKERS, _GPUS"
    of_stage = {
        "frames": Need("frames", "decoder", "one for each core", 1, CPUS_PER_DECODER, 0.0),
        "targets": Need("targets", "engine", engines, *engine, gpus_per_engine(recipe.teacher.served_by, where), setting),
        "examples": Need("examples", "task", "one for each core", 1, 1.0, 0.0),
        "encode": Need("encode", "encoder", f"up to {where.training_workers}", 1, CPUS_PER_ENCODER, where.training_gpus, training),
        "judge": Need("judge", "engine", engines, *engine, where.teacher_gpus, setting),
        # On CPUs, workers share what there is; with GPUs each has its own.
        "train": Need("train", "worker", workers, n_workers if where.training_gpus else 1, 1.0, where.training_gpus, training),
    }
    if where.training_gpus:  # else in the job's own process
        of_stage["answer"] = Need("answer", "worker", f"up to {where.training_workers}", 1, CPUS_PER_ENCODER, where.training_gpus, training)
    if recipe.judge is not None and recipe.judge.served_by == "endpoint":
        del of_stage["judge"]  # the job's own process waits for it
    return [of_stage[one] for one in found if one in of_stage]


def gpus_per_engine(served_by: str, where: Where) -> float:
    """Those of the cluster; an endpoint has its own."""
    return 0.0 if served_by == "endpoint" else where.teacher_gpus


def engine_room(nodes: Iterable[Mapping[str, float]], where: Where) -> int:
    """How many engines fit into a cluster, each whole on one node; `nodes` are the resources of each, by Ray's names."""
    wanted = {name: n for name, n in {"CPU": where.teacher_cpus, "GPU": where.teacher_gpus}.items() if n > 0}
    if not wanted:
        return 1
    return sum(min(int(node.get(name, 0.0) / n + 1e-9) for name, n in wanted.items()) for node in nodes)


def expected_room(where: Where) -> int:
    """The same of a cluster that is not asked: of what it can grow to, as far as that is known, else one."""
    return engine_room(grown_nodes(where), where) or 1


def engines_for(n_prompts: int, where: Where, *, room: int) -> int:
    """How many engines start: as many as are asked for, else as there is work and room for."""
    return where.teacher_replicas or max(1, min(math.ceil(n_prompts / PROMPTS_PER_ENGINE), room))


def unmet(asked: Iterable[Need], nodes: Sequence[Node]) -> list[str]:
    """What does not fit: the stage, the need and what there is."""
    found = []
    for need in asked:
        room = sum(node.room(need) for node in nodes)
        if room < need.n_least:
            of_each = f"{need.n_cpus:g} CPU" + (f" and {need.n_gpus:g} GPU" if need.n_gpus else "")
            by = f" ({need.settings})" if need.settings else ""
            units = f"{need.n_least} {need.unit}{'s' if need.n_least > 1 else ''}"
            found.append(f"{need.stage} needs {units} of {of_each} each on one node{by}, and there is room for {room}")
    return found


def totals(nodes: Sequence[Node]) -> str:
    """Nodes, CPUs and GPUs in all."""
    n = sum(node.n for node in nodes)
    n_cpus, n_gpus = sum(node.n * node.n_cpus for node in nodes), sum(node.n * node.n_gpus for node in nodes)
    return f"{n} node{'s' if n != 1 else ''}, {n_cpus:g} CPUs, {n_gpus:g} GPUs"


def print_needs(found: Iterable[str], asked: Iterable[Need], nodes: Sequence[Node]) -> None:
    """The nodes, then a line for each stage."""
    for node in nodes:
        print(f"  {node.name}: {'up to ' + str(node.n) + ' of ' if node.n != 1 else ''}{node.n_cpus:g} CPUs, {node.n_gpus:g} GPUs")
    grid = Grid("stage", "at once", "CPUs each", "GPUs each")
    by_stage = {need.stage: need for need in asked}
    for stage in found:
        if need := by_stage.get(stage):
            grid.add_row(stage, f"{need.unit}s: {need.told}", f"{need.n_cpus:g}", f"{need.n_gpus:g}")
        else:
            grid.add_row(stage, "in the job's own process", "", "")
    console().print(grid)
