"""One MLflow run per data folder and recipe; without MLflow everything goes on, and what it missed is sent later."""

import atexit
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from infra import runs
from infra.config import Recipe, TrainingSettings, Where
from infra.errors import StageFailedError, TerminatedError
from infra.running import held
from infra.tracking import Run, log_artifacts, open_run, public, send_missed, tracking_uri
from tests.servers.ending import ending

RECIPE = Recipe(training=TrainingSettings(n_steps=7))
VIDEOS = {"asked": {}, "rows": "cafe", "n_rows": 3}
MADE_FROM = {"stage": "train", "inputs": {"examples": {"set": "tiny-1a", "rows": "beef", "asked": {"inputs": {"videos": VIDEOS}}}}}


@pytest.fixture
def where(tmp_path: Path, empty_database: Path) -> Where:
    (tmp_path / "data").mkdir()
    shutil.copy(empty_database, tmp_path / "data" / "mlflow.db")
    return Where(data=str(tmp_path / "data"))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again each time something is logged."""
    for name in ("RETRY_S", "WAIT_SHARE", "AT_THE_END_S"):
        monkeypatch.setattr(f"infra.tracking.{name}", 0)


@contextmanager
def away(where: Where) -> Iterator[None]:
    """The data folder's database is none for the block. Written in place: SQLAlchemy keeps the file open."""
    path = Path(where.data, "mlflow.db")
    kept = path.read_bytes()
    path.write_bytes(b"no database any more" * 1000)
    yield
    path.write_bytes(kept)


def opened(where: Where, recipe: Recipe = RECIPE, **more: Any) -> Run:
    run = open_run(where, recipe, **more)
    assert run is not None
    return run


def points(where: Where, run: Run, name: str) -> list[tuple[int, float]]:
    """Step and value, in the order they happened."""
    history = MlflowClient(tracking_uri=tracking_uri(where)).get_metric_history(str(run.run_id), name)
    return [(point.step, point.value) for point in sorted(history, key=lambda point: point.timestamp)]


def test_a_run_is_one_across_attempts_and_another_for_another_recipe(where: Where, tmp_path: Path) -> None:
    first = opened(where, made_from=MADE_FROM)
    first.log_metrics([("loss", 3.0, 10), ("loss", 2.0, 20)])
    first.end()
    otherwise_run = Recipe(training=TrainingSettings(n_steps=7, zero_stage=3, checkpoint_every=5))
    again, other = opened(where, otherwise_run, made_from=MADE_FROM), opened(where, Recipe())
    assert again.run_id == first.run_id != other.run_id
    report = tmp_path / "report.json"
    report.write_text("{}")
    log_artifacts(where, RECIPE, [str(report)])

    client = MlflowClient(tracking_uri=tracking_uri(where))
    run = client.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).name == "training"
    assert run.data.params["training.n_steps"] == "7" and run.data.params["vlm.model"] == "tiny"
    assert "training.zero_stage" not in run.data.params and run.data.tags["training.zero_stage"] == "3"
    assert (run.data.tags["table.examples"], run.data.tags["table.videos"]) == ("tiny-1a@beef", "videos@cafe")
    assert [(point.step, point.value) for point in client.get_metric_history(first.run_id, "loss")] == [(10, 3.0), (20, 2.0)]
    assert [file.path for file in client.list_artifacts(first.run_id, "report")] == ["report/report.json"]
    assert list(Path(where.data, "mlartifacts").rglob("report.json"))

    client.delete_run(first.run_id)
    new = opened(where)
    assert new.run_id not in (None, first.run_id) and new.run_id == opened(where).run_id


def test_an_absent_server_is_said_without_its_password_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9/x?token=secret")  # the discard port: nobody answers
    where = Where(data=str(tmp_path))
    run = opened(where, made_from=MADE_FROM)
    run.log_metrics([("loss", 1.0, 1)])
    run.end()
    assert run.run_id is None
    log_artifacts(where, RECIPE, ["no such file"])
    told = capsys.readouterr().err
    assert told.count("http://127.0.0.1:9/x is away") == told.count("going on without it") == 2 and "secret" not in told
    kept = [path.read_text() for path in (tmp_path / "tracking").rglob("*.json")]
    assert any("loss" in text for text in kept) and not any("secret" in text for text in kept)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql+psycopg2://mlflow:Zm9/vYmFy@db:5432/mlflow", "postgresql+psycopg2://db:5432/mlflow"),
        ("postgresql://mlflow:p@ss/w@db/mlflow?sslmode=require", "postgresql://db/mlflow"),
        ("https://TOKEN@host/mlflow", "https://host/mlflow"),
        ("https://host/v1?key=SECRET#part", "https://host/v1"),
        ("postgresql://mlflow:is?it/so@db/mlflow", "postgresql://..."),
        ("https://host/v1?token=se@cret", "https://..."),
        ("sqlite:////home/me@work/mlflow.db?timeout=9", "sqlite:////home/me@work/mlflow.db"),
        ("http://[::1]:5000/x", "http://[::1]:5000/x"),
        ("mlruns", "mlruns"),
    ],
)
def test_an_address_is_shown_without_what_may_be_secret(uri: str, shown: str) -> None:
    assert public(uri) == shown


