"""A video forgotten: gone from every table and file, nothing else touched, books closed; and whoever was trained on it is named."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import sets
from infra.artifacts import TABLES
from infra.attempt import reject
from infra.config import SceneSettings
from infra.errors import SupersededError
from infra.forget import ORDER
from infra.objects import read_bytes, write_new
from infra.of_video import FORGOTTEN
from infra.parquet import to_parquet
from infra.storage import Table
from tests.infra.made_tables import IDS, RECIPE, content_hash, everything, make_examples, make_hypernetwork, make_root, make_tables, row

Command = Callable[..., Any]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("VIDEO2LORA_DATA", str(tmp_path / "data"))
    return make_root(tmp_path / "data")


def own_texts(i: int) -> set[str]:
    """What only rows of this video hold: its id, its address, its questions."""
    return {IDS[i], f"/{i}.mp4", content_hash(i), f"q{i}0", f"q{i}1", f"it is {i}"}


def files_holding(root: str, texts: set[str]) -> list[Path]:
    """Files of rows or rejects, committed or not, in which one of the texts stands."""
    found = []
    for path in sorted(Path(root).rglob("*.parquet")):
        if path.parent.name in ("shards", "rejects"):
            held = json.dumps(pq.read_table(path).to_pylist(), default=str)
            if any(text in held for text in texts) and FORGOTTEN not in held:
                found.append(path)
    return found


def others(tables: dict[str, list[dict[str, Any]]], i: int) -> dict[str, list[dict[str, Any]]]:
    """All rows but this video's, and but the reject that it left."""
    texts = own_texts(i)
    return {name: [one for one in rows if not any(text in json.dumps(one, default=str) for text in texts)] for name, rows in tables.items()}


def shards(root: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(root).rglob("shards/*.parquet")}


@pytest.mark.parametrize("i", [0, 2, 4])
def test_a_video_is_gone_from_every_table_and_nothing_else_is(root: str, command: Command, i: int) -> None:
    before, files = everything(root), shards(root)
    ran = command("forget", IDS[i], "--yes")
    assert ran.code == 0, ran.err
    after = everything(root)
    assert files_holding(root, own_texts(i)) == []
    assert others(after, i) == others(before, i)
    kept = [path for path, data in shards(root).items() if files.get(path) == data]
    assert len(kept) > len(files) / 3, "only the files that held it were written anew"
    assert {one["key"]: one["reason"] for one in after["videos"] if "reason" in one} == {
        "list.jsonl:9": "bad_row",
        f"{FORGOTTEN}{IDS[i]}": "forgotten",
    }
    assert all(table.is_complete() for table in sets.tables_of(root))
    assert command("verify").code == 0


def test_it_says_where_rows_were_and_asks_before_it_removes_them(root: str, command: Command) -> None:
    before = everything(root)
    ran = command("forget", IDS[1])
    assert ran.code == 2 and "--yes" in ran.err
    for line in ("/frames/uniform-12-384px-", "/targets/tiny-", "/answers/"):
        assert line in ran.out
    assert "1 rows and 1 rejects" in next(line for line in ran.out.splitlines() if "/targets/" in line)
    assert everything(root) == before


def test_every_table_has_its_turn() -> None:
    assert set(ORDER) == set(TABLES) and ORDER[-1] == "videos"


def test_measures_outlive_it(root: str, command: Command) -> None:
    command("forget", IDS[0], "--yes")
    targets = sets.made_targets(RECIPE, root)
    assert (targets.state().completed or {})["measures"] == {"tokens_per_s": 50.0, "n_engines": 1}


def test_forgotten_twice_is_forgotten_once(root: str, command: Command) -> None:
    command("forget", IDS[0], "--yes")
    versions = [table.state().version for table in sets.tables_of(root)]
    ran = command("forget", IDS[0], "--yes")
    assert ran.code == 0 and "no table holds a row or reject of" in ran.out
    assert [table.state().version for table in sets.tables_of(root)] == versions, "nothing was left to do"


