"""A RayJob of KubeRay: the copy of a template that runs a command of ours, and what its cluster will have. Plain objects, no cluster.

The templates are k8s/base/rayjobs. All that a job needs travels in the one object, so it is there whole or not at all and goes with it: the
recipe is an annotation of the head's Pod, which the Pod sees as a file; secrets and settings stay where the template refers to them.
"""

import copy
import json
import re
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import yaml

from infra.jobs import STAGES
from infra.resources import Node
from infra.shipped import Work
from infra.submit import Job, State, last_line

RUN_LABEL = "video2lora.io/run"
TEMPLATE_LABEL = "video2lora.io/template"
DATA_ANNOTATION = "video2lora.io/data"
QUEUE_ANNOTATION = "video2lora.io/queue"  # of a template: Kueue's queue for its copies
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
FOLDER = "/etc/video2lora/"  # of the head's container, with the recipe
VOLUME = "video2lora-work"
MAX_NAME = 47  # KubeRay adds to it what a label's 63 characters leave
STATES: dict[str, State] = {"Running": "running", "Retrying": "running", "Failed": "failed", "ValidationFailed": "failed"}
_BYTES = {"m": 1e-3, "": 1.0, "k": 1e3}

Object = dict[str, Any]


def template_of(command: str) -> str:
    """The name of the template that a command's jobs are copies of: its stage's folder, or one with every image's programs."""
    if command in ("run", "retrain"):
        return command
    module = "pipeline" if command == "manifest" else STAGES.get(command, "run")
    return module.split(".")[0]


def rayjob(work: Work, name: str, template: Object) -> Object:
    """The job, to be created. Kueue starts it where the template has a queue, else KubeRay does."""
    assert len(name) <= MAX_NAME, name
    made = copy.deepcopy({part: template[part] for part in ("apiVersion", "kind", "metadata", "spec")})
    there, annotations = made["metadata"], made["metadata"].get("annotations", {})
    queue = annotations.get(QUEUE_ANNOTATION)
    labels = {label: value for label, value in there.get("labels", {}).items() if label != TEMPLATE_LABEL} | {RUN_LABEL: work.run}
    made["metadata"] = {
        "name": name,
        **({"namespace": there["namespace"]} if "namespace" in there else {}),
        "labels": labels | ({QUEUE_LABEL: queue} if queue else {}),
        "annotations": {DATA_ANNOTATION: work.where.data},
    }
    made["spec"] |= {"suspend": queue is not None, "entrypoint": shlex.join(["video2lora", *work.arguments(FOLDER)])}
    _give(made["spec"]["rayClusterSpec"]["headGroupSpec"]["template"], work, {**work.environment, **_growth(template)})
    return made


def _growth(template: Object) -> dict[str, str]:
    """What the cluster can grow to, for stages to ask for; of one that does not grow, nothing."""
    cluster = template["spec"]["rayClusterSpec"]
    if not cluster.get("enableInTreeAutoscaling"):
        return {}
    groups = [{"n": node.n, "CPU": node.n_cpus, "GPU": node.n_gpus} for node in nodes_of(template) if node.n and node.n_cpus]
    return {"VIDEO2LORA_GROWS_TO": json.dumps(groups)}


def _give(pod: Object, work: Work, environment: Mapping[str, str]) -> None:
    """Recipe and environment for the head's Pod, where the driver runs."""
    files = work.files(FOLDER)
    metadata, spec = pod.setdefault("metadata", {}), pod["spec"]
    metadata["annotations"] = metadata.get("annotations", {}) | {f"video2lora.io/{name}": text for name, text in files.items()}
    items = [{"path": name, "fieldRef": {"fieldPath": f"metadata.annotations['video2lora.io/{name}']"}} for name in files]
    spec["volumes"] = [*spec.get("volumes", []), {"name": VOLUME, "downwardAPI": {"items": items}}]
    container = spec["containers"][0]
    container["volumeMounts"] = [*container.get("volumeMounts", []), {"name": VOLUME, "mountPath": FOLDER.rstrip("/"), "readOnly": True}]
    kept = [one for one in container.get("env", []) if one["name"] not in environment]
    container["env"] = [*kept, *({"name": name, "value": value} for name, value in environment.items())]


