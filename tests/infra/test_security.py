"""Secrets reach nothing that is written or said; nothing of ours runs what is in a file; a collection's catalogue leads nowhere else."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clips import write_clip

from infra import cli
from infra.collection import CATALOGUE, adapter_folder
from infra.config import Recipe, TrainingSettings, load_where
from infra.errors import BadInputError
from infra.tracking import log_artifacts, open_run

ROOT = Path(__file__).parents[2]
PACKAGES = ("video2lora", "infra", "pipeline", "teacher", "training", "benchmarks")
CANARY = "canary-7f3a9c"
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}-aws",
    "AWS_SESSION_TOKEN": f"{CANARY}-session",
    "HF_TOKEN": f"{CANARY}-hub",
    "OPENAI_API_KEY": f"{CANARY}-openai",
    "MLFLOW_TRACKING_PASSWORD": f"{CANARY}-mlflow",
    "RAY_AUTH_TOKEN": f"{CANARY}-ray",
    "VIDEO2LORA_WEBHOOK": f"https://hooks.example/{CANARY}-webhook",
}
UNSAFE = {  # keyword arguments with which a library runs what is in a file, a shell, or strangers' code
    "allow_pickle": True,
    "trust_remote_code": True,
    "weights_only": False,
    "shell": True,
    "verify": False,
}

Said = Callable[..., str]


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Said:
    """`said("ls", ...)`: all that a command says, its children too, in an environment full of secrets; data goes to tmp_path / "data"."""
    for name, value in {**SECRETS, "VIDEO2LORA_DATA": str(tmp_path / "data"), "MLFLOW_TRACKING_USERNAME": "me"}.items():
        monkeypatch.setenv(name, value)
    for name in ("MLFLOW_TRACKING_URI", "RAY_API_SERVER_ADDRESS"):  # `submit` sets the second: so it is taken back
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["video2lora", *arguments])
        with pytest.raises(SystemExit):
            cli.main()
        return "".join(capfd.readouterr())

    return run


def bytes_below(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path, path.read_bytes()


def check_written(folder: Path, *, at_least: int) -> None:
    files = list(bytes_below(folder))
    assert len(files) >= at_least
    assert not [path for path, data in files if CANARY.encode() in data or CANARY.encode("utf-16-le") in data]


def test_what_is_written_and_said_has_no_secret(said: Said, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    write_clip(clips / "good.mp4", range(0, 480, 40))
    (clips / "bad.mp4").write_bytes(b"")
    told = said("manifest", str(clips)) + said("plan", str(clips)) + said("ls", "--json") + said("ls", "videos") + said("verify")
    assert "videos: 1 rows, 1 rejects" in told
    told += said("manifest", str(clips), "--recipe", "no such recipe") + said("show", "none") + said("runs") + said("history")
    assert "no such file" in told
    told += said("submit", "frames", "--address", f"http://me:{CANARY}@127.0.0.1:9")
    assert CANARY not in told
    check_written(tmp_path, at_least=8)


def test_a_job_for_a_cluster_has_no_secret(said: Said, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    told = said("submit", "targets", "--kubernetes", "--from", str(ROOT / "k8s" / "overlays" / "dev"), "-o", str(job))
    assert job.is_file(), told
    assert "targets" in job.read_text() and CANARY not in told
    check_written(tmp_path, at_least=1)


def test_a_store_that_refuses_is_told_without_the_keys(said: Said, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS["AWS_SECRET_ACCESS_KEY"])
    told = said("manifest", f"{bucket}-of-nobody/clips") + said("manifest", f"{bucket}/list.jsonl")
    assert "error: " in told and CANARY not in told
    check_written(tmp_path, at_least=0)


def test_tracking_keeps_no_secret(said: Said, tmp_path: Path) -> None:
    where = load_where()
    with_everything = Recipe(training=TrainingSettings(n_steps=7))
    run = open_run(where, with_everything, made_from={"stage": "train", "inputs": {}})
    assert run is not None
    run.log_metrics([("loss", 1.0, 1)])
    run.end()
    report = tmp_path / "report.json"
    report.write_text("{}")
    log_artifacts(where, with_everything, [str(report)])
    assert (tmp_path / "data" / "mlflow.db").stat().st_size > 100_000
    check_written(tmp_path, at_least=3)


def test_a_recipe_and_an_environment_hold_no_secret(said: Said) -> None:
    where = load_where()
    assert where.webhook is not None and CANARY not in repr(where) + str(where) + where.model_dump_json()
    assert CANARY not in json.dumps(Recipe().model_dump(mode="json"))
    fields = {name for name in type(where).model_fields if name.endswith(("token", "password", "secret", "key"))}
    assert not fields, "credentials are read by their own libraries"


PLANTED = {
    "import pickle\npickle.loads(data)": "TID251",
    "from joblib import load": "TID251",
    "import torch\ntorch.load(path)": "TID251",
    "import numpy\nnumpy.load(path)": "TID251",
    "import yaml\nyaml.load(text, Loader=yaml.Loader)": "S506",
    "eval(text)": "S307",
    "exec(text)": "S102",
    "import os\nos.system(text)": "S605",
    "import subprocess\nsubprocess.run(text, shell=True)": "S602",
    "import jinja2\njinja2.Environment(autoescape=False)": "S701",
    "import requests\nrequests.get(url, verify=False, timeout=1)": "S501",
    "cursor.execute(f'select * from {name}')": "S608",
}


def test_the_linter_refuses_what_runs_the_content_of_a_file() -> None:
    for code, rule in PLANTED.items():
        command = [
            str(Path(sys.executable).parent / "ruff"),
            "check",
            "--output-format",
            "concise",
            "--stdin-filename",
            "infra/planted.py",
            "-",
        ]
        done = subprocess.run(command, input=code, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert rule in done.stdout, code


def unsafe_keywords(code: str) -> list[str]:
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    said = [(one.arg, one.value.value) for call in calls for one in call.keywords if one.arg and isinstance(one.value, ast.Constant)]
    return [name for name, value in said if name in UNSAFE and value is UNSAFE[name]]


def test_no_call_asks_a_library_to_run_what_it_reads() -> None:
    assert unsafe_keywords("f(trust_remote_code=True); g(1, weights_only=False)") == ["trust_remote_code", "weights_only"]
    assert unsafe_keywords("f(trust_remote_code=False, allow_pickle=None)") == []
    modules = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(modules) > 150
    assert not [path for path in modules if unsafe_keywords(path.read_text())]


def test_an_exemption_from_the_linter_says_why_and_there_are_few() -> None:
    lines = [line for package in PACKAGES for path in (ROOT / package).rglob("*.py") for line in path.read_text().splitlines()]
    exempt = [line.split("# noqa: ")[1] for line in lines if "# noqa: S" in line or "# noqa: TID" in line]
    assert len(exempt) <= 3 and all(len(one.split("  ", 1)) == 2 for one in exempt), exempt


@pytest.mark.parametrize("name", ["../private", "..", ".", "", "/etc", "a/../../private"])
def test_a_catalogue_leads_out_of_no_collection(name: str, tmp_path: Path) -> None:
    collection = tmp_path / "collection"
    (tmp_path / "private").mkdir()
    collection.mkdir()
    row = dict.fromkeys(CATALOGUE.names) | {"video_id": "cafe", "adapter": name}
    pq.write_table(pa.Table.from_pylist([row], schema=CATALOGUE), collection / "catalogue.parquet")
    with pytest.raises(BadInputError, match="expected the name of a folder in"):
        adapter_folder(collection, "cafe")


def test_a_file_of_secrets_is_in_no_image() -> None:
    allowed = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert allowed[0] == "*" and {line.removeprefix("!") for line in allowed if line.startswith("!")} == {
        *("constraints*.txt", "pyproject.toml", "README.md", "LICENSE", "video2lora", "infra", "pipeline", "teacher", "training")
    }
    assert not [name for name in os.listdir(ROOT) if name.startswith(".env")]
