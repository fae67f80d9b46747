"""A proxy before an S3 server that breaks requests as networks and stores do, when a test says so.

A fault is for the next n requests that it matches; of several the first given that has any left is taken. Threads and the standard
library: other processes (Ray's workers) use it too.
"""

import http.client
import socket
import struct
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from threading import Lock
from typing import Literal

from tests.servers.passing_on import Server, passed_on, serving

CHUNK_BYTES = 1 << 16
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
Kind = Literal["status", "reset", "lost", "cut", "short", "slow"]


@dataclass
class Fault:
    """What becomes of the next `times` requests of a method ("" for any) whose path contains `part`.

    status: answered by the proxy with `status` and `code`; reset: the connection breaks before anything is passed on; lost: it breaks
    after the server has done the work and answered; cut: it breaks after `after_bytes` of the answer's body; short: it is closed there
    in good order; slow: passed on `wait_s` later.
    """

    kind: Kind
    times: int = 1
    method: str = ""
    part: str = ""
    status: int = 503
    code: str = "SlowDown"
    after_bytes: int = 100
    wait_s: float = 0.2


@dataclass
class FaultProxy:
    """Its `endpoint` takes the server's place."""

    target: str
    faults: list[Fault] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)  # (method, path) of each request, also of those that were broken
    endpoint: str = ""
    refused_until_s: float = 0.0
    lock: Lock = field(default_factory=Lock)

    def fail(self, fault: Fault) -> None:
        with self.lock:
            self.faults.append(fault)

    def forget(self) -> None:
        """No faults, nothing seen."""
        with self.lock:
            self.faults.clear()
            self.seen.clear()
            self.refused_until_s = 0.0

    def refuse(self, seconds: float) -> None:
        """Every connection breaks for so long, also those that are open: the store is away."""
        self.refused_until_s = time.monotonic() + seconds

    def take(self, method: str, path: str) -> Fault | None:
        """The fault for this request, which counts as seen from here on."""
        with self.lock:
            self.seen.append((method, path))
            if time.monotonic() < self.refused_until_s:
                return Fault("reset")
            for fault in self.faults:
                if fault.times > 0 and fault.method in ("", method) and fault.part in path:
                    fault.times -= 1
                    return fault
        return None

    @property
    def n_left(self) -> int:
        """Faults that no request has met yet."""
        return sum(fault.times for fault in self.faults)


class _Server(Server):
    def __init__(self, handler: "type[_Handler]") -> None:
        super().__init__(handler)
        self.broken: list[str] = []  # what went wrong in the proxy itself

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):  # a client that went away is what this is for
            self.broken.append(traceback.format_exc())


@contextmanager
def fault_proxy(target: str) -> Iterator[FaultProxy]:
    """A proxy to the endpoint `target`, for the block."""
    proxy = FaultProxy(target)
    server = _Server(type("Handler", (_Handler,), {"proxy": proxy}))
    proxy.endpoint = server.endpoint
    with serving(server):
        yield proxy
    assert not server.broken, server.broken[0]


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def forward(self) -> None:
        fault = self.proxy.take(self.command, self.path)
        kind = fault.kind if fault else ""
        if kind == "reset":
            return self.reset()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault and kind == "status":
            text = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>as the test asked</Message></Error>".encode()
            return self.answer(fault.status, [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))], iter([text]))
        if fault and kind == "slow":
            time.sleep(fault.wait_s)
        with passed_on(self, body, self.proxy.target) as upstream:
            response = upstream.getresponse()
            if kind == "lost":
                response.read()
                return self.reset()
            self.answer(response.status, response.getheaders(), _chunks(response), fault if kind in ("cut", "short") else None)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

    def answer(self, status: int, headers: list[tuple[str, str]], chunks: Iterator[bytes], fault: Fault | None = None) -> None:
        """With the server's own headers; a body of unknown length is sent in chunks, as it came."""
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() != "connection":
                self.send_header(name, value)
        self.end_headers()
        chunked = any(name.lower() == "transfer-encoding" for name, _ in headers)
        left = fault.after_bytes if fault else None
        for chunk in chunks if self.command != "HEAD" else ():
            part = chunk if left is None else chunk[:left]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
            if left is not None and (left := left - len(part)) == 0:
                self.close_connection = True
                return self.reset() if fault and fault.kind == "cut" else None
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def reset(self) -> None:
        """The client sees "connection reset by peer", once it has read what was sent."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: `seen` has it."""


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while chunk := response.read(CHUNK_BYTES):
        yield chunk
