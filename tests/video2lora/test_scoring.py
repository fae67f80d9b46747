"""Scores against worked cases of SQuAD's rules; broken and fine text."""

import pytest

from video2lora.scoring import degeneration, exact_match, normalise_answer, token_f1


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


CAPTION = "A man in a red shirt walks to the door and opens it."


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("...", "empty"),
        ("!?!?!?!?", "empty"),
        ("left left left left", "repetition"),
        ("Image: image image image image of a man", "repetition"),
        ("the man, the man, the man, the man, the", "repetition"),  # the last time cut off
        ("The man is seen. " + "He is in the room. " * 4, "repetition"),
        (CAPTION * 3, "repetition"),  # without four in a row: its 4-grams
        ("a man and a dog and a man and a dog with a man and a dog and a man and a dog", "repetition"),
        ("aaaaaaaaaaaaaaaaaaa", "repetition"),
        ("Answer: bababababababababababababa", "repetition"),
        ("男人在走路" * 4, "repetition"),  # without spaces
        ("красный круг", "off_language"),
        ("The man 走到门口然后打开门", "off_language"),
        ("ο άντρας", "off_language"),
        ("\u0627\u0644\u0631\u062c\u0644", "off_language"),  # Arabic
    ],
)
def test_broken_text(answer: str, expected: str) -> None:
    assert degeneration(answer, [CAPTION]) == expected


@pytest.mark.parametrize(
    "answer",
    [
        "yes",
        "2",
        "1000000000",
        "No, no, no!",
        "left, right, left, right",
        "1. red\n2. red\n3. blue\n4. red\n5. red",
        "A very, very, very good dog.",
        "hahaha",
        "A red circle, a blue square, a green triangle, a red square and a blue circle.",
        "Walking, walking, walking, walking; then he goes to the shop, buys bread and milk, and comes back.",
        CAPTION,
        f"{CAPTION} {CAPTION}",
        "Zoë and Владимир walk along the river to the old town.",  # one foreign name
        "𝐛𝐨𝐥𝐝 letters, ﬁne",
        "a temperature of 30 µm or 3 °C",
        "👍 he waves",
        " ".join(f"{number}" for number in range(60)),
    ],
)
def test_fine_text(answer: str) -> None:
    assert degeneration(answer, [CAPTION]) is None


def test_what_the_references_allow() -> None:
    assert degeneration("la la la la la", ["She sings."]) == "repetition"
    assert degeneration("la la la la la", ["She sings.", "La, la, la, la!"]) is None
    assert degeneration("красный", ["red"]) == "off_language"
    assert degeneration("красный", ["red", "Какого цвета?"]) is None
    assert degeneration("красный", ["2"]) is None  # no letter, no language
    assert degeneration("ひらがなとカタカナ", ["東京"]) is None  # one way of writing


@pytest.mark.parametrize(("n_times", "expected"), [(3, None), (4, "repetition")])
def test_a_phrase_counts_from_four_times_in_a_row(n_times: int, expected: str | None) -> None:
    assert degeneration("to the " * n_times, [CAPTION]) == expected


@pytest.mark.parametrize(("n_others", "expected"), [(4, "repetition"), (5, None)])
def test_a_phrase_counts_from_half_of_the_words(n_others: int, expected: str | None) -> None:
    assert degeneration("go go go go " + " ".join("abcde"[:n_others]), [CAPTION]) == expected
