"""One run's right to write: what counts, what counts once, and what ends it."""

import pickle
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from infra.attempt import Attempt, check_size, reject
from infra.errors import BadInputError, RowsLostError, SupersededError
from infra.storage import Table

ASKED = {"videos": "all"}
Row = dict[str, Any]


def row(key: str, text: str = "") -> Row:
    return {"video_id": key, "sampling": text or key, "jpegs": [b"1"]}


def rejected(key: str, detail: str = "") -> Row:
    return reject("frames", key, "bad_row", detail)


def rows_of(*keys: str) -> list[Row]:
    return [row(key) for key in keys]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(str(tmp_path), "frames", "one-set")


def holds(table: Table) -> dict[str, str]:
    """Every key that counts, with its text or reject's detail, none of them twice."""
    said = [(row["video_id"], row["sampling"]) for row in table.read().to_pylist()]
    said += [(row["key"], "rejected: " + row["detail"]) for row in table.read_rejects().to_pylist()]
    assert len(dict(said)) == len(said)
    return dict(said)


def on_disk(table: Table, kind: str = "shards") -> dict[str, list[str]]:
    """Each file of the folder and the keys of all rows that stand in it."""
    column = "video_id" if kind == "shards" else "key"
    return {f"{kind}/{path.name}": pq.read_table(path)[column].to_pylist() for path in sorted(Path(table.folder, kind).glob("*.parquet"))}


def test_what_is_left_is_what_was_not_said_yet(table: Table) -> None:
    attempt = table.begin(ASKED, ["a", "b", "c", "d"])
    assert attempt.number == 1 and attempt.left == {"a", "b", "c", "d"}
    assert attempt.write(rows_of("a", "b"), [rejected("c")]) == 3
    assert attempt.left == {"d"}
    later = table.begin(ASKED, ["b", "c", "d", "e"])
    assert later.number == 2 and later.left == {"d", "e"}


def test_a_worker_writes_and_nothing_is_there_before_the_run_commits_it(table: Table) -> None:
    attempt = table.begin(ASKED, ["a", "b"])
    writer = pickle.loads(pickle.dumps(attempt.writer()))
    files = pickle.loads(pickle.dumps(writer.write(rows_of("a"), [rejected("b")], place=7)))
    assert holds(table) == {} and attempt.left == {"a", "b"}
    assert [(file.kind, file.place, file.keys) for file in files] == [("rows", 7, ("a",)), ("rejects", 7, ("b",))]
    assert attempt.commit(files) == 2
    assert holds(table) == {"a": "a", "b": "rejected: "}


def test_nothing_written_is_nothing_committed(table: Table) -> None:
    attempt = table.begin(ASKED, ["a"])
    assert attempt.writer().write([], []) == [] and attempt.write([], []) == 0
    assert table.state().version == 1


def test_a_task_that_ran_twice_counts_once(table: Table) -> None:
    attempt = table.begin(ASKED, ["a", "b"])
    first, second = (attempt.writer().write([row("a", f"try {i}"), row("b")], []) for i in range(2))
    assert attempt.commit(first) == 2 and attempt.commit(second) == 0
    assert holds(table) == {"a": "try 0", "b": "b"}
    assert table.state().version == 2, "nothing is said twice"
    attempt.complete()


def test_two_files_of_the_same_keys_in_one_commit_count_once(table: Table) -> None:
    attempt = table.begin(ASKED, ["a", "b"])
    writer = attempt.writer()
    assert attempt.commit(writer.write(rows_of("a", "b"), []) + writer.write(rows_of("b", "a"), [])) == 2
    assert holds(table) == {"a": "a", "b": "b"}


@pytest.mark.parametrize("at_once", [False, True])
def test_of_files_that_overlap_each_key_counts_once(table: Table, at_once: bool) -> None:
    attempt = table.begin(ASKED, ["a", "b", "c", "d"])
    first = attempt.writer().write([row("a", "first"), row("b", "first")], [rejected("c", "first")])
    second = attempt.writer().write([row(key, "second") for key in "bcd"], [])
    counts = [attempt.commit(files) for files in ([first + second] if at_once else [first, second])]
    assert sum(counts) == 4 and attempt.left == set()
    assert holds(table) == {"a": "first", "b": "first", "c": "rejected: first", "d": "second"}
    attempt.complete()


