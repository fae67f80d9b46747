"""ministack: an S3 server that starts in a second, for the fast tests. It checks conditions of a PUT, but no signatures."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.child import S3Server, child, free_port, listens, until


@contextmanager
def ministack(folder: Path) -> Iterator[S3Server]:
    """A server for the block, empty at first; it keeps objects in memory and its words in `folder`."""
    port = free_port()
    server, said = S3Server(f"http://127.0.0.1:{port}"), folder / "ministack.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "IOT_MTLS_ENABLED": "0", "SFTP_ENABLED": "0", "SERVICES": "s3"}
    environment |= {"LOG_LEVEL": "WARNING", "S3_PERSIST": "0"}
    with child([sys.executable, "-m", "ministack"], environment, said) as process:
        until(lambda: listens(server.endpoint), process, said)
        yield server
