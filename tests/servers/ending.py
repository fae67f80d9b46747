"""A server that is asked something, and this process is told to end (SIGTERM) before it answers: as a scheduler does it, in the middle."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def ending() -> Iterator[str]:
    """Its address, for the block. It kills once, and answers 500 when the block ends."""
    told, is_over = threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not told.is_set():
                told.set()
                os.kill(os.getpid(), signal.SIGTERM)
            is_over.wait(30)
            with suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(500)
                self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            is_over.set()
            server.shutdown()
            thread.join()