def environment_of(template: Object, config_maps: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """What the head's container will have in its environment, as far as it is no secret."""
    container = template["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    found: dict[str, str] = {}
    for name in config_maps_of(template):
        found |= config_maps.get(name, {})
    return found | {one["name"]: one["value"] for one in container.get("env", []) if "value" in one}


def config_maps_of(template: Object) -> list[str]:
    """Names of those that the head's environment is from."""
    container = template["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    return [one["configMapRef"]["name"] for one in container.get("envFrom", []) if "configMapRef" in one]


def nodes_of(template: Object) -> list[Node]:
    """The head, and each group at its largest."""
    cluster = template["spec"]["rayClusterSpec"]
    groups = [("head", 1, cluster["headGroupSpec"])]
    for group in cluster.get("workerGroupSpecs", []):
        n = group.get("maxReplicas", group.get("replicas", 0)) * group.get("numOfHosts", 1)
        groups.append((f"group {group['groupName']}", n, group))
    return [Node(name, *_size(group), n=n) for name, n, group in groups]


def _size(group: Object) -> tuple[float, float]:
    """CPUs and GPUs as Ray is told of them: by its parameters, else the container's limits (KubeRay's rule)."""
    parameters = group.get("rayStartParams") or {}
    resources = group["template"]["spec"]["containers"][0].get("resources") or {}
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    n_cpus = parameters.get("num-cpus", limits.get("cpu", requests.get("cpu", 0)))
    n_gpus = parameters.get("num-gpus", next((value for name, value in limits.items() if name.endswith("gpu")), 0))
    return _quantity(n_cpus), _quantity(n_gpus)


def _quantity(value: Any) -> float:
    """A number of CPUs or GPUs as Kubernetes writes it: 4, "4", "500m"."""
    matched = re.fullmatch(r"([0-9.]+)(m|k|)", str(value))
    return float(matched[1]) * _BYTES[matched[2]] if matched else 0.0


def job_of(found: Object) -> Job:
    """As KubeRay tells of it: the exit code of a job only in the words that it hands on from Ray."""
    metadata, status = found["metadata"], found.get("status") or {}
    stage, ended = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    state: State = STATES.get(stage, "waiting")
    if stage == "Complete":
        state = {"SUCCEEDED": "succeeded", "STOPPED": "stopped"}.get(ended, "failed")  # type: ignore[assignment]
    if state in ("waiting", "running") and "deletionTimestamp" in metadata:
        state = "stopped"  # it may take minutes to go, and nothing joins it
    message = status.get("message", "")
    code = re.search(r"failed with exit code (-?\d+)", message) if state == "failed" else None
    return Job(
        name=metadata["name"],
        run=metadata["labels"][RUN_LABEL],
        state=state,
        exit_code=int(code[1]) if code else (0 if state == "succeeded" else None),
        why=last_line(message) or status.get("reason", "") if state == "failed" else "",
        begun=_time(status.get("startTime") or metadata.get("creationTimestamp")),
        ended=_time(status.get("endTime")),
        data=(metadata.get("annotations") or {}).get(DATA_ANNOTATION, ""),
    )


class _Dumper(yaml.SafeDumper):
    """Texts of several lines stand as they are."""

    def represent_str(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _Dumper.represent_str)


def as_yaml(made: Object) -> str:
    """To be read by people too."""
    return str(yaml.dump(made, Dumper=_Dumper, sort_keys=False))


def _time(text: str | None) -> str:
    return "" if not text else datetime.fromisoformat(text).astimezone(UTC).isoformat(timespec="seconds")
