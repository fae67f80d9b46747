"""What KubeRay 1.7's operator refuses though the schema takes it (ValidateRayJobSpec and its kin, validation.go), as far as we use it.

Without an operator these would show as a RayJob that is Failed, or never starts. Feature gates are taken as they are by default.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.k8s.built import Object, ray_job_spec

MAX_RAY_JOB_NAME = 47  # and 53 for a RayCluster, whose name the operator makes of it
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
AUTOSCALER_V2 = "RAY_enable_autoscaler_v2"


def refusals(one: Object) -> list[str]:
    """Of a RayJob or a RayCronJob; nothing of any other."""
    job = ray_job_spec(one)
    if job is None:
        return []
    return [*_of_name(one), *_of_schedule(one), *_of_deletion(job), *_of_job(job), *_of_cluster(job.get("rayClusterSpec"))]


def _of_name(one: Object) -> Iterator[str]:
    name = one["metadata"]["name"]
    longest = MAX_RAY_JOB_NAME - (12 if one["kind"] == "RayCronJob" else 0)  # the time of a tick is appended
    if len(name) > longest:
        yield f"name: {len(name)} characters, at most {longest}"
    if not DNS_1035.fullmatch(name):
        yield f"name: {name!r} is no DNS-1035 label"


def _of_schedule(one: Object) -> Iterator[str]:
    if one["kind"] != "RayCronJob":
        return
    if "TZ" in one["spec"]["schedule"]:
        yield "schedule: TZ belongs into timeZone"
    if len(one["spec"]["schedule"].split()) != 5 and not one["spec"]["schedule"].startswith("@"):
        yield "schedule: not five fields"
    if one["spec"].get("timeZone") == "":
        yield "timeZone: empty"


def _of_deletion(job: dict[str, Any]) -> Iterator[str]:
    shutdown, strategy = job.get("shutdownAfterJobFinishes", False), job.get("deletionStrategy")
    if job.get("suspend") and not shutdown:
        yield "suspend without shutdownAfterJobFinishes"
    if job.get("ttlSecondsAfterFinished", 0) > 0 and not shutdown:
        yield "ttlSecondsAfterFinished without shutdownAfterJobFinishes"
    if strategy is not None and shutdown and strategy.get("deletionRules"):
        yield "deletionRules with shutdownAfterJobFinishes"
    if strategy is not None and shutdown and "DeleteNone" in str(strategy):
        yield "DeleteNone with shutdownAfterJobFinishes"


def _of_job(job: dict[str, Any]) -> Iterator[str]:
    yield from _of_submission(job)
    for name in ("backoffLimit", "ttlSecondsAfterFinished"):
        if job.get(name, 0) < 0:
            yield f"{name} below 0"
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if job.get(name, 1) <= 0:
            yield f"{name} not above 0"
    if job.get("clusterSelector"):
        if job.get("backoffLimit", 0) > 0:
            yield "backoffLimit with clusterSelector"
        if job.get("suspend"):
            yield "suspend with clusterSelector"
    elif "rayClusterSpec" not in job:
        yield "neither rayClusterSpec nor clusterSelector"


def _of_submission(job: dict[str, Any]) -> Iterator[str]:
    if job.get("submissionMode") == "InteractiveMode" and job.get("backoffLimit", 0) > 0:
        yield "backoffLimit with InteractiveMode"
    if job.get("submissionMode") == "SidecarMode" and ("submitterPodTemplate" in job or "submitterConfig" in job):
        yield "SidecarMode with a submitter's template"
    try:
        yaml.safe_load(job.get("runtimeEnvYAML", ""))
    except yaml.YAMLError:
        yield "runtimeEnvYAML is no YAML"


def _of_cluster(cluster: dict[str, Any] | None) -> Iterator[str]:
    if cluster is None:
        return
    scales, options = cluster.get("enableInTreeAutoscaling", False), cluster.get("autoscalerOptions", {})
    if cluster.get("authOptions", {}).get("mode") == "token" and _version(cluster.get("rayVersion", "")) < (2, 52):
        yield "authOptions.mode token needs rayVersion 2.52 or later"
    if cluster.get("authOptions", {}).get("enableK8sTokenAuth"):
        yield "authOptions.enableK8sTokenAuth is not for a RayJob"
    if "upgradeStrategy" in cluster:
        yield "upgradeStrategy is not for a RayJob"
    for name in ("networkPolicy", "tlsOptions", "historyServerOptions"):
        if name in cluster:
            yield f"{name} needs a feature gate that is off"
    env = [item["name"] for item in cluster["headGroupSpec"]["template"]["spec"]["containers"][0].get("env", [])]
    if AUTOSCALER_V2 in env and (not scales or "version" in options):
        yield f"{AUTOSCALER_V2} beside or without autoscalerOptions.version"
    for name in {"RAY_REDIS_ADDRESS", "REDIS_USERNAME"} & set(env):
        yield f"{name} without gcsFaultToleranceOptions"
    yield from _of_group("head", cluster["headGroupSpec"], scales=scales, v2=options.get("version") == "v2")
    for group in cluster.get("workerGroupSpecs", []):
        yield from _of_group(group.get("groupName", ""), group, scales=scales, v2=options.get("version") == "v2")
        yield from _of_workers(group, scales=scales, v2=scales and options.get("version") == "v2")


def _of_group(name: str, group: dict[str, Any], *, scales: bool, v2: bool) -> Iterator[str]:
    start = group.get("rayStartParams", {})
    if not group["template"]["spec"].get("containers"):
        yield f"{name}: no container"
    if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(start):
        yield f"{name}: resources both in rayStartParams and beside them"
    if "labels" in start:
        yield f"{name}: labels in rayStartParams"
    if scales and v2 and group["template"]["spec"].get("restartPolicy", "Never") != "Never":
        yield f"{name}: restartPolicy other than Never with autoscaler v2"


def _of_workers(group: dict[str, Any], *, scales: bool, v2: bool) -> Iterator[str]:
    name, least, most = group.get("groupName", ""), group.get("minReplicas"), group.get("maxReplicas")
    if not scales and (least is None or most is None):
        yield f"{name}: no minReplicas or maxReplicas, and no autoscaler"
    if least is not None and most is not None and not 0 <= least <= most:
        yield f"{name}: minReplicas {least}, maxReplicas {most}"
    if scales and group.get("suspend"):
        yield f"{name}: suspended with the autoscaler"
    if ("idleTimeoutSeconds" in group or group.get("priority")) and not v2:
        yield f"{name}: idleTimeoutSeconds or priority without autoscaler v2"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2]) if re.fullmatch(r"\d+(\.\d+)+", text) else (0,)
