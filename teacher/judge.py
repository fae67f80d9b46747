"""`answers` x `questions` -> `judgements`: marks of 0 to 5 points by the recipe's judge, and by its second one for a sample.

Reads     answers of every training seed of the recipe; questions, for what was asked and the references.
Writes    judgements, one for each different set of words (`infra.judged`), so that words that were judged before cost nothing. Rejects:
          judge_error (no reply was what the schema asks for), prompt_too_long, bad_row (no rubric for its task, or no reference),
          teacher_error.
Command   video2lora judge --recipe RECIPE
Cost      a request for each different answer: about 500 tokens of rubric, which vLLM reads once, and the words in, about 100 out, or, of a
          judge that thinks, up to judge.max_tokens. vLLM takes a minute or more to start with a large model.

The judge is served as the teacher is: by vLLM through Ray, or by the endpoint of VIDEO2LORA_TEACHER_ENDPOINT, which this process asks by
itself. Who is in the second judge's sample, the words' hash decides: the same answers whenever, and mostly the same when some are added.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from infra import metrics
from infra.attempt import Attempt, ShardWriter
from infra.config import Recipe, Where, load_recipe, load_where
from infra.errors import BadInputError
from infra.evaluation_config import JudgeModel
from infra.judged import Judged, judged
from infra.progress import counting, say
from infra.sets import answers_set, judgements_made, judgements_set, register
from infra.stage import Order, failing, summary
from infra.storage import Table
from teacher.capacity import check_room, engine_count
from teacher.engine import engine_options
from teacher.judging import STAGE, JudgeAnswers, engine_settings, row_of
from teacher.lasting import Plan, teacher_name
from teacher.marking import rubrics_digest, schema
from teacher.measures import sampled, summed
from teacher.models import find_model
from teacher.vllm_settings import engine_environment

if TYPE_CHECKING:
    import ray.data

PER_BLOCK = 256  # answers in one commit, all of which are with the engine at once: as many as vLLM takes by itself
ASKED = pa.schema([("task", pa.string()), ("question", pa.string()), ("references", pa.list_(pa.string())), ("answer", pa.string())])

Words = dict[str, Judged]


@dataclass(frozen=True)
class OneJudge:
    """One of the recipe's judges: its plan, its table, and what the table is asked for."""

    name: str  # as the recipe has it: judge, or judge.second
    plan: Plan
    table: Table
    made: dict[str, Any]
    asked: dict[str, Any]


def words_of(questions: Sequence[dict[str, Any]], answers: Sequence[pa.Table]) -> Words:
    """All that is to be judged, once each, by its key."""
    by_id = {row["question_id"]: row for row in questions}
    every = (judged(by_id[row["question_id"]], row["answer"]) for rows in answers for row in rows.to_pylist())
    return {one.judgement_id: one for one in every}


def blocks_of(words: Words, left: set[str]) -> list[list[Judged]]:
    """What is left, in the order of its keys: one task's answers mostly do not stand together, so blocks take about as long."""
    todo = [words[key] for key in sorted(words) if key in left]
    return [todo[at : at + PER_BLOCK] for at in range(0, len(todo), PER_BLOCK)]


def build(ds: "ray.data.Dataset", plan: Plan, writer: ShardWriter, *, n_tries: int, where: Where, n_engines: int) -> "ray.data.Dataset":
    """Blocks of what to mark -> what describes the files they came to."""
    import ray.data

    # 1. words -> files of judgements and rejects, a block at a time. An engine per GPU, or per `teacher_cpus` cores, as for targets.
    return ds.map_batches(
        JudgeAnswers,
        fn_constructor_args=(plan, writer, n_tries),
        batch_size=PER_BLOCK,  # a block; with GPUs Ray Data asks for a number
        batch_format="pyarrow",
        num_cpus=where.teacher_cpus,
        num_gpus=where.teacher_gpus,
        compute=ray.data.ActorPoolStrategy(size=n_engines),
        runtime_env={"env_vars": engine_environment(plan.model, plan.options)},
    )


def run(recipe: Recipe, where: Where) -> str:
    """Raises BadInputError, StorageError, RowsLostError, StageFailedError, SupersededError."""
    if recipe.judge is None:
        raise BadInputError(
            "recipe: judge is not set, so there is nobody to judge: set judge.model to a model that vLLM serves here (the paper's is "
            "Qwen/Qwen3-VL-30B-A3B-Thinking-FP8), or to an endpoint's with judge.served_by: endpoint; see docs/judge.md"
        )
    told = [_by_one(_one_judge(recipe.judge, "judge", recipe, where), recipe, where)]
    if recipe.judge.second is not None:
        second = _one_judge(recipe.judge.second, "judge.second", recipe, where)
        told.append(_by_one(second, recipe, where, n_sampled=recipe.judge.n_second))
    return "; second ".join(told)


