"""The command line as a user meets it: one line and an exit code of its own for what is wrong, never a traceback."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.errors import StorageError, command_error

Command = Callable[..., Any]


def video2lora(*arguments: str, data: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "VIDEO2LORA_DATA": str(data), "HF_HUB_OFFLINE": "1", "HOME": str(data)}
    return subprocess.run([sys.executable, "-m", "infra.cli", *arguments], env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("frames", "--recipe", "nowhere.yaml"), 3, "no such file"),
        (("frames",), 3, "run the stage that makes it first"),
        (("manifest", "nowhere"), 3, "nowhere"),
        (("sweep", "nowhere.yaml"), 3, "sweep 'nowhere.yaml': no such file, and not one of ablations"),
        (("frobnicate",), 2, "No such command"),
        (("internalize", "nowhere.mp4", "-o", "adapter"), 3, "nowhere.mp4"),
        (("ask", "nowhere", "What is it?"), 3, "nowhere"),
    ],
)
def test_a_bad_command_is_one_clear_line(tmp_path: Path, arguments: tuple[str, ...], code: int, says: str) -> None:
    ran = video2lora(*arguments, data=tmp_path)
    assert ran.returncode == code, ran.stderr
    assert says in ran.stderr
    assert "Traceback" not in ran.stderr
    if code == 3:
        assert len(ran.stderr.strip().splitlines()) == 1, ran.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("internalize", "*.avi", "-o", "adapters"), 3, "*.avi: no file matches this pattern"),
        (("internalize", "a.mp4", "-o", "s3://bucket/adapters"), 3, "expected a local folder"),
        (("internalize", "a.mp4", "b.mp4", "-o", "adapters", "--sampling", "some-12"), 3, "expected the form of uniform-64"),
        (("internalize", "a.mp4", "b.mp4", "-o", "adapters", "--frames", "3", "--sampling", "fps-1"), 2, "say the same thing"),
        (("internalize", "a.mp4", "b.mp4", "-o", "adapters", "--device", "cuda"), 3, "sees no GPU here; expected cpu"),
        (("internalize", "a.mp4", "b.mp4", "-o", "adapters", "--hypernetwork", "nowhere"), 3, "nowhere"),
        (("internalize", "a.mp4", "b.mp4", "-o", "adapters", "--vlm", "nowhere"), 3, "nowhere"),
        (("ask", "nowhere"), 2, "give a question, or --interactive"),
        (("ask", "nowhere", "What?", "--json", "--stream"), 2, "--json goes with neither"),
        (("ask", "nowhere", "What?", "--video", "12"), 3, "nowhere is no collection"),
        (("export", "nowhere", "--to", "peft"), 3, "nowhere"),
        (("export", "nowhere", "--to", "onnx"), 2, "onnx"),
        (("inspect", "nowhere"), 3, "nowhere"),
        (("compose", "nowhere", "-o", "adapter"), 3, "nowhere"),
        (("encode",), 3, "run `video2lora targets` first"),
        (("train", "--json"), 2, "--json goes with --dry-run"),
        (("tiny", "verify", "--model", "/nowhere"), 3, "/nowhere"),
        (("tiny", "train", "-o", "."), 3, "is there already"),
        (("tiny", "train", "-o", "new", "--level", "4"), 3, "level: got 4, expected one of 1, 2, 3"),
        (("import-checkpoint", "nowhere.pt", "--vlm", "tiny", "-o", "hypernetwork"), 3, "nowhere.pt"),
    ],
)
def test_a_bad_command_that_needs_the_models_is_one_clear_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = command(*arguments)
    assert ran.code == code, ran.err
    assert says in " ".join(ran.err.split()) and "Traceback" not in ran.err
    if code == 3:
        assert len(ran.err.strip().splitlines()) == 1, ran.err
    assert list(tmp_path.iterdir()) == [], "a command that was refused leaves nothing behind"


def test_a_dry_run_prints_tables_or_json_and_writes_nothing(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "small.yaml"
    sizes = "{r: 3, n_blocks: 1, d_latent: 16, n_heads: 2, n_kv_heads: 1, d_head: 8}"
    recipe.write_text(f"frames: {{sampling: {{n_frames: 3}}}}\nhypernetwork: {sizes}\ntraining: {{videos_per_step: 2}}\n")
    ran = command("train", "--dry-run", "--json", "--recipe", recipe)
    assert ran.code == 0 and json.loads(ran.out)["videos_per_worker"] == 1
    assert "trained: projection" in command("train", "--dry-run", "--recipe", recipe).out
    assert list(tmp_path.iterdir()) == [recipe]


def test_wrong_usage_is_told_before_torch_is_loaded() -> None:
    code = (
        "import sys; sys.argv = ['video2lora', 'internalize', '--help']; from infra.cli import app\n"
        "try: app()\nexcept SystemExit: pass\n"
        "loaded = {'torch', 'transformers', 'ray', 'vllm', 'mlflow'} & set(sys.modules); sys.exit(f'imported {loaded}' if loaded else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert "--frames-per-chunk" in " ".join(ran.stdout.split())


def test_an_error_carried_over_from_a_worker_is_found() -> None:
    """Ray wraps what a task raised; the user's error lies behind it."""
    inner = StorageError("full")
    try:
        try:
            raise inner
        except StorageError as error:
            raise RuntimeError("task failed") from error
    except RuntimeError as outer:
        assert command_error(outer) is inner
    assert command_error(RuntimeError("ours")) is None
