"""The contract of `infra.objects`, as tests that a class runs on the kind of storage which its fixture `folder` names."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from infra import objects
from infra.errors import StorageError

LARGE = random.Random(7).randbytes((9 << 20) + 13)  # larger than what is read at once, and than what Ceph keeps in one piece


class Contract:
    def test_what_is_written_is_read_back_and_never_overwritten(self, folder: str) -> None:
        path = f"{folder}/a folder/ü+%20.json"
        assert objects.read_bytes(path) is None and objects.read_json(path) is None
        assert objects.write_new(path, b'{"n": 1}')
        assert not objects.write_new(path, b'{"n": 2}')
        assert objects.read_bytes(path) == b'{"n": 1}' and objects.read_json(path) == {"n": 1}

    def test_the_same_bytes_again_count_as_written(self, folder: str) -> None:
        assert objects.write_new(f"{folder}/a", LARGE)
        assert objects.write_new(f"{folder}/a", LARGE)
        assert not objects.write_new(f"{folder}/a", LARGE[:-1])
        assert not objects.write_new(f"{folder}/a", LARGE + b"x")
        assert objects.read_bytes(f"{folder}/a") == LARGE

    def test_an_empty_object_is_an_object(self, folder: str) -> None:
        assert objects.write_new(f"{folder}/empty", b"")
        assert objects.read_bytes(f"{folder}/empty") == b""
        assert not objects.write_new(f"{folder}/empty", b"x")

    def test_one_of_16_writers_wins(self, folder: str) -> None:
        for turn in range(5):
            path = f"{folder}/log/{turn}.json"
            with ThreadPoolExecutor(16) as pool:
                won = list(pool.map(lambda i, path=path: objects.write_new(path, b"%d" % i), range(16)))
            assert sum(won) == 1
            assert objects.read_bytes(path) == b"%d" % won.index(True)
        assert objects.names(f"{folder}/log") == [f"{turn}.json" for turn in range(5)], "something was left beside them"

    def test_names_are_those_right_in_the_folder(self, folder: str) -> None:
        assert objects.names(f"{folder}/none") == []
        for name in ("b", "a", "c/d", "bb/e"):
            objects.write_new(f"{folder}/x/{name}", b"1")
        assert objects.names(f"{folder}/x") == ["a", "b"]

    def test_folders_are_those_right_in_the_folder_that_hold_something(self, folder: str) -> None:
        assert objects.folders(f"{folder}/none") == []
        for name in ("b", "c/d/e", "c/f", "bb/g"):
            objects.write_new(f"{folder}/x/{name}", b"1")
        assert objects.folders(f"{folder}/x") == ["bb", "c"]
        objects.remove(f"{folder}/x/bb/g")
        assert objects.folders(f"{folder}/x") == ["c"]

    def test_removing_twice_is_removing_once(self, folder: str) -> None:
        objects.write_new(f"{folder}/a", b"1")
        objects.remove(f"{folder}/a")
        objects.remove(f"{folder}/a")
        assert objects.read_bytes(f"{folder}/a") is None
        assert objects.write_new(f"{folder}/a", b"2")

    def test_a_store_that_keeps_names_is_proven_to(self, folder: str) -> None:
        objects.prove_written_once(folder)
        assert objects.names(folder) == []

    def test_half_a_json_file_is_an_error_and_not_a_new_start(self, folder: str) -> None:
        objects.write_new(f"{folder}/a.json", b'{"n": ')
        with pytest.raises(StorageError, match=r"a\.json cannot be read"):
            objects.read_json(f"{folder}/a.json")
