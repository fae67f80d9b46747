"""CPU seconds to decode a video: 12 uniform frames with our route and with its rivals, in turns, the same frames checked.

Three clips of one moving source, 720p at 25/s, H.264 as x264 makes it by default (medium, CRF 23): 5 s of one group of pictures (GOP), and
3 minutes with a keyframe every 50 and every 250 frames. Each tool runs on one thread and gives RGB in memory, opening the file included:
`384 px` with the resize the tool has of its own (ours: the processor's Lanczos, to the bit; bilinear or bicubic of swscale, OpenCV's area)
and `decode` at full size without any. Rivals are told the number of frames, the rate and the sizes; ours reads its times from the packets.
A ratio is taken within a round, where all tools shared the same load, and reported as the median over rounds with its range.

A rival that is not installed is named and not measured. To have all (torchcodec is linked to the very libav that PyAV carries):
    pip install --no-deps --target /tmp/rivals torchcodec==0.13.0 decord==0.6.0 opencv-python-headless
Command  python -m benchmarks.decode --rivals /tmp/rivals [--source FOLDER_OF_VIDEOS] -o benchmarks/results/decode.md
         python -m benchmarks.decode --check FOLDER_OF_VIDEOS      our frames against a plain decode of everything, instead of times
Cost     1 minute of 2 cores to make the clips, 1 minute of a core to check the frames, then 1 minute of a core a round.
"""

import argparse
import datetime
import os
import platform
import re
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import av
import numpy as np
import torch
from jaxtyping import UInt8

from benchmarks.decoders import GOPS, N_FRAMES, PART_S, RATE, SELECT, Clip, Read, link_libav, make_clip, tools, videos_in
from video2lora.ffmpeg_program import ffmpeg_program
from video2lora.pixels import fit
from video2lora.sampling import Sampling
from video2lora.video import decode

EDGE_PX = 384
SELECT_ROUNDS = 1  # of the tool that decodes everything
TARGETS = {"torchcodec, approximate": 0.85, "decord": 0.70}  # on the long clips: issue 4
SHORT_TARGET = 1.10  # against the best on the short one


# --- the oracle ---


def plain_frames(path: str | os.PathLike[str]) -> Iterator[tuple[float, av.VideoFrame]]:
    """Every frame with its seconds, decoded one after the other with nothing skipped and nothing sought."""
    with av.open(os.fspath(path)) as container:
        for frame in container.decode(video=0):
            stamp = frame.dts if frame.pts is None else frame.pts
            assert stamp is not None and frame.time_base is not None, f"{path}: a frame without a time"
            yield float(stamp * frame.time_base), frame


