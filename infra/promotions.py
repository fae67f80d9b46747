"""Who is champion: the hypernetwork that a VLM's adapters are to be made by. One log says so, and all else follows it.

    <data>/promotions/log/      a numbered log (`infra.log`): promote, keep and rollback, of all VLMs
        {"kind", "vlm", "hypernetwork", "weights_sha256", "by", "who", "at", "verdict", "report"}

`promote` puts a hypernetwork on top of its VLM's pile, `rollback` takes the top one off, and the champion is what lies on top then. `keep`
says of a challenger that it did not take the place. A decision takes time, and what it was about may change under it: whoever decides reads
the `Standing` first and gives its `n_entries` back, and is refused where the champion has changed since. A run enters a `claim` when it
begins to decide, which changes nothing but ends the right of every run before it: one that was paused and wakes can decide nothing any
more. MLflow's registry mirrors the log (`infra.registry`) and decides nothing.
"""

import getpass
import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from infra.digests import now
from infra.errors import BadInputError, SupersededError
from infra.hypernetworks import HYPERNETWORKS, adapters_digest, identity, vlm_label
from infra.log import Entry, Log
from infra.objects import read_json
from infra.outputs import Output

BY_HAND = "hand"

Verdict = Mapping[str, Any]
"""Of the gate, as plain JSON: promote, why, evidence. By hand: why alone."""


@dataclass(frozen=True)
class Champion:
    """A hypernetwork that was promoted."""

    vlm: str  # label, `hypernetworks.vlm_label`
    hypernetwork: str  # name of its folder
    folder: str  # address
    weights_sha256: str
    adapters_digest: str  # the `hypernetwork_digest` of adapters by it
    at: str  # when it was promoted, UTC
    by: str  # the run that did so, or `hand`


@dataclass(frozen=True)
class Standing:
    """How things stand for a VLM."""

    n_entries: int  # of the log: what `expected` is to be
    pile: tuple[Champion, ...]  # the champion is the last one; before it those that a rollback goes back to
    rolled_back: frozenset[str] = field(default_factory=frozenset)  # weights_sha256 of those that a rollback took off, and nobody put back

    @property
    def champion(self) -> Champion | None:
        return self.pile[-1] if self.pile else None


def standing(root: str, vlm: str) -> Standing:
    """Of a VLM's label. Raises StorageError."""
    return _standing(root, vlm, list(_log(root).read()))


def champion(root: str, vlm: str) -> Champion | None:
    """Of a VLM's label. Raises StorageError."""
    return standing(root, vlm).champion


def promote(root: str, hypernetwork: str, *, expected: int, verdict: Verdict, by: str = BY_HAND, report: str | None = None) -> Champion:
    """The hypernetwork of this folder's name becomes its VLM's champion; if it is that already, nothing is entered.

    `report` names the folder that the verdict rests on. Raises BadInputError where there is no such hypernetwork, SupersededError where the
    champion has changed since the log had `expected` entries (by hand: to another than this one), StorageError.
    """
    entry = _entry("promote", root, hypernetwork, verdict=verdict, by=by, report=report)
    _append(root, entry, expected=expected, unless_champion=True)
    found = champion(root, entry["vlm"])
    assert found is not None
    return found


def keep(root: str, hypernetwork: str, *, expected: int, verdict: Verdict, by: str, report: str | None = None) -> None:
    """The challenger did not take the champion's place. Raises as `promote`."""
    _append(root, _entry("keep", root, hypernetwork, verdict=verdict, by=by, report=report), expected=expected)


def rollback(root: str, vlm: str, *, by: str = BY_HAND) -> tuple[Champion, Champion]:
    """The champion that goes, and the one before it that is champion again.

    Raises BadInputError where there is none before it or it is gone from storage, SupersededError where the champion changes meanwhile.
    """
    seen = standing(root, vlm)
    if len(seen.pile) < 2:
        there = f"{seen.pile[0].hypernetwork} is the first champion" if seen.pile else "it has no champion"
        raise BadInputError(f"rollback: VLM {vlm}: {there}, and there is none before it to go back to")
    before, present = seen.pile[-2:]
    why = {"why": f"back from {present.hypernetwork}", "from": present.weights_sha256}
    entry = _entry("rollback", root, before.hypernetwork, verdict=why, by=by)
    if entry["weights_sha256"] != before.weights_sha256:
        raise BadInputError(f"rollback: {before.folder} holds other weights now than when it was promoted: restore it, or promote another")
    _append(root, entry, expected=seen.n_entries)
    return present, before


