"""What a log says a table holds, against a plain reading of it, entry after entry."""

import random
from typing import Any

import pyarrow as pa
import pytest

from infra.errors import StorageError
from infra.state import REJECTS, ROWS, State, among

Event = tuple[str, str, list[str]]  # path or "" for void, kind, keys


def file(path: str, kind: str, *keys: str, place: int = 0) -> dict[str, Any]:
    return {"path": path, "kind": kind, "n_rows": len(keys), "sha256": "0", "n_bytes": 1, "place": place, "keys": list(keys)}


def begin(attempt: int = 1) -> dict[str, Any]:
    return {"kind": "begin", "attempt": attempt, "asked": {}, "wanted": "0", "n_wanted": 0, "who": "me", "at": "now"}


def commit(*add: dict[str, Any], remove: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"kind": "commit", "attempt": 1, "add": list(add), "remove": list(remove)}


def void(*keys: str) -> dict[str, Any]:
    return {"kind": "void", "attempt": 1, "keys": list(keys)}


def complete() -> dict[str, Any]:
    counts = {"n_rows": 0, "n_rejects": 0, "measures": {}}
    return {"kind": "complete", "attempt": 1, "asked": {}, "wanted": "0", "rows": "0", "at": "now", **counts}


def live(state: State) -> dict[str, tuple[str, str]]:
    found = state.live().to_pylist()
    assert len({row["key"] for row in found}) == len(found), "a key once"
    return {row["key"]: (row["path"], row["kind"]) for row in found}


def test_a_table_never_begun_holds_nothing() -> None:
    state = State()
    assert (state.version, state.attempt, state.begun, state.is_complete, live(state)) == (0, 0, None, False, {})


def test_the_last_that_was_said_of_a_key_counts() -> None:
    state = State().take([begin(), commit(file("a", ROWS, "x", "y")), commit(file("b", REJECTS, "y", "z"))])
    assert live(state) == {"x": ("a", ROWS), "y": ("b", REJECTS), "z": ("b", REJECTS)}
    state.take([void("y", "z", "never heard of")])
    assert live(state) == {"x": ("a", ROWS)}
    state.take([commit(file("c", ROWS, "z"))])
    assert live(state) == {"x": ("a", ROWS), "z": ("c", ROWS)}
    assert state.version == 5


def test_what_was_said_is_counted_also_where_it_counts_no_more() -> None:
    state = State().take([begin(), commit(file("a", ROWS, "x", "yy")), void("yy"), commit(file("b", ROWS, "yy", "Größe"))])
    assert (state.n_said, state.n_bytes_said) == (5, 1 + 2 + 2 + 2 + 7)


def test_a_file_that_is_removed_says_nothing() -> None:
    state = State().take([begin(), commit(file("a", ROWS, "x", "y")), commit(file("b", ROWS, "x"), remove=("a",))])
    assert live(state) == {"x": ("b", ROWS)}
    assert set(state.files) == {"b"}
    assert live(state.take([commit(remove=("b", "never there"))])) == {}


def test_files_are_ordered_by_their_place_and_then_as_they_were_committed() -> None:
    added = [file("c", ROWS, "1", place=2), file("b", ROWS, "2", place=0), file("r", REJECTS, "3", place=1), file("a", ROWS, "4", place=2)]
    state = State().take([commit(*added)])
    assert state.paths(ROWS) == ["b", "c", "a"] and state.paths(REJECTS) == ["r"]


def test_complete_is_what_was_closed_last() -> None:
    state = State().take([begin(), complete()])
    assert state.is_complete
    assert not state.take([begin(2)]).is_complete, "another run has begun"
    assert state.attempt == 2
    assert not state.take([commit(file("a", ROWS, "x"))]).is_complete
    assert state.take([complete()]).is_complete


@pytest.mark.parametrize(
    "entry",
    [{}, {"kind": "later"}, {"kind": "begin"}, {"kind": "commit", "add": [{"path": "a"}], "remove": []}, {"kind": "void", "keys": None}],
    ids=["nothing", "unknown", "begin", "file", "keys"],
)
def test_an_entry_that_is_none_is_an_error(entry: dict[str, Any]) -> None:
    with pytest.raises(StorageError, match="entry 1 of the log"):
        State().take([begin(), entry])


def read_plainly(events: list[Event], gone: set[str]) -> dict[str, tuple[str, str]]:
    """Each key's last event whose file is still there."""
    found = {}
    for path, kind, keys in events:
        if path not in gone:
            found.update(dict.fromkeys(keys, (path, kind)))
    return {key: said for key, said in found.items() if said[0]}


@pytest.mark.parametrize("seed", range(20))
def test_any_log_is_read_as_a_plain_reading_has_it(seed: int) -> None:
    chance = random.Random(seed)
    keys = [f"k{i}" for i in range(13)]
    events: list[Event] = []
    gone: set[str] = set()
    entries: list[dict[str, Any]] = [begin()]
    state = State().take(entries)
    for step in range(60):
        some = chance.sample(keys, chance.randint(1, 5))
        if chance.random() < 0.3:
            events.append(("", "", some))
            entries.append(void(*some))
        else:
            there = sorted({path for path, _, _ in events if path} - gone)
            removed = tuple(chance.sample(there, min(len(there), chance.choice([0, 0, 0, 1, 2]))))
            kind = chance.choice([ROWS, REJECTS])
            gone.update(removed)
            events.append((f"f{step}", kind, some))
            entries.append(commit(file(f"f{step}", kind, *some), remove=removed))
        state.take(entries[-1:])
        assert live(state) == read_plainly(events, gone), f"after entry {step}"
    assert live(State().take(entries)) == live(state), "taken at once or one by one"
    assert set(state.files) == {path for path, _, _ in events if path} - gone


def test_rows_are_chosen_by_key() -> None:
    table = pa.table({"key": ["a", "b", "c"], "other": ["c", "a", "a"]})
    assert among(table, pa.array(["c", "a", "z"]))["key"].to_pylist() == ["a", "c"]
    assert among(table, pa.array(["a"]), column="other")["key"].to_pylist() == ["b", "c"]
    assert among(table, pa.array([], pa.string())).num_rows == 0
