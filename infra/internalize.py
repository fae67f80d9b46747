"""Clips -> adapters: one into its own folder, many into a collection that a killed run continues.

    CLIP -> (fetch) -> content id -> (skip what is there) -> decode -> batches through the VLM and the hypernetwork -> adapter -> catalogue

Command: `video2lora internalize CLIP... -o DIR`. Cost: a clip that has its adapter is hashed and no more.
Clips in = made + there already + the same again + rejects; what is no usable video costs its row in the rejects and nothing else.
"""

import os
import re
from collections import Counter as Tally
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from infra.attempt import reject
from infra.collection import Collection, opened, storing
from infra.errors import BadInputError, RowsLostError
from infra.fetch import Received, fetched, is_url, public_name, stored_uri
from infra.progress import Counter, counting, say
from infra.reader import MAX_READERS, STAGE, Decoder, Read, Reader, content_of
from video2lora import api
from video2lora.adapter import Dtype, without_static
from video2lora.video import Frames, RejectReason, Sampling, VideoDecodeError

MB = 1_000_000
CLIPS_PER_READER = 4  # at least: a decoder's process takes as long to start as a few small clips to decode
HOW_STATIC = " (the static adapter stays with the hypernetwork; `ask` and `export` add it)"


@dataclass(frozen=True)
class Making:
    """What decides an adapter beside its video."""

    using: api.Internalizer
    frames_per_chunk: int
    max_rank: int | None
    pictures_per_s: float  # of folders of pictures
    stored_as: Dtype
    self_contained: bool  # the static adapter with every video's, not only with the hypernetwork

    def made_by(self) -> dict[str, Any]:
        """What a collection records and compares."""
        return {
            "vlm_digest": self.using.vlm.digest,
            "hypernetwork_digest": self.using.digest,
            "dtype": self.using.vlm.dtype,
            "sampling": self.using.sampling.name,
            "longest_edge_px": self.using.longest_edge_px,
            "frames_per_chunk": self.frames_per_chunk,
            "max_rank": self.max_rank,
            "pictures_per_s": self.pictures_per_s,
            "stored_as": self.stored_as,
            "self_contained": self.self_contained,
        }

    def decoder(self) -> Decoder:
        return Decoder(self.using.sampling, longest_edge_px=self.using.longest_edge_px, pictures_per_s=self.pictures_per_s)

    def adapters(self, videos: Sequence[Frames], video_ids: Sequence[str]) -> list[api.Adapter]:
        """Raises ValueError for frames that the VLM does not take, BadInputError where the device has no room for so many."""
        try:
            return api.internalize_batch(
                videos, using=self.using, video_ids=video_ids, frames_per_chunk=self.frames_per_chunk, max_rank=self.max_rank
            )
        except torch.OutOfMemoryError as error:
            raise BadInputError(
                f"--batch-size {len(videos)}, --frames-per-chunk {self.frames_per_chunk}: the device has no room for so many; give fewer"
            ) from error

    def store(self, adapter: api.Adapter, folder: Path) -> api.Adapter:
        """Writes the adapter, and gives what it wrote.

        Raises StorageError; ValueError where `folder` holds something else, or a factor is not finite as it is to be stored.
        """
        stored = adapter if self.self_contained else without_static(adapter)
        with storing(folder):
            api.save_adapter(stored, folder, dtype=self.stored_as)
        return stored


@dataclass
class Outcomes:
    """What became of each clip of a run, told as it comes."""

    counter: Counter
    tally: Tally[str] = field(default_factory=Tally)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, Read] = field(default_factory=dict)  # by content
    settled: set[str] = field(default_factory=set)  # addresses

    def note(self, read: Read, outcome: str) -> None:
        self.tally[outcome] += 1
        self.settled.add(stored_uri(read.clip))
        if outcome == "the same again":
            say(f"{read.name}: the same content as an earlier clip, made once")
        self.counter.advance()

    def reject(self, read: Read) -> None:
        row = read.reject()
        self.rejects.append(row)
        self.failed.setdefault(read.video_id, read)
        say(f"{read.name}: no adapter: {row['reason']}: {row['detail']}")
        self.note(read, "rejected")

    def miss(self, wanted: Mapping[str, str | None], collection: Collection) -> None:
        """Rejects of the videos that have neither an adapter nor a reject by their address."""
        rejected = {row["key"] for row in self.rejects}
        for video_id, uri in wanted.items():
            if video_id not in collection and uri not in rejected:
                why = "no address of it is known" if uri is None else f"{uri} holds another video"
                self.rejects.append(reject(STAGE, video_id, RejectReason.MISSING.value, why))
                self.settled.add(video_id)
                say(f"{video_id}: no adapter: {why}")

    def __str__(self) -> str:
        return ", ".join(f"{self.tally[what]} {what}" for what in ("made", "there already", "the same again") if self.tally[what])


def run_one(clip: str, folder: Path, making: Making) -> str:
    """CLIP into the adapter `folder`. Raises BadInputError, StorageError; ValueError as the method does."""
    with ExitStack() as held:
        with _showing(clip) as received:
            path = held.enter_context(fetched(clip, received=received))
        video_id = content_of(path)
        frames = api.read_frames(path, using=making.using, fps=making.pictures_per_s)  # here: a decoder's process takes 0.5 s to start
    (adapter,) = making.adapters([frames], [video_id])
    stored = making.store(adapter, folder)
    return f"{folder}: adapter of {public_name(clip)}, rank {stored.lora.r}" + ("" if stored.has_all else HOW_STATIC)