def test_rows_that_were_not_wanted_are_not_committed(table: Table) -> None:
    attempt = table.begin(ASKED, ["a"])
    assert attempt.write(rows_of("a", "stranger"), [rejected("another")]) == 1
    assert set(table.state().live()["key"].to_pylist()) == {"a"}


def test_the_later_run_takes_over_and_the_first_can_say_no_more(table: Table) -> None:
    first = table.begin(ASKED, ["a", "b"])
    first.write(rows_of("a"), [])
    files = first.writer().write(rows_of("b"), [])
    second = table.begin(ASKED, ["a", "b"])
    assert second.left == {"b"}, "it goes on from what was committed"
    for say in (lambda: first.commit(files), lambda: first.void(["a"]), lambda: first.drop(["a"])):
        with pytest.raises(SupersededError, match="run 1 was superseded by run 2") as ended:
            say()
        assert ended.value.exit_code == 8
    assert holds(table) == {"a": "a"}, "also nothing was removed"
    second.write([row("b", "by the second")], [])
    second.complete()
    assert holds(table) == {"a": "a", "b": "by the second"}


def test_a_run_that_has_all_its_rows_cannot_close_another_runs_books(table: Table) -> None:
    first = table.begin(ASKED, ["a"])
    first.write(rows_of("a"), [])
    second = table.begin(ASKED, ["a", "b"])
    with pytest.raises(SupersededError):
        first.complete()
    assert not table.is_complete()
    second.write(rows_of("b"), [])
    second.complete()
    with pytest.raises(SupersededError):
        first.complete()
    assert table.is_complete()


def test_the_books_close_only_when_every_key_is_a_row_or_a_reject(table: Table) -> None:
    attempt = table.begin(ASKED, ["a", "b", "c"])
    attempt.write(rows_of("a"), [rejected("b")])
    with pytest.raises(RowsLostError, match="3 rows in, 1 out and 1 rejected: 1 are missing") as ended:
        attempt.complete()
    assert ended.value.exit_code == 6 and not table.is_complete()
    attempt.write(rows_of("c"), [])
    attempt.complete(measures={"rate": 2.5})
    completed = table.state().completed
    assert completed is not None
    assert (completed["n_rows"], completed["n_rejects"], completed["measures"]) == (2, 1, {"rate": 2.5})


def test_rejects_are_tried_again(table: Table) -> None:
    attempt = table.begin(ASKED, ["a", "b", "c"])
    attempt.write(rows_of("a"), [rejected("b"), rejected("c")])
    attempt.complete()
    again = table.begin(ASKED, ["a", "b", "c"])
    assert again.left == set()
    again.void(["b", "not wanted"])
    assert again.left == {"b"} and not table.is_complete()
    assert holds(table) == {"a": "a", "c": "rejected: "}
    again.write(rows_of("b"), [])
    again.complete()
    assert holds(table) == {"a": "a", "b": "b", "c": "rejected: "}
    again.void([])
    assert table.is_complete(), "nothing to void is nothing said"


def test_dropped_keys_are_gone_and_only_their_files_were_touched(table: Table) -> None:
    attempt = table.begin(ASKED, [*"abcdef"])
    for keys in ("ab", "cd", "e"):
        attempt.write(rows_of(*keys), [], place=ord(keys[0]))
    attempt.write([], [rejected("f")])
    before = on_disk(table)
    assert attempt.drop(["c", "e", "never there"]) == 2
    after = on_disk(table)
    assert sorted(after.values()) == [["a", "b"], ["d"]]
    assert [path for path in before if path in after] == [path for path, keys in before.items() if keys == ["a", "b"]]
    assert holds(table) == {"a": "a", "b": "b", "d": "d", "f": "rejected: "}
    assert [file.place for file in table.state().files.values() if file.keys == ("d",)] == [ord("c")], "its place is kept"
    assert attempt.drop(["f"]) == 1 and on_disk(table, "rejects") == {}
    with pytest.raises(RowsLostError):
        attempt.complete()
    without = table.begin(ASKED, [*"abd"])
    without.complete()
    assert holds(table) == {"a": "a", "b": "b", "d": "d"}


