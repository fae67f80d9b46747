"""What a Pod of ours may be: not root, nothing writable but what is mounted, no capability, no token it does not need, known sizes.

`pod-security.kubernetes.io/enforce: restricted` asks for a part of it, when it is too late: here before anything is applied.
"""

from collections.abc import Iterator
from typing import Any

from tests.k8s.built import Object, Pod, all_pods, named, ray_job_spec

WITH_TOKEN = {"CronJob retrain", "Deployment prometheus"}  # who asks the API server
OBJECT_STORE_SHARE = 0.3  # of a container's memory: Ray's default, and it must fit /dev/shm
UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "m": 1e-3, "": 1}


def softness(those: list[Object]) -> list[str]:
    """Every Pod and container that is not as it must be."""
    found = [f"{pod.where}: {said}" for pod in all_pods(those) for said in (*_of_pod(pod), *_of_containers(pod))]
    for one in those:
        job = ray_job_spec(one)
        if job is not None:
            found += [f"{named(one)}: autoscaler: {said}" for said in _of_autoscaler(job["rayClusterSpec"])]
    return found


def quantity(text: str | int | float) -> float:
    """`500m`, `8Gi`, 2 -> a number."""
    text = str(text)
    unit = next(unit for unit in UNITS if text.endswith(unit))
    return float(text.removesuffix(unit)) * UNITS[unit]


def _of_pod(pod: Pod) -> Iterator[str]:
    context = pod.spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "may be root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "no seccomp profile"
    for name in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        if pod.spec.get(name):
            yield name
    if pod.spec.get("automountServiceAccountToken") is not (pod.where in WITH_TOKEN):
        yield f"automountServiceAccountToken: {pod.spec.get('automountServiceAccountToken')}"
    for volume in pod.spec.get("volumes", []):
        if "hostPath" in volume:
            yield f"hostPath {volume['name']}"
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"emptyDir {volume['name']} without a limit: it could fill its node"


def _of_containers(pod: Pod) -> Iterator[str]:
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
    for container in (*pod.spec["containers"], *pod.spec.get("initContainers", [])):
        yield from (f"{container['name']}: {said}" for said in (*_of_container(container), *_of_mounts(pod, container, volumes)))


def _of_container(container: dict[str, Any]) -> Iterator[str]:
    context, resources = container.get("securityContext", {}), container.get("resources", {})
    if context.get("readOnlyRootFilesystem") is not True:
        yield "writable root filesystem"
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield "may gain privileges"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield "keeps capabilities"
    for name in ("cpu", "memory"):
        if name not in resources.get("requests", {}) or name not in resources.get("limits", {}):
            yield f"no request or limit of {name}"
        elif quantity(resources["requests"][name]) > quantity(resources["limits"][name]):
            yield f"requests more {name} than its limit"
    if resources.get("requests", {}).get("nvidia.com/gpu") != resources.get("limits", {}).get("nvidia.com/gpu"):
        yield "GPUs: request and limit differ"
    for port in container.get("ports", []):
        if "hostPort" in port or len(port.get("name", "")) > 15:
            yield f"port {port}"


def _of_mounts(pod: Pod, container: dict[str, Any], volumes: dict[str, Any]) -> Iterator[str]:
    mounts = {mount["mountPath"]: volumes.get(mount["name"], {}) for mount in container.get("volumeMounts", [])}
    if len(mounts) < len(container.get("volumeMounts", [])):
        yield "two volumes are mounted at one path"
    names = [item["name"] for item in container.get("env", [])]
    if len(names) > len(set(names)):
        yield "a variable is set twice"
    writable = {path for path, volume in mounts.items() if "emptyDir" in volume or "persistentVolumeClaim" in volume}
    if "/tmp" not in writable:
        yield "/tmp is not writable"
    home = next((item["value"] for item in container.get("env", []) if item["name"] == "HOME"), None)
    if home is not None and home not in writable:
        yield f"HOME {home} is not writable"
    if pod.kind in ("head", "worker"):
        shm = mounts.get("/dev/shm", {}).get("emptyDir", {})
        if shm.get("medium") != "Memory":
            yield "/dev/shm is not memory: Ray would keep its objects on a disk"
        elif quantity(shm["sizeLimit"]) < OBJECT_STORE_SHARE * quantity(container["resources"]["limits"]["memory"]):
            yield f"/dev/shm of {shm['sizeLimit']} is less than the object store"


def _of_autoscaler(cluster: dict[str, Any]) -> Iterator[str]:
    if not cluster.get("enableInTreeAutoscaling"):
        return
    options = cluster.get("autoscalerOptions", {})
    yield from _of_container(options)
    head = cluster["headGroupSpec"]["template"]["spec"]
    tokens = {v["name"] for v in head["volumes"] if any("serviceAccountToken" in s for s in v.get("projected", {}).get("sources", []))}
    if not tokens & {mount["name"] for mount in options.get("volumeMounts", [])}:
        yield "no token to ask the API server with"
    for container in head["containers"]:
        if tokens & {mount["name"] for mount in container["volumeMounts"]}:
            yield f"its token is mounted in {container['name']} too"
