"""The whole path where people run it: MLflow on PostgreSQL with its artifacts in Ceph's S3, a Ray cluster of three nodes, `retrain` over
Ray's job server. What retrainings one after the other decide, a node that is killed on the way, and what is left when the cluster is gone.

Trainings begin with the hypernetwork that ships, and take few steps: what is looked at is the path, not how well one learns in a minute.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from infra import objects
from infra.config import Recipe, Where, WorldSettings
from infra.promotions import history
from pipeline.made_world import clips, scene
from tests.faults.command import below, kill
from tests.infra.ray_cluster import RayCluster, ray_cluster
from tests.servers.child import free_port
from tests.servers.mlflow_server import mlflow_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

N_FIRST, N_MORE = 24, 12  # training clips: of the first retraining, and new ones before the third
WORLD = WorldSettings(seed=7, n_train=N_FIRST + N_MORE, n_validation=4, n_test=24)  # fewer than 19 test clips claim nothing at 0.15
RECIPE = """
frames: {sampling: {policy: uniform, n_frames: 4}, longest_edge_px: 64}
teacher: {prompts: made_world, max_tokens: 24, max_model_len: 256}
hypernetwork:
  {r: 8, n_latents: 16, n_blocks: 3, d_latent: 128, n_heads: 4, n_kv_heads: 4, d_head: 32, normalise_features: true, opens_answer: true}
training:
  {n_steps: 7, videos_per_step: 6, targets_per_video: 3, lr: 1.0e-5, newline_after_target: false, validation_answers: 11, start_from: tiny}
