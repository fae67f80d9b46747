"""Answers, questions and judgements -> the report's rows: one for each question, system and training, with every score.

The same words about the same question are marked once: systems that no training changes say the same for every seed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from infra.config import Recipe, Where
from infra.contents import contents_of
from infra.errors import BadInputError
from infra.evaluation_config import JudgeModel
from infra.judged import judged
from infra.progress import counting
from infra.sets import answers_set, made_judgements
from infra.state import REJECTS, ROWS
from infra.storage import Table
from training.scores import score_of
from training.wups import Wups, open_wordnet
from video2lora.scoring import degeneration

SCHEMA = pa.schema(
    {
        "question_id": pa.string(), "video_id": pa.string(),
        "content": pa.string(),  # of the file: spans of one are no videos of their own to statistics
        "benchmark": pa.string(), "style": pa.string(), "task": pa.string(),
        "question": pa.string(), "references": pa.list_(pa.string()), "system": pa.string(), "seed": pa.int64(), "answer": pa.string(),
        "token_f1": pa.float64(), "exact_match": pa.float64(), "rouge_l": pa.float64(), "wups": pa.float64(),
        "judge": pa.float64(), "judge_points": pa.int32(), "judge_rationale": pa.string(),
        "degenerate": pa.string(),  # null where the answer is not broken
        "n_input_tokens": pa.int32(), "n_visual_tokens": pa.int32(), "ttft_s": pa.float64(),
    }
)  # fmt: skip
OF_QUESTION = ("question_id", "video_id", "benchmark", "style", "task", "question", "references")
OF_ANSWER = ("system", "answer", "n_input_tokens", "n_visual_tokens", "ttft_s")

Facts = dict[str, Any]


def read(recipe: Recipe, where: Where) -> list[Facts]:
    """The rows of all the recipe's trainings. Raises BadInputError where one has no answers, or the judge has not seen all of them."""
    questions, answers = _asked(recipe, where)
    if not answers:
        raise BadInputError(f"{where.data}/answers is empty: all questions were rejected, there is nothing to report")
    said: dict[str, Facts] = {}
    if recipe.judge is not None:
        found = judgements_of(recipe.judge, recipe, where, columns=["judgement_id", "score", "points", "rationale"])
        said = {row["judgement_id"]: row for row in found.to_pylist()}
    contents = contents_of(where.data, {question["video_id"] for question in questions.values()})
    return rows_of(answers, questions, contents=contents, judgements=said, wups=open_wordnet(where.wordnet))


def judgements_of(judge: JudgeModel, recipe: Recipe, where: Where, *, columns: Sequence[str], kind: str = ROWS) -> pa.Table:
    """What a judge said of the recipe's answers, or the rejects. A set serves other recipes too, and may be asked of theirs since.

    Raises BadInputError where the judge was never asked.
    """
    return made_judgements(judge, where.data).read_keys(sorted(_judgement_ids(recipe, where)), columns, kind=kind)


def check_judged(recipe: Recipe, where: Where) -> None:
    """That the recipe's judge was asked of every answer there is: those of before alone are mostly the ones that equal base's.

    Raises BadInputError.
    """
    assert recipe.judge is not None, "a recipe without a judge"
    done = judgements_of(recipe.judge, recipe, where, columns=["judgement_id"])["judgement_id"].to_pylist()
    done += judgements_of(recipe.judge, recipe, where, columns=["key"], kind=REJECTS)["key"].to_pylist()
    ids = _judgement_ids(recipe, where)
    if left := ids - set(done):
        judge = recipe.judge.model
        raise BadInputError(
            f"{len(left)} of {len(ids)} different answers were not given to the judge {judge}: run `video2lora judge` first"
        )


def _judgement_ids(recipe: Recipe, where: Where) -> set[str]:
    questions, answers = _asked(recipe, where)
    return {judged(questions[row["question_id"]], row["answer"]).judgement_id for row in answers}


def _asked(recipe: Recipe, where: Where) -> tuple[dict[str, Facts], list[Facts]]:
    """Questions by their ids, and the answers of all the recipe's trainings with their seeds."""
    questions = {row["question_id"]: row for row in Table(where.data, "questions").read().to_pylist()}
    sets = [(one.training.seed, answers_set(one, where.data)) for one in recipe.of_seeds()]
    return questions, [row | {"seed": seed} for seed, table in sets for row in table.read().to_pylist()]


def rows_of(
    answers: Sequence[Facts],
    questions: Mapping[str, Facts],
    *,
    contents: Mapping[str, str],
    judgements: Mapping[str, Facts],
    wups: Wups | None,
) -> list[Facts]:
    """Rows by SCHEMA. `answers` are rows of the table with their seed; `judgements` stand under their ids, `contents` under videos'."""
    marked: dict[tuple[str, str], Facts] = {}
    rows = []
    with counting("report", "answers", len(answers)) as counter:
        for answer in answers:
            question = questions[answer["question_id"]]
            words = answer["question_id"], answer["answer"]
            if words not in marked:
                marked[words] = _marks(question, answer["answer"], judgements=judgements, wups=wups)
            of_question = {name: question[name] for name in OF_QUESTION} | {"content": contents[question["video_id"]]}
            rows.append(of_question | {name: answer[name] for name in OF_ANSWER} | {"seed": answer["seed"]} | marked[words])
            counter.advance()
    return rows


def _marks(question: Facts, answer: str, *, judgements: Mapping[str, Facts], wups: Wups | None) -> Facts:
    """Every score of an answer; null where it says nothing of this task: no caption equals its reference, nor is it a short answer."""
    is_question = question["task"] == "question"
    scores = score_of(answer, question["references"], wups=wups if is_question else None)
    judgement = judgements.get(judged(question, answer).judgement_id, {})
    return {
        **scores,
        "exact_match": scores["exact_match"] if is_question else None,
        "judge": judgement.get("score"),
        "judge_points": judgement.get("points"),
        "judge_rationale": judgement.get("rationale"),
        "degenerate": degeneration(answer, [*question["references"], question["question"]]),
    }
