"""The systems that answer: one frozen VLM, and what it is given beside the question.

    base          the video's frames in context
    sampled       base, with `sampled_frames` of the frames, evenly chosen, where all of them with the question do not fit the VLM's
                  positions; where they fit, its answer is base's, taken over and not generated twice
    ours          the adapter of the video, no frame
    merged        the same adapter, written into the weights: one video at a time
    composed      the adapters of the video's chunks, composed into one
    other_video   the adapter of another video
    static        the video-independent adapter alone
    blind         nothing
    caption       the teacher's words about the video, as text before the question
    champion      the adapter of the video by another hypernetwork, on the same frames

A video's pictures are decoded once and internalized once by each hypernetwork, however many questions and systems follow
(`training.videos`). Rows of a batch belong to different videos, so each row has its own adapter. That no image token reaches a system
other than base and sampled is checked on the very ids that the model is given. Decoding the JPEGs, internalizing and merging are outside
every time to first token.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import torch

from infra.attempt import reject
from infra.config import Recipe
from infra.errors import BadInputError, StageFailedError
from training.answer import Block, Row
from training.videos import Reader, Shown, Video, trained_for
from video2lora.lora import adapted, merged, select, stack
from video2lora.pretrained import load_vlm
from video2lora.vlm import Answer, TextBatch

IN_CONTEXT = ("base", "sampled")
ADAPTED = {"ours": "ours", "other_video": "ours", "composed": "composed", "champion": "champion"}  # to the adapter of `Video.loras`


class Systems:
    """VLM and hypernetworks, loaded once; called with a block, gives its answers and rejects. On a GPU where there is one."""

    def __init__(
        self, recipe: Recipe, *, hypernetwork: Path, frames: pa.Table, captions: dict[str, str], champion: Path | None = None
    ) -> None:
        """`frames` are rows of the table, one per video. Raises BadInputError where VLM, hypernetworks and recipe do not fit."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.settings = recipe.answer
        try:
            self.vlm = load_vlm(recipe.vlm.model, revision=recipe.vlm.revision, dtype=recipe.vlm.dtype, device=device)
        except ValueError as error:
            raise BadInputError(str(error)) from error
        self.hypernetwork = trained_for(self.vlm, hypernetwork)
        if "static" in self.settings.systems and not self.hypernetwork.config.static_adapter:
            raise BadInputError("recipe: answer.systems: `static` needs hypernetwork.static_adapter; leave it out")
        challenged = None if champion is None else trained_for(self.vlm, champion)
        self.reader = Reader(self.vlm, self.hypernetwork, challenged, self.settings)
        self.frames = frames
        self.place = {video_id: i for i, video_id in enumerate(frames["video_id"].to_pylist())}
        self.captions = captions
        self.videos: dict[str, Video] = {}

    @torch.no_grad()
    def __call__(self, block: Block, timed: frozenset[str]) -> tuple[list[Row], list[Row]]:
        """Rows of `answers` and rejects: one of the two for each question and system."""
        systems = self.settings.systems
        wanted = list(dict.fromkeys([*block.others, *(block.others.values() if "other_video" in systems else ())]))
        self.videos = {video_id: self.videos.get(video_id) or self._video(video_id) for video_id in wanted}
        able: dict[str, list[Row]] = {}
        rows, rejects = [], []
        for system in systems:
            able[system], refused = self._able(system, block)
            rejects += refused
        as_base = {row["question_id"] for row in able.get("base", [])} if "sampled" in systems else set()
        if as_base:  # what fits base is the same prompt
            able["sampled"] = [row for row in able["sampled"] if row["question_id"] not in as_base]
        for system in systems:
            for batch in self._batches(system, able[system]):
                rows += self._answers(system, batch, block)
        ttft_s = self._times([row for row in block.questions if row["question_id"] in timed], block, rows)
        for row in rows:
            row["ttft_s"] = ttft_s.get((row["question_id"], row["system"]))
        rows += [row | {"system": "sampled"} for row in rows if row["system"] == "base" and row["question_id"] in as_base]
        return rows, rejects

    def _video(self, video_id: str) -> Video:
        (row,) = self.frames.slice(self.place[video_id], 1).to_pylist()
        return self.reader(row)

    @property
    def _longest(self) -> int:
        """Tokens of a prompt that leaves room for the answer."""
        return self.vlm.n_positions - self.settings.max_new_tokens

    def _able(self, system: str, block: Block) -> tuple[list[Row], list[Row]]:
        """Questions that this system can answer, and a reject for each of the rest."""
        able, rejects = [], []
        for question in block.questions:
            key = f"{question['question_id']}/{system}"
            if system == "caption" and question["video_id"] not in self.captions:
                rejects.append(reject("answer", key, "no_targets", "the teacher wrote neither summary nor caption"))
                continue
            batch = self._batch(system, [question])
            n_tokens, n_visual = batch.input_ids.shape[1], self.vlm.n_visual_tokens(batch)[0]
            n_expected = self._shown(system, question).tokens.shape[:2].numel() if system in IN_CONTEXT else 0
            if n_visual != n_expected:  # the tokenizer reads `<image>` in a text as the token
                rejects.append(reject("answer", key, "bad_row", f"got {n_visual} image tokens, expected {n_expected}"))
            elif n_tokens > self._longest:
                rejects.append(reject("answer", key, "prompt_too_long", f"got {n_tokens} tokens, expected at most {self._longest}"))
            else:
                able.append(question)
        return able, rejects

    def _shown(self, system: str, question: Row) -> Shown:
        """The frames that a question is asked with in context."""
        video = self.videos[question["video_id"]]
        if system == "base" or video.fewer is video.whole:
            return video.whole
        everything = self.vlm.video_batch([video.whole.frames], [question["question"]])
        return video.whole if everything.input_ids.shape[1] <= self._longest else video.fewer

    def _batch(self, system: str, questions: Sequence[Row]) -> TextBatch:
        texts = [row["question"] for row in questions]
        if system in IN_CONTEXT:
            return self.vlm.video_batch([self._shown(system, row).frames for row in questions], texts)
        if system == "caption":
            said = [self.captions[row["video_id"]] for row in questions]
            return self.vlm.question_batch([f"{c}\n\n{text}" for c, text in zip(said, texts, strict=True)])
        return self.vlm.question_batch(texts)

    def _batches(self, system: str, questions: Sequence[Row]) -> Iterator[list[Row]]:
        """Questions that are answered together: of one video where its adapter is in the weights."""
        merging = system == "merged"
        for _, together in groupby(questions, key=lambda row: row["video_id"] if merging else ""):  # a video's stand side by side
            rows = list(together)
            for start in range(0, len(rows), self.settings.questions_per_batch):
                yield rows[start : start + self.settings.questions_per_batch]

    def _under_adapter(self, system: str, questions: Sequence[Row], block: Block) -> AbstractContextManager[None]:
        """The VLM as this system has it: with each row's own adapter, with one for all, or bare."""
        if system == "static":
            return adapted(self.vlm.layers, self.hypernetwork.static_lora())
        whose = [row["video_id"] for row in questions]
        if system == "merged":
            return merged(self.vlm.layers, self.videos[whose[0]].loras["ours"])
        if system not in ADAPTED:
            return nullcontext()
        if system == "other_video":
            whose = [block.others[video_id] for video_id in whose]
        different = list(dict.fromkeys(whose))
        loras = stack([self.videos[video_id].loras[ADAPTED[system]] for video_id in different])
        return adapted(self.vlm.layers, select(loras, torch.tensor([different.index(video_id) for video_id in whose])))

    def _answers(self, system: str, questions: Sequence[Row], block: Block) -> list[Row]:
        batch = self._batch(system, questions)
        if system not in IN_CONTEXT and any(self.vlm.n_visual_tokens(batch)):
            raise StageFailedError(f"system {system}: got image tokens in the prompt, expected none")
        tokens = torch.cat([self._shown(system, row).tokens for row in questions]) if system in IN_CONTEXT else None
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
        videos = [self._shown(system, question).frames] if system in IN_CONTEXT else None
        with self._under_adapter(system, [question], block):
            return self.vlm.time_to_first_token(batch, videos)


def _row(question: Row, system: str, answer: Answer) -> Row:
    return {
        "question_id": question["question_id"],
        "system": system,
        "answer": answer.text,
        "n_input_tokens": answer.n_input_tokens,
        "n_visual_tokens": answer.n_visual_tokens,
    }
