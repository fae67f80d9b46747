"""Some targets, drawn by a seed -> one HTML page of them beside the frames that the teacher saw.

Reads    the logs of every set of targets, and of targets and frames only the files that hold what was drawn; `videos`.
Writes   one file, which opens from disk: no server, no network, nothing beside it. Pictures are data: URIs; style and script stand in the
         page, and its Content-Security-Policy names the hashes of these two and forbids all else. Every text comes from outside (a
         teacher's words, names of files), so jinja2 escapes it; should that fail, a script in a text would still not run.
Command  video2lora targets browse --n 24 -o targets.html
Cost     reading one file of frames for each video, as the worst.
"""

import base64
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from infra.artifacts import REJECTS_BY_KEY, TableSpec
from infra.errors import BadInputError, StorageError
from infra.sets import Made, sets_of
from infra.state import REJECTS, ROWS, among
from infra.storage import Table

THUMBNAIL_PX = 176  # longest edge
JPEG_QUALITY = 75
TARGET_COLUMNS = ["video_id", "prompt_id", "version", "task", "prompt", "target", "n_tokens", "finish_reason"]
FRAME_COLUMNS = ["video_id", "jpegs", "timestamps_s", "duration_s"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Picture:
    """A frame as the page has it."""

    address: str  # a data: URI
    width_px: int
    height_px: int
    time: str


@dataclass(frozen=True)
class Drawn:
    """A target, or a reject, that is on the page."""

    set: str
    key: str
    video_id: str
    prompt_id: str
    task: str
    prompt: str
    text: str
    facts: str  # how long it is and how it ended
    uri: str = ""
    split: str = ""
    duration_s: float | None = None
    pictures: list[Picture] = field(default_factory=list)


def run(root: str, output: Path, *, n: int, seed: int = 0, prompt: str | None = None, rejects: bool = False) -> str:
    """`prompt` is a prompt's id, or how it begins. Raises BadInputError where there is nothing to show, StorageError."""
    kind, what = (REJECTS, "rejects of targets") if rejects else (ROWS, "targets")
    chosen, n_all, names = choose(root, kind, n=n, seed=seed, prompt=prompt)
    if not chosen:
        of = f" whose prompt's id begins with {prompt!r}" if prompt else ""
        raise BadInputError(f"{root}/targets: no {what}{of} to show")
    rows = [one for table, made, keys in chosen for one in read(table, made, kind, keys)]
    videos = {row["video_id"]: row for row in _of_videos(root, {one.video_id for one in rows})}
    rows = [_with_video(one, videos.get(one.video_id, {})) for one in sorted(rows, key=lambda one: _draw(seed, one.set, one.key))]
    page = render(rows, what=what, n_all=n_all, seed=seed, sets=names)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{output} cannot be written: {error}") from error
    of = ", ".join(f"{n:,} of {name}" for name, n in names)
    return f"{output}: {len(rows)} of {n_all:,} {what} ({of}), {len(page) / 1e6:.1f} MB; open it in a browser"


def choose(
    root: str, kind: str, *, n: int, seed: int, prompt: str | None
) -> tuple[list[tuple[Table, Made, pa.Array]], int, list[tuple[str, int]]]:
    """The keys drawn of each set, of how many; and of which sets, with their numbers. The logs tell, no row is read."""
    found: list[tuple[str, Table, Made]] = []
    sizes = []
    for table, made in sets_of(root, "targets"):
        counted = table.counted()
        keys = counted.filter(pc.equal(counted["kind"], kind))["key"].to_pylist()
        keys = [key for key in keys if prompt is None or _prompt_id(key).startswith(prompt)]
        found += [(key, table, made) for key in keys]
        sizes += [(table.set, len(keys))] if keys else []
    drawn = sorted(found, key=lambda one: _draw(seed, one[1].set, one[0]))[:n]
    tables = {table.set: (table, made) for _, table, made in drawn}
    chosen = [(table, made, pa.array([key for key, of, _ in drawn if of.set == name])) for name, (table, made) in tables.items()]
    return chosen, len(found), sizes


def read(table: Table, made: Made, kind: str, keys: pa.Array) -> Iterable[Drawn]:
    """The rows or rejects of these keys, with their frames where they are still there."""
    columns = TARGET_COLUMNS if kind == ROWS else ["stage", "key", "reason", "detail"]
    rows = _by_key(table.spec if kind == ROWS else REJECTS_BY_KEY, table.read_keys(keys, columns, kind=kind))
    frames = _frames(table.root, made, sorted({key.split("/")[0] for key in rows}))
    for key, row in rows.items():
        video_id = key.split("/")[0]
        seen = frames.get(video_id, {})
        told = _told_of_row(row) if kind == ROWS else _told_of_reject(key, row)
        pictures = [picture(jpeg, time_s) for jpeg, time_s in zip(seen.get("jpegs", ()), seen.get("timestamps_s", ()), strict=True)]
        yield Drawn(table.set, key, video_id, _prompt_id(key), **told, duration_s=seen.get("duration_s"), pictures=pictures)


def picture(jpeg: bytes, time_s: float) -> Picture:
    """A frame no larger than THUMBNAIL_PX."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=JPEG_QUALITY)
    return Picture("data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode(), image.width, image.height, f"{time_s:.1f} s")


def render(rows: Sequence[Drawn], *, what: str, n_all: int, seed: int, sets: Sequence[tuple[str, int]]) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (environment.get_template(f"browse.{kind}.j2").render() for kind in ("css", "js"))
    return environment.get_template("browse.html.j2").render(
        rows=rows,
        what=what,
        n_all=n_all,
        seed=seed,
        sets=sets,
        tasks=sorted({one.task for one in rows}),
        prompts=sorted({one.prompt_id for one in rows}),
        splits=sorted({one.split for one in rows}),
        style=Markup(style),
        script=Markup(script),
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
    )


def _told_of_row(row: Row) -> Row:
    facts = f"{row['n_tokens']} tokens, finished by {row['finish_reason']}"
    return {"task": row["task"] or "", "prompt": row["prompt"] or "", "text": row["target"] or "", "facts": facts}


def _told_of_reject(key: str, row: Row) -> Row:
    reason = row["reason"]
    return {"task": reason, "prompt": f"prompt {_prompt_id(key)}", "text": row["detail"] or "", "facts": f"rejected: {reason}"}


def _by_key(spec: TableSpec, rows: pa.Table) -> dict[str, Row]:
    return dict(zip(spec.keys_of(rows).to_pylist(), rows.to_pylist(), strict=True))


def _frames(root: str, made: Made, video_ids: list[str]) -> dict[str, Row]:
    """What the teacher saw of these videos, by id."""
    found: dict[str, Row] = {}
    for table, of in sets_of(root, "frames"):
        if of == made.get("frames"):
            found |= _by_key(table.spec, table.read_keys(video_ids, FRAME_COLUMNS))
    return found


def _of_videos(root: str, video_ids: set[str]) -> list[Row]:
    videos = Table(root, "videos").read(["video_id", "uri", "split"])
    return list(among(videos, pa.array(sorted(video_ids), pa.string()), column="video_id").to_pylist())


def _with_video(one: Drawn, video: Row) -> Drawn:
    return Drawn(**{**one.__dict__, "uri": video.get("uri") or "", "split": video.get("split") or ""})


def _prompt_id(key: str) -> str:
    return key.split("/")[1]


def _draw(seed: int, name: str, key: str) -> bytes:
    """A place in an order that depends on the seed, the set and the key alone."""
    return hashlib.sha256(f"{seed} {name} {key}".encode()).digest()


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
