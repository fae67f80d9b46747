"""The copy of a template: what makes it another job, what it keeps, and what is read back from KubeRay."""

import copy
from typing import Any

import pytest
import yaml

from infra.config import NodeGroup, Recipe, Where
from infra.jobs import STAGES
from infra.rayjob import as_yaml, config_maps_of, environment_of, job_of, nodes_of, rayjob, template_of
from infra.resources import COMMANDS, Node
from infra.shipped import Work, work

TEMPLATE: dict[str, Any] = yaml.safe_load("""
apiVersion: ray.io/v1
kind: RayJob
metadata:
  name: run
  namespace: mine
  uid: "1"
  resourceVersion: "7"
  labels: {app: video2lora, video2lora.io/template: "true"}
  annotations: {kubectl.kubernetes.io/last-applied-configuration: "{}"}
spec:
  suspend: true
  shutdownAfterJobFinishes: true
  rayClusterSpec:
    headGroupSpec:
      rayStartParams: {num-cpus: "0"}
      template:
        metadata: {annotations: {keep: me}}
        spec:
          containers:
            - name: ray-head
              resources: {limits: {cpu: "4"}}
              envFrom: [{configMapRef: {name: settings}}, {secretRef: {name: secret}}]
              env:
                - {name: VIDEO2LORA_DATA, value: s3://theirs}
                - {name: HF_TOKEN, valueFrom: {secretKeyRef: {name: secret, key: token}}}
              volumeMounts: [{name: tmp, mountPath: /tmp}]
          volumes: [{name: tmp, emptyDir: {}}]
    workerGroupSpecs:
      - groupName: decode
        maxReplicas: 5
        rayStartParams: {}
        template: {spec: {containers: [{resources: {requests: {cpu: 3500m}}}]}}
      - groupName: gpu
        maxReplicas: 2
        numOfHosts: 2
        rayStartParams: {}
        template: {spec: {containers: [{resources: {limits: {cpu: 8, nvidia.com/gpu: 4}}}]}}
status: {jobDeploymentStatus: Suspended}
""")


@pytest.fixture
def asked() -> Work:
    return work("run", "s3://videos/a b", Recipe(), Where(data="s3://mine"))


def test_the_copy_runs_the_command_under_its_own_name(asked: Work) -> None:
    made = rayjob(asked, f"{asked.run}-2", TEMPLATE)
    assert made["metadata"] == {
        "name": f"{asked.run}-2",
        "namespace": "mine",
        "labels": {"app": "video2lora", "video2lora.io/run": asked.run},
        "annotations": {"video2lora.io/data": "s3://mine"},
    }
    assert made["spec"]["suspend"] is False
    assert made["spec"]["shutdownAfterJobFinishes"] is True
    assert made["spec"]["entrypoint"] == "video2lora run 's3://videos/a b' --recipe /etc/video2lora/recipe.yaml"
    assert "status" not in made
    assert TEMPLATE["spec"]["suspend"] is True  # which is left as it was


def test_recipe_and_environment_reach_the_driver(asked: Work) -> None:
    pod = rayjob(asked, asked.run, TEMPLATE)["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    assert pod["metadata"]["annotations"] == {"keep": "me", "video2lora.io/recipe.yaml": asked.files()["recipe.yaml"]}
    item = {"path": "recipe.yaml", "fieldRef": {"fieldPath": "metadata.annotations['video2lora.io/recipe.yaml']"}}
    assert pod["spec"]["volumes"][1:] == [{"name": "video2lora-work", "downwardAPI": {"items": [item]}}]
    head = pod["spec"]["containers"][0]
    assert head["volumeMounts"][1:] == [{"name": "video2lora-work", "mountPath": "/etc/video2lora", "readOnly": True}]
    assert head["env"] == [
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "secret", "key": "token"}}},
        {"name": "VIDEO2LORA_DATA", "value": "s3://mine"},
        {"name": "VIDEO2LORA_RUN", "value": asked.run},
    ]


