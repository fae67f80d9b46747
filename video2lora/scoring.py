"""Scores of an answer against its references: exact match and token F1; and whether it is broken text.

arXiv 2606.04351 section 4.3 names a token-level F1 and gives neither a tokenisation nor a rule for several references.
We take those of SQuAD (Rajpurkar et al., arXiv 1606.05250; its version 2 script for empty answers): text is normalised,
split at white space, and the best score over the references counts. Both scores reward the reference's own words; a
right answer in other words scores low, which is why the judge exists.

The paper also says that the base "degenerates" on long inputs, and gives no number. Ours, with thresholds between the broken and the
fine text of the tests: no letter or digit; a phrase four times in a row that makes up half of the words, or half of the 4-grams seen before
(Welleck et al., arXiv 1908.04319: seq-rep-4), or letters likewise; a fifth of the letters in a script that no reference uses.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)

# Chinese and Japanese have no spaces: a character counts as a word.
WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W_]+")
N_IN_A_ROW = 4  # of a phrase; "very, very, very" and "left, right, left, right" are fine
SHARE_OF_WORDS = 0.5  # that a phrase in a row makes up
NGRAM, N_WORDS_FOR_NGRAMS, SHARE_OF_NGRAMS = 4, 12, 0.5  # a sentence said twice is below a half, three times above
LETTERS_IN_A_ROW = re.compile(r"([^\W\d_]{1,4}?)\1{7,}")  # "haha" and 1000000 are fine; eight times "ab" in one word is not
SHARE_OF_LETTERS = 0.2  # of other scripts: a foreign name in a sentence is fine
ONE_SCRIPT = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "KATAKANA-HIRAGANA": "CJK"}  # Japanese writes with all of them


def normalise_answer(text: str) -> str:
    """SQuAD's rules, in its order: lower case, no ASCII punctuation, no English articles, single spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(WITHOUT_PUNCTUATION)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 where the answer equals any reference after normalisation, else 0. ValueError without references."""
    _check(references)
    return float(normalise_answer(answer) in {normalise_answer(reference) for reference in references})


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Best F1, in [0, 1], of the answer's normalised tokens over the references, repeats counted.

    An answer or reference without tokens scores 1 if both have none, else 0. ValueError without references.
    """
    _check(references)
    return max(_f1(normalise_answer(answer).split(), normalise_answer(reference).split()) for reference in references)


def degeneration(answer: str, references: Sequence[str]) -> str | None:
    """How a text is broken: empty, repetition or off_language; None where it is fine.

    A reference that repeats itself as much allows it. References (a question may stand among them) that hold no letters say nothing of a
    language.
    """
    words = WORDS.findall(answer.lower())
    if not words:
        return "empty"
    if _repeats(answer, words) and not any(_repeats(one, WORDS.findall(one.lower())) for one in references):
        return "repetition"
    expected = set().union(*(_scripts(reference) for reference in references))
    found = _scripts(answer)
    if expected and sum(n for script, n in found.items() if script not in expected) > SHARE_OF_LETTERS * found.total():
        return "off_language"
    return None


def _repeats(text: str, words: list[str]) -> bool:
    if _longest_in_a_row(words) >= SHARE_OF_WORDS * max(1, len(words)):
        return True
    ngrams = list(zip(*(words[start:] for start in range(NGRAM)), strict=False))
    if len(words) >= N_WORDS_FOR_NGRAMS and len(set(ngrams)) <= (1 - SHARE_OF_NGRAMS) * len(ngrams):
        return True
    n_letters = sum(map(str.isalpha, text))
    return any(len(found.group()) >= SHARE_OF_WORDS * n_letters for found in LETTERS_IN_A_ROW.finditer(text.lower()))


def _longest_in_a_row(words: list[str]) -> int:
    """How many words the longest phrase makes up that comes at least N_IN_A_ROW times in a row, its last time perhaps cut off; 0: none."""
    n_words, longest = len(words), 0
    if len(set(words)) > n_words * (1 - SHARE_OF_WORDS * (1 - 1 / N_IN_A_ROW)):
        return 0  # too many different words for any phrase to make up the share
    for n_phrase in range(1, n_words // N_IN_A_ROW + 1):
        n_same = 0
        for place in range(n_phrase, n_words):
            n_same = n_same + 1 if words[place] == words[place - n_phrase] else 0
            if n_same >= n_phrase * (N_IN_A_ROW - 1):
                longest = max(longest, n_same + n_phrase)
    return longest


def _scripts(text: str) -> Counter[str]:
    """How many letters there are of each script, which is the first word of a letter's name in Unicode; letters for symbols are those."""
    names = (unicodedata.name(letter, "?").split()[0] for letter in unicodedata.normalize("NFKC", text) if letter.isalpha())
    return Counter(ONE_SCRIPT.get(name, name) for name in names)


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    n_shared = (Counter(answer) & Counter(reference)).total()
    return 2 * n_shared / (len(answer) + len(reference))


def _check(references: Sequence[str]) -> None:
    if isinstance(references, str) or not references:
        raise ValueError(f"expected a list of at least one reference, got {references!r}")
