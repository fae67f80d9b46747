"""`examples` of one split -> the videos and targets of each training step, the same for any number of workers.

All steps together are one endless order of places: step s takes the places [s * videos_per_step, (s + 1) * videos_per_step), and of
those a worker takes each n_workers-th. Which video has a place depends on the seed alone, so a run that was killed goes on with the very
next video, on however many workers.

A split that fits into a worker's memory is held by every worker, and an epoch is a permutation of all its videos. A larger one streams
by Ray Data (`training.streams`): an epoch is a permutation of the shards, and a window of some shards a permutation of their rows.

Which targets a video is trained on is drawn from (seed, epoch, video_id). A row that cannot be used trains nothing, keeps its place,
is counted and named in the checkpoint, and stops nobody.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Float32, Int32

from infra.errors import BadInputError, StageFailedError
from training.streams import as_frames
from training.visual_tokens import as_tensor
from video2lora import prompts
from video2lora.sampling import Frames

if TYPE_CHECKING:
    import ray.data

    from video2lora.vlm import FrozenVLM

OnReject = Callable[[dict[str, Any]], None]
"""Called with each row of `streams.READ` that has a reason."""


@dataclass(frozen=True)
class TeacherTokens:
    """The teacher's own tokens of a target, and for each the k it held likeliest (its own among them or not)."""

    token_ids: Int32[np.ndarray, " n_tokens"]
    top_token_ids: Int32[np.ndarray, "n_tokens k"]
    top_logprobs: Float32[np.ndarray, "n_tokens k"]


@dataclass(frozen=True)
class Target:
    """What the model is to write after a prompt, without any frame."""

    task: str
    prompt: str
    text: str
    teacher: TeacherTokens | None = None  # where the recipe keeps log-probabilities


@dataclass(frozen=True)
class Example:
    """A video and all its targets: decoded, or with what the VLM's vision tower made of it in the place of pictures (0 x 0 px)."""

    video_id: str
    frames: Frames
    targets: tuple[Target, ...]
    visual_tokens: Float[torch.Tensor, "n_pictures n_image_tokens d_vlm"] | None = None


