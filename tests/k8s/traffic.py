"""Who reaches whom: the NetworkPolicies as a network plugin reads them, Services and budgets by what they select."""

from collections.abc import Iterator
from typing import Any

from tests.k8s.built import Object, all_pods, named

OUTSIDE = [  # what policies name and these manifests do not hold
    {"app.kubernetes.io/component": "kuberay-operator"},
]
OTHER_NAMESPACE = "namespaceSelector"


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """As the API server reads a label selector; an empty one selects all."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for one in selector.get("matchExpressions", []):
        there, key = labels.get(one["key"]), one["key"] in labels
        fits = {"In": there in one.get("values", []), "NotIn": there not in one.get("values", []), "Exists": key, "DoesNotExist": not key}
        if not fits[one["operator"]]:
            return False
    return True


def reaches(those: list[Object], source: dict[str, str], target: dict[str, str], port: int, *, same_namespace: bool = True) -> bool:
    """Whether a Pod with such labels may open a connection to another's port: both ends' policies must let it."""
    leaves = not same_namespace or _lets(those, "Egress", of=source, other=target, port=port, same_namespace=True)
    return leaves and _lets(those, "Ingress", of=target, other=source, port=port, same_namespace=same_namespace)


def leaves_for(those: list[Object], source: dict[str, str], port: int) -> bool:
    """Whether it may open a connection to anywhere outside the cluster."""
    rules = [rule for policy in _policies(those, "Egress", source) for rule in policy.get("egress", [])]
    return any(_open(rule, port) and (not rule.get("to") or any("0.0.0.0/0" in str(peer) for peer in rule["to"])) for rule in rules)


def selecting_nothing(those: list[Object]) -> list[str]:
    """Services, budgets, policies and workloads whose selectors match no Pod there is."""
    return [*_of_workloads(those), *_of_policies(those)]


def exposed(those: list[Object]) -> list[str]:
    """Whatever could be reached from outside of the cluster."""
    found = [f"{named(one)}: reachable from outside" for one in those if one["kind"] in ("Ingress", "HTTPRoute", "Gateway")]
    for one in those:
        text = str(one.get("spec", {}))
        if any(word in text for word in ("NodePort", "nodePort", "LoadBalancer", "externalIPs", "'enableIngress': True")):
            found.append(f"{named(one)}: reachable from outside")
    denied = any(one["kind"] == "NetworkPolicy" and one["spec"] == _DENY for one in those)
    return found + ([] if denied else ["nothing denies what is not allowed"])


_DENY = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def _policies(those: list[Object], direction: str, labels: dict[str, str]) -> Iterator[dict[str, Any]]:
    for one in those:
        if one["kind"] == "NetworkPolicy" and direction in one["spec"]["policyTypes"] and selects(one["spec"]["podSelector"], labels):
            yield one["spec"]


def _lets(those: list[Object], direction: str, *, of: dict[str, str], other: dict[str, str], port: int, same_namespace: bool) -> bool:
    policies = list(_policies(those, direction, of))
    rules = [rule for policy in policies for rule in policy.get(direction.lower(), [])]
    peers = "to" if direction == "Egress" else "from"
    return not policies or any(
        _open(rule, port) and (not rule.get(peers) or any(_is(peer, other, same_namespace) for peer in rule[peers])) for rule in rules
    )


def _open(rule: dict[str, Any], port: int) -> bool:
    return not rule.get("ports") or any(one["port"] == port and one["protocol"] == "TCP" for one in rule["ports"])


def _is(peer: dict[str, Any], labels: dict[str, str], same_namespace: bool) -> bool:
    if "ipBlock" in peer or ("podSelector" not in peer and peer.get(OTHER_NAMESPACE) != {}):
        return False
    return (same_namespace or OTHER_NAMESPACE in peer) and selects(peer.get("podSelector", {}), labels)


def _of_workloads(those: list[Object]) -> Iterator[str]:
    pods = all_pods(those)
    for one in those:
        spec = one.get("spec", {})
        if one["kind"] == "Service":
            chosen = [pod for pod in pods if selects({"matchLabels": spec["selector"]}, pod.labels)]
            names = {port["name"] for pod in chosen for container in pod.spec["containers"] for port in container["ports"]}
            if not chosen or {port["targetPort"] for port in spec["ports"]} - names:
                yield f"{named(one)}: selects no Pod with its ports"
        elif one["kind"] in ("Deployment", "StatefulSet") and not selects(spec["selector"], spec["template"]["metadata"]["labels"]):
            yield f"{named(one)}: does not select its own Pods"
        elif one["kind"] == "PodDisruptionBudget" and not any(selects(spec["selector"], pod.labels) for pod in pods):
            yield f"{named(one)}: selects no Pod"


def _of_policies(those: list[Object]) -> Iterator[str]:
    labels = [pod.labels for pod in all_pods(those)]
    for one in those:
        if one["kind"] != "NetworkPolicy":
            continue
        spec = one["spec"]
        if not any(selects(spec["podSelector"], there) for there in labels):
            yield f"{named(one)}: selects no Pod"
        for rule in (*spec.get("ingress", []), *spec.get("egress", [])):
            for peer in (*rule.get("from", []), *rule.get("to", [])):
                if "podSelector" in peer and not any(selects(peer["podSelector"], there) for there in (*labels, *OUTSIDE)):
                    yield f"{named(one)}: {peer['podSelector']} selects no Pod"