def claim(root: str, *, vlm: str, by: str) -> int:
    """A run begins to decide about a VLM's champion: what it is to give as `expected`. Raises StorageError."""
    log, entry = _log(root), {"kind": "claim", "vlm": vlm, "by": by, "who": f"{_who()}:{os.getpid()}:{uuid.uuid4().hex[:8]}", "at": now()}
    while True:
        n_entries = len(list(log.read()))
        if log.append(entry, number=n_entries):
            return n_entries + 1


def history(root: str, *, since: int = 0) -> list[Entry]:
    """Every decision from the log's entry `since` on, the oldest first. Raises StorageError."""
    return [entry for entry in list(_log(root).read())[since:] if entry["kind"] != "claim"]


def vlms(root: str) -> list[str]:
    """Labels of the VLMs that ever had a champion, sorted. Raises StorageError."""
    return sorted({entry["vlm"] for entry in history(root) if entry["kind"] == "promote"})


def _standing(root: str, vlm: str, entries: list[Entry]) -> Standing:
    pile: list[Champion] = []
    rolled_back: set[str] = set()
    for entry in (one for one in entries if one["vlm"] == vlm):
        if entry["kind"] == "promote":
            of = {name: entry[name] for name in ("vlm", "hypernetwork", "weights_sha256", "adapters_digest", "at", "by")}
            pile.append(Champion(folder=_folder(root, entry["hypernetwork"]), **of))
            rolled_back.discard(entry["weights_sha256"])
        elif entry["kind"] == "rollback":
            rolled_back.add(pile.pop().weights_sha256)
    return Standing(len(entries), tuple(pile), frozenset(rolled_back))


def _append(root: str, entry: Entry, *, expected: int, unless_champion: bool = False) -> None:
    """Raises SupersededError where a champion came or went since the log had `expected` entries, or another run claimed it from a run."""
    log, entries = _log(root), list(_log(root).read())
    of_others = ("keep", "claim") if entry["by"] == BY_HAND else ("keep",)
    while True:
        changed = [one for one in entries[expected:] if one["vlm"] == entry["vlm"] and one["kind"] not in of_others]
        present = _standing(root, entry["vlm"], entries).champion
        is_champion = present is not None and present.weights_sha256 == entry["weights_sha256"]
        if unless_champion and is_champion and (not changed or entry["by"] == BY_HAND):  # a run's verdict was about the champion before
            return
        if changed:
            last = changed[-1]
            what = f"{last['by']} began to decide" if last["kind"] == "claim" else f"{last['hypernetwork']} became champion by {last['by']}"
            raise SupersededError(
                f"{log.folder}: {what} at {last['at']}, after this decision was begun: "
                f"nothing was decided about {entry['hypernetwork']}; run the same command again"
            )
        if log.append(entry, number=len(entries)):
            return
        entries = list(log.read())


def vlm_of(root: str, hypernetwork: str) -> str:
    """Label of the VLM that a hypernetwork was trained for. Raises BadInputError where there is none of this name, or it does not say."""
    folder = _checked(root, hypernetwork).folder
    metadata = read_json(f"{folder}/config.json").get("metadata") or {}
    try:
        return vlm_label(metadata["vlm"]["model"])
    except (KeyError, TypeError) as error:
        raise BadInputError(f"{folder}/config.json does not say which VLM it was trained for") from error


def _entry(
    kind: Literal["promote", "keep", "rollback"], root: str, name: str, *, verdict: Verdict, by: str, report: str | None = None
) -> Entry:
    made = identity(_checked(root, name).folder, named_by="promotions")
    return {
        "kind": kind,
        "vlm": vlm_of(root, name),
        "hypernetwork": name,
        "weights_sha256": made["weights_sha256"],
        "adapters_digest": adapters_digest(made),
        "by": by,
        "who": _who(),
        "at": now(),
        "verdict": dict(verdict),
        "report": report,
    }


def _checked(root: str, name: str) -> Output:
    """Raises BadInputError where the data folder has no hypernetwork of this name that is finished."""
    output = Output(root, f"{HYPERNETWORKS}/{name}")
    if "/" in name or name in ("", ".", ".."):
        raise BadInputError(f"promotions: got {name!r}, expected the name of a folder in {root.rstrip('/')}/{HYPERNETWORKS}")
    if output.is_begun() and not output.is_complete():
        raise BadInputError(f"promotions: {output.folder} is not complete: its training has not ended")
    identity(output.folder, named_by="promotions")
    return output


def _who() -> str:
    """Person or account, and machine."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a container's user id without a name
        return f"?@{socket.gethostname()}"


def _log(root: str) -> Log:
    return Log(f"{root.rstrip('/')}/promotions/log")


def _folder(root: str, hypernetwork: str) -> str:
    return f"{root.rstrip('/')}/{HYPERNETWORKS}/{hypernetwork}"
