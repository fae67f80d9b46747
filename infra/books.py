"""Every table under a root -> whether its books close: what was wanted is there, whole and once, and nothing else is.

Reads   each table's log with its packs, the keys it was asked for, and every committed file whole: its size, hash, rows and keys.
Command video2lora verify
Cost    as long as reading all tables takes, hashed on a few threads; no video is read.

A folder's listing is asked only for files that no log names. Such files of a run that has ended can never be committed, and are orphans;
those of the newest run, while its table is not complete, may be committed in a moment.
"""

import hashlib
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table as Grid

from infra.artifacts import REJECTS_BY_KEY
from infra.digests import digest
from infra.errors import StorageError
from infra.log import PACK, Entry
from infra.objects import names, read_bytes
from infra.outputs import Output
from infra.parquet import from_parquet
from infra.progress import counting
from infra.sets import FIGURES, HYPERNETWORKS, REPORTS, outputs_of, tables_of
from infra.state import ROWS, File, State, among
from infra.storage import Table

N_READING = 8  # threads; Python's lock is free while they read and hash
WIDE = 200  # columns, where there is no terminal to fit into
MAKES = dict.fromkeys(("files", "scenes", "videos", "questions"), "manifest SOURCE")
MAKES |= {"visual_tokens": "encode", "answers": "answer", "judgements": "judge", HYPERNETWORKS: "train", REPORTS: "report"}
MAKES |= {FIGURES: "reproduce TABLE"}
"""The stage that makes a table, where it is not called like it."""

Kind = Literal[
    "missing", "changed", "keys", "duplicate", "stale", "orphan", "foreign", "pending", "open", "wanted", "entry", "pack", "output"
]  # fmt: skip
LOST: frozenset[Kind] = frozenset({"missing", "changed", "keys"})  # of a committed file: its rows cannot be had from it any more
STAYS: frozenset[Kind] = frozenset({"entry", "foreign", "duplicate", "stale"})  # nothing that is safe can be done about it


@dataclass(frozen=True)
class Finding:
    """What is wrong with a file of a table, or with the table where `path` is "". `path` counts from the table's folder."""

    kind: Kind
    folder: str
    path: str
    detail: str

    def line(self) -> str:
        return f"{self.folder}{'/' if self.path else ''}{self.path}: {self.kind}: {self.detail}"


@dataclass(frozen=True)
class Book:
    """A table's counts and findings. `wanted` is None where the keys it was asked for are lost; then what depends on them is None too."""

    table: Table
    state: State
    wanted: pa.ChunkedArray | None
    findings: list[Finding]
    n_unfinished: int  # files of a run that is not finished

    @property
    def n_done(self) -> int | None:
        return self._n(rows=True)

    @property
    def n_rejected(self) -> int | None:
        return self._n(rows=False)

    @property
    def n_pending(self) -> int | None:
        return None if self.wanted is None else len(self.wanted) - len(among(self.state.live(), self.wanted))

    @property
    def n_obsolete(self) -> int | None:
        """Keys that have a row or reject and are wanted no longer."""
        return None if self.wanted is None else len(self.state.live()) - len(among(self.state.live(), self.wanted))

    def _n(self, *, rows: bool) -> int | None:
        if self.wanted is None:
            return None
        counted = among(self.state.live(), self.wanted)
        n_rows = int(pc.sum(pc.equal(counted["kind"], ROWS)).as_py() or 0)
        return n_rows if rows else len(counted) - n_rows


def examine(root: str) -> list[Book]:
    """A book for each table that a run has begun. Raises StorageError."""
    return examine_tables(tables_of(root))


def examine_tables(tables: list[Table]) -> list[Book]:
    """A book for each of them. Raises StorageError."""
    with ThreadPoolExecutor(N_READING) as pool:
        books = [_examine_log(table, pool) for table in tables]
        files = [(book, file) for book in books for file in book.state.files.values()]
        n_bytes = 0
        with counting("verify", "files", len(files)) as counter:
            for (book, file), finding in zip(files, pool.map(lambda one: check_file(one[0].table, one[1]), files), strict=True):
                n_bytes += file.n_bytes
                book.findings.extend([finding] if finding else [])
                counter.advance(note=f"{n_bytes / 1e6:,.0f} MB")
    return books


def examine_outputs(root: str) -> list[Finding]:
    """What was begun and is not complete of the folders without rows."""
    found = []
    for output in all_outputs(root):
        if not output.is_complete():
            command = makes(output.name.split("/")[0])
            found.append(Finding("output", output.folder, "", f"is begun and not complete: run `{command}`"))
    return found


