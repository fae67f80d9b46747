"""Scores of an answer together; ROUGE-L against hand-worked subsequences and its own package."""

import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from training.scores import SCORES, rouge_l, score_of
from training.wups import open_wordnet


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("The police killed the gunman", ["police kill the gunman"], 2 * (3 / 5) * (3 / 4) / (3 / 5 + 3 / 4)),  # police, the, gunman
        ("gunman the killed police", ["police killed the gunman"], 1 / 4),  # order counts
        ("a b c d e", ["x a y c z", "e d", "a c e"], 2 * (3 / 5) * 1 / (3 / 5 + 1)),  # the best reference: the last
        ("walks", ["walking"], 0.0),  # no stemmer
        ("Red, RED!", ["red red"], 1.0),
        ("", ["red"], 0.0),
        ("красный", ["красный"], 0.0),  # no ASCII word: ROUGE's own tokens
    ],
)
def test_rouge_l(answer: str, references: list[str], expected: float) -> None:
    assert score_of(answer, references, wups=None)["rouge_l"] == pytest.approx(expected)


def test_rouge_l_is_its_packages() -> None:
    rng, theirs = random.Random(0), RougeScorer(["rougeL"])
    for n_words in range(90):
        texts = [
            " ".join(rng.choices(["Red", "circle,", "moves", "it's", "2nd", "\n", "é", "left-"], k=n)) for n in (n_words, rng.randrange(71))
        ]
        assert rouge_l(texts[0], texts[1]) == pytest.approx(theirs.score(texts[1], texts[0])["rougeL"].fmeasure)


def test_all_scores_of_an_answer() -> None:
    scores = score_of("a red circle", ["blue", "the red circle moves"], wups=None)
    assert tuple(scores) == SCORES
    assert scores == {"token_f1": 2 * 2 / 5, "exact_match": 0.0, "rouge_l": pytest.approx(4 / 7), "wups": None}


def test_with_a_wordnet(wordnet: str) -> None:
    scores = score_of("a dog", ["cat", "table"], wups=open_wordnet(wordnet))
    assert scores["wups"] == pytest.approx(6 / 7)
    assert scores["exact_match"] == 0.0


def test_no_reference_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one reference"):
        score_of("red", [], wups=None)
