"""PostgreSQL on loopback, for a block. Programs come from the folder that `fetch_debian.sh postgres` fills, else from the machine.

It refuses to run as root: there it runs as nobody, in a folder of its own that nobody owns. 2 s.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.child import child, free_port, listens, until

UNPACKED = Path(__file__).parents[2] / ".venv" / "postgres"
USER, PASSWORD = "video2lora", "a-secret-of-the-tests"
SETTINGS = ("fsync=off", "full_page_writes=off", "unix_socket_directories=", "listen_addresses=127.0.0.1")


def program(name: str) -> str | None:
    """Of the newest version."""
    found = [path for root in (Path("/"), UNPACKED) for path in root.glob(f"usr/lib/postgresql/*/bin/{name}")]
    return str(found[-1]) if found else None


def is_there() -> bool:
    return program("postgres") is not None and program("initdb") is not None


@contextmanager
def postgres() -> Iterator[str]:
    """Its address for SQLAlchemy, with user and password; its one database is empty. Raises RuntimeError if it does not start."""
    if not is_there():
        raise RuntimeError("PostgreSQL is not here: `make postgres` fetches it (needs Debian or Ubuntu, no root)")
    user, port = "nobody" if os.geteuid() == 0 else None, free_port()
    libraries = UNPACKED / "usr" / "lib" / "x86_64-linux-gnu"
    environment = {**os.environ, "LC_ALL": "C.UTF-8"} | ({"LD_LIBRARY_PATH": str(libraries)} if libraries.is_dir() else {})
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        (folder / "password").write_text(PASSWORD)
        for path in (folder, folder / "password"):
            shutil.chown(path, user or os.geteuid())
        command = [program("initdb") or "", "--no-sync", "--auth=scram-sha-256", f"--username={USER}", f"--pwfile={folder}/password"]
        command += ["--encoding=UTF8", f"--pgdata={folder}/data"]
        done = subprocess.run(command, env=environment, user=user, cwd=folder, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"initdb ended with {done.returncode}:\n{done.stderr[-2000:]}")
        command = [program("postgres") or "", "-D", f"{folder}/data", "-p", str(port)]
        command += [word for setting in SETTINGS for word in ("-c", setting)]
        with child(command, environment, folder / "said", user=user) as process:
            until(lambda: listens(f"http://127.0.0.1:{port}"), process, folder / "said")
            yield f"postgresql+psycopg2://{USER}:{PASSWORD}@127.0.0.1:{port}/postgres"
