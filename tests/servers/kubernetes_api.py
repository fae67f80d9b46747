"""As much of the Kubernetes API as kubectl needs to create, get, list and delete RayJobs and to read logs: it stands for a cluster.

Objects lie in a dict; nothing acts on them, so a test says what KubeRay would (`told`) and what a Pod wrote (`logs`). Who watches is told
of nothing.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import yaml

Object = dict[str, Any]

KINDS = {"rayjobs": ("ray.io/v1", "RayJob"), "configmaps": ("v1", "ConfigMap"), "jobs": ("batch/v1", "Job"), "pods": ("v1", "Pod")}
NAMESPACE = "video2lora"
WATCH_S = 30.0  # after which the server ends a watch


@dataclass
class KubernetesApi:
    """The objects of one namespace. `forbidden`: "verb resource" that are answered 403."""

    endpoint: str
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    forbidden: set[str] = field(default_factory=set)
    logs: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_over: threading.Event = field(default_factory=threading.Event)

    def apply(self, given: Object) -> None:
        """As `kubectl apply` would, of a kind that is known here."""
        kinds = {kind: resource for resource, (_, kind) in KINDS.items()}
        if resource := kinds.get(given["kind"]):
            self.objects[resource, given["metadata"]["name"]] = _with_metadata(given)

    def told(self, name: str, **status: Any) -> None:
        """What KubeRay says of a RayJob, and with it the Job whose Pod submits it, as KubeRay makes them."""
        self.objects["rayjobs", name]["status"] = status
        labels = {"batch.kubernetes.io/job-name": name}
        job = {"metadata": {"name": name}, "spec": {"selector": {"matchLabels": labels}, "template": {}}}
        pod = {"metadata": {"name": f"{name}-x1", "labels": labels}, "spec": {"containers": [{"name": "ray-job-submitter"}]}}
        self.apply({"apiVersion": "batch/v1", "kind": "Job", **job})
        self.apply({"apiVersion": "v1", "kind": "Pod", **pod, "status": {"phase": "Running"}})

    def kubeconfig(self, folder: Path) -> Path:
        """A file for KUBECONFIG."""
        named = {
            "clusters": [{"name": "test", "cluster": {"server": self.endpoint}}],
            "users": [{"name": "test", "user": {"token": "a-token-of-the-tests"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": NAMESPACE}}],
        }
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "test", **named}))
        return path

    def answer(self, method: str, path: str, query: dict[str, list[str]], given: Object | None) -> tuple[int, Object | str]:
        """The code and what is said."""
        parts = path.strip("/").split("/")
        if "namespaces" not in parts:
            return _discovery(path)
        resource, *rest = parts[parts.index("namespaces") + 2 :] or [""]
        if not resource:  # which kubectl asks for before it says that an object is not found
            return 200, {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": NAMESPACE}}
        if resource not in KINDS or parts[parts.index("namespaces") + 1] != NAMESPACE:
            return _refusal(404, "NotFound", f"{path} not found")
        verb = {"POST": "create", "DELETE": "delete"}.get(method, "get" if rest else "list")
        if f"{verb} {resource}" in self.forbidden:
            return _refusal(403, "Forbidden", f'{resource} is forbidden: User "test" cannot {verb} resource "{resource}"')
        with self.lock:
            if verb == "create":
                assert given is not None
                return self._create(resource, given)
            if verb == "list":
                return 200, self._list(resource, query)
            found = self.objects.get((resource, rest[0]))
            if found is None:
                return _refusal(404, "NotFound", f'{resource} "{rest[0]}" not found')
            if rest[1:] == ["log"]:
                return 200, self.logs.get(rest[0], "")
            if verb == "delete":
                del self.objects[resource, rest[0]]
                return 200, {"kind": "Status", "apiVersion": "v1", "status": "Success"}
            return 200, found

    def _create(self, resource: str, given: Object) -> tuple[int, Object]:
        name = given["metadata"]["name"]
        if (resource, name) in self.objects:
            return _refusal(409, "AlreadyExists", f'{resource} "{name}" already exists')
        self.objects[resource, name] = _with_metadata(given)
        return 201, self.objects[resource, name]

    def _list(self, resource: str, query: dict[str, list[str]]) -> Object:
        version, kind = KINDS[resource]
        wanted = query.get("labelSelector", [""])[0]
        items = [one for (of, _), one in self.objects.items() if of == resource and _selected(one, wanted)]
        return {"kind": f"{kind}List", "apiVersion": version, "metadata": {"resourceVersion": "1"}, "items": items}


def _with_metadata(given: Object) -> Object:
    metadata = {"uid": str(uuid4()), "creationTimestamp": "2026-11-30T10:00:00Z", **given["metadata"], "namespace": NAMESPACE}
    return {**given, "metadata": metadata}


def _selected(one: Object, selector: str) -> bool:
    labels = one["metadata"].get("labels", {})
    for part in filter(None, selector.split(",")):
        name, is_equal, value = part.partition("=")
        if name not in labels or (is_equal and labels[name] != value):
            return False
    return True


def _refusal(code: int, reason: str, message: str) -> tuple[int, Object]:
    return code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason, "code": code}


def _discovery(path: str) -> tuple[int, Object | str]:
    versions = sorted({version for version, _ in KINDS.values()})
    if path == "/api":
        return 200, {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = [
            {
                "name": version.split("/")[0],
                "versions": [{"groupVersion": version, "version": "v1"}],
                "preferredVersion": {"groupVersion": version, "version": "v1"},
            }
            for version in versions
            if "/" in version
        ]
        return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if path == "/openapi/v3":  # by which kubectl sees that the server validates
        return 200, {"paths": {"apis/ray.io/v1": {"serverRelativeURL": "/openapi/v3/apis/ray.io/v1"}}}
    if path == "/openapi/v3/apis/ray.io/v1":
        kind = {"group": "ray.io", "version": "v1", "kind": "RayJob"}
        patch = {"x-kubernetes-group-version-kind": kind, "parameters": [{"name": "fieldValidation", "in": "query"}], "responses": {}}
        return 200, {"openapi": "3.0.0", "paths": {"/apis/ray.io/v1/namespaces/{namespace}/rayjobs/{name}": {"patch": patch}}}
    version = path.removeprefix("/apis/").removeprefix("/api/")
    if version in versions:
        verbs = ["create", "delete", "get", "list", "watch"]
        resources = [
            {"name": name, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": verbs}
            for name, (of, kind) in KINDS.items()
            if of == version
        ]
        return 200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}
    return _refusal(404, "NotFound", f"{path} not found")


@contextmanager
def kubernetes_api() -> Iterator[KubernetesApi]:
    """The API on a free port of 127.0.0.1, for the block."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            asked = urlsplit(self.path)
            if "watch" in parse_qs(asked.query):
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.flush()
                api.is_over.wait(WATCH_S)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, said = api.answer(self.command, asked.path, parse_qs(asked.query), json.loads(body) if body else None)
            data = said.encode() if isinstance(said, str) else json.dumps(said).encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if isinstance(said, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = _answer

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    api = KubernetesApi(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        api.is_over.set()
        server.shutdown()
        server.server_close()
        thread.join()
