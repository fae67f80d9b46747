"""Objects of a bucket, each written once: `infra.objects` for s3:// addresses, and what reading clips takes.

    read      a body that was cut is continued where it ended, of the same object (If-Match), and its length is checked
    write     one PutObject with If-None-Match: *, never a multipart upload, for which stores ignore the condition; at most 5 GiB
    list      page by page; a hint of what is there

All as often as `infra.s3_requests` says. A PUT whose answer was lost finds its own object when it is tried again, so "something is there"
is settled by reading what is there. Writers that compete for a name must therefore write different bytes: put something unique into what
two of them might write.
"""

import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from botocore.exceptions import ClientError

from infra.errors import BadInputError, StorageError
from infra.s3_requests import BROKEN, NoBucketError, client, tried

S3 = "s3://"
CHUNK_BYTES = 1 << 16  # what a broken body may lose of what had arrived
N_PER_PAGE = 1000  # of a listing: the most that S3 gives


class OtherObjectError(Exception):
    """An object is not the one that was asked for some of."""


def read_bytes(uri: str) -> bytes | None:
    """The object's content; None if there is none of this name. Raises StorageError, BadInputError for an address that is none."""
    bucket, key = _split(uri)
    if not key:
        return None

    def request() -> bytes:
        answer = client().get_object(Bucket=bucket, Key=key)
        with closing(answer["Body"]) as body:
            data: bytes = body.read()  # raises IncompleteReadError unless it is as long as announced
        return data

    try:
        return tried("read", uri, request)
    except (NoBucketError, PermissionError) as error:
        raise StorageError(f"{uri} cannot be read: {error}") from error
    except FileNotFoundError:
        return None


def read_part(uri: str, start: int, n_bytes: int, *, size: int) -> bytes:
    """Some of an object of this size. Raises OtherObjectError where that is not there (or the store gives no parts), StorageError."""
    bucket, key = _split_object(uri)
    asked = f"{start}-{start + n_bytes - 1}"

    def request() -> bytes:
        answer = client().get_object(Bucket=bucket, Key=key, Range=f"bytes={asked}")
        with closing(answer["Body"]) as body:
            if answer.get("ContentRange") != f"bytes {asked}/{size}":
                raise OtherObjectError(uri)
            data: bytes = body.read()
        return data

    try:
        return tried("read", uri, request)
    except (FileNotFoundError, FileExistsError, PermissionError) as error:
        raise OtherObjectError(uri) from error


