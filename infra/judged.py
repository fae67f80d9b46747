"""What a judge is given of an answer, and the key of what it says: the same words are judged once, whoever asks and however often.

A row of `judgements` is found again by its content alone, so answers of other seeds, checkpoints and recipes that came out the same cost
nothing, and neither does judging a second time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.digests import short_hash


@dataclass(frozen=True)
class Judged:
    """An answer as its judge sees it. `task` is question or caption."""

    task: str
    question: str
    references: tuple[str, ...]
    answer: str

    @property
    def judgement_id(self) -> str:
        return short_hash([self.task, self.question, list(self.references), self.answer], n_digits=20)


def judged(question: Mapping[str, Any], answer: str) -> Judged:
    """Of a row of `questions` and an answer to it."""
    return Judged(question["task"], question["question"], tuple(question["references"]), answer)
