"""A recipe -> what a training worker needs on this machine: parameters, memory, operations, and how far a step is from the floor.

Builds the frozen VLM, the hypernetwork and AdamW in this process and takes two steps on made videos and targets of full size: the
recipe's frames, `teacher.max_tokens` a target, one worker's videos. No Ray, no DeepSpeed, no data; nothing is written.

Command: `video2lora train --dry-run`, on a GPU with VIDEO2LORA_TRAINING_GPUS=1. `python -m training.dry_run RECIPE` does the same where
only torch and transformers are. Cost: loading the VLM, two videos, then the two steps.

Not in it: reading and decoding pictures, the other workers' gradients, ZeRO's sharing of moments (which makes them less here).
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table as Grid
from torch import Tensor, nn
from torch.nn import functional as F

from infra.config import Recipe, Where, load_recipe, load_where
from infra.errors import BadInputError
from infra.progress import say
from training.batches import Batch, Example, Target, TeacherTokens
from training.floor import count_flops, matmul_rate, synchronise
from training.loss import Encoder, Rows, TargetLoss, text_of
from training.memory import free_bytes, peak_bytes
from training.models import frozen_vlm, new_hypernetwork
from training.settings import check
from video2lora.lora import Lora, adapted, select
from video2lora.sampling import Frames
from video2lora.vlm import Features, FrozenVLM

N_STEPS = 2
LONGEST_STEP_S = 120.0  # a longer one is tried with fewer videos: on a CPU, SmolVLM2's 384 would take hours
N_FRAMES = 12  # of a made video where the recipe has no limit
PROMPT, WORDS = "What happens in this video?", "A person walks along a street and looks at the camera. "

Facts = dict[str, Any]


class Trial:
    """One worker's models, optimizer and made data; `flops` are those of a video, part by part, with nothing computed twice."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.settings, self.device = recipe, recipe.training, device
        self.flops: dict[str, int] = {}
        self.vlm = frozen_vlm(recipe, device=str(device))
        self.hypernetwork = new_hypernetwork(recipe, self.vlm).to(device)
        self.student = TargetLoss(self.hypernetwork, self.vlm, dtype=self.settings.dtype)
        self.encoder = Encoder(self.vlm, opens_answer=recipe.hypernetwork.opens_answer, keeps=False)
        betas, decay = self.settings.betas, self.settings.weight_decay
        self.optimizer = torch.optim.AdamW(self.hypernetwork.parameters(), lr=self.settings.lr, betas=betas, weight_decay=decay)
        self.example = made_example(recipe, self.vlm)
        with self._counting("vision tower"):
            self.visual_tokens = self.vlm.frame_tokens([self.example.frames])
        known = replace(self.example, visual_tokens=self.visual_tokens)
        with self._counting("language model over the frames"):
            self.features = self._encoded([known])
        if self.settings.visual_tokens == "stored":
            self.example = known
        self._count_training()
        self.hypernetwork.perceiver.checkpoint_projection = device.type == "cuda"  # as training's workers

    def step(self, n_videos: int) -> float:
        """Seconds of a whole step."""
        synchronise(self.device)
        started = time.perf_counter()
        features = self._encoded([self.example] * n_videos)
        weights = torch.tensor([self.settings.ce_weight, self.settings.kl_weight, self.settings.l1_weight], device=self.device)
        (weights @ self.student(features, self._rows(n_videos))).mean().backward()
        self._update()
        synchronise(self.device)
        return time.perf_counter() - started

    def state_bytes(self) -> dict[str, int]:
        """What stays from step to step, and what a video is when it is kept."""
        parameters = list(self.hypernetwork.parameters())
        return {
            "frozen weights": _n_bytes(self.vlm.model.parameters()),
            "trained weights": _n_bytes(parameters),
            "gradients": _n_bytes(one.grad for one in parameters if one.grad is not None),
            "optimizer's moments": _n_bytes(value for state in self.optimizer.state.values() for value in state.values()),
            "a video's visual tokens, if stored": _n_bytes([self.visual_tokens]),
            "a video's features, if kept": _n_bytes([self.features.hidden]),
        }

    def _encoded(self, examples: list[Example]) -> Features:
        return self.encoder(examples, n_chunks=self.settings.max_chunks)

    def _rows(self, n_videos: int) -> list[Rows]:
        """Prompts and targets of so many videos, with the teacher's thoughts where the recipe learns those."""
        batch = Batch((self.example,) * n_videos, (self.example.targets,) * n_videos)
        rows = text_of(self.vlm, batch, newline=self.settings.newline_after_target, kl=True)
        return rows if self.settings.kl_weight else [replace(one, tops=None) for one in rows]

    def _update(self) -> None:
        nn.utils.clip_grad_norm_(self.hypernetwork.parameters(), self.settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)  # DeepSpeed keeps room for them too

    def _count_training(self) -> None:
        """Each part with a backward pass of its own. Makes gradients and moments too."""
        with torch.autocast(self.device.type, self.student.dtype, enabled=self.student.dtype != torch.float32):
            with self._counting("hypernetwork, forward and backward"):
                generated = self.hypernetwork(self.features.hidden, self.features.mask)
                sum(factor.float().sum() for factor in _factors(generated)).backward()
            lora = self.student.adapters(self.features)
            for factor in _factors(lora):
                factor.requires_grad_()
            with self._counting("student, forward and backward"):
                for rows in self._rows(1):
                    with adapted(self.vlm.layers, select(lora, rows.video_of_row)):
                        log_probs, labels, _ = self.vlm.target_log_probs(rows.texts)
                    F.nll_loss(log_probs, labels).backward()
        self._update()

    @contextmanager
    def _counting(self, part: str) -> Iterator[None]:
        with count_flops() as counted:
            yield
        self.flops[part] = counted.get_total_flops()


