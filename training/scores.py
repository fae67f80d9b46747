"""An answer -> its scores against the references: those that need no judge.

Exact match and token F1 are `video2lora.scoring`'s. ROUGE-L (Lin 2004) is the package rouge-score's: the F measure of the longest common
subsequence of lower-cased words of ASCII letters and digits, no stemmer, the best reference counts. The package finds the words; it takes
1.7 ms to compare two captions of 60, so the subsequence is found here, in 0.05 ms. WUPS is `training.wups`'s at threshold 0, which is what
NExT-QA's own evaluation prints.
"""

import functools
from collections.abc import Sequence

from training.wups import Wups
from video2lora.scoring import exact_match, token_f1

SCORES = ("token_f1", "exact_match", "rouge_l", "wups")


def score_of(answer: str, references: Sequence[str], *, wups: Wups | None) -> dict[str, float | None]:
    """Each in [0, 1]; WUPS is None without a WordNet. ValueError without references."""
    return {
        "token_f1": token_f1(answer, references),
        "exact_match": exact_match(answer, references),
        "rouge_l": max(rouge_l(answer, reference) for reference in references),
        "wups": None if wups is None else wups.score(answer, references),
    }


def rouge_l(answer: str, reference: str) -> float:
    """A text without words is at 0, even from another."""
    words, of_reference = _words(answer), _words(reference)
    n_words = len(words) + len(of_reference)
    return 2 * _n_in_order(words, of_reference) / n_words if n_words else 0.0


@functools.lru_cache(maxsize=1 << 16)  # of references, and of answers that systems and seeds share
def _words(text: str) -> tuple[str, ...]:
    from rouge_score.tokenize import tokenize

    return tuple(tokenize(text, None))


def _n_in_order(words: Sequence[str], others: Sequence[str]) -> int:
    """Length of the longest common subsequence, with the table's columns as bits (Hyyro 2004): each 0 is a step from one to the next."""
    places: dict[str, int] = {}
    for place, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << place
    everywhere = (1 << len(words)) - 1
    column = everywhere
    for word in others:
        matches = column & places.get(word, 0)
        column = ((column + matches) | (column - matches)) & everywhere
    return len(words) - column.bit_count()
