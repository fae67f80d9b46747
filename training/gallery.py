"""A report's rows and frames -> what its page lets one look through: questions with every system's answer, and contact sheets of clips.

All answers of a page are of one training; those of the others stand in rows.parquet. Videos come in a seeded order, the questions of one
together. Where not all fit in MAX_ROWS_BYTES, half of the room is for those in which the first system loses most against the second, which
the page puts first when asked to, and the rest for the first in the seeded order. Pictures go by turns to the clips of that order and to
those of the worst losses, which is where people look first, until MAX_PICTURES_BYTES are full; the page says how many there are.
"""

import base64
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from PIL import Image

SEED = 0
MAX_ROWS_BYTES = 12_000_000  # 5,000 questions of 8 systems at 64 tokens; a browser parses as much in 0.1 s
MAX_PICTURES_BYTES = 6_000_000  # with the rows what an e-mail or MLflow's viewer still takes
THUMBNAIL_PX = 112
FRAMES_PER_ROW = 6
FRAMES_SHOWN = 12  # evenly chosen where a clip has more; the paper keeps 12
JPEG_QUALITY = 70

Facts = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """`data` is the value that the page's script reads; the counts are what it says of it."""

    data: Facts
    n_questions: int
    n_all_questions: int
    n_pictured: int
    n_clips: int
    training_seed: str  # of the answers


def show(rows: Sequence[Facts], frames: pa.Table, *, systems: Sequence[str], scores: Sequence[str]) -> Shown:
    """Of a report: `rows` as in rows.parquet, `frames` one row per video."""
    seed = rows[0]["seed"]
    asked = questions_of([row for row in rows if row["seed"] == seed], systems, scores)
    pair = _pair(systems)
    kept = in_order(asked, pair)
    pictures = pictures_of(frames, _to_picture(kept, pair))
    return shown(kept, pictures, systems=systems, scores=scores, pair=pair, n_all=len(asked), training_seed=str(seed))


def shown(
    kept: Sequence[Facts], pictures: Facts, *, systems: Sequence[str], scores: Sequence[str], pair: tuple[int, int], n_all: int,
    training_seed: str,
) -> Shown:  # fmt: skip
    """`pair` is what the page compares first: places of a system and of the one it is held against."""
    data = {"systems": list(systems), "scores": list(scores), "pair": list(pair), "rows": list(kept), "pictures": pictures}
    videos = {one["video"] for one in kept}
    return Shown(data, len(kept), n_all, len(videos & pictures.keys()), len(videos), training_seed)


def questions_of(rows: Sequence[Facts], systems: Sequence[str], scores: Sequence[str]) -> list[Facts]:
    """One entry for each question, with an answer (or none) for each system in its place."""
    found: dict[str, Facts] = {}
    for row in rows:
        entry = found.setdefault(
            row["question_id"],
            {
                "id": row["question_id"], "video": row["video_id"], "benchmark": row["benchmark"], "style": row["style"],
                "question": row["question"], "references": list(row["references"]), "said": [None] * len(systems),
            },
        )  # fmt: skip
        entry["said"][systems.index(row["system"])] = {
            "answer": row["answer"],
            "marks": [None if row[name] is None else round(row[name], 4) for name in scores],
            "degenerate": row["degenerate"],
            "points": row["judge_points"],
            "rationale": row["judge_rationale"],
        }
    return list(found.values())