def test_what_no_longer_counts_is_removed_too(root: str, command: Command) -> None:
    """Of a video that moved and one tried again, older rows lie in files beside those that count."""
    videos, frames = Table(root, "videos"), sets.frames_set(RECIPE, root)
    attempt = frames.begin({"again": 1}, IDS)
    attempt.void([IDS[2]])
    attempt.write([row(frames, video_id=IDS[2], sampling="/2.mp4")], [])
    attempt.complete()
    kept = videos.wanted().to_pylist()
    attempt = videos.begin({"again": 1}, kept)
    superseded = next(key for key in kept if key.startswith(IDS[2]))
    attempt.reopen([superseded])
    attempt.write([], [reject("manifest", superseded, "superseded", "/2.mp4 holds another now")])
    attempt.complete()
    before = everything(root)
    assert len(files_holding(root, {IDS[2]})) > 3
    assert command("forget", IDS[2], "--yes").code == 0
    assert files_holding(root, own_texts(2)) == []
    assert others(everything(root), 2) == others(before, 2)
    assert command("verify").code == 0


def test_what_a_killed_run_wrote_and_never_committed_is_removed(root: str, command: Command) -> None:
    frames = sets.frames_set(RECIPE, root)
    frames.begin({"more": 1}, IDS).writer().write([row(frames, video_id=IDS[0], sampling="late")], [])
    command("forget", IDS[0], "--yes")
    assert files_holding(root, own_texts(0)) == []


def test_a_run_that_is_writing_it_is_ended_and_others_go_on(root: str, command: Command) -> None:
    frames = sets.frames_set(RECIPE, root)
    running = frames.begin({"more": 1}, [*IDS, "f" * 20])
    elsewhere = Table(root, "frames", "another-set")
    sets.register(elsewhere, {})
    other = elsewhere.begin({}, ["f" * 20])
    command("forget", IDS[0], "--yes")
    with pytest.raises(SupersededError):
        running.write([row(frames, video_id="f" * 20)], [])
    assert not frames.is_complete(), "of its keys one is pending still"
    other.write([row(elsewhere, video_id="f" * 20)], [])
    other.complete()


def test_files_that_another_video_is_cut_from_stay(root: str, command: Command) -> None:
    videos = Table(root, "videos")
    cut = row(videos, video_id="a" * 20, version="v1", uri=f"{root}/0.mp4", start_s=1.0, end_s=2.0, split="train")
    attempt = videos.begin({"spans": 1}, [*videos.wanted().to_pylist(), videos.spec.key_of(cut)])
    attempt.write([cut], [])
    attempt.complete()
    command("forget", "aaaa", "--yes")
    assert f"{root}/0.mp4" in Table(root, "files").read()["uri"].to_pylist(), "the whole video is of this file too"
    assert content_hash(0) in sets.scenes_set(SceneSettings(), root).read()["content"].to_pylist()
    assert IDS[0] in videos.read()["video_id"].to_pylist()


KILLED = """
import sys, infra.objects, infra.log, infra.attempt, infra.forget
n_left = int(sys.argv[3])
def counted(change):
    def changing(*arguments):
        global n_left
        n_left -= 1
        if n_left < 0:
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)
        return change(*arguments)
    return changing
for module in (infra.log, infra.storage, infra.attempt):
    module.write_new = counted(module.write_new)
for module in (infra.attempt, infra.forget):
    module.remove = counted(module.remove)
infra.forget.forget(sys.argv[1], sys.argv[2])
"""


@pytest.mark.slow
def test_killed_at_any_change_and_run_again_it_finishes(tmp_path: Path) -> None:
    """kill -9 before the n-th file that it writes or removes."""
    reference = make_root(tmp_path / "reference")
    assert forget_in_child(reference, 10_000) == 0
    expected = {name: [str(one).replace(reference, "") for one in rows] for name, rows in everything(reference).items()}
    n_killed = 0
    for n in range(0, 200, 9):
        root = make_root(tmp_path / str(n))
        if forget_in_child(root, n) == 0:
            break
        n_killed += 1
        assert forget_in_child(root, 10_000) == 0
        assert files_holding(root, own_texts(1)) == []
        found = {name: [str(one).replace(root, "") for one in rows] for name, rows in everything(root).items()}
        assert found == expected
        assert all(table.is_complete() for table in sets.tables_of(root))
    assert n_killed >= 4


def forget_in_child(root: str, n: int) -> int:
    code = subprocess.run([sys.executable, "-c", KILLED, root, IDS[1], str(n)], capture_output=True, timeout=120, env=os.environ).returncode
    assert code in (0, -signal.SIGKILL)
    return code


