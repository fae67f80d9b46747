"""What the real kubectl says, and what we take it for; jobs that are followed by it: test_kubernetes.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import BadInputError
from infra.kubectl import kubectl
from infra.kubernetes import Kubernetes
from infra.submit import Job
from tests.servers.kubernetes_api import KubernetesApi, kubernetes_api


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    with kubernetes_api() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
        monkeypatch.setenv("HOME", str(tmp_path))
        yield server


def test_a_job_without_a_pod_has_said_nothing_yet(api: KubernetesApi) -> None:
    """The one that KubeRay submits from, before its Pod is made; kubectl waits for the Pod, and gives up."""
    labels = {"batch.kubernetes.io/job-name": "run-1"}
    job = {"metadata": {"name": "run-1"}, "spec": {"selector": {"matchLabels": labels}, "template": {}}}
    api.apply({"apiVersion": "batch/v1", "kind": "Job", **job})
    assert Kubernetes().log(Job("run-1", "run-1", "running")) == ""
    pod = {"metadata": {"name": "run-1-x", "labels": labels}, "spec": {"containers": [{"name": "submitter"}]}}
    api.apply({"apiVersion": "v1", "kind": "Pod", **pod, "status": {"phase": "Running"}})
    api.logs["run-1-x"] = "frames: 3 of 9\n"
    assert Kubernetes().log(Job("run-1", "run-1", "running")) == "frames: 3 of 9\n"
    assert Kubernetes().log(Job("run-2", "run-2", "running")) == "", "nor one that is not there"


def test_what_kubectl_itself_does_not_know_is_said(api: KubernetesApi) -> None:
    with pytest.raises(BadInputError, match="kubectl: the server doesn't have a resource type"):
        kubectl("get", "rayservices.ray.io")
