"""An OpenAI-compatible server on loopback, which does what a prompt's words ask for; it holds no model."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web


class ChatServer:
    """What came, and what is to come. `url` ends with /v1."""

    def __init__(self) -> None:
        self.url = ""
        self.tries: Counter[str] = Counter()
        self.asked: list[tuple[str, str]] = []  # video and prompt, as they came in
        self.ended: list[tuple[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.is_down = False

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        parts = body["messages"][0]["content"]
        prompt = parts[-1]["text"].split("\n")[-1]
        place = (parts[1]["image_url"]["url"][-24:], prompt)
        self.asked.append(place)
        self.bodies.append(body)
        self.tries[prompt] += 1
        response = await self._answer(prompt, request)
        self.ended.append(place)
        return response

    async def _answer(self, prompt: str, request: web.Request) -> web.Response:
        if self.is_down or prompt == "Be down.":
            return _error(503, "no capacity")
        if prompt == "Be busy twice." and self.tries[prompt] <= 2:
            return _error(429, "too many requests")
        if prompt == "Break off twice." and self.tries[prompt] <= 2:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if prompt == "Be slow.":
            await asyncio.sleep(3.0)
        if prompt == "Refuse.":
            return _error(400, f"{request.headers['Authorization']} may not see data:image/jpeg;base64,AAAA at {request.url}\nat all")
        if prompt == "Be too long.":
            return _error(400, "This model's maximum context length is 9 tokens", code="context_length_exceeded")
        if prompt == "Know no key.":
            return _error(401, f"wrong key {request.headers['Authorization'].removeprefix('Bearer ')}")
        choice = {
            "index": 0,
            "finish_reason": "length" if prompt == "Go on." else "content_filter" if prompt == "Filter." else "stop",
            "message": {"role": "assistant", "content": f" You said: {prompt} "},
        }
        usage = {"prompt_tokens": 40, "completion_tokens": 3, "total_tokens": 43}
        head = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
        return web.json_response({**head, "choices": [] if prompt == "Say nothing." else [choice], "usage": usage})


def _error(status: int, message: str, *, code: str | None = None) -> web.Response:
    return web.json_response({"error": {"message": message, "code": code}}, status=status, headers={"Retry-After": "0"})


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    server, loop, ready = ChatServer(), asyncio.new_event_loop(), threading.Event()
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/chat/completions", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        ready.set()

    def serve() -> None:
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()
