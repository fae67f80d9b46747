"""What the proxies of the tests share: they serve on loopback for a block, and pass a request on byte for byte, with the signed Host."""

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Server(ThreadingHTTPServer):
    """A thread for each connection of many clients."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving(server: Server) -> Iterator[None]:
    """It answers until the block ends."""
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="proxy")
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def passed_on(request: BaseHTTPRequestHandler, body: bytes, target: str) -> Iterator[http.client.HTTPConnection]:
    """The connection to the server at `target` with this request on it: its answer is read in the block."""
    host, _, port = target.removeprefix("http://").partition(":")
    upstream = http.client.HTTPConnection(host, int(port), timeout=60)
    try:
        upstream.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.items():
            if name.lower() not in ("connection", "expect"):
                upstream.putheader(name, value)
        upstream.putheader("Connection", "close")
        upstream.endheaders(body)
        yield upstream
    finally:
        upstream.close()
