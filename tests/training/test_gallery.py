"""What a report's page shows of rows and frames, and that it stays small."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from made_rows import a_row, rows_of
from PIL import Image

from training import gallery

SYSTEMS = ("base", "ours", "other_video", "blind")


def jpeg(seed: int, *, width_px: int = 23, height_px: int = 19) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def frames(videos: list[str], *, n_frames: int = 2, **size: int) -> pa.Table:
    jpegs = [jpeg(seed, **size) for seed in range(n_frames)]
    row = {"jpegs": jpegs, "timestamps_s": [0.5 * i for i in range(n_frames)], "duration_s": 0.5 * n_frames}
    return pa.Table.from_pylist([{"video_id": video, **row} for video in videos])


def show(rows: list[dict[str, Any]], table: pa.Table) -> gallery.Shown:
    return gallery.show(rows, table, systems=SYSTEMS, scores=("judge", "token_f1"))


def test_every_question_has_each_systems_answer_of_the_first_training() -> None:
    rows = rows_of(7)
    rows = [row for row in rows if (row["question_id"], row["system"]) != ("v0003-toy_qa-colour", "blind")]
    shown = show(rows, frames(["v0001", "v0002"]))
    assert (shown.n_questions, shown.n_all_questions, shown.n_clips, shown.n_pictured, shown.training_seed) == (21, 21, 7, 2, "7")
    assert shown.data["pair"] == [1, 0]
    (one,) = [one for one in shown.data["rows"] if one["id"] == "v0003-toy_qa-colour"]
    assert one["said"][3] is None and [said["answer"] for said in one["said"][:3]] == [
        next(r["answer"] for r in rows if (r["question_id"], r["system"], r["seed"]) == (one["id"], system, 7)) for system in SYSTEMS[:3]
    ]
    assert one["said"][0]["marks"][0] is None and one["said"][0]["marks"][1] in (0.0, 1.0)
    videos = [one["video"] for one in shown.data["rows"]]
    assert videos != sorted(videos) and len(list(dict.fromkeys(videos))) == sum(a != b for a, b in zip(["", *videos], videos, strict=False))


def test_rows_stop_where_there_is_no_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "MAX_ROWS_BYTES", 20_000)
    shown = show(rows_of(31), frames(["none"]))
    assert 10 < shown.n_questions < shown.n_all_questions == 93
    assert shown.n_questions == len(shown.data["rows"])


def test_where_not_all_have_room_the_worst_losses_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    videos = [f"v{i:03d}" for i in range(200)]
    lost = {f"v{i:03d}" for i in range(3, 200, 19)}
    rows = [a_row(f"{v}-q", s, 0.0 if s == "ours" and v in lost else 1.0) for v in videos for s in SYSTEMS]
    monkeypatch.setattr(gallery, "MAX_ROWS_BYTES", 20_000)
    shown = show(rows, frames(["none"]))
    there = [one["video"] for one in shown.data["rows"]]
    assert lost <= set(there) and len(lost) < len(there) < 200 and len(there) == len(set(there)) == shown.n_questions
    monkeypatch.setattr(gallery, "MAX_ROWS_BYTES", 20_000_000)
    assert [one["video"] for one in show(rows, frames(["none"])).data["rows"] if one["video"] in set(there)] == there, "in the order drawn"


def test_pictures_go_to_the_worst_and_to_the_first_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    videos = [f"v{i:02d}" for i in range(40)]
    rows = [a_row(f"{video}-q", system, 1.0 if (video, system) != ("v17", "ours") else 0.0) for video in videos for system in SYSTEMS]
    table = frames(videos, n_frames=12, width_px=160, height_px=96)
    size = len(gallery.pictures_of(table, ["v00"])["v00"]["src"])
    monkeypatch.setattr(gallery, "MAX_PICTURES_BYTES", 5 * size)
    shown = show(rows, table)
    first = shown.data["rows"][0]["video"]
    assert shown.n_pictured == 5 and {"v17", first} <= set(shown.data["pictures"])
    assert sum(len(one["src"]) for one in shown.data["pictures"].values()) <= 5 * size


def test_a_contact_sheet_has_a_dozen_frames_at_most() -> None:
    (picture,) = gallery.pictures_of(frames(["v"], n_frames=31), ["v"]).values()
    assert picture["alt"].startswith("12 of 31 frames of the clip, from left to right, at 0.0, 1.0, 2.5,")
    assert (picture["width"], picture["height"]) == (6 * (23 + 2) - 2, 2 * (19 + 2) - 2)
    assert gallery.pictures_of(frames(["v"]), ["another"]) == {}
