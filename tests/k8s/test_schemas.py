"""Each object as the API server would ask it to be, and the mistakes that this finds."""

from typing import Any

import pytest

from tests.k8s.built import OVERLAYS, find, named, objects, pods, put
from tests.k8s.schemas import of_pod, of_schema

CLUSTER = "spec/rayClusterSpec"
WORKER = f"{CLUSTER}/workerGroupSpecs/decode"
HEAD = f"{CLUSTER}/headGroupSpec"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_of_its_kinds_schema(overlay: str) -> None:
    assert {named(one): said for one in objects(overlay) if (said := of_schema(one))} == {}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_of_a_ray_cluster_is_a_pod_to_kubernetes_too(overlay: str) -> None:
    made = [(pod.where, of_pod({"metadata": {"labels": pod.labels}, "spec": pod.spec})) for one in objects(overlay) for pod in pods(one)]
    assert len(made) > 20 and [where for where, said in made if said] == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_belongs_in_a_namespace_is_in_ours(overlay: str) -> None:
    everywhere = {"Namespace", "PriorityClass", "ClusterQueue", "ResourceFlavor"}
    wrong = [
        named(one) for one in objects(overlay) if one["metadata"].get("namespace") != (None if one["kind"] in everywhere else "video2lora")
    ]
    assert wrong == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_two_objects_share_a_name(overlay: str) -> None:
    names = [named(one) for one in objects(overlay)]
    assert len(names) == len(set(names))


PLANTED: list[tuple[str, str, str, Any, str]] = [  # kind, name, where, what, what is said
    ("Deployment", "mlflow", "spec/template/spec/containers/0/imagePullPolcy", "Always", "imagePullPolcy"),
    ("Deployment", "mlflow", "spec/replicas", "one", "'one' is not of type"),
    ("Deployment", "mlflow", "spec/selector", ..., "'selector' is a required property"),
    ("StatefulSet", "postgres", "spec/template/spec/containers/0/securityContext/readOnlyRootFileSystem", True, "readOnlyRootFileSystem"),
    ("CronJob", "retrain", "spec/concurencyPolicy", "Forbid", "concurencyPolicy"),
    ("CronJob", "retrain", "spec/startingDeadlineSeconds", "2h", "'2h' is not of type"),
    ("NetworkPolicy", "ray", "spec/ingress/0/form", [], "form"),
    ("PodDisruptionBudget", "ray-heads", "spec/minAvailable", True, "True"),
    ("Role", "submitter", "rules/0/verb", ["get"], "verb"),
    ("PriorityClass", "video2lora-head", "value", "high", "'high' is not of type"),
    ("ConfigMap", "video2lora", "data/VIDEO2LORA_TRAINING_WORKERS", 8, "8 is not of type"),
    ("RayJob", "run", "spec/shutdownAfterJobFinish", True, "shutdownAfterJobFinish"),
    ("RayJob", "run", "spec/backoffLimit", "two", "'two' is not of type"),
    ("RayJob", "run", f"{CLUSTER}/authOptions/mode", "on", "'on' is not one of"),
    ("RayJob", "run", f"{CLUSTER}/autoscalerOptions/version", "v3", "'v3' is not one of"),
    ("RayJob", "run", f"{CLUSTER}/rayVersion", 2.6, "2.6 is not of type"),
    ("RayJob", "run", f"{HEAD}/rayStartParams/num-cpus", 0, "0 is not of type"),
    ("RayJob", "run", f"{HEAD}/template/spec/containers/0/env/0/vlaue", "x", "vlaue"),
    ("RayJob", "run", f"{WORKER}/groupName", ..., "'groupName' is a required property"),
    ("RayJob", "run", f"{WORKER}/minReplica", 1, "minReplica"),
    ("RayJob", "run", f"{WORKER}/template/spec/containers/0/resources/limits/memory", "32 GB", "'32 GB' does not match"),
    ("RayJob", "run", f"{WORKER}/template/spec/containers", ..., "'containers' is a required property"),
    ("RayJob", "run", "spec/submitterPodTemplate/spec/containers/0/volumeMounts/0/path", "/tmp", "path"),
    ("RayJob", "run", "spec/deletionStrategy", {"onSuccess": {"policy": "DeleteCluster"}}, "requires either BOTH"),
    ("RayJob", "run", "spec/managedBy", "us", "managedBy field value must be"),
    ("RayJob", "run", f"{CLUSTER}/managedBy", "us", "managedBy field value must be"),
]


@pytest.mark.parametrize(("kind", "name", "where", "what", "said"), PLANTED)
def test_a_planted_mistake_is_found(kind: str, name: str, where: str, what: Any, said: str) -> None:
    one = find(objects("gpu"), kind, name)
    put(one, where, what)
    assert said in "\n".join(of_schema(one))


@pytest.mark.parametrize(
    ("where", "what", "said"),
    [
        ("timezone", "Etc/UTC", "timezone"),
        ("schedule", ..., "'schedule' is a required property"),
        ("jobTemplate/spec", {}, "spec"),
        ("jobTemplate/rayClusterSpec/headGroupSpec/template/spec/containers/0/image", 1, "1 is not of type"),
    ],
)
def test_a_mistake_in_a_ray_cron_job_is_found(where: str, what: Any, said: str) -> None:
    one = find(objects("raycronjob"), "RayCronJob", "retrain")
    put(one, f"spec/{where}", what)
    assert said in "\n".join(of_schema(one))


def test_a_mistake_in_a_ray_pod_is_one_to_kubernetes_too() -> None:
    spec = next(pods(find(objects("gpu"), "RayJob", "run"))).spec
    spec["containers"][0]["imagePullPolcy"] = "Always"
    assert "imagePullPolcy" in "\n".join(of_pod({"metadata": {}, "spec": spec}))