def all_outputs(root: str) -> list[Output]:
    """Every folder without rows that was begun. Raises StorageError."""
    return [output for folder in (HYPERNETWORKS, REPORTS, FIGURES) for output in outputs_of(root, folder)]


def makes(name: str) -> str:
    """The command that makes a table."""
    return f"video2lora {MAKES.get(name, name)}"


def check_file(table: Table, file: File) -> Finding | None:
    """Whether a committed file is what the log says it is."""
    data = read_bytes(f"{table.folder}/{file.path}")
    if data is None:
        return Finding("missing", table.folder, file.path, f"{file.n_rows} {file.kind} were committed in it")
    if (len(data), hashlib.sha256(data).hexdigest()) != (file.n_bytes, file.sha256):
        return Finding(
            "changed", table.folder, file.path, f"{len(data)} bytes, not the {file.n_bytes} with SHA-256 {file.sha256[:16]} committed"
        )
    spec = table.spec if file.kind == ROWS else REJECTS_BY_KEY
    keys = spec.keys_of(from_parquet(data, spec.key)).to_pylist()
    if len(keys) != file.n_rows or keys != list(file.keys):
        return Finding("keys", table.folder, file.path, f"{len(keys)} rows, whose keys are not the {len(file.keys)} that the log names")
    return None


def _examine_log(table: Table, pool: ThreadPoolExecutor) -> Book:
    """All but the files' contents."""
    entries = list(table.log.read())
    state = State().take(entries)
    wanted, findings = wanted_or_none(table, state)
    unnamed, n_unfinished = unnamed_files(table, state)
    findings += [*_check_entries(table, entries, pool), *_check_keys(table, entries), *unnamed]
    book = Book(table, state, wanted, findings, n_unfinished)
    findings += check_closed(book)
    return book


def wanted_or_none(table: Table, state: State) -> tuple[pa.ChunkedArray | None, list[Finding]]:
    """The keys that are wanted. If their file is not intact: they can be had from the log where they are just what is there."""
    try:
        return table.wanted(state), []
    except (StorageError, pa.ArrowException) as error:
        begun = state.begun or {}
        there = state.live()["key"]
        path = f"wanted/{begun['wanted']}.parquet"
        return (there if digest(there) == begun["wanted"] else None), [Finding("wanted", table.folder, path, str(error))]


def unnamed_files(table: Table, state: State) -> tuple[list[Finding], int]:
    """Files that the log does not name: findings, and how many are of a run that is not finished.

    List after the log was read: what an ended run wrote is in the log by then, or never will be.
    """
    findings, n_unfinished = [], 0
    for folder in ("shards", "rejects"):
        for name in names(f"{table.folder}/{folder}"):
            path, ours = f"{folder}/{name}", re.fullmatch(r"(\d{6,})-[0-9a-f]{32}\.parquet(\.[0-9a-f]{32}\.part)?", name)
            if path in state.files:
                continue
            if ours is None:
                findings.append(Finding("foreign", table.folder, path, "no run wrote a file of this name: move it away"))
            elif int(ours[1]) < state.attempt or (int(ours[1]) == state.attempt and state.is_complete):
                findings.append(
                    Finding("orphan", table.folder, path, f"run {int(ours[1])} has ended without committing it, or it was removed since")
                )
            else:
                n_unfinished += 1
    for folder in ("log", "wanted"):  # whose files have names of their own: what a kill left of one is a part
        parts = [f"{folder}/{name}" for name in names(f"{table.folder}/{folder}") if name.endswith(".part")]
        n_unfinished += 0 if state.is_complete else len(parts)
        detail = "a run was killed while it wrote it"
        findings += [Finding("orphan", table.folder, path, detail) for path in parts if state.is_complete]
    return findings, n_unfinished


def entry_path(number: int) -> str:
    """As `infra.log` names it, from the table's folder."""
    return f"log/{number:08d}.json"


def pack_path(number: int) -> str:
    return f"log/pack-{number:08d}.jsonl"


def _check_entries(table: Table, entries: list[Entry], pool: ThreadPoolExecutor) -> Iterator[Finding]:
    """Entries that are gone, and packs that do not hold the same entries."""
    n_packs = len(entries) // PACK
    raw = list(pool.map(lambda number: read_bytes(f"{table.folder}/{entry_path(number)}"), range(n_packs * PACK)))
    for pack in range(n_packs):
        alone = raw[pack * PACK : (pack + 1) * PACK]
        together = read_bytes(f"{table.folder}/{pack_path(pack)}")
        for number, data in enumerate(alone, pack * PACK):
            if data is None:
                yield Finding("entry", table.folder, entry_path(number), "is gone; its pack has it")
        if together is None:
            yield Finding("pack", table.folder, pack_path(pack), f"is gone; its {PACK} entries are there one by one")
        elif any(one not in (None, line) for one, line in zip(alone, together.split(b"\n"), strict=True)):
            yield Finding("pack", table.folder, pack_path(pack), "does not hold what its entries hold")
    later = [name for name in names(f"{table.folder}/log") if re.fullmatch(r"\d{8}\.json", name) and int(name[:8]) > len(entries)]
    if later and read_bytes(f"{table.folder}/{entry_path(len(entries))}") is None:
        detail = f"is gone, and {later[-1]} is not read for it: restore it, or all that was committed since is lost"
        yield Finding("entry", table.folder, entry_path(len(entries)), detail)