def test_the_driver_is_told_what_the_cluster_can_grow_to(asked: Work) -> None:
    template = copy.deepcopy(TEMPLATE)
    template["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] = True
    mine = asked.on(Where(data="s3://mine", grows_to='[{"CPU": 1}]'))
    (container,) = rayjob(mine, asked.run, template)["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    (told,) = [one["value"] for one in container["env"] if one["name"] == "VIDEO2LORA_GROWS_TO"]
    assert Where(grows_to=told).groups() == (NodeGroup(n=5, CPU=3.5), NodeGroup(n=4, CPU=8.0, GPU=4.0))


def test_a_template_with_a_queue_is_left_to_kueue(asked: Work) -> None:
    queued = {**TEMPLATE, "metadata": {**TEMPLATE["metadata"], "annotations": {"video2lora.io/queue": "gpus"}}}
    made = rayjob(asked, asked.run, queued)
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert made["spec"]["suspend"] is True


def test_it_is_written_to_be_read(asked: Work) -> None:
    made = rayjob(asked, asked.run, TEMPLATE)
    text = as_yaml(made)
    assert yaml.safe_load(text) == made
    assert "recipe.yaml: |\n" in text


def test_what_the_jobs_cluster_will_have() -> None:
    assert nodes_of(TEMPLATE) == [Node("head", 0.0), Node("group decode", 3.5, n=5), Node("group gpu", 8.0, 4.0, n=4)]
    assert config_maps_of(TEMPLATE) == ["settings"]
    there = environment_of(TEMPLATE, {"settings": {"VIDEO2LORA_TRAINING_WORKERS": "4", "VIDEO2LORA_DATA": "s3://older"}})
    assert there == {"VIDEO2LORA_TRAINING_WORKERS": "4", "VIDEO2LORA_DATA": "s3://theirs"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_commands_jobs_have_a_template_and_a_name_that_kuberay_takes(command: str) -> None:
    assert template_of(command) in ("pipeline", "teacher", "training", "run", "retrain")
    assert command not in STAGES or template_of(command) == STAGES[command].split(".")[0]
    assert len(f"{work(command, 's3://v' if command == 'manifest' else None, Recipe(), Where()).run}-999") <= 47


@pytest.mark.parametrize(
    ("status", "state", "code", "why"),
    [
        ({}, "waiting", None, ""),
        ({"jobDeploymentStatus": "Suspended"}, "waiting", None, ""),
        ({"jobDeploymentStatus": "Initializing"}, "waiting", None, ""),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, "running", None, ""),
        ({"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED", "message": "failed with exit code 7"}, "running", None, ""),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, "succeeded", 0, ""),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, "stopped", None, ""),
        (
            {
                "jobDeploymentStatus": "Failed",
                "jobStatus": "FAILED",
                "message": "Job entrypoint command failed with exit code 3, last available logs:\nerror: no such file\n",
            },
            "failed",
            3,
            "error: no such file",
        ),
        ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}, "failed", None, "DeadlineExceeded"),
        ({"jobDeploymentStatus": "ValidationFailed", "message": "name is too long"}, "failed", None, "name is too long"),
    ],
)
def test_what_kuberay_tells_of_a_job(status: dict[str, str], state: str, code: int | None, why: str) -> None:
    metadata = {"name": "run-1-2", "labels": {"video2lora.io/run": "run-1"}, "creationTimestamp": "2026-11-30T10:00:00Z"}
    job = job_of({"metadata": metadata, "status": status})
    assert (job.state, job.exit_code, job.why, job.attempt) == (state, code, why, 2)
    assert job.begun == "2026-11-30T10:00:00+00:00"


def test_a_job_that_is_being_deleted_is_none_to_join() -> None:
    metadata = {"name": "run-1", "labels": {"video2lora.io/run": "run-1"}, "deletionTimestamp": "2026-11-30T10:00:00Z"}
    states = {stage: job_of({"metadata": metadata, "status": {"jobDeploymentStatus": stage}}).state for stage in ("", "Running", "Failed")}
    assert states == {"": "stopped", "Running": "stopped", "Failed": "failed"}
