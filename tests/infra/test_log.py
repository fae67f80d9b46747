"""The numbered log: one order for all, entries that are never lost, packs that change nothing but the number of requests."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.errors import StorageError
from infra.log import PACK, Log

REPOSITORY = Path(__file__).parents[2]


def filled(folder: Path, n: int) -> Log:
    log = Log(str(folder))
    for number in range(n):
        assert log.append({"n": number}, number=number)
    return log


def numbers(log: Log, start: int = 0) -> list[int]:
    return [entry["n"] for entry in log.read(start)]


@pytest.mark.parametrize("n", [0, 1, 2, PACK - 1, PACK, PACK + 1, 2 * PACK + 5])
def test_entries_come_back_in_order(tmp_path: Path, n: int) -> None:
    log = filled(tmp_path / "log", n)
    assert numbers(log) == list(range(n))
    assert log == Log(str(tmp_path / "log")), "a log is its folder and nothing else"


def test_it_is_read_from_any_entry_on(tmp_path: Path) -> None:
    n = 2 * PACK + 5
    log = filled(tmp_path / "log", n)
    for start in (1, PACK - 1, PACK, PACK + 1, 2 * PACK, n - 1, n, n + 3):
        assert numbers(log, start) == list(range(start, n)), start


def test_a_number_is_taken_once(tmp_path: Path) -> None:
    log = filled(tmp_path / "log", 1)
    assert not log.append({"n": "another"}, number=0)
    assert numbers(log) == [0]


def append_all(log: Log, who: str, n: int) -> None:
    """n entries of one writer, each at the first number that it can have."""
    at = 0
    for mine in range(n):
        while not log.append({"who": who, "mine": mine}, number=at):
            at += 1


def assert_one_order(log: Log, n_writers: int, n: int) -> None:
    entries = list(log.read())
    assert len(entries) == n_writers * n
    for who in {entry["who"] for entry in entries}:
        assert [entry["mine"] for entry in entries if entry["who"] == who] == list(range(n)), who


def test_of_many_threads_one_has_each_number(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "log"))
    with ThreadPoolExecutor(7) as pool:
        list(pool.map(lambda i: append_all(log, str(i), 11), range(7)))
    assert_one_order(log, 7, 11)


def test_of_many_processes_one_has_each_number(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom infra.log import Log\n"
        "log, at, writers = Log(sys.argv[1]), 0, []\n"
        "for _ in range(4):\n"
        "    writers.append(os.fork())\n"
        "    if writers[-1] == 0:\n"
        "        for mine in range(17):\n"
        "            while not log.append({'who': str(os.getpid()), 'mine': mine}, number=at): at += 1\n"
        "        os._exit(0)\n"
        "sys.exit(any(os.waitpid(writer, 0)[1] for writer in writers))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path / "log")], cwd=REPOSITORY, timeout=60)
    assert ran.returncode == 0
    assert_one_order(Log(str(tmp_path / "log")), 4, 17)


def test_who_reads_while_others_write_sees_a_beginning_of_it(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "log"))
    writer = threading.Thread(target=append_all, args=(log, "w", PACK + 20))
    writer.start()
    seen = []
    while writer.is_alive():
        seen.append([entry["mine"] for entry in log.read()])
    writer.join()
    assert seen
    assert all(found == list(range(len(found))) for found in seen)


def test_a_pack_holds_the_same_entries_and_is_what_is_read(tmp_path: Path) -> None:
    log = filled(tmp_path, PACK + 1)
    pack = tmp_path / "pack-00000000.jsonl"
    assert [json.loads(line)["n"] for line in pack.read_bytes().splitlines()] == list(range(PACK))
    (tmp_path / "00000005.json").unlink()
    assert numbers(log) == list(range(PACK + 1)), "one request instead of 64"


@pytest.mark.parametrize("missing", [[0], [1], [0, 1]])
def test_without_a_pack_its_entries_are_read(tmp_path: Path, missing: list[int]) -> None:
    log = filled(tmp_path, 2 * PACK + 3)
    for pack in missing:
        (tmp_path / f"pack-{pack:08d}.jsonl").unlink()
    assert numbers(log) == list(range(2 * PACK + 3))


def test_a_damaged_pack_is_an_error_and_the_entries_beside_it_are_the_log(tmp_path: Path) -> None:
    log = filled(tmp_path, PACK)
    pack = tmp_path / "pack-00000000.jsonl"
    pack.write_bytes(b"\n".join(pack.read_bytes().splitlines()[:-1]))
    with pytest.raises(StorageError, match=r"63 entries, expected 64.*remove it"):
        numbers(log)
    pack.unlink()
    assert numbers(log) == list(range(PACK))


@pytest.mark.parametrize("data", [b"", b'{"n": 2', b"\xff\xfe", b"[2]", b"2"])
def test_a_damaged_entry_is_an_error_and_never_an_end(tmp_path: Path, data: bytes) -> None:
    log = filled(tmp_path, 4)
    (tmp_path / "00000002.json").write_bytes(data)
    with pytest.raises(StorageError, match=r"00000002\.json"):
        numbers(log)
    assert os.path.getsize(tmp_path / "00000002.json") == len(data), "nothing is mended in passing"
