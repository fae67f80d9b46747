"""Bytes under names, on a disk or in a bucket: read, written once, never overwritten.

Addresses are paths or s3:// (`infra.s3`: tries again while the store is unwell). On a disk a file is written beside its place, brought
to the disk, then linked to its name, which the system refuses if there is one: whole or not at all, also when killed at any point. What
a kill leaves behind ends in .part. Needs a file system with hard links.
"""

import errno
import json
import os
import uuid
from typing import Any

from infra import s3
from infra.errors import BadInputError, StorageError
from infra.s3 import S3

FULL = (errno.ENOSPC, errno.EDQUOT)


def read_bytes(path: str) -> bytes | None:
    """The content, or None where there is nothing of this name. Raises StorageError."""
    if path.startswith(S3):
        return s3.read_bytes(path)
    try:
        with open(_local(path), "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error


def size_on_disk(path: str) -> int | None:
    """Bytes of a file on this machine; None where there is none, or the address is a bucket's."""
    try:
        return None if path.startswith(S3) else os.stat(_local(path)).st_size
    except OSError:
        return None


def read_json(path: str) -> Any:
    """The file's value, or None where there is no file. Raises StorageError if it is unreadable: never a reason to start over."""
    data = read_bytes(path)
    try:
        return None if data is None else json.loads(data)
    except ValueError as error:
        raise StorageError(f"{path} cannot be read ({error}); restore it, or remove its folder to make it anew") from error


def write_new(path: str, data: bytes) -> bool:
    """Write a file that was not there. True if the file of this name now has this content, False if it has another.

    Whole or not at all, also when killed. Writers that compete for a name must write different bytes: whose try went through without its
    answer arriving finds its own bytes there, and takes them for its own. Raises StorageError.
    """
    if path.startswith(S3):
        return s3.write_new(path, data)
    try:
        return _write_new_local(_local(path), data)
    except OSError as error:
        full = error.errno in FULL
        what = "storage is full; free some and run the same command again, it continues" if full else error.strerror
        raise StorageError(f"{path} cannot be written: {what}") from error


def remove(path: str) -> None:
    """Remove a file, if it is there. Raises StorageError."""
    if path.startswith(S3):
        return s3.remove(path)
    try:
        os.unlink(_local(path))
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{path} cannot be removed: {error.strerror}") from error


def names(folder: str) -> list[str]:
    """Names of the files right in a folder, sorted: a hint of what is there, on which nothing is built. Raises StorageError."""
    if folder.startswith(S3):
        return s3.names(folder)
    try:
        with os.scandir(_local(folder)) as entries:
            return sorted(entry.name for entry in entries if entry.is_file())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{folder} cannot be listed: {error.strerror}") from error


def folders(folder: str) -> list[str]:
    """Names of the folders right in a folder that hold something, sorted: a hint, as `names`. Raises StorageError."""
    if folder.startswith(S3):
        return sorted({name.split("/")[0] for name in s3.names(folder, deep=True) if "/" in name})
    try:
        with os.scandir(_local(folder)) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and os.listdir(entry.path))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{folder} cannot be listed: {error.strerror}") from error


def prove_written_once(folder: str) -> None:
    """Try out that a name can be taken only once there: else two runs could both commit. Four requests. Raises StorageError.

    Stores exist that ignore If-None-Match: old ones, and Ceph 16 in a bucket with versions.
    """
    probe = f"{folder.rstrip('/')}/probe-{uuid.uuid4().hex}"
    first, second = write_new(probe, b"first"), write_new(probe, b"second")
    remove(probe)
    if second or not first:
        raise StorageError(
            f"{folder}: the store overwrites what is there though asked not to (If-None-Match: *), so that two runs could both commit;"
            " use a bucket without versions, or another store"
        )


def _write_new_local(path: str, data: bytes) -> bool:
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    part = f"{path}.{uuid.uuid4().hex}.part"
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, path)
        except FileExistsError:
            with open(path, "rb") as file:
                return file.read() == data
    finally:
        if os.path.exists(part):
            os.unlink(part)
    _keep_names(folder)
    return True


def _keep_names(folder: str) -> None:
    """Bring the folder's names to the disk: a file whose name is lost with the power cannot be read by a log entry that was kept."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _local(path: str) -> str:
    path = path.removeprefix("file://")
    if "://" in path:
        raise BadInputError(f"{path}: expected a path or an s3:// address")
    return path
