"""One MLflow run per data folder and recipe; without MLflow everything goes on."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from infra.config import Recipe, TrainingSettings, Where
from infra.tracking import log_artifacts, open_run, parameters, tracking_uri

RECIPE = Recipe(training=TrainingSettings(n_steps=7))


def test_a_run_is_one_across_attempts_and_another_for_another_recipe(tmp_path: Path) -> None:
    where = Where(data=str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    first = open_run(where, RECIPE)
    assert first is not None
    first.log_metrics([("loss", 3.0, 10), ("loss", 2.0, 20)])
    first.end()
    again, other = open_run(where, RECIPE), open_run(where, Recipe())
    assert again is not None and other is not None
    assert again.run_id == first.run_id != other.run_id
    report = tmp_path / "report.json"
    report.write_text("{}")
    log_artifacts(where, RECIPE, [str(report)])

    client = MlflowClient(tracking_uri=tracking_uri(where))
    run = client.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).name == "training"
    assert run.data.params["training.n_steps"] == "7" and run.data.params["vlm.model"] == "tiny"
    assert [(point.step, point.value) for point in client.get_metric_history(first.run_id, "loss")] == [(10, 3.0), (20, 2.0)]
    assert [file.path for file in client.list_artifacts(first.run_id, "report")] == ["report/report.json"]
    assert list((tmp_path / "data" / "mlartifacts").rglob("report.json"))

    client.delete_run(first.run_id)
    new = open_run(where, RECIPE)
    assert new is not None and new.run_id != first.run_id
    assert new.run_id == getattr(open_run(where, RECIPE), "run_id", None)


def test_an_absent_server_is_said_without_its_password_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")  # the discard port: nobody answers
    where = Where(data=str(tmp_path))
    assert open_run(where, RECIPE) is None
    log_artifacts(where, RECIPE, ["no such file"])
    told = capsys.readouterr().err
    assert told.count("going on without it") == 2 and "127.0.0.1" in told and "secret" not in told


def test_tracking_that_fails_later_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = Where(data=str(tmp_path))
    run = open_run(where, RECIPE)
    assert run is not None
    (tmp_path / "mlflow.db").write_bytes(b"no database any more" * 1000)
    run.log_metrics([("loss", 1.0, 1)])
    run.log_metrics([("loss", 1.0, 2)])
    run.end()
    assert capsys.readouterr().err.count("going on without it") == 1


def test_a_bucket_without_a_server_tracks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert open_run(Where(data="s3://bucket/data"), RECIPE) is None
    assert "MLFLOW_TRACKING_URI" in capsys.readouterr().err


def test_parameters_are_settings_by_path() -> None:
    assert parameters({"a": {"b": 1, "c": [2, 3]}, "d": "x", "e": None}) == [("a.b", "1"), ("a.c", "[2, 3]"), ("d", "x"), ("e", "null")]
