"""Tables: seen only where committed, never overwritten, finished only if nothing was lost."""

import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from infra import s3
from infra.artifacts import FRAMES, REJECTS
from infra.attempt import reject
from infra.errors import BadInputError, StorageError
from infra.storage import Table
from tests.servers.fault_proxy import Fault, FaultProxy

ASKED = {"stage": "frames", "source": {"n": 4, "of": ("a", "b")}}
KEYS = ["a", "b", "c", "d"]
REPOSITORY = Path(__file__).parents[2]


def row(key: str, text: str = "uniform") -> dict[str, Any]:
    return dict.fromkeys(FRAMES.schema.names) | {"video_id": key, "sampling": text, "jpegs": [b"1", b""], "duration_s": 1.5}


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Rows a and b, c as reject, d in a file of its own; closed."""
    table = Table(str(tmp_path), "frames", "one-set")
    attempt = table.begin(ASKED, KEYS)
    attempt.write([row("a"), row("b")], [reject("frames", "c", "bad_row", "of w")], place=1)
    attempt.write([row("d")], [], place=0)
    attempt.complete()
    return table


def keys(table: Table) -> list[str]:
    return sorted(table.read(["video_id"])["video_id"].to_pylist())


def only(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def test_rows_and_rejects_come_back(table: Table) -> None:
    assert table.read().to_pylist() == [row("d"), row("a"), row("b")], "files by their place"
    assert table.read().schema == FRAMES.schema
    expected = {"stage": "frames", "key": "c", "reason": "bad_row", "detail": "of w"}
    assert table.read_rejects().to_pylist() == [expected]
    assert (table.n_rows(), table.n_rejects()) == (3, 1)
    assert sorted(table.wanted().to_pylist()) == KEYS
    assert pickle.loads(pickle.dumps(table)).read() == table.read()


def test_only_the_columns_that_are_asked_for(table: Table) -> None:
    assert table.read(["duration_s", "sampling"]).to_pylist() == [{"duration_s": 1.5, "sampling": "uniform"}] * 3
    attempt = table.begin(ASKED, ["a"])  # of two rows in a file, one
    assert table.read(["sampling"]).to_pylist() == [{"sampling": "uniform"}]
    attempt.complete()


def test_ids_in_a_bucket_do_not_cost_pictures(bucket: str, proxy: FaultProxy) -> None:
    """No body of more than 100 kB arrives whole; the files have 3 MB. Where the store is unwell it is tried again."""
    table, pictures = Table(f"{bucket}/data", "frames", "some-set"), [random.Random(3).randbytes(1_500_000)] * 2
    attempt = table.begin(ASKED, ["a", "b"])
    for i, name in enumerate("ab"):
        attempt.write([row(name) | {"jpegs": pictures}], [], place=i)
    attempt.complete()
    proxy.fail(Fault("status", status=503, method="GET", part="/shards/", times=3))
    proxy.fail(Fault("cut", method="GET", part="/shards/", times=1_000_000, after_bytes=100_000))
    assert table.read(["video_id", "duration_s"]).to_pylist() == [{"video_id": name, "duration_s": 1.5} for name in "ab"]
    proxy.forget()
    assert table.read().to_pylist() == [row(name) | {"jpegs": pictures} for name in "ab"]
    first, second = table.shards()
    s3.remove(first)
    with pytest.raises(StorageError, match="is gone: `video2lora verify --repair`"):
        table.read(["video_id"])
    for other in ((s3.read_bytes(second) or b"") + b"more", b"less"):
        s3.remove(first)
        assert s3.write_new(first, other)
        with pytest.raises(StorageError, match="is not the file that was committed"):
            table.read(["video_id"])


def test_a_table_that_is_not_there_is_empty(tmp_path: Path) -> None:
    table = Table(str(tmp_path), "frames", "some-set")
    assert table.read().schema == FRAMES.schema and table.read().num_rows == 0
    assert table.read_rejects().schema == REJECTS.schema and table.shards() == [] and len(table.wanted()) == 0
    assert (table.n_rows(), table.n_rejects(), table.is_complete(), table.finished(ASKED)) == (0, 0, False, False)
    assert not list(tmp_path.iterdir()), "reading writes nothing"


def test_what_is_not_wanted_any_more_does_not_show_and_is_not_lost(table: Table) -> None:
    less = table.begin(ASKED, ["b", "e"])
    assert keys(table) == ["b"] and table.read_rejects().num_rows == 0
    less.write([row("e")], [])
    less.complete()
    assert keys(table) == ["b", "e"] and (table.n_rows(), table.n_rejects()) == (2, 0)
    more = table.begin(ASKED, [*KEYS, "e"])
    assert more.left == set(), "nothing is made again"
    assert keys(table) == ["a", "b", "d", "e"] and table.n_rejects() == 1


def test_a_row_that_was_made_again_shows_as_it_is_now(table: Table) -> None:
    attempt = table.begin(ASKED, KEYS)
    attempt.void(["a", "c"])
    attempt.write([row("a", "new"), row("c", "new")], [])
    assert sorted((row["video_id"], row["sampling"]) for row in table.read().to_pylist()) == [
        ("a", "new"),
        ("b", "uniform"),
        ("c", "new"),
        ("d", "uniform"),
    ]
    assert table.read_rejects().num_rows == 0


def test_a_file_without_a_commit_does_not_exist(table: Table) -> None:
    before = table.read(), table.shards()
    stray = Path(table.folder, "shards", "000001-stray.parquet")
    pq.write_table(table.read().slice(0, 1), stray)
    assert (table.read(), table.shards()) == before and table.n_rows() == 3


def test_shards_are_files_that_any_reader_of_parquet_reads(table: Table) -> None:
    assert [name for path in table.shards() for name in pq.read_table(path)["video_id"].to_pylist()] == ["d", "a", "b"]


def test_finished_is_the_same_asked_for_again_and_the_books_closed(table: Table) -> None:
    assert table.finished(ASKED) and table.finished({"stage": "frames", "source": {"of": ["a", "b"], "n": 4}})
    assert not table.finished({**ASKED, "stage": "other"})
    attempt = table.begin({**ASKED, "stage": "other"}, KEYS)
    assert not table.finished(ASKED) and not table.is_complete()
    attempt.complete()
    assert not table.finished(ASKED) and table.finished({**ASKED, "stage": "other"})


def test_finished_reads_no_key_and_no_row(table: Table) -> None:
    for folder in ("shards", "rejects", "wanted"):
        for path in Path(table.folder, folder).iterdir():
            path.unlink()
    assert table.finished(ASKED)


def test_nothing_is_built_on_a_table_that_is_not_complete(tmp_path: Path) -> None:
    table = Table(str(tmp_path), "frames", "one-set")
    with pytest.raises(BadInputError, match="run the stage that makes it first"):
        table.made_from()
    attempt = table.begin(ASKED, ["a"])
    attempt.write([row("a")], [])
    with pytest.raises(BadInputError):
        table.made_from()
    attempt.complete()
    assert table.made_from()["asked"] == {"stage": "frames", "source": {"n": 4, "of": ["a", "b"]}}


def test_what_made_a_table_names_its_rows(table: Table, tmp_path: Path) -> None:
    made_from = table.made_from()
    assert (made_from["n_rows"], made_from["n_rejects"]) == (3, 1) and made_from["set"] == "one-set"
    same = Table(str(tmp_path / "other"), "frames", "other-set")
    attempt = same.begin(ASKED, reversed(KEYS))
    attempt.write([row(key) for key in "dba"], [reject("frames", "c", "bad_row")])
    attempt.complete()
    assert same.made_from() == {**made_from, "set": "other-set"}, "the same rows, in whatever order and files"
    attempt = same.begin(ASKED, KEYS)
    attempt.void(["c"])
    attempt.write([row("c")], [])
    attempt.complete()
    assert same.made_from()["rows"] != made_from["rows"]


def test_a_key_wanted_twice_is_refused(tmp_path: Path) -> None:
    table = Table(str(tmp_path), "frames", "one-set")
    with pytest.raises(ValueError, match="wanted twice"):
        table.begin(ASKED, ["a", "b", "a"])
    assert table.state().version == 0


@pytest.mark.parametrize("kind", ["shards", "rejects"])
@pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
def test_a_file_that_is_damaged_or_gone_is_an_error(table: Table, kind: str, damage: str) -> None:
    victim = sorted(Path(table.folder, kind).iterdir())[0]
    data = victim.read_bytes()
    victim.unlink()
    if damage != "gone":
        victim.write_bytes(data[: len(data) // 2] if damage == "cut" else data[:40] + bytes([data[40] ^ 1]) + data[41:])
    with pytest.raises(StorageError, match=f"{victim.name} is {'gone' if damage == 'gone' else 'not the file that was committed'}"):
        table.read() if kind == "shards" else table.read_rejects()


def test_a_damaged_log_is_an_error_and_not_a_new_start(table: Table) -> None:
    Path(table.folder, "log", "00000001.json").write_bytes(b"{ half")
    for use in (table.read, table.is_complete, lambda: table.finished(ASKED), lambda: table.begin(ASKED, KEYS)):
        with pytest.raises(StorageError, match=r"00000001\.json cannot be read") as ended:
            use()
        assert ended.value.exit_code == 5
    assert len(os.listdir(Path(table.folder, "log"))) == 4


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_damaged_wanted_keys_are_an_error_and_asking_again_mends_it(table: Table, damage: str) -> None:
    wanted = only(Path(table.folder, "wanted"))
    if damage == "changed":
        pq.write_table(pq.read_table(wanted).slice(1), wanted)
    else:
        wanted.unlink()
    with pytest.raises(StorageError, match="is gone" if damage == "gone" else "not the file that was written"):
        table.read()
    wanted.unlink(missing_ok=True)
    table.begin(ASKED, KEYS).complete()
    assert keys(table) == ["a", "b", "d"]


def test_rows_of_keys_come_from_the_files_that_hold_them_alone(tmp_path: Path) -> None:
    table = Table(str(tmp_path), "frames", "one-set")
    attempt = table.begin(ASKED, ["a", "b", "c", "d"])
    for name in ("ab", "c", "d"):
        attempt.write([row(one) for one in name], [])
    table.begin(ASKED, ["a", "d"]).complete()
    kept = {key: path for path, file in table.state().files.items() for key in file.keys}
    Path(table.folder, kept["d"]).unlink()
    assert table.read_keys(["c", "b", "x"], ["video_id"])["video_id"].to_pylist() == ["b", "c"], (
        "wanted or not, and no other of their files"
    )
    assert table.read_keys([], ["video_id"]).num_rows == 0
    with pytest.raises(StorageError):
        table.read_keys(["d"], ["video_id"])


def test_storage_that_is_full_is_one_clear_error_and_the_same_again_continues(tmp_path: Path) -> None:
    """A real refusal of the system: no file of this process may grow beyond 3,000 bytes."""
    code = (
        "import resource, secrets, signal, sys\nfrom infra.storage import Table\nfrom infra.errors import StorageError\n"
        "from tests.infra.test_storage import ASKED, row\n"
        "attempt = Table(sys.argv[1], 'frames', 'one-set').begin(ASKED, ['a', 'b'])\nattempt.write([row('a')], [])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "try: attempt.write([row('b', secrets.token_hex(9000))], [])\n"
        "except StorageError as error: sys.exit(error.exit_code)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, timeout=60, capture_output=True, text=True)
    assert ran.returncode == StorageError.exit_code, ran.stderr
    assert len(list((tmp_path / "frames" / "one-set" / "shards").iterdir())) == 1, "a part of the file was left"
    again = Table(str(tmp_path), "frames", "one-set").begin(ASKED, ["a", "b"])
    assert again.left == {"b"}
