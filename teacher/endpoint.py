"""Frames and prompts -> texts, by any OpenAI-compatible endpoint: the recipe names the model, the environment the URL and the key.

A video's first prompt goes alone and the others after it, at once: where the endpoint keeps what it has read, it reads the frames once.
Requests are repeated with a growing pause where the endpoint is busy, slow or out of reach, each with a deadline. What the endpoint says of
one request refuses that prompt; an endpoint out of reach is a dead engine; a wrong key or model name ends the run. Texts that are to fit
a schema are asked for so (`response_format`); an endpoint that refuses this, and takes the same request without, is not asked again.

The key is read by the openai package from OPENAI_API_KEY and is never kept here; the words of an error are cleared of it and of the URL
before they go anywhere.
"""

import asyncio
import base64
import os
import random
import re
from collections.abc import Sequence
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from infra.config import TeacherSettings
from infra.errors import BadInputError, StageFailedError
from teacher.engine import MAX_DETAIL, Clip, EngineDiedError, EngineOptions, Refused, Spent, Written, one_line, spoken
from teacher.models import Model
from video2lora.jpeg import from_jpegs

N_TRIES = 6
FIRST_PAUSE_S = 0.5  # doubled each time: the last try comes 15.5 s after the first one failed, more where the endpoint names a time
MOST_PAUSE_S = 60.0
N_AT_ONCE = 32
KEY = "OPENAI_API_KEY"
BUSY = (408, 409, 429)
NO_SCHEMA = (400, 415, 422, 501)  # how servers refuse a field that they do not know
SETUP = {
    401: "refuses the key",
    402: "wants to be paid",
    403: "refuses the key",
    404: "does not know the model, or is no chat endpoint",
}
NO_CREDIT = "insufficient_quota"  # a 429 that no waiting mends
OUR_WORDS = ("unsupported_parameter", "unsupported_value")  # a 400 about the request's form, which is every request's


class _SchemaRefusedError(Exception):
    """The endpoint refuses a request, and it may be for the schema."""


