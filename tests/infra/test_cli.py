"""The command line as a user meets it: one line and an exit code of its own for what is wrong, never a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

from infra.cli import command_error
from infra.errors import StorageError


def video2lora(*arguments: str, data: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "VIDEO2LORA_DATA": str(data), "HF_HUB_OFFLINE": "1", "HOME": str(data)}
    return subprocess.run([sys.executable, "-m", "infra.cli", *arguments], env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("frames", "--recipe", "nowhere.yaml"), 3, "no such file"),
        (("frames",), 3, "run the stage that makes it first"),
        (("manifest", "nowhere"), 3, "nowhere"),
        (("frobnicate",), 2, "No such command"),
        (("internalize", "nowhere.mp4", "-o", "adapter"), 3, "nowhere.mp4"),
        (("ask", "nowhere", "What is it?"), 3, "nowhere"),
        (("tiny", "verify", "--model", "/nowhere"), 3, "/nowhere"),
        (("tiny", "train", "-o", "."), 3, "is there already"),
        (("tiny", "train", "-o", "new", "--level", "4"), 3, "level: got 4, expected one of 1, 2, 3"),
    ],
)
def test_a_bad_command_is_one_clear_line(tmp_path: Path, arguments: tuple[str, ...], code: int, says: str) -> None:
    ran = video2lora(*arguments, data=tmp_path)
    assert ran.returncode == code, ran.stderr
    assert says in ran.stderr
    assert "Traceback" not in ran.stderr
    if code == 3:
        assert len(ran.stderr.strip().splitlines()) == 1, ran.stderr


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