def made_example(recipe: Recipe, vlm: FrozenVLM) -> Example:
    """A video of as many and as large frames as the recipe has, and its targets."""
    n, edge = recipe.frames.sampling.n_frames or N_FRAMES, recipe.frames.longest_edge_px
    images = np.random.default_rng(0).integers(0, 256, (n, edge, edge, 3), dtype=np.uint8)
    target = made_target(vlm, n_tokens=recipe.teacher.max_tokens, k=max(1, recipe.teacher.logprobs))
    return Example("made", Frames(images, np.arange(n, dtype=np.float64), float(n)), (target,) * recipe.training.targets_per_video)


def made_target(vlm: FrozenVLM, *, n_tokens: int, k: int) -> Target:
    """Of so many tokens, with the `k` likeliest at each place."""
    words = vlm.tokenizer.encode(WORDS, add_special_tokens=False)
    token_ids = np.resize(np.array(words, dtype=np.int32), n_tokens)
    logprobs = np.full((n_tokens, k), -np.log(k + 1), dtype=np.float32)
    teacher = TeacherTokens(token_ids, np.tile(np.arange(k, dtype=np.int32), (n_tokens, 1)), logprobs)
    text = vlm.tokenizer.decode(token_ids.tolist(), skip_special_tokens=True).strip()
    return Target("caption", PROMPT, text, teacher)


def run(recipe: Recipe, where: Where) -> Facts:
    """Raises BadInputError for a recipe that cannot be trained with, or a GPU that is not there."""
    settings, device = recipe.training, _device(where)
    check(recipe, where)
    try:
        trial = Trial(recipe, device)
    except ValueError as error:  # frames that do not fit the VLM's positions
        raise BadInputError(f"recipe: {error}") from error
    of_worker = -(-settings.videos_per_step // where.training_workers)
    wanted = min(of_worker, where.training_videos_at_once or of_worker)
    n_videos, step_s, activations = _two_steps(trial, wanted)
    rate = matmul_rate(device, getattr(torch, settings.dtype))
    is_stored = settings.visual_tokens == "stored"
    of_step = sum(n for part, n in trial.flops.items() if not (is_stored and part == "vision tower"))
    floor_s = of_step * n_videos / rate
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "parameters": {"trained": _counts(trial.hypernetwork, "perceiver."), "frozen": _counts(trial.vlm.model, "model.")},
        "bytes": {**trial.state_bytes(), "activations and gradients' temporaries, at most": activations},
        "flop_per_video": trial.flops,
        "targets_per_video": settings.targets_per_video,
        "videos_per_worker": wanted,
        "videos_tried": n_videos,
        "step_s": step_s,
        "matmul_flop_per_s": rate,
        "dtype": settings.dtype,
        "floor_s": floor_s,
        "share_of_floor": floor_s / step_s,
        "samples_per_s": n_videos * settings.targets_per_video / step_s,
        "n_steps": settings.n_steps,
        "training_s": settings.n_steps * step_s * wanted / n_videos,
    }