class EndpointEngine:
    """Holds a client and its connections."""

    def __init__(self, model: Model, settings: TeacherSettings, options: EngineOptions, *, schema: dict[str, Any] | None = None) -> None:
        """Raises BadInputError for what no endpoint can do, and where none is named."""
        if options.endpoint is None:
            raise BadInputError(
                f"environment: VIDEO2LORA_TEACHER_ENDPOINT is not set, and the recipe has {model.section}.served_by: endpoint"
            )
        if "@" in options.endpoint:  # it would take the key's place, and end up in the words of errors
            raise BadInputError(f"environment: VIDEO2LORA_TEACHER_ENDPOINT: got a URL with a user's name, expected the key in {KEY}")
        if settings.logprobs:
            raise BadInputError(f"teacher.logprobs: got {settings.logprobs}, expected 0: an endpoint names tokens by their text")
        self.model, self.settings, self.options, self.schema = model, settings, options, schema
        self.takes_schema: bool | None = None  # None: not known yet
        self.spent = Spent()
        self.runner = asyncio.Runner()
        self.at_once = asyncio.Semaphore(options.max_num_seqs or N_AT_ONCE)
        self.client = openai.AsyncOpenAI(
            base_url=options.endpoint,
            max_retries=0,  # ours are counted and end as rejects
            timeout=options.deadline_s,
            api_key=None if os.environ.get(KEY) else "none",  # None: the package reads it; servers of one's own mostly ask for none
        )

    def write(self, clips: Sequence[Clip]) -> list[list[Written | Refused]]:
        self.spent.begin()
        try:
            return self.runner.run(self._all(clips))
        finally:
            self.spent.lap(idle=False)

    def stop(self) -> None:
        self.runner.run(self.client.close())
        self.runner.close()

    async def _all(self, clips: Sequence[Clip]) -> list[list[Written | Refused]]:
        tasks = [asyncio.create_task(self._about(clip)) for clip in clips]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _about(self, clip: Clip) -> list[Written | Refused]:
        """The first prompt, then the others."""
        async with self.at_once:
            try:
                frames = await asyncio.to_thread(_frames, clip)
            except ValueError as error:
                return [Refused("teacher_error", one_line(error))] * len(clip.prompts)
            first = [await self._one(frames, prompt.prompt) for prompt in clip.prompts[:1]]
        return first + list(await asyncio.gather(*(self._in_turn(frames, prompt.prompt) for prompt in clip.prompts[1:])))

    async def _in_turn(self, frames: list[dict[str, Any]], prompt: str) -> Written | Refused:
        async with self.at_once:
            return await self._one(frames, prompt)

    async def _one(self, frames: list[dict[str, Any]], prompt: str) -> Written | Refused:
        """One request, held to the schema where there is one and the endpoint takes it. Raises EngineDiedError, BadInputError."""
        content: Any = [*frames[:-1], {"type": "text", "text": f"{frames[-1]['text']}{prompt}"}] if frames else prompt
        if self.schema is None or self.takes_schema is False:
            return await self._answered(content)
        form = {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": self.schema}}
        try:
            result = await self._answered(content, form)
        except _SchemaRefusedError:
            result = await self._answered(content)
            if isinstance(result, Written):  # it was the schema, not the prompt
                self.takes_schema = False
            return result
        self.takes_schema = self.takes_schema or isinstance(result, Written) or None
        return result

    async def _answered(self, content: Any, form: dict[str, Any] | None = None) -> Written | Refused:
        """One request, repeated where that may help.

        Raises EngineDiedError, StageFailedError, BadInputError; _SchemaRefusedError where it may be `form`.
        """
        messages: Any = [{"role": "user", "content": content}]
        extra: Any = {"response_format": form} if form else {}
        error: openai.APIError | None = None
        for n_tried in range(N_TRIES):
            if error is not None:
                await asyncio.sleep(_pause_s(error, n_tried - 1))
            try:
                return self._written(
                    await self.client.chat.completions.create(
                        model=self.model.path,
                        messages=messages,
                        max_tokens=self.settings.max_tokens,
                        temperature=0.0,
                        **extra,
                    )
                )
            except openai.APIStatusError as said:
                if form and not self.takes_schema and said.status_code in NO_SCHEMA:
                    raise _SchemaRefusedError from said
                if (said.status_code not in BUSY and said.status_code < 500) or said.code == NO_CREDIT:
                    return self._refused(said)
                error = said
            except openai.APIError as said:  # a deadline, a broken connection, an answer that is none
                error = said
        if isinstance(error, openai.RateLimitError):  # whatever it is asked, so no prompt is to blame
            raise StageFailedError(
                f"{self.model.section}.model: the endpoint stays busy, {N_TRIES} tries: {self._clear(error)}; what was committed is kept,"
                " the same command continues; fewer at once: VIDEO2LORA_TEACHER_MAX_NUM_SEQS"
            )
        if isinstance(error, openai.APITimeoutError) or (isinstance(error, openai.APIStatusError) and error.status_code in BUSY):
            return Refused("teacher_error", f"no answer in {N_TRIES} tries of {self.options.deadline_s:g} s: {self._clear(error)}")
        raise EngineDiedError(f"the endpoint is out of reach after {N_TRIES} tries: {self._clear(error)}")

    def _written(self, answer: Any) -> Written | Refused:
        """Raises BadInputError for what no chat endpoint says."""
        if not isinstance(answer, ChatCompletion):
            raise BadInputError(
                f"{self.model.section}.model: what answers is no chat endpoint, but says {str(answer)[:80]!r}; "
                "see VIDEO2LORA_TEACHER_ENDPOINT, a URL that mostly ends in /v1"
            )
        if not answer.choices:
            return Refused("teacher_error", "an answer without a choice")
        choice, usage = answer.choices[0], answer.usage
        n_tokens, n_read = (usage.completion_tokens or 0, usage.prompt_tokens or 0) if usage is not None else (0, 0)
        if choice.finish_reason not in ("stop", "length"):
            return Refused("teacher_error", f"finish_reason {choice.finish_reason!r}, expected stop or length")
        return Written((choice.message.content or "").strip(), n_tokens, choice.finish_reason, n_read)

    def _refused(self, error: openai.APIStatusError) -> Refused:
        """What the endpoint will not do. Raises BadInputError where it would do nothing else either."""
        said = SETUP.get(error.status_code)
        said = "gives no more on this account" if error.code == NO_CREDIT else "takes no such request" if error.code in OUR_WORDS else said
        if said is not None:
            raise BadInputError(
                f"{self.model.section}.model: the endpoint {said} ({error.status_code}): {self._clear(error)}; "
                f"see VIDEO2LORA_TEACHER_ENDPOINT, {KEY} and {self.model.section}.model"
            )
        told = self._clear(error)
        too_long = error.code == "context_length_exceeded" or "maximum context length" in told or error.status_code == 413
        return Refused("prompt_too_long" if too_long else "teacher_error", f"{error.status_code}: {told}")

    def _clear(self, error: Exception | None) -> str:
        """What an error says, without key, URL or pictures, in one short line."""
        body = getattr(error, "body", None)
        text = str(body["message"]) if isinstance(body, dict) and body.get("message") else type(error).__name__
        for secret in (self.client.api_key, os.environ.get(KEY), self.options.endpoint):
            if secret and secret != "none":
                text = text.replace(secret, "…")
        text = re.sub(r"data:image/[^\s'\"]*|[\w+.-]+://[^\s'\"]*|\b(sk-|Bearer\s|Basic\s)[\w.=/+-]+", "…", text)
        return " ".join(text.split())[:MAX_DETAIL]


def _frames(clip: Clip) -> list[dict[str, Any]]:
    """Parts of a message: words and frames by turns, the last words alone; none of no frames. Raises ValueError for damaged frames."""
    if not clip.jpegs:
        return []
    from_jpegs(clip.jpegs)  # nobody would say which frame it was
    parts: list[dict[str, Any]] = []
    words = spoken(clip)
    for before, jpeg in zip(words, clip.jpegs, strict=False):
        url = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
        parts += [{"type": "text", "text": before}, {"type": "image_url", "image_url": {"url": url}}]
    return [*parts, {"type": "text", "text": words[-1]}]


def _pause_s(error: openai.APIError, n_paused: int) -> float:
    """Before the next try: as long as the endpoint asks for, else twice as long each time; never in step with other requests."""
    response = getattr(error, "response", None)
    asked = response.headers.get("retry-after", "") if response is not None else ""
    pause_s = float(asked) if re.fullmatch(r"\d+(\.\d+)?", asked) else FIRST_PAUSE_S * 2**n_paused
    return min(MOST_PAUSE_S, pause_s) * random.uniform(1.0, 1.25)
