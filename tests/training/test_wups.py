"""WUPS against similarities worked out on WordNet 3.0's tree."""

import shutil
from pathlib import Path

import pytest

from infra.errors import BadInputError
from training.wups import STOP_WORDS, Wups, open_wordnet

DOG_CAT = 6 / 7  # Wu and Palmer: 2 * depth of carnivore (12 nodes down) / (14 + 14), as nltk's manual has it
SPOON_FORK = 0.9  # 2 * depth of cutlery (9) / (10 + 10)


@pytest.fixture(scope="module")
def wups(wordnet: str) -> Wups:
    opened = open_wordnet(wordnet)
    assert opened is not None
    return opened


@pytest.mark.parametrize(
    ("answer", "reference", "at_0", "at_9"),
    [
        ("push toy train", "push the toy train", 1, 1),  # stop words
        ("Jumping.", "he jumps", 1, 1),
        ("dog", "cat", DOG_CAT, 0.1 * DOG_CAT),
        ("cat", "dog", DOG_CAT, 0.1 * DOG_CAT),
        ("spoon", "fork", SPOON_FORK, SPOON_FORK),  # at the threshold
        ("use a spoon", "uses the fork", SPOON_FORK, SPOON_FORK),  # equal words at 1, multiplied
        ("dog", "dog xyzzy", 1, 1),  # a word that is at 0 from all others does not count
        ("xyzzy", "dog", 0, 0),
        ("xyzzy", "Xyzzy", 1, 1),  # equal, though WordNet lacks it
        ("", "dog", 0, 0),
        ("to him", "to him", 1, 1),  # no word left: ours, not NExT-QA's
        ("to him", "dog", 0, 0),
        ("To him.", "to him", 1, 1),
        ("him", "her", 0, 0),
        ("", "her", 0, 0),
        ("yes", "no", 0, 0),
        ("Yes.", "yes", 1, 1),
        ("a yes", "no", 0, 0),
        ("three", "two", 0, 0),  # near in WordNet, and wrong
        ("3", "2", 0, 0),
        ("two dogs", "two", 0, 0),  # a count by equality
    ],
)
def test_worked_cases(wups: Wups, answer: str, reference: str, at_0: float, at_9: float) -> None:
    assert wups.score(answer, [reference]) == pytest.approx(at_0)
    assert wups.score(answer, [reference], threshold=0.9) == pytest.approx(at_9)


def test_the_worse_direction_counts(wups: Wups) -> None:
    """Towards "dog" both words go; back, "cat" is nearest to itself."""
    assert wups.score("dog cat", ["cat"]) == pytest.approx(DOG_CAT)
    assert wups.score("cat", ["dog cat"]) == pytest.approx(DOG_CAT)


def test_the_nearest_reference_counts(wups: Wups) -> None:
    assert wups.score("dog", ["table", "cat", "xyzzy"]) == pytest.approx(DOG_CAT)
    assert wups.score("two", ["2", "two"]) == 1
    with pytest.raises(ValueError, match="at least one reference"):
        wups.score("dog", [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He was hitting the elephants with sticks", ("hit", "elephant", "stick")),
        ("children's teeth, women; GLASSES", ("child", "tooth", "woman", "glass")),
        ("she uses it and does not run up", ("use", "not", "run", "up")),  # "not" and "up" say something
        ("threw, ran, lying, bored", ("throw", "run", "lie", "bore")),
        ("turned left in a t-shirt", ("turn", "left", "in", "t-shirt")),
        ("leaves has us", ("leaf", "u")),  # "has" is no form of "ha"
        ("don't", ()),
    ],
)
def test_words(wups: Wups, text: str, expected: tuple[str, ...]) -> None:
    assert wups.words(text) == expected


def test_the_version_that_is_not_looked_up_is_the_files(wups: Wups) -> None:
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    assert WordNetCorpusReader.get_version(wups.reader) == wups.reader.get_version()


def test_stop_words_are_no_words_that_answers_turn_on() -> None:
    assert not STOP_WORDS & {"in", "on", "up", "down", "out", "off", "under", "before", "after", "no", "not", "both", "more", "same"}
    assert {"the", "he", "is", "don", "t", "with"} <= STOP_WORDS


def test_no_wordnet_is_said_and_a_wrong_folder_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert open_wordnet(str(tmp_path / "none")) is None
    assert "apt-get install wordnet-base" in capsys.readouterr().err
    (tmp_path / "index.noun").touch()
    with pytest.raises(BadInputError, match=r"VIDEO2LORA_WORDNET: .* lacks index\.verb, .*adv\.exc"):
        open_wordnet(str(tmp_path))


def test_a_broken_database_is_an_error(tmp_path: Path, wordnet: str) -> None:
    shutil.copytree(wordnet, tmp_path, dirs_exist_ok=True)
    (tmp_path / "index.adv").write_text("quickly r three\n")
    with pytest.raises(BadInputError, match="could not be read as a WordNet database"):
        open_wordnet(str(tmp_path))
