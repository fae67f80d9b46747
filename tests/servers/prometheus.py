"""Debian's Prometheus, for tests of what it is to scrape and to alert on. From the folder that `fetch_debian.sh prometheus` fills, else the
machine's. Debian's is built without discovery in Kubernetes: a configuration that has it is tested with addresses in its place.
"""

import json
import os
import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers.child import child, free_port, until

UNPACKED = Path(__file__).parents[2] / ".venv" / "prometheus" / "usr" / "bin"


def program(name: str) -> str | None:
    """`prometheus` or `promtool`."""
    return str(UNPACKED / name) if (UNPACKED / name).is_file() else shutil.which(name)


def is_there() -> bool:
    return program("prometheus") is not None and program("promtool") is not None


@dataclass(frozen=True)
class Prometheus:
    """A server that runs."""

    endpoint: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What an expression gives now. Raises urllib.error.HTTPError for one that is none."""
        with urllib.request.urlopen(f"{self.endpoint}/api/v1/query?{urllib.parse.urlencode({'query': expression})}", timeout=30) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found


def is_ready(endpoint: str) -> bool:
    """It listens before it has opened its storage, and answers 503 meanwhile."""
    try:
        with urllib.request.urlopen(f"{endpoint}/-/ready", timeout=1):
            return True
    except OSError:
        return False


@contextmanager
def running(configuration: Path, folder: Path) -> Iterator[Prometheus]:
    """The server, for the block."""
    executable, endpoint, said = program("prometheus"), f"http://127.0.0.1:{free_port()}", folder / "prometheus.txt"
    if executable is None:
        raise RuntimeError("Prometheus is not here: `make prometheus` fetches it (needs Debian or Ubuntu, no root)")
    places = [f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    listening = f"--web.listen-address={endpoint.removeprefix('http://')}"
    with child([executable, *places, listening, "--log.level=warn"], dict(os.environ), said) as process:
        until(lambda: is_ready(endpoint), process, said)
        yield Prometheus(endpoint)
