"""An OpenAI-compatible server on loopback, in a thread of its own: how `chat_server` and `judge_server` are served."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """Answers chat completions for the block; gives the URL, which ends with /v1."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ready.set()

    def serve() -> None:
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


def refusal(status: int, message: str, *, code: str | None = None) -> web.Response:
    """An error as OpenAI words it; to be tried again at once."""
    return web.json_response({"error": {"message": message, "code": code}}, status=status, headers={"Retry-After": "0"})
