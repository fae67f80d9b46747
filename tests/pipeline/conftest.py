"""One private Ray for each of the modules that need one, and the builders of tiny clips that the decoder's tests use."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "video2lora"))  # clips.py


@pytest.fixture(scope="module")
def ray_of_two_cpus() -> Iterator[None]:
    """Stages join it instead of starting one each."""
    from infra.cluster import cluster
    from infra.config import Where

    with cluster(Where(n_cpus=2)):
        yield
