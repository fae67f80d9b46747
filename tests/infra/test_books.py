"""Books that close, and each kind of damage found, named by its file, and mended where that is safe."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra import sets
from infra.log import PACK
from infra.stage import Order
from infra.storage import Table
from tests.infra.made_tables import IDS, RECIPE, everything, make_frames, make_root, make_targets, row

Command = Callable[..., Any]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("VIDEO2LORA_DATA", str(tmp_path / "data"))
    return make_root(tmp_path / "data")


@pytest.fixture
def frames(root: str) -> Table:
    return sets.frames_set(RECIPE, root)


def shards(table: Table) -> list[Path]:
    return sorted((Path(table.folder) / "shards").iterdir())


def test_books_that_close(root: str, command: Command) -> None:
    ran = command("verify")
    assert (ran.code, ran.out.strip().splitlines()[-1]) == (0, f"{root}: all books close")
    (line,) = [line for line in ran.out.splitlines() if " frames " in line]
    numbers = [cell.strip() for cell in line.strip("│").split("│")][2:7]
    assert numbers == ["5", "4", "1", "0", "0"], "wanted, done, rejected, pending, obsolete"


def remove_shard(table: Table) -> Path:
    shards(table)[0].unlink()
    return shards(table)[0].parent


def change_a_byte(table: Table) -> Path:
    path = shards(table)[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def cut_short(table: Table) -> Path:
    path = shards(table)[0]
    path.write_bytes(path.read_bytes()[:-1])
    return path


@pytest.mark.parametrize(("damage", "says"), [(remove_shard, "missing"), (change_a_byte, "changed"), (cut_short, "changed")])
def test_a_lost_file_is_found_and_its_rows_are_made_again(
    root: str, frames: Table, command: Command, damage: Callable[[Table], Path], says: str
) -> None:
    before = everything(root)
    damage(frames)
    ran = command("verify")
    assert ran.code == 6 and "the books do not close, 1 finding" in ran.err
    assert f": {says}: " in ran.out and "/shards/" in ran.out
    assert frames.is_complete(), "without --repair nothing is touched"

    ran = command("verify", "--repair")
    assert ran.code == 6 and "taken out of the table; its 2 keys are to be made again" in ran.out
    assert "2 of 5 keys" in ran.out and "run `video2lora frames`" in ran.out
    assert len(frames.read()) == 2

    make_frames(root, 5)
    assert command("verify").code == 0
    assert everything(root) == before


def test_a_lost_file_of_rejects(root: str, frames: Table, command: Command) -> None:
    (path,) = (Path(frames.folder) / "rejects").iterdir()
    path.unlink()
    assert command("verify", "--repair").code == 6
    make_frames(root, 5)
    assert command("verify").code == 0
    assert frames.n_rejects() == 1


def test_a_lost_file_whose_rows_nobody_wants_leaves_the_books_closed(root: str, frames: Table, command: Command) -> None:
    frames.begin({"inputs": "fewer"}, [IDS[3], IDS[4]]).complete(measures={"n": 3})
    remove_shard(frames) if IDS[0] in frames.state().files[f"shards/{shards(frames)[0].name}"].keys else shards(frames)[1].unlink()
    assert command("verify").code == 6
    assert command("verify", "--repair").code == 0
    completed = frames.state().completed
    assert completed is not None and completed["measures"] == {"n": 3} and frames.is_complete()
    assert command("verify").code == 0


def test_orphans_of_ended_runs_are_removed_and_no_other_file(root: str, frames: Table, command: Command) -> None:
    folder = Path(frames.folder)
    old = frames.state()
    orphan = frames.begin({"again": 1}, IDS).writer().write([row(frames, video_id="x")], [])[0].path
    last = frames.begin({"again": 2}, IDS)
    begun = last.writer().write([row(frames, video_id="y")], [])[0].path
    assert old.version < last.state.version
    (folder / "shards" / "notes.txt").write_text("mine")
    ran = command("verify")
    assert ran.code == 6
    assert f"{orphan}: orphan" in ran.out and "shards/notes.txt: foreign" in ran.out
    assert begun not in ran.out and "1 files of a run that is not finished" in ran.out

    ran = command("verify", "--repair")
    assert ran.code == 6 and "left:" in ran.out and "notes.txt" in ran.out
    assert not (folder / orphan).exists()
    assert (folder / begun).exists() and (folder / "shards" / "notes.txt").exists()
    (folder / "shards" / "notes.txt").unlink()
    last.complete()
    assert f"{begun}: orphan" in command("verify").out, "once the books are closed, nobody can commit it any more"
    assert command("verify", "--repair").code == 0
    assert command("verify").code == 0 and not (folder / begun).exists()


def test_a_place_without_tables_does_not_pass_for_closed_books(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEO2LORA_DATA", str(tmp_path / "misspelt"))
    ran = command("verify")
    assert ran.code == 3 and "misspelt: no table is there; VIDEO2LORA_DATA names the folder or bucket" in ran.err
    assert "no table is there" in command("ls").err
    assert not (tmp_path / "misspelt").exists()


@pytest.mark.parametrize("folder", ["log", "wanted", "shards", "rejects"])
def test_parts_that_a_kill_left(frames: Table, command: Command, folder: str) -> None:
    part = Path(frames.folder, folder, f"{frames.state().attempt:06d}-{'a' * 32}.parquet.{'b' * 32}.part")
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(b"half")
    ran = command("verify")
    assert ran.code == 6 and f"{folder}/{part.name}: orphan" in ran.out
    assert command("verify", "--repair").code == 0 and not part.exists()


def test_a_copy_of_a_shard_is_foreign(frames: Table, command: Command) -> None:
    shutil.copy(shards(frames)[0], shards(frames)[0].with_name("copy.parquet"))
    ran = command("verify", "--repair")
    assert ran.code == 6 and "copy.parquet: foreign" in ran.out
    assert len(frames.read()) == 4


def test_pending_keys(root: str, frames: Table, command: Command) -> None:
    frames.begin({"more": 1}, [*IDS, "f" * 16])
    ran = command("verify")
    assert ran.code == 6
    assert f"{frames.folder}: pending: 1 of 6 keys, {'f' * 16} first" in ran.out


def test_a_run_killed_before_it_closed_its_books(root: str, frames: Table, command: Command) -> None:
    frames.begin({"more": 1}, IDS)
    ran = command("verify", "--repair")
    assert ran.code == 6 and ": open: every key is there" in ran.out
    make_frames(root, 5)
    assert command("verify").code == 0


def log_entry(table: Table, entry: dict[str, Any]) -> None:
    """As a faulty program might write it."""
    state = table.state()
    assert table.log.append({"attempt": state.attempt, **entry}, number=state.version)


def test_a_key_in_two_files_is_found(root: str, frames: Table, command: Command) -> None:
    state = frames.state()
    first = next(file for file in state.files.values() if file.kind == "rows")
    copy = first.path.replace(first.path[-12:-8], "0000")
    shutil.copy(f"{frames.folder}/{first.path}", f"{frames.folder}/{copy}")
    log_entry(frames, {"kind": "commit", "add": [{**first.described(), "path": copy}], "remove": []})
    frames.begin(state.begun["asked"], IDS).complete()
    ran = command("verify")
    assert ran.code == 6
    assert f"{copy}: duplicate: 2 keys, {first.keys[0]} first, are in {first.path} too" in ran.out
    assert command("verify", "--repair").code == 6, "which of the two is right is not for a program to say"


def test_a_reject_that_was_tried_again_is_no_duplicate(root: str, frames: Table, command: Command) -> None:
    attempt = frames.begin({"again": 1}, IDS)
    attempt.reopen([IDS[2], IDS[0]])
    attempt.write([row(frames, video_id=IDS[2])], [])
    attempt.write([], [{"stage": "frames", "key": IDS[0], "reason": "near_duplicate", "detail": ""}])
    attempt.complete()
    assert command("verify").code == 0


def test_a_commit_of_a_run_that_had_ended_is_found(root: str, frames: Table, command: Command) -> None:
    stale = frames.begin({"a": 1}, IDS)
    frames.begin({"b": 1}, IDS)
    log_entry(frames, {"kind": "void", "keys": [], "attempt": stale.number})
    ran = command("verify")
    assert ran.code == 6 and f"stale: void of run {stale.number}, which run {stale.number + 1} had ended" in ran.out


def test_a_log_that_says_another_number_of_rows(root: str, frames: Table, command: Command) -> None:
    state = frames.state()
    file = next(one for one in state.files.values() if one.kind == "rows")
    log_entry(frames, {"kind": "commit", "add": [], "remove": [file.path]})
    wrong = {**file.described(), "keys": [*file.keys, "f" * 16], "n_rows": 3}
    log_entry(frames, {"kind": "commit", "add": [wrong], "remove": []})
    ran = command("verify")
    assert ran.code == 6 and f"{file.path}: keys: 2 rows, whose keys are not the 3 that the log names" in ran.out


def test_books_closed_on_other_rows_than_there_are(root: str, frames: Table, command: Command) -> None:
    state = frames.state()
    completed = {name: value for name, value in (state.completed or {}).items() if name != "number"}
    log_entry(frames, {**completed, "n_rows": 3})
    ran = command("verify")
    assert ran.code == 6 and "closed with rows, rejects and digest (3, 1, " in ran.out


@pytest.mark.parametrize("remove", [True, False], ids=["gone", "changed"])
def test_wanted_keys_are_written_anew_from_what_is_there(root: str, frames: Table, command: Command, remove: bool) -> None:
    (path,) = (Path(frames.folder) / "wanted").iterdir()
    before = path.read_bytes()
    path.unlink() if remove else path.write_bytes(before[:-1])
    ran = command("verify")
    assert ran.code == 6 and f"{path}: wanted: " in ran.out
    assert command("verify", "--repair").code == 0
    assert path.read_bytes() == before
    assert command("verify").code == 0


def test_wanted_keys_that_cannot_be_known_are_asked_of_the_stage(root: str, frames: Table, command: Command) -> None:
    before = everything(root)
    order = frames.begin({"fewer": 1}, IDS[:4])
    order.complete()
    for path in (Path(frames.folder) / "wanted").iterdir():
        path.unlink()
    ran = command("verify", "--repair")
    assert ran.code == 6 and "until the stage says what it wants" in ran.out and "run `video2lora frames`" in ran.out
    make_frames(root, 5)
    assert command("verify").code == 0
    assert everything(root) == before


@pytest.fixture
def long_log(root: str, frames: Table) -> Path:
    """A log with a pack, and where it lies."""
    keys = [f"{i:016x}" for i in range(PACK)]
    attempt = Order(frames, {"inputs": "more"}, [*IDS, *keys], sets.frames_made(RECIPE)).begin()
    for key in keys:
        attempt.write([row(frames, video_id=key)], [])
    attempt.complete()
    return Path(frames.folder) / "log"


def test_a_pack_that_is_gone_or_changed_is_written_anew(long_log: Path, frames: Table, command: Command) -> None:
    pack = long_log / "pack-00000000.jsonl"
    before = pack.read_bytes()
    assert command("verify").code == 0
    pack.unlink()
    assert f"{pack}: pack: is gone" in command("verify").out
    assert command("verify", "--repair").code == 0
    assert pack.read_bytes() == before
    pack.write_bytes(before.replace(IDS[0].encode(), IDS[0][::-1].encode()))
    ran = command("verify")
    assert ran.code == 6 and f"{pack}: pack: does not hold what its entries hold" in ran.out
    command("verify", "--repair")
    assert pack.read_bytes() == before
    assert command("verify").code == 0


def test_an_entry_that_is_gone_is_restored_from_its_pack(long_log: Path, frames: Table, command: Command) -> None:
    entry = long_log / "00000007.json"
    before = entry.read_bytes()
    entry.unlink()
    ran = command("verify")
    assert ran.code == 6 and f"{entry}: entry: is gone; its pack has it" in ran.out
    assert command("verify", "--repair").code == 0
    assert entry.read_bytes() == before


def test_an_entry_that_is_gone_for_good_is_not_passed_over(long_log: Path, frames: Table, command: Command) -> None:
    gone = sorted(path for path in long_log.iterdir() if path.suffix == ".json")[-2]
    gone.unlink()
    ran = command("verify", "--repair")
    assert ran.code == 6 and f"{gone}: entry: is gone, and {int(gone.stem) + 1:08d}.json is not read for it" in ran.out


def test_an_entry_that_is_no_entry_is_one_line(root: str, frames: Table, command: Command) -> None:
    (Path(frames.folder) / "log" / "00000001.json").write_text("{ half")
    ran = command("verify")
    assert ran.code == 5 and "00000001.json cannot be read" in ran.err


def test_an_output_that_is_not_complete(root: str, command: Command) -> None:
    folder = Path(root) / "hypernetworks" / "tiny-01234567"
    folder.mkdir(parents=True)
    (folder / "made.json").write_text(json.dumps({"stage": "train"}))
    ran = command("verify", "--repair")
    assert ran.code == 6 and f"{folder}: output: is begun and not complete: run `video2lora train`" in ran.out
    (folder / "complete.json").write_text("{}")
    assert command("verify").code == 0


def test_a_repair_ends_the_run_that_is_writing(root: str, frames: Table, command: Command) -> None:
    from infra.errors import SupersededError

    targets = make_targets(root, 5)
    other = frames.begin({"more": 1}, [*IDS, "f" * 16])
    running = targets.begin({"more": 1}, ["a/b/c"])
    remove_shard(frames)
    command("verify", "--repair")
    with pytest.raises(SupersededError):
        other.write([row(frames, video_id="f" * 16)], [])
    running.write([], [{"stage": "targets", "key": "a/b/c", "reason": "teacher_error", "detail": ""}])
    assert targets.n_rejects() == 1, "a table in which nothing is lost goes on"
