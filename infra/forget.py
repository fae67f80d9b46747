"""A video -> gone from every table: its rows, its rejects, what was wanted of it, its questions and their answers.

Command  video2lora forget VIDEO_ID
Cost     reading each table's log and the `files`, `videos` and `questions` tables, and writing anew the files that hold its rows.

From what was judged up to `videos`, which is last: killed midway and run again, it still knows what belongs to the video. In each table a
run is begun, which ends one that is writing it; its files are written anew without the video, and books that were closed are closed again.
Files that no log names go too, for they may hold it. In `videos` a reject stays that keeps `manifest` from bringing the video back.

What is not removed: keys in the logs (hashes, and in `files` addresses), what a model has learnt, and reports and figures, which hold words
and pictures as they were; so checkpoints, reports and figures are named.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from infra.attempt import reject
from infra.books import unnamed_files
from infra.log import Entry
from infra.objects import names, read_bytes, remove
from infra.of_video import FORGOTTEN, Video, video_of
from infra.outputs import Output
from infra.parquet import from_parquet
from infra.progress import counting
from infra.sets import FIGURES, REPORTS, outputs_of, tables_of
from infra.state import ROWS, State
from infra.storage import Table
from infra.trained import print_trained, trained

ORDER = ("judgements", "answers", "questions", "visual_tokens", "examples", "targets", "frames", "scenes", "files", "videos")


@dataclass(frozen=True)
class Place:
    """How much of a video a table holds."""

    folder: str
    n_rows: int
    n_rejects: int
    n_files: int


def places(root: str, video_id: str) -> list[Place]:
    """The tables that hold something of it. Raises StorageError."""
    video, found = video_of(root, video_id), []
    for table in _tables(root):
        live = table.state().live()
        mine = live.filter(video.owns(table, live["key"]))
        n_rows = int(pc.sum(pc.equal(mine["kind"], ROWS)).as_py() or 0)
        if len(mine):
            found.append(Place(table.folder, n_rows, len(mine) - n_rows, len(pc.unique(mine["path"]))))
    return found


def print_places(video_id: str, found: list[Place]) -> None:
    for one in found:
        print(f"{one.folder}: {one.n_rows} rows and {one.n_rejects} rejects of {video_id} in {one.n_files} files")
    if not found:
        print(f"no table holds a row or reject of {video_id}")


def forget(root: str, video_id: str) -> None:
    """Remove it, and say where it was and what was trained on it. Raises StorageError, SupersededError."""
    video, models = video_of(root, video_id), trained(root, video_id)  # before the rows that tell a split are gone
    tables = _tables(root)
    told = []
    with counting("forget", "tables", len(tables)) as counter:
        for table in tables:
            n_files = _forget_in(table, video)
            told += [f"{table.folder}: {n_files} files written anew or removed"] if n_files else []
            counter.advance()
    print("\n".join([*told, f"video {video_id} is in no table of {root} any more"]))
    print_trained(models)
    for output in reports_of(root, video_id):
        print(f"{output.folder}: a report that shows it; remove the folder, and what MLflow has of it")
    for output in figures_of(root, video_id):
        print(f"{output.folder}: a figure that holds answers about it; remove the folder")


def reports_of(root: str, video_id: str) -> list[Output]:
    """Reports with rows of the video. Raises StorageError."""
    found = []
    for output in outputs_of(root, REPORTS):
        data = read_bytes(f"{output.folder}/rows.parquet")
        if data is not None and pc.any(pc.equal(from_parquet(data, ("video_id",))["video_id"], video_id)).as_py():
            found.append(output)
    return found


def figures_of(root: str, video_id: str) -> list[Output]:
    """Figures with cells of the video, also of one that is not finished. Raises StorageError."""
    found = []
    for output in outputs_of(root, FIGURES):
        cells = (f"{output.folder}/cells/{name}" for name in names(f"{output.folder}/cells"))
        if any(video_id.encode() in (read_bytes(cell) or b"") for cell in cells):
            found.append(output)
    return found


def _forget_in(table: Table, video: Video) -> int:
    """How many files were written anew or removed. Does what is left to do of a run that was killed, too."""
    entries = list(table.log.read())
    state = State().take(entries)
    wanted = table.wanted(state)
    holding = dict(_holding(table, entries, video))
    stays = [FORGOTTEN + video.video_id] if table.name == "videos" else []
    there = set(state.live()["key"].to_pylist()) if stays else set()
    kept = wanted.filter(pc.invert(video.owns(table, wanted)))
    is_there = any(path in state.files for path in holding) or len(kept) < len(wanted) or not there.issuperset(stays)
    may_be_ours = bool(holding) or table.name in ("questions", "files")  # whose rows say which of them are the video's
    is_left_open = may_be_ours and not state.is_complete and len(table.counted(state)) == len(wanted)  # only closing was left to do
    n_files = 0
    if is_there or is_left_open:
        n_files, state = _write_anew(table, state, video, [*(key for key in kept.to_pylist() if key not in stays), *stays], holding)
    for path in holding:
        if path not in state.files:
            remove(f"{table.folder}/{path}")  # again: a run that was killed may have left it
    orphans = [one.path for one in unnamed_files(table, state)[0] if one.kind == "orphan"]
    for path in orphans:
        remove(f"{table.folder}/{path}")
    return n_files + len(orphans)


def _write_anew(table: Table, state: State, video: Video, wanted: list[str], holding: dict[str, list[str]]) -> tuple[int, State]:
    """The table without the keys that each file holds; how many files that were, and what the table is now."""
    attempt = table.begin((state.begun or {})["asked"], wanted)
    n_files = attempt.drop({key for path, keys in holding.items() if path in attempt.state.files for key in keys})
    if FORGOTTEN + video.video_id in attempt.left:
        attempt.write([], [reject("manifest", FORGOTTEN + video.video_id, "forgotten", "by `video2lora forget`")])
    if not attempt.left:
        attempt.complete(measures=(state.completed or {}).get("measures"))
    return n_files, attempt.state


def _holding(table: Table, entries: list[Entry], video: Video) -> Iterator[tuple[str, list[str]]]:
    """Each file that was ever committed with rows of the video, and their keys: those that count, and those that no longer do."""
    for entry in entries:
        for file in entry.get("add", ()):
            keys = pa.array(file["keys"], pa.string())
            mine = keys.filter(video.owns(table, keys)).to_pylist()
            if mine:
                yield file["path"], mine


def _tables(root: str) -> list[Table]:
    return sorted(tables_of(root), key=lambda table: ORDER.index(table.name))
