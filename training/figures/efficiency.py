"""Section 5.5 of the paper: the time to a first token, of one question and spread over several, with the parts apart that the paper mixes.

    decode          file -> pictures, a bucket's fetch not counted          features       the VLM's pass over them, for the hypernetwork
    encode          pictures -> visual tokens                               hypernetwork   features -> adapter

    ours            all four once; then questions under the adapter         again          everything for each question: the paper's rival
    frames          pictures kept, as JPEG                                  connector      visual tokens kept
    kv_cache        the keys and values of the video's prompt kept          (these three are the honest rivals)

A cell is a video. A round measures every part and asks every system the same question, so that a busy moment hits all of them; the first
round warms up, medians of the others count. Prompts are tokenized before the clock starts. Of n questions each costs
(preparing + n x query) / n. Bytes are of what a system keeps of one video, numbers in 16 bits; the static adapter is kept once for all.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from infra.config import Recipe
from training.figures import scores
from training.figures.bench import Bench, Clip, Opened, Row, opened
from video2lora.generation import Decoding
from video2lora.jpeg import from_jpegs, to_jpeg
from video2lora.kept_cache import KeptLayer, asked_again, kept, n_shared, split
from video2lora.lora import Lora, adapted
from video2lora.video import Frames, VideoDecodeError
from video2lora.vlm import TextBatch

SYSTEMS = ("ours", "again", "frames", "connector", "kv_cache")
PARTS = ("decode", "encode", "features", "hypernetwork", "jpeg", "prefill")
PREPARED = {
    "ours": ("decode", "encode", "features", "hypernetwork"),
    "again": (),
    "frames": ("decode", "jpeg"),
    "connector": ("decode", "encode"),
    "kv_cache": ("decode", "encode", "prefill"),
}
"""What each system does before the first question."""
STORED_BYTES = 2  # of a number

Made = TypeVar("Made")


class Efficiency:
    table = "efficiency"
    settings: tuple[str, ...] = ("n_rounds", "n_questions")

    def cells(self, recipe: Recipe, clips: Sequence[Clip]) -> list[str]:
        return [clip.video_id for clip in clips]

    def measure(self, bench: Bench, cell: str) -> dict[str, Any]:
        left_out = list(bench.left_out)
        clip = next((one for one in bench.clips if one.video_id == cell), None)
        found: dict[str, Any] = {"video_id": cell, "measured": False}
        if clip is not None:
            try:
                with opened(clip) as file:
                    frames = decoded(bench, file)
                    if bench.fits(frames, clip.questions) and bench.is_read_whole(frames):
                        found |= {"measured": True, **measured(bench, clip, file, at=shared_tokens(bench, clip, frames))}
                    else:
                        why = f"{len(frames.images)} frames do not fit the VLM's {bench.vlm.n_positions} positions"
                        left_out.append({"key": cell, "reason": "prompt_too_long", "detail": why})
            except VideoDecodeError as error:
                left_out.append({"key": cell, "reason": str(error.reason), "detail": f"{clip.uri}: {error.detail}"})
        return {**found, "left_out": left_out}

    def numbers(self, recipe: Recipe, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Means over videos, with their intervals."""
        own, settings = [cell for cell in cells if cell["measured"]], recipe.evaluation
        if not own:
            return {"n_measured": 0, "parts_s": {}, "systems": {}, "amortised_s": {}}
        systems = {}
        for system in SYSTEMS:
            prepare_s, query_s = ([cell["systems"][system][name] for cell in own] for name in ("prepare_s", "query_s"))
            systems[system] = {
                "prepare_s": scores.mean_of_videos(prepare_s, settings),
                "query_s": scores.mean_of_videos(query_s, settings),
                **{name: scores.mean([cell["systems"][system][name] for cell in own]) for name in ("kept_bytes", "n_input_tokens")},
            }
        for system in SYSTEMS[1:]:
            systems[system]["break_even"] = break_even(systems["ours"], systems[system])
        spread_s = {
            system: {
                str(n): scores.mean_of_videos([amortised_s(cell["systems"][system], n) for cell in own], settings)
                for n in sorted(recipe.figures.n_questions)
            }
            for system in SYSTEMS
        }
        return {
            "n_measured": len(own),
            "frames": scores.spread([cell["n_frames"] for cell in own]),
            "parts_s": {part: scores.mean_of_videos([cell["parts_s"][part] for cell in own], settings) for part in PARTS},
            "systems": systems,
            "amortised_s": spread_s,
            "device": " and ".join(sorted({cell["device"] for cell in own})),  # of several: a run went on on another machine
        }


def amortised_s(system: Row, n: int) -> float:
    """Seconds for each of n questions about a video, preparing included. Paper 5.5; its first n questions differ, these cost the same."""
    return float((system["prepare_s"] + n * system["query_s"]) / n)


def break_even(ours: Row, rival: Row) -> float | None:
    """Number of questions from which on ours costs less than the rival; None where it never does for good."""
    saved_s = rival["query_s"]["value"] - ours["query_s"]["value"]
    paid_s = ours["prepare_s"]["value"] - rival["prepare_s"]["value"]
    return None if saved_s <= 0 else max(0.0, paid_s / saved_s)


def decoded(bench: Bench, file: Opened) -> Frames:
    """As the recipe's hypernetwork was trained."""
    return file.frames(bench.using.sampling, longest_edge_px=bench.using.longest_edge_px)


