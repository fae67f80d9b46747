"""What figures are measured with: test clips and their questions, the recipe's VLM and hypernetwork, and the few things done with them.

A clip's file is decoded anew at whatever number and size of frames a cell asks for, but never at more frames than it has: a sampling that
shows one picture twice would count frames that are not there. What cannot be decoded or asked is left out of the cell, and told with its
reason. One video at a time, all its questions in one batch: its adapter is made once, and the base reads it once for all of them.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float

from infra.config import Recipe, Where
from infra.contents import contents_of
from infra.errors import BadInputError
from infra.fetch import fetched
from infra.hypernetworks import local_hypernetwork
from infra.sets import evaluated_hypernetwork
from infra.storage import Table
from training.answer import questions_of
from training.models import frozen_vlm
from training.videos import trained_for
from video2lora import prompts
from video2lora.api import Internalizer
from video2lora.checkpoint import hypernetwork_hash
from video2lora.ffmpeg_program import READ_TIMEOUT_S, list_frames
from video2lora.lora import Lora, adapted
from video2lora.sampling import shown_at
from video2lora.scoring import degeneration, exact_match, token_f1
from video2lora.video import Frames, RejectReason, Sampling, VideoDecodeError, decode, probe
from video2lora.video_file import check_file
from video2lora.vlm import FrozenVLM, TextBatch

OUT_OF_REACH = (RejectReason.MISSING, RejectReason.UNREADABLE)  # says nothing about the video

Row = dict[str, Any]
Read = TypeVar("Read")


@dataclass(frozen=True)
class Clip:
    """A test video, or a span of one, and what is asked about it."""

    video_id: str
    content: str  # of its file
    uri: str
    start_s: float
    end_s: float | None
    questions: tuple[Row, ...]


@dataclass(frozen=True)
class Opened:
    """A clip's file on this machine. `n_frames` is what its span holds: of a part of the file, by that part of its duration."""

    path: str
    start_s: float
    end_s: float
    n_frames: int

    def frames(self, sampling: Sampling, *, longest_edge_px: int) -> Frames:
        """Of the span, each frame of the file once: fewer than asked for where one is on show at several of the times (variable rates).

        Raises VideoDecodeError.
        """
        sampling = sampling.model_copy(update={"n_frames": min(sampling.n_frames, self.n_frames)})
        found = decode(self.path, sampling, longest_edge_px=longest_edge_px, start_s=self.start_s, end_s=self.end_s)
        images = found.images
        alike = any(np.array_equal(one, other) for one, other in pairwise(images))
        if not alike or not len(self.times_s):  # frames that differ need no look at the times of all
            return found
        _, first = np.unique(shown_at(self.times_s, self.start_s + found.timestamps_s), return_index=True)
        return Frames(images[first], found.timestamps_s[first], found.duration_s)

    @cached_property
    def times_s(self) -> Float[np.ndarray, " n_shown"]:
        """Of all frames of the file, from its first one on; empty where ffmpeg can decode none."""
        times_s, _ = list_frames(self.path, timeout_s=READ_TIMEOUT_S)
        return times_s - times_s[:1]


def clips_of(recipe: Recipe, where: Where) -> list[Clip]:
    """A seeded sample of the recipe's test videos that are asked about, by id. Raises BadInputError where there is none."""
    settings = recipe.figures
    by_video: dict[str, dict[str, Row]] = {}
    for row in questions_of(recipe, where):
        if settings.benchmark in (None, row["benchmark"]) and (settings.styles is None or row["style"] in settings.styles):
            by_video.setdefault(row["video_id"], {})[row["question_id"]] = row
    videos = {row["video_id"]: row for row in Table(where.data, "videos").read().to_pylist()}
    ids = sorted(by_video.keys() & videos.keys())
    if not ids:
        raise BadInputError(
            f"{where.data}/questions: none about a video of split {recipe.answer.split!r} is of figures.benchmark "
            f"({settings.benchmark or 'any'}) and figures.styles ({', '.join(settings.styles or ['any'])})"
        )
    chosen = sorted(random.Random(settings.seed).sample(ids, min(settings.n_videos, len(ids))))
    contents = contents_of(where.data, chosen)
    return [
        Clip(
            video_id=video_id,
            content=contents[video_id],
            uri=videos[video_id]["uri"],
            start_s=videos[video_id]["start_s"] or 0.0,
            end_s=videos[video_id]["end_s"],
            questions=tuple(row for _, row in sorted(by_video[video_id].items())),
        )
        for video_id in chosen
    ]


@contextmanager
def opened(clip: Clip) -> Iterator[Opened]:
    """The clip's file, fetched for the block if it is in a bucket. Raises VideoDecodeError, StorageError."""
    with fetched(clip.uri) as path:
        info = probe(path)
        end_s = info.duration_s if clip.end_s is None else min(clip.end_s, info.duration_s)
        if end_s <= clip.start_s:
            raise VideoDecodeError(RejectReason.NO_FRAMES, f"the span begins at {clip.start_s} s, the clip ends at {info.duration_s:.3f} s")
        share = (end_s - clip.start_s) / info.duration_s
        yield Opened(path, clip.start_s, end_s, max(1, round(info.n_frames * share)))


def is_in_reach(clip: Clip) -> bool:
    """Whether its file is there and may be read; what it holds is not looked at. Raises StorageError."""
    try:
        with fetched(clip.uri) as path:
            check_file(path)
    except VideoDecodeError as error:
        return error.reason not in OUT_OF_REACH
    return True