def run_many(clips: Sequence[str], folder: Path, making: Making, *, batch_size: int, wanted: Mapping[str, str | None] | None = None) -> str:
    """CLIPs into a collection. `wanted`, where it is given, are videos with their addresses: each becomes an adapter or a reject, and so
    does a clip that holds none of them.

    Raises BadInputError, after all that could be done, where some gave no adapter; and as `opened` does.
    """
    with opened(folder, making.made_by()) as collection:
        with counting(STAGE, "clips", len(clips)) as counter:
            outcomes = Outcomes(counter)
            try:
                _make_all(clips, collection, making, outcomes, batch_size=batch_size, wanted=wanted)
                outcomes.miss(wanted or {}, collection)
            finally:
                collection.settle(outcomes.settled, outcomes.rejects)
        n_adapters = len(collection.rows)
    if outcomes.tally.total() != len(clips):
        raise RowsLostError(f"{folder}: {len(clips)} clips in, {outcomes.tally.total()} accounted for: {dict(outcomes.tally)}")
    told = f"{str(outcomes) or 'nothing made'}; {n_adapters} in {folder / 'catalogue.parquet'}"
    if outcomes.rejects:
        raise BadInputError(f"{len(outcomes.rejects)} of {len(wanted or clips)} gave no adapter: see {folder / 'rejects.parquet'} ({told})")
    return told


def sampling_named(name: str) -> Sampling:
    """The sampling that has this name (`Sampling.name`). Raises BadInputError."""
    if match := re.fullmatch(r"uniform-(\d+)", name):
        settings: dict[str, Any] = {"policy": "uniform", "n_frames": int(match[1])}
    elif match := re.fullmatch(r"published-(\d+)-(\d+\.?\d*)fps", name):
        settings = {"policy": "published", "n_frames": int(match[1]), "fps": float(match[2])}
    elif match := re.fullmatch(r"fps-(\d+\.?\d*)(?:-max-(\d+))?", name):
        settings = {"policy": "fps", "fps": float(match[1]), "n_frames": int(match[2] or 0)}
    else:
        raise BadInputError(f"--sampling: got {name!r}, expected the form of uniform-64, published-12-1fps, fps-2 or fps-2-max-64")
    try:
        return Sampling(**settings)
    except ValueError as error:
        raise BadInputError(f"--sampling: got {name!r}, expected numbers more than 0") from error


def _make_all(
    clips: Sequence[str], collection: Collection, making: Making, outcomes: Outcomes, *, batch_size: int, wanted: Container[str] | None
) -> None:
    n_readers = min(MAX_READERS, os.cpu_count() or 1, -(-len(clips) // CLIPS_PER_READER))
    decoders = [making.decoder() for _ in range(n_readers)]
    there = set(collection.rows)
    again: list[Read] = []
    batch: list[tuple[Read, Frames]] = []
    for read in Reader(decoders, known=there, wanted=wanted).read_all(clips, ahead=batch_size + len(decoders)):
        if read.frames is not None:
            batch.append((read, read.frames))
            if len(batch) == batch_size:
                _make(batch, collection, making, outcomes)
                batch = []
        elif read.error is not None:
            outcomes.reject(read)
        elif read.video_id in there:
            collection.found_again(read.video_id, stored_uri(read.clip))
            outcomes.note(read, "there already")
        else:
            again.append(read)
    _make(batch, collection, making, outcomes)
    for read in again:  # only now is it known what became of the content
        if read.video_id in outcomes.failed:
            outcomes.reject(Read(read.clip, read.video_id, error=outcomes.failed[read.video_id].error))
        else:
            outcomes.note(read, "the same again")


def _make(batch: Sequence[tuple[Read, Frames]], collection: Collection, making: Making, outcomes: Outcomes) -> None:
    """A batch's adapters, saved. Where one video of several is refused, the others are made without it."""
    if not batch:
        return
    try:
        adapters = making.adapters([frames for _, frames in batch], [read.video_id for read, _ in batch])
    except ValueError as error:
        if len(batch) == 1:
            outcomes.reject(_refused(batch[0][0], error))
            return
        for one in batch:
            _make([one], collection, making, outcomes)
        return
    for (read, _), adapter in zip(batch, adapters, strict=True):
        try:
            making.store(adapter, collection.folder / read.video_id)
        except ValueError as error:
            outcomes.reject(_refused(read, error))
            continue
        collection.add(read.video_id, stored_uri(read.clip))
        outcomes.note(read, "made")


def _refused(read: Read, error: ValueError) -> Read:
    return Read(read.clip, read.video_id, error=VideoDecodeError(RejectReason.DECODE_ERROR, f"its frames give no adapter: {error}"))


@contextmanager
def _showing(clip: str) -> Iterator[Received | None]:
    """Progress of one download; nothing for what is not fetched."""
    if not is_url(clip):
        yield None
        return
    with counting(f"fetch {public_name(clip)}", "MB", 0) as counter:

        def received(n_bytes: int, total: int | None) -> None:
            counter.total = max(total or 0, n_bytes) // MB
            if counter.bar is not None and counter.task is not None:
                counter.bar.update(counter.task, total=counter.total)
            counter.advance(n_bytes // MB - counter.n_done)

        yield received
