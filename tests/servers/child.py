"""A server as a child process: started on a free port of 127.0.0.1, waited for, ended by its own process id."""

import functools
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4


@dataclass(frozen=True)
class S3Server:
    """Where an S3 server listens, and who may use it."""

    endpoint: str
    access_key: str = "video2lora"
    secret_key: str = "a-secret-of-the-tests"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to use it: botocore, s3fs, pyarrow and Ray Data alike."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self) -> str:
        """The address of a new, empty bucket."""
        name = f"bucket-{uuid4().hex[:12]}"
        self.client.create_bucket(Bucket=name)
        return f"s3://{name}"

    @functools.cached_property
    def client(self) -> Any:
        """botocore's own, for what a test wants of the server beyond objects."""
        from botocore.session import Session

        keys = {"aws_access_key_id": self.access_key, "aws_secret_access_key": self.secret_key}
        return Session().create_client("s3", endpoint_url=self.endpoint, region_name="us-east-1", **keys)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def child(
    command: Sequence[str], environment: Mapping[str, str], said: Path, *, user: str | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """The process, for the block, run by `user` if root starts it for one; what it says goes to the file `said`."""
    with said.open("wb") as output:
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, env=environment, user=user, **streams)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until(is_ready: Callable[[], bool], process: "subprocess.Popen[bytes]", said: Path, *, timeout_s: float = 60.0) -> None:
    """Wait for a server. Raises RuntimeError with its last words if it ends or is not ready in time."""
    deadline_s = time.monotonic() + timeout_s
    while not is_ready():
        if process.poll() is not None or time.monotonic() > deadline_s:
            state = f"ended with {process.returncode}" if process.poll() is not None else f"not ready after {timeout_s:.0f} s"
            raise RuntimeError(f"{process.args!r} {state}:\n{said.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


def listens(endpoint: str) -> bool:
    host, _, port = endpoint.removeprefix("http://").partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True
