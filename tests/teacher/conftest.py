from pathlib import Path

import pytest

from tests.teacher.odd_vlm import save_odd_vlm


@pytest.fixture(scope="session")
def vlm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_odd_vlm(tmp_path_factory.mktemp("vlm"))
