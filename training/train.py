"""`examples` -> the hypernetwork: Ray Train workers, DeepSpeed ZeRO, a frozen VLM.

Reads    examples of the splits train and validation; `visual_tokens` where the recipe has them stored (made first, if they are not there).
Writes   <data>/hypernetworks/<name>: hypernetwork.safetensors and config.json (with recipe, losses, validation scores), checkpoints/,
         and stopped/ where a step was not to be learnt from; an MLflow run of the experiment `training`.
Command  video2lora train --recipe demo
Cost     the demo's 1,000 steps of 24 videos x 5 targets: about 7 minutes on 2 cores; start-up of Ray and workers 30 to 60 s of it.

A killed run goes on from its last checkpoint by the same command, on any number of workers and by any ZeRO stage: at most
`checkpoint_every` steps are done again, and they are the very same steps. Workers that are lost are replaced, or gone on without
(VIDEO2LORA_TRAINING_MIN_WORKERS). What is written appears whole or not at all. Source of the training: arXiv 2606.04351 appendix E. The
paper keeps the checkpoint of the best validation loss (`training.select: loss`); our default is the last, whose rate has come down to 0.
"""

import math
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from infra.config import Recipe, Where, load_recipe, load_where
from infra.errors import BadInputError, StageFailedError, StorageError, TerminatedError
from infra.hypernetworks import address_of
from infra.objects import read_json, remove, write_new
from infra.outputs import Output
from infra.progress import say
from infra.seen import SEEN, write_seen
from infra.sets import examples_set, hypernetwork_made, hypernetwork_output, made_targets
from infra.storage import Table
from training import checkpoints
from training.history import History
from training.plan import Plan, plan
from training.settings import check

if TYPE_CHECKING:
    import ray.data
    import ray.train.torch

MAX_RESTARTS = 2  # of the worker group without a checkpoint in between; each goes on from the last one
GROUP_TIMEOUT_S = 600  # of a collective: longer than validation takes the slowest worker
RESERVED = (
    0.45  # of all CPUs, for the workers at most. Less than a half: Ray Data must find room (ray#44687) also where half of them are lost
)


def examples_of(recipe: Recipe, where: Where) -> Table:
    """The recipe's examples. Raises BadInputError where no targets are finished."""
    return examples_set(recipe, made_targets(recipe, where.data))


def run(recipe: Recipe, where: Where, *, profile: int = 0) -> str:
    """`profile` is a number of steps to write a torch profile of. Raises BadInputError, StorageError, StageFailedError, TerminatedError."""
    where = where.model_copy(update={"data": where.data if "://" in where.data else os.path.abspath(where.data)})
    check(recipe, where)
    examples = examples_of(recipe, where)
    output = hypernetwork_output(recipe, examples)
    if output.is_complete():
        from infra.tracking import send_missed  # MLflow is imported only if there is something to send

        send_missed(where, recipe)
        return f"hypernetwork: {output.name} is complete, {summary(output)}; nothing to do"
    planned = plan(recipe, where, examples, visual_tokens=_stored(recipe, where))
    output.begin(hypernetwork_made(recipe, examples))
    write_seen(output.folder, examples, start_from=start_of(recipe))
    latest = checkpoints.latest(f"{output.folder}/checkpoints")
    if latest is not None:
        if latest.state.get("is_held", planned.is_held) != planned.is_held and not _is_done(latest, recipe):
            raise BadInputError(
                f"train: {output.name} was begun with its examples {'streamed' if planned.is_held else 'held'}, which is another order: set"
                f" VIDEO2LORA_TRAINING_HELD_BYTES as it was ({where.training_held_bytes} now)"
            )
        say(f"train: going on from the checkpoint at step {latest.step} of {recipe.training.n_steps}")
    try:
        while not _is_done(latest, recipe):
            before, latest = latest, train(recipe, where, output, planned=planned, profile=profile)
            if latest is None or (before is not None and latest.step <= before.step):
                raise StageFailedError("train: the workers ended without a new checkpoint; run the same command again, it continues")
    except BadInputError:
        if latest is None:
            output.abandon()
            remove(f"{output.folder}/{SEEN}")
        raise
    assert latest is not None
    publish(latest, output, recipe, where)
    return f"hypernetwork: {output.name}, {summary(output)}"


