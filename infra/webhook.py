"""What became of a retraining, posted as JSON to whoever wants to know: VIDEO2LORA_WEBHOOK, whose URL is a secret and is never shown.

    {"run", "verdict": "promote" | "keep", "why", "champion", "challenger", "report", "data"}

A run that is killed after its verdict posts it again when it goes on. What cannot be delivered is said in a line and stops nothing.
"""

import http.client
import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from tenacity import RetryError, Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from infra.config import Where
from infra.progress import say

DEADLINE_S = 10.0  # of one try
N_TRIES = 3
FIRST_WAIT_S = 1.0  # and twice that before the third

Facts = dict[str, Any]


def post(where: Where, facts: Facts) -> bool:
    """Whether it was delivered; True where nobody asked for it: unset or, as an empty key of a secret comes, empty."""
    url = where.webhook.get_secret_value() if where.webhook is not None else ""
    if not url:
        return True
    if (host := _host(url)) is None:
        say("webhook: VIDEO2LORA_WEBHOOK is no http or https address; the verdict is not posted")
        return False
    request = urllib.request.Request(url, json.dumps(facts).encode(), {"Content-Type": "application/json"}, method="POST")
    tries = Retrying(stop=stop_after_attempt(N_TRIES), wait=wait_exponential(multiplier=FIRST_WAIT_S), retry=retry_if_exception(_may_pass))
    try:
        tries(_send, request)
    except (RetryError, OSError, ValueError, http.client.HTTPException) as error:
        cause = error.last_attempt.exception() if isinstance(error, RetryError) else error
        told = f"HTTP {cause.code}" if isinstance(cause, urllib.error.HTTPError) else type(cause).__name__  # words might hold the URL
        say(f"webhook: {host} did not take the verdict ({told})")
        return False
    return True


def _host(url: str) -> str | None:
    """None where it is no address of the web: urllib opens files too."""
    try:
        parts = urlsplit(url)
        return parts.hostname if parts.scheme in ("http", "https") else None
    except ValueError:
        return None


def _send(request: urllib.request.Request) -> None:
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            answer.read()
    except urllib.error.HTTPError as error:  # an answer too, with a connection
        error.close()
        raise


def _may_pass(error: BaseException) -> bool:
    """Whether another try may help: not where the host says that the request is wrong."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code == 429
    return isinstance(error, OSError)
