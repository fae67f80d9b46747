"""Items of the outbox -> calls of MLflow, on one run that is found again by who it is.

Every call may be made twice without a second effect, since an answer can be lost after the server has done the work: a run is looked for
before it is made, MLflow's databases keep a metric's point (name, step, time, value) once, a file overwrites itself, and a model's version
is looked for by run and tags. Only MLflow's old file store, where MLFLOW_TRACKING_URI is a folder, would keep a point twice.
"""

import base64
import json
import os
import tempfile
import time
from collections.abc import Sequence
from itertools import accumulate, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.config import HOW, Recipe, Where
from infra.errors import StorageError
from infra.hypernetworks import vlm_label
from infra.lineage import Tags
from infra.objects import read_bytes
from infra.outbox import Item
from infra.progress import say

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "training"
IDENTITY = "video2lora.run"  # the tag that says who a run is
POINTS_PER_CALL = 1000  # MLflow's limits
PARAMETERS_PER_CALL = 100
TAG_CHARACTERS = 5000  # of a version of a model; a run's may have 8000
REFUSED = "INVALID_PARAMETER_VALUE"  # said by a server that is there: no use in sending it again. BAD_REQUEST: its database is unwell


def opened(client: "MlflowClient", where: Where, recipe: Recipe, *, identity: str, began_ms: int) -> str:
    """Id of the run, made if the server has none of this identity that was not deleted."""
    from mlflow.entities import Param

    experiment = _experiment_id(client, where)
    found = client.search_runs([experiment], f"tags.`{IDENTITY}` = '{identity}'", order_by=["attributes.start_time ASC"], max_results=1)
    name = Path(where.data).name
    run = found[0] if found else client.create_run(experiment, start_time=began_ms, tags={IDENTITY: identity}, run_name=name)
    missing = [Param(name, value) for name, value in what(recipe) if name not in run.data.params]
    for at in range(0, len(missing), PARAMETERS_PER_CALL):
        client.log_batch(run.info.run_id, params=missing[at : at + PARAMETERS_PER_CALL])
    return str(run.info.run_id)


def send(client: "MlflowClient", run_id: str, items: Sequence[Item]) -> int:
    """Send the first item, of metrics as many as one call takes; returns how many are done with. Raises what MLflow raises.

    Kinds: metrics (points of name, value, time in ms, step), file (folder, name, base64 data or address), tags, status (status, at_ms),
    model (name, folder, tags). What a server that is there refuses is said and left out, for nothing behind it would ever be sent.
    """
    from mlflow.exceptions import MlflowException

    n, first = 1, items[0]
    try:
        match first["kind"]:
            case "metrics":
                n = _send_metrics(client, run_id, items)
            case "file":
                _send_file(client, run_id, first)
            case "tags":
                _send_tags(client, run_id, first["tags"])
            case "status" if first["status"] == "RUNNING":
                client.update_run(run_id, "RUNNING")
            case "status":
                client.set_terminated(run_id, first["status"], end_time=first["at_ms"])
            case "model":
                _register(client, run_id, first)
    except MlflowException as error:
        if error.error_code != REFUSED:
            raise
        say(f"tracking: {first.get('name', first['kind'])} refused ({error.error_code}); left out")
    return n


def registered_name(model: str) -> str:
    """Of the registry's model that holds the hypernetworks of a VLM."""
    return f"video2lora-{vlm_label(model)}"


def what(recipe: Recipe) -> list[tuple[str, str]]:
    """The settings that make a run the one it is, as parameters: MLflow lets none change."""
    return [(name, value) for name, value in parameters(recipe.model_dump(mode="json")) if name not in _how()]


def how(recipe: Recipe) -> Tags:
    """The settings that may change from one attempt to the next."""
    return {name: value for name, value in parameters(recipe.model_dump(mode="json")) if name in _how()}


def parameters(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Settings by their dotted path."""
    if isinstance(value, dict) and value:
        return [one for name, inner in value.items() for one in parameters(inner, f"{path}.{name}" if path else name)]
    return [(path, value if isinstance(value, str) else json.dumps(value))]


def _how() -> tuple[str, ...]:
    return tuple(f"training.{name}" for name in HOW)


def _experiment_id(client: "MlflowClient", where: Where) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    ours = where.mlflow_tracking_uri is None  # a server knows itself where its artifacts go
    return str(client.create_experiment(EXPERIMENT, Path(where.data, "mlartifacts").absolute().as_uri() if ours else None))


def _send_metrics(client: "MlflowClient", run_id: str, items: Sequence[Item]) -> int:
    from mlflow.entities import Metric

    sizes = accumulate(len(item["points"]) for item in takewhile(lambda item: item["kind"] == "metrics", items))
    n = max(1, sum(size <= POINTS_PER_CALL for size in sizes))
    points = [Metric(*point) for item in items[:n] for point in item["points"]]
    for at in range(0, len(points), POINTS_PER_CALL):
        client.log_batch(run_id, metrics=points[at : at + POINTS_PER_CALL])
    return n


def _send_file(client: "MlflowClient", run_id: str, item: Item) -> None:
    address, name = item.get("address", ""), item["name"]
    if "data" not in item and os.path.isfile(address) and os.path.basename(address) == name:
        return client.log_artifact(run_id, address, item["folder"])
    try:
        data = base64.b64decode(item["data"]) if "data" in item else read_bytes(address)
    except StorageError:
        data = None
    if data is None:
        return say(f"tracking: {item['folder']}/{name} cannot be read at {address} any more; left out")
    with tempfile.TemporaryDirectory() as temporary:
        Path(temporary, name).write_bytes(data)
        client.log_artifact(run_id, f"{temporary}/{name}", item["folder"])


def _send_tags(client: "MlflowClient", run_id: str, tags: Tags) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(name, value[:TAG_CHARACTERS]) for name, value in tags.items()])


def _register(client: "MlflowClient", run_id: str, item: Item) -> None:
    """A version of the registered model, unless there is one of this run with these tags."""
    from mlflow.exceptions import MlflowException

    name, tags = item["name"], {key: value[:TAG_CHARACTERS] for key, value in item["tags"].items()}
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    there = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if not any(tags.items() <= version.tags.items() for version in there):
        source = f"{client.get_run(run_id).info.artifact_uri}/{item['folder']}"
        client.create_model_version(name, source, run_id, tags=tags, await_creation_for=0)


def now_ms() -> int:
    return int(time.time() * 1000)
