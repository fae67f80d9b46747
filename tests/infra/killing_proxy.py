"""A proxy before an S3 server that ends its client's process, by SIGKILL, at the n-th request that changes what is stored.

    before    nothing of the request reaches the server        midway    half of its body does, then the connection ends
    after     the server has done it, and the answer is lost

Requests that only read change nothing and are not counted.
"""

import http.client
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from threading import Event, Lock
from typing import Literal

from tests.servers.passing_on import Server, passed_on, serving

Moment = Literal["before", "midway", "after"]
MOMENTS: tuple[Moment, ...] = ("before", "midway", "after")


@dataclass
class KillingProxy:
    """Its `endpoint` takes the server's place. `arm` before each run, `aim` when it has started."""

    target: str
    endpoint: str = ""
    moment: Moment = "before"
    left: int = 0
    pid: int = 0
    started: Event = field(default_factory=Event)
    lock: Lock = field(default_factory=Lock)

    def arm(self, n: int, moment: Moment) -> None:
        self.started.clear()
        self.left, self.moment = n, moment

    def aim(self, pid: int) -> None:
        self.pid = pid
        self.started.set()

    def is_the_one(self, method: str) -> bool:
        """Whether this is the request at which the client ends."""
        with self.lock:
            self.left -= method in ("PUT", "POST", "DELETE") and self.left > 0
            return method in ("PUT", "POST", "DELETE") and self.left == 0 and self.started.wait(60) and self.pid > 0

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.pid = 0


class _Server(Server):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is what this is for."""


class _Handler(BaseHTTPRequestHandler):
    proxy: KillingProxy
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def handle_expect_100(self) -> bool:
        """At once: a client waits a second for this word before it sends a body."""
        goes_on = super().handle_expect_100()
        self.wfile.flush()
        return goes_on

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        moment = self.proxy.moment if self.proxy.is_the_one(self.command) else ""
        self.close_connection = self.close_connection or bool(moment)
        if moment == "before":
            return self.proxy.kill()
        with passed_on(self, body[: len(body) // 2] if moment == "midway" else body, self.proxy.target) as upstream:
            if moment == "midway":
                return self.proxy.kill()
            response = upstream.getresponse()
            answer = response.read()
            if moment == "after":
                return self.proxy.kill()
            self.answer(response, answer)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

    def answer(self, response: http.client.HTTPResponse, body: bytes) -> None:
        self.send_response_only(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("connection", "transfer-encoding") and (name.lower() != "content-length" or self.command == "HEAD"):
                self.send_header(name, value)
        if self.command != "HEAD" and response.status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def killing_proxy(target: str) -> Iterator[KillingProxy]:
    """A proxy to the endpoint `target`, for the block."""
    proxy = KillingProxy(target)
    server = _Server(type("Handler", (_Handler,), {"proxy": proxy}))
    proxy.endpoint = server.endpoint
    with serving(server):
        yield proxy