def test_what_was_trained_on_it_is_named(root: str, command: Command) -> None:
    output = make_hypernetwork(root)
    for i, verdict in [(0, "split train"), (3, "split validation")]:
        ran = command("show", IDS[i])
        assert f"{output.folder}: trained on it: among the 4 examples, {verdict}" in ran.out
    for i in (2, 4):
        ran = command("forget", IDS[i], "--yes")
        assert "2 hypernetworks and checkpoints, 2 of them not trained on it" in ran.out, "no example of it, or of split test"
    for _ in range(2):
        ran = command("forget", IDS[0], "--yes")
        assert f"{output.folder}: trained on it: among the 4 examples" in ran.out
        assert "/checkpoints/step-00000100-0123abcd: trained on it" in ran.out
    assert "split is not known any more" in ran.out, "its row is gone, and the log still knows that it was there"


def test_reports_and_figures_that_hold_it_are_named(root: str, command: Command) -> None:
    """As what made them lies there, also a figure that was killed before its last cell. What holds others is not named."""
    outputs = {}
    for folder, label in ((sets.REPORTS, "report"), (sets.FIGURES, "sweep")):
        for i in (0, 1):
            outputs[folder, i] = output = sets.made_output(root, folder, label, {"of": i})
            output.begin({"of": i})
            rows = pa.table({"video_id": [IDS[i], IDS[3]], "answer": ["it", "it"]})
            if folder == sets.REPORTS:
                write_new(f"{output.folder}/rows.parquet", to_parquet(rows))
            for cell, of in (("12-384", [rows.to_pylist()[1]]), ("24-384", rows.to_pylist())):
                if folder == sets.FIGURES:
                    write_new(f"{output.folder}/cells/{cell}.json", json.dumps({"rows": of}, indent=1).encode())
    out = command("forget", IDS[0], "--yes").out
    assert f"{outputs[sets.REPORTS, 0].folder}: a report that shows it" in out
    assert f"{outputs[sets.FIGURES, 0].folder}: a figure that holds answers about it" in out
    assert not any(outputs[folder, 1].folder in out for folder in (sets.REPORTS, sets.FIGURES))


def test_what_was_trained_since_is_told_from_what_was_trained_before(root: str, command: Command) -> None:
    old = make_hypernetwork(root)
    command("forget", IDS[0], "--yes")
    new = make_hypernetwork(root)
    ran = command("forget", IDS[0], "--yes")
    assert f"{old.folder}: trained on it" in ran.out
    assert f"{new.folder}:" not in ran.out and "4 hypernetworks and checkpoints, 2 of them not trained on it" in ran.out


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ({}, "it does not say what it was trained on"),
        ({"made_from": {"stage": "import-checkpoint"}}, "it does not say what it was trained on"),
        ({"made_from": {"stage": "train"}}, "it does not name its examples"),
        ({"made_from": {"stage": "train", "inputs": {"examples": {"set": "x-1", "rows": "0"}}}}, "knows of no examples with digest 0"),
    ],
)
def test_where_the_lineage_is_missing_it_cannot_tell(root: str, command: Command, metadata: dict[str, Any], why: str) -> None:
    folder = Path(root) / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"metadata": metadata}))
    ran = command("forget", IDS[0], "--yes")
    assert f"{folder}: cannot tell: " in ran.out and why in ran.out


def test_examples_of_other_targets_are_no_part_of_it(root: str, command: Command) -> None:
    """The set of examples holds others now than when the hypernetwork was trained."""
    output = make_hypernetwork(root)
    examples = make_examples(root, 5)
    attempt = examples.begin({"fewer": 1}, [key for key in examples.wanted().to_pylist() if not key.startswith(IDS[0])])
    attempt.drop([key for key in attempt.state.live()["key"].to_pylist() if key.startswith(IDS[0])])
    attempt.complete()
    assert f"{output.folder}: trained on it" in command("show", IDS[0]).out


@pytest.mark.slow
def test_in_a_bucket(bucket: str, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.setenv("VIDEO2LORA_DATA", f"{bucket}/data")
    root = make_tables(f"{bucket}/data")
    output = make_hypernetwork(root)
    before = everything(root)
    orphan = sets.frames_set(RECIPE, root).begin({"more": 1}, IDS).writer().write([row(sets.frames_set(RECIPE, root), video_id=IDS[0])], [])
    ran = command("forget", IDS[0][:6], "--yes")
    assert ran.code == 0, ran.err
    assert f"{output.folder}: trained on it" in ran.out and "/checkpoints/step-00000100-0123abcd: trained on it" in ran.out
    assert others(everything(root), 0) == others(before, 0)
    assert read_bytes(f"{sets.frames_set(RECIPE, root).folder}/{orphan[0].path}") is None
    assert f"video {IDS[0]}, forgotten" in command("show", IDS[0]).out
    assert command("verify").code == 0
