"""The command line in this process, where torch is loaded once; data folders, and clips of the made world to give it."""

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra import cli
from infra.config import WorldSettings
from pipeline.made_world.clips import clips_of, encode


@dataclass(frozen=True)
class Ran:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str


Command = Callable[..., Ran]


@pytest.fixture(params=["disk", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A data folder on each kind of storage; the test is run on both."""
    return str(tmp_path / "data") if request.param == "disk" else f"{request.getfixturevalue('bucket')}/data"


@pytest.fixture
def data(tmp_path: Path) -> str:
    """A data folder on the disk."""
    return str(tmp_path / "data")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """`command("ask", folder, "What is it?")` is what a shell would run."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # as `main` has it by the environment, which is read when transformers is imported
    logging.disable_progress_bar()

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["video2lora", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        code = ended.value.code
        return Ran(code if isinstance(code, int) else 0, said.out, said.err)

    yield run
    logging.enable_progress_bar()
    logging.set_verbosity(verbosity)


@pytest.fixture(scope="session")
def made_clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three clips of the made world."""
    folder = tmp_path_factory.mktemp("clips")
    paths = []
    for clip in clips_of(WorldSettings(level=1, seed=71, n_train=1, n_validation=1, n_test=3)):
        if clip.split == "test":
            paths.append(folder / Path(clip.uri).name)
            paths[-1].write_bytes(encode(clip))
    return paths


@pytest.fixture
def clips(made_clips: list[Path], tmp_path: Path) -> list[Path]:
    """The same in this test's own folder."""
    return [Path(shutil.copy(clip, tmp_path / f"clip{i}.mp4")) for i, clip in enumerate(made_clips)]


@pytest.fixture(scope="package")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make one."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path
