"""A benchmark's name for a video -> its file in a folder, local or s3://, however deep and whatever its suffix."""

import posixpath
from collections.abc import Iterator, Sequence

from infra.errors import BadInputError
from pipeline.benchmarks.items import Item
from pipeline.sources import VIDEO_SUFFIXES, read_source, resolve


class Folder:
    """The video files of a folder, listed once. Raises BadInputError where there are none, or it is no folder; StorageError."""

    def __init__(self, address: str) -> None:
        source = read_source(address)
        if source.address != source.folder:
            raise BadInputError(f"{address}: a file, expected a folder of videos")
        self.address = source.address
        self._by_name: dict[str, str] = {}
        paths = [posixpath.normpath(str(row.path)) for row in source.rows if row.path]
        for path in sorted(paths, key=_order):
            for name in _names(path):
                self._by_name.setdefault(name, resolve(f"./{path}", self.address))

    def find(self, names: Sequence[str]) -> str | None:
        """The address of the first of these names that is there."""
        return next((self._by_name[one] for name in names for one in _names(name) if one in self._by_name), None)

    def address_of(self, names: Sequence[str]) -> str:
        """Where it is, or where it would be: right in the folder, so that no annotation leads out of it."""
        name = posixpath.basename(names[0])
        missing = f"{self.address}/{name}" + ("" if _stem(name) != name else ".mp4")
        return self.find(names) or missing

    def check(self, name: str, items: Sequence[Item]) -> None:
        """Raises BadInputError where none of the items' videos is there: then it is another folder that was meant."""
        if not any(self.find(item.videos) for item in items):
            looked_for = ", ".join(sorted({item.videos[0] for item in items})[:3])
            raise BadInputError(f"{self.address}: none of the videos that {name} asks about is there (looked for {looked_for}, ...)")


def _order(path: str) -> tuple[int, int, str]:
    """Of two files of the same name: the first suffix of the list, then the shallower one."""
    suffix = next(place for place, suffix in enumerate(VIDEO_SUFFIXES) if path.lower().endswith(suffix))
    return suffix, path.count("/"), path


def _names(path: str) -> Iterator[str]:
    """What a path may be called by, the exactest first."""
    yield from dict.fromkeys((path, _stem(path), posixpath.basename(path), _stem(posixpath.basename(path))))


def _stem(name: str) -> str:
    root, suffix = posixpath.splitext(name)
    return root if suffix.lower() in VIDEO_SUFFIXES else name
