"""Collections of adapters -> how many of each are by their VLM's champion, and by whom the others are.

An adapter carries the digest of the hypernetwork that made it, and so does the log of promotions.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from infra.collection import read_catalogue
from infra.errors import BadInputError, StorageError
from infra.hypernetworks import adapters_digest, address_of, identity, vlm_label
from infra.promotions import Champion, champion, history
from infra.sets import hypernetworks_of


@dataclass(frozen=True)
class Stale:
    """A collection against its VLM's champion; None where there is no champion, and then nothing is stale."""

    folder: str
    vlm: str
    champion: Champion | None
    n_by_champion: int
    n_by_other: dict[str, int]  # by the hypernetwork's name, or its digest where nobody here knows it

    def line(self) -> str:
        """For a person."""
        n = self.n_by_champion + sum(self.n_by_other.values())
        others = ", ".join(f"{n} by {name}" for name, n in self.n_by_other.items())
        if self.champion is None:
            return f"{self.folder}: VLM {self.vlm} has no champion, so nothing is stale; of {n} adapters, {others or 'none'}"
        told = f"{self.folder}: {n} adapters, {self.n_by_champion} by the champion {self.champion.hypernetwork}"
        return told + (f", {sum(self.n_by_other.values())} stale: {others}" if others else ", none stale")


def stale(folder: Path, root: str) -> Stale:
    """Raises BadInputError where the folder is no collection of adapters, or an empty one; StorageError."""
    rows = read_catalogue(folder)
    if not rows:
        raise BadInputError(f"{folder} holds no adapter")
    vlm = vlm_label(rows[0]["vlm"])
    now = champion(root, vlm)
    digests = Counter(row["hypernetwork_digest"] for row in rows)
    n_by_champion = digests.pop(now.adapters_digest, 0) if now else 0
    names = names_by_digest(root) if digests else {}
    return Stale(str(folder), vlm, now, n_by_champion, {names.get(one, one[:12]): n for one, n in digests.most_common()})


def names_by_digest(root: str) -> dict[str, str]:
    """The digest that adapters carry -> name of the hypernetwork: those in the data folder, once promoted, or shipped."""
    found = {}
    there = {one.folder: one.name.rsplit("/", 1)[-1] for one in hypernetworks_of(root) if one.is_complete()}
    for folder, name in {address_of("tiny"): "tiny", **there}.items():
        try:
            found[adapters_digest(identity(folder, named_by=name))] = name
        except (BadInputError, StorageError):  # a folder that is damaged names nothing
            continue
    return found | {entry["adapters_digest"]: entry["hypernetwork"] for entry in history(root)}
