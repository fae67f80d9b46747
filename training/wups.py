"""WUPS: how near an answer's words are to a reference's in WordNet's tree, as NExT-QA's open questions are scored.

Malinowski and Fritz 2014 (arXiv 1410.0210): the similarity of two words is Wu and Palmer's, scaled by 0.1 below a threshold; each word is
matched with its nearest of the other text; a text's are multiplied; the worse direction counts. The code of NExT-QA (arXiv 2105.08276)
prints the mean at threshold 0 as its WUPS, and computes 0.9, Malinowski's, beside it.

As its own code (github.com/doc-doc/NExT-OE: metrics.py, eval_oe.py): WordNet 3.0; the first sense alone of each word, of whatever kind;
equal words are at 1 even if WordNet lacks them; a word that is at 0 from all others does not count; stop words, of a list that keeps "in",
"up", "not" and their like, are left out; the better of two references; counting and yes-or-no questions by equality.

Otherwise than there: it lemmatises by parts of speech from a tagger whose model no package carries, and we by endings; it knows a
question's type, and we take for counting or yes-or-no what a number, "yes" or "no" is a reference of; texts without a word left are at 1 if
they are equal, and at 0 there. Not verified: its stop words lie in a file that its repository does not hold, and ours are those that
lmms-eval keeps for the same benchmark; its results, whose predictions we did not score; Malinowski's paper, known here at second hand.
"""

import functools
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.errors import BadInputError
from infra.progress import say

FILES = [f"{kind}.{part}" for kind in ("index", "data") for part in ("noun", "verb", "adj", "adv")]
FILES += [f"{part}.exc" for part in ("noun", "verb", "adj", "adv")]
N_LEXICOGRAPHER_FILES = 45  # lexnames(5WN); Debian leaves the file of their names out, and nltk wants as many

WORDS = re.compile(r"[^\W_]+(?:-[^\W_]+)*")
FEW = 0.1  # of the similarity, below the threshold

PRONOUNS = "i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it its itself"
PRONOUNS += " they them their theirs themselves this that these those what which who whom"
VERBS = "am is are was were be been being have has had having do does did doing can will should don ain aren couldn didn doesn hadn hasn"
VERBS += " haven isn ma mightn mustn needn shan shouldn wasn weren won wouldn d ll m re s t ve"
LINKS = "a an the and but if or because as until while to from of at for with about into through during than so"
ADVERBS = "again further then here there when where why how now just only too very all any each most other some such own o y"
STOP_WORDS = frozenset(" ".join((PRONOUNS, VERBS, LINKS, ADVERBS)).split())

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
)
EXACT = frozenset(f"{NUMBERS} twenty yes no none".split())


def open_wordnet(folder: str) -> "Wups | None":
    """None, and a line about it, where there is no such folder. Raises BadInputError where it holds no WordNet."""
    if not Path(folder).is_dir():
        say(f"no WUPS: there is no WordNet at {folder}; apt-get install wordnet-base, or VIDEO2LORA_WORDNET names its folder")
        return None
    return Wups(_reader(folder))


class Wups:
    """Over an open WordNet. Words and pairs of words are looked up once."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader
        self.lemma = functools.cache(self._lemma)
        self.sense = functools.cache(self._sense)
        self.similarity = functools.cache(self._similarity)

    def score(self, answer: str, references: Sequence[str], *, threshold: float = 0.0) -> float:
        """Of the nearest reference, in [0, 1]. ValueError without references."""
        if isinstance(references, str) or not references:
            raise ValueError(f"expected a list of at least one reference, got {references!r}")
        words, of_references = self.words(answer), [self.words(reference) for reference in references]
        if any(len(one) == 1 and (one[0] in EXACT or one[0].isdecimal()) for one in of_references):
            return float(words in of_references)
        if not words:  # nothing but stop words, or nothing: equal to none but itself
            said = WORDS.findall(answer.lower())
            return float(bool(said) and said in [WORDS.findall(reference.lower()) for reference in references])
        return max(self._of_words(words, one, threshold) for one in of_references)

    def words(self, text: str) -> tuple[str, ...]:
        """The base forms of its words, without stop words: neither "was" nor what it could be a form of."""
        lemmas = (self.lemma(word) for word in WORDS.findall(text.lower()) if word not in STOP_WORDS)
        return tuple(lemma for lemma in lemmas if lemma not in STOP_WORDS)

    def _of_words(self, one: tuple[str, ...], other: tuple[str, ...], threshold: float) -> float:
        if one == other:
            return 1.0
        return min(self._towards(one, other, threshold), self._towards(other, one, threshold))

    def _towards(self, words: tuple[str, ...], others: tuple[str, ...], threshold: float) -> float:
        nearest = [max((self._thresholded(word, other, threshold) for other in others), default=0.0) for word in words]
        product = 1.0
        for similarity in (found := [similarity for similarity in nearest if similarity > 0]):
            product *= similarity
        return product if found else 0.0

    def _thresholded(self, word: str, other: str, threshold: float) -> float:
        similarity = self.similarity(word, other)
        return similarity if similarity >= threshold else FEW * similarity

    def _similarity(self, word: str, other: str) -> float:
        """Wu and Palmer's, of the two words' first senses; 0 where WordNet lacks one or nothing joins them."""
        if word == other:
            return 1.0
        sense, other_sense = self.sense(word), self.sense(other)
        return 0.0 if sense is None or other_sense is None else sense.wup_similarity(other_sense) or 0.0

    def _sense(self, word: str) -> Any:
        return next(iter(self.reader.synsets(word)), None)

    def _lemma(self, word: str) -> str:
        """A verb's base form where it ends so or is a form of nothing else; else a noun's, where there is one."""
        nouns, verbs = (self.reader._morphy(word, kind) for kind in "nv")
        is_verb = word.endswith(("ing", "ed")) or not (nouns or self.reader.synsets(word, "a") or self.reader.synsets(word, "r"))
        return str(next((form for form in (verbs if is_verb and verbs else nouns) if form != word), word))


def _reader(folder: str) -> Any:
    from nltk import data as nltk_data  # imported here: a second, which a finished report does not need
    from nltk.corpus.reader.wordnet import WordNetCorpusReader, WordNetError

    class Reader(WordNetCorpusReader):  # type: ignore[misc, unused-ignore]
        """Without what similarities do not need: the lexicographers' names, a map between versions, its own looked up at every noun."""

        def open(self, file: str) -> Any:
            if file == "lexnames":
                return io.StringIO("".join(f"{number} file-{number} 0\n" for number in range(N_LEXICOGRAPHER_FILES)))
            return super().open(file)

        def map_wn(self, version: str = "") -> None:
            return None

        def get_version(self) -> str:
            return "3.0"

    lacking = [name for name in FILES if not (Path(folder) / name).is_file()]
    if lacking:
        raise BadInputError(f"VIDEO2LORA_WORDNET: {folder} is not the folder of a WordNet database: it lacks {', '.join(lacking)}")
    if folder not in nltk_data.path:
        nltk_data.path.append(folder)  # nltk reads nothing from elsewhere
    try:
        return Reader(folder, omw_reader=False)  # None would warn that other languages are not there
    except (OSError, ValueError, WordNetError) as error:
        raise BadInputError(f"VIDEO2LORA_WORDNET: {folder} could not be read as a WordNet database: {error}") from error
