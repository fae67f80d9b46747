"""A data folder in which the first retraining may begin, or has promoted; and the scheduler that fires."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra import promotions, runs
from infra.config import Recipe, Where
from infra.heartbeat import Pace
from tests.training.retraining.made import Source, a_recipe, answer, prepare
from training import retrain

QUICK = Pace(beat_s=0.05, lease_s=0.4)
NOBODY = "http://127.0.0.1:9"  # answers there


@dataclass(frozen=True)
class Kept:
    """Made once, and copied for each test: the clips where they were made, as their addresses stand in the tables."""

    base: Path
    recipe: Recipe


@pytest.fixture(scope="package", autouse=True)
def _tracking_is_away() -> Iterator[None]:
    """And said to be so at once: a database of MLflow's takes seconds to make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield


@pytest.fixture(scope="package")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """Tables of three training clips and the first retraining, before and after."""
    base = tmp_path_factory.mktemp("made")
    made = Kept(base, a_recipe(base))
    source, where = Source(base / "source"), Where(data=str(base / "data"), mlflow_tracking_uri=NOBODY)
    for i in range(3):
        source.add(f"train {i}")
    shutil.copytree(source.folder, base / "source-kept")
    prepare(source, made.recipe, where)
    answer(made.recipe, where)
    shutil.copytree(where.data, base / "prepared")
    told = tick(source, made.recipe, where)
    assert told.startswith("promote: "), told
    shutil.copytree(where.data, base / "championed")
    return made


@pytest.fixture
def recipe(kept: Kept) -> Recipe:
    return kept.recipe


@pytest.fixture
def source(kept: Kept) -> Source:
    """Three training clips and those of the test, as they were."""
    shutil.rmtree(kept.base / "source")
    shutil.copytree(kept.base / "source-kept", kept.base / "source")
    return Source(kept.base / "source")


@pytest.fixture
def where(kept: Kept, tmp_path: Path) -> Where:
    """All tables and answers are made, and nothing was decided."""
    shutil.copytree(kept.base / "prepared", tmp_path / "data")
    return Where(data=str(tmp_path / "data"), mlflow_tracking_uri=NOBODY)


@pytest.fixture
def champion(kept: Kept, where: Where) -> promotions.Champion:
    """By the first retraining."""
    shutil.rmtree(where.data)
    shutil.copytree(kept.base / "championed", where.data)
    found = promotions.champion(where.data, "toy")
    assert found is not None
    return found


def tick(source: Source, recipe: Recipe, where: Where) -> str:
    """The scheduler fires."""
    return retrain.run(source.address, recipe, where, pace=QUICK)


def last(where: Where) -> runs.RunAttempt:
    return runs.read(where.data).attempts[-1]