def write_new(uri: str, data: bytes) -> bool:
    """Write an object under a name that is free. True if the object of this name now has this content, False if it has another.

    Raises StorageError, BadInputError for an address that is none.
    """
    bucket, key = _split(uri)
    try:
        tried("written", uri, lambda: client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*"))
    except FileExistsError:
        return _holds(uri, data)
    except (FileNotFoundError, PermissionError) as error:
        raise StorageError(f"{uri} cannot be written: {error}") from error
    return True


def remove(uri: str) -> None:
    """Remove an object, if it is there. In a bucket with versions the old content stays until its lifecycle ends. Raises StorageError."""
    bucket, key = _split(uri)
    try:
        tried("removed", uri, lambda: client().delete_object(Bucket=bucket, Key=key))
    except (NoBucketError, PermissionError) as error:
        raise StorageError(f"{uri} cannot be removed: {error}") from error
    except FileNotFoundError:
        return


def names(folder: str, *, deep: bool = False) -> list[str]:
    """Names of the objects right in a folder, or `deep` below it, relative to it and sorted. Raises StorageError."""
    bucket, key = _split(folder)
    prefix = f"{key.rstrip('/')}/" if key else ""
    found = [one["Key"].removeprefix(prefix) for one in _listed(folder, bucket, prefix, **({} if deep else {"Delimiter": "/"}))]
    return sorted(name for name in found if name and not name.endswith("/"))  # "folder/" is a console's idea of a folder


def described_below(folder: str) -> dict[str, tuple[int, str]]:
    """Address -> bytes and ETag of every object below a folder, however deep. Raises StorageError."""
    bucket, key = _split(folder)
    found = _listed(folder, bucket, f"{key.rstrip('/')}/" if key else "")
    return {f"{S3}{bucket}/{one['Key']}": (one["Size"], one["ETag"].strip('"')) for one in found if not one["Key"].endswith("/")}


def described(uri: str) -> tuple[int, str]:
    """Bytes and ETag of an object. Raises as `fetch`; here no bucket is no object."""
    bucket, key = _split_object(uri)

    def request() -> Any:
        try:
            return client().head_object(Bucket=bucket, Key=key)
        except ClientError as error:  # an answer to HEAD has no words: those to GET say whether it is about the object or about us
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in (400, 403):
                client().get_object(Bucket=bucket, Key=key)["Body"].close()
            raise

    answer = tried("read", uri, request)
    return answer["ContentLength"], answer["ETag"].strip('"')


def fetch(uri: str, path: str) -> int:
    """Write an object's content to a local file; its size in bytes.

    Raises FileNotFoundError (no such object or bucket) and PermissionError, which are about this object; StorageError otherwise.
    """
    try:
        with open(path, "wb") as file:
            return _pour(uri, file.write)
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error


def sha256(uri: str) -> tuple[str, int]:
    """SHA-256 of an object's content, hex, and its size in bytes. Raises as `fetch`."""
    digest = hashlib.sha256()
    n_bytes = _pour(uri, digest.update)
    return digest.hexdigest(), n_bytes


def _pour(uri: str, sink: Callable[[bytes], object]) -> int:
    """Each byte once and in order, however often the body is cut; the number of bytes. Raises as `fetch`."""
    bucket, key = _split_object(uri)
    done, total = 0, -1
    same: dict[str, str] = {}

    def request() -> None:
        nonlocal done, total, same
        ranged = {"Range": f"bytes={done}-"} if done else {}
        answer = client().get_object(Bucket=bucket, Key=key, **ranged, **same)
        if done and not answer.get("ContentRange", "").startswith(f"bytes {done}-"):
            raise StorageError(f"{uri} cannot be read on where it broke off: the store answers no ranges")
        begun, total, same = done, done + answer["ContentLength"], {"IfMatch": answer["ETag"]}
        try:
            with closing(answer["Body"]) as body:
                while chunk := body.read(CHUNK_BYTES):  # its last, empty one raises IncompleteReadError unless all has come
                    sink(chunk)
                    done += len(chunk)
        except BROKEN:
            if done == begun:  # else it got on, and patience starts anew
                raise

    try:
        while done != total:
            tried("read", uri, request)
    except FileExistsError as error:  # If-Match failed
        raise StorageError(f"{uri} was changed while it was read: run the same command again") from error
    return done


def _holds(uri: str, data: bytes) -> bool:
    at, view = 0, memoryview(data)
    same = True

    def compare(chunk: bytes) -> None:
        nonlocal at, same
        same = same and view[at : at + len(chunk)] == chunk
        at += len(chunk)

    try:
        return _pour(uri, compare) == len(data) and same
    except FileNotFoundError:
        return False
    except PermissionError as error:
        raise StorageError(f"{uri} cannot be read: {error}") from error


def _listed(folder: str, bucket: str, prefix: str, **narrowed: str) -> Iterator[dict[str, Any]]:
    request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": N_PER_PAGE, **narrowed}
    while True:
        try:
            page: dict[str, Any] = tried("listed", folder, functools.partial(_list, request))
        except (FileNotFoundError, PermissionError) as error:
            raise StorageError(f"{folder} cannot be listed: {error}") from error
        yield from page.get("Contents", [])
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def _list(request: dict[str, Any]) -> Any:
    return client().list_objects_v2(**request)


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix(S3).partition("/")
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,255}", bucket):
        raise BadInputError(f"{uri}: expected s3://bucket/name, with a bucket's name of letters, digits, dots and hyphens")
    if {".", ".."} & set(key.split("/")):  # clients take such parts out on the way, after signing
        raise BadInputError(f"{uri}: expected a name without . and .. between its slashes")
    return bucket, key


def _split_object(uri: str) -> tuple[str, str]:
    bucket, key = _split(uri)
    if not key:
        raise FileNotFoundError(f"{uri} names no object")
    return bucket, key