@dataclass(frozen=True)
class Bench:
    """Models and clips. `left_out` are questions that no system can be asked."""

    recipe: Recipe
    using: Internalizer
    clips: tuple[Clip, ...]
    left_out: tuple[Row, ...]

    @property
    def vlm(self) -> FrozenVLM:
        return self.using.vlm

    def read(self, reader: Callable[[Opened], Read], left_out: list[Row]) -> Iterator[tuple[Clip, Read]]:
        """Each clip with what `reader` makes of its file; clips that cannot be decoded are added to `left_out` instead."""
        for clip in self.clips:
            try:
                with opened(clip) as file:
                    value = reader(file)
            except VideoDecodeError as error:
                left_out.append({"key": clip.video_id, "reason": str(error.reason), "detail": f"{clip.uri}: {error.detail}"})
                continue
            yield clip, value

    @torch.no_grad()
    def generated(self, frames: Frames) -> Lora:
        """The adapter of these frames in one pass, without the static one."""
        features = self.vlm.features([frames], opens_answer=self.using.hypernetwork.config.opens_answer)
        return self.using.hypernetwork(features.hidden, features.mask)

    @torch.no_grad()
    def with_static(self, lora: Lora) -> Lora:
        return self.using.hypernetwork.with_static(lora)

    def is_read_whole(self, frames: Frames) -> bool:
        """Whether the VLM can read so many frames in one pass to make an adapter of them."""
        prompt = self.vlm.family.video_prompt(frames, prompts.INTERNALIZE, opens_answer=self.using.hypernetwork.config.opens_answer)
        return len(self.vlm.tokenizer.encode(prompt, add_special_tokens=False)) <= self.vlm.n_positions

    def fits(self, frames: Frames, questions: Sequence[Row]) -> bool:
        """Whether the VLM has room for these frames, any of the questions, and its answer."""
        batch = self.batch(questions, frames)
        return batch.input_ids.shape[1] + self.recipe.answer.max_new_tokens <= self.vlm.n_positions

    def batch(self, questions: Sequence[Row], frames: Frames | None = None) -> TextBatch:
        """Prompts of the questions, with the frames before each where there are any."""
        texts = [row["question"] for row in questions]
        return self.vlm.question_batch(texts) if frames is None else self.vlm.video_batch([frames] * len(texts), texts)

    @torch.no_grad()
    def answers(self, clip: Clip, system: str, *, lora: Lora | None = None, frames: Frames | None = None) -> list[Row]:
        """Every question about the clip answered under an adapter, with frames in context, or (neither) blind; and scored."""
        tokens = None if frames is None else self.vlm.frame_tokens([frames])
        size, rows = self.recipe.answer.questions_per_batch, []
        with nullcontext() if lora is None else adapted(self.vlm.layers, lora):
            for start in range(0, len(clip.questions), size):
                asked = clip.questions[start : start + size]
                shown = None if tokens is None else tokens.repeat(len(asked), 1, 1)
                batch = self.batch(asked, frames)
                answers = self.vlm.generate(batch, max_new_tokens=self.recipe.answer.max_new_tokens, frame_tokens=shown)
                for question, answer in zip(asked, answers, strict=True):
                    references = question["references"]
                    rows.append(
                        {
                            "question_id": question["question_id"],
                            "video_id": clip.video_id,
                            "content": clip.content,
                            "style": question["style"],
                            "system": system,
                            "answer": answer.text,
                            "token_f1": token_f1(answer.text, references),
                            "exact_match": exact_match(answer.text, references),
                            "degenerate": degeneration(answer.text, [*references, question["question"]]),
                            "n_input_tokens": answer.n_input_tokens,
                            "n_visual_tokens": answer.n_visual_tokens,
                        }
                    )
        return rows

    def first_token_s(self, question: Row, *, lora: Lora | None = None, frames: Frames | None = None) -> float:
        """Seconds from the tokenized prompt and the decoded frames to the first token."""
        batch = self.batch([question], frames)
        with nullcontext() if lora is None else adapted(self.vlm.layers, lora):
            return self.vlm.time_to_first_token(batch, None if frames is None else [frames])


@contextmanager
def opened_bench(recipe: Recipe, where: Where, clips: Sequence[Clip]) -> Iterator[Bench]:
    """The recipe's models, on a GPU where there is one. Raises BadInputError where they do not fit each other."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vlm = frozen_vlm(recipe, device=device)
    with local_hypernetwork(evaluated_hypernetwork(recipe, where.data)[0]) as folder:
        hypernetwork = trained_for(vlm, folder)
        frames = recipe.frames
        using = Internalizer(vlm, hypernetwork, frames.sampling, frames.longest_edge_px, hypernetwork_hash(folder), str(folder))
        left_out: list[Row] = []
        asked = tuple(_askable(clip, vlm, left_out, longest=vlm.n_positions - recipe.answer.max_new_tokens) for clip in clips)
        yield Bench(recipe, using, tuple(clip for clip in asked if clip.questions), tuple(left_out))


def _askable(clip: Clip, vlm: FrozenVLM, left_out: list[Row], *, longest: int) -> Clip:
    """The clip with the questions that can be asked about it without a frame; the others are added to `left_out`."""
    kept = []
    for question in clip.questions:
        batch = vlm.question_batch([question["question"]])
        n_tokens, n_visual = batch.input_ids.shape[1], vlm.n_visual_tokens(batch)[0]
        if n_visual:  # the tokenizer reads `<image>` in a text as the token
            left_out.append({"key": question["question_id"], "reason": "bad_row", "detail": f"{n_visual} image tokens in its text"})
        elif n_tokens > longest:
            why = f"got {n_tokens} tokens, expected at most {longest}"
            left_out.append({"key": question["question_id"], "reason": "prompt_too_long", "detail": why})
        else:
            kept.append(question)
    return replace(clip, questions=tuple(kept))
