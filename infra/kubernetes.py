"""Jobs as RayJobs of KubeRay, by kubectl: each is a cluster of its own, and KubeRay's retries are further clusters of the same job.

A job is a copy of a template (`infra.rayjob`): the one that is applied in the namespace, or that an overlay's folder builds. Its log is
that of the Pod which KubeRay submits it from.
"""

import json
from pathlib import Path

import yaml

from infra.config import Where, where_of
from infra.errors import BadInputError
from infra.kubectl import NOT_YET, RefusedError, kubectl, kustomize
from infra.objects import write_new
from infra.rayjob import RUN_LABEL, Object, as_yaml, config_maps_of, environment_of, job_of, nodes_of, rayjob, template_of
from infra.resources import Node
from infra.shipped import Work, placed
from infra.submit import Job

RAYJOBS = "rayjobs.ray.io"


class Kubernetes:
    """A namespace: the one that kubectl is set to, unless it is given or an overlay names one."""

    def __init__(self, *, namespace: str | None = None, template: Object | None = None) -> None:
        self._template = template
        self.namespace = namespace or (template["metadata"].get("namespace") if template else None)
        self.title = f"Kubernetes, namespace {self.namespace}" if self.namespace else "Kubernetes"
        self.option = "--kubernetes" + (f" --namespace {self.namespace}" if self.namespace else "")

    def room(self, where: Where) -> list[Node]:
        """The nodes of the job's own cluster, whatever an environment says of another's (VIDEO2LORA_GROWS_TO)."""
        return nodes_of(self.template)

    @property
    def template(self) -> Object:
        assert self._template is not None, "asked for without a template"
        return self._template

    def jobs(self) -> list[Job]:
        found = json.loads(self._kubectl("get", RAYJOBS, "--selector", RUN_LABEL, "--output", "json"))
        return [job_of(one) for one in found["items"]]

    def start(self, work: Work, name: str) -> bool:
        try:
            self._kubectl("create", "--filename", "-", given=as_yaml(rayjob(work, name, self.template)))
        except RefusedError as error:
            if error.reason == "AlreadyExists":
                return False
            raise
        return True

    def log(self, job: Job) -> str:
        """Empty as long as there is no Pod, or no more."""
        try:
            return self._kubectl("logs", f"job/{job.name}", "--pod-running-timeout=1s")
        except RefusedError as error:
            if error.reason in ("NotFound", "BadRequest", NOT_YET):
                return ""
            raise

    def cancel(self, job: Job) -> None:
        """Kubernetes lets its Pods save first, as long as their grace period is, and forgets it then."""
        self._kubectl("delete", RAYJOBS, job.name, "--wait=false")

    def applied(self, name: str) -> Object:
        """A template. Raises BadInputError where it is not applied."""
        try:
            found: Object = json.loads(self._kubectl("get", RAYJOBS, name, "--output", "json"))
        except RefusedError as error:
            if error.reason == "NotFound":
                raise BadInputError(f"{error}; apply it (`kubectl apply -k k8s/overlays/NAME`) or give --from DIR") from error
            raise
        return found

    def config_map(self, name: str) -> dict[str, str]:
        """Its texts; none where it is not there, as a Pod that starts will say."""
        try:
            found = json.loads(self._kubectl("get", "configmaps", name, "--output", "json"))
        except RefusedError as error:
            if error.reason == "NotFound":
                return {}
            raise
        return dict(found.get("data") or {})

    def _kubectl(self, *arguments: str, given: str | None = None) -> str:
        namespace = ["--namespace", self.namespace] if self.namespace else []
        return kubectl(*arguments, *namespace, given=given)


def for_work(asked: Work, *, overlay: Path | None, namespace: str | None) -> tuple[Kubernetes, Work]:
    """The namespace with the work's template, and the work as it will be there: with the settings of the template's environment.

    Raises BadInputError where there is no such template, or the settings name no data folder that a cluster can have.
    """
    name = template_of(asked.command)
    if overlay is not None:
        objects = [one for one in yaml.safe_load_all(kustomize(str(overlay))) if one]
        templates = [one for one in objects if one["kind"] == "RayJob" and one["metadata"]["name"] == name]
        if not templates:
            raise BadInputError(f"--from {overlay}: no RayJob {name!r}, which `{asked.command}` is copied from")
        template = templates[0]
        config_maps = {one["metadata"]["name"]: one.get("data", {}) for one in objects if one["kind"] == "ConfigMap"}
        if namespace is not None:
            template["metadata"]["namespace"] = namespace
        cluster = Kubernetes(namespace=namespace, template=template)
    else:
        there = Kubernetes(namespace=namespace)
        template = there.applied(name)
        config_maps = {one: there.config_map(one) for one in config_maps_of(template)}
        cluster = Kubernetes(namespace=namespace, template=template)
    where = where_of(environment_of(template, config_maps))
    return cluster, placed(asked.on(where), is_here=False)


def write(work: Work, template: Object, path: Path) -> str:
    """The RayJob as YAML in a new file, for `kubectl create -f`."""
    if not write_new(str(path), as_yaml(rayjob(work, work.run, template)).encode()):
        raise BadInputError(f"--output {path} is there already, with something else in it")
    return f"{path}: RayJob {work.run}; kubectl create -f {path}"
