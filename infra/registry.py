"""The log of promotions -> MLflow's model registry: whoever looks there finds what the log says. The log is never read from there.

Of the registered model `video2lora-<VLM>`, the alias `champion` is on the version that is champion, `challenger` on the last one that was
judged or promoted, and every version that was ever decided about has tags: verdict, why, report, and gate.<benchmark>.<against> for what
was claimed, of the first champion gate.against_blind. A version is found by the hash of its weights, with which training registers it.

All is brought to what the log says now, whatever was missed before, so nothing needs to be kept for a server that is away: the next
decision, or the next `retrain`, says it again. So too for a version that training has not been able to register yet.
"""

import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any

from infra.config import Where
from infra.lineage import Tags
from infra.log import Entry
from infra.mlflow_run import TAG_CHARACTERS, registered_name
from infra.progress import say
from infra.promotions import BY_HAND, history, standing
from infra.tracking import ENVIRONMENT, ended_by, public, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"
KEY = re.compile(r"[^\w\-. /]+")  # what MLflow takes in no tag's name
KEY_CHARACTERS = 250
CLAIMS = ("against_champion", "against_base", "champion_against_base")
FIRST = "against_blind"  # of the first champion: over all benchmarks together


def mirror(where: Where) -> None:
    """Bring the registry to what the log says. What keeps MLflow from it is said, and stops nothing.

    Raises StorageError of the log, TerminatedError.
    """
    entries = history(where.data)
    uri = tracking_uri(where)
    if not entries or uri is None:
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    underway = sys.exception()
    try:
        from mlflow import MlflowClient

        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
        client = MlflowClient(tracking_uri=uri)
        for vlm in sorted({entry["vlm"] for entry in entries}):
            _mirror(client, where, vlm, [entry for entry in entries if entry["vlm"] == vlm])
    except Exception as error:  # whatever MLflow, its database driver or the network raise
        if (ours := ended_by(error, underway)) is not None:
            raise ours from None
        say(f"registry: {public(uri)} is away ({type(error).__name__}); it is told of promotions the next time")


def _mirror(client: "MlflowClient", where: Where, vlm: str, entries: list[Entry]) -> None:
    name = registered_name(vlm)
    versions = {version.tags.get("weights"): version for version in client.search_model_versions(f"name = '{name}'")}
    missing = set()
    names = {entry["weights_sha256"]: entry["hypernetwork"] for entry in entries}
    for weights, tags in tags_of(entries).items():
        if weights in versions:
            _tag(client, versions[weights], tags)
        else:
            missing.add(names[weights])
    now, judged = standing(where.data, vlm).champion, [entry for entry in entries if entry["kind"] != "rollback"]
    _alias(client, name, CHAMPION, versions.get(now.weights_sha256) if now else None)
    _alias(client, name, CHALLENGER, versions.get(judged[-1]["weights_sha256"]))
    if missing:
        say(f"registry: {name} has no version yet with the weights of {', '.join(sorted(missing))}")


def tags_of(entries: list[Entry]) -> dict[str, Tags]:
    """Weights -> what their version's tags say of the last decision about them, within MLflow's limits. `entries` are of one VLM."""
    found: dict[str, Tags] = {}
    for entry in entries:
        weights, when = entry["weights_sha256"], f"{entry['at']} by {entry['who'] if entry['by'] == BY_HAND else entry['by']}"
        if entry["kind"] == "rollback":  # what was found out about either is as true as before
            found[weights]["verdict"] = f"champion again {when}"
            found[entry["verdict"]["from"]]["verdict"] = f"rolled back from {when}"
        else:
            verdict = f"{'promoted' if entry['kind'] == 'promote' else 'kept out'} {when}"
            found[weights] = _fit({"verdict": verdict, "why": entry["verdict"]["why"], "report": entry["report"] or "", **_claims(entry)})
    return found


def _claims(entry: Entry) -> Tags:
    evidence = entry["verdict"].get("evidence", {})
    of = {against: evidence.get(against, {}) for against in CLAIMS}
    tags = {f"gate.{name}.{against}": _claim(one) for against, claimed in of.items() for name, one in claimed.items()}
    return tags | ({f"gate.{FIRST}": _difference(evidence[FIRST])} if FIRST in evidence else {})


def _fit(tags: Tags) -> Tags:
    return {KEY.sub("_", key)[:KEY_CHARACTERS]: value[:TAG_CHARACTERS] for key, value in tags.items()}


def _claim(claimed: dict[str, Any] | None) -> str:
    if claimed is None:
        return "nothing to compare"
    held = "not worse" if claimed["holds"] else "not shown to be as good"
    sure = f"margin {claimed['margin']:g}, p {claimed['p_noninferior_holm']:.2g} at {claimed['alpha']:g}"
    rests_on = f"{claimed['n_questions']} questions of {claimed['n_videos']} clips, {claimed['n_seeds']} seeds"
    return f"{held}: {claimed['value']:+.3f}{_edges(claimed)}, {sure}, {rests_on}"


def _difference(found: dict[str, Any]) -> str:
    if found["value"] is None:
        return "nothing to compare"
    return f"{found['value']:+.3f}{_edges(found)}, {found['n_questions']} questions of {found['n_videos']} clips"


def _edges(found: dict[str, Any]) -> str:
    """The interval, where there is one."""
    return "" if found["low"] is None else f" [{found['low']:+.3f}, {found['high']:+.3f}]"


def _tag(client: "MlflowClient", version: "ModelVersion", tags: Tags) -> None:
    """Also takes off what an earlier decision said and this one does not."""
    for key in version.tags:
        if key.startswith("gate.") and key not in tags:
            client.delete_model_version_tag(version.name, version.version, key)
    for key, value in tags.items():
        if version.tags.get(key) != value:
            client.set_model_version_tag(version.name, version.version, key, value)


def _alias(client: "MlflowClient", name: str, alias: str, version: "ModelVersion | None") -> None:
    """A version that is not there yet has no alias, and no other one has it in its place."""
    from mlflow.exceptions import MlflowException

    try:
        there = client.get_registered_model(name).aliases.get(alias)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return
    if version is None and there is not None:
        client.delete_registered_model_alias(name, alias)
    elif version is not None and str(there) != str(version.version):
        client.set_registered_model_alias(name, alias, version.version)
