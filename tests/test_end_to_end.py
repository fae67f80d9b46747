"""The demo at its smallest, by its own command: real clips, Ray, vLLM, DeepSpeed and MLflow. What it must leave, and that it continues."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from infra.artifacts import USUAL_SYSTEMS
from infra.sets import tables_of

RECIPE = """
world: {level: 1, seed: 5, n_train: 14, n_validation: 3, n_test: 3}
frames: {sampling: {policy: uniform, n_frames: 4}, longest_edge_px: 64}
teacher: {prompts: made_world, max_tokens: 24, max_model_len: 256}
hypernetwork: {r: 3, n_latents: 5, n_blocks: 2, d_latent: 24, n_heads: 4, n_kv_heads: 2, d_head: 8, normalise_features: true}
training: {n_steps: 6, videos_per_step: 4, targets_per_video: 2, checkpoint_every: 2, validate_every: 3}
answer: {max_new_tokens: 6, n_timed: 2}
"""
TABLES = ("files", "videos", "questions", "frames", "targets", "examples", "answers")


VIDEO2LORA = (sys.executable, "-m", "infra.cli")


def start(folder: Path) -> subprocess.Popen[str]:
    recipe = folder / "small.yaml"
    recipe.write_text(RECIPE)
    environment = os.environ | {"VIDEO2LORA_DATA": str(folder / "data")}
    command = [*VIDEO2LORA, "demo", "--recipe", str(recipe)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=700)
    assert process.returncode == 0, said[-4000:]
    return said


def verify(data: Path, *options: str) -> str:
    environment = os.environ | {"VIDEO2LORA_DATA": str(data)}
    done = subprocess.run([*VIDEO2LORA, "verify", *options], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def made_files(data: Path) -> dict[str, int]:
    """Everything a stage wrote, with the time it was written."""
    return {str(path): path.stat().st_mtime_ns for path in data.rglob("*") if path.suffix in (".parquet", ".mp4", ".safetensors")}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_survives_a_kill_and_ends_with_closed_books(tmp_path: Path) -> None:
    data = tmp_path / "data"
    killed = start(tmp_path)
    deadline = time.monotonic() + 600
    while not list((data / "frames").glob("*/log/00000001.json")) and time.monotonic() < deadline:
        assert killed.poll() is None, killed.communicate()[0][-4000:]
        time.sleep(0.2)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    before = made_files(data / "clips")

    finish(start(tmp_path))

    assert made_files(data / "clips") == before, "clips were rendered again after the kill"
    tables = {table.name: table for table in tables_of(str(data))}
    assert tuple(tables) == TABLES
    assert all(table.is_complete() for table in tables.values())
    assert sum(table.n_rejects() for table in tables.values()) == 0
    assert tables["frames"].n_rows() == tables["videos"].n_rows() == tables["examples"].n_rows() == 20
    assert tables["targets"].n_rows() == 17 * (9 + 2) + 3 * 2, "questions of train and validation; captions of all"
    answers = tables["answers"].read().to_pylist()
    assert len(answers) == 3 * 9 * len(USUAL_SYSTEMS)
    assert {row["system"] for row in answers if row["n_visual_tokens"]} == {"base"}
    (report_json,) = data.glob("reports/*/report.json")
    report = json.loads(report_json.read_text())
    assert json.dumps(report).count("gap") >= 1
    assert report_json.with_name("report.html").read_text().startswith("<!doctype html>")
    client = MlflowClient(tracking_uri=f"sqlite:///{data}/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert len(runs) == 1
    assert runs[0].data.params and runs[0].data.metrics

    verify(data, "--repair")  # files that the killed run had written and not committed
    assert "all books close" in verify(data)

    files = made_files(data)
    started = time.monotonic()
    finish(start(tmp_path))
    assert made_files(data) == files, "the second run wrote something anew"
    assert time.monotonic() - started < 60