def test_a_dropped_key_stands_in_no_file_also_if_it_was_said_before(table: Table) -> None:
    attempt = table.begin(ASKED, ["a", "b"])
    attempt.write([row("a", "first")], [rejected("b", "first")])
    attempt.void(["a", "b"])
    attempt.write([row("a", "second"), row("b", "second")], [])
    attempt.drop(["a", "b"])
    assert on_disk(table) == {} and on_disk(table, "rejects") == {}


def test_a_lost_file_is_dropped_without_being_read(table: Table) -> None:
    attempt = table.begin(ASKED, ["a", "b", "c"])
    attempt.write(rows_of("a", "b"), [])
    attempt.write(rows_of("c"), [])
    (lost,) = (file.path for file in table.state().files.values() if "a" in file.keys)
    Path(table.folder, lost).unlink()
    assert attempt.drop([], lost=[lost]) == 1
    again = table.begin(ASKED, ["a", "b", "c"])
    assert again.left == {"a", "b"}
    again.write(rows_of("a", "b"), [])
    again.complete()
    assert holds(table) == {"a": "a", "b": "b", "c": "c"}


def test_a_reason_outside_the_closed_list_is_refused(table: Table) -> None:
    attempt = table.begin(ASKED, ["a"])
    with pytest.raises(ValueError, match="bored"):
        attempt.write([], [reject("frames", "a", "bored")])
    assert not Path(table.folder, "rejects").exists() and attempt.left == {"a"}


def test_two_rows_of_one_key_and_a_row_without_one_are_refused(table: Table) -> None:
    attempt = table.begin(ASKED, ["a"])
    for rows in (rows_of("a", "a"), [{**row("a"), "video_id": None}]):
        with pytest.raises(ValueError, match="a key of its own for each"):
            attempt.write(rows, [])
    assert not Path(table.folder, "shards").exists()


@pytest.mark.parametrize("seed", range(4))
def test_any_course_of_runs_ends_as_a_plain_reading_has_it(table: Table, seed: int) -> None:
    """Runs that begin, write (also what is there already), void and drop at random, against one dict of what was said last."""
    chance = random.Random(seed)
    keys = [f"k{i}" for i in range(11)]
    said: dict[str, str] = {}
    attempt: Attempt | None = None
    wanted: list[str] = []
    for step in range(30):
        some = chance.sample(keys, chance.randint(1, 4))
        what = "begin" if attempt is None else chance.choice(["begin", "write", "write", "write", "write", "void", "drop"])
        if what == "begin":
            wanted = chance.sample(keys, 8)
            attempt = table.begin({"step": step}, wanted)
        assert attempt is not None
        if what == "write":
            new = {key: f"{step}" if chance.random() < 0.7 else f"rejected: {step}" for key in some}
            rows = [row(key, text) for key, text in new.items() if not text.startswith("rejected")]
            n = attempt.write(rows, [rejected(key, text[10:]) for key, text in new.items() if text.startswith("rejected")])
            new = {key: text for key, text in new.items() if key in wanted and key not in said}
            assert n == len(new)
            said |= new
        elif what == "void":
            attempt.void(some)
        elif what == "drop":
            attempt.drop(some)
            assert not [path for path, file in table.state().files.items() if set(some) & set(file.keys)], "also not an older row"
        if what in ("void", "drop"):
            said = {key: text for key, text in said.items() if key not in some}
        assert attempt.left == set(wanted) - said.keys()
        assert holds(table) == {key: text for key, text in said.items() if key in wanted}, f"after step {step}, {what}"
    committed = {path: list(file.keys) for path, file in table.state().files.items()}
    assert committed.items() <= (on_disk(table) | on_disk(table, "rejects")).items()


@pytest.mark.parametrize(("n", "n_bytes"), [(10_000_000, 2**31), (39_000_000, 10**9)])
def test_more_keys_than_arrow_holds_are_refused_before_anything_is_made(n: int, n_bytes: int) -> None:
    check_size("data/targets/t", n=38_000_000, n_bytes=2 * 10**9)
    with pytest.raises(BadInputError, match=r"^data/targets/t: .* keys, .* Divide the videos over several data folders"):
        check_size("data/targets/t", n=n, n_bytes=n_bytes)
