"""An OpenAI-compatible server on loopback, which does what a prompt's words ask for; it holds no model."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from tests.teacher.openai_server import refusal, serving

CONDITIONS = {  # of the endpoint, whatever it is asked
    "Be down.": (503, "no capacity", None),
    "Stay busy.": (429, "too many requests", "rate_limit_exceeded"),
    "Be out of credit.": (402, "Insufficient credits", None),
    "Be over quota.": (429, "You exceeded your current quota", "insufficient_quota"),
    "Know no such field.": (400, "Unsupported parameter: 'max_tokens'", "unsupported_parameter"),
}


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
        condition = CONDITIONS.get("Be down." if self.is_down else prompt)
        if condition is not None:
            return refusal(condition[0], condition[1], code=condition[2])
        if prompt == "Be busy twice." and self.tries[prompt] <= 2:
            return refusal(429, "too many requests")
        if prompt == "Break off twice." and self.tries[prompt] <= 2:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if prompt == "Be slow.":
            await asyncio.sleep(3.0)
        if prompt == "Refuse.":
            return refusal(400, f"{request.headers['Authorization']} may not see data:image/jpeg;base64,AAAA at {request.url}\nat all")
        if prompt == "Be too long.":
            return refusal(400, "This model's maximum context length is 9 tokens", code="context_length_exceeded")
        if prompt == "Know no key.":
            return refusal(401, f"wrong key {request.headers['Authorization'].removeprefix('Bearer ')}")
        if prompt == "Be a page.":
            return web.Response(text="<html>Please log in.</html>", content_type="text/html")
        choice = {
            "index": 0,
            "finish_reason": "length" if prompt == "Go on." else "content_filter" if prompt == "Filter." else "stop",
            "message": {"role": "assistant", "content": f" You said: {prompt} "},
        }
        usage = {"prompt_tokens": 40, "completion_tokens": 3, "total_tokens": 43}
        if prompt == "Count nothing.":
            usage = dict.fromkeys(usage)  # type: ignore[arg-type]
        head = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
        return web.json_response({**head, "choices": [] if prompt == "Say nothing." else [choice], "usage": usage})


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    server = ChatServer()
    with serving(server.answer) as server.url:
        yield server
