"""Is each object of its kind's schema? Core kinds by kubernetes-validate's strict schemas, KubeRay's by its CRDs and their CEL rules.

A CRD's schema lets unknown fields pass, which the API server then drops in silence: here every object that lists its properties is closed.
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celpy
from jsonschema import Draft202012Validator
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

KUBERNETES = "1.37.0"
CRDS = {"RayJob": "rayjobs", "RayCronJob": "raycronjobs"}


def of_schema(one: dict[str, Any]) -> list[str]:
    """What is wrong with an object; its KubeRay Pod templates are held to both the CRD and the core schema."""
    if one["apiVersion"].startswith("kueue."):
        return []  # no schema of Kueue's can be had here: test_queue.py asks what counts
    if one["apiVersion"] == "ray.io/v1":
        return [*_said(crd_validator(one["kind"]), one), *_broken_rules(_crd(one["kind"]), one, "")]
    return _said(core_validator(one["kind"], one["apiVersion"]), one)


def of_pod(template: dict[str, Any]) -> list[str]:
    """What the core schema says of a Pod template inside a CRD."""
    return _said(core_validator("PodTemplate", "v1"), {"apiVersion": "v1", "kind": "PodTemplate", "template": template})


@functools.cache
def core_validator(kind: str, api_version: str) -> Draft202012Validator:
    group, _, version = api_version.rpartition("/")
    name = f"{kind.lower()}-{group.split('.')[0]}-{version}" if group else f"{kind.lower()}-{version}"
    schema = schema_contents(f"kubernetes-json-schema/v{KUBERNETES}-local-strict/{name}.json", KUBERNETES)
    return Draft202012Validator(schema, registry=Resource.from_contents(schema) @ _definitions())


@functools.cache
def crd_validator(kind: str) -> Draft202012Validator:
    return Draft202012Validator(_strict(_crd(kind)))


@functools.cache
def _definitions() -> Registry:
    contents = schema_contents(f"kubernetes-json-schema/v{KUBERNETES}-local-strict/_definitions.json", KUBERNETES)
    return Resource.from_contents(contents) @ Registry()


@functools.cache
def _crd(kind: str) -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "crds" / f"{CRDS[kind]}.json").read_text())["schema"]


def _strict(schema: dict[str, Any], *, outermost: bool = True) -> dict[str, Any]:
    """OpenAPI's dialect as JSON Schema: no other fields, int-or-string, nullable."""
    made = dict(schema)
    if "properties" in made:
        made["properties"] = {name: _strict(inner, outermost=False) for name, inner in made["properties"].items()}
        made.setdefault("additionalProperties", False)
    if outermost:  # the API server's own
        made["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    for name in ("items", "additionalProperties"):
        if isinstance(made.get(name), dict):
            made[name] = _strict(made[name], outermost=False)
    if made.pop("x-kubernetes-int-or-string", False):
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if made.pop("nullable", False):
        made["type"] = [made["type"], "null"]
    return made


def _said(validator: Draft202012Validator, one: dict[str, Any]) -> list[str]:
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in validator.iter_errors(one)]


def _broken_rules(schema: dict[str, Any], value: Any, path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"] and not _program(rule["rule"]).evaluate({"self": celpy.json_to_cel(value)}):
            yield f"{path}: {rule['message']}"
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in schema.get("properties", {}):
                yield from _broken_rules(schema["properties"][name], inner, f"{path}/{name}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _broken_rules(schema.get("items", {}), inner, f"{path}/{i}")


@functools.cache
def _program(rule: str) -> Any:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))
