"""The path that a row of a SOURCE has -> its address, or why it has none: what a SOURCE names lies in its roots.

Addresses are local paths or s3:// and nothing else: a manifest may come from a stranger, and fsspec would fetch any web address and unpack
any archive that it names. Relative paths count from the SOURCE's folder and stay in it, also where symbolic links lead. A full path is its
author's choice, so a manifest on a disk may name any file of the machine, and one in a bucket none: it is read by machines that its author
does not know. VIDEO2LORA_ROOTS says instead what any SOURCE may name beside what its own folder holds, and nothing else may be named then.
"""

import os
import posixpath
from collections.abc import Sequence

from infra.s3 import S3


class Roots:
    """Of the SOURCE whose folder this is. `others`: folders and s3:// addresses; None where nobody says which."""

    def __init__(self, folder: str, others: Sequence[str] | None = None) -> None:
        self.folder, self.others = folder, others
        self._real_folders: dict[str, str] = {}  # following links costs 30 us a path, and most files share a few folders

    def resolve(self, path: str) -> str:
        """The address that a row means. Raises ValueError for what is neither path nor s3:// address, or leads out of the roots."""
        if "\0" in path:
            raise ValueError(f"{path!r} is no path")
        if path.startswith(S3):
            if ".." in path.split("/"):
                raise ValueError(f"{path!r}: expected no .. in it")
            return path if self.others is None else self._checked(path)
        path = path.removeprefix("file://")
        if "://" in path:
            raise ValueError(f"{path!r}: expected a path or an {S3} address")
        in_bucket, inner = self.folder.startswith(S3), posixpath.normpath(path)
        if in_bucket and not {".", ".."} & set(path.removeprefix("./").split("/")):
            inner = path.removeprefix("./")  # of keys, a//b is not a/b
        if inner.split("/")[0] == "..":
            raise ValueError(f"{path!r} leads out of the folder {self.folder}")
        if posixpath.isabs(inner):
            return inner if self.others is None and not in_bucket else self._checked(inner)
        address = f"{self.folder}/{inner}"
        return address if in_bucket else self._checked(address)

    def _checked(self, address: str) -> str:
        """Raises ValueError where it lies outside, once links are followed."""
        real, places = self._real(address), [self.folder, *(self.others or ())]
        if any(real.startswith(self._real_folder(place).rstrip("/") + "/") for place in places):
            return address
        links = f" ({real!r})" if real != address else ""
        raise ValueError(f"{address!r}{links} leads out of the folder {self.folder}; VIDEO2LORA_ROOTS may name others")

    def _real(self, address: str) -> str:
        if address.startswith(S3):
            return address
        folder, name = posixpath.split(address)
        real = posixpath.join(self._real_folder(folder), name)
        return os.path.realpath(real) if os.path.islink(real) else real

    def _real_folder(self, folder: str) -> str:
        if folder.startswith(S3):
            return folder
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        return self._real_folders[folder]
