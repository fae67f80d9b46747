"""The stage, by an endpoint over real sockets: what is asked and kept, once for the same words, again where a run broke off."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import retry
from infra.config import Recipe, Where
from infra.errors import BadInputError, StageFailedError
from infra.evaluation_config import JudgeModel, JudgeSettings
from infra.sets import made_judgements
from teacher import endpoint, judge
from tests.teacher.judge_server import JudgeServer, judge_server
from tests.teacher.judged_root import ANSWERS, N_WORDS, a_recipe, make_root

ROOT = Path(__file__).parents[2]
JUDGE = JudgeSettings(model="org/judge", served_by="endpoint")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none-of-it")
    monkeypatch.setattr(endpoint, "FIRST_PAUSE_S", 0.001)
    with judge_server() as one:
        yield one


def at(where: Where, server: JudgeServer) -> Where:
    return where.model_copy(update={"teacher_endpoint": server.url})


def rows_of(recipe: Recipe, where: Where, *, of_second: bool = False) -> dict[str, dict[str, Any]]:
    """By answer, of which no two questions share one here."""
    assert recipe.judge is not None
    table = made_judgements(recipe.judge.second if of_second and recipe.judge.second else recipe.judge, where.data)
    words = {key: one.answer for key, one in judge.asked_words(recipe, where).items()}
    return {words[row["judgement_id"]]: row for row in table.read().to_pylist()}


def answering(**said: str) -> dict[tuple[str, str], str]:
    """The usual answers, but of some systems to q1."""
    return ANSWERS | {("q1", system): answer for system, answer in said.items()}


def test_each_set_of_words_is_judged_once_and_its_mark_kept(server: JudgeServer, tmp_path: Path) -> None:
    recipe = a_recipe(JUDGE)
    where = at(make_root(recipe, tmp_path, ANSWERS), server)
    assert judge.run(recipe, where) == f"judgements: {N_WORDS} rows, 0 rejects"
    rows = rows_of(recipe, where)
    assert rows.keys() == set(ANSWERS.values())
    assert {answer: (row["points"], row["score"]) for answer, row in rows.items() if row["points"] > 1} == {
        "red": (5, 1.0), "three": (5, 1.0), "Three dogs run after a ball.": (5, 1.0),
    }  # fmt: skip
    assert rows["blue"]["score"] == 0.2 and rows["blue"]["rationale"] == "try 1"
    assert rows["blue"]["replies"] == ['{"extracted": "blue", "rationale": "try 1", "points": 1}']
    assert set(server.tries.values()) == {1}
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("org/judge", 0.0, 1024)
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["extracted", "rationale", "points"]


def test_a_second_run_asks_nobody(server: JudgeServer, tmp_path: Path) -> None:
    recipe = a_recipe(JUDGE)
    where = make_root(recipe, tmp_path, ANSWERS)
    first = judge.run(recipe, at(where, server))
    assert judge.run(recipe, where) == first, "where there is no endpoint at all"


def test_words_of_another_seed_and_another_recipe_are_judged_where_they_are_new(server: JudgeServer, tmp_path: Path) -> None:
    recipe = a_recipe(JUDGE, seeds=(42, 43))
    where = at(make_root(recipe, tmp_path, ANSWERS, answering(ours="purple", blind="red")), server)
    of_first = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"seeds": (42,)})})
    judge.run(of_first, where)
    assert judge.run(recipe, where) == f"judgements: {N_WORDS + 1} rows, 0 rejects"
    assert server.tries["purple"] == 1 and set(server.tries.values()) == {1}
    assert judge.run(of_first, where) == f"judgements: {N_WORDS} rows, 0 rejects", "nothing of it is asked again"
    assert set(server.tries.values()) == {1}


def test_a_broken_reply_is_kept_and_asked_for_again_with_what_was_wrong(server: JudgeServer, tmp_path: Path) -> None:
    recipe = a_recipe(JUDGE)
    where = at(make_root(recipe, tmp_path, answering(ours="Fail once.", blind="Think.")), server)
    judge.run(recipe, where)
    rows = rows_of(recipe, where)
    assert rows["Fail once."]["replies"][0] == "I would give it {4} points."
    assert (len(rows["Fail once."]["replies"]), rows["Fail once."]["rationale"]) == (2, "try 2")
    assert len(rows["Think."]["replies"]) == 1 and rows["Think."]["points"] == 1
    again = [one["messages"][0]["content"] for one in server.bodies if "could not be used" in one["messages"][0]["content"]]
    assert len(again) == 1 and "could not be used: it is no JSON" in again[0]


def test_an_answer_without_a_mark_is_a_reject_and_the_others_are_judged(server: JudgeServer, tmp_path: Path) -> None:
    recipe = a_recipe(JUDGE)
    where = at(make_root(recipe, tmp_path, answering(base="Half a letter.", ours="Never stop.", blind="Seven.")), server)
    assert judge.run(recipe, where) == f"judgements: {N_WORDS - 2} rows, 2 rejects (judge_error 2)"
    assert rows_of(recipe, where)["Half a letter."]["replies"][0] == "Half of one: ?"
    details = sorted(made_judgements(JUDGE, where.data).read_rejects()["detail"].to_pylist())
    assert details[0].startswith('it has no whole JSON object, and was cut off after 100 tokens; its 3 replies: ["<think>Well')
    assert details[1].startswith("points: Input should be less than or equal to 5; its 3 replies: [")
    assert server.tries["Never stop."] == server.tries["Seven."] == 3


def test_rejects_are_judged_again_by_retry(server: JudgeServer, tmp_path: Path) -> None:
    recipe = a_recipe(JUDGE.model_copy(update={"n_tries": 1}))
    where = at(make_root(recipe, tmp_path, answering(ours="Fail once.")), server)
    assert judge.run(recipe, where) == f"judgements: {N_WORDS - 1} rows, 1 rejects (judge_error 1)"
    retry.run(recipe, where, reason="judge_error")
    assert made_judgements(JUDGE, where.data).n_rejects() == 0
    assert server.tries == dict.fromkeys(server.tries, 1) | {"Fail once.": 2}
    assert rows_of(recipe, where)["Fail once."]["rationale"] == "try 2"


def test_an_endpoint_without_schemas_is_asked_without(server: JudgeServer, tmp_path: Path) -> None:
    server.takes_schema = False
    recipe = a_recipe(JUDGE)
    where = at(make_root(recipe, tmp_path, ANSWERS), server).model_copy(update={"teacher_max_num_seqs": 1})
    assert judge.run(recipe, where) == f"judgements: {N_WORDS} rows, 0 rejects"
    assert ["response_format" in body for body in server.bodies] == [True, *[False] * N_WORDS], "refused once, and not tried again"


def test_a_run_that_broke_off_goes_on_behind_what_it_had_committed(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "PER_BLOCK", 3)
    recipe = a_recipe(JUDGE)
    where = at(make_root(recipe, tmp_path, ANSWERS), server).model_copy(update={"teacher_max_num_seqs": 1})
    server.is_down_after = 4
    with pytest.raises(StageFailedError, match="3 answers one after the other killed an engine each"):
        judge.run(recipe, where)
    with pytest.raises(BadInputError, match="no complete set of this recipe's judge"):
        made_judgements(JUDGE, where.data)
    n_before, server.is_down_after = server.tries.total(), None
    assert n_before == 4
    assert judge.run(recipe, where) == f"judgements: {N_WORDS} rows, 0 rejects"
    assert server.tries.total() == N_WORDS + 1, "of the block that was lost one had been judged"


def test_a_killed_run_goes_on_too(server: JudgeServer, tmp_path: Path) -> None:
    """kill -9 of the process, while its second block is with the endpoint."""
    recipe = a_recipe(JUDGE)
    where = at(make_root(recipe, tmp_path, ANSWERS), server)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True)))
    server.keeps_waiting_after = 3
    code = "from teacher import judge; judge.PER_BLOCK = 3; judge.main()"
    variables = {"VIDEO2LORA_DATA": where.data, "VIDEO2LORA_TEACHER_ENDPOINT": server.url}
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "recipe.yaml")], cwd=ROOT, env=os.environ | variables)
    try:
        deadline = time.monotonic() + 60
        while len(server.bodies) < 6 and time.monotonic() < deadline:
            assert run.poll() is None
            time.sleep(0.02)
    finally:
        run.kill()
        run.wait()
    assert (len(server.bodies), server.tries.total()) == (6, 3)
    server.keeps_waiting_after = None
    assert judge.run(recipe, where) == f"judgements: {N_WORDS} rows, 0 rejects"
    assert len(server.bodies) == 6 + N_WORDS - 3, "what had been committed is not asked again"


def test_the_second_judge_marks_a_sample_into_its_own_set(server: JudgeServer, tmp_path: Path) -> None:
    second = JudgeModel(model="org/other", served_by="endpoint")
    recipe = a_recipe(JUDGE.model_copy(update={"second": second, "n_second": 5}))
    where = at(make_root(recipe, tmp_path, ANSWERS), server)
    assert judge.run(recipe, where) == f"judgements: {N_WORDS} rows, 0 rejects; second judgements: 5 rows, 0 rejects"
    sample = rows_of(recipe, where, of_second=True).keys()
    assert len(sample) == 5
    assert {body["model"] for body in server.bodies} == {"org/judge", "org/other"}
    smaller = recipe.model_copy(update={"judge": JUDGE.model_copy(update={"second": second, "n_second": 3})})
    n_before = len(server.bodies)
    judge.run(smaller, where)
    assert rows_of(smaller, where, of_second=True).keys() < sample
    assert len(server.bodies) == n_before


def test_questions_without_a_task_are_rejects(server: JudgeServer, tmp_path: Path) -> None:
    recipe = a_recipe(JUDGE)
    where = at(make_root(recipe, tmp_path, ANSWERS), server)
    words = list(judge.asked_words(recipe, where).values())
    plan = judge._one_judge(JUDGE, "judge", recipe, where).plan
    judging = judge.JudgeAnswers(plan, writer=None, n_tries=2)  # type: ignore[arg-type]
    rows, rejects = judging.write([words[0], type(words[0])(None, "What?", ("it",), "it")])  # type: ignore[arg-type]
    judging.stop()
    assert [row["judgement_id"] for row in rows] == [words[0].judgement_id]
    assert [(one["reason"], one["detail"]) for one in rejects] == [("bad_row", "task: got None, expected question or caption")]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    recipe = a_recipe(JUDGE)
    where = make_root(recipe, tmp_path, ANSWERS)
    with pytest.raises(BadInputError, match=r"recipe: judge is not set.*judge\.model"):
        judge.run(a_recipe(None), where)
    with pytest.raises(BadInputError, match=r"VIDEO2LORA_TEACHER_ENDPOINT is not set, and the recipe has judge\.served_by"):
        judge.run(recipe, where)
    with pytest.raises(BadInputError, match=r"judge\.second\.model: got '/no/such/model'"):
        judge._one_judge(JudgeModel(model="/no/such/model"), "judge.second", recipe, where)
    unanswered = a_recipe(JUDGE, seeds=(42, 43))
    with pytest.raises(BadInputError, match="video2lora train"):
        judge.run(unanswered, where)
