"""What Ray Data costs the `frames` stage beside a plain loop over the same functions; its memory; and a manifest of a million rows.

Each run is a process of its own, watched from outside: CPU seconds and memory of all its processes, and the times of its commits.
Counted is the steady state, from the first commit to the last, so neither side pays for starting. Both decode the same clips (made
here: 5 s of 640 x 360, GOP 50, 12 frames to 384 px) through the same actor class and write the same files.

    loop      stage against loop, in turns: CPU seconds per row (expected <= 1.15 of the loop's), wall (<= 0.62 on 2 cores)
    memory    peak of RSS summed over all processes, Ray's object store included, at 1,024 videos against 128 (expected <= 1.10)
    cpus      the stage ends on 1, 2 and 4 CPUs
    million   1,000,000 made rows: into `videos`, planned, split into blocks, committed as `frames` without decoding, found finished

Command  python -m benchmarks.pipeline [loop memory cpus million]       (the pipeline's environment)
Cost     on 2 cores: loop 6 minutes, memory 8, cpus 2, million 3.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ffmpeg
import psutil

from infra.config import FramesSettings, Recipe, Where
from infra.sets import frames_set
from infra.storage import Table
from video2lora.ffmpeg_program import ffmpeg_program

RECIPE = Recipe(frames=FramesSettings())  # the paper's: 12 frames, longest edge 384 px
N_BASE = 8  # different clips; the others are these with a few bytes after their end, which makes them other videos
SAMPLE_EVERY_S = 0.1
DEADLINE_S = 3600.0
PARTS = ("loop", "memory", "cpus", "million")


@dataclass(frozen=True)
class Ran:
    """One run as seen from outside; times in seconds."""

    n_rows: int  # committed after the first commit
    wall_s: float  # from the first commit to the last
    cpu_s: float  # of all processes, in this time
    peak_bytes: int
    whole_s: float

    @property
    def cpu_s_per_row(self) -> float:
        return self.cpu_s / self.n_rows

    @property
    def wall_s_per_row(self) -> float:
        return self.wall_s / self.n_rows


def make_clips(folder: Path, n: int) -> None:
    """`n` videos that are all different to the manifest."""
    folder.mkdir(parents=True)
    for i in range(min(n, N_BASE)):
        noise = ffmpeg.input(f"testsrc2=size=640x360:rate=25:duration=5,noise=alls=8:allf=t:all_seed={i},hue=h={i * 40}", f="lavfi")
        made = noise.output(str(folder / f"{i:05d}.mp4"), vcodec="libx264", preset="veryfast", g=50, pix_fmt="yuv420p")
        made.run(cmd=ffmpeg_program(), quiet=True)
    for i in range(N_BASE, n):
        base = (folder / f"{i % N_BASE:05d}.mp4").read_bytes()
        (folder / f"{i:05d}.mp4").write_bytes(base + i.to_bytes(8))  # after the last box, where no reader looks


def work(kind: str, root: str) -> None:
    """What a watched process does: the stage, or the plain loop."""
    from pipeline import frames
    from pipeline.known_files import with_versions

    where = Where(data=root)
    if kind == "stage":
        frames.run(RECIPE, where)
        return
    attempt = frames.order(RECIPE, where).begin()
    videos = with_versions(Table(root, "videos").read().sort_by("video_id"), root)
    decode = frames.DecodeVideos(RECIPE.frames, attempt.writer())
    n_rows = max(1, len(videos) // (2 * frames.BLOCKS_PER_DECODER))
    for start in range(0, len(videos), n_rows):
        told = decode(videos.slice(start, n_rows))
        from infra.flow import files_of  # after the first block, as Ray is imported by it

        attempt.commit(files_of(told))
    attempt.complete()


def watch(kind: str, root: str, *, n_cpus: int) -> Ran:
    """Run in a process of its own, and look on. Raises RuntimeError where it fails or does not end."""
    environment = os.environ | {"VIDEO2LORA_N_CPUS": str(n_cpus), "OMP_NUM_THREADS": "1"}
    log, started = Path(frames_set(RECIPE, root).folder) / "log", time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.pipeline", "--work", kind, "--root", root], env=environment)
    samples: list[tuple[float, float, int]] = []
    with _sampling(process.pid, samples):
        if process.wait(DEADLINE_S) != 0:
            raise RuntimeError(f"{kind}: ended with {process.returncode}")
    whole_s = time.monotonic() - started
    commits = [(path.stat().st_mtime, json.loads(path.read_text())) for path in sorted(log.glob("0*.json"))]
    commits = [(at, entry) for at, entry in commits if entry["kind"] == "commit"]
    first, last = commits[0][0], commits[-1][0]
    n_rows = sum(file["n_rows"] for _, entry in commits[1:] for file in entry["add"])
    return Ran(n_rows, last - first, _cpu_at(samples, last) - _cpu_at(samples, first), max(used for *_, used in samples), whole_s)


def loop(folder: Path, *, n: int, n_rounds: int) -> list[str]:
    """Lines of the result."""
    rounds = []
    for i in range(n_rounds):
        ran = {kind: watch(kind, _world(folder / f"{kind}-{i}", n), n_cpus=2) for kind in ("plain", "stage")}
        rounds.append(ran)
        told = [f"{kind} {one.cpu_s_per_row:.3f} CPU s, {one.wall_s_per_row:.3f} s a row" for kind, one in ran.items()]
        _say(f"round {i + 1}: {'; '.join(told)}")
    lines = []
    for what, target in (("cpu_s_per_row", 1.15), ("wall_s_per_row", 0.62)):
        plain, stage = ([getattr(ran[kind], what) for ran in rounds] for kind in ("plain", "stage"))
        ratios = [one / other for one, other in zip(stage, plain, strict=True)]
        lines.append(
            f"| {what} | {statistics.median(plain):.3f} | {statistics.median(stage):.3f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) | {target} |"
        )
    return [f"{n} clips, {n_rounds} rounds.", "", "| | plain loop | stage | ratio | expected at most |", "|---|---|---|---|---|", *lines]


def memory(folder: Path, *, small: int, large: int) -> list[str]:
    """Lines of the result."""
    ran = {n: watch("stage", _world(folder / f"memory-{n}", n), n_cpus=2) for n in (small, large)}
    mib = {n: one.peak_bytes / 2**20 for n, one in ran.items()}
    return [f"| {small} videos | {large} videos | ratio | expected at most |", "|---|---|---|---|",
            f"| {mib[small]:.0f} MiB | {mib[large]:.0f} MiB | {mib[large] / mib[small]:.3f} | 1.10 |"]  # fmt: skip


def cpus(folder: Path, *, n: int) -> list[str]:
    """Lines of the result."""
    lines = ["| CPUs | seconds, start of Ray included |", "|---|---|"]
    for n_cpus in (1, 2, 4):
        lines.append(f"| {n_cpus} | {watch('stage', _world(folder / f'cpus-{n_cpus}', n), n_cpus=n_cpus).whole_s:.0f} |")
    return lines


def million(folder: Path, *, n: int) -> list[str]:
    """Lines of the result."""
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.pipeline", "--work", "million", "--root", str(folder / "million"), "--n", str(n)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return [f"{n:,} rows, made; no file is read and none decoded.", "", *process.stdout.splitlines()]


def work_million(root: str, n: int) -> None:
    """The real code of manifest and frames, but for hashing and decoding."""
    import resource

    import pyarrow as pa

    from pipeline import frames, manifest
    from pipeline.source_rows import VideoRow

    print("| step | seconds | peak memory so far |\n|---|---|---|")

    @contextmanager
    def step(what: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"| {what} | {time.monotonic() - started:.1f} | {peak:.2f} GiB |", flush=True)

    where = Where(data=root)
    named = []
    for i in range(n):
        row = VideoRow(uri=f"s3://bucket/videos/{i:07d}.mp4")
        named.append(manifest.Named(row.uri, f"{i:020x}", row))
    with step("`manifest`: rows compared with the table, and committed"):
        manifest.write_videos(Table(root, "videos"), _examined("s3://bucket/videos", named))
    del named
    with step("`frames`: what is wanted, what is there, what is left; begun"):
        attempt = frames.order(RECIPE, where).begin()
        videos = Table(root, "videos").read()
        left = videos.filter(pa.compute.is_in(videos["video_id"], value_set=pa.array(sorted(attempt.left)))).sort_by("video_id")
    n_rows = frames.VIDEOS_PER_BLOCK
    with step(f"split into blocks of {n_rows}, each written and committed ({-(-n // n_rows):,} commits)"):
        for start in range(0, len(left), n_rows):
            attempt.write([_made_frames(video_id) for video_id in left["video_id"].slice(start, n_rows).to_pylist()], [])
    with step("books closed"):
        attempt.complete()
    del attempt, left, videos
    with step("`frames` again: found finished"):
        assert "nothing to do" not in frames.run(RECIPE, where)
    with step("one video more: what is left is found"):
        more = manifest.Named("s3://bucket/new.mp4", "f" * 20, VideoRow(uri="s3://bucket/new.mp4"))
        manifest.write_videos(Table(root, "videos"), _examined("s3://bucket/new", [more]))
        assert frames.order(RECIPE, where).begin().left == {"f" * 20}


def _examined(address: str, videos: list[Any]) -> Any:
    from pipeline import manifest

    return manifest.Examined(address=address, videos=videos, rejects=[], contents={}, ids={})


def _made_frames(video_id: str) -> dict[str, Any]:
    return {
        "video_id": video_id, "sampling": "uniform-12", "jpegs": [b""] * 12, "timestamps_s": [0.0] * 12, "duration_s": 1.0,
        "height_px": 1, "width_px": 1, "hashes": None,
    }  # fmt: skip


def _world(root: Path, n: int) -> str:
    """A data folder with `n` videos in its manifest."""
    from pipeline import manifest

    make_clips(root / "clips", n)
    manifest.run(str(root / "clips"), RECIPE, Where(data=str(root)))
    return str(root)


@contextmanager
def _sampling(pid: int, samples: list[tuple[float, float, int]]) -> Iterator[None]:
    """(time, CPU seconds, bytes) of a process and all below it, until the block ends. Ended processes keep the CPU they had last."""
    done = threading.Event()
    cpu_of: dict[tuple[int, float], float] = {}

    def look() -> None:
        while not done.wait(SAMPLE_EVERY_S):
            used = 0
            try:
                for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
                    try:
                        with process.oneshot():
                            times = process.cpu_times()
                            cpu_of[process.pid, process.create_time()] = times.user + times.system
                            used += process.memory_info().rss
                    except psutil.NoSuchProcess:
                        continue
            except psutil.NoSuchProcess:
                return
            samples.append((time.time(), sum(cpu_of.values()), used))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _cpu_at(samples: list[tuple[float, float, int]], at: float) -> float:
    """Between two samples, in proportion."""
    before = max((one for one in samples if one[0] <= at), default=samples[0])
    after = min((one for one in samples if one[0] >= at), default=samples[-1])
    share = (at - before[0]) / (after[0] - before[0]) if after[0] > before[0] else 0.0
    return before[1] + share * (after[1] - before[1])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; by default all")
    parser.add_argument("--work", choices=["stage", "plain", "million"], help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    parser.add_argument("--n", type=int, default=1_000_000, help="rows of `million`")
    parser.add_argument("--clips", type=int, default=256, help="of `loop`")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.work == "million":
        work_million(options.root, options.n)
        return
    if options.work:
        work(options.work, options.root)
        return
    with tempfile.TemporaryDirectory(prefix="video2lora-") as name:
        folder = Path(name)
        for part in options.parts or PARTS:
            lines = {
                "loop": lambda: loop(folder, n=options.clips, n_rounds=options.rounds),
                "memory": lambda: memory(folder, small=128, large=1024),
                "cpus": lambda: cpus(folder, n=32),
                "million": lambda: million(folder, n=options.n),
            }[part]()
            print(f"\n## {part}\n", *lines, sep="\n", flush=True)


if __name__ == "__main__":
    main()
