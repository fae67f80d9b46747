"""KL to a teacher's stored log-probabilities, against the divergence over the whole vocabulary, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_examples import an_example, write_vlm
from scipy.special import rel_entr
from torch import Tensor

from infra.errors import BadInputError
from training.batches import Batch, Target, TeacherTokens
from training.divergence import Tops, divergence
from training.loss import Rows, text_of
from video2lora.pretrained import load_vlm
from video2lora.vlm import FrozenVLM

N_TOKENS, N_WORDS, K = 7, 53, 5
PROMPT = "What colour is it?"


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> FrozenVLM:
    folder: Path = tmp_path_factory.mktemp("vlm")
    write_vlm(folder)
    return load_vlm(str(folder))


def random_logits(seed: int, *, n_tokens: int = N_TOKENS, n_words: int = N_WORDS) -> Tensor:
    return 3 * torch.randn(n_tokens, n_words, generator=torch.Generator().manual_seed(seed))


def tops(logits: Tensor, k: int) -> Tops:
    best = logits.log_softmax(-1).topk(k)
    return Tops(torch.ones(1, len(logits), dtype=torch.bool), best.indices, best.values)


def in_buckets(logits: Tensor, ids: Tensor) -> np.ndarray:
    """Probabilities of the named tokens, and of all the rest as one."""
    p = logits.double().softmax(-1)
    return torch.cat([p.gather(-1, ids), p.scatter(-1, ids, 0.0).sum(-1, keepdim=True)], dim=-1).numpy()


def test_the_rest_is_one_bucket() -> None:
    teacher, student = random_logits(1), random_logits(2)
    known = tops(teacher, K)
    expected = rel_entr(in_buckets(teacher, known.token_ids), in_buckets(student, known.token_ids)).sum(-1)
    got = divergence(student.log_softmax(-1), known)
    torch.testing.assert_close(got.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)


def test_with_the_whole_vocabulary_it_is_the_exact_divergence_and_its_gradient() -> None:
    teacher, student = random_logits(1), random_logits(2).requires_grad_()
    got = divergence(student.log_softmax(-1), tops(teacher, N_WORDS))
    expected = rel_entr(teacher.double().softmax(-1).numpy(), student.detach().double().softmax(-1).numpy()).sum(-1)
    torch.testing.assert_close(got.detach().double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)
    got.sum().backward()
    torch.testing.assert_close(student.grad, (student.detach().softmax(-1) - teacher.softmax(-1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [1, K, N_WORDS])
def test_a_student_that_is_the_teacher_is_at_no_distance(k: int) -> None:
    logits = random_logits(3)
    torch.testing.assert_close(divergence(logits.log_softmax(-1), tops(logits, k)), torch.zeros(N_TOKENS), rtol=0, atol=1e-6)


def test_certainty_has_a_value_and_a_gradient() -> None:
    """A teacher and a student who are sure, of the same token and of two: no nan, no infinity."""
    sure = torch.zeros(2, N_WORDS)
    sure[:, 11] = 60.0
    student = torch.zeros(2, N_WORDS)
    student[0, 11] = student[1, 13] = 60.0
    student.requires_grad_()
    got = divergence(student.log_softmax(-1), tops(sure, K))
    got.sum().backward()
    torch.testing.assert_close(got.detach(), torch.tensor([0.0, 60.0]), rtol=1e-3, atol=1e-6)
    assert student.grad.isfinite().all()


def written(vlm: FrozenVLM, text: str, *, end: str = "<end_of_utterance>", k: int = 3) -> Target:
    """As a teacher of the same tokenizer writes it; its log-probabilities are random."""
    ids = vlm.tokenizer.encode(f" {text}{end}", add_special_tokens=False)
    best = random_logits(len(ids), n_tokens=len(ids), n_words=320).log_softmax(-1).topk(k)
    stored = TeacherTokens(np.array(ids, np.int32), best.indices.numpy().astype(np.int32), best.values.numpy())
    return Target("question", PROMPT, text, stored)


def rows_of(vlm: FrozenVLM, *targets: Target, newline: bool = False) -> Rows:
    (rows,) = text_of(vlm, Batch((an_example(0),), (targets,)), newline=newline, kl=True, n_groups=1)
    return rows


@pytest.mark.parametrize("newline", [False, True])
def test_the_student_reads_the_teachers_own_tokens(vlm: FrozenVLM, newline: bool) -> None:
    """A text can be spelt in several ways; the log-probabilities are of the teacher's."""
    target = written(vlm, "It is red.")
    whole = " It is red."
    letters = [i for letter in whole for i in vlm.tokenizer.encode(letter, add_special_tokens=False)]
    end = vlm.tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    best = random_logits(5, n_tokens=len(letters) + 1, n_words=320).log_softmax(-1).topk(3)
    stored = TeacherTokens(np.array([*letters, end], np.int32), best.indices.numpy().astype(np.int32), best.values.numpy())
    spelt = replace(target, teacher=stored)
    assert target.teacher is not None and len(letters) + 1 > len(target.teacher.token_ids)
    rows = rows_of(vlm, spelt, newline=newline)
    labels = rows.texts.labels
    assert labels is not None and rows.tops is not None
    learnt = labels[0][labels[0] != -100].tolist()
    assert learnt == [*letters, end, *(vlm.tokenizer.encode("\n", add_special_tokens=False) if newline else [])]
    assert labels[0, 1:][rows.tops.places[0]].tolist() == [*letters, end], "nothing is known of the line end"


def test_where_the_teacher_was_cut_off_or_ended_otherwise_the_end_is_learnt_from_the_text_alone(vlm: FrozenVLM) -> None:
    targets = [written(vlm, "It is blue.", end=end) for end in ("", "<|im_end|>", "<end_of_utterance>")]
    rows = rows_of(vlm, *targets)
    assert rows.tops is not None and rows.texts.labels is not None
    n_learnt = (rows.texts.labels != -100).sum(1).tolist()
    assert len(set(n_learnt)) == 1, "all learn the same tokens"
    assert rows.tops.places.sum(1).tolist() == [n_learnt[0] - 1, n_learnt[0] - 1, n_learnt[0]]
    assert len(rows.tops.token_ids) == 3 * n_learnt[0] - 2
    alone = rows_of(vlm, targets[1]).tops
    assert alone is not None and torch.equal(alone.logprobs, rows.tops.logprobs[n_learnt[0] - 1 : 2 * n_learnt[0] - 2])


def without(target: Target) -> Target:
    return replace(target, teacher=None)


def other_words(target: Target) -> Target:
    return replace(target, text="It is green.")


def other_vocabulary(target: Target) -> Target:
    assert target.teacher is not None
    return replace(target, teacher=replace(target.teacher, top_token_ids=target.teacher.top_token_ids + 320))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without, r"training\.kl_weight: a target of video-000 has no log-probabilities; set teacher\.logprobs"),
        (other_words, r"training\.kl_weight: the teacher's tokens for video-000 are 'It is red\.' .* 'It is green\.'; take a teacher with"),
        (other_vocabulary, r"training\.kl_weight: the teacher's tokens for video-000 .* take a teacher with the student's own tokenizer"),
    ],
)
def test_a_teacher_that_cannot_be_followed_is_named(vlm: FrozenVLM, change: Callable[[Target], Target], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        rows_of(vlm, change(written(vlm, "It is red.")))
