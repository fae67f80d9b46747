"""vLLM as the judge: a text model of random weights, whose replies mean nothing and fit the schema all the same, thinking first or not."""

import re
from pathlib import Path

import pytest
import ray
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from infra.config import TeacherSettings, Where
from infra.errors import BadInputError
from infra.evaluation_config import JudgeSettings
from infra.judged import Judged
from infra.sets import made_judgements
from teacher import judge
from teacher.marking import mark_of, told
from teacher.models import find_model
from teacher.vllm_settings import opens_thinking
from tests.teacher.judged_root import ANSWERS, N_WORDS, a_recipe, make_root
from video2lora.tiny.build import build_tokenizer, draw_weights

CHAT_TEMPLATE = (
    "{% for message in messages %}User: {{ message['content'] }}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:THINKS{% endif %}"
)


def save_text_model(folder: Path, *, thinks: bool) -> None:
    """A Llama of two layers. The quotation mark's row is longer, so that a string ends soon; it ends nothing else of itself."""
    prompts = [told(Judged(task, "What is it?", ("a ball",), "a ball")) for task in ("question", "caption")]
    tokenizer = build_tokenizer(prompts * 3, vocab_size=700)
    if thinks:
        tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = CHAT_TEMPLATE.replace("THINKS", "<think>\n" if thinks else "")
    config = LlamaConfig(
        vocab_size=(len(tokenizer) + 63) // 64 * 64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    draw_weights(model, seed=5)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.convert_tokens_to_ids('"')] *= 5.0
        model.lm_head.weight[tokenizer.eos_token_id] = 0.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("thinks", [False, True])
def test_a_models_own_template_says_whether_it_thinks_first(tmp_path: Path, thinks: bool) -> None:
    save_text_model(tmp_path, thinks=thinks)
    assert opens_thinking(find_model(TeacherSettings(model=str(tmp_path)))) is thinks


@pytest.mark.slow
@pytest.mark.parametrize("thinks", [False, True])
def test_vllm_judges_by_the_schema(tmp_path: Path, thinks: bool) -> None:
    save_text_model(tmp_path / "judge", thinks=thinks)
    settings = JudgeSettings(model=str(tmp_path / "judge"), dtype="float32", max_tokens=600, max_model_len=4096, n_tries=1)
    recipe = a_recipe(settings)
    where = make_root(recipe, tmp_path, ANSWERS | {("q1", "ours"): "far too long " * 900})
    first = judge.run(recipe, where.model_copy(update={"n_cpus": 1}))
    assert first == f"judgements: {N_WORDS - 1} rows, 1 rejects (prompt_too_long 1)"
    assert (made_judgements(settings, where.data).state().completed or {})["measures"]["n_engines"] == 1  # by which GPUs are booked
    for row in made_judgements(settings, where.data).read().to_pylist():
        (reply,) = row["replies"]
        thought, end, said = reply.rpartition("</think>")
        assert bool(end) is thinks
        assert bool(thought.strip()) is thinks
        mark = mark_of(said)
        assert (row["points"], row["score"], row["rationale"]) == (mark.points, mark.score, mark.rationale)
        assert re.fullmatch(r'\{"extracted":(null|".*"),"rationale":".*","points":[0-5]\}', said, re.DOTALL)
    assert not ray.is_initialized()
    nowhere = where.model_copy(update={"ray_address": "127.0.0.1:1"})  # Ray would fail to join this
    assert judge.run(recipe, nowhere) == first


def test_a_judge_whose_replies_fill_its_context_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """The small VLM has 1,024 positions, as many as the tokens a judge may write by default."""
    recipe = a_recipe(JudgeSettings(model="tiny", dtype="float32"))
    where = make_root(recipe, tmp_path, ANSWERS)
    with pytest.raises(BadInputError, match=r"judge\.max_tokens: got 1024, which of the 1024 tokens .* leaves none for a prompt"):
        judge.run(recipe, Where(data=where.data, ray_address="127.0.0.1:1"))
