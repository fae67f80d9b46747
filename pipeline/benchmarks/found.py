"""A benchmark's name for a video -> its file in a folder, local or s3://, however deep and whatever its suffix."""

import posixpath
from collections.abc import Iterator, Sequence

from infra.errors import BadInputError
from pipeline.benchmarks.items import Item, shown
from pipeline.sources import VIDEO_SUFFIXES, read_source


class Folder:
    """The video files of a folder, listed once. Raises BadInputError where there are none, or it is no folder; StorageError."""

    def __init__(self, address: str, allowed: str | None = None) -> None:
        source = read_source(address, allowed)
        if source.address != source.folder:
            raise BadInputError(f"{address}: a file, expected a folder of videos")
        self.address, self.roots = source.address, source.roots
        self._by_name: dict[str, list[str]] = {}
        paths = [posixpath.normpath(str(row.path)) for row in source.rows if row.path]
        for path in sorted(paths, key=_order):
            for name in _names(path):
                self._by_name.setdefault(name, []).append(path)

    def find(self, names: Sequence[str]) -> str | None:
        """The address of the first of these names that is there.

        A file that is called just so is it; else one that has the name in some folder. Raises BadInputError where several folders do.
        """
        for name in (one for asked in names for one in _names(asked)):
            paths = self._by_name.get(name, [])
            exact = [path for path in paths if name in (path, _stem(path))]
            if not exact and len({posixpath.dirname(path) for path in paths}) > 1:
                which = " or ".join(map(shown, paths))
                raise BadInputError(f"{self.address}: video {shown(names[0])} may be {which}: leave one of them in the folder")
            if paths:
                return self._resolved((exact or paths)[0])
        return None

    def _resolved(self, path: str) -> str:
        try:
            return self.roots.resolve(f"./{path}")
        except ValueError as error:
            raise BadInputError(str(error)) from error

    def address_of(self, names: Sequence[str]) -> str:
        """Where it is, or where it would be: right in the folder, so that no annotation leads out of it."""
        name = posixpath.basename(names[0])
        missing = f"{self.address}/{name}" + ("" if _stem(name) != name else ".mp4")
        return self.find(names) or missing

    def check(self, name: str, items: Sequence[Item]) -> None:
        """Raises BadInputError where none of the items' videos is there: then it is another folder that was meant."""
        if not any(self.find(item.videos) for item in items):
            looked_for = ", ".join(sorted({shown(item.videos[0]) for item in items})[:3])
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
