"""Tracking on a server over PostgreSQL, which is ended in mid-run and started again."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from infra.config import Recipe, TrainingSettings, Where
from infra.tracking import open_run
from tests.servers.child import free_port
from tests.servers.mlflow_server import mlflow_server

RECIPE = Recipe(training=TrainingSettings(n_steps=7))
MADE_FROM = {"inputs": {"examples": {"set": "tiny-1a", "rows": "beef"}}}


@pytest.mark.slow
def test_a_server_that_was_ended_gets_what_it_missed_in_order(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RETRY_S", "WAIT_SHARE", "AT_THE_END_S"):
        monkeypatch.setattr(f"infra.tracking.{name}", 0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    port = free_port()
    where = Where(data=str(tmp_path / "data")).model_copy(update={"mlflow_tracking_uri": f"http://me:secret@127.0.0.1:{port}"})
    large = tmp_path / "hypernetwork.safetensors"
    large.write_bytes(b"w" * (3 << 20))

    run = open_run(where, RECIPE, made_from=MADE_FROM)
    assert run is not None and run.run_id is None, "away from the very beginning"
    run.log_metrics([("loss", 9.0, 0)], at_ms=500)
    with mlflow_server(database, port=port, folder=tmp_path / "server"):
        run.log_metrics([("loss", 8.0, 1)], at_ms=1000)
        assert run.run_id is not None
    for step in range(2, 9):
        run.log_metrics([("loss", 9.0 - step, step), ("lr", 0.1, step)], at_ms=1000 * step)
    run.log_files([str(large)], folder="hypernetwork")
    run.register_model(folder="hypernetwork", tags={"sha256": "aa"})
    run.close()  # the first process ends, and the server is still away
    told = capsys.readouterr().err
    assert "is back; 2 points sent" in told and told.count("is away") == 2

    with mlflow_server(database, port=port, folder=tmp_path / "server"):
        continued = open_run(where, RECIPE, made_from=MADE_FROM)
        assert continued is not None and continued.run_id == run.run_id
        continued.log_metrics([("loss", 0.5, 9)], at_ms=9000)
        continued.register_model(folder="hypernetwork", tags={"sha256": "aa"})
        continued.end()
        told = capsys.readouterr().err
        assert f"http://127.0.0.1:{port} is back; 14 points, 1 files sent" in told and "secret" not in told

        client = MlflowClient(tracking_uri=where.mlflow_tracking_uri)
        history = client.get_metric_history(str(run.run_id), "loss")
        assert [(point.step, point.timestamp) for point in history] == [(0, 500)] + [(step, 1000 * step) for step in range(1, 10)]
        there = client.get_run(str(run.run_id))
        assert there.info.status == "FINISHED" and there.data.params["training.n_steps"] == "7"
        assert there.data.tags["table.examples"] == "tiny-1a@beef"
        assert len(client.search_runs([there.info.experiment_id])) == 1
        (version,) = client.search_model_versions("name = 'video2lora-tiny'")
        assert (version.run_id, version.source) == (run.run_id, f"{there.info.artifact_uri}/hypernetwork")
        assert version.tags == {"sha256": "aa", "table.examples": "tiny-1a@beef"}
        kept = Path(client.download_artifacts(str(run.run_id), "hypernetwork", str(tmp_path)), "hypernetwork.safetensors")
        assert kept.read_bytes() == large.read_bytes()
