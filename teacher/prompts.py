"""What the teacher is asked about each video, as data: named sets of prompts.

`mixed`: one wording of "summarize" and one of "caption" per video, and the video's own questions where it is trained or validated
on; a test video's questions are never put to the teacher, so no target can hold their answers.
`paper`: one of five captioning prompts per video and nothing else (arXiv 2606.04351 section 4.1: two for scenes, two for adjacent
scenes, one for full videos; the words here are ours). Paper picks by sha256 of the sample's id; so do we, in both sets, but over
all five: a row of `videos` does not say which kind of span it is.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infra.storage import digest

QUESTION = "question"
ASKED_SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Prompt:
    """One prompt of one video; for a question, `prompt_id` is the question's id."""

    prompt_id: str
    task: str
    prompt: str


@dataclass(frozen=True)
class PromptSet:
    """For each group one wording per video. `groups` maps a group to its task and its wordings by prompt_id."""

    name: str
    groups: Mapping[str, Sequence[Prompt]]
    asks_questions: bool

    @property
    def version(self) -> str:
        """Changes whenever a task, an id or a word does: part of what made a table of targets."""
        return digest(f"{group} {one.prompt_id} {one.task} {one.prompt}" for group, of in self.groups.items() for one in of)


def _wordings(task: str, name: str, *texts: str) -> tuple[Prompt, ...]:
    return tuple(Prompt(f"{name}-{i}", task, text) for i, text in enumerate(texts, start=1))


MIXED = PromptSet(
    "mixed",
    {
        "summary": _wordings("summary", "summary", "Summarize the video.", "Give a summary of this video.", "What is this video about?"),
        "caption": _wordings(
            "caption", "caption", "Caption the video.", "Write a short caption for this video.", "Describe the video briefly."
        ),
    },
    asks_questions=True,
)
PAPER = PromptSet(
    "paper",
    {
        "caption": (
            *_wordings("caption", "scene", "Describe what happens in this scene.", "Tell what this scene shows, and how it unfolds."),
            *_wordings(
                "caption",
                "adjacent",
                "Describe these scenes and how one leads to the next.",
                "Tell what happens across these scenes, in their order.",
            ),
            *_wordings("caption", "full", "Describe the whole video, from its beginning to its end."),
        )
    },
    asks_questions=False,
)
PROMPT_SETS = {one.name: one for one in (MIXED, PAPER)}


def prompts_of(video_id: str, *, split: str, questions: Sequence[Prompt], prompt_set: PromptSet) -> list[Prompt]:
    """A video's prompts in a fixed order. `questions` are its own, whatever its split."""
    picked = [of[_draw(f"{video_id} {group}", len(of))] for group, of in prompt_set.groups.items()]
    asked = questions if prompt_set.asks_questions and split in ASKED_SPLITS else ()
    return [*picked, *sorted(asked, key=lambda one: one.prompt_id)]


def _draw(text: str, n: int) -> int:
    """A number below n that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % n
