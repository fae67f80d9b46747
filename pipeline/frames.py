"""`videos` -> `frames`: each clip decoded once, its chosen frames kept as JPEG with the times they are shown at.

Reads: `videos`, and the files it names (local or s3://). Writes: `frames`, and what cannot be decoded to rejects.
Command: `video2lora frames`. Cost: 10 to 50 ms of a core for a short small clip, 0.1 to 1 s for a minute of 1080p.

Only addresses travel through Ray: a clip's bytes are read where they are decoded, and its frames go to storage from there. One
step does it all (fetch, decode, filter, encode, write), so nothing waits in memory between steps and no second actor pool can
starve the first. Filters (recipe: frames.filters) are off unless set; what they refuse costs its decode and no teacher.
"""

import math
import sys
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from infra.artifacts import SPLITS
from infra.attempt import Attempt, ShardWriter, reject
from infra.config import FramesSettings, Recipe, Where, load_recipe, load_where
from infra.errors import StageFailedError
from infra.progress import counting, say
from infra.resources import CPUS_PER_DECODER
from infra.sets import frames_made, frames_set
from infra.stage import Order, failing, summary
from infra.state import among
from infra.storage import Table
from pipeline.filters import refused
from pipeline.known_files import holds_another, with_versions
from pipeline.near_duplicates import near_duplicate_rows, signature
from pipeline.sources import local_copy
from video2lora.decode_process import DeadlineDecoder
from video2lora.jpeg import to_jpeg
from video2lora.video import Frames, RejectReason, VideoDecodeError

if TYPE_CHECKING:
    import ray.data

STAGE = "frames"
VIDEOS_PER_BLOCK = 64  # at most; also what a killed run decodes again at most, per decoder
SUPERSEDED = "superseded"
NOT_OF_THE_VIDEO = (RejectReason.MISSING, RejectReason.UNREADABLE, SUPERSEDED)  # but of its address: it may have moved
BLOCKS_PER_DECODER = 8  # at least, so that the last decoder is not long alone


def frames_row(video_id: str, frames: Frames, settings: FramesSettings) -> dict[str, Any]:
    """A row of `frames`."""
    _, height_px, width_px, _ = frames.images.shape
    return {
        "video_id": video_id,
        "sampling": settings.sampling.name,
        "jpegs": [to_jpeg(Image.fromarray(image), quality=settings.jpeg_quality) for image in frames.images],
        "timestamps_s": frames.timestamps_s.tolist(),
        "duration_s": frames.duration_s,
        "height_px": height_px,
        "width_px": width_px,
        "hashes": None if settings.filters.near_duplicate_bits is None else signature(frames.images),
    }


class DecodeVideos:
    """Holds the decoder's child process, which a hanging file costs and nothing else."""

    def __init__(self, settings: FramesSettings, writer: ShardWriter) -> None:
        self.settings, self.writer = settings, writer
        self.decoder = DeadlineDecoder(deadline_s=settings.deadline_s)

    def __call__(self, videos: pa.Table) -> pa.Table:
        """Rows of `videos` with the versions of their files -> what describes the files they came to."""
        from infra.flow import told  # brings Ray

        rows, rejects = [], []
        for video in videos.to_pylist():
            try:
                frames = self.decode(video)
                refused_for = refused(frames, self.settings.filters)
            except VideoDecodeError as error:
                refused_for = error.reason, f"{video['uri']}: {error.detail}"
            if holds_another(video):  # looked at last: whatever came of another video is not this one's
                refused_for = SUPERSEDED, f"{video['uri']} holds another video than when `manifest` read it: run that again"
            if refused_for is None:
                rows.append(frames_row(video["video_id"], frames, self.settings))
            else:
                rejects.append(reject(STAGE, video["video_id"], *refused_for))
        return told(self.writer.write(rows, rejects))

    def decode(self, video: dict[str, Any]) -> Frames:
        """Raises VideoDecodeError; StorageError where a bucket is out of reach."""
        with local_copy(video["uri"]) as path:
            return self.decoder.decode(
                path,
                self.settings.sampling,
                longest_edge_px=self.settings.longest_edge_px,
                start_s=video["start_s"] or 0.0,
                end_s=video["end_s"],
            )


def build(ds: "ray.data.Dataset", settings: FramesSettings, writer: ShardWriter, *, n_decoders: int) -> "ray.data.Dataset":
    """Blocks of `videos` -> what describes the files they came to."""
    import ray.data

    # 1. videos -> files, a block to one of each kind. An actor per core: libav runs on one thread, the actor sleeps while its child
    #    decodes. One block at a time each: by default the first actor to start takes several, and the others have nothing to do.
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=n_decoders, initial_size=n_decoders, max_tasks_in_flight_per_actor=1)
    return ds.map_batches(
        DecodeVideos,
        fn_constructor_args=(settings, writer),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=CPUS_PER_DECODER,
        compute=pool,
    )


