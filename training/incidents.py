"""A step whose loss or gradient must not be learnt from -> the end of the training, with what led to it kept beside the checkpoints.

    <hypernetwork>/stopped/step-00000123-3f2a9c1b.json    why, the videos of all workers with their losses and targets, the losses before

The last checkpoint stays. Since a continued training takes the very same steps, the same command comes to the same place, and ends there
again unless the recipe or the data have changed.
"""

import json
import uuid
from dataclasses import asdict, dataclass

from infra.errors import StageFailedError
from infra.objects import write_new
from training.batches import Batch
from training.history import N_RECENT, History

N_NAMED = 5  # videos named in the message, those of the highest loss


class RefusedError(Exception):
    """Why the step must not be learnt from. All workers raise it in the same step."""


class OtherWorkerError(Exception):
    """Another worker has found bad input, and says so; this one has only to end."""


@dataclass(frozen=True)
class Loss:
    """A video of the step and the mean loss of its targets."""

    video_id: str
    loss: float
    targets: tuple[tuple[str, str], ...]  # prompt and text of each


def losses_of(batch: Batch, losses: list[float], video_of_row: list[int]) -> list[Loss]:
    """By video, of one worker's batch; `losses` of its targets in whatever order, each of the video at that place of the batch."""
    found = []
    for i, (one, targets) in enumerate(zip(batch.examples, batch.targets, strict=True)):
        own = [loss for loss, video in zip(losses, video_of_row, strict=True) if video == i]
        found.append(Loss(one.video_id, sum(own) / len(own), tuple((target.prompt, target.text) for target in targets)))
    return found if batch.counts else []


def keep(folder: str, why: str, history: History, videos: list[Loss]) -> StageFailedError:
    """Write down what led to it; the error to end with names the videos. Raises StorageError."""
    videos = sorted(videos, key=lambda one: -one.loss if one.loss == one.loss else float("-inf"))  # those without a number first
    path = f"{folder}/stopped/step-{history.step:08d}-{uuid.uuid4().hex[:8]}.json"
    facts = {"why": why, "step": history.step, "losses_before": history.losses[-N_RECENT:], "videos": [asdict(one) for one in videos]}
    write_new(path, json.dumps(facts, indent=1).encode())
    named = ", ".join(f"{one.video_id} ({one.loss:.3g})" for one in videos[:N_NAMED])
    return StageFailedError(
        f"train: stopped at step {history.step + 1}: {why}. Of its {len(videos)} videos the highest losses: {named}. All is in {path}. "
        "The last checkpoint is kept. Lower training.lr, or take a bad video out (`video2lora forget`, then `examples`)"
    )
