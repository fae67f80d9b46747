"""An OpenAI-compatible server on loopback that judges by rule, or misbehaves where an answer's words ask for it; it holds no model.

It reads what it is to mark as a judge should: the JSON strings between the lines DATA and END OF DATA, and nothing else.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from tests.teacher.openai_server import refusal, serving


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
            return refusal(503, "no capacity")
        if not self.takes_schema and "response_format" in body:
            return refusal(400, "response_format: unknown field")
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


@contextmanager
def judge_server() -> Iterator[JudgeServer]:
    server = JudgeServer()
    with serving(server.answer) as server.url:
        yield server
