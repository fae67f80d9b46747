"""`mlflow server` over a database, for a block: 10 s to start, most of it imports."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.child import child, listens, until


@contextmanager
def mlflow_server(database: str, *, port: int, folder: Path, artifacts: str | None = None) -> Iterator[None]:
    """Listens on the port; what it says lies in the folder, and so do artifacts that have no address. Raises RuntimeError where it does not
    start."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", database, "--artifacts-destination", artifacts or str(folder / "artifacts")]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with child(command, environment, folder / "said") as process:
        until(lambda: listens(f"http://127.0.0.1:{port}"), process, folder / "said", timeout_s=120)
        yield