def start_of(recipe: Recipe) -> str | None:
    """Where the weights lie that training starts from, as every worker finds them."""
    if recipe.training.start_from is None:
        return None
    folder = address_of(recipe.training.start_from)
    return folder if "://" in folder else os.path.abspath(folder)


def train(recipe: Recipe, where: Where, output: Output, *, planned: Plan, profile: int = 0) -> checkpoints.Checkpoint | None:
    """Steps that are not done yet, up to the last or to where workers were lost too often; the last checkpoint then.

    Raises CommandErrors of the workers; TerminatedError or KeyboardInterrupt once they have saved; StageFailedError where they ended by
    themselves and saved nothing new.
    """
    from ray.train import TrainingFailedError  # Ray, torch and MLflow are imported only where there is work

    from infra.cluster import cluster
    from training.news import follow, new_board
    from training.signals import aside, asked_to_end

    folder, done = f"{output.folder}/checkpoints", threading.Event()
    before = checkpoints.latest(folder)
    with cluster(where), ThreadPoolExecutor(1) as pool:
        board = new_board()
        trainer = build(recipe, where, output, planned=planned, profile=profile, board=board)
        following = pool.submit(follow, board, recipe, where, made_from=read_json(f"{output.folder}/made.json") or {}, done=done)
        failure = None
        try:
            with asked_to_end(board) as signals:
                aside(trainer.fit)
        except TrainingFailedError as error:
            failure = error
        finally:
            done.set()
        told, latest = following.result(), checkpoints.latest(folder)
    if _is_done(latest, recipe):
        return latest
    if signals:
        saved = f"{latest.step if latest else 0} steps are saved"
        if signal.SIGINT in signals:
            say(f"train: {saved}")
            raise KeyboardInterrupt
        raise TerminatedError(f"train: terminated; {saved}, the same command continues")
    if failure is not None and latest is not None and (before is None or before.step < latest.step):
        say(f"train: workers were lost {MAX_RESTARTS + 1} times; starting again from the checkpoint at step {latest.step}")
        return latest
    if told is not None:
        raise told from failure
    if failure is not None:
        raise StageFailedError(f"train: {_last_line(failure)}; run the same command again, it continues") from failure
    return latest


def build(recipe: Recipe, where: Where, output: Output, *, planned: Plan, profile: int, board: Any) -> "ray.train.torch.TorchTrainer":
    """The trainer. A split that workers hold is given whole to each of them, a streamed one row by row in turn."""
    import ray.train
    import ray.train.torch
    from ray.data import ExecutionOptions

    from training import streams
    from training.job import Job, work

    n_cpus, n_threads = _shares(where)
    if planned.is_held:
        datasets: dict[str, Any] = {"train": streams.whole(planned.train)}
    else:  # made anew whenever workers start, from where they go on
        datasets = {"train": partial(_rest_of_stream, planned.train, output.folder, recipe, where.training_workers)}
    if planned.validation:
        datasets["validation"] = streams.whole(planned.validation)
    job = Job(
        recipe=recipe,
        folder=output.folder,
        made_from=read_json(f"{output.folder}/made.json") or {},
        train=planned.train,
        validation=planned.validation,
        is_held=planned.is_held,
        n_threads=n_threads,
        videos_at_once=where.training_videos_at_once,
        start_from=start_of(recipe),
        board=board,
        n_profiled=profile,
    )
    environment = {"OMP_NUM_THREADS": str(n_threads)}
    if not where.training_gpus:
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    resources = {"CPU": n_cpus} | ({"GPU": where.training_gpus} if where.training_gpus else {})
    n_workers = where.training_workers if where.training_min_workers is None else (where.training_min_workers, where.training_workers)
    return ray.train.torch.TorchTrainer(
        work,
        train_loop_config={"job": job},
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if where.training_gpus else "gloo", timeout_s=GROUP_TIMEOUT_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=n_workers,
            use_gpu=where.training_gpus > 0,
            resources_per_worker=resources,
            # Side by side on one node's GPUs, their gradients stay on it; on CPUs each takes a share of its node's cores.
            placement_strategy="PACK" if where.training_gpus else "SPREAD",
        ),
        run_config=ray.train.RunConfig(
            name=f"train-{time.time_ns()}",  # a new one for each attempt: what is kept lies in checkpoints, not in Ray's own state
            storage_path=f"{where.data}/ray",
            failure_config=ray.train.FailureConfig(max_failures=MAX_RESTARTS),
            worker_runtime_env={"env_vars": environment},
        ),
        datasets=datasets,
        dataset_config=ray.train.DataConfig(
            datasets_to_split=[] if planned.is_held else ["train"], execution_options={"train": ExecutionOptions(preserve_order=True)}
        ),
    )