def _check_keys(table: Table, entries: list[Entry]) -> Iterator[Finding]:
    """Keys with two rows at once, and commits by a run that another one had ended. A row after a reject, or the reverse, was said anew."""
    place: dict[str, str] = {}  # of the row that counts
    files: dict[str, list[str]] = {}
    attempt = 0
    for number, entry in enumerate(entries):
        attempt = entry["attempt"] if entry["kind"] == "begin" else attempt
        if entry["attempt"] != attempt:
            detail = f"{entry['kind']} of run {entry['attempt']}, which run {attempt} had ended"
            yield Finding("stale", table.folder, entry_path(number), detail)
        for path in entry.get("remove", ()):
            for key in files.pop(path, ()):
                if place.get(key) == path:
                    del place[key]
        for file in entry.get("add", ()):
            path, keys = file["path"], file["keys"]
            twice = [key for key in keys if key in place] if file["kind"] == ROWS else []
            if twice:
                yield Finding("duplicate", table.folder, path, f"{len(twice)} keys, {twice[0]} first, are in {place[twice[0]]} too")
            if len(set(keys)) != len(keys):
                yield Finding("duplicate", table.folder, path, "a key is in it twice")
            files[path] = keys
            place.update(dict.fromkeys(keys, path))
        rejected = [key for file in entry.get("add", ()) if file["kind"] != ROWS for key in file["keys"]]
        for key in [*rejected, *(entry["keys"] if entry["kind"] == "void" else ())]:
            place.pop(key, None)


def check_closed(book: Book) -> Iterator[Finding]:
    """Whether every wanted key is there, and what was said when the books were closed still holds."""
    table, state, completed, wanted = book.table, book.state, book.state.completed, book.wanted
    if wanted is None:
        return
    command, begun = makes(table.name), state.begun or {}
    if book.n_pending:
        first = wanted.filter(pc.invert(pc.is_in(wanted, value_set=state.live()["key"])))[0]
        detail = f"{book.n_pending} of {len(wanted)} keys, {first} first, have neither row nor reject: run `{command}`"
        yield Finding("pending", table.folder, "", detail)
    elif not state.is_complete or completed is None:
        detail = f"every key is there, but run {state.attempt} of {begun.get('who')} has not closed its books: run `{command}`"
        yield Finding("open", table.folder, "", detail)
    else:
        counted = among(state.live(), wanted)
        rows = counted.filter(pc.equal(counted["kind"], ROWS))["key"]
        there, said = (
            (len(rows), len(counted) - len(rows), digest(rows)),
            tuple(completed[name] for name in ("n_rows", "n_rejects", "rows")),
        )
        if there != said:
            yield Finding("open", table.folder, "", f"closed with rows, rejects and digest {said}, and has {there}: run `{command}`")


def print_books(books: list[Book], findings: list[Finding]) -> None:
    """The counts of each table in a line, then the findings in a line each."""
    grid = Grid("table", "set")
    for name in ("wanted", "done", "rejected", "pending", "obsolete", "files", "MB"):
        grid.add_column(name, justify="right")
    grid.add_column("books")
    for book in books:
        n_wanted = (book.state.begun or {}).get("n_wanted")
        counts = [n_wanted, book.n_done, book.n_rejected, book.n_pending, book.n_obsolete, len(book.state.files)]
        n_bytes = sum(file.n_bytes for file in book.state.files.values())
        told = "closed" if not book.findings else f"{len(book.findings)} found"
        told += f"; {book.n_unfinished} files of a run that is not finished" if book.n_unfinished else ""
        shown = ["?" if n is None else f"{n:,}" for n in counts]
        grid.add_row(book.table.name, book.table.set, *shown, f"{n_bytes / 1e6:,.1f}", told)
    if books:
        console().print(grid)
    for finding in findings:
        print(finding.line())


def console() -> Console:
    """Standard output; where it is no terminal, wide enough that nothing is cut."""
    return Console(width=None if sys.stdout.isatty() else WIDE)