answer: {systems: [base, ours, blind], max_new_tokens: 20, n_timed: 2}
retraining: {min_new_videos: 5, start: champion}
promotion: {margin: 0.15, max_family_fall: 0.3}
"""
SPOILED = """
teacher: {model: %s}
training: {n_steps: 60, lr: 3.0e-3}
"""


@dataclass(frozen=True)
class Place:
    """What outlives the cluster: a bucket, and the servers' addresses."""

    folder: Path
    bucket: str
    mlflow: str

    @property
    def where(self) -> Where:
        return Where(data=f"{self.bucket}/data").model_copy(update={"mlflow_tracking_uri": self.mlflow})

    def command(self, *arguments: str, environment: dict[str, str] | None = None) -> str:
        """What a command of ours prints, whose exit code must be 0."""
        given = {**os.environ, "VIDEO2LORA_DATA": self.where.data, "MLFLOW_TRACKING_URI": self.mlflow, "VIDEO2LORA_N_CPUS": "2"}
        done = subprocess.run(
            [sys.executable, "-m", "infra.cli", *arguments], env=given | (environment or {}), capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        return done.stdout

    def retrain(self, cluster: RayCluster, *more: str) -> str:
        """Submitted, waited for; what its driver printed last: what was decided."""
        recipe = self.folder / f"{len(list(self.folder.glob('*.yaml')))}.yaml"
        settings: dict[str, Any] = {}
        for text in (RECIPE, *more):
            for section, values in yaml.safe_load(text).items():
                settings[section] = settings.get(section, {}) | values
        recipe.write_text(yaml.safe_dump(settings))
        said = self.command(
            "submit",
            "retrain",
            f"{self.bucket}/clips/clips.jsonl",
            "--recipe",
            str(recipe),
            "--follow",
            environment=cluster.client_environment,
        )
        (self.folder / f"{recipe.stem}.txt").write_text(said)
        return said

    def aliases(self) -> dict[str, str]:
        """Alias -> the hash of the weights it is on."""
        client = MlflowClient(tracking_uri=self.mlflow)
        found = client.get_registered_model("video2lora-tiny").aliases
        return {alias: client.get_model_version("video2lora-tiny", version).tags["weights"] for alias, version in found.items()}


@pytest.fixture
def place(ceph_bucket: str, database: str, tmp_path: Path) -> Iterator[Place]:
    port = free_port()
    with mlflow_server(database, port=port, folder=tmp_path / "mlflow", artifacts=f"{ceph_bucket}/mlflow"):
        yield Place(tmp_path, ceph_bucket, f"http://127.0.0.1:{port}")


def upload(place: Place, rendered: Path, *, n_train: int) -> None:
    """The made world's clips of every split but for training clips from number `n_train` on, which are named in no row."""
    for clip in rendered.rglob("*.mp4"):
        objects.write_new(f"{place.bucket}/clips/{clip.relative_to(rendered)}", clip.read_bytes())
    for name in ("clips.jsonl", "questions.jsonl"):
        rows = [line for line in (rendered / name).read_text().splitlines() if not _is_later(json.loads(line)["uri"], n_train)]
        objects.remove(f"{place.bucket}/clips/{name}")
        objects.write_new(f"{place.bucket}/clips/{name}", "\n".join(rows).encode())


def _is_later(uri: str, n_train: int) -> bool:
    split, _, name = uri.rpartition("/")
    return split.rpartition("/")[2] == "train" and int(name.removesuffix(".mp4")) >= n_train


def spoiled_teacher(folder: Path) -> Path:
    """The small VLM with words of its output exchanged: what is red it calls blue, what goes left goes right."""
    shipped = resources.files("video2lora.tiny") / "vlm"
    folder.mkdir()
    for file in shipped.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights, words = load_file(folder / "model.safetensors"), Tokenizer.from_file(str(folder / "tokenizer.json"))
    of_words = [[words.token_to_id(f"Ġ{word}") for word in group] for group in (scene.COLOURS, scene.DIRECTIONS)]
    assert None not in [one for ids in of_words for one in ids]
    for ids in of_words:
        weights["lm_head.weight"][ids] = weights["lm_head.weight"][ids[1:] + ids[:1]]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_retrainings_decide_and_leave_all_that_is_needed_to_look_back(place: Place) -> None:
    rendered = place.folder / "rendered"
    clips.run(Recipe(world=WORLD), Where(data=str(rendered)))
    upload(place, rendered / "clips", n_train=N_FIRST)

    with ray_cluster(place.folder, 1, 1, 1) as cluster:
        victim = cluster.nodes[-1].pid

        def kill_a_node() -> None:
            while not any(objects.names(f"{place.where.data}/frames/{one}/log") for one in objects.folders(f"{place.where.data}/frames")):
                time.sleep(0.2)
            kill(below(victim), victim)

        killing = threading.Thread(target=kill_a_node, daemon=True)
        killing.start()
        assert "promote" in place.retrain(cluster)
        killing.join(0)
        assert not killing.is_alive() and cluster.nodes[-1].poll() is not None
        (first,) = history(place.where.data)
        assert first["kind"] == "promote" and place.aliases()["champion"] == first["weights_sha256"]

        assert "skip" in place.retrain(cluster)
        assert history(place.where.data) == [first]

        upload(place, rendered / "clips", n_train=N_FIRST + N_MORE)
        place.retrain(cluster)
        (second,) = history(place.where.data)[1:]
        assert second["kind"] == "promote" and second["verdict"]["evidence"]["champion"]["weights_sha256"] == first["weights_sha256"]
        assert place.aliases()["champion"] == second["weights_sha256"] != first["weights_sha256"]

        assert "keep" in place.retrain(cluster, SPOILED % spoiled_teacher(place.folder / "spoiled"))
        third = history(place.where.data)[-1]
        assert third["kind"] == "keep" and "not" in third["verdict"]["why"]
        assert place.aliases() == {"champion": second["weights_sha256"], "challenger": third["weights_sha256"]}

    place.command("rollback")
    assert place.aliases()["champion"] == first["weights_sha256"]
    look_back(place, [first, second, third])


def look_back(place: Place, decided: list[dict[str, Any]]) -> None:
    """With no cluster any more: runs with their stages and words, reports, the hypernetworks among MLflow's artifacts in the bucket."""
    attempts = json.loads(place.command("runs", "--json"))
    assert [one["state"] for one in attempts] == ["done"] * (len(decided) + 1), "those that decided, and the one that skipped"
    for one in decided:
        of_run = json.loads(place.command("runs", "show", one["by"], "--json"))
        (attempt,) = [attempt for attempt in of_run if attempt["why"].startswith(f"{one['kind']}: {one['hypernetwork']}")]
        stages = [stage["stage"] for stage in attempt["stages"]]
        assert stages[:2] == ["manifest", "frames"] and stages[-2:] == ["report", "gate"]
        assert "train:" in place.command("runs", "show", one["by"], "--log")
        assert b"<html" in (objects.read_bytes(f"{place.where.data}/reports/{one['report']}/report.html") or b"")
    client = MlflowClient(tracking_uri=place.mlflow)
    for version in client.search_model_versions("name = 'video2lora-tiny'"):
        assert {"verdict", "why", "report"} <= version.tags.keys()
        files = {file.path for file in client.list_artifacts(str(version.run_id), "hypernetwork")}
        assert "hypernetwork/hypernetwork.safetensors" in files
    assert objects.folders(f"{place.bucket}/mlflow"), "the server's artifacts are in the bucket"
