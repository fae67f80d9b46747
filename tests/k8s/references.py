"""Does everything that is named exist? Secrets by what docs/kubernetes.md makes, images by the Dockerfile, commands by the command line.

The API server checks none of this when it takes an object: a Pod would wait for ever, or a label select nothing.
"""

import ast
import functools
import re
import shlex
from collections.abc import Iterator
from typing import Any

import typer
from typer.exceptions import TyperException

from infra.cli import app
from tests.k8s.built import ROOT, Object, Pod, all_pods, find, named, ray_job_spec

OURS = re.compile(r"(?:.*/)?video2lora-(\w+)")
GIVEN_CONFIG_MAPS = {"kube-root-ca.crt": {"ca.crt"}}  # Kubernetes puts it into every namespace
LITERAL = re.compile(r"--from-literal=(\w+)=")


def dangling(those: list[Object]) -> list[str]:
    """Every name that leads nowhere."""
    found = [
        f"{pod.where}: {said}" for pod in all_pods(those) for said in (*_of_volumes(pod), *_of_values(pod, those), *_of_names(pod, those))
    ]
    return [*found, *_of_images(those), *_of_commands(those), *_of_environment(those)]


@functools.cache
def documented_secrets() -> dict[str, set[str]]:
    """Secret -> keys, of the `kubectl create secret generic` commands in docs/kubernetes.md."""
    text = (ROOT / "docs" / "kubernetes.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"kubectl .*create secret generic (\S+)(.*)", text)
    return {name: set(LITERAL.findall(rest)) for name, rest in commands}


@functools.cache
def image_targets() -> set[str]:
    text = (ROOT / "infra" / "Dockerfile").read_text()
    return set(re.findall(r"^FROM\s+\S+\s+AS\s+(\S+)", text, flags=re.IGNORECASE | re.MULTILINE))


@functools.cache
def worker_environment() -> dict[str, str]:
    """WORKER_ENVIRONMENT of infra/cluster.py, read without importing Ray."""
    for node in ast.parse((ROOT / "infra" / "cluster.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "WORKER_ENVIRONMENT":
            return ast.literal_eval(node.value)
    raise AssertionError("infra/cluster.py has no WORKER_ENVIRONMENT")


def _of_volumes(pod: Pod) -> Iterator[str]:
    volumes = {volume["name"] for volume in pod.spec.get("volumes", [])}
    for container in pod.spec["containers"]:
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes and pod.kind != "StatefulSet":
                yield f"{container['name']} mounts {mount['name']}, which is no volume"


def _of_values(pod: Pod, those: list[Object]) -> Iterator[str]:
    """Secrets and ConfigMaps, whole or by key, from the environment or as files."""
    secrets = documented_secrets()
    settings = {one["metadata"]["name"]: set(one["data"]) for one in those if one["kind"] == "ConfigMap"} | GIVEN_CONFIG_MAPS
    for kind, name, keys in _asked(pod.spec):
        there = (secrets if kind == "secret" else settings).get(name)
        if there is None:
            yield f"{kind} {name} does not exist"
        elif keys - there:
            yield f"{kind} {name} has no {', '.join(sorted(keys - there))}"


def _asked(spec: dict[str, Any]) -> Iterator[tuple[str, str, set[str]]]:
    """Kind, name and keys; no keys where the whole is asked for."""
    for container in spec["containers"]:
        for kind in ("secret", "configMap"):
            yield from ((kind, source[f"{kind}Ref"]["name"], set()) for source in container.get("envFrom", []) if f"{kind}Ref" in source)
            values = [item["valueFrom"] for item in container.get("env", []) if f"{kind}KeyRef" in item.get("valueFrom", {})]
            yield from ((kind, value[f"{kind}KeyRef"]["name"], {value[f"{kind}KeyRef"]["key"]}) for value in values)
    for volume in spec.get("volumes", []):
        for source in (volume, *volume.get("projected", {}).get("sources", [])):
            for kind in source.keys() & {"secret", "configMap"}:
                asked = source[kind]
                yield kind, asked.get("secretName", asked.get("name")), {item["key"] for item in asked.get("items", [])}


def _of_names(pod: Pod, those: list[Object]) -> Iterator[str]:
    there = {(one["kind"], one["metadata"]["name"]) for one in those}
    wanted = [("ServiceAccount", pod.spec.get("serviceAccountName")), ("PriorityClass", pod.spec.get("priorityClassName"))]
    wanted += [
        ("PersistentVolumeClaim", v["persistentVolumeClaim"]["claimName"])
        for v in pod.spec.get("volumes", [])
        if "persistentVolumeClaim" in v
    ]
    yield from (f"{kind} {name} does not exist" for kind, name in wanted if name is not None and (kind, name) not in there)


def _of_images(those: list[Object]) -> Iterator[str]:
    for pod in all_pods(those):
        for container in pod.spec["containers"]:
            name, _, digest = container["image"].partition("@")
            repository, _, tag = name.rpartition(":")
            if (not digest and (not repository or "/" in tag)) or tag == "latest":
                yield f"{pod.where}: image {container['image']} has no tag, or one that moves"
            ours = OURS.fullmatch(repository or name)
            if ours and ours[1] not in image_targets():
                yield f"{pod.where}: image {container['image']}: infra/Dockerfile has no target {ours[1]}"


def _of_commands(those: list[Object]) -> Iterator[str]:
    for one in those:
        job = ray_job_spec(one)
        if job is not None:
            yield from (f"{named(one)}: {said}" for said in wrong_command(shlex.split(job["entrypoint"])))
            if re.search(r"[;&|<>$`\n]", job["entrypoint"]):
                yield f"{named(one)}: the entrypoint is more than a command"  # the operator writes it into a shell's line
    for pod in all_pods(those):
        for container in pod.spec["containers"]:
            argv = [*container.get("command", []), *container.get("args", [])]
            if argv[:1] == ["video2lora"]:
                yield from (f"{pod.where}: {said}" for said in wrong_command(argv))


def wrong_command(argv: list[str]) -> Iterator[str]:
    """Unless it is one of ours, whose arguments it takes."""
    command: Any = typer.main.get_command(app)
    if argv[0] != "video2lora" or argv[1] not in command.commands:
        yield f"{shlex.join(argv)}: no such command"
        return
    try:
        command.commands[argv[1]].make_context(argv[1], argv[2:])
    except TyperException as error:
        yield f"{shlex.join(argv)}: {error}"
    except typer.Exit:
        yield f"{shlex.join(argv)}: does nothing"


def _of_environment(those: list[Object]) -> Iterator[str]:
    """What every process of Ray's must have."""
    settings = find(those, "ConfigMap", "ray-environment")["data"]
    for name, value in worker_environment().items():
        if settings.get(name) != value:
            yield f"ConfigMap ray-environment: {name} is {settings.get(name)}, expected {value}"
    for pod in all_pods(those):
        if pod.kind in ("head", "worker"):
            named_there = {source.get("configMapRef", {}).get("name") for source in pod.spec["containers"][0].get("envFrom", [])}
            for name in {"ray-environment", "video2lora"} - named_there:
                yield f"{pod.where}: has nothing of ConfigMap {name}"
