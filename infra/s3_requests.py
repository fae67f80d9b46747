"""A request to a bucket: tried again while the store is only unwell, failed at once where that cannot help.

Through botocore's own client, which any thread may use, instead of s3fs: its event loop, its cache of listings and its own retries (5
within 2 s, after which the error no longer says what kind it was) would all have to be worked around. Transient is what says nothing
about the request: 5xx, throttling, broken connections and bodies, silence, an endpoint that is away. Lasting is the rest: no bucket, no
access, no credentials, storage full. Credentials, endpoint and region come from the environment alone (AWS_*), as botocore reads it, and
appear in no message.
"""

import functools
import logging
import os
import re
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.parsers import ResponseParserError
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential
from urllib3.exceptions import HTTPError

from infra import metrics
from infra.errors import StorageError

PATIENCE_S = 180.0  # without any progress; longer than a store takes to fail over, shorter than a stage's stall deadline
LONGEST_WAIT_S = 10.0  # between two tries; the waits are random below a bound that doubles from 0.1 s ("full jitter")
N_SILENT = 4  # tries, about a second: what comes back sooner is not worth a warning
CONNECT_S, READ_S = 10.0, 60.0  # until a try counts as failed: to connect, and without a single byte
N_CONNECTIONS = 32  # kept open by each process

BROKEN = (HTTPClientError, ConnectionError, IncompleteReadError, FlexibleChecksumError, ResponseParserError, HTTPError)
FAILED = (BotoCoreError, ClientError, ResponseParserError, HTTPError)
TRANSIENT_STATUS = (408, 425, 429, 500, 502, 503, 504)
TRANSIENT_CODES = (
    "BadDigest", "ConditionalRequestConflict", "IncompleteBody", "InternalError", "OperationAborted", "RequestTimeout",
    "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests",
)  # fmt: skip
NO_CHECKSUMS = ("411", "501", "MissingContentLength", "NotImplemented", "XAmzContentSHA256Mismatch")
REFUSED = ("ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired")
NO_NAMES = ("InvalidBucketName", "InvalidObjectName", "InvalidURI", "KeyTooLongError", "XMinioInvalidObjectName")
FULL = ("507", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull")

T = TypeVar("T")
log = logging.getLogger(__name__)
_one_at_a_time = threading.Lock()


class NoBucketError(FileNotFoundError):
    """Not even the bucket is there."""


def client() -> Any:
    """A client for this process and what its environment says now."""
    settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    with _one_at_a_time:
        return _client_of(os.getpid(), settings)


@functools.lru_cache(maxsize=8)
def _client_of(pid: int, settings: tuple[tuple[str, str], ...]) -> Any:
    from botocore.config import Config
    from botocore.session import Session

    once = {"total_max_attempts": 1}  # the tries are counted here
    config = Config(connect_timeout=CONNECT_S, read_timeout=READ_S, max_pool_connections=N_CONNECTIONS, retries=once)
    return Session().create_client("s3", config=config)


def tried(what: str, uri: str, request: Callable[[], T]) -> T:
    """The request's result. Raises FileNotFoundError, FileExistsError (a condition failed), PermissionError; StorageError for the rest."""

    def say(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        metrics.STORAGE_RETRIES.add(1)
        level = logging.WARNING if state.attempt_number >= N_SILENT else logging.INFO
        log.log(level, "%s: %s; try %d follows in %.1f s", uri, _in_a_line(error), state.attempt_number + 1, state.upcoming_sleep)

    retrying = Retrying(
        retry=retry_if_exception(_is_transient),
        stop=_Patience(),
        wait=wait_random_exponential(multiplier=0.1, max=LONGEST_WAIT_S),
        before_sleep=say,
        reraise=True,
    )
    try:
        return retrying(request)
    except FAILED as error:
        _raise_if_of_the_object(error)
        lasting = f" for {PATIENCE_S:.0f} s; run the same command again, it continues" if _is_transient(error) else ""
        raise StorageError(f"{uri} cannot be {what}: {_in_a_line(error)}{lasting}") from error


class _Patience:
    """Ends the tries PATIENCE_S after the first failure: not after the first start, for a large upload may take longer."""

    def __init__(self) -> None:
        self.failing_since_s: float | None = None

    def __call__(self, state: RetryCallState) -> bool:
        now_s = state.outcome_timestamp or 0.0
        if self.failing_since_s is None:
            self.failing_since_s = now_s
        return now_s - self.failing_since_s >= PATIENCE_S


def _code(error: BaseException) -> tuple[str, int]:
    """The store's word for an error and the HTTP status; ("", 0) if it did not answer."""
    if isinstance(error, OSError) and isinstance(error.__cause__, ClientError):
        error = error.__cause__  # s3fs has made an error of Python's out of it
    if not isinstance(error, ClientError):
        return "", 0
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return str(error.response.get("Error", {}).get("Code", status)), status


def _is_transient(error: BaseException) -> bool:
    code, status = _code(error)
    return isinstance(error, BROKEN) or code in TRANSIENT_CODES or status in TRANSIENT_STATUS


def _raise_if_of_the_object(error: Exception) -> None:
    code, status = _code(error)
    if status == 404:
        raise (NoBucketError("there is no bucket") if code == "NoSuchBucket" else FileNotFoundError("there is no object")) from error
    if code in NO_NAMES:
        raise FileNotFoundError(f"no object can have this name ({code})") from error
    if status in (412, 416):  # or one that ends before what was asked for
        raise FileExistsError("another object is there") from error
    if status == 403 and code not in (*REFUSED, *FULL):
        raise PermissionError("access is denied; its objects have to be listed, read, written and removed") from error


def _in_a_line(error: BaseException | None) -> str:
    """What went wrong and what to do, without line ends and without credentials that an endpoint's URL may carry."""
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    code, status = _code(error) if error else ("", 0)
    if code in REFUSED:
        return f"the credentials are refused ({code}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and the clock"
    if code in FULL:
        return f"storage is full ({code}); free some and run the same command again, it continues"
    answer = error.response.get("Error", {}).get("Message") if isinstance(error, ClientError) else error
    said = " ".join(re.sub(r"//[^/@\s]*@", "//", f"{code} {answer or ''}").split())
    if code in NO_CHECKSUMS or str(status) in NO_CHECKSUMS:
        old = "AWS_REQUEST_CHECKSUM_CALCULATION=when_required and AWS_RESPONSE_CHECKSUM_VALIDATION=when_required"
        return f"{said} (HTTP {status}): an older store needs {old}"
    return f"{said} (HTTP {status})" if status else said
