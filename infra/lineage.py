"""What a run came from, as short texts that MLflow keeps as tags: the code's commit, and the content of each table below it."""

import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Tags = dict[str, str]

GIT_S = 10.0  # seconds that git may take on a slow disk


def code_tags() -> Tags:
    """The commit, and whether files were changed since, if this code lies in its git checkout; else the installed version."""
    folder = Path(__file__).parent
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:  # not ours: an installed package may lie in any checkout
        try:
            return {"version": version("video2lora")}
        except PackageNotFoundError:
            return {}
    commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"mlflow.source.git.commit": commit or "unknown", "git.changed": "unknown" if changes is None else str(bool(changes)).lower()}


def table_tags(made_from: dict[str, Any]) -> Tags:
    """`table.<name>` -> set and digest of the rows, of every table that `made_from` tells of, all the way down."""
    found: dict[str, set[str]] = {}
    for name, facts in _inputs(made_from):
        if "rows" in facts:
            found.setdefault(f"table.{name}", set()).add(f"{facts.get('set', name)}@{facts['rows']}")
    return {name: ", ".join(sorted(contents)) for name, contents in sorted(found.items())}


def _inputs(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and facts of all inputs, at any depth."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "inputs":
                yield from inner.items()
            yield from _inputs(inner)


def _git(folder: Path, *words: str) -> str | None:
    """What git says; None where it fails or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=GIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