@dataclass(frozen=True)
class Batch:
    """A worker's share of one step: videos, and for each of them its targets.

    Workers step together, so where none of a share's videos can be used it has one all the same, that counts for nothing.
    """

    examples: tuple[Example, ...]
    targets: tuple[tuple[Target, ...], ...]
    counts: bool = True

    @property
    def n_targets(self) -> int:
        """That count."""
        return sum(map(len, self.targets)) if self.counts else 0

    def parts(self, n: int) -> "list[Batch]":
        """`n` batches as even as possible; where there are fewer videos, the rest count for nothing."""
        edges = [len(self.examples) * i // n for i in range(n + 1)]
        cut = [Batch(self.examples[a:b], self.targets[a:b], self.counts) for a, b in itertools.pairwise(edges) if b > a]
        return cut + [Batch(self.examples[:1], (self.targets[0][:1],), counts=False)] * (n - len(cut))


@dataclass(frozen=True)
class Share:
    """Which places of each step a worker takes: one in n_workers of `per_step`. Not all need get as many."""

    rank: int
    n_workers: int
    per_step: int


def example(row: dict[str, Any], *, vlm: "FrozenVLM | None" = None) -> Example:
    """A row of `streams.READ` that was not rejected. Its visual tokens are left out where no VLM is given.

    Raises BadInputError where they are not this VLM's.
    """
    targets = tuple(_target(one) for one in row["targets"])
    tokens = as_tensor(row, vlm) if vlm is not None and row["tokens"] is not None else None
    return Example(row["video_id"], as_frames(row), targets, tokens)


def _target(row: dict[str, Any]) -> Target:
    said = row.get("token_ids")
    teacher = None
    if said:
        ids, logprobs = (np.asarray(row[name]).reshape(len(said), -1) for name in ("top_token_ids", "top_logprobs"))
        teacher = TeacherTokens(np.asarray(said, dtype=np.int32), ids.astype(np.int32), logprobs.astype(np.float32))
    return Target(row["task"], row["prompt"], row["target"], teacher)


def draw(one: Example, *, n: int, seed: int, epoch: int) -> tuple[Target, ...]:
    """`n` different targets of the video (all, if it has fewer), by (seed, epoch, video_id) alone."""
    key = hashlib.sha256(f"{seed}/{epoch}/{one.video_id}".encode()).digest()
    chosen = np.random.default_rng(int.from_bytes(key[:8])).permutation(len(one.targets))[:n]
    return tuple(one.targets[i] for i in sorted(chosen))


class HeldExamples:
    """All examples of a split in memory, ordered by video_id."""

    def __init__(self, examples: Sequence[Example], *, seed: int, n_targets: int) -> None:
        self.examples = sorted(examples, key=lambda one: one.video_id)
        self.seed, self.n_targets = seed, n_targets

    def batches(self, share: Share, *, first_step: int) -> Iterator[Batch]:
        """A worker's batches from `first_step` (0 is the first) on, without end. An epoch's rest joins the next one's start."""
        orders = _Orders(len(self.examples), self.seed)
        place = first_step * share.per_step
        while True:
            mine = range(place + share.rank, place + share.per_step, share.n_workers)
            chosen = [(self.examples[orders.index(at)], at // len(self.examples)) for at in mine]
            targets = tuple(draw(one, n=self.n_targets, seed=self.seed, epoch=epoch) for one, epoch in chosen)
            yield Batch(tuple(one for one, _ in chosen), targets)
            place += share.per_step


class StreamedExamples:
    """A worker's part of `streams.stream`, which Ray Data splits row by row."""

    def __init__(
        self, shard: "ray.data.DataIterator", *, n_rows: int, seed: int, n_targets: int, vlm: "FrozenVLM | None", on_reject: OnReject
    ) -> None:
        """`n_rows` of the whole split."""
        self.shard, self.n_rows, self.seed, self.n_targets = shard, n_rows, seed, n_targets
        self.vlm, self.on_reject = vlm, on_reject

    def batches(self, share: Share, *, first_step: int) -> Iterator[Batch]:
        """Batches from `first_step` on, where the stream must begin. Rejected rows leave a smaller batch, or one that counts for nothing.

        Raises BadInputError where not one row of a whole epoch can be used; StageFailedError if rows do not come in their places.
        """
        first = first_step * share.per_step
        rows, last = self._rows(first + share.rank, share), None
        for place in itertools.count(first, share.per_step):
            good = []
            for at in range(place + (share.rank + first - place) % share.n_workers, place + share.per_step, share.n_workers):
                one = next(rows)
                if one is not None:
                    good.append((one, at // self.n_rows))
            if good:
                last = good[-1][0]
                targets = tuple(draw(one, n=self.n_targets, seed=self.seed, epoch=epoch) for one, epoch in good)
                yield Batch(tuple(one for one, _ in good), targets)
            else:
                if last is None:  # the first batch of this attempt
                    last, rows = self._next_good(rows, share)
                yield Batch((last,), (last.targets[:1],), counts=False)

    def _next_good(self, rows: Iterator[Example | None], share: Share) -> tuple[Example, Iterator[Example | None]]:
        """The next row that is not rejected, and all rows again. Raises BadInputError where there is none in a whole epoch."""
        ahead = []
        for one in itertools.islice(rows, -(-self.n_rows // share.n_workers)):
            ahead.append(one)
            if one is not None:
                return one, itertools.chain(ahead, rows)
        raise BadInputError("examples: not one of a whole epoch's rows can be used: make the examples anew")

    def _rows(self, first: int, share: Share) -> Iterator[Example | None]:
        """In their places from `first` on; None for one that is rejected."""
        per_worker = -(-share.per_step // share.n_workers)
        expected = first
        for block in self.shard.iter_batches(batch_size=per_worker, batch_format="pyarrow", prefetch_batches=2):
            for row in block.to_pylist():
                if row["place"] != expected:
                    raise StageFailedError(f"examples: got the video of place {row['place']}, expected that of {expected}")
                expected += share.n_workers
                yield usable(row, vlm=self.vlm, on_reject=self.on_reject)
        raise StageFailedError("examples: Ray Data ended before the last step")


def read_all(shard: "ray.data.DataIterator", *, vlm: "FrozenVLM | None", on_reject: OnReject) -> Iterator[Example]:
    """Every example of a split, once; its rejects go to `on_reject`."""
    for block in shard.iter_batches(batch_size=64, batch_format="pyarrow", prefetch_batches=1):
        yield from good_examples(block, vlm=vlm, on_reject=on_reject)


def good_examples(block: pa.Table, *, vlm: "FrozenVLM | None", on_reject: OnReject) -> Iterator[Example]:
    """Examples of a block of `streams.READ`; its rejects go to `on_reject`."""
    for row in block.to_pylist():
        one = usable(row, vlm=vlm, on_reject=on_reject)
        if one is not None:
            yield one


def usable(row: dict[str, Any], *, vlm: "FrozenVLM | None", on_reject: OnReject) -> Example | None:
    """A row of `streams.READ`, unless it is rejected, or has what the VLM cannot read: then `on_reject` is told."""
    if row["reason"] is None:
        one = example(row, vlm=vlm)
        why = None if vlm is None else _refused(one, vlm)
        if why is None:
            return one
        row = {"video_id": one.video_id, **dict(zip(("reason", "detail"), why, strict=True))}
    on_reject(row)
    return None


def _refused(one: Example, vlm: "FrozenVLM") -> tuple[str, str] | None:
    """Why the VLM cannot read the video or one of its targets, as reason and detail."""
    video = vlm.text_batch([vlm.family.video_prompt(one.frames, prompts.INTERNALIZE)], videos=[one.frames])
    asked, said = ([getattr(target, name) for target in one.targets] for name in ("prompt", "text"))
    texts = vlm.text_batch([vlm.family.text_prompt(text) for text in asked], said, newline=True)
    for batch in (video, texts):
        try:
            vlm.check_length(batch)
        except ValueError as error:
            return "prompt_too_long", str(error)
    for n, prompt, text in zip(vlm.n_visual_tokens(texts), asked, said, strict=True):
        if n:  # the tokenizer reads `<image>` in a text as the token
            return "bad_row", f"the target {text[:60]!r} of {prompt[:60]!r} has {n} image tokens"
    return None


class _Orders:
    """Place in the endless order -> index of an example; keeps the orders of the last two epochs."""

    def __init__(self, n: int, seed: int) -> None:
        if n < 1:
            raise ValueError("examples: got none, expected at least one to order")
        self.n, self.seed = n, seed
        self.orders: dict[int, np.ndarray] = {}

    def index(self, place: int) -> int:
        epoch, at = divmod(place, self.n)
        if epoch not in self.orders:
            self.orders = {old: order for old, order in self.orders.items() if old == epoch - 1}
            self.orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.n)
        return int(self.orders[epoch][at])