def asked(where: Where) -> dict[str, Any]:
    """What the stage is asked for. Raises BadInputError where `videos` is not complete."""
    return {"inputs": {"videos": Table(where.data, "videos").made_from()}}


def order(recipe: Recipe, where: Where) -> Order:
    """A row for each video of the manifest."""
    video_ids = sorted(Table(where.data, "videos").read(["video_id"])["video_id"].to_pylist())
    return Order(frames_set(recipe, where.data), asked(where), video_ids, frames_made(recipe))


def run(recipe: Recipe, where: Where) -> str:
    """Raises BadInputError, StorageError, RowsLostError, StageFailedError, SupersededError."""
    frames = frames_set(recipe, where.data)
    if frames.finished(asked(where)):
        say(f"frames: {frames.folder} is complete, nothing to do")
        return summary(frames)
    attempt = order(recipe, where).begin()
    videos = Table(where.data, "videos").read()
    attempt.reopen(row["key"] for row in frames.read_rejects().to_pylist() if row["reason"] in NOT_OF_THE_VIDEO)
    if attempt.left:
        left = videos.filter(pc.is_in(videos["video_id"], value_set=pa.array(sorted(attempt.left)))).sort_by("video_id")
        _decode(left, attempt, recipe.frames, where)
    if recipe.frames.filters.near_duplicate_bits is not None:
        _reject_near_duplicates(attempt, videos, max_distance_bits=recipe.frames.filters.near_duplicate_bits)
    attempt.complete()
    return summary(frames)


def main() -> None:
    print(run(load_recipe(sys.argv[1]), load_where()))


def _decode(videos: pa.Table, attempt: Attempt, settings: FramesSettings, where: Where) -> None:
    import ray.data  # here, so that a run with nothing to do starts in a second

    from infra.cluster import cluster, nodes
    from infra.flow import commit_as_it_comes

    with cluster(where), failing(STAGE), counting(STAGE, "clips", len(videos)) as counter:
        n_decoders = decoders_that_fit(sum(node.get("CPU", 0.0) for node in nodes(where)))
        n_rows = min(VIDEOS_PER_BLOCK, math.ceil(len(videos) / (n_decoders * BLOCKS_PER_DECODER)))
        videos = with_versions(videos, where.data)
        blocks = [videos.slice(start, n_rows) for start in range(0, len(videos), n_rows)]
        ds = build(ray.data.from_blocks(blocks), settings, attempt.writer(), n_decoders=min(n_decoders, len(blocks)))
        commit_as_it_comes(ds, attempt, counter, stall_s=where.stall_s + n_rows * settings.deadline_s)


def _reject_near_duplicates(attempt: Attempt, videos: pa.Table, *, max_distance_bits: int) -> None:
    """Of all rows of the set. What was there when its books were closed stays: it may have targets; then what is tested on, then by id.

    What a killed run left has no such right: the rows that stay are those of a run that was not disturbed.
    """
    closed = (attempt.state.completed or {"attempt": 0})["attempt"]
    closed_files = [path for path in attempt.state.files if int(path.split("/")[-1].split("-")[0]) <= closed]
    old = set(among(attempt.state.live(), pa.array(closed_files, pa.string()), column="path")["key"].to_pylist())
    splits = dict(zip(videos["video_id"].to_pylist(), videos["split"].to_pylist(), strict=True))
    rows = attempt.table.read(["video_id", "hashes"])
    rank = [(one not in old, -SPLITS.index(splits[one]), one) for one in rows["video_id"].to_pylist()]
    rows = rows.take(sorted(range(len(rank)), key=rank.__getitem__))
    copies = near_duplicate_rows(rows, max_distance_bits)
    attempt.reopen(copies)
    why = f"each frame within {max_distance_bits} bits of one of"
    attempt.write([], [reject(STAGE, copy, "near_duplicate", f"{why} {video_id}") for copy, video_id in copies.items()])


def decoders_that_fit(n_cpus: float) -> int:
    """One for each core of the cluster. Raises StageFailedError for none: Ray would wait for ever."""
    n_decoders = int(n_cpus) or int(n_cpus >= CPUS_PER_DECODER)
    if n_decoders < 1:
        raise StageFailedError(f"frames: the Ray cluster has {n_cpus} CPUs, expected {CPUS_PER_DECODER} at least")
    return n_decoders


if __name__ == "__main__":
    main()
