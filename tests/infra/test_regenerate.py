"""Adapters after a promotion: which are stale, and how they are made anew: most used first, beside the old ones, and all accounted for."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from infra.collection import CATALOGUE
from infra.errors import BadInputError
from infra.hypernetworks import adapters_digest, address_of, identity
from infra.internalize import Making, run_many
from infra.regenerate import beside, read_wanted
from infra.uses import USES, count_use, read_uses, uses_of
from video2lora import api
from video2lora.checkpoint import hypernetwork_hash, load_hypernetwork, read_metadata, save_hypernetwork

Command = Callable[..., Any]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with two hypernetworks: the one that ships, and it with other weights."""
    shipped, there = Path(address_of("tiny")), tmp_path / "data/hypernetworks"
    shutil.copytree(shipped, there / "old")
    hypernetwork = load_hypernetwork(shipped)
    with torch.no_grad():
        for parameter in hypernetwork.parameters():
            parameter.mul_(1.01)
    save_hypernetwork(hypernetwork, there / "new", metadata=read_metadata(shipped))
    monkeypatch.setenv("VIDEO2LORA_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # away, and nothing here needs it
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def made_collection(made_clips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three adapters by the one that ships."""
    using = api.load("tiny")
    making = Making(using=using, frames_per_chunk=3, max_rank=None, pictures_per_s=1.0, stored_as=using.vlm.dtype, self_contained=True)
    folder = tmp_path_factory.mktemp("made") / "adapters"
    run_many([str(clip) for clip in made_clips], folder, making, batch_size=3)
    return folder


@pytest.fixture
def collection(root: Path, made_collection: Path, made_clips: list[Path], clips: list[Path], tmp_path: Path) -> Path:
    """The same in this test's own folder, of its own clips."""
    folder = Path(shutil.copytree(made_collection, tmp_path / "adapters"))
    own = {str(there): str(here) for there, here in zip(made_clips, clips, strict=True)}
    write(folder, [row | {"uri": own[row["uri"]]} for row in rows(folder).values()])
    return folder


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema=CATALOGUE), folder / "catalogue.parquet")


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    """The catalogue's, by id, in the order in which they were made."""
    found = pq.read_table(folder / "catalogue.parquet").to_pylist()
    return {row["video_id"]: row for row in sorted(found, key=lambda row: row["created_at"])}


def rejects(folder: Path) -> dict[str, tuple[str, str]]:
    path = folder / "rejects.parquet"
    return {row["key"]: (row["reason"], row["detail"]) for row in pq.read_table(path).to_pylist()} if path.exists() else {}


def test_the_digest_of_adapters_is_told_without_reading_weights(root: Path) -> None:
    for name in ("old", "new"):
        folder = root / "hypernetworks" / name
        assert adapters_digest(identity(str(folder), named_by="test")) == hypernetwork_hash(folder)


def test_a_collection_is_regenerated_by_the_champion(command: Command, collection: Path, root: Path, clips: list[Path]) -> None:
    assert command("stale", collection).out == (f"{collection}: VLM tiny has no champion, so nothing is stale; of 3 adapters, 3 by tiny\n")
    assert "promote one, or name a hypernetwork" in command("regenerate", collection).err
    command("promote", "old")
    assert command("stale", collection).out == f"{collection}: 3 adapters, 3 by the champion old, none stale\n"
    assert "already; nothing to do" in command("regenerate", collection).out
    command("promote", "new")
    assert command("stale", collection).out == f"{collection}: 3 adapters, 0 by the champion new, 3 stale: 3 by old\n"

    least, most, middle = sorted(rows(collection))
    for video_id, n_uses in ((most, 3), (middle, 1)):
        for _ in range(n_uses):
            count_use(collection, video_id)
    said = command("regenerate", collection, "--batch-size", 1)
    digest = hypernetwork_hash(root / "hypernetworks/new")
    made = collection.with_name(f"adapters-{digest[:8]}")
    assert said.code == 0 and said.out == f"3 made; 3 in {made / 'catalogue.parquet'}\n"
    assert list(rows(made)) == [most, middle, least]
    old, new = rows(collection), rows(made)
    for video_id, row in new.items():
        assert row["hypernetwork_digest"] == digest != old[video_id]["hypernetwork_digest"]
        assert {name: row[name] for name in ("uri", "sampling", "n_chunks", "rank")} == {
            name: old[video_id][name] for name in ("uri", "sampling", "n_chunks", "rank")
        }
        assert row["n_chunks"] > 1
    before, now = (json.loads((folder / "made.json").read_text()) for folder in (collection, made))
    assert {name for name in now if now[name] != before[name]} == {"hypernetwork_digest"}
    assert api.load_adapter(made / most).provenance["hypernetwork"] == str(root / "hypernetworks/new")
    assert uses_of(made) == Counter({most: 3, middle: 1}), "who is regenerated next is ordered by them too"

    found = json.loads(command("stale", collection, made, "--json").out)
    assert [(one["n_by_champion"], one["n_by_other"]) for one in found] == [(0, {"old": 3}), (3, {})]
    assert "complete, all 3 adapters by" in command("regenerate", collection).out
    shutil.rmtree(made / most)  # as if the run had been killed
    (made / "catalogue.parquet").unlink()
    assert command("regenerate", collection).out.startswith("1 made, 2 there already; 3 in ")
    command("rollback")
    assert (
        command("regenerate", made).out.startswith("3 made")
        and command("stale", beside(made, hypernetwork_hash(Path(address_of("tiny"))), before=now["hypernetwork_digest"])).code == 0
    )


