"""Addresses of videos -> their content's hashes, reading only what was never read: table `files`.

What the storage says of a file without reading it (size and time of change; in a bucket its ETag) is its version. A file of a version
that is in `files` is not read again; so a second look at a million files costs as many calls of `stat`, or a listing of their folders.
Hashes are committed as they come: a killed run goes on behind them.
"""

import os
import posixpath
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from infra import s3
from infra.artifacts import FILES
from infra.attempt import Row, reject
from infra.contents import video_id
from infra.errors import CommandError
from infra.progress import counting
from infra.stage import Order
from infra.storage import Table
from pipeline.sources import S3, content_hash, remote_file
from video2lora.video import RejectReason, VideoDecodeError

STAGE = "files"
N_READING = 8  # threads; Python's lock is free while they read and hash
LISTED_FROM = 4  # files of one folder in a bucket: from so many on, one listing is cheaper than a request for each
COMMIT_EVERY_S = 5.0  # what a killed run reads again at most


@dataclass(frozen=True)
class Version:
    """A file as its storage describes it."""

    uri: str
    version: str
    n_bytes: int

    @property
    def key(self) -> str:
        return f"{self.uri}/{self.version}"


def versions(uris: list[str]) -> dict[str, Version | VideoDecodeError]:
    """What the storage says of each file, or why there is nothing to say. Raises StorageError where a bucket is out of reach."""
    remote: dict[str, list[str]] = {}
    for uri in uris:
        if uri.startswith(S3):
            remote.setdefault(posixpath.dirname(uri), []).append(uri)
    listed: dict[str, Version | VideoDecodeError] = {}
    for folder, of_folder in remote.items():
        if len(of_folder) >= LISTED_FROM:
            listed |= _listed(folder, of_folder)
    left = [uri for uri in uris if uri not in listed]
    with ThreadPoolExecutor(N_READING) as pool:
        return listed | dict(zip(left, pool.map(_version, left, chunksize=64), strict=True))


def contents(root: str, there: Mapping[str, Version | VideoDecodeError]) -> dict[str, str | VideoDecodeError]:
    """SHA-256 of each file's content, read from `files` where it is known and else from the file; or why it has none.

    Raises StorageError where a bucket or the table is out of reach, SupersededError if another run reads files into it.
    """
    table = Table(root, "files")
    found: dict[str, str | VideoDecodeError] = {uri: one for uri, one in there.items() if isinstance(one, VideoDecodeError)}
    known = known_contents(table)
    unread = []
    for uri, one in there.items():
        if isinstance(one, Version):
            content = known.get(one.key)
            if content is None:
                unread.append(one)
            else:
                found[uri] = content
    if unread:
        found |= _read(table, unread, known)
    return found


def known_contents(table: Table) -> dict[str, str]:
    """Key of each file that was ever read -> its content's hash."""
    rows = table.read(["uri", "version", "content"])
    return dict(zip(FILES.keys_of(rows).to_pylist(), rows["content"].to_pylist(), strict=True))


def with_versions(videos: pa.Table, root: str) -> pa.Table:
    """Rows of `videos` with a column `versions`: those in which its file was read and held the video; several if it was touched since."""
    files = Table(root, "files").read(["uri", "version", "content"])
    files = files.filter(pc.is_in(files["uri"], value_set=videos["uri"].combine_chunks()))
    by_uri: dict[str, list[tuple[str, str]]] = {}
    for uri, version, content in zip(*(column.to_pylist() for column in files.columns), strict=True):
        by_uri.setdefault(uri, []).append((version, content))
    rows = videos.select(["uri", "start_s", "end_s", "video_id"]).to_pylist()
    found = [[version for version, content in by_uri.get(row["uri"], ()) if _is_of(content, row)] for row in rows]
    return videos.append_column("versions", pa.array(found, pa.list_(pa.string())))


def holds_another(video: Row) -> bool:
    """Whether the file of a row of `with_versions` holds another video by now. It is read only where it is of none of them.

    False for a file that cannot be read, as nothing is known of it. Raises StorageError where a bucket is out of reach.
    """
    there = _version(video["uri"])
    if isinstance(there, VideoDecodeError) or there.version in video["versions"]:
        return False
    content = _content(video["uri"], there.version)
    return not isinstance(content, VideoDecodeError) and not _is_of(content, video)


@lru_cache(maxsize=4096)
def _content(uri: str, _version: str) -> str | VideoDecodeError:
    """Read once in a process, though many spans are of one file."""
    return _hash_or_error(uri)


def _is_of(content: str, video: Row) -> bool:
    return video_id(content, (video["start_s"], video["end_s"])) == video["video_id"]


def _read(table: Table, unread: list[Version], known: Mapping[str, str]) -> dict[str, str | VideoDecodeError]:
    """Hash and commit. A file that could not be read before is tried again."""
    found: dict[str, str | VideoDecodeError] = {}
    asked = {"stage": STAGE}
    attempt = Order(table, asked, [*known, *(one.key for one in unread)]).begin()
    attempt.reopen(one.key for one in unread)
    rows: list[Row] = []
    rejects: list[Row] = []
    told = time.monotonic()
    with counting(STAGE, "files read", len(unread)) as counter:
        for one, content in _hashed(unread):
            found[one.uri] = content
            if isinstance(content, str):
                rows.append({"uri": one.uri, "version": one.version, "n_bytes": one.n_bytes, "content": content})
            else:
                rejects.append(reject(STAGE, one.key, content.reason, content.detail))
            counter.advance()
            if time.monotonic() - told > COMMIT_EVERY_S:
                attempt.write(rows, rejects)
                rows, rejects, told = [], [], time.monotonic()
    attempt.write(rows, rejects)
    attempt.complete()
    return found


def _hashed(unread: list[Version]) -> Iterator[tuple[Version, str | VideoDecodeError]]:
    """In the order they are done."""
    with ThreadPoolExecutor(N_READING) as pool:
        waiting = {}
        for one in unread:
            waiting[pool.submit(_hash_or_error, one.uri)] = one
            if len(waiting) >= 64 * N_READING:  # a million at once would be a gigabyte of futures
                for done in list(as_completed(waiting)):
                    yield waiting.pop(done), done.result()
        for done in as_completed(waiting):
            yield waiting[done], done.result()


def _hash_or_error(uri: str) -> str | VideoDecodeError:
    try:
        return content_hash(uri)
    except VideoDecodeError as error:
        return error


def _version(uri: str) -> Version | VideoDecodeError:
    try:
        if uri.startswith(S3):
            n_bytes, tag = remote_file(uri)
            return Version(uri, f"{n_bytes}-{tag}", n_bytes)
        status = os.stat(uri)
        return Version(uri, f"{status.st_size}-{status.st_mtime_ns}", status.st_size)
    except VideoDecodeError as error:
        return error
    except (FileNotFoundError, NotADirectoryError) as error:
        return VideoDecodeError(RejectReason.MISSING, str(error))
    except OSError as error:
        return VideoDecodeError(RejectReason.UNREADABLE, str(error))


def _listed(folder: str, uris: list[str]) -> dict[str, Version | VideoDecodeError]:
    try:
        there = s3.described_below(folder)
    except CommandError:  # no such bucket, no right to list it, no name of one: each file then tells for itself
        return {}
    found: dict[str, Version | VideoDecodeError] = {}
    for uri in uris:
        if uri in there:
            n_bytes, tag = there[uri]
            found[uri] = Version(uri, f"{n_bytes}-{tag}", n_bytes)
        else:
            found[uri] = VideoDecodeError(RejectReason.MISSING, f"{uri} is not there")
    return found