@dataclass(frozen=True)
class Prepared:
    """All that the systems keep of a video, and how long each part took."""

    frames: Frames
    jpegs: list[bytes]
    tokens: Tensor
    lora: Lora
    layers: list[KeptLayer]
    n_factors: int  # numbers of the generated adapter
    parts_s: dict[str, float]


def measured(bench: Bench, clip: Clip, file: Opened, *, at: int) -> dict[str, Any]:
    """The cell of a video that can be decoded and fits; `at` is where its prompts begin to differ."""
    parts: dict[str, list[float]] = {part: [] for part in PARTS}
    queries: dict[str, list[float]] = {system: [] for system in SYSTEMS}
    for number in range(bench.recipe.figures.n_rounds + 1):
        question = clip.questions[number % len(clip.questions)]
        made = prepared(bench, clip, file, at=at)
        for system in SYSTEMS:
            seconds = query_s(bench, system, question, file, made, at=at)
            if number:
                queries[system].append(seconds)
        if number:
            for part, seconds in made.parts_s.items():
                parts[part].append(seconds)
    parts_s = {part: median(seconds) for part, seconds in parts.items()}
    question_tokens = bench.batch(clip.questions[:1]).input_ids.shape[1]
    video_tokens = bench.batch(clip.questions[:1], made.frames).input_ids.shape[1]
    kept_bytes = {
        "ours": STORED_BYTES * made.n_factors,
        "again": 0,
        "frames": sum(map(len, made.jpegs)),
        "connector": STORED_BYTES * made.tokens.numel(),
        "kv_cache": STORED_BYTES * sum(2 * layer.all_keys[:, :, : layer.n_kept].numel() for layer in made.layers),
    }
    systems = {
        system: {
            "prepare_s": sum((parts_s[part] for part in PREPARED[system]), 0.0),
            "query_s": median(queries[system]),
            "kept_bytes": kept_bytes[system],
            "n_input_tokens": question_tokens if system == "ours" else video_tokens,
        }
        for system in SYSTEMS
    }
    device = torch.cuda.get_device_name() if bench.vlm.device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return {"n_frames": len(made.frames.images), "parts_s": parts_s, "systems": systems, "device": device}


@torch.no_grad()
def prepared(bench: Bench, clip: Clip, file: Opened, *, at: int) -> Prepared:
    """Everything that any system does before the first question, each part on its own clock."""
    vlm, hypernetwork = bench.vlm, bench.using.hypernetwork
    parts_s: dict[str, float] = {}

    def timed(part: str, work: Callable[[], Made]) -> Made:
        started = now_s(bench)
        made = work()
        parts_s[part] = now_s(bench) - started
        return made

    frames = timed("decode", lambda: decoded(bench, file))
    tokens = timed("encode", lambda: vlm.frame_tokens([frames]))
    features = timed("features", lambda: vlm.features([frames], opens_answer=hypernetwork.config.opens_answer, frame_tokens=tokens))
    generated = timed("hypernetwork", lambda: hypernetwork(features.hidden, features.mask))
    quality = bench.recipe.frames.jpeg_quality
    jpegs = timed("jpeg", lambda: [to_jpeg(Image.fromarray(image), quality=quality) for image in frames.images])
    shared, _ = split(bench.batch(clip.questions[:1], frames), at)
    longest = max(bench.batch([question], frames).input_ids.shape[1] for question in clip.questions)
    layers = timed("prefill", lambda: kept(vlm, shared, frame_tokens=tokens, room_tokens=longest - at + 1))
    n_factors = sum(factor.numel() for factors in (generated.lora_a, generated.lora_b) for factor in factors.values())
    return Prepared(frames, jpegs, tokens, bench.with_static(generated), layers, n_factors, parts_s)


def query_s(bench: Bench, system: str, question: Row, file: Opened, made: Prepared, *, at: int) -> float:
    """Seconds from a tokenized question to its first token, by what the system has kept."""
    vlm = bench.vlm
    prompt = bench.batch([question], None if system == "ours" else made.frames)
    rest = split(prompt, at)[1]

    def first() -> None:
        match system:
            case "ours":
                first_token(bench, prompt, lora=made.lora)
            case "again":
                first_token(bench, prompt, frame_tokens=vlm.frame_tokens([decoded(bench, file)]))
            case "frames":
                pictures = Frames(from_jpegs(made.jpegs), made.frames.timestamps_s, made.frames.duration_s)
                first_token(bench, prompt, frame_tokens=vlm.frame_tokens([pictures]))
            case "connector":
                first_token(bench, prompt, frame_tokens=made.tokens)
            case _:
                next(vlm.token_steps(rest, decoding=Decoding(max_new_tokens=1), cache=asked_again(made.layers))).tolist()

    started = now_s(bench)
    first()
    return now_s(bench) - started


def first_token(bench: Bench, prompt: TextBatch, *, lora: Lora | None = None, frame_tokens: Tensor | None = None) -> list[int]:
    """Its id, on this side of the device."""
    with nullcontext() if lora is None else adapted(bench.vlm.layers, lora):
        steps = bench.vlm.token_steps(prompt, decoding=Decoding(max_new_tokens=1), frame_tokens=frame_tokens)
        return [int(one) for one in next(steps)]


def shared_tokens(bench: Bench, clip: Clip, frames: Frames) -> int:
    """Tokens that every question about these frames begins with; found from the clip's own questions and two that differ at once."""
    texts = [row["question"] for row in clip.questions] + ["Who is it?", "What is it?"]
    return n_shared([bench.batch([{"question": text}], frames) for text in texts])


def now_s(bench: Bench) -> float:
    """The clock, when all that was asked of the device is done."""
    if bench.vlm.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
