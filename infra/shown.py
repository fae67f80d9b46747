"""What the tables hold, to look at: all of them in a line each, or one video in all of them.

`video2lora ls` reads logs and the files of rejects; `video2lora show` reads logs, and of the rows only the files that hold the video's.
"""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table as Grid

from infra.artifacts import REJECTS_BY_KEY, TABLES
from infra.books import all_outputs, console
from infra.errors import BadInputError
from infra.log import Entry
from infra.of_video import FORGOTTEN, Video, one_video, video_of
from infra.sets import sets_of, tables_of
from infra.state import ROWS, State, among
from infra.storage import Table
from infra.trained import trained

LONG = ("jpegs", "tokens", "hashes", "token_ids", "top_token_ids", "top_logprobs")  # columns that nobody reads in a terminal

Facts = dict[str, Any]


def tables(root: str, *, name: str | None = None) -> Facts:
    """Each table and set, or those of one name. Raises BadInputError for a name that is none, StorageError."""
    if name is not None and name not in TABLES:
        raise BadInputError(f"{name}: no such table, expected one of {', '.join(TABLES)}")
    made = _made(root)
    found = [_table(table, made.get((table.name, table.set))) for table in tables_of(root) if name in (None, table.name)]
    outputs = [{"output": one.name, "complete": one.is_complete()} for one in (all_outputs(root) if name is None else [])]
    return {"root": root, "tables": found, "outputs": outputs}


def video(root: str, named: str) -> Facts:
    """Every row and reject of a video, what made each, and the checkpoints trained on it. Raises BadInputError, StorageError."""
    video_id = one_video(root, named)
    of, made = video_of(root, video_id), _made(root)
    found = []
    for table in tables_of(root):
        rows = _rows(table, of)
        if rows:
            found.append({"table": table.name, "set": table.set, "made": made.get((table.name, table.set)), "rows": rows})
    forgotten = pc.any(pc.equal(Table(root, "videos").state().live()["key"], FORGOTTEN + video_id)).as_py() or False
    return {
        "root": root,
        "video_id": video_id,
        "forgotten": forgotten,
        "tables": found,
        "trained": [one.__dict__ for one in trained(root, video_id)],
    }


def print_json(found: Facts) -> None:
    print(json.dumps(found, indent=1))


def print_tables(found: Facts, *, with_settings: bool) -> None:
    """A line for each set; with what made it below."""
    grid = Grid("table", "set")
    for name in ("rows", "rejects", "pending", "obsolete", "MB"):
        grid.add_column(name, justify="right")
    for name in ("books", "begun", "by"):
        grid.add_column(name)
    for one in found["tables"]:
        counts = [f"{one[name]:,}" for name in ("n_rows", "n_rejects", "n_pending", "n_obsolete")]
        books = "closed" if one["complete"] else "open"
        begun = (one["begun_at"].replace("+00:00", "Z"), one["begun_by"].rsplit(":", 1)[0])
        grid.add_row(one["table"], one["set"], *counts, f"{one['n_bytes'] / 1e6:,.1f}", books, *begun)
    if found["tables"]:
        console().print(grid)
    for one in found["tables"]:
        rejects = ", ".join(f"{reason} {n:,}" for reason, n in one["rejects"].items())
        if rejects:
            print(f"{one['folder']}: rejects: {rejects}")
        if with_settings:
            print(f"{one['folder']}: made by: {json.dumps(one['made'] or one['asked'])}")
    for one in found["outputs"]:
        print(f"{found['root']}/{one['output']}: {'complete' if one['complete'] else 'begun, not complete'}")


def print_video(found: Facts) -> None:
    """Table by table, row by row."""
    print(f"video {found['video_id']}{', forgotten' if found['forgotten'] else ''}")
    for table in found["tables"]:
        print(f"\n{table['table']}{'/' if table['set'] else ''}{table['set']}")
        if table["made"] is not None:
            print(f"  made by {json.dumps(table['made'])}")
        for row in table["rows"]:
            print(f"  {row['key']}{'' if row['is_wanted'] else ' (obsolete)'}: {row['kind']} in {row['file']}")
            print(f"    written by run {row['run']['attempt']} of {row['run']['who']}, begun {row['run']['at']}")
            print(f"    {json.dumps(row['holds'], ensure_ascii=False)}")
    print()
    for one in found["trained"]:
        print(f"{one['folder']}: {one['verdict']}: {one['why']}")


def _made(root: str) -> dict[tuple[str, str], Facts]:
    """What makes each registered set."""
    return {(table.name, table.set): made for name in TABLES for table, made in sets_of(root, name)}


def _table(table: Table, made: Facts | None) -> Facts:
    state = table.state()
    wanted, live, begun = table.wanted(state), state.live(), state.begun or {}
    counted = among(live, wanted)
    n_rows = int(pc.sum(pc.equal(counted["kind"], ROWS)).as_py() or 0)
    reasons = Counter(table.read_rejects()["reason"].to_pylist())
    return {
        "table": table.name,
        "set": table.set,
        "folder": table.folder,
        "n_wanted": len(wanted),
        "n_rows": n_rows,
        "n_rejects": len(counted) - n_rows,
        "rejects": dict(sorted(reasons.items())),
        "n_pending": len(wanted) - len(counted),
        "n_obsolete": len(live) - len(counted),
        "n_files": len(state.files),
        "n_bytes": sum(file.n_bytes for file in state.files.values()),
        "complete": state.is_complete,
        "completed_at": state.completed["at"] if state.completed is not None and state.is_complete else None,
        "begun_at": begun.get("at"),
        "begun_by": begun.get("who"),
        "attempt": state.attempt,
        "asked": begun.get("asked"),
        "made": made,
    }


def _rows(table: Table, of: Video) -> list[Facts]:
    """The rows and rejects of a video that count in a table, by their keys."""
    entries = list(table.log.read())
    state = State().take(entries)
    live = state.live()
    mine = live.filter(of.owns(table, live["key"]))
    if not len(mine):
        return []
    wanted, runs = set(among(mine, table.wanted(state))["key"].to_pylist()), _runs(entries)
    found = []
    for path in sorted(set(mine["path"].to_pylist())):
        keys = among(mine, pa.array([path]), column="path")["key"]
        for key, holds in _held(table, state, path, keys):
            run = runs[int(path.split("/")[1].split("-")[0])]
            kind = "row" if state.files[path].kind == ROWS else "reject"
            found.append({"key": key, "kind": kind, "file": path, "is_wanted": key in wanted, "run": run, "holds": holds})
    return sorted(found, key=lambda one: str(one["key"]))


def _held(table: Table, state: State, path: str, keys: pa.ChunkedArray) -> Iterable[tuple[str, Facts]]:
    """What a file holds under these keys, long columns left out."""
    file = state.files[path]
    spec = table.spec if file.kind == ROWS else REJECTS_BY_KEY
    rows = table.read_file(file, [name for name in spec.schema.names if name not in LONG])
    rows = rows.filter(pc.is_in(spec.keys_of(rows), value_set=keys))
    return zip(spec.keys_of(rows).to_pylist(), map(_readable, rows.to_pylist()), strict=True)


def _readable(row: Facts) -> Facts:
    """Without the columns of its targets that nobody reads."""
    if "targets" not in row:
        return row
    return {**row, "targets": [{name: value for name, value in one.items() if name not in LONG} for one in row["targets"]]}


def _runs(entries: list[Entry]) -> dict[int, Facts]:
    return {one["attempt"]: {name: one[name] for name in ("attempt", "who", "at")} for one in entries if one["kind"] == "begin"}