def asked_words(recipe: Recipe, where: Where) -> Words:
    """All that the recipe's judge is to mark."""
    answers = [answers_set(one, where.data).read(["question_id", "answer"]) for one in recipe.of_seeds()]
    return words_of(Table(where.data, "questions").read().to_pylist(), answers)


def main() -> None:
    """python -m teacher.judge RECIPE"""
    print(run(load_recipe(sys.argv[1]), load_where()))


def _one_judge(judge: JudgeModel, name: str, recipe: Recipe, where: Where) -> OneJudge:
    """Raises BadInputError where a model or an input is not there."""
    settings = engine_settings(judge)
    model, rubrics = find_model(settings, section=name), rubrics_digest()
    weights = teacher_name(model, settings)
    plan = Plan(model, settings, engine_options(where), n_frames=0, schema=schema(with_lengths=settings.served_by == "vllm"))
    inputs = {"questions": Table(where.data, "questions").made_from()}
    for one in recipe.of_seeds():
        inputs[f"answers.{one.training.seed}"] = answers_set(one, where.data).made_from()
    asked: dict[str, Any] = {"inputs": inputs}
    if recipe.judge is not None and name == "judge.second":
        asked["n_second"] = recipe.judge.n_second
    table = judgements_set(judge, where.data, weights=weights, rubrics=rubrics)
    return OneJudge(name, plan, table, judgements_made(judge, weights=weights, rubrics=rubrics), asked)


def _by_one(judge: OneJudge, recipe: Recipe, where: Where, *, n_sampled: int | None = None) -> str:
    """What this judge has not marked yet; a line on what there is then."""
    if judge.table.finished(judge.asked):
        register(judge.table, judge.made)
        say(f"{judge.name}: {judge.table.folder} is complete, nothing to do")
        return summary(judge.table)
    words = asked_words(recipe, where)
    if n_sampled is not None:
        words = {key: words[key] for key in sampled(words, n=n_sampled)}
    attempt = Order(judge.table, judge.asked, sorted(words), judge.made).begin()
    n_left, measures = len(attempt.left), {}
    if n_left < len(words):
        say(f"{judge.name}: {len(words) - n_left} of {len(words)} answers were judged before")
    if n_left:
        check_room(judge.plan)
        n_tries = recipe.judge.n_tries if recipe.judge is not None else 1
        started = time.monotonic()
        sums = _mark(judge, attempt, blocks_of(words, attempt.left), n_tries=n_tries, where=where)
        measures = {**sums, "seconds": time.monotonic() - started}
        cost = summed(sums)
        say(f"{judge.name}: {cost.n_prompts:.0f} requests, {cost.n_prompt_tokens:,.0f} tokens read and {cost.n_tokens:,.0f} written")
    attempt.complete(measures=measures)
    return summary(judge.table)


def _mark(judge: OneJudge, attempt: Attempt, blocks: list[list[Judged]], *, n_tries: int, where: Where) -> dict[str, float]:
    """Have the blocks marked and committed. Returns what was measured."""
    n = sum(map(len, blocks))
    if judge.plan.settings.served_by == "endpoint":
        return _mark_here(judge, attempt, blocks, n_tries=n_tries)
    import ray.data  # here, so that a run with nothing to do starts in a second

    from infra.cluster import cluster, nodes
    from infra.flow import commit_as_it_comes

    with cluster(where), failing(STAGE), counting(judge.name, "answers", n) as counter:
        n_engines = engine_count(n, nodes(where), where, stage=STAGE)
        metrics.ENGINES.set(n_engines, stage=STAGE)
        say(f"{judge.name}: {n} answers; starting {n_engines} vLLM engine(s) with {judge.plan.teacher}")
        tables = [pa.Table.from_pylist([row_of(one) for one in block], schema=ASKED) for block in blocks]
        ds = build(ray.data.from_blocks(tables), judge.plan, attempt.writer(), n_tries=n_tries, where=where, n_engines=n_engines)
        return {**commit_as_it_comes(ds, attempt, counter, stall_s=where.stall_s), "n_engines": n_engines}


def _mark_here(judge: OneJudge, attempt: Attempt, blocks: list[list[Judged]], *, n_tries: int) -> dict[str, float]:
    """By an endpoint: this process only waits for it, and needs no Ray for that."""
    judging = JudgeAnswers(judge.plan, attempt.writer(), n_tries)
    try:
        with counting(judge.name, "answers", sum(map(len, blocks))) as counter:
            for block in blocks:
                counter.advance(attempt.write(*judging.write(block)))
        return judging.take_measures().as_sums()
    finally:
        judging.stop()


if __name__ == "__main__":
    main()
