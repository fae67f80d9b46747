"""`videos` -> `frames`: each clip decoded once, its chosen frames kept as JPEG with the times they are shown at.

Reads: `videos`, and the files it names (local or s3://). Writes: `frames`, and what cannot be decoded to rejects.
Command: `video2lora frames`. Cost: 10 to 50 ms of a core for a short small clip, 0.1 to 1 s for a minute of 1080p.

Only addresses travel through Ray; a clip's bytes are read where they are decoded, and only its small frames leave. One
step does it all (fetch, decode, encode), so nothing waits in memory between steps and no second actor pool can starve
the first.
"""

import sys
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from PIL import Image

from infra.artifacts import FRAMES
from infra.config import FramesSettings, Recipe, Where, load_recipe, load_where
from infra.errors import StageFailedError
from infra.progress import counting, say
from infra.stage import failing, summary
from infra.storage import Table, reject
from pipeline.sources import local_copy
from video2lora.decode_process import DeadlineDecoder
from video2lora.jpeg import to_jpeg
from video2lora.video import Frames, VideoDecodeError

if TYPE_CHECKING:
    import ray.data

STAGE = "frames"
VIDEOS_PER_BLOCK = 16  # also what a killed run decodes again at most, per decoder
CPUS_PER_DECODER = 0.9  # of a core each; a rest stays free for Ray Data's own tasks, which actors would otherwise lock out


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
    }


def row_key(video_id: str, settings: FramesSettings) -> str:
    """The key of a row or reject, as `Table.done_keys` has it."""
    return f"{video_id}/{settings.sampling.name}"


class DecodeVideos:
    """Holds the decoder's child process, which a hanging file costs and nothing else."""

    def __init__(self, settings: FramesSettings) -> None:
        self.settings = settings
        self.decoder = DeadlineDecoder(deadline_s=settings.deadline_s)

    def __call__(self, videos: pa.Table) -> pa.Table:
        """Rows of `videos` -> outcomes."""
        from infra.flow import outcomes  # brings Ray

        rows, rejects = [], []
        for video in videos.to_pylist():
            try:
                rows.append(frames_row(video["video_id"], self.decode(video), self.settings))
            except VideoDecodeError as error:
                key = row_key(video["video_id"], self.settings)
                rejects.append(reject(STAGE, key, error.reason, f"{video['uri']}: {error.detail}"))
        return outcomes(FRAMES, rows, rejects)

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


def build(ds: "ray.data.Dataset", settings: FramesSettings, *, n_decoders: int) -> "ray.data.Dataset":
    """Blocks of `videos` -> blocks of outcomes."""
    import ray.data

    # 1. videos -> outcomes, n to n. An actor per core: libav runs on one thread, the actor sleeps while its child decodes.
    #    One block at a time each: by default the first actor to start takes several, and the others have nothing to do.
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=n_decoders, initial_size=n_decoders, max_tasks_in_flight_per_actor=1)
    return ds.map_batches(
        DecodeVideos,
        fn_constructor_args=(settings,),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=CPUS_PER_DECODER,
        compute=pool,
    )


def run(recipe: Recipe, where: Where) -> str:
    """Raises BadInputError, MadeFromOtherError, StorageError, RowsLostError, StageFailedError."""
    videos, frames = Table(where.data, "videos"), Table(where.data, "frames")
    made_from = {"stage": STAGE, **recipe.section("frames"), "inputs": {"videos": videos.made_from()}}
    if not frames.begin(made_from):
        say(f"frames: {frames.folder} is complete, nothing to do")
        return summary(frames)
    found, done = videos.read().sort_by("video_id"), frames.done_keys()
    left = found.filter(pa.array([row_key(name, recipe.frames) not in done for name in found["video_id"].to_pylist()], pa.bool_()))
    if len(left):
        _decode(left, frames, recipe.frames, where)
    frames.complete(n_in=len(found))
    return summary(frames)


def main() -> None:
    print(run(load_recipe(sys.argv[1]), load_where()))


def _decode(videos: pa.Table, frames: Table, settings: FramesSettings, where: Where) -> None:
    import ray.data  # here, so that a run with nothing to do starts in a second

    from infra.cluster import cluster
    from infra.flow import write_outcomes

    blocks = [videos.slice(start, VIDEOS_PER_BLOCK) for start in range(0, len(videos), VIDEOS_PER_BLOCK)]
    with cluster(where), failing(STAGE), counting(STAGE, "clips", len(videos)) as counter:
        n_decoders = min(len(blocks), decoders_that_fit(ray.cluster_resources().get("CPU", 0.0)))
        write_outcomes(build(ray.data.from_arrow(blocks), settings, n_decoders=n_decoders), frames, counter)


def decoders_that_fit(n_cpus: float) -> int:
    """One for each core of the cluster. Raises StageFailedError for none: Ray would wait for ever."""
    n_decoders = int(n_cpus) or int(n_cpus >= CPUS_PER_DECODER)
    if n_decoders < 1:
        raise StageFailedError(f"frames: the Ray cluster has {n_cpus} CPUs, expected {CPUS_PER_DECODER} at least")
    return n_decoders


if __name__ == "__main__":
    main()
