"""Tables: seen only where committed, never overwritten, closed only if nothing was lost."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.errors import BadInputError, MadeFromOtherError, RowsLostError, StorageError
from infra.storage import Table, all_rejects, read_json, reject, write_new

MADE = {"stage": "manifest", "source": {"n": 3, "digest": "abc"}}


def video(name: str) -> dict[str, object]:
    return {"video_id": name, "uri": f"/{name}.mp4", "start_s": None, "end_s": None, "duration_s": 1.5, "split": "train"}


def test_rows_and_rejects_come_back(tmp_path: Path) -> None:
    table = Table(str(tmp_path), "videos")
    assert table.begin(MADE)
    table.commit([video("a"), video("b")], [reject("manifest", "c.mp4", "empty_file", "0 bytes")])
    table.commit([video("d")], [])
    assert sorted(table.read()["video_id"].to_pylist()) == ["a", "b", "d"]
    assert table.done_keys() == {"a", "b", "d", "c.mp4"}
    assert all_rejects(str(tmp_path)).to_pylist() == [{"stage": "manifest", "key": "c.mp4", "reason": "empty_file", "detail": "0 bytes"}]
    table.complete(n_in=4)
    assert not table.begin(MADE)


def test_a_shard_without_a_commit_does_not_exist(tmp_path: Path) -> None:
    table = Table(str(tmp_path), "videos")
    table.begin(MADE)
    table.commit([video("a")], [])
    (commit,) = (tmp_path / "videos" / "commits").iterdir()
    commit.unlink()
    assert table.n_rows() == 0 and table.read().num_rows == 0 and table.done_keys() == set()


def test_books_that_do_not_close_are_an_error(tmp_path: Path) -> None:
    table = Table(str(tmp_path), "videos")
    table.begin(MADE)
    table.commit([video("a")], [])
    with pytest.raises(RowsLostError, match="2 rows in, 1 out and 0 rejected"):
        table.complete(n_in=2)
    assert table.begin(MADE), "a table whose books do not close is not complete"


def test_another_source_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    table = Table(str(tmp_path), "videos")
    table.begin(MADE)
    with pytest.raises(MadeFromOtherError, match=r"source\.n: there 3, here 4"):
        table.begin({**MADE, "source": {"n": 4, "digest": "abc"}})


def test_nothing_is_built_on_a_table_that_is_not_complete(tmp_path: Path) -> None:
    table = Table(str(tmp_path), "videos")
    with pytest.raises(BadInputError, match="run the stage that makes it"):
        table.made_from()
    table.begin(MADE)
    with pytest.raises(BadInputError):
        table.made_from()
    table.complete(n_in=0)
    assert table.made_from() == MADE


def test_a_reason_outside_the_closed_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bored"):
        Table(str(tmp_path), "videos").commit([], [reject("manifest", "a", "bored")])


def test_one_of_many_writers_wins(tmp_path: Path) -> None:
    path = str(tmp_path / "folder" / "one.json")
    with ThreadPoolExecutor(13) as pool:
        won = list(pool.map(lambda i: write_new(path, json.dumps(i).encode()), range(13)))
    assert sum(won) == 1
    assert read_json(path) == won.index(True)
    assert os.listdir(tmp_path / "folder") == ["one.json"]


def test_unreadable_state_is_an_error_and_not_a_new_start(tmp_path: Path) -> None:
    table = Table(str(tmp_path), "videos")
    table.begin(MADE)
    (tmp_path / "videos" / "made.json").write_bytes(b"{ half")
    with pytest.raises(StorageError, match="cannot be read"):
        table.begin(MADE)


def test_storage_that_is_full_is_one_clear_error(tmp_path: Path) -> None:
    """A real refusal of the system: no file of this process may grow beyond 10 bytes."""
    code = (
        "import resource, signal, sys; from infra.storage import write_new; from infra.errors import StorageError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        f"try: write_new({str(tmp_path / 'x.bin')!r}, b'0' * 1000)\n"
        "except StorageError as error: sys.exit(error.exit_code)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == StorageError.exit_code
    assert list(tmp_path.iterdir()) == [], "a part of the file was left"