def in_order(asked: Sequence[Facts], pair: tuple[int, int]) -> list[Facts]:
    """Videos in a seeded order, and of each its questions by style, as far as there is room; `pair` says what is lost against what."""
    by_video: dict[str, list[Facts]] = {}
    for one in sorted(asked, key=lambda one: (one["benchmark"], one["style"], one["id"])):
        by_video.setdefault(one["video"], []).append(one)
    videos = sorted(by_video)
    random.Random(SEED).shuffle(videos)
    seeded = [one for video in videos for one in by_video[video]]
    n_bytes = {one["id"]: len(json.dumps(one)) for one in seeded}
    kept: set[str] = set()
    for ordered, left_bytes in (
        (sorted(seeded, key=lambda one: _gained(one, pair)), MAX_ROWS_BYTES // 2 if sum(n_bytes.values()) > MAX_ROWS_BYTES else 0),
        (seeded, MAX_ROWS_BYTES),
    ):
        left_bytes -= sum(n_bytes[one] for one in kept)
        for one in ordered:
            if one["id"] in kept:
                continue
            left_bytes -= n_bytes[one["id"]]
            if left_bytes < 0:
                break
            kept.add(one["id"])
    return [one for one in seeded if one["id"] in kept]


def pictures_of(frames: pa.Table, videos: Sequence[str]) -> dict[str, Facts]:
    """Contact sheets of these videos, in their order, as long as there is room."""
    place = {video_id: i for i, video_id in enumerate(frames["video_id"].to_pylist())}
    pictures: dict[str, Facts] = {}
    left_bytes = MAX_PICTURES_BYTES
    for video_id in videos:
        if video_id not in place:
            continue
        picture = _picture(frames.slice(place[video_id], 1).to_pylist()[0])
        left_bytes -= len(picture["src"])
        if left_bytes < 0:
            break
        pictures[video_id] = picture
    return pictures


def contact_sheet(jpegs: Sequence[bytes]) -> Image.Image:
    """Frames of a clip in one picture, FRAMES_PER_ROW in a row, none larger than THUMBNAIL_PX."""
    thumbnails = [Image.open(io.BytesIO(jpeg)).convert("RGB") for jpeg in jpegs]
    for thumbnail in thumbnails:
        thumbnail.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    width = max(thumbnail.width for thumbnail in thumbnails)
    height = max(thumbnail.height for thumbnail in thumbnails)
    n_columns = min(FRAMES_PER_ROW, len(thumbnails))
    n_rows = -(-len(thumbnails) // n_columns)
    gap = 2
    sheet = Image.new("RGB", (n_columns * (width + gap) - gap, n_rows * (height + gap) - gap), (128, 128, 128))
    for i, thumbnail in enumerate(thumbnails):
        sheet.paste(thumbnail, ((i % n_columns) * (width + gap), (i // n_columns) * (height + gap)))
    return sheet


def _picture(row: Facts) -> Facts:
    n_frames = len(row["jpegs"])
    n_shown = min(n_frames, FRAMES_SHOWN)
    places = [i * n_frames // n_shown for i in range(n_shown)]
    sheet = contact_sheet([row["jpegs"][i] for i in places])
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    stamps = ", ".join(f"{time_s:.1f}" for time_s in (row["timestamps_s"][i] for i in places))
    return {
        "src": "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(),
        "width": sheet.width,
        "height": sheet.height,
        "alt": f"{n_shown} of {n_frames} frames of the clip, from left to right, at {stamps} of {row['duration_s']:.1f} seconds",
    }


def _pair(systems: Sequence[str]) -> tuple[int, int]:
    """Ours against base, or what comes nearest."""
    first = systems.index("ours") if "ours" in systems else len(systems) - 1
    return first, systems.index("base") if "base" in systems else 0


def _to_picture(kept: Sequence[Facts], pair: tuple[int, int]) -> list[str]:
    """Videos of the page by turns in its order and by the worst loss of a question."""
    ordered = list(dict.fromkeys(one["video"] for one in kept))
    worst = list(dict.fromkeys(one["video"] for one in sorted(kept, key=lambda one: _gained(one, pair))))
    return list(dict.fromkeys(video for both in zip(ordered, worst, strict=True) for video in both))


def _gained(one: Facts, pair: tuple[int, int]) -> float:
    """By the first score that both have; 0 where there is none."""
    said = [one["said"][place] for place in pair]
    if None in said:
        return 0.0
    both = ((a, b) for a, b in zip(said[0]["marks"], said[1]["marks"], strict=True) if a is not None and b is not None)
    return next((a - b for a, b in both), 0.0)
