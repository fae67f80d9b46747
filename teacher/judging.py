"""What judges are to mark -> rows of `judgements`, and a reject for each that no reply gave a mark.

Everything between the planning of a run and its commits, as `write_targets` is for targets: `JudgeAnswers` is the actor that Ray Data
calls block by block, and works as well in a plain loop. A reply that is not what the schema asks for is kept, and asked for again with
what was wrong with it: at temperature 0 the same words would get the same reply.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from infra.attempt import ShardWriter, reject
from infra.config import TeacherSettings
from infra.evaluation_config import JudgeModel
from infra.judged import Judged
from teacher.engine import Clip, Refused, Written
from teacher.lasting import LastingEngine, Plan
from teacher.marking import Mark, mark_of, told, whole_letters
from teacher.measures import Measures
from teacher.prompts import Prompt

STAGE = "judge"

Row = dict[str, Any]


@dataclass
class Case:
    """One answer on its way to its mark."""

    judged: Judged
    replies: list[str] = field(default_factory=list)
    problem: str = ""  # of the last reply
    mark: Mark | None = None
    refused: Refused | None = None

    @property
    def is_open(self) -> bool:
        return self.mark is None and self.refused is None

    def clip(self) -> Clip:
        """As engines are asked. Raises ValueError for what cannot be marked."""
        key = self.judged.judgement_id
        return Clip(key, (), (), 0.0, [Prompt(key, self.judged.task, told(self.judged, problem=self.problem))])

    def hear(self, result: Written | Refused) -> None:
        """Take a reply, or why there is none."""
        if isinstance(result, Refused):
            self.refused = result
            return
        reply, is_cut_off = whole_letters(result.text), result.finish_reason == "length"
        self.replies.append(reply)
        try:
            self.mark = mark_of(reply, is_cut_off=is_cut_off)
        except ValueError as error:
            cut = f", and was cut off after {result.n_tokens} tokens" if is_cut_off else ""
            self.problem = f"{error}{cut}"

    def row(self) -> Row:
        """Of `judgements`, where there is a mark."""
        assert self.mark is not None
        return {
            "judgement_id": self.judged.judgement_id,
            "score": self.mark.score,
            "points": self.mark.points,
            "rationale": self.mark.rationale,
            "replies": self.replies,
        }

    def reject(self) -> Row:
        """Where there is none."""
        if self.refused is not None:
            return reject(STAGE, self.judged.judgement_id, self.refused.reason, self.refused.detail)
        detail = f"{self.problem}; its {len(self.replies)} replies: {json.dumps(self.replies, ensure_ascii=False)}"
        return reject(STAGE, self.judged.judgement_id, "judge_error", detail)


def engine_settings(judge: JudgeModel) -> TeacherSettings:
    """Of the engine that serves it; `teacher` names settings as the recipe's section `teacher` does."""
    return TeacherSettings(**judge.model_dump(include=set(JudgeModel.model_fields)))


class JudgeAnswers:
    """Holds an engine, which takes seconds to start, and what was measured since the last block."""

    def __init__(self, plan: Plan, writer: ShardWriter, n_tries: int) -> None:
        self.writer, self.n_tries = writer, n_tries
        self.lasting = LastingEngine(plan, stage=STAGE, unit="answers")
        self.waiting_since = time.monotonic()

    def __call__(self, asked: pa.Table) -> pa.Table:
        """Rows of what to mark -> what describes the files of their judgements and rejects, one of each."""
        from infra.flow import told as handed_on  # brings Ray

        rows, rejects = self.write([judged_of(row) for row in asked.to_pylist()])
        return handed_on(self.writer.write(rows, rejects), self.take_measures().as_sums())

    def write(self, asked: Sequence[Judged]) -> tuple[list[Row], list[Row]]:
        """Rows and rejects. Raises StageFailedError where it is the engine that cannot go on, whatever it is asked."""
        self.lasting.measures.waiting_s += time.monotonic() - self.waiting_since
        cases = [Case(one) for one in asked]
        for _ in range(self.n_tries):
            self._ask_once([case for case in cases if case.is_open])
        self.waiting_since = time.monotonic()
        rows = [case.row() for case in cases if case.mark is not None]
        return rows, [case.reject() for case in cases if case.mark is None]

    def take_measures(self) -> Measures:
        return self.lasting.take_measures()

    def stop(self) -> None:
        """End the engine and its processes, where the actor does not end with them."""
        self.lasting.stop()

    def _ask_once(self, cases: Sequence[Case]) -> None:
        clips, asked = [], []
        for case in cases:
            try:
                clips.append(case.clip())
                asked.append(case)
            except ValueError as error:  # questions of another hand
                case.refused = Refused("bad_row", str(error))
        for case, (result,) in zip(asked, self.lasting.write(clips) if clips else (), strict=True):
            case.hear(result)
            measures = self.lasting.measures
            measures.n_prompts += 1
            if isinstance(result, Written):
                measures.n_prompt_tokens += result.n_prompt_tokens
                measures.n_tokens += result.n_tokens


def judged_of(row: Row) -> Judged:
    """What `row_of` made a row of."""
    return Judged(row["task"], row["question"], tuple(row["references"]), row["answer"])


def row_of(judged: Judged) -> Row:
    """As blocks of a flow have it."""
    return {"task": judged.task, "question": judged.question, "references": list(judged.references), "answer": judged.answer}