def upright(frame: av.VideoFrame) -> UInt8[np.ndarray, "height width 3"]:
    """RGB, turned as the file says."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))


def same_as_plain(path: Path, *, n_frames: int, longest_edge_px: int) -> bool:
    """Whether our frames are those of a plain decode, to the bit. Raises VideoDecodeError.

    A decoder gives frames in the order they are shown. DivX in AVI has times out of that order, which are guesses: the order is right.
    """
    times_s = sorted(time_s for time_s, _ in plain_frames(path))
    wanted_s = np.linspace(times_s[0], times_s[-1], n_frames)
    chosen = [max(i for i, time_s in enumerate(times_s) if time_s <= wanted + 1e-6) for wanted in wanted_s]
    plain = {i: fit(upright(frame), longest_edge_px) for i, (_, frame) in enumerate(plain_frames(path)) if i in set(chosen)}
    images = decode(path, Sampling(n_frames=n_frames), longest_edge_px=longest_edge_px).images
    return len(images) == n_frames and all(np.array_equal(image, plain[i]) for image, i in zip(images, chosen, strict=True))


def check_folder(folder: Path) -> int:
    """Prints a line a video; the exit code: 1 where a frame differs."""
    n_differ = 0
    for path, info in videos_in(folder).items():
        cases = {n_frames: same_as_plain(path, n_frames=n_frames, longest_edge_px=EDGE_PX) for n_frames in (1, 2, 5, 12, 64)}
        differ = [n_frames for n_frames, is_same in cases.items() if not is_same]
        n_differ += bool(differ)
        print(f"{path.name}: {info.codec}, {info.n_frames} frames: " + (f"DIFFERS for {differ} frames" if differ else "same"), flush=True)
    return int(n_differ > 0)


def neighbours(clip: Clip) -> dict[int, np.ndarray]:
    """The chosen frames and those beside them, at full size, from a plain decode."""
    wanted = {int(number) + step for number in clip.numbers for step in (-1, 0, 1)}
    return {i: upright(frame) for i, (_, frame) in enumerate(plain_frames(clip.path)) if i in wanted}


def frames_off(clip: Clip, images: np.ndarray, plain: dict[int, np.ndarray]) -> list[int]:
    """Of each picture, how far the frame it shows is from the chosen one: 0, or -1 or 1 where a neighbour is nearer.

    Conversions to RGB differ by a level or two, neighbours by more; a still picture counts as the chosen one.
    """
    off = []
    for image, number in zip(images, clip.numbers.tolist(), strict=True):
        away = {step: float(np.abs(image.astype(np.int16) - plain[number + step]).mean()) for step in (0, -1, 1) if number + step in plain}
        off.append(min(away, key=lambda step, away=away: away[step]))  # type: ignore[misc]
    return off


# --- the measurement ---


@dataclass
class Row:
    """One tool on one clip; CPU seconds a round, resized and at full size."""

    clip: str
    tool: str
    n_off: int = 0  # pictures that show another frame than asked for
    resized_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)


def cpu_s() -> float:
    """Of this process and of the children it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(clip: Clip, readers: dict[str, Read], *, n_rounds: int, say: Callable[[str], None]) -> list[Row]:
    """All tools on one clip, taking turns; every other round in the reverse order. The first round's frames are checked."""
    plain = neighbours(clip)
    rows = {tool: Row(clip.name, tool) for tool in readers}
    for number in range(n_rounds):
        for tool in list(readers) if number % 2 == 0 else reversed(readers):
            if tool == SELECT and number >= SELECT_ROUNDS:
                continue
            for edge_px, kept in ((EDGE_PX, rows[tool].resized_s), (None, rows[tool].decode_s)):
                before = cpu_s()
                images = readers[tool](clip, edge_px)
                kept.append(cpu_s() - before)
            if number == 0:
                rows[tool].n_off = sum(step != 0 for step in frames_off(clip, images, plain))
        say(f"{clip.name}: round {number + 1} of {n_rounds}")
    return list(rows.values())


