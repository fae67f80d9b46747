"""A training that something happens to: of 100 steps on 13 made videos, of which one cannot be decoded."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from made_examples import a_row, write_examples, write_vlm

from infra.config import Recipe, Where
from training import checkpoints, train

# At a learning rate of 3e-3 this training magnifies the rounding of sums taken in another order to 5e-2 of a loss (undisturbed, 1 worker
# against 2, an Intel Xeon), so that nothing finer could be told; at 1e-3 it stays below 1e-6.
SETTINGS = """
vlm: {model: VLM}
frames: {sampling: {policy: uniform, n_frames: 3}, longest_edge_px: 31}
hypernetwork: {r: 2, n_latents: 3, n_blocks: 1, d_latent: 16, n_heads: 2, n_kv_heads: 1, d_head: 8, normalise_features: true}
training:
  {n_steps: 100, videos_per_step: 5, targets_per_video: 2, max_chunks: 2, lr: 1.0e-3, checkpoint_every: 5, validate_every: 50}
answer: {max_new_tokens: 3}
"""
N_TRAIN, N_VALIDATION = 13, 3
N_STEPS = 100


def write_recipe(folder: Path) -> str:
    """A recipe file, and its VLM beside it."""
    write_vlm(folder / "vlm")
    (folder / "recipe.yaml").write_text(SETTINGS.replace("VLM", str(folder / "vlm")))
    return str(folder / "recipe.yaml")


def a_place(folder: Path, recipe: Recipe, *, n_train: int = N_TRAIN) -> Where:
    """A data folder with the examples."""
    rows = [a_row(i, split="train" if i < n_train else "validation") for i in range(n_train + N_VALIDATION)]
    rows[1]["jpegs"][2] = b"no picture"
    write_examples(recipe, str(folder), rows)
    return Where(data=str(folder), n_cpus=2)


def checkpoints_of(recipe: Recipe, where: Where) -> str:
    return f"{train.hypernetwork_output(recipe, train.examples_of(recipe, where)).folder}/checkpoints"


def losses(recipe: Recipe, where: Where) -> list[float]:
    last = checkpoints.latest(checkpoints_of(recipe, where))
    assert last is not None and last.step == recipe.training.n_steps == len(last.state["losses"])
    return list(last.state["losses"])


@contextmanager
def at_a_step(recipe: Recipe, where: Where, do: Callable[[], Any], *, after: int) -> Iterator[None]:
    """Inside, `do` once: a little after there is a checkpoint behind `after`, and behind the one that is there already."""
    folder = checkpoints_of(recipe, where)
    begun = checkpoints.latest(folder)
    after = max(after, begun.step if begun else 0)

    def watch() -> None:
        while (there := checkpoints.latest(folder)) is None or there.step <= after:
            time.sleep(0.02)
        time.sleep(random.random() * 0.3)
        do()

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield
    watcher.join()


def workers() -> list[psutil.Process]:
    """Of trainings below this process."""
    return [one for one in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(one.cmdline())]
