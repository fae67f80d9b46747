"""Who reaches whom, and the mistakes that this finds."""

from typing import Any

import pytest

from tests.k8s.built import OVERLAYS, all_pods, find, objects, put
from tests.k8s.traffic import exposed, leaves_for, reaches, selecting_nothing

JOBS, METRICS, MLFLOW, POSTGRES, PROMETHEUS = 8265, 8080, 5000, 5432, 9090
STRANGER: dict[str, str] = {"app": "somebody-else"}
OPERATOR = {"app.kubernetes.io/component": "kuberay-operator"}


def _labels(overlay: str) -> dict[str, dict[str, str]]:
    """Of each sort of Pod: head, worker, submitter, mlflow, ..."""
    sorts = {"Deployment": "app.kubernetes.io/component", "StatefulSet": "app.kubernetes.io/component"}
    return {pod.labels[sorts[pod.kind]] if pod.kind in sorts else pod.kind: pod.labels for pod in all_pods(objects(overlay))}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_who_reaches_whom(overlay: str) -> None:
    those, pod = objects(overlay), _labels(overlay)
    wanted = {
        ("head", "worker", 40000),
        ("worker", "head", 6379),
        ("worker", "worker", 40000),
        ("submitter", "head", JOBS),
        ("head", "mlflow", MLFLOW),
        ("worker", "mlflow", MLFLOW),
        ("mlflow", "postgres", POSTGRES),
        ("prometheus", "head", METRICS),
        ("prometheus", "worker", METRICS),
        ("prometheus", "head", 44217),
        ("grafana", "prometheus", PROMETHEUS),
    }
    ports = (JOBS, METRICS, MLFLOW, POSTGRES, PROMETHEUS, 6379, 40000, 44217)
    within = {("head", "worker"), ("worker", "head"), ("worker", "worker"), ("head", "head")}  # of Ray: all ports, to its own
    may = {(a, b, port) for a in pod for b in pod for port in ports if reaches(those, pod[a], pod[b], port)}
    assert wanted <= may
    extra = {one for one in may - wanted if one[:2] not in within}
    assert extra == {("prometheus", "worker", 44217)}  # where nothing listens


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_from_other_namespaces_the_operator_alone_reaches_the_jobs_api(overlay: str) -> None:
    those, pod = objects(overlay), _labels(overlay)
    ports = (JOBS, METRICS, MLFLOW, POSTGRES, PROMETHEUS, 6379, 3000)
    reached = [(name, port) for name in pod for port in ports if reaches(those, OPERATOR, pod[name], port, same_namespace=False)]
    assert reached == [("head", JOBS)]
    for same in (True, False):
        assert not [name for name in pod for port in ports if reaches(those, STRANGER, pod[name], port, same_namespace=same)]
    assert not reaches(those, pod["submitter"], pod["head"], JOBS, same_namespace=False), (
        "one of its labels in another namespace is a stranger"
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_who_gets_out(overlay: str) -> None:
    those, pod = objects(overlay), _labels(overlay)
    assert {name for name in pod if leaves_for(those, pod[name], 443)} == {"head", "worker", "mlflow", "prometheus"} | (
        {"CronJob"} & set(pod)
    )
    assert {name for name in pod if leaves_for(those, pod[name], 6443)} == {"head", "prometheus"} | ({"CronJob"} & set(pod))
    assert not [name for name in pod if leaves_for(those, pod[name], 80)]  # where a cloud's metadata service gives credentials away


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_selector_selects_something_and_nothing_is_exposed(overlay: str) -> None:
    assert selecting_nothing(objects(overlay)) == [] and exposed(objects(overlay)) == []


HEAD_GROUP = "spec/rayClusterSpec/headGroupSpec"
SELECTORS: list[tuple[str, str, str, Any, str]] = [
    ("Service", "mlflow", "spec/selector/app.kubernetes.io~1component", "ml-flow", "Service mlflow: selects no Pod"),
    ("Service", "mlflow", "spec/ports/0/targetPort", "web", "Service mlflow: selects no Pod with its ports"),
    ("Deployment", "grafana", "spec/selector/matchLabels/app.kubernetes.io~1component", "board", "does not select its own Pods"),
    ("PodDisruptionBudget", "training-workers", "spec/selector/matchLabels/ray.io~1group", "train", "training-workers: selects no Pod"),
    (
        "NetworkPolicy",
        "postgres",
        "spec/podSelector/matchLabels/app.kubernetes.io~1component",
        "pg",
        "NetworkPolicy postgres: selects no Pod",
    ),
    ("NetworkPolicy", "mlflow", "spec/ingress/0/from/0/podSelector/matchLabels/app.kubernetes.io~1component", "rays", "selects no Pod"),
]
EXPOSING: list[tuple[str, str, str, Any]] = [
    ("Service", "grafana", "spec/type", "LoadBalancer"),
    ("Service", "grafana", "spec/ports/0/nodePort", 30000),
    ("RayJob", "run", f"{HEAD_GROUP}/serviceType", "NodePort"),
    ("RayJob", "run", f"{HEAD_GROUP}/enableIngress", True),
    ("NetworkPolicy", "default-deny", "spec/policyTypes", ["Ingress"]),
]


@pytest.mark.parametrize(("kind", "name", "where", "what", "said"), SELECTORS)
def test_a_selector_that_selects_nothing_is_found(kind: str, name: str, where: str, what: Any, said: str) -> None:
    those = objects("gpu")
    put(find(those, kind, name), where, what)
    assert said in "\n".join(selecting_nothing(those))


@pytest.mark.parametrize(("kind", "name", "where", "what"), EXPOSING)
def test_what_would_be_exposed_is_found(kind: str, name: str, where: str, what: Any) -> None:
    those = objects("gpu")
    put(find(those, kind, name), where, what)
    assert len(exposed(those)) == 1


def test_an_open_policy_is_seen() -> None:
    those, pod = objects("gpu"), _labels("gpu")
    put(find(those, "NetworkPolicy", "ray-head"), "spec/ingress/0/from", ...)
    assert reaches(those, STRANGER, pod["head"], JOBS, same_namespace=False)