def ratio(ours_s: Sequence[float], theirs_s: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and greatest of ours ÷ theirs, round by round."""
    ratios = [one / other for one, other in zip(ours_s, theirs_s, strict=False)]
    return statistics.median(ratios), min(ratios), max(ratios)


def table(rows: Sequence[Row]) -> str:
    """Markdown. Ratios are ours ÷ the tool."""
    lines = ["| clip | tool | 384 px, CPU s | ours ÷ it | decode, CPU s | ours ÷ it | other frames |", "|---|---|---|---|---|---|---|"]
    base = {row.clip: row for row in rows if row.tool == "ours"}
    for row in rows:
        one = base[row.clip]
        resized = f"{statistics.median(row.resized_s):.3f} | {_ratio_text(one.resized_s, row.resized_s)}"
        decoded = f"{statistics.median(row.decode_s):.3f} | {_ratio_text(one.decode_s, row.decode_s)}"
        lines.append(f"| {row.clip} | {row.tool} | {resized} | {decoded} | {row.n_off} of {N_FRAMES} |")
    return "\n".join(lines)


def _ratio_text(ours_s: Sequence[float], theirs_s: Sequence[float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*ratio(ours_s, theirs_s))


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Each target with what was measured, at 384 px; nothing of rivals that are not there."""
    lines = []
    for name, (seconds, _) in GOPS.items():
        by = {row.tool: row for row in rows if row.clip == name}
        rivals = [row for tool, row in by.items() if tool != "ours"]
        if not rivals:
            continue
        best = min(rivals, key=lambda row: statistics.median(row.resized_s)).tool
        for tool, target in TARGETS.items() if seconds > PART_S else {best: SHORT_TARGET}.items():
            if tool in by:
                got = ratio(by["ours"].resized_s, by[tool].resized_s)[0]
                lines.append(f"{name}: {got:.2f} of {tool}, target {target:.2f}: {'reached' if got <= target else 'NOT reached'}")
    return lines


def report(clips: dict[str, Clip], rows: Sequence[Row], missing: dict[str, str], *, n_rounds: int) -> str:
    """The Markdown file: how it was measured, the verdicts, the table."""
    versions = {
        name: metadata.version(name) for name in ("av", "torch", "torchcodec", "decord", "opencv-python-headless") if _is_there(name)
    }
    program = subprocess.run([ffmpeg_program(), "-version"], capture_output=True, text=True, check=True).stdout.split()[2]
    facts = {
        "date": datetime.date.today().isoformat(),
        "command": f"`python -m benchmarks.decode {shlex.join(sys.argv[1:])}`",
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}; load {os.getloadavg()[1]:.1f} (5 min) at the end",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()) + f", ffmpeg program {program}",
        "rounds": f"{n_rounds}; of {SELECT} {SELECT_ROUNDS}",
        "not measured": "; ".join(f"{name} ({why})" for name, why in missing.items()) or "none",
    }
    sizes = [
        f"- {clip.name}: {clip.n_shown} frames, {os.path.getsize(clip.path) * 8e-6 / (clip.n_shown / RATE):.1f} Mbit/s"
        for clip in clips.values()
    ]
    what = (__doc__ or "").split("\n\n")[1]
    parts = ["# Decode: CPU seconds a video", what, [f"- {name}: {value}" for name, value in facts.items()], sizes]
    parts += [[f"- {line}" for line in verdicts(rows)], table(rows)]
    return "\n\n".join(part if isinstance(part, str) else "\n".join(part) for part in parts) + "\n"


def _is_there(name: str) -> bool:
    return any(True for _ in metadata.distributions(name=name))


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE) if Path("/proc/cpuinfo").exists() else None
    return found[1] if found else platform.machine()


def main() -> None:
    """python -m benchmarks.decode"""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description="Our decoding against its rivals: one table.")
    parser.add_argument("--rivals", type=Path, help="folder into which pip has put torchcodec, decord and OpenCV")
    parser.add_argument("--source", type=Path, help="folder of videos to make the clips of; default: a moving test picture with noise")
    parser.add_argument("--clips", type=Path, help="folder that keeps the clips, and whose clips are taken again")
    parser.add_argument("--tools", nargs="+", help="of the rivals, these alone; as the table names them")
    parser.add_argument("--rounds", type=int, default=5, help="that each ratio is the median of")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="instead: our frames of these videos against a plain decode")
    parser.add_argument("-o", "--output", type=Path, help="Markdown file; default: print alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.check:
        sys.exit(check_folder(arguments.check))
    if arguments.rivals:
        search = link_libav(arguments.rivals.absolute() / "libav")
        if search not in os.environ.get("LD_LIBRARY_PATH", ""):  # the loader reads it when a process starts
            os.execve(sys.executable, [sys.executable, "-m", "benchmarks.decode", *sys.argv[1:]], os.environ | {"LD_LIBRARY_PATH": search})
        sys.path.append(str(arguments.rivals.absolute()))
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started:7.1f} s] {line}", file=sys.stderr, flush=True)

    readers, missing = tools()
    if arguments.tools:
        missing |= {name: "left out by --tools" for name in readers if name not in ("ours", *arguments.tools)}
        readers = {name: read for name, read in readers.items() if name not in missing}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        clips = {name: make_clip(name, arguments.clips or Path(temporary), arguments.source) for name in GOPS}
        say("clips are there")
        for read in readers.values():  # not counted: what a tool does once in a process
            read(clips["one GOP, 5 s"], EDGE_PX)
        for clip in clips.values():
            rows += measure(clip, readers, n_rounds=arguments.rounds, say=say)
            text = report(clips, rows, missing, n_rounds=arguments.rounds)
            if arguments.output:  # a long run that is stopped leaves what it has measured
                arguments.output.parent.mkdir(parents=True, exist_ok=True)
                arguments.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
