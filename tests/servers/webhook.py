"""Somebody who wants to know of verdicts: an HTTP server that keeps what is posted, and answers as it is told to."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import SecretStr


@dataclass
class Got:
    """What came; `answers` are the codes of the next answers, 200 when there are none left."""

    secret: SecretStr
    answers: list[int] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    n_requests: int = 0
    delay_s: float = 0.0  # before each answer


@contextmanager
def receiving(*answers: int) -> Iterator[Got]:
    """For the block, on a free port of this machine; `secret` is its address."""
    got = Got(SecretStr(""), list(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.n_requests += 1
            time.sleep(got.delay_s)
            code = got.answers.pop(0) if got.answers else 200
            if code == 200 and self.headers["Content-Type"] == "application/json":
                got.bodies.append(json.loads(body))
            with suppress(BrokenPipeError, ConnectionResetError):  # who asked has gone
                self.send_response(code)
                self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        got.secret = SecretStr(f"http://127.0.0.1:{server.server_port}/hooks/very-secret?token=hidden")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield got
        finally:
            server.shutdown()
            thread.join()
