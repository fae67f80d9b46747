"""The manifests as `kubectl kustomize` builds them, once a session, and the Pods in them as the operator would make them."""

import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
OVERLAYS = ("dev", "gpu", "kueue", "raycronjob")

Object = dict[str, Any]


class Pod(NamedTuple):
    """A Pod template with the labels it will have; `kind` is head, worker or submitter of Ray's, or what it belongs to."""

    where: str
    kind: str
    labels: dict[str, str]
    spec: dict[str, Any]


def objects(overlay: str) -> list[Object]:
    """Everything the overlay holds, anew each time."""
    return json.loads(_built(overlay))


def find(those: list[Object], kind: str, name: str) -> Object:
    (found,) = [one for one in those if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def named(one: Object) -> str:
    return f"{one['kind']} {one['metadata']['name']}"


def ray_job_spec(one: Object) -> dict[str, Any] | None:
    """Of a RayJob, or of the one that a RayCronJob makes."""
    if one["kind"] == "RayJob":
        return one["spec"]
    return one["spec"]["jobTemplate"] if one["kind"] == "RayCronJob" else None


def pods(one: Object) -> Iterator[Pod]:
    """With the labels that KubeRay adds (labelPod in its pod.go), which selectors here rely on."""
    name, spec = named(one), one.get("spec", {})
    job = ray_job_spec(one)
    if job is not None:
        cluster = job["rayClusterSpec"]
        yield _ray(name, "head", "headgroup", cluster["headGroupSpec"]["template"])
        for group in cluster["workerGroupSpecs"]:
            yield _ray(name, "worker", group["groupName"], group["template"])
        yield Pod(f"{name}: submitter", "submitter", _labels(job["submitterPodTemplate"]), job["submitterPodTemplate"]["spec"])
    elif one["kind"] in ("Deployment", "StatefulSet"):
        yield Pod(name, one["kind"], _labels(spec["template"]), spec["template"]["spec"])
    elif one["kind"] == "CronJob":
        template = spec["jobTemplate"]["spec"]["template"]
        yield Pod(name, "CronJob", _labels(template), template["spec"])


def all_pods(those: list[Object]) -> list[Pod]:
    return [pod for one in those for pod in pods(one)]


def at(node: Any, path: str) -> Any:
    """What is at `a/b/0/c`; an item of a list also by its name, and a slash in a name as `~1`, as in JSON pointers."""
    for step in path.split("/"):
        node = node[_key(node, step)]
    return node


def put(node: Any, path: str, value: Any) -> None:
    """Plant a value at `a/b/0/c`; ... takes out what is there, and `-` as the last step appends."""
    *parents, last = path.split("/")
    inner = at(node, "/".join(parents)) if parents else node
    if last == "-":
        inner.append(value)
    elif value is ...:
        del inner[_key(inner, last)]
    else:
        inner[_key(inner, last)] = value


def _key(node: Any, step: str) -> str | int:
    if isinstance(node, dict):
        return step.replace("~1", "/")
    return int(step) if step.isdigit() else [item.get("groupName", item.get("name")) for item in node].index(step)


@functools.cache
def _built(overlay: str) -> str:
    command = [str(Path(sys.executable).parent / "kubectl"), "kustomize", str(ROOT / "k8s" / "overlays" / overlay)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr, ran.stderr  # a deprecated field of a kustomization is only warned of
    return json.dumps([one for one in yaml.load_all(ran.stdout, Loader=yaml.CSafeLoader) if one])


def _labels(template: dict[str, Any]) -> dict[str, str]:
    return template["metadata"]["labels"]


def _ray(name: str, kind: str, group: str, template: dict[str, Any]) -> Pod:
    added = {"ray.io/is-ray-node": "yes", "ray.io/node-type": kind, "ray.io/group": group, "ray.io/cluster": "made-by-the-operator"}
    return Pod(f"{name}: {group}", kind, {**_labels(template), **added}, template["spec"])
