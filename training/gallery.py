"""The report's numbers and its test clips -> one HTML page that opens from disk.

No server, no network, no file beside it: pictures are data: URIs, style and script stand in the page, and its Content-Security-Policy
names the hashes of these two and forbids everything else. Every text comes from outside (clips, questions, a model's answers), so jinja2
escapes all of it; should that ever fail, a script in an answer would still not run.

The page shows a seeded sample of clips, as many as fit in MAX_PAGE_BYTES, and says how many that are.
"""

import base64
import hashlib
import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from training.measures import Scored, size_text

SEED = 0
MAX_CLIPS = 60
MAX_PAGE_BYTES = 2_500_000  # of the clips; numbers and recipe add less than 100 kB
BYTES_PER_CELL = 90  # tags around an answer
THUMBNAIL_PX = 96
FRAMES_PER_ROW = 6
JPEG_QUALITY = 70

SYSTEM_NAMES = {
    "base": "base (video in context)",
    "ours": "ours (adapter, no visual token)",
    "other_video": "another video's adapter",
    "static": "static adapter alone",
    "blind": "blind (question alone)",
    "caption": "teacher's caption as text",
}


@dataclass(frozen=True)
class Said:
    system: str
    answer: str
    right: bool


@dataclass(frozen=True)
class Asked:
    family: str
    question: str
    references: list[str]
    said: list[Said]

    @property
    def right(self) -> str:
        """Systems that are right, for the page's filter."""
        return " ".join(one.system for one in self.said if one.right)


@dataclass(frozen=True)
class Clip:
    video_id: str
    picture: str  # data: URI
    width_px: int
    height_px: int
    alt: str
    questions: list[Asked]

    @property
    def n_bytes(self) -> int:
        """About what the clip adds to the page."""
        texts = [text for q in self.questions for text in (q.question, *q.references, *(one.answer for one in q.said))]
        return len(self.picture) + sum(len(text.encode()) + BYTES_PER_CELL for text in texts)


def sample_clips(scored: Sequence[Scored], *, questions: Sequence[dict[str, Any]], frames: Sequence[dict[str, Any]]) -> list[Clip]:
    """Clips of the page, in the order drawn. `frames` has one row per video."""
    by_video = {row["video_id"]: row for row in frames}
    asked: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(questions, key=lambda row: (row["style"], row["question_id"])):
        asked.setdefault(row["video_id"], []).append(row)
    said: dict[str, list[Said]] = {}
    for one in scored:
        said.setdefault(one.question_id, []).append(Said(one.system, one.answer, one.exact_match == 1.0))
    videos = sorted({one.video_id for one in scored} & by_video.keys())
    clips: list[Clip] = []
    left_bytes = MAX_PAGE_BYTES
    for video_id in random.Random(SEED).sample(videos, min(MAX_CLIPS, len(videos))):
        rows = [
            Asked(row["style"], row["question"], row["references"], said[row["question_id"]])
            for row in asked[video_id]
            if row["question_id"] in said
        ]
        clip = _clip(by_video[video_id], rows)
        left_bytes -= clip.n_bytes
        if left_bytes < 0:
            break
        clips.append(clip)
    return clips


def _clip(row: dict[str, Any], questions: list[Asked]) -> Clip:
    sheet = contact_sheet(row["jpegs"])
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    stamps = ", ".join(f"{time_s:.1f}" for time_s in row["timestamps_s"])
    return Clip(
        video_id=row["video_id"],
        picture="data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(),
        width_px=sheet.width,
        height_px=sheet.height,
        alt=f"{len(row['jpegs'])} frames of clip {row['video_id']}, from left to right, at {stamps} of {row['duration_s']:.1f} seconds",
        questions=questions,
    )


def contact_sheet(jpegs: Sequence[bytes]) -> Image.Image:
    """All frames of a clip in one picture, FRAMES_PER_ROW in a row, none larger than THUMBNAIL_PX."""
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


def render(numbers: Mapping[str, Any], clips: Sequence[Clip]) -> str:
    """The page. `numbers` is the value of report.json."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "score": _score,
        "interval": _interval,
        "size": size_text,
        "number": _number,
        "pretty": _pretty,
    }
    style = environment.get_template("report.css.j2").render()
    script = environment.get_template("report.js.j2").render()
    return environment.get_template("report.html.j2").render(
        numbers=numbers,
        clips=clips,
        names=SYSTEM_NAMES,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"


def _interval(found: Mapping[str, Any]) -> str:
    edges = "" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]"
    return _score(found["value"]) + edges


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
