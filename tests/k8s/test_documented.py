"""The commands of docs/kubernetes.md: ours as the command line reads them, kubectl's as far as no API server is needed."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.k8s.built import ROOT, find, objects
from tests.k8s.references import image_targets, wrong_command

TEXT = (ROOT / "docs" / "kubernetes.md").read_text().replace("\\\n", " ")
LINES = [
    line.split("  #")[0].strip()
    for block in re.findall(r"^```\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]


def _lines(beginning: str) -> list[str]:
    found = [line for line in LINES if re.match(beginning, line)]
    assert found, beginning
    return found


def _kubectl(arguments: str) -> str:
    command = ["bash", "-c", f"kubectl {arguments}"]  # as it is typed: with "$(openssl ...)" in it
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    made = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "HF_TOKEN": "t"}
    ran = subprocess.run(command, env={**os.environ, "PATH": path, **made}, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


KUBECTL = r"kubectl( -n video2lora)? (create|config|kustomize|apply|get|port-forward|patch)"


def test_every_line_is_of_a_kind_that_is_tested() -> None:
    assert [line for line in LINES if not re.match(rf"video2lora|export VIDEO2LORA|docker (build|push)|{KUBECTL}", line)] == []


def test_our_commands_are_commands() -> None:
    for line in _lines("video2lora"):
        assert list(wrong_command(shlex.split(line))) == []


@pytest.mark.parametrize("line", [line for line in LINES if "create secret" in line])
def test_secrets_are_made_with_a_value_for_each_key(line: str) -> None:
    made = yaml.safe_load(_kubectl(line.removeprefix("kubectl ") + " --dry-run=client -o yaml"))
    assert made["metadata"]["namespace"] == "video2lora" and set(re.findall(r"--from-literal=(\w+)", line)) == set(made["data"])
    if made["metadata"]["name"] == "video2lora-postgres":
        assert len(made["data"]["password"]) == 64  # 24 bytes, in hex, in base64


def test_images_are_built_of_a_target_that_there_is() -> None:
    for line in _lines("docker build"):
        words = shlex.split(line)
        assert words[words.index("--target") + 1] in image_targets() and (ROOT / words[words.index("-f") + 1]).is_file()


def test_overlays_and_objects_that_are_named_are_there() -> None:
    those = objects("dev")
    for line in _lines("kubectl (kustomize|apply)"):
        (folder,) = re.findall(r"k8s/\S+", line)
        assert (ROOT / folder / "kustomization.yaml").is_file()
    for line in _lines("kubectl -n video2lora port-forward svc/[a-z]"):
        name, port = line.split("svc/")[1].split()
        assert find(those, "Service", name)["spec"]["ports"][0]["port"] == int(port)
    assert all("--from=cronjob/retrain" in line for line in _lines("kubectl -n video2lora create job"))
    for kind, overlay in (("CronJob", "dev"), ("RayCronJob", "raycronjob")):
        patches = [shlex.split(line) for line in _lines(f"kubectl -n video2lora patch {kind.lower()}")]
        assert find(objects(overlay), kind, "retrain")["spec"]["suspend"] and all("retrain" in words for words in patches)
        told = [yaml.safe_load(words[-1])["spec"] for words in patches]
        assert told == [{"suspend": False}, {"suspend": True}], "switched on, then off again"


def test_the_policy_for_a_bucket_within_the_cluster_is_one() -> None:
    from tests.k8s.schemas import of_schema

    (policy,) = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)]
    assert of_schema(policy) == []
    (https,) = [one for one in objects("gpu") if one["kind"] == "NetworkPolicy" and one["metadata"]["name"] == "https"]
    assert policy["spec"]["podSelector"] == https["spec"]["podSelector"]
