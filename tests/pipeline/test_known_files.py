"""Files that were read before are not opened again, by whatever program; new and changed ones are, and only they."""

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import fsspec
import pytest
from clips import regular, write_clip

from infra.artifacts import FILES
from infra.config import Recipe, Where
from infra.storage import Table
from pipeline import manifest
from pipeline.known_files import Version, contents, versions
from video2lora.video import RejectReason, VideoDecodeError, content_id

Watch = Callable[[Path], AbstractContextManager[set[str]]]
NAMES = ["a.mp4", "b.mp4", "c.mp4"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NAMES, and other.mp4 of another content."""
    folder = tmp_path_factory.mktemp("written")
    for i, name in enumerate((*NAMES, "other.mp4")):
        write_clip(folder / name, regular(3 + i))
    return folder


@pytest.fixture
def clips(written: Path, tmp_path: Path) -> Path:
    """NAMES, to change."""
    (tmp_path / "clips").mkdir()
    for name in NAMES:
        shutil.copy2(written / name, tmp_path / "clips" / name)
    return tmp_path / "clips"


def run(source: Path, data: Path) -> str:
    return manifest.run(str(source), Recipe(), Where(data=str(data)))


def contents_of(root: Path, folder: Path) -> dict[str, str]:
    """Of every file in a folder: its hash, or why it has none."""
    uris = sorted(str(path) for path in folder.iterdir())
    found = contents(str(root), versions(uris))
    assert sorted(found) == uris
    return {Path(uri).name: one.reason if isinstance(one, VideoDecodeError) else one for uri, one in found.items()}


def test_the_watch_sees_who_opens_a_file(clips: Path, opened: Watch) -> None:
    with opened(clips) as names:
        os.stat(clips / "a.mp4")
        list(clips.iterdir())
        content_id(clips / "b.mp4")
    assert names == {"b.mp4"}


def test_a_second_run_opens_no_video(clips: Path, tmp_path: Path, opened: Watch) -> None:
    with opened(clips) as names:
        first = run(clips, tmp_path / "data")
    assert names == set(NAMES)
    with opened(clips) as names:
        assert run(clips, tmp_path / "data") == first
    assert names == set()


def test_new_and_changed_files_are_opened_and_only_they(clips: Path, written: Path, tmp_path: Path, opened: Watch) -> None:
    run(clips, tmp_path / "data")
    shutil.copy(written / "other.mp4", clips / "new.mp4")
    (clips / "b.mp4").write_bytes((clips / "b.mp4").read_bytes() + b" ")
    with opened(clips) as names:
        assert run(clips, tmp_path / "data") == "videos: 4 rows, 1 rejects (superseded 1)"
    assert names == {"b.mp4", "new.mp4"}


def test_another_list_of_the_same_files_opens_none(clips: Path, tmp_path: Path, opened: Watch) -> None:
    """Durations are known too, and other splits and spans need no more."""
    run(clips, tmp_path / "data")
    (tmp_path / "list.jsonl").write_text('{"uri": "clips/c.mp4", "split": "test"}\n{"uri": "clips/a.mp4"}\n')
    with opened(clips) as names:
        assert run(tmp_path / "list.jsonl", tmp_path / "data") == "videos: 3 rows, 0 rejects"
    assert names == set()


def test_a_file_that_was_touched_is_read_and_the_same_video(clips: Path, tmp_path: Path, opened: Watch) -> None:
    run(clips, tmp_path / "data")
    before = Table(str(tmp_path / "data"), "videos").state().version
    os.utime(clips / "a.mp4", ns=(0, 1))
    with opened(clips) as names:
        assert run(clips, tmp_path / "data") == "videos: 3 rows, 0 rejects"
    assert names == {"a.mp4"} and Table(str(tmp_path / "data"), "videos").state().version == before


def test_every_content_comes_with_its_file(clips: Path, tmp_path: Path) -> None:
    expected = {name: content_id(clips / name) for name in NAMES}
    assert contents_of(tmp_path / "data", clips) == expected
    assert contents_of(tmp_path / "data", clips) == expected, "from the table"
    rows = Table(str(tmp_path / "data"), "files").read().to_pylist()
    assert {row["uri"]: row["n_bytes"] for row in rows} == {str(clips / name): (clips / name).stat().st_size for name in NAMES}


def test_a_killed_run_reads_on_behind_what_is_committed(clips: Path, tmp_path: Path, opened: Watch) -> None:
    there = {uri: one for uri, one in versions([f"{clips}/{name}" for name in NAMES]).items() if isinstance(one, Version)}
    table, done = Table(str(tmp_path), "files"), there[f"{clips}/b.mp4"]
    attempt = table.begin({"stage": "files"}, [one.key for one in there.values()])
    row = {"uri": done.uri, "version": done.version, "n_bytes": done.n_bytes, "content": content_id(done.uri)}
    assert FILES.key_of(row) == done.key and attempt.write([row], []) == 1
    expected = {name: content_id(clips / name) for name in NAMES}
    with opened(clips) as names:
        assert contents_of(tmp_path, clips) == expected
    assert names == {"a.mp4", "c.mp4"}
    assert len(table.shards()) == 2 and table.is_complete()


def test_what_could_not_be_read_is_tried_again(clips: Path, tmp_path: Path) -> None:
    (clips / "d.mp4").touch()
    (clips / "gone.mp4").symlink_to(clips / "e.mp4")
    os.mkfifo(clips / "pipe.mp4")
    bad = {"d.mp4": RejectReason.EMPTY_FILE, "gone.mp4": RejectReason.MISSING, "pipe.mp4": RejectReason.UNREADABLE}
    table = Table(str(tmp_path / "data"), "files")
    for _ in range(2):
        found = contents_of(tmp_path / "data", clips)
        assert {name: found[name] for name in bad} == bad
        assert table.is_complete() and (table.n_rows(), table.n_rejects()) == (3, 2)
    (clips / "d.mp4").write_bytes(b"now")
    (clips / "e.mp4").write_bytes(b"there")
    found = contents_of(tmp_path / "data", clips)
    assert all(isinstance(found[name], str) and len(found[name]) == 64 for name in ("d.mp4", "gone.mp4", "e.mp4")), found
    assert (table.n_rows(), table.n_rejects()) == (6, 1)


def test_a_file_is_known_by_each_version_it_had(tmp_path: Path) -> None:
    """Changed back with its old time (a restored backup), it is not read again."""
    (tmp_path / "clips").mkdir()
    path = tmp_path / "clips/a.mp4"
    found = {}
    for i in range(3):
        path.write_bytes(b"content %d" % i)
        os.utime(path, ns=(i, i))
        found[i] = contents_of(tmp_path / "data", tmp_path / "clips")["a.mp4"]
    assert len(set(found.values())) == 3
    version = Table(str(tmp_path / "data"), "files").state().version
    path.write_bytes(b"content 1")
    os.utime(path, ns=(1, 1))
    assert contents_of(tmp_path / "data", tmp_path / "clips")["a.mp4"] == found[1]
    assert Table(str(tmp_path / "data"), "files").state().version == version


def test_objects_of_a_bucket_are_known_by_their_etag(bucket: str, written: Path, tmp_path: Path) -> None:
    """Deep folders are listed, single objects asked for; what is known is told though the objects are gone."""
    store = fsspec.filesystem("s3")
    uris = [f"{bucket}/deep/{i}.mp4" for i in range(5)] + [f"{bucket}/one/6.mp4", f"{bucket}/one/gone.mp4"]
    for uri in uris[:-1]:
        store.pipe_file(uri, (written / "a.mp4").read_bytes() + uri[-5:].encode())
    there = versions(uris)
    found = contents(str(tmp_path), there)
    assert [uri for uri, one in found.items() if isinstance(one, VideoDecodeError)] == uris[-1:]
    assert len({one for uri, one in found.items() if uri != uris[-1]}) == 6
    store.pipe_file(uris[2], b"another content")
    changed = versions(uris)
    differ = [uri for uri in uris[:-1] if changed[uri] != there[uri]]
    assert differ == [uris[2]]
    for uri in uris[:2]:
        store.rm_file(uri)
    again = contents(str(tmp_path), changed)
    assert {uri for uri in uris[:-1] if again[uri] != found[uri]} == {uris[2]}
    store.invalidate_cache()
    assert isinstance(versions(uris)[uris[0]], VideoDecodeError)
    for folder in ("s3://no-such-bucket-of-ours", f"{bucket}/.", "s3://a bucket"):
        nowhere = versions([f"{folder}/{i}.mp4" for i in range(5)])
        assert all(isinstance(one, VideoDecodeError) for one in nowhere.values()), f"{folder}: rows are rejects, however many"
