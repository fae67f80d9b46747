"""Scores of an answer against its references: exact match and token F1.

arXiv 2606.04351 section 4.3 names a token-level F1 and gives neither a tokenisation nor a rule for several references.
We take those of SQuAD (Rajpurkar et al., arXiv 1606.05250; its version 2 script for empty answers): text is normalised,
split at white space, and the best score over the references counts. Both scores reward the reference's own words; a
right answer in other words scores low, which is why the judge exists.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


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


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    n_shared = (Counter(answer) & Counter(reference)).total()
    return 2 * n_shared / (len(answer) + len(reference))


def _check(references: Sequence[str]) -> None:
    if isinstance(references, str) or not references:
        raise ValueError(f"expected a list of at least one reference, got {references!r}")