def test_sigterm_while_mlflow_is_told_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow takes whatever is raised in a request for a failure of the request."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    root = str(tmp_path / "data")
    with ending() as address, pytest.raises(TerminatedError), held(Where(data=root, mlflow_tracking_uri=address), "run", {}) as running:
        opened(running.where)
        running.why = "it went on"
    assert [one.closed and one.closed["exit_code"] for one in runs.read(root).attempts] == [143]


def test_an_error_that_was_on_its_way_before_keeps_what_tracking_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    where = Where(data=str(tmp_path), mlflow_tracking_uri="http://127.0.0.1:9")
    monkeypatch.setattr("infra.tracking.AT_THE_END_S", 0)
    with pytest.raises(StageFailedError, match="no"), opened(where) as run:
        run.pending.append((None, {"kind": "tags", "tags": {"said": "late"}}))
        raise StageFailedError("no")
    assert any(item.get("tags") == {"said": "late"} for items in run.outbox.read()[1].values() for item in items)


def test_what_tracking_missed_is_sent_when_it_is_back(where: Where, capsys: pytest.CaptureFixture[str], impatient: None) -> None:
    run = opened(where)
    run.log_metrics([("loss", 5.0, 1)], at_ms=1000)
    with away(where):
        run.log_metrics([("loss", 4.0, 2)], at_ms=2000)
        run.log_metrics([("loss", 3.0, 3)], at_ms=3000)
        run.log_bytes(b"page", folder="report", name="report.html")
    assert points(where, run, "loss") == [(1, 5.0)]
    run.log_metrics([("loss", 2.0, 4)], at_ms=4000)
    assert points(where, run, "loss") == [(1, 5.0), (2, 4.0), (3, 3.0), (4, 2.0)]
    run.end()
    told = capsys.readouterr().err
    assert told.count("going on without it") == told.count("is back; 3 points, 1 files sent") == 1 == told.count("is back")
    opened(where).end()
    assert len(points(where, run, "loss")) == 4 and "is back" not in capsys.readouterr().err


def test_what_a_process_left_is_sent_by_the_next_one_once_and_in_order(
    where: Where, tmp_path: Path, capsys: pytest.CaptureFixture[str], impatient: None
) -> None:
    large, small, gone = (tmp_path / name for name in ("large", "small", "gone"))
    large.write_bytes(b"1" * (1 << 20))
    small.write_text("as it was")
    gone.write_bytes(b"2" * (1 << 20))
    with away(where):
        killed = opened(where, made_from=MADE_FROM)  # away from the very beginning
        killed.log_metrics([("loss", 4.0, 1)], at_ms=1000)
        killed.log_files([str(large), str(small), str(gone)], folder="files")
        atexit.unregister(killed.close)  # the process is killed
        small.write_text("changed since")
        gone.unlink()
        continued = opened(where)
        continued.log_metrics([("loss", 3.0, 2)], at_ms=2000)
        continued.log_bytes(large.read_bytes(), folder="files", name="bytes")
        continued.end()
    assert killed.run_id is continued.run_id is None
    capsys.readouterr()

    send_missed(where, RECIPE)
    told = capsys.readouterr().err
    assert "is back; 2 points, 3 files sent" in told and f"files/gone cannot be read at {gone} any more" in told
    send_missed(where, RECIPE)
    assert not capsys.readouterr().err
    run = opened(where)
    assert points(where, run, "loss") == [(1, 4.0), (2, 3.0)]
    client = MlflowClient(tracking_uri=tracking_uri(where))
    there = client.get_run(str(run.run_id))
    assert there.data.tags["table.examples"] == "tiny-1a@beef" and len(client.search_runs([there.info.experiment_id])) == 1
    files = {file.path: file.file_size for file in client.list_artifacts(str(run.run_id), "files")}
    assert files == {"files/large": 1 << 20, "files/small": len("as it was")}


def test_what_a_server_refuses_holds_nothing_up(where: Where, capsys: pytest.CaptureFixture[str]) -> None:
    run = opened(where)
    run.log_metrics([("no:such*name?", 1.0, 1)])
    run.log_metrics([("loss", 1.0, 1)])
    assert points(where, run, "loss") == [(1, 1.0)]
    assert "metrics refused (INVALID_PARAMETER_VALUE); left out" in capsys.readouterr().err


def test_a_model_is_registered_once_for_what_it_is(where: Where) -> None:
    run = opened(where, made_from=MADE_FROM)
    run.log_bytes(b"weights", folder="hypernetwork", name="hypernetwork.safetensors")
    run.register_model(folder="hypernetwork", tags={"sha256": "aa"})
    opened(where, made_from=MADE_FROM).register_model(folder="hypernetwork", tags={"sha256": "aa"})
    client = MlflowClient(tracking_uri=tracking_uri(where))
    (version,) = client.search_model_versions("name = 'video2lora-tiny'")
    assert (version.run_id, version.tags) == (run.run_id, {"sha256": "aa", "table.examples": "tiny-1a@beef", "table.videos": "videos@cafe"})
    assert Path(version.source.removeprefix("file://"), "hypernetwork.safetensors").read_bytes() == b"weights"
    run.register_model(folder="hypernetwork", tags={"sha256": "bb"})
    assert len(client.search_model_versions("name = 'video2lora-tiny'")) == 2


def test_a_bucket_without_a_server_tracks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert open_run(Where(data="s3://bucket/data"), RECIPE) is None
    assert "MLFLOW_TRACKING_URI" in capsys.readouterr().err
