"""MLflow: one run of the experiment `training` per data folder and recipe, however often it was interrupted.

Writes: recipe as parameters, metrics, artifacts; by default to sqlite:///<data>/mlflow.db and <data>/mlartifacts, else to the server
that MLFLOW_TRACKING_URI names. The run's id is kept in <data>/tracking/, so that a continued training and the report find it.

Tracking may be away: that is said once and stops nothing. So every failure of MLflow, of whatever kind, ends in a line and in no
run. Parameters are the recipe's alone; addresses and credentials never pass through here, nor into a message.
"""

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from infra.config import Recipe, Where
from infra.objects import read_json, write_new
from infra.progress import say

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "training"
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's own 7 hold a training up for minutes when the server is away
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}

Metric = tuple[str, float, int]
"""Name, value, step."""


class Run:
    """An open MLflow run. After the first failure it says so and takes everything without a word."""

    def __init__(self, client: "MlflowClient", run_id: str, *, address: str) -> None:
        self.client, self.run_id, self.address = client, run_id, address
        self.is_away = False

    def log_metrics(self, metrics: Sequence[Metric]) -> None:
        from mlflow.entities import Metric as Point

        now_ms = int(time.time() * 1000)
        points = [Point(name, value, now_ms, step) for name, value, step in metrics]
        self._unless_away(lambda: self.client.log_batch(self.run_id, metrics=points))

    def log_files(self, paths: Sequence[str], *, folder: str) -> None:
        """Files of this machine as artifacts in a folder of the run."""
        for path in paths:
            self._unless_away(partial(self.client.log_artifact, self.run_id, path, folder))

    def log_bytes(self, data: bytes, *, folder: str, name: str) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            Path(temporary, name).write_bytes(data)
            self.log_files([f"{temporary}/{name}"], folder=folder)

    def end(self) -> None:
        """The run is finished; a later `open_run` of the same recipe opens it again."""
        self._unless_away(lambda: self.client.set_terminated(self.run_id, "FINISHED"))

    def _unless_away(self, do: Callable[[], object]) -> None:
        if self.is_away:
            return
        try:
            do()
        except Exception as error:  # whatever MLflow, its database driver or the network raise: see the module's docstring
            self.is_away = True
            say(_away(self.address, error))


def open_run(where: Where, recipe: Recipe) -> Run | None:
    """The recipe's run, made if it is not there yet; None if tracking is away."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    uri = tracking_uri(where)
    if uri is None:
        say("tracking: the data folder is no local folder and MLFLOW_TRACKING_URI is not set, so nothing is tracked")
        return None
    try:
        from mlflow import MlflowClient

        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
        client = MlflowClient(tracking_uri=uri)
        run_id = _run_id(client, where, recipe, uri)
        return Run(client, run_id, address=uri)
    except Exception as error:  # see the module's docstring
        say(_away(uri, error))
        return None


def log_artifacts(where: Where, recipe: Recipe, paths: Sequence[str], *, folder: str = "report") -> None:
    """Attach files of this machine to the recipe's run."""
    run = open_run(where, recipe)
    if run is not None:
        run.log_files(paths, folder=folder)
        run.end()


def tracking_uri(where: Where) -> str | None:
    """Where MLflow keeps its runs; None if the data folder is in a bucket and nothing else is named."""
    if where.mlflow_tracking_uri is not None:
        return where.mlflow_tracking_uri
    return None if "://" in where.data else f"sqlite:///{os.path.abspath(where.data)}/mlflow.db"


def _run_id(client: "MlflowClient", where: Where, recipe: Recipe, uri: str) -> str:
    """The run kept for this recipe, or a new one in its place if the server does not know that any more."""
    digest = hashlib.sha256(json.dumps([uri, recipe.model_dump(mode="json")], sort_keys=True).encode()).hexdigest()[:16]
    attempt = 0
    while (kept := read_json(f"{where.data}/tracking/{digest}-{attempt}.json")) is not None:
        if _is_there(client, kept["run_id"]):
            client.update_run(kept["run_id"], "RUNNING")
            return str(kept["run_id"])
        attempt += 1
    run_id = str(client.create_run(_experiment_id(client, where), run_name=Path(where.data).name).info.run_id)
    _log_parameters(client, run_id, recipe)
    write_new(f"{where.data}/tracking/{digest}-{attempt}.json", json.dumps({"run_id": run_id}).encode())
    return run_id


def _is_there(client: "MlflowClient", run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def _experiment_id(client: "MlflowClient", where: Where) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    ours = where.mlflow_tracking_uri is None  # a server knows itself where its artifacts go
    return str(client.create_experiment(EXPERIMENT, Path(where.data, "mlartifacts").absolute().as_uri() if ours else None))


def _log_parameters(client: "MlflowClient", run_id: str, recipe: Recipe) -> None:
    from mlflow.entities import Param

    client.log_batch(run_id, params=[Param(name, value) for name, value in parameters(recipe.model_dump(mode="json"))])


def parameters(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Settings by their dotted path."""
    if isinstance(value, dict) and value:
        return [one for name, inner in value.items() for one in parameters(inner, f"{path}.{name}" if path else name)]
    return [(path, value if isinstance(value, str) else json.dumps(value))]


def _away(uri: str, error: Exception) -> str:
    """What is said, with the address's user and password left out; MLflow's own message may hold them."""
    parts = urlsplit(uri)
    return f"tracking: {parts.scheme}://{parts.hostname or ''}{parts.path} is away ({type(error).__name__}); going on without it"
