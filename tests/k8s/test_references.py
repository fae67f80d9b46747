"""Everything named exists, and the mistakes that this finds."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infra.cli import app
from infra.config import load_recipe
from tests.k8s.built import OVERLAYS, ROOT, find, objects, pods, put, ray_job_spec
from tests.k8s.references import dangling, documented_secrets, image_targets, wrong_command

HEAD = "spec/rayClusterSpec/headGroupSpec/template/spec"
CRON = "spec/jobTemplate/spec/template/spec"
MLFLOW = "spec/template/spec"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_that_is_named_exists(overlay: str) -> None:
    assert dangling(objects(overlay)) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_command_answers_help(overlay: str) -> None:
    commands = {shlex.split(job["entrypoint"])[1] for one in objects(overlay) if (job := ray_job_spec(one))}
    commands |= {pod.spec["containers"][0]["command"][1] for one in objects(overlay) for pod in pods(one) if pod.kind == "CronJob"}
    assert commands >= {"frames", "targets", "train", "run", "retrain"}
    for command in commands:
        answered = CliRunner().invoke(app, [command, "--help"])
        assert answered.exit_code == 0 and "--recipe" in answered.output, command


def test_images_are_targets_and_targets_are_stages() -> None:
    assert image_targets() >= {"pipeline", "teacher", "training", "run"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_templates_are_named_as_the_stages_folders_and_start_nothing(overlay: str) -> None:
    jobs = {one["metadata"]["name"]: one["spec"] for one in objects(overlay) if one["kind"] == "RayJob"}
    assert set(jobs) == {"pipeline", "teacher", "training", "run", "retrain"}
    assert all(spec["suspend"] and spec["shutdownAfterJobFinishes"] for spec in jobs.values())
    for name, spec in jobs.items():
        images = {c["image"] for pod in pods({"kind": "RayJob", "metadata": {"name": name}, "spec": spec}) for c in pod.spec["containers"]}
        assert len(images) == 1 and f"video2lora-{'run' if name == 'retrain' else name}:" in images.pop()


def test_the_shipped_recipes_are_recipes(tmp_path: Path) -> None:
    for overlay, shipped in (("dev", "demo"), ("gpu", "smolvlm2_500m")):
        file = tmp_path / f"{overlay}.yaml"
        file.write_text(find(objects(overlay), "ConfigMap", "video2lora-recipe")["data"]["recipe.yaml"])
        ours = {"retraining", "promotion"}
        assert load_recipe(str(file)).model_dump(exclude=ours) == load_recipe(shipped).model_dump(exclude=ours)


def test_the_docs_name_every_key_that_is_asked_for_and_no_other() -> None:
    asked = {
        key for path in (ROOT / "k8s").rglob("*.yaml") for key in re.findall(r"secretKeyRef: \{name: \S+, key: (\w+)", path.read_text())
    }
    assert {key for keys in documented_secrets().values() for key in keys} == asked


PLANTED: list[tuple[str, str, str, Any, str]] = [
    ("CronJob", "retrain", f"{CRON}/serviceAccountName", "submiter", "ServiceAccount submiter does not exist"),
    ("CronJob", "retrain", f"{CRON}/volumes/0/configMap/name", "recipes", "configMap recipes does not exist"),
    ("CronJob", "retrain", f"{CRON}/containers/0/volumeMounts/0/name", "recipes", "mounts recipes, which is no volume"),
    ("CronJob", "retrain", f"{CRON}/containers/0/command/1", "submitt", "no such command"),
    ("CronJob", "retrain", f"{CRON}/containers/0/args/1", "--kubernets", "No such option"),
    ("CronJob", "retrain", f"{CRON}/containers/0/image", "video2lora-run", "has no tag"),
    ("Deployment", "mlflow", f"{MLFLOW}/containers/0/image", "r.example.com:5000/video2lora-training", "has no tag"),
    ("Deployment", "mlflow", f"{MLFLOW}/containers/0/image", "r.example.com/video2lora-training:latest", "one that moves"),
    ("Deployment", "mlflow", f"{MLFLOW}/containers/0/image", "r.example.com/video2lora-trainer:0.1.0", "no target trainer"),
    (
        "Deployment",
        "mlflow",
        f"{MLFLOW}/containers/0/env/4/valueFrom/secretKeyRef/key",
        "passwort",
        "secret video2lora-postgres has no passwort",
    ),
    ("Deployment", "prometheus", f"{MLFLOW}/volumes/1/persistentVolumeClaim/claimName", "prom", "PersistentVolumeClaim prom does not"),
    ("StatefulSet", "postgres", f"{MLFLOW}/volumes/0/secret/secretName", "postgres", "secret postgres does not exist"),
    ("StatefulSet", "postgres", f"{MLFLOW}/priorityClassName", "high", "PriorityClass high does not exist"),
    ("RayJob", "run", "spec/entrypoint", "video2lora runn --recipe demo", "no such command"),
    ("RayJob", "run", "spec/entrypoint", "video2lora run --recipes demo", "No such option"),
    ("RayJob", "run", "spec/entrypoint", "video2lora run --recipe demo; rm -rf /", "more than a command"),
    ("RayJob", "run", f"{HEAD}/containers/0/envFrom/0", ..., "has nothing of ConfigMap ray-environment"),
    ("RayJob", "run", f"{HEAD}/containers/0/env/3/valueFrom/secretKeyRef/name", "hub", "secret hub does not exist"),
    ("RayJob", "run", "spec/submitterPodTemplate/spec/containers/0/image", "r.example.com/video2lora-submit:1", "no target submit"),
    ("ConfigMap", "ray-environment", "data/MKL_CBWR", "AVX512", "MKL_CBWR is AVX512, expected AVX512,STRICT"),
]


@pytest.mark.parametrize(("kind", "name", "where", "what", "said"), PLANTED)
def test_a_planted_mistake_is_found(kind: str, name: str, where: str, what: Any, said: str) -> None:
    those = objects("gpu")
    put(find(those, kind, name), where, what)
    assert said in "\n".join(dangling(those))


def test_arguments_are_read_as_the_command_line_reads_them() -> None:
    assert list(wrong_command(["video2lora", "frames", "--recipe", "demo"])) == []
    assert list(wrong_command(["video2lora", "frames", "--help"])) == ["video2lora frames --help: does nothing"]
    assert list(wrong_command(["python", "frames"])) == ["python frames: no such command"]
