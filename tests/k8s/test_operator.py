"""What the operator would refuse, and the mistakes that this finds: each is of a schema, so nothing else would."""

from typing import Any

import pytest

from tests.k8s.built import OVERLAYS, find, named, objects, put
from tests.k8s.operator_rules import refusals
from tests.k8s.schemas import of_schema

CLUSTER = "spec/rayClusterSpec"
WORKER = f"{CLUSTER}/workerGroupSpecs/decode"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_operator_takes_every_object(overlay: str) -> None:
    assert {named(one): said for one in objects(overlay) if (said := refusals(one))} == {}


PLANTED: list[tuple[dict[str, Any], str]] = [  # what is put where, what is said
    ({"metadata/name": "r" * 48}, "48 characters, at most 47"),
    ({"metadata/name": "7-runs"}, "no DNS-1035 label"),
    ({"spec/shutdownAfterJobFinishes": False}, "suspend without shutdownAfterJobFinishes"),
    ({"spec/shutdownAfterJobFinishes": False, "spec/suspend": False}, "ttlSecondsAfterFinished without"),
    (
        {"spec/deletionStrategy": {"deletionRules": [{"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED", "ttlSeconds": 1}}]}},
        "deletionRules with shutdownAfterJobFinishes",
    ),
    ({"spec/deletionStrategy": {"onSuccess": {"policy": "DeleteNone"}, "onFailure": {"policy": "DeleteCluster"}}}, "DeleteNone with"),
    ({"spec/clusterSelector": {"ray.io/cluster": "mine"}, "spec/suspend": False}, "backoffLimit with clusterSelector"),
    ({"spec/clusterSelector": {"ray.io/cluster": "mine"}, "spec/backoffLimit": 0}, "suspend with clusterSelector"),
    ({CLUSTER: ...}, "neither rayClusterSpec nor clusterSelector"),
    ({"spec/backoffLimit": -1}, "backoffLimit below 0"),
    ({"spec/activeDeadlineSeconds": 0}, "activeDeadlineSeconds not above 0"),
    ({"spec/submissionMode": "InteractiveMode"}, "backoffLimit with InteractiveMode"),
    ({"spec/submissionMode": "SidecarMode"}, "SidecarMode with a submitter's template"),
    ({"spec/runtimeEnvYAML": "a: ["}, "runtimeEnvYAML is no YAML"),
    ({f"{CLUSTER}/rayVersion": ...}, "needs rayVersion 2.52"),
    ({f"{CLUSTER}/rayVersion": "2.51.9"}, "needs rayVersion 2.52"),
    ({f"{CLUSTER}/authOptions/enableK8sTokenAuth": True}, "enableK8sTokenAuth is not for a RayJob"),
    ({f"{CLUSTER}/upgradeStrategy": {"type": "Recreate"}}, "upgradeStrategy is not for a RayJob"),
    ({f"{CLUSTER}/networkPolicy": {"mode": "DenyAll"}}, "networkPolicy needs a feature gate"),
    ({f"{CLUSTER}/headGroupSpec/template/spec/restartPolicy": "Always"}, "head: restartPolicy other than Never"),
    ({f"{WORKER}/template/spec/restartPolicy": "OnFailure"}, "decode: restartPolicy other than Never"),
    ({f"{WORKER}/template/spec/containers": []}, "decode: no container"),
    ({f"{WORKER}/minReplicas": 99}, "decode: minReplicas 99, maxReplicas 16"),
    ({f"{WORKER}/suspend": True}, "decode: suspended with the autoscaler"),
    ({f"{WORKER}/rayStartParams": {"labels": "a=b"}}, "decode: labels in rayStartParams"),
    ({f"{WORKER}/rayStartParams": {"num-cpus": "1"}, f"{WORKER}/resources": {"CPU": "1"}}, "decode: resources both"),
    ({f"{CLUSTER}/autoscalerOptions/version": "v1", f"{WORKER}/idleTimeoutSeconds": 60}, "without autoscaler v2"),
    ({f"{CLUSTER}/enableInTreeAutoscaling": False, f"{WORKER}/minReplicas": ...}, "no minReplicas or maxReplicas, and no autoscaler"),
    ({f"{CLUSTER}/headGroupSpec/template/spec/containers/0/env/0/name": "RAY_REDIS_ADDRESS"}, "without gcsFaultToleranceOptions"),
    ({f"{CLUSTER}/headGroupSpec/template/spec/containers/0/env/0/name": "RAY_enable_autoscaler_v2"}, "RAY_enable_autoscaler_v2 beside"),
]


@pytest.mark.parametrize(("planted", "said"), PLANTED, ids=[said for _, said in PLANTED])
def test_a_planted_mistake_is_refused(planted: dict[str, Any], said: str) -> None:
    one = find(objects("gpu"), "RayJob", "run")
    for where, what in planted.items():
        put(one, where, what)
    assert said in "\n".join(refusals(one))


def test_these_rules_are_in_no_schema() -> None:
    for planted, said in PLANTED:
        one = find(objects("gpu"), "RayJob", "run")
        for where, what in planted.items():
            put(one, where, what)
        if "minReplicas or" not in said:  # which the CRD asks for too
            assert of_schema(one) == [], said


@pytest.mark.parametrize(
    ("where", "what", "said"),
    [
        ("spec/schedule", "CRON_TZ=Europe/Berlin 17 3 * * *", "TZ belongs into timeZone"),
        ("spec/schedule", "every night", "not five fields"),
        ("spec/timeZone", "", "timeZone: empty"),
        ("metadata/name", "r" * 40, "at most 35"),
        ("spec/jobTemplate/shutdownAfterJobFinishes", False, "ttlSecondsAfterFinished without"),
        ("spec/jobTemplate/rayClusterSpec/rayVersion", "2.40.0", "needs rayVersion 2.52"),
    ],
)
def test_a_ray_cron_job_is_held_to_its_own_rules_and_to_those_of_its_job(where: str, what: Any, said: str) -> None:
    one = find(objects("raycronjob"), "RayCronJob", "retrain")
    put(one, where, what)
    assert said in "\n".join(refusals(one))
