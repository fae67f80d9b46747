"""One private Ray for all of this folder's tests, and the builders of tiny clips that the decoder's tests use."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "video2lora"))  # clips.py


@pytest.fixture(scope="package")
def ray_of_two_cpus() -> Iterator[None]:
    """Stages join it instead of starting one each."""
    from infra.cluster import cluster
    from infra.config import Where

    with cluster(Where(n_cpus=2)):
        yield
