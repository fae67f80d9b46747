"""`examples` -> the hypernetwork: Ray Train workers, DeepSpeed ZeRO, a frozen VLM.

Reads    examples of the splits train and validation.
Writes   <data>/hypernetwork: hypernetwork.safetensors and config.json (with recipe, losses, validation scores), and checkpoints/;
         an MLflow run of the experiment `training`.
Command  video2lora train --recipe demo
Cost     the demo's 1,000 steps of 24 videos x 5 targets: about 7 minutes on 2 cores; start-up of Ray and workers 30 to 60 s of it.

A killed run goes on from its last checkpoint by the same command, on any number of workers: at most `checkpoint_every` steps are
done again. What is written appears whole or not at all. Source of the training: arXiv 2606.04351 appendix E. The paper keeps the
checkpoint of the best validation loss; we keep the last one, whose learning rate has come down to 0.
"""

import math
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from infra.config import Recipe, Where, load_recipe, load_where
from infra.errors import BadInputError, StageFailedError
from infra.objects import read_json, write_new
from infra.outputs import Output
from infra.progress import say
from infra.sets import examples_set, made_targets
from infra.storage import Table
from training import checkpoints

if TYPE_CHECKING:
    import ray.train.torch

MAX_RESTARTS = 2  # of the worker group after a worker died; each goes on from the last checkpoint
GROUP_TIMEOUT_S = 600  # of a collective: longer than the first worker takes to write a checkpoint
RESERVED = 0.5  # of all CPUs, for the workers at most: Ray Data's tasks must always find room (ray#44687)


@dataclass(frozen=True)
class Plan:
    """What the examples hold, and whether a worker can hold the training split's pictures."""

    n_train: int
    n_validation: int
    is_held: bool


def plan(recipe: Recipe, where: Where, examples: Table) -> Plan:
    """Raises BadInputError if the recipe cannot be trained on these examples by these workers."""
    from training.batches import HELD_BYTES

    settings, n_workers = recipe.training, where.training_workers
    if settings.videos_per_step % n_workers:
        raise BadInputError(
            f"recipe: training.videos_per_step: got {settings.videos_per_step}, "
            f"expected a multiple of the {n_workers} workers (VIDEO2LORA_TRAINING_WORKERS)"
        )
    rows = examples.read(["split", "timestamps_s"])
    train = rows.filter(pc.equal(rows["split"], "train"))
    if not len(train):
        raise BadInputError(f"{examples.folder}: no example of the split `train`")
    n_frames = pc.sum(pc.list_value_length(train["timestamps_s"])).as_py()
    is_held = n_frames * recipe.frames.longest_edge_px**2 * 3 <= HELD_BYTES
    if not is_held and len(train) < settings.videos_per_step:
        raise BadInputError(f"recipe: training.videos_per_step: got {settings.videos_per_step}, there are {len(train)} training videos")
    return Plan(len(train), pc.sum(pc.equal(rows["split"], "validation")).as_py(), is_held)


def examples_of(recipe: Recipe, where: Where) -> Table:
    """The recipe's examples. Raises BadInputError where no targets are finished."""
    return examples_set(recipe, made_targets(recipe, where.data))


def run(recipe: Recipe, where: Where) -> str:
    """Raises BadInputError, MadeFromOtherError, StorageError, StageFailedError."""
    where = where.model_copy(update={"data": where.data if "://" in where.data else os.path.abspath(where.data)})
    examples, output = examples_of(recipe, where), Output(where.data, "hypernetwork")
    made_from = {
        "stage": "train",
        **recipe.section("vlm", "hypernetwork", "training"),
        "inputs": {"examples": examples.made_from()},
    }
    planned = None if output.is_complete() else plan(recipe, where, examples)
    if not output.begin(made_from) or planned is None:
        return f"hypernetwork: complete, {summary(output)}; nothing to do"
    latest = checkpoints.latest(f"{output.folder}/checkpoints")
    if latest is not None:
        say(f"train: going on from the checkpoint at step {latest.step} of {recipe.training.n_steps}")
    if latest is None or latest.step < recipe.training.n_steps:
        try:
            train(recipe, where, made_from, planned)
        except BadInputError:
            if latest is None:
                output.abandon()
            raise
        latest = checkpoints.latest(f"{output.folder}/checkpoints")
    if latest is None or latest.step < recipe.training.n_steps:
        raise StageFailedError("train: the workers ended before the last step; run the same command again, it continues")
    publish(latest, output, recipe, where)
    return f"hypernetwork: {summary(output)}"


