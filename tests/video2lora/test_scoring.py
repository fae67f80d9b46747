"""Scores against worked cases of SQuAD's rules."""

import pytest

from video2lora.scoring import exact_match, normalise_answer, token_f1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat,\n sat!", "cat sat"),
        ("A man's theory of an anthem", "mans theory of anthem"),
        ("U.S.", "us"),
        ("a-the", "athe"),  # punctuation goes first, as in SQuAD, and takes the word boundary with it
        ("the", ""),
        ("Çaça", "çaça"),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected


@pytest.mark.parametrize(
    ("answer", "references", "match", "f1"),
    [
        ("Denver Broncos", ["Denver Broncos"], 1, 1),
        ("the Denver Broncos!", ["denver broncos"], 1, 1),
        ("Broncos", ["Denver Broncos"], 0, 2 / 3),  # precision 1, recall 1/2
        ("It is raining.", ["Rainy day."], 0, 0),
        ("red red circle", ["red circle circle"], 0, 2 / 3),  # repeats count: 2 shared of 3 and 3
        ("a red circle moves left", ["blue square", "red circle moves right", "circle"], 0, 3 / 4),
        ("left", ["right", "left"], 1, 1),
        ("the", ["an"], 1, 1),  # both without tokens: version 2 of SQuAD's script
        ("", ["left"], 0, 0),
        ("left", [""], 0, 0),
    ],
)
def test_scores(answer: str, references: list[str], match: float, f1: float) -> None:
    assert exact_match(answer, references) == match
    assert token_f1(answer, references) == pytest.approx(f1)


def test_no_reference_is_an_error() -> None:
    for score in (exact_match, token_f1):
        with pytest.raises(ValueError, match="at least one reference"):
            score("left", [])
