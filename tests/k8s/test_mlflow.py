"""MLflow as its manifest starts it: with its arguments and its environment, over sqlite for PostgreSQL and a folder for the bucket."""

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.k8s.built import OVERLAYS, find, objects
from tests.servers.child import child, free_port, until


def _answers(url: str, *, host: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Host": host}), timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.slow
def test_it_starts_and_answers_to_the_names_it_is_called_by(tmp_path: Path) -> None:
    specs = [find(objects(overlay), "Deployment", "mlflow")["spec"]["template"]["spec"] for overlay in OVERLAYS]
    (container,) = specs[0]["containers"]
    assert all(spec["containers"] == [container] for spec in specs), "the same in each overlay"
    port, address = free_port(), find(objects("dev"), "ConfigMap", "video2lora")["data"]["MLFLOW_TRACKING_URI"]
    env = {item["name"]: item["value"] for item in container["env"] if "value" in item}
    env |= {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/mlflow.db", "HOME": str(tmp_path)}
    args = [argument.replace("$(VIDEO2LORA_DATA)", str(tmp_path)).replace("5000", str(port)) for argument in container["args"]]
    command = [sys.executable, "-m", *container["command"], *args, "--host=127.0.0.1"]  # the last one counts
    health, url = container["readinessProbe"]["httpGet"], f"http://127.0.0.1:{port}"
    with child(command, {**os.environ, **env}, tmp_path / "said") as process:
        probed = {header["name"]: header["value"] for header in health["httpHeaders"]}["Host"]
        until(lambda: _answers(f"{url}{health['path']}", host=probed) == 200, process, tmp_path / "said", timeout_s=180)
        api = f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0"
        called = address.removeprefix("http://").replace("5000", str(port))
        assert _answers(api, host=called) == 200
        assert _answers(api, host=f"127.0.0.1:{port}") == 200, "kubectl port-forward"
        assert _answers(api, host="elsewhere.example.com") == 403, "a page that a browser was lured to"
