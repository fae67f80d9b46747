"""What a SOURCE names lies in its roots, whatever a stranger wrote into it."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.config import Recipe, Where
from infra.errors import BadInputError
from infra.storage import Table
from pipeline import manifest
from pipeline.benchmarks.asking import Asked
from pipeline.benchmarks.asking import run as ask_benchmark
from pipeline.benchmarks.found import Folder
from pipeline.roots import Roots
from pipeline.sources import Source, read_source


@pytest.mark.parametrize(
    ("path", "address"),
    [("a.mp4", "/list/a.mp4"), ("/b/a.mp4", "/b/a.mp4"), ("s3://b/a.mp4", "s3://b/a.mp4"), ("a/../s3:/b.mp4", "/list/s3:/b.mp4")],
)
def test_addresses_that_are_taken(path: str, address: str) -> None:
    assert Roots("/list").resolve(path) == address


BAD = ("../a.mp4", "a/../../b.mp4", "http://host/a.mp4", "zip://a.mp4::s3://b/c.zip", "a\0.mp4", "s3://b/c/../a.mp4", "file://../a.mp4")


@pytest.mark.parametrize("path", BAD)
@pytest.mark.parametrize("folder", ["/list", "s3://list"])
@pytest.mark.parametrize("others", [None, ("/",)])
def test_addresses_that_are_not(path: str, folder: str, others: tuple[str, ...] | None) -> None:
    with pytest.raises(ValueError, match=r"leads out of|expected|is no path"):
        Roots(folder, others).resolve(path)


@pytest.mark.parametrize("path", ["/etc/passwd", "//etc/passwd", "file:///etc/passwd", "/proc/self/environ"])
def test_a_manifest_in_a_bucket_names_no_file_of_the_machine(path: str) -> None:
    with pytest.raises(ValueError, match="leads out of the folder s3://b/lists; VIDEO2LORA_ROOTS may name others"):
        Roots("s3://b/lists").resolve(path)
    assert Roots("s3://b/lists", ("/etc", "/proc")).resolve(path) == os.path.normpath(path.removeprefix("file://"))


def test_roots_that_are_named_are_all_that_there_is(tmp_path: Path) -> None:
    lists, clips, other = (tmp_path / name for name in ("lists", "clips", "clips-of-others"))
    for folder in (lists, clips, other):
        folder.mkdir()
    (clips / "out.mp4").symlink_to(other / "a.mp4")
    roots = Roots(str(lists), (str(clips), "s3://b/clips"))
    for path in (f"{clips}/a.mp4", f"{clips}/deep/a.mp4", f"{lists}/a.mp4", "s3://b/clips/a.mp4"):
        assert roots.resolve(path) == path
    for path in (
        f"{other}/a.mp4",
        f"{clips}/../lists-of-others/a.mp4",
        f"{clips}/out.mp4",
        "/a.mp4",
        "s3://b/clips-of-others/a.mp4",
        "s3://b/a",
    ):
        with pytest.raises(ValueError, match="leads out of the folder"):
            roots.resolve(path)


@pytest.mark.parametrize("allowed", ["{clips},", ",{clips}", "{clips}, ,", " {clips} ", "s3://b/clips, {clips}", ",", " ", ""])
def test_a_comma_too_many_opens_nothing(allowed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists, clips, here = (tmp_path / name for name in ("lists", "clips", "here"))
    for folder in (lists, clips, here):
        folder.mkdir()
    monkeypatch.chdir(here)
    roots = Source(str(lists / "list.jsonl"), str(lists), [], allowed.format(clips=clips)).roots
    assert roots.resolve("a.mp4") == f"{lists}/a.mp4"
    with pytest.raises(ValueError, match="leads out of the folder"):
        roots.resolve(f"{here}/a.mp4")
    if "{clips}" in allowed:
        assert roots.resolve(f"{clips}/a.mp4") == f"{clips}/a.mp4"
    else:
        with pytest.raises(ValueError, match="leads out of the folder"):
            roots.resolve(f"{clips}/a.mp4")


@pytest.fixture
def stranger(tmp_path: Path) -> tuple[Path, Path]:
    """A folder that was downloaded, and a file of the machine that its links lead to."""
    private, downloaded = tmp_path / "private", tmp_path / "downloaded"
    for folder in (private, downloaded):
        folder.mkdir()
    (private / "a.mp4").write_bytes(b"what nobody else may see")
    (downloaded / "own.mp4").write_bytes(b"a clip")
    (downloaded / "link.mp4").symlink_to(private / "a.mp4")
    (downloaded / "folder").symlink_to(private)
    (downloaded / "inside.mp4").symlink_to("own.mp4")
    return downloaded, private


def rejected(where: Where) -> dict[str, str]:
    """Detail of each row of a manifest that is a bad row, by its key's end."""
    rows = Table(where.data, "videos").read_rejects().to_pylist()
    assert {row["reason"] for row in rows} <= {"bad_row", "duplicate"}
    return {os.path.basename(row["key"]): row["detail"] for row in rows if row["reason"] == "bad_row"}


