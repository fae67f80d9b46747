"""Jobs on Kubernetes by the real kubectl, against a server that speaks as much of the API as it needs; templates from our own overlays."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.config import Where, load_recipe
from infra.kubectl import kustomize
from infra.running import held
from tests.infra.conftest import Command, Ran
from tests.servers.kubernetes_api import KubernetesApi, kubernetes_api

pytestmark = pytest.mark.slow

OVERLAY = Path(__file__).parents[2] / "k8s/overlays/dev"


@pytest.fixture(scope="module")
def objects() -> list[dict[str, Any]]:
    """The dev overlay."""
    return [one for one in yaml.safe_load_all(kustomize(str(OVERLAY))) if one]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Data in a folder, of which the plan is told at once. Of buckets, nothing can be read from here."""
    for name in ("MLFLOW_TRACKING_URI", "VIDEO2LORA_RUN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VIDEO2LORA_DATA", str(tmp_path / "data"))
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:1", "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)


@pytest.fixture
def api(objects: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    """A namespace in which the overlay is applied, and which kubectl is set to."""
    with kubernetes_api() as server:
        for one in objects:
            server.apply(one)
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
        monkeypatch.setenv("HOME", str(tmp_path))  # where kubectl keeps what it discovered
        yield server


def submitted(api: KubernetesApi) -> list[dict[str, Any]]:
    """RayJobs that are no templates."""
    return [one for (kind, _), one in api.objects.items() if kind == "rayjobs" and "video2lora.io/run" in one["metadata"]["labels"]]


def name_of(ran: Ran) -> str:
    """The job's, of what submit said last."""
    return ran.out.splitlines()[-1].split(":")[0]


def test_submitted_joined_followed_and_submitted_again(command: Command, api: KubernetesApi) -> None:
    ran = command("submit", "targets", "--kubernetes")
    assert ran.code == 0, ran.err
    (made,) = submitted(api)
    name = made["metadata"]["name"]
    assert name_of(ran) == name
    assert made["spec"]["suspend"] is False
    assert made["spec"]["entrypoint"] == "video2lora targets --recipe /etc/video2lora/recipe.yaml"
    assert made["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"].startswith("registry.example.com/")
    assert "targets" in ran.out
    assert "VIDEO2LORA_TRAINING_WORKERS=1" in ran.out  # the namespace's own setting
    assert "hours: never measured here with these weights" in ran.out or "0 prompts pending" in ran.out

    assert "runs already, joined" in command("submit", "targets", "--kubernetes").out
    assert len(submitted(api)) == 1

    api.told(name, jobDeploymentStatus="Running", jobStatus="RUNNING", startTime="2026-11-30T10:00:00Z")
    api.logs[f"{name}-x1"] = "targets: 5 prompts\n"
    assert command("logs", name, "--kubernetes").out == "targets: 5 prompts\n"
    assert "running" in command("status", "--kubernetes").out

    message = "Job entrypoint command failed with exit code 5, last available logs:\nerror: s3://mine: no such bucket\n"
    api.told(name, jobDeploymentStatus="Failed", jobStatus="FAILED", message=message)
    api.logs[f"{name}-x1"] += "error: s3://mine: no such bucket\n"
    followed = command("logs", made["metadata"]["labels"]["video2lora.io/run"], "--kubernetes", "--follow")
    assert (followed.code, followed.out) == (5, "targets: 5 prompts\nerror: s3://mine: no such bucket\n")
    assert followed.err.strip().endswith(f"{name}: failed, exit code 5: error: s3://mine: no such bucket")

    again = command("submit", "targets", "--kubernetes")
    assert name_of(again) == f"{name}-2"
    assert submitted(api)[-1]["metadata"]["labels"]["video2lora.io/run"] == name
    assert command("logs", name, "--kubernetes").out == ""  # of the last attempt
    assert command("logs", f"{name}-1", "--kubernetes").out.startswith("targets: 5 prompts")


def test_runs_are_those_of_the_data_folder_that_jobs_work_on(
    command: Command, api: KubernetesApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "knows no job" in command("runs", "-k").err
    assert command("submit", "frames", "--kubernetes").code == 0
    data = str(tmp_path / "data")
    with held(Where(data=data, run="nightly"), "run", {}) as running:
        running.why = "all is well"
    monkeypatch.setenv("VIDEO2LORA_DATA", str(tmp_path / "another"))
    ran = command("runs", "-k")
    assert ran.code == 0, ran.err
    assert ran.out.startswith(f"{data}\n") and "nightly" in ran.out and "all is well" in ran.out
    (told,) = json.loads(command("runs", "-k", "--json").out)
    assert (told["data"], told["run"], told["state"]) == (data, "nightly", "done")
    assert "nightly, attempt 1" in command("runs", "show", "nightly", "-k").out
    assert command("runs", "show", "nightly").code == 3
    assert f"no such run in {data}" in command("runs", "show", "weekly", "-k").err
    for words, says in (
        (("runs", "-k", "show", "nightly"), "options of `runs show` go behind it"),
        (("runs", "--json", "show", "nightly"), "options of `runs show` go behind it"),
        (("runs", "-n", "elsewhere"), "--namespace goes with --kubernetes"),
        (("status", "-n", "elsewhere"), "--namespace goes with --kubernetes"),
        (("runs", "-k", "--address", "http://127.0.0.1:1"), "one or the other"),
    ):
        refused = command(*words)
        assert refused.code == 2 and says in " ".join(refused.err.replace("│", " ").split()), refused


def test_room_is_that_of_the_jobs_own_template(command: Command, api: KubernetesApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not what the namespace's settings say that `retrain`'s cluster grows to, as under the overlay raycronjob."""
    api.objects["configmaps", "video2lora"]["data"]["VIDEO2LORA_GROWS_TO"] = '[{"n": 1, "CPU": 0.5}]'
    ran = command("submit", "frames", "--kubernetes", "--dry-run")
    assert ran.code == 0, ran.err
    monkeypatch.setenv("VIDEO2LORA_TEACHER_CPUS", "1000")
    assert "there is room for 0" in command("submit", "targets", "--kubernetes", "--dry-run").err


def test_two_submit_the_same_at_once(command: Command, api: KubernetesApi) -> None:
    """Both have seen that nothing runs; the server takes the name once, and the other joins."""
    from infra import kubernetes, shipped, submit

    cluster, work = kubernetes.for_work(shipped.work("run", None, load_recipe("demo"), shipped.Where()), overlay=None, namespace=None)
    both = threading.Barrier(2)

    class AtOnce(kubernetes.Kubernetes):
        def jobs(self) -> list[submit.Job]:
            found = super().jobs()
            both.wait(30)
            return found

    told: list[tuple[str, bool]] = []
    threads = [
        threading.Thread(target=lambda: told.append(submit.join_or_start(work, AtOnce(template=cluster.template)))) for _ in range(2)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert sorted(told) == [(work.run, False), (work.run, True)]
    assert len(submitted(api)) == 1


def test_cancelled(command: Command, api: KubernetesApi) -> None:
    name = name_of(command("submit", "frames", "--kubernetes"))
    ran = command("cancel", name, "--kubernetes")
    assert (ran.code, ran.out) == (0, f"{name}: stopped\n")
    assert submitted(api) == []
    assert command("cancel", name, "--kubernetes").code == 3


def test_written_from_an_overlay_without_a_cluster(
    command: Command, objects: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("VIDEO2LORA_DATA", "s3://mine/data")
    monkeypatch.setattr("infra.submit.PLAN_S", 1.0)
    file = tmp_path / "job.yaml"
    words = ("submit", "retrain", "s3://videos", "--kubernetes", "--from", OVERLAY, "-o", file)
    ran = command(*words)
    assert ran.code == 0, ran.err
    made = yaml.safe_load(file.read_text())
    template = next(one for one in objects if one["kind"] == "RayJob" and one["metadata"]["name"] == "retrain")
    assert made["metadata"]["namespace"] == template["metadata"]["namespace"]
    assert made["spec"]["entrypoint"] == "video2lora retrain s3://videos --recipe /etc/video2lora/recipe.yaml"
    head = made["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {"name": "VIDEO2LORA_DATA", "value": "s3://mine/data"} in head["env"]
    assert {"name": "VIDEO2LORA_RUN", "value": made["metadata"]["name"]} in head["env"]
    assert made["spec"]["rayClusterSpec"]["workerGroupSpecs"] == template["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert "cost: cannot be told from here: s3://mine/data told nothing in 1 s" in ran.out
    monkeypatch.setenv("VIDEO2LORA_DATA", str(tmp_path / "other"))
    ran = command(*words)
    assert (ran.code, "is there already, with something else in it" in ran.err) == (3, True)


def test_what_the_template_has_no_room_for_is_refused(command: Command, api: KubernetesApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEO2LORA_TEACHER_GPUS", "1")
    ran = command("submit", "run", "--kubernetes")
    assert ran.code == 3
    assert "targets needs 1 engine of 1 CPU and 1 GPU each on one node" in ran.err
    assert submitted(api) == []


def test_errors_say_what_to_do(command: Command, api: KubernetesApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert command("submit", "train", "--kubernetes", "--dry-run").code == 0
    assert submitted(api) == []
    api.forbidden.add("create rayjobs")
    ran = command("submit", "train", "--kubernetes")
    assert ran.code == 3
    assert 'cannot create resource "rayjobs"; k8s/base/access.yaml has the rights' in ran.err

    del api.objects["rayjobs", "training"]
    ran = command("submit", "train", "--kubernetes")
    assert ran.code == 3
    assert "apply it (`kubectl apply -k k8s/overlays/NAME`)" in ran.err

    assert command("status", "--kubernetes", "--namespace", "other").code == 3
    assert command("submit", "train", "--kubernetes", "--from", tmp_path).code == 3  # no kustomization there

    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    ran = command("status", "--kubernetes")
    assert ran.code == 7
    assert "was refused" in ran.err

    monkeypatch.setenv("PATH", str(tmp_path))
    ran = command("status", "--kubernetes")
    assert ran.code == 3
    assert ran.err.startswith("error: kubectl is not on the PATH")
    assert shutil.which("kubectl") is None


def test_options_that_do_not_go_together(command: Command) -> None:
    assert command("submit", "run", "--output", "x").code == 2
    assert command("submit", "run", "--kubernetes", "--address", "http://127.0.0.1:1").code == 2