def print_json(facts: Facts) -> None:
    print(json.dumps(facts, indent=1))


def print_tables(facts: Facts) -> None:
    """Parameters, bytes and operations by part; then seconds."""
    console = Console()
    grid = Grid("parameters", "")
    grid.columns[1].justify = "right"
    for kind, parts in facts["parameters"].items():
        for name, n in {**parts, "all": sum(parts.values())}.items():
            grid.add_row(f"{kind}: {name}", f"{n:,}")
    console.print(grid)
    grid = Grid("memory", "MB")
    grid.columns[1].justify = "right"
    for name, n in facts["bytes"].items():
        grid.add_row(name, f"{n / 1e6:,.1f}")
    console.print(grid)
    grid = Grid("operations", "GFLOP a video", "a target")
    parts, k = facts["flop_per_video"], facts["targets_per_video"]
    for name, n in {**parts, "all": sum(parts.values())}.items():
        grid.add_row(name, f"{n / 1e9:,.2f}", f"{n / k / 1e9:,.2f}")
    console.print(grid)
    print("\n".join(_seconds(facts)))


def main() -> None:
    """python -m training.dry_run [RECIPE]"""
    print_tables(run(load_recipe(sys.argv[1] if len(sys.argv) > 1 else "demo"), load_where()))


def _seconds(facts: Facts) -> Iterator[str]:
    n, wanted = facts["videos_tried"], facts["videos_per_worker"]
    yield f"{facts['device']}: {facts['matmul_flop_per_s'] / 1e12:.3g} TFLOP/s in products of large {facts['dtype']} matrices"
    yield f"a step of {n} videos of one worker: {facts['step_s']:.3g} s, {facts['samples_per_s']:.3g} targets/s"
    yield f"the floor: {facts['floor_s']:.3g} s, of which the step reaches {facts['share_of_floor']:.0%}"
    if n < wanted:
        yield f"tried with {n} of a worker's {wanted} videos, which are too many for this memory or for {LONGEST_STEP_S:.0f} s"
    yield f"{facts['n_steps']:,} steps of {wanted} videos a worker: {facts['training_s'] / 3600:,.2f} hours"


def _two_steps(trial: Trial, n_videos: int) -> tuple[int, float, int]:
    """Videos that fit, seconds of the faster of N_STEPS steps, and the most bytes that a step took beside what stays.

    A step of one video comes first, which says about how much one takes.
    """
    with peak_bytes(trial.device) as peak:
        of_one_s = trial.step(1)
    free, of_one = free_bytes(trial.device), peak()
    while n_videos > 1 and (n_videos * of_one_s > LONGEST_STEP_S or n_videos * of_one > free):
        needs = f"{n_videos * of_one_s:.0f} s and {n_videos * of_one / 1e9:.1f} GB"
        say(f"train: {n_videos} videos would take about {needs}: half of them, then")
        n_videos //= 2
    while True:
        say(f"train: {N_STEPS} steps of {n_videos} made videos")
        try:
            with peak_bytes(trial.device) as peak:
                step_s = min(trial.step(n_videos) for _ in range(N_STEPS))
            return n_videos, step_s, peak()
        except torch.OutOfMemoryError:
            if n_videos == 1:
                raise BadInputError("recipe: not even a step of one video fits into the memory of this GPU") from None
        say(f"train: {n_videos} videos do not fit into the memory of this GPU: half of them, then")
        n_videos //= 2
        trial.optimizer.zero_grad(set_to_none=False)
        torch.cuda.empty_cache()


def _device(where: Where) -> torch.device:
    if where.training_gpus and not torch.cuda.is_available():
        raise BadInputError(f"VIDEO2LORA_TRAINING_GPUS: got {where.training_gpus:g}, and torch sees no GPU here")
    return torch.device("cuda" if where.training_gpus else "cpu")


def _factors(lora: Lora) -> list[Tensor]:
    return [*lora.lora_a.values(), *lora.lora_b.values()]


def _counts(module: nn.Module, prefix: str) -> dict[str, int]:
    """Parameters by the first part of their name behind `prefix`."""
    found: dict[str, int] = {}
    for name, parameter in module.named_parameters():
        part = name.removeprefix(prefix).split(".")[0]
        found[part] = found.get(part, 0) + parameter.numel()
    return found


def _n_bytes(tensors: Any) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)


if __name__ == "__main__":
    main()
