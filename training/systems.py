"""The systems that answer: one frozen VLM, and what it is given beside the question.

    base          the video's frames in context
    ours          the adapter of the video, no frame
    other_video   the adapter of another video, no frame
    static        the video-independent adapter alone
    blind         nothing
    caption       the teacher's words about the video, as text before the question

A video's pictures are decoded once, encoded once and internalized once, however many questions and systems follow. Rows of a batch
belong to different videos, so each row has its own adapter. That no image token reaches a system other than base is checked on
the very ids that the model is given. Decoding the JPEGs and internalizing are outside every time to first token.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from infra.attempt import reject
from infra.config import Recipe
from infra.errors import BadInputError, StageFailedError
from training.answer import Block, Row
from video2lora.checkpoint import load_hypernetwork, read_metadata
from video2lora.jpeg import from_jpegs
from video2lora.lora import Lora, adapted, select, stack
from video2lora.pretrained import load_vlm
from video2lora.video import Frames
from video2lora.vlm import Answer, TextBatch


@dataclass(frozen=True)
class Video:
    """A video as the systems know it."""

    frames: Frames
    frame_tokens: Float[Tensor, "n_frames n_image_tokens d_vlm"]
    lora: Lora  # static adapter included


class Systems:
    """VLM and hypernetwork, loaded once; called with a block, gives its answers and rejects. On a GPU where there is one."""

    def __init__(self, recipe: Recipe, *, hypernetwork: Path, frames: pa.Table, captions: dict[str, str]) -> None:
        """`frames` are rows of the table, one per video. Raises BadInputError where VLM, hypernetwork and recipe do not fit."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.settings = recipe.answer
        try:
            self.vlm = load_vlm(recipe.vlm.model, revision=recipe.vlm.revision, dtype=recipe.vlm.dtype, device=device)
            self.hypernetwork = load_hypernetwork(hypernetwork).to(device).eval().requires_grad_(False)
            trained_for = read_metadata(hypernetwork).get("vlm_digest", self.vlm.digest)
        except ValueError as error:
            raise BadInputError(str(error)) from error
        if trained_for != self.vlm.digest:
            raise BadInputError(f"{hypernetwork}: trained for VLM weights {trained_for}, recipe's vlm.model has {self.vlm.digest}")
        if "static" in self.settings.systems and not self.hypernetwork.config.static_adapter:
            raise BadInputError("recipe: answer.systems: `static` needs hypernetwork.static_adapter; leave it out")
        self.frames = frames
        self.place = {video_id: i for i, video_id in enumerate(frames["video_id"].to_pylist())}
        self.captions = captions
        self.videos: dict[str, Video] = {}

    @torch.no_grad()
    def __call__(self, block: Block, timed: frozenset[str]) -> tuple[list[Row], list[Row]]:
        """Rows of `answers` and rejects: one of the two for each question and system."""
        wanted = list(dict.fromkeys([*block.others, *(block.others.values() if "other_video" in self.settings.systems else ())]))
        self.videos = {video_id: self.videos.get(video_id) or self._video(video_id) for video_id in wanted}
        rows, rejects = [], []
        size = self.settings.questions_per_batch
        for system in self.settings.systems:
            able, refused = self._able(system, block)
            rejects += refused
            for start in range(0, len(able), size):
                rows += self._answers(system, able[start : start + size], block)
        ttft_s = self._times([row for row in block.questions if row["question_id"] in timed], block, rows)
        for row in rows:
            row["ttft_s"] = ttft_s.get((row["question_id"], row["system"]))
        return rows, rejects

    def _video(self, video_id: str) -> Video:
        (row,) = self.frames.slice(self.place[video_id], 1).to_pylist()
        frames = frames_of(row)
        features = self.vlm.features([frames], opens_answer=self.hypernetwork.config.opens_answer)
        lora = self.hypernetwork.with_static(self.hypernetwork(features.hidden, features.mask))
        return Video(frames, self.vlm.frame_tokens([frames]), lora)

    def _able(self, system: str, block: Block) -> tuple[list[Row], list[Row]]:
        """Questions that this system can answer, and a reject for each of the rest."""
        able, rejects = [], []
        longest = self.vlm.n_positions - self.settings.max_new_tokens
        for question in block.questions:
            key = f"{question['question_id']}/{system}"
            if system == "caption" and question["video_id"] not in self.captions:
                rejects.append(reject("answer", key, "no_targets", "the teacher wrote neither summary nor caption"))
                continue
            batch = self._batch(system, [question])
            n_tokens, n_visual = batch.input_ids.shape[1], self.vlm.n_visual_tokens(batch)[0]
            n_expected = self.videos[question["video_id"]].frame_tokens.shape[:2].numel() if system == "base" else 0
            if n_visual != n_expected:  # the tokenizer reads `<image>` in a text as the token
                rejects.append(reject("answer", key, "bad_row", f"got {n_visual} image tokens, expected {n_expected}"))
            elif n_tokens > longest:
                rejects.append(reject("answer", key, "prompt_too_long", f"got {n_tokens} tokens, expected at most {longest}"))
            else:
                able.append(question)
        return able, rejects

    def _batch(self, system: str, questions: Sequence[Row]) -> TextBatch:
        texts = [row["question"] for row in questions]
        if system == "base":
            return self.vlm.video_batch([self.videos[row["video_id"]].frames for row in questions], texts)
        if system == "caption":
            said = [self.captions[row["video_id"]] for row in questions]
            return self.vlm.question_batch([f"{c}\n\n{text}" for c, text in zip(said, texts, strict=True)])
        return self.vlm.question_batch(texts)

    def _under_adapter(self, system: str, questions: Sequence[Row], block: Block) -> AbstractContextManager[None]:
        """The VLM as this system has it: with each row's own adapter, with the static one, or bare."""
        if system == "static":
            return adapted(self.vlm.layers, self.hypernetwork.static_lora())
        if system not in ("ours", "other_video"):
            return nullcontext()
        own = [row["video_id"] for row in questions]
        whose = own if system == "ours" else [block.others[video_id] for video_id in own]
        different = list(dict.fromkeys(whose))
        loras = stack([self.videos[video_id].lora for video_id in different])
        return adapted(self.vlm.layers, select(loras, torch.tensor([different.index(video_id) for video_id in whose])))

    def _answers(self, system: str, questions: Sequence[Row], block: Block) -> list[Row]:
        batch = self._batch(system, questions)
        if system != "base" and any(self.vlm.n_visual_tokens(batch)):
            raise StageFailedError(f"system {system}: got image tokens in the prompt, expected none")
        tokens = torch.cat([self.videos[row["video_id"]].frame_tokens for row in questions]) if system == "base" else None
        with self._under_adapter(system, questions, block):
            answers = self.vlm.generate(batch, max_new_tokens=self.settings.max_new_tokens, frame_tokens=tokens)
        return [_row(question, system, answer) for question, answer in zip(questions, answers, strict=True)]

    def _times(self, questions: Sequence[Row], block: Block, answered: Sequence[Row]) -> dict[tuple[str, str], float]:
        """Seconds to the first token by (question_id, system), each alone; one round before that warms up and is thrown away."""
        able = {(row["question_id"], row["system"]) for row in answered}
        times: dict[tuple[str, str], float] = {}
        for question in [*questions[:1], *questions]:  # systems take turns, so that a busy moment hits all of them
            for system in self.settings.systems:
                if (question["question_id"], system) in able:
                    times[question["question_id"], system] = self._time(system, question, block)
        return times

    def _time(self, system: str, question: Row, block: Block) -> float:
        batch = self._batch(system, [question])
        videos = [self.videos[question["video_id"]].frames] if system == "base" else None
        with self._under_adapter(system, [question], block):
            return self.vlm.time_to_first_token(batch, videos)


def frames_of(row: dict[str, Any]) -> Frames:
    """A row of `frames` as pictures. Raises StageFailedError for a JPEG that cannot be read."""
    try:
        images = from_jpegs(row["jpegs"])
    except ValueError as error:
        message = f"frames of video {row['video_id']} are damaged ({error}); remove the table `frames` to make it anew"
        raise StageFailedError(message) from error
    return Frames(images, np.asarray(row["timestamps_s"], dtype=np.float64), row["duration_s"])


def _row(question: Row, system: str, answer: Answer) -> Row:
    return {
        "question_id": question["question_id"],
        "system": system,
        "answer": answer.text,
        "n_input_tokens": answer.n_input_tokens,
        "n_visual_tokens": answer.n_visual_tokens,
    }