def train(recipe: Recipe, where: Where, made_from: dict[str, Any], planned: Plan) -> None:
    """All steps that are not done yet. Raises CommandErrors of the workers, StageFailedError for any other end."""
    from ray.train import TrainingFailedError  # Ray, torch and MLflow are imported only where there is work

    from infra.cluster import cluster
    from training.news import follow, new_board

    shards, done = examples_of(recipe, where).shards(), threading.Event()
    with cluster(where), ThreadPoolExecutor(1) as pool:
        board = new_board()
        trainer = build(shards, recipe, where, planned=planned, made_from=made_from, board=board)
        following = pool.submit(follow, board, recipe, where, done=done)
        failure = None
        try:
            trainer.fit()
        except TrainingFailedError as error:
            failure = error
        finally:
            done.set()
        told = following.result()
        if told is not None:
            raise told from failure
        if failure is not None:
            raise StageFailedError(f"train: {_last_line(failure)}; run the same command again, it continues") from failure


def build(
    shards: list[str], recipe: Recipe, where: Where, *, planned: Plan, made_from: dict[str, Any], board: Any
) -> "ray.train.torch.TorchTrainer":
    """The trainer. A split that workers hold is given whole to each of them, a streamed one in equal parts."""
    import ray.train
    import ray.train.torch

    from training import batches
    from training.worker import Job, work

    n_cpus, n_threads = _shares(where)
    datasets: dict[str, Any] = {"train": batches.build(shards, "train", seed=recipe.training.seed)}
    if planned.n_validation:
        datasets["validation"] = batches.build(shards, "validation", seed=recipe.training.seed)
    job = Job(
        recipe=recipe,
        folder=f"{where.data}/hypernetwork",
        made_from=made_from,
        n_streamed=0 if planned.is_held else planned.n_train,
        n_threads=n_threads,
        validates=planned.n_validation > 0,
        board=board,
    )
    environment = {"OMP_NUM_THREADS": str(n_threads)}
    if not where.training_gpus:
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    resources = {"CPU": n_cpus} | ({"GPU": where.training_gpus} if where.training_gpus else {})
    return ray.train.torch.TorchTrainer(
        work,
        train_loop_config={"job": job},
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if where.training_gpus else "gloo", timeout_s=GROUP_TIMEOUT_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=where.training_workers, use_gpu=where.training_gpus > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=f"train-{int(time.time())}",  # a new one for each attempt: what is kept lies in checkpoints, not in Ray's own state
            storage_path=f"{where.data}/runs",
            failure_config=ray.train.FailureConfig(max_failures=MAX_RESTARTS),
            worker_runtime_env={"env_vars": environment},
        ),
        datasets=datasets,
        dataset_config=ray.train.DataConfig(datasets_to_split=[] if planned.is_held else ["train"]),
    )


def publish(checkpoint: checkpoints.Checkpoint, output: Output, recipe: Recipe, where: Where) -> None:
    """The last checkpoint's network becomes the output, `complete.json` last; then it goes to MLflow."""
    for name in checkpoints.NETWORK_FILES:
        write_new(f"{output.folder}/{name}", checkpoints.read(checkpoint, name))
    output.complete()
    checkpoints.prune(f"{output.folder}/checkpoints", kept=1)
    from infra.tracking import open_run

    run = open_run(where, recipe)
    if run is not None:
        for score in checkpoint.state["validation"]:  # again: a driver that was killed heard of none since its death
            run.log_metrics([(f"validation_{name}", score[name], int(score["step"])) for name in ("loss", "exact_match")])
        for name in checkpoints.NETWORK_FILES:
            run.log_bytes(checkpoints.read(checkpoint, name), folder="hypernetwork", name=name)
        run.end()


def summary(output: Output) -> str:
    """The published network in a line."""
    metadata: dict[str, Any] = (read_json(f"{output.folder}/config.json") or {})["metadata"]
    told = f"{metadata['step']} steps"
    if metadata["losses"]:
        told += f", loss {metadata['losses'][-1][1]:.3f}"
    if metadata["validation"]:
        last = metadata["validation"][-1]
        told += f"; validation loss {last['loss']:.3f}, exact match {last['exact_match']:.3f} of {last['n_targets']:.0f} targets"
    return told + (f"; {metadata['n_rejected']} examples rejected" if metadata["n_rejected"] else "")


def main() -> None:
    """python -m training.train [RECIPE]"""
    print(run(load_recipe(sys.argv[1] if len(sys.argv) > 1 else "demo"), load_where()))


def _shares(where: Where) -> tuple[float, int]:
    """CPUs that Ray reserves for each worker, and threads it computes with: its share of the cores of its node."""
    import ray

    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    per_node = math.ceil(where.training_workers / len(nodes))
    n_cores = min(cores for cores in nodes if cores > 0)
    return min(1.0, RESERVED * sum(nodes) / where.training_workers), max(1, int(n_cores) // per_node)


def _last_line(error: BaseException) -> str:
    return str(error).strip().rsplit("\n", 1)[-1]


if __name__ == "__main__":
    main()
