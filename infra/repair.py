"""What `video2lora verify` found -> what is safe to do about it, done.

Removed: files that no log names, of runs that have ended. Written anew, from what is there: packs of the log, an entry that its pack has,
the file of wanted keys. Committed files that are lost (gone, or not the bytes that were committed) leave the table, so that their keys
are pending and the stage makes them again; for that a run is begun, which ends one that is writing the table now.

Nothing else is touched: not a file that no run wrote, nor a key that is there twice.
"""

import pyarrow as pa

from infra.books import LOST, STAYS, Book, Finding, check_closed, entry_path, examine_tables, pack_path, wanted_or_none
from infra.log import PACK
from infra.objects import read_bytes, remove, write_new
from infra.state import among


def repair(books: list[Book]) -> list[Finding]:
    """Repair what can be; says on standard output what was done; returns what is left to do. Raises StorageError, SupersededError."""
    return [finding for book in books if book.findings for finding in _repair(book)]


def _repair(book: Book) -> list[Finding]:
    """One table: its log first. What a wrong log says of files is no reason to touch them, so then all is looked at again."""
    in_order = sorted(book.findings, key=lambda one: one.kind != "entry")  # a pack is written from its entries
    if sum(_repair_log(book, finding) for finding in in_order):
        (book,) = examine_tables([book.table])
    left: list[Finding] = []
    for finding in book.findings:
        if finding.kind == "orphan":
            remove(f"{finding.folder}/{finding.path}")
            _say(finding, "removed")
        elif finding.kind in STAYS:
            left.append(finding)
    lost = [one for one in book.findings if one.kind in LOST]
    unknown = [one for one in book.findings if one.kind == "wanted"]
    if lost or unknown:
        book = _begin_anew(book, lost, unknown)
    return left + list(check_closed(book))


def _repair_log(book: Book, finding: Finding) -> bool:
    """Whether there was something to write anew."""
    if finding.kind == "entry" and _restore_entry(book, finding.path):
        _say(finding, "written anew, from its pack")
        return True
    if finding.kind == "pack":
        _write_pack(book, finding.path)
        _say(finding, "written anew, from its entries")
        return True
    return False


def _begin_anew(book: Book, lost: list[Finding], unknown: list[Finding]) -> Book:
    """A run of our own, which takes lost files out of the table and knows what is wanted: all that was, or else all that is there."""
    table, begun = book.table, book.state.begun or {}
    for finding in unknown:
        remove(f"{table.folder}/{finding.path}")
        how = (
            "from the keys that are there"
            if book.wanted is not None
            else "with the keys that are there, until the stage says what it wants"
        )
        _say(finding, f"written anew, {how}")
    attempt = table.begin(begun["asked"], (book.state.live()["key"] if book.wanted is None else book.wanted).combine_chunks())
    there = [one for one in lost if one.path in attempt.state.files]
    for finding in there:
        keys = among(attempt.state.live(), pa.array([finding.path]), column="path")["key"]
        attempt.void(keys.to_pylist())  # or what an earlier file said of them would count again
        _say(finding, f"taken out of the table; its {len(keys)} keys are to be made again")
    attempt.drop((), lost=[one.path for one in there])
    wanted, _ = wanted_or_none(table, attempt.state)
    after = Book(table, attempt.state, wanted, [], 0)
    if not after.n_pending and book.wanted is not None and book.state.is_complete:
        attempt.complete(measures=(book.state.completed or {})["measures"])
    return after


def _write_pack(book: Book, path: str) -> None:
    first = PACK * int(path.removesuffix(".jsonl")[-8:])
    entries = [read_bytes(f"{book.table.folder}/{entry_path(number)}") for number in range(first, first + PACK)]
    remove(f"{book.table.folder}/{path}")
    write_new(f"{book.table.folder}/{path}", b"\n".join(entry for entry in entries if entry is not None))


def _restore_entry(book: Book, path: str) -> bool:
    """Whether its pack has it."""
    number = int(path.removesuffix(".json")[-8:])
    pack = read_bytes(f"{book.table.folder}/{pack_path(number // PACK)}")
    return pack is not None and write_new(f"{book.table.folder}/{path}", pack.split(b"\n")[number % PACK])


def _say(finding: Finding, what: str) -> None:
    print(f"{finding.folder}/{finding.path}: {what}")
