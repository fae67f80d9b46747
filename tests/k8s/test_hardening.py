"""Least rights, and the mistakes that this finds."""

import re
from typing import Any

import pytest

from tests.k8s.built import OVERLAYS, ROOT, find, objects, put
from tests.k8s.hardening import softness

POD = "spec/template/spec"
CONTAINER = f"{POD}/containers/0"
HEAD = "spec/rayClusterSpec/headGroupSpec/template/spec"
WORKER = "spec/rayClusterSpec/workerGroupSpecs/decode/template/spec"
KEY = re.compile(r"AKIA[0-9A-Z]{16}|hf_[A-Za-z0-9]{20}|sk-[A-Za-z0-9]{20}|BEGIN [A-Z ]*PRIVATE KEY|://[^/\s:@]+:[^/\s@]+@")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_pod_may_do_more_than_it_must(overlay: str) -> None:
    assert softness(objects(overlay)) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_roles_hold_what_our_commands_need(overlay: str) -> None:
    rights = {
        (one["metadata"]["name"], resource): set(rule["verbs"])
        for one in objects(overlay)
        if one["kind"] in ("Role", "ClusterRole")
        for rule in one["rules"]
        for resource in rule["resources"]
    }
    expected = {("prometheus", "pods"): {"get", "list", "watch"}}
    if overlay != "raycronjob":  # there nobody of ours submits; infra/kubernetes.py asks for these
        expected |= {("submitter", "rayjobs"): {"get", "list", "create", "delete"}, ("submitter", "pods"): {"get", "list"}}
        expected |= {("submitter", name): {"get"} for name in ("configmaps", "jobs", "pods/log")}
    assert rights == expected
    assert not [one for one in objects(overlay) if one["kind"].startswith("ClusterRole")]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_manifest_holds_a_secret(overlay: str) -> None:
    those = objects(overlay)
    assert not [one for one in those if one["kind"] == "Secret"]
    literals = re.findall(r"'name': '(\w*(?:KEY|TOKEN|PASSWORD|SECRET|WEBHOOK|KEY_ID))', 'value'", str(those))
    assert literals == [] and KEY.search(str(those)) is None


@pytest.mark.parametrize("planted", ["hf_" + "a" * 30, "AKIA" + "A1" * 8, "postgresql://mlflow:hunter2@postgres/mlflow"])
def test_a_secret_would_be_seen(planted: str) -> None:
    assert KEY.search(f"'value': '{planted}'")


def test_no_file_of_the_manifests_holds_one_either() -> None:
    files = [path for path in (ROOT / "k8s").rglob("*") if path.is_file()]
    assert len(files) > 30 and [path.name for path in files if KEY.search(path.read_text())] == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_asks_for_a_token(overlay: str) -> None:
    jobs = [one for one in objects(overlay) if one["kind"] == "RayJob"]
    assert len(jobs) == 5 and all(one["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"} for one in jobs)


PLANTED: list[tuple[str, str, str, Any, str]] = [
    ("Deployment", "mlflow", f"{POD}/securityContext/runAsNonRoot", False, "may be root"),
    ("Deployment", "mlflow", f"{POD}/securityContext/runAsUser", 0, "may be root"),
    ("Deployment", "mlflow", f"{POD}/securityContext/seccompProfile", ..., "no seccomp"),
    ("Deployment", "mlflow", f"{POD}/hostNetwork", True, "hostNetwork"),
    ("Deployment", "mlflow", f"{POD}/automountServiceAccountToken", ..., "automountServiceAccountToken: None"),
    ("Deployment", "mlflow", f"{POD}/volumes/-", {"name": "node", "hostPath": {"path": "/"}}, "hostPath node"),
    ("Deployment", "mlflow", f"{POD}/volumes/0/emptyDir", {}, "emptyDir tmp without a limit"),
    ("StatefulSet", "postgres", f"{CONTAINER}/securityContext/readOnlyRootFilesystem", ..., "writable root filesystem"),
    ("StatefulSet", "postgres", f"{CONTAINER}/securityContext/privileged", True, "may gain privileges"),
    ("StatefulSet", "postgres", f"{CONTAINER}/securityContext/capabilities/add", ["NET_ADMIN"], "keeps capabilities"),
    ("Deployment", "grafana", f"{CONTAINER}/resources/limits/memory", ..., "no request or limit of memory"),
    ("Deployment", "grafana", f"{CONTAINER}/resources/requests/memory", "2Gi", "requests more memory than its limit"),
    ("Deployment", "grafana", f"{CONTAINER}/ports/0/hostPort", 3000, "port {"),
    ("CronJob", "retrain", f"spec/jobTemplate/{CONTAINER}/volumeMounts/1/mountPath", "/var/tmp", "/tmp is not writable"),
    ("RayJob", "run", f"{HEAD}/automountServiceAccountToken", True, "automountServiceAccountToken: True"),
    ("RayJob", "run", f"{HEAD}/containers/0/volumeMounts/-", {"name": "api-token", "mountPath": "/t"}, "is mounted in ray-head too"),
    ("RayJob", "run", "spec/rayClusterSpec/autoscalerOptions/securityContext", ..., "autoscaler: writable root"),
    ("RayJob", "run", "spec/rayClusterSpec/autoscalerOptions/volumeMounts/2", ..., "no token to ask"),
    ("RayJob", "retrain", f"{HEAD}/containers/0/volumeMounts/home/mountPath", "/tmp", "two volumes are mounted at one path"),
    ("RayJob", "run", f"{HEAD}/containers/0/env/1/name", "HF_TOKEN", "a variable is set twice"),
    ("RayJob", "run", f"{WORKER}/securityContext", ..., "run: decode: may be root"),
    ("RayJob", "run", f"{WORKER}/containers/0/env/0/value", "/root", "HOME /root is not writable"),
    ("RayJob", "run", f"{WORKER}/containers/0/resources/limits/memory", "64Gi", "is less than the object store"),
    ("RayJob", "run", "spec/submitterPodTemplate/spec/containers/0/securityContext", ..., "submitter: ray-job-submitter: writable"),
    (
        "RayJob",
        "teacher",
        f"{WORKER.replace('decode', 'teacher')}/containers/0/resources/limits/nvidia.com~1gpu",
        2,
        "GPUs: request and limit differ",
    ),
]


@pytest.mark.parametrize(("kind", "name", "where", "what", "said"), PLANTED)
def test_a_planted_mistake_is_found(kind: str, name: str, where: str, what: Any, said: str) -> None:
    those = objects("gpu")
    put(find(those, kind, name), where, what)
    assert said in "\n".join(softness(those))
