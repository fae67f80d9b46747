"""A CLIP as a user names it -> a local path for as long as it is needed, and the name it is stored under.

A CLIP is a video file, a folder of pictures, a quoted pattern of such, or a URL that fsspec opens (http, https, s3, memory and more). A
URL's content goes to a temporary file, up to a limit, and is removed afterwards.

Credentials come from the environment, or stand in the URL (user, password, a signed query) and then go nowhere else: what is said and
stored is `public_name`, and of an error that names the URL only its kind is told.
"""

import errno
import glob
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import aiohttp  # s3fs brings it
import fsspec
from fsspec.implementations.local import LocalFileSystem

from infra.errors import BadInputError, CommandError, StorageError
from video2lora.frames_folder import natural
from video2lora.video import RejectReason, VideoDecodeError

MAX_FETCH_BYTES = 16 * 2**30  # ours: four hours of 1080p at 8 Mbit/s; more is rather a mistake than a clip
HTTP = ("http", "https")
WITHOUT_QUERY = ("s3", "file")  # whose keys and names may hold a # or ?
SILENT_S = 60.0  # a server that sends nothing for so long is out of reach; aiohttp's own limit is 5 minutes for the whole file

Received = Callable[[int, int | None], None]
"""Told bytes so far, and in all where the server says so."""


class OutOfReachError(StorageError):
    """A server or bucket that does not answer as it should: it says nothing about the video."""


def is_url(clip: str) -> bool:
    return "://" in clip and not os.path.lexists(clip)


def expand(clips: Sequence[str]) -> list[str]:
    """Every pattern that is no path of its own as what it matches, in natural order; the rest as they are.

    Raises BadInputError for a pattern that matches nothing and for a URL that nothing here opens; OutOfReachError.
    """
    found: list[str] = []
    for clip in clips:
        if is_url(clip):
            found += _expanded_url(clip)
        elif glob.has_magic(clip) and not os.path.lexists(clip):
            matches = sorted(glob.glob(clip, recursive=True), key=natural)
            if not matches:
                raise BadInputError(f"{clip}: no file matches this pattern")
            found += matches
        else:
            found.append(clip)
    return found


def public_name(clip: str) -> str:
    """The CLIP without what may be secret in a URL: user, password, query and fragment. Of bytes that are no text, `\\xff` and such."""
    if not is_url(clip):
        return _readable(clip)
    return "::".join(_public_part(part) for part in clip.split("::"))


def stored_uri(clip: str) -> str:
    """What a catalogue holds of a CLIP: the absolute path, or the URL's public name."""
    return public_name(clip) if is_url(clip) else _readable(os.path.abspath(clip))


@contextmanager
def fetched(clip: str, *, max_bytes: int = MAX_FETCH_BYTES, received: Received | None = None) -> Iterator[str]:
    """A local path that holds the CLIP for the block. `received` may raise to give up.

    Raises VideoDecodeError (missing, unreadable, too_large), OutOfReachError, StorageError where the temporary folder is full.
    """
    if not is_url(clip):
        yield clip
        return
    with _fetching(clip):
        fs, inner = _opened(clip)
    if isinstance(fs, LocalFileSystem):
        yield inner
        return
    with tempfile.TemporaryDirectory(prefix="video2lora-") as folder:
        path = os.path.join(folder, "video")
        with _fetching(clip):
            fs.get_file(inner, path, callback=_Watch(clip, max_bytes, received))
            if not os.path.isfile(path):
                raise VideoDecodeError(RejectReason.UNREADABLE, f"{public_name(clip)} is a folder, expected a video file")
        try:
            yield path
        except VideoDecodeError as error:  # the user knows the URL and not our copy
            raise VideoDecodeError(error.reason, error.detail.replace(path, public_name(clip))) from error


class _Watch(fsspec.Callback):
    """Stops a transfer at the limit, before it begins where the size is known."""

    def __init__(self, clip: str, max_bytes: int, received: Received | None) -> None:
        super().__init__()
        self.clip, self.max_bytes, self.received = clip, max_bytes, received

    def call(self, hook_name: str | None = None, **_: Any) -> None:
        n_bytes = max(self.size or 0, self.value)
        if n_bytes > self.max_bytes:
            raise VideoDecodeError(
                RejectReason.TOO_LARGE, f"{public_name(self.clip)} has {n_bytes} bytes or more, expected {self.max_bytes} at most"
            )
        if self.received is not None:
            self.received(self.value, self.size)


def _opened(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Raises BadInputError for a URL of no known kind."""
    options: dict[str, Any] = {}
    protocol = url.split("://")[0]
    if protocol in HTTP:
        options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=SILENT_S, sock_read=SILENT_S)}
    try:
        fs, inner = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise BadInputError(f"{public_name(url)}: opening it needs a package that is not installed: {error}") from error
    except ValueError as error:
        raise BadInputError(f"{public_name(url)}: no URL that fsspec opens (http, https, s3, file, memory and more)") from error
    return fs, inner


def _expanded_url(url: str) -> list[str]:
    with _fetching(url):
        fs, inner = _opened(url)
    if url.startswith(HTTP) or "*" not in inner:  # a web server has no list of its files
        return [url]
    with _fetching(url):
        matches = sorted(fs.glob(inner), key=natural)
    if not matches:
        raise BadInputError(f"{public_name(url)}: no file matches this pattern")
    _, chained, rest = url.partition("::")  # what an archive's files lie in
    return [f"{fs.unstrip_protocol(match)}{chained}{rest}" for match in matches]


@contextmanager
def _fetching(url: str) -> Iterator[None]:
    """What goes wrong with one URL. Errors of libraries quote the whole URL, so their texts are not repeated."""
    name = public_name(url)
    try:
        yield
    except (VideoDecodeError, CommandError):
        raise
    except FileNotFoundError as error:
        raise VideoDecodeError(RejectReason.MISSING, f"{name} is not there") from error
    except Exception as error:  # each storage's library has errors of its own; here they cost one clip
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"{tempfile.gettempdir()} is full: no room to keep {name} while it is read") from error
        if isinstance(error, PermissionError) or getattr(error, "status", None) in (401, 403):
            raise VideoDecodeError(RejectReason.UNREADABLE, f"{name}: no right to read it ({_kind(error)})") from error
        raise OutOfReachError(f"{name} is out of reach: {_kind(error)}") from error


def _kind(error: BaseException) -> str:
    told = [f"HTTP status {status}" for status in [getattr(error, "status", None)] if status]
    told += [text for text in [getattr(error, "strerror", None)] if text]
    return ", ".join([type(error).__name__, *told])


def _readable(name: str) -> str:
    return os.fsencode(name).decode(errors="backslashreplace")


def _public_part(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    shown = authority.rpartition("@")[2] + slash + path
    return scheme + separator + (shown if scheme in WITHOUT_QUERY else re.split("[?#]", shown)[0])
