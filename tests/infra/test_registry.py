"""What MLflow's registry is told of promotions; that it says what the log says: test_promotions.py."""

import json
from pathlib import Path

import pytest

from infra import promotions, registry
from infra.config import Where
from infra.errors import TerminatedError
from infra.objects import write_new
from infra.running import held
from infra.runs import read
from tests.servers.ending import ending

BLIND = {"system": "ours", "against": "blind", "value": 0.3, "low": 0.25, "high": 0.351, "n_videos": 60, "n_questions": 540}


def test_the_first_champions_evidence_is_told() -> None:
    entry = {"at": "2026-11-30", "who": "me@here", "by": "run-1", "kind": "promote", "weights_sha256": "w", "report": "tiny-1a"}
    told = registry.tags_of([{**entry, "verdict": {"why": "the first champion", "evidence": {"against_blind": BLIND}}}])["w"]
    assert told["gate.against_blind"] == "+0.300 [+0.250, +0.351], 540 questions of 60 clips"
    nothing = BLIND | {"value": None, "low": None, "high": None}
    told = registry.tags_of([{**entry, "verdict": {"why": "", "evidence": {"against_blind": nothing}}}])["w"]
    assert told["gate.against_blind"] == "nothing to compare"
    assert not [name for name in registry.tags_of([{**entry, "verdict": {"why": "by hand"}}])["w"] if name.startswith("gate.")]


def test_sigterm_while_mlflow_is_told_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    root = str(tmp_path / "data")
    config = {"hypernetwork": {"r": 1}, "weights_sha256": "w", "metadata": {"vlm": {"model": "tiny"}}}
    write_new(f"{root}/hypernetworks/a/config.json", json.dumps(config).encode())
    promotions.promote(root, "a", expected=0, verdict={"why": "by hand"}, by="run-1")
    with ending() as address, pytest.raises(TerminatedError), held(Where(data=root, mlflow_tracking_uri=address), "run", {}) as running:
        registry.mirror(running.where)
        running.why = "it went on"
    closed = read(root).attempts[0].closed
    assert closed is not None and closed["exit_code"] == 143