def _rest_of_stream(source: Any, folder: str, recipe: Recipe, n_workers: int) -> "ray.data.Dataset":
    """Everything behind the last checkpoint. Called where Ray Train starts the workers."""
    from infra.cluster import quiet
    from training.streams import stream

    quiet()
    latest, settings = checkpoints.latest(f"{folder}/checkpoints"), recipe.training
    step = latest.step if latest else 0
    n_places = (settings.n_steps - step) * settings.videos_per_step + n_workers + source.n_rows  # an epoch, for who must look ahead
    return stream(source, seed=settings.seed, first_place=step * settings.videos_per_step, n_places=n_places)


def _stored(recipe: Recipe, where: Where) -> Table | None:
    """The visual tokens that the recipe has stored, made now where they are not there."""
    if recipe.training.visual_tokens == "computed":
        return None
    from training import visual_tokens

    say(visual_tokens.run(recipe, where))
    return visual_tokens.table_of(recipe, where)


def _is_done(checkpoint: checkpoints.Checkpoint | None, recipe: Recipe) -> bool:
    return checkpoint is not None and History.of(checkpoint.state).is_done(recipe.training)


def publish(latest: checkpoints.Checkpoint, output: Output, recipe: Recipe, where: Where) -> None:
    """The last checkpoint's network, or the best one's, becomes the output, `complete.json` last; then it goes to MLflow."""
    folder, best_step = f"{output.folder}/checkpoints", latest.state["best_step"]
    checkpoint = latest if best_step is None else checkpoints.of_step(folder, best_step)
    if checkpoint is None:
        raise StorageError(f"{folder}: the checkpoint of the best step {best_step} is gone")
    for name in checkpoints.NETWORK_FILES:
        write_new(f"{output.folder}/{name}", checkpoints.read(checkpoint, name))
    from infra.tracking import open_run
    from training.news import validation_points

    run = open_run(where, recipe, made_from=read_json(f"{output.folder}/made.json"))
    if run is not None:
        # All of it once more: of what workers did since their driver was killed, nobody told. A point that is there is no second one.
        history = History.of(latest.state)
        run.log_points([("loss", loss, at_ms, i) for i, (loss, at_ms) in enumerate(zip(history.losses, history.at_ms, strict=True), 1)])
        run.log_points([point for score in history.validation for point in validation_points(score)])
        run.log_files([f"{output.folder}/{name}" for name in checkpoints.NETWORK_FILES], folder="hypernetwork")
        run.register_model(folder="hypernetwork", tags={"weights": checkpoint.state["sha256"][checkpoints.NETWORK_FILES[0]]})
        run.end()
    output.complete()  # last: whoever is ended before comes here again
    checkpoints.prune(folder, kept=1, best_step=best_step)


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
    """CPUs that Ray reserves for each worker, and threads it computes with: its share of the cores of its node.

    Raises StageFailedError for a cluster without CPUs; says so where GPUs are wanting, for which Ray waits.
    """
    from infra.cluster import nodes

    there = nodes(where)
    n_gpus = sum(node.get("GPU", 0.0) for node in there)
    with_gpus = [node for node in there if node.get("GPU", 0.0) >= where.training_gpus]  # all, where none are asked for
    n_cores = [node["CPU"] for node in with_gpus or there if node.get("CPU", 0.0) > 0]
    if not n_cores:
        raise StageFailedError("train: no node of the Ray cluster has a CPU")
    asked = where.training_gpus * (where.training_min_workers or where.training_workers)
    if n_gpus < asked:
        say(f"train: waiting for {asked:g} GPUs (VIDEO2LORA_TRAINING_GPUS, _WORKERS): the Ray cluster has {n_gpus:g} now")
    per_node = math.ceil(where.training_workers / len(n_cores))
    return min(1.0, RESERVED * sum(n_cores) / where.training_workers), max(1, int(min(n_cores)) // per_node)


def _last_line(error: BaseException) -> str:
    return str(error).strip().rsplit("\n", 1)[-1]


if __name__ == "__main__":
    main()
