"""An OpenAI-compatible server on loopback that judges by rule, or misbehaves where an answer's words ask for it; it holds no model.

It reads what it is to mark as a judge should: the JSON strings between the lines DATA and END OF DATA, and nothing else.
"""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web


def data_of(prompt: str) -> dict[str, str]:
    """What stands between the lines, by name. Raises for a line that is no name and JSON string."""
    lines = prompt.split("\n")
    data = lines[lines.index("DATA") + 1 : lines.index("END OF DATA")]
    assert lines.count("DATA") == lines.count("END OF DATA") == 1
    return {name: json.loads(value) for name, value in (line.split(": ", 1) for line in data)}


class JudgeServer:
    """What came. Answers that are a reference get 5 points, others 1."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.tries: Counter[str] = Counter()  # by the answer that was to be marked
        self.takes_schema = True
        self.is_down_after: int | None = None  # requests
        self.keeps_waiting_after: int | None = None

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        (message,) = body["messages"]
        data = data_of(message["content"])
        if self.is_down_after is not None and len(self.bodies) > self.is_down_after:
            return _error(503, "no capacity")
        if not self.takes_schema and "response_format" in body:
            return _error(400, "response_format: unknown field")
        if self.keeps_waiting_after is not None and len(self.bodies) > self.keeps_waiting_after:
            await asyncio.sleep(60.0)
        self.tries[data["answer"]] += 1
        return _said(*self._reply(data, self.tries[data["answer"]]))

    def _reply(self, data: dict[str, str], n_tried: int) -> tuple[str, str]:
        """Text and finish reason."""
        answer = data["answer"]
        references = [value for name, value in data.items() if name.startswith("reference")]
        mark = {"extracted": answer, "rationale": f"try {n_tried}", "points": 5 if answer in references else 1}
        text = json.dumps(mark)
        match answer:
            case "Fail once." if n_tried == 1:
                return "I would give it {4} points.", "stop"
            case "Half a letter." if n_tried == 1:
                return "Half of one: \ud83d", "stop"
            case "Think.":
                return f'<think>{{"points": 0}}? No.</think>\n```json\n{text}\n```', "stop"
            case "Never stop.":
                return "<think>Well, well, well", "length"
            case "Seven.":
                return json.dumps(mark | {"points": 7}), "stop"
        return text, "stop"


def _said(text: str, finish_reason: str) -> web.Response:
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 700, "completion_tokens": 100, "total_tokens": 800}
    return web.json_response({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage})


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "code": None}}, status=status, headers={"Retry-After": "0"})


@contextmanager
def judge_server() -> Iterator[JudgeServer]:
    server, loop, ready = JudgeServer(), asyncio.new_event_loop(), threading.Event()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
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