def test_clips_that_are_gone_or_others_by_now_are_rejects(command: Command, collection: Path, root: Path, clips: list[Path]) -> None:
    third = next(video_id for video_id, row in rows(collection).items() if row["uri"] == str(clips[2]))
    clips[0].unlink()
    clips[1].write_bytes(clips[1].read_bytes() + b"more")
    unknown = [row | {"uri": None} if row["video_id"] == third else row for row in rows(collection).values()]
    write(collection, unknown)
    made = collection.with_name("made")
    said = command("regenerate", collection, "-o", made, "--hypernetwork", root / "hypernetworks/new")
    assert said.code == 3 and "3 of 3 gave no adapter: see " in said.err
    assert {key: reason for key, (reason, _) in rejects(made).items()} == {
        str(clips[0]): "missing", str(clips[1]): "superseded", third: "missing",
    }  # fmt: skip
    assert rejects(made)[third][1] == "no address of it is known"
    assert rows(made) == {}, "the other video that lies there now is none of these"


def test_a_collection_is_never_overwritten(command: Command, collection: Path, root: Path) -> None:
    before = {path: path.read_bytes() for path in collection.rglob("*") if path.is_file()}
    said = command("regenerate", collection, "-o", collection, "--hypernetwork", root / "hypernetworks/new")
    assert said.code == 4 and "was made by something else: hypernetwork_digest" in said.err
    assert {path: path.read_bytes() for path in collection.rglob("*") if path.is_file()} == before


def test_asking_an_adapter_of_a_collection_counts_a_use(command: Command, collection: Path) -> None:
    first, second, _ = sorted(rows(collection))
    for video_id in (first, first, second):
        assert command("ask", collection, "What is it?", "--video", video_id, "--max-new-tokens", 1).code == 0
    assert command("ask", collection / first, "What is it?", "--max-new-tokens", 1).code == 0  # by its own folder: of no collection
    assert uses_of(collection) == Counter({first: 2, second: 1})
    (collection / USES).unlink()
    (collection / USES).mkdir()  # nobody, root included, can write to it
    said = command("ask", collection, "What is it?", "--video", first, "--max-new-tokens", 1)
    assert said.code == 0 and said.out and f"note: uses of {collection} are not counted: Is a directory" in said.err


def test_uses_add_up_however_many_count_at_once_and_a_torn_line_costs_itself(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: count_use(tmp_path, f"v{i % 3}"), range(60)))
    with (tmp_path / USES).open("a") as file:
        file.write('\n{"video_id": "v1", "n_us')
    count_use(tmp_path, "v1")
    assert uses_of(tmp_path) == Counter({"v0": 20, "v1": 21, "v2": 20})
    assert uses_of(tmp_path / "none") == Counter()


def test_uses_may_come_from_those_who_serve(tmp_path: Path) -> None:
    told = [{"video_id": "a", "n_uses": 3}, {"video_id": "b", "n_uses": 0}, {"video_id": "a", "n_uses": 2}]
    (tmp_path / "uses.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in told))
    pq.write_table(pa.Table.from_pylist(told), tmp_path / "uses.parquet")
    for name in ("uses.jsonl", "uses.parquet"):
        assert read_uses(tmp_path / name) == Counter({"a": 5, "b": 0})
    for name, text in (
        ("bad.jsonl", "{"),
        ("bad.parquet", "x"),
        ("other.jsonl", '{"video_id": "a"}'),
        ("less.jsonl", '{"video_id": "a", "n_uses": -1}'),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(BadInputError, match=r"--uses: .*expected"):
            read_uses(tmp_path / name)
    with pytest.raises(BadInputError, match=r"--uses: .*none\.jsonl"):
        read_uses(tmp_path / "none.jsonl")


def test_ones_own_table_counts_beside_what_was_counted(tmp_path: Path) -> None:
    catalogue = [dict.fromkeys(CATALOGUE.names) | {"video_id": name} for name in "abc"]
    write(tmp_path, catalogue)
    (tmp_path / "made.json").write_text("{}")
    for _ in range(2):
        count_use(tmp_path, "b")
    (tmp_path / "own.jsonl").write_text('{"video_id": "c", "n_uses": 3}\n{"video_id": "gone", "n_uses": 9}')
    assert [row["video_id"] for row in read_wanted(tmp_path, tmp_path / "own.jsonl").rows] == ["c", "b", "a"]


def test_a_new_collection_is_named_by_its_maker() -> None:
    assert beside(Path("/some/clips"), "0123456789", before="0123abcdef") == Path("/some/clips-01234567")
    assert beside(Path("/some/clips-0123abcd/"), "76543210ff", before="0123abcdef") == Path("/some/clips-76543210")
    assert beside(Path("/some/clips-20240101"), "76543210ff", before="0123abcdef") == Path("/some/clips-20240101-76543210"), "a date"
    assert beside(Path("/some/clips-"), "76543210ff", before="") == Path("/some/clips--76543210")


def test_the_folder_that_one_is_in_has_a_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "clips" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert beside(Path("."), "0123456789", before="") == tmp_path / "clips" / "inner-01234567"
    assert beside(Path(".."), "0123456789", before="") == tmp_path / "clips-01234567"
    assert beside(Path("../inner"), "0123456789", before="") == tmp_path / "clips" / "inner-01234567"