@pytest.mark.parametrize("kind", ["folder", "jsonl", "parquet"])
def test_links_lead_out_of_no_source(kind: str, stranger: tuple[Path, Path], tmp_path: Path) -> None:
    downloaded, private = stranger
    source = downloaded
    rows = [{"uri": name} for name in ("own.mp4", "link.mp4", "folder/a.mp4", "inside.mp4", "../private/a.mp4")]
    if kind == "jsonl":
        source = downloaded / "list.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        source = downloaded / "list.parquet"
        pq.write_table(pa.Table.from_pylist(rows), source)
    where = Where(data=str(tmp_path / "data"))
    manifest.run(str(source), Recipe(), where)
    videos = Table(where.data, "videos").read().to_pylist()
    assert [os.path.basename(row["uri"]) for row in videos] == (["inside.mp4"] if kind == "folder" else ["own.mp4"])
    bad = rejected(where)
    assert len(bad) == (2 if kind == "folder" else 3)
    assert all("leads out of the folder" in detail for detail in bad.values())

    allowed = Where(data=str(tmp_path / "data of those who may"), roots=str(private))
    manifest.run(str(source), Recipe(), allowed)
    assert len(rejected(allowed)) == (0 if kind == "folder" else 1)  # `..` leads out all the same
    assert len(Table(allowed.data, "videos").read()) == 2


def test_linked_folders_are_followed_each_once(tmp_path: Path) -> None:
    """Loops are none; a folder outside is a reject that nobody looks into, unless what is there may be named."""
    inside, outside = tmp_path / "clips", tmp_path / "outside"
    for folder, name in ((inside / "real", "x.mp4"), (outside, "y.mp4")):
        folder.mkdir(parents=True)
        (folder / name).write_bytes(name.encode())
    for link, to in (("real/up", inside), ("again", inside / "real"), ("out", outside), ("out too", outside)):
        (inside / link).symlink_to(to)
    (outside / "back").symlink_to(inside)
    (inside / "all").symlink_to("/")
    rows = read_source(str(inside)).rows
    assert sorted(os.path.basename(row.path) for row in rows if not row.problem) == ["x.mp4", "x.mp4"], "real/ and a link to it"
    closed = {os.path.basename(row.key): row.problem for row in rows if row.problem}
    assert closed.keys() == {"out", "out too"} and all("leads out of the folder" in why for why in closed.values())
    open_to_it = read_source(str(inside), str(outside))
    names = sorted(os.path.basename(row.path) for row in open_to_it.rows if not row.problem)
    assert names == ["x.mp4", "x.mp4", "y.mp4"], "each link's folder once, and no way back"
    assert all(open_to_it.roots.resolve(row.path) for row in open_to_it.rows)


def test_keys_of_a_bucket_stay_as_they_are() -> None:
    for key in ("a//x.mp4", "a/ x.mp4", "s3:/x.mp4"):
        assert Roots("s3://b/clips").resolve(f"./{key}") == f"s3://b/clips/{key}"


def test_questions_and_benchmarks_lead_out_neither(stranger: tuple[Path, Path], tmp_path: Path) -> None:
    downloaded, private = stranger
    asked = downloaded / "asked.jsonl"
    names = ("own.mp4", "link.mp4", f"{private}/a.mp4", "../private/a.mp4")
    asked.write_text("".join(json.dumps({"uri": name, "question": "What?", "references": ["it"]}) + "\n" for name in names))
    where = Where(data=str(tmp_path / "data"), roots=str(downloaded))
    ask_benchmark(Asked("jsonl", (str(asked),)), Recipe(), where)
    assert [os.path.basename(row["uri"]) for row in Table(where.data, "videos").read().to_pylist()] == ["own.mp4"]
    told = [row["detail"] for row in Table(where.data, "questions").read_rejects().to_pylist()]
    assert len(told) == 3 and all("leads out of" in one for one in told)
    with pytest.raises(BadInputError, match="leads out of the folder"):
        Folder(str(downloaded)).find(["link"])
