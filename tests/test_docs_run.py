"""The commands that pages mark to be run (`docs_pages` has the rule), run by a shell as a newcomer would type them: getting-started
first, in an empty folder, and the other pages in what it leaves there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs_pages import PAGES, fences

FIRST = "getting-started.md"
LATER = [page for page in PAGES if page.name != FIRST and any(fence.is_run for fence in fences(page.read_text()))]


def script(page: Path) -> str:
    """All that is to be run of a page."""
    marked = [fence for fence in fences(page.read_text()) if fence.is_run]
    return "\n".join(f"python - <<'PYTHON'\n{fence.text}PYTHON" if fence.language == "python" else fence.text for fence in marked)


def work_through(page: Path, folder: Path) -> str:
    """What it printed. A command that fails ends it, and the shell has said which."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("VIDEO2LORA_")}
    environment = {**ours, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    command = ["bash", "-exo", "pipefail", "-c", script(page)]
    ran = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1200)
    assert ran.returncode == 0, f"{page.name}: exit code {ran.returncode}:\n{ran.stdout[-4000:]}"
    return ran.stdout


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which getting-started was worked through, and what was printed."""
    folder = tmp_path_factory.mktemp("newcomer")
    return folder, work_through(next(page for page in PAGES if page.name == FIRST), folder)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_getting_started(started: tuple[Path, str]) -> None:
    folder, said = started
    assert "0 visual" in said
    assert len(list(folder.glob("data/hypernetworks/*/complete.json"))) == 1, "the second run trained nothing"
    assert (folder / "adapters" / "catalogue.parquet").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("page", LATER, ids=lambda page: page.name)
def test_later_pages(page: Path, started: tuple[Path, str]) -> None:
    work_through(page, started[0])
