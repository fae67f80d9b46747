"""Clips whose cuts are known; mixtures against every smaller and larger one."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from clips import regular, write_audio, write_clip

from infra.config import Recipe, SceneSettings, Where
from infra.errors import BadInputError
from infra.storage import Table
from pipeline import manifest
from pipeline.scenes import KINDS, SourceVideo, Span, find_scenes, mixture, parse_scenes, spans, spans_of, spans_of_video
from video2lora.ffmpeg_program import scene_changes
from video2lora.video import RejectReason, VideoDecodeError

FRAME_MS = 40
PAPER = (0.6, 0.3, 0.1)


def write_scenes(path: Path, lengths: Sequence[int], *, start_ms: int = 0) -> Path:
    """Scene i is a noise of its own that drifts a pixel per frame, `lengths[i]` frames long."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "23", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        pts = start_ms // FRAME_MS
        for number, length in enumerate(lengths):
            coarse = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
            picture = coarse.repeat(8, axis=0).repeat(8, axis=1)
            for i in range(length):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.roll(picture, i, axis=1)), format="rgb24")
                frame.pts = pts
                pts += 1
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def seconds(frames: Sequence[int]) -> list[float]:
    return [frame * FRAME_MS / 1000 for frame in frames]


@pytest.mark.parametrize(("name", "start_ms"), [("a.mp4", 0), ("a.mkv", 0), ("a.ts", 0), ("late.mkv", 2000)])
def test_finds_the_cuts_where_they_are(tmp_path: Path, name: str, start_ms: int) -> None:
    """Counted from the first frame, wherever the container's clock begins."""
    path = write_scenes(tmp_path / name, [29, 17, 53], start_ms=start_ms)
    assert scene_changes(path, threshold=10.0).tolist() == pytest.approx(seconds([29, 46]), abs=1e-3)
    found = find_scenes(str(path), SceneSettings())
    assert np.array(found) == pytest.approx(np.array([[0, 29], [29, 46], [46, 99]]) * 0.04, abs=2e-3)


def test_a_clip_without_cuts_has_no_scenes(tmp_path: Path) -> None:
    assert find_scenes(str(write_scenes(tmp_path / "one.mp4", [41])), SceneSettings()) == []
    assert find_scenes(str(write_clip(tmp_path / "grey.mp4", regular(59))), SceneSettings()) == []


def test_short_scenes_join_a_neighbour_also_the_first_and_the_last(tmp_path: Path) -> None:
    path = write_scenes(tmp_path / "a.mp4", [7, 31, 5, 3, 29, 11])
    assert len(scene_changes(path, threshold=10.0)) == 5
    found = find_scenes(str(path), SceneSettings(min_scene_s=0.6))
    assert np.array(found) == pytest.approx(np.array([[0, 38], [38, 86]]) * 0.04, abs=2e-3)


def test_what_is_no_video_and_what_takes_too_long_has_a_reason(tmp_path: Path) -> None:
    sound = write_audio(tmp_path / "sound.wav")
    path = write_scenes(tmp_path / "a.mp4", [23, 29])
    with pytest.raises(VideoDecodeError) as no_video:
        find_scenes(str(sound), SceneSettings())
    assert no_video.value.reason == RejectReason.NO_VIDEO_STREAM
    with pytest.raises(VideoDecodeError) as late:
        scene_changes(path, threshold=10.0, timeout_s=0.001)
    assert late.value.reason == RejectReason.DEADLINE


def apportioned(total: int, percents: Sequence[int]) -> list[int]:
    """Largest remainders (Hamilton's method) in whole numbers; of equal remainders the first is rounded up."""
    counts, remainders = zip(*(divmod(total * percent, 100) for percent in percents), strict=True)
    up = sorted(range(len(percents)), key=lambda i: (-remainders[i], i))[: total - sum(counts)]
    return [count + (i in up) for i, count in enumerate(counts)]


@pytest.mark.parametrize("pools", [(59, 31, 11), (7, 97, 97), (101, 3, 53), (6, 3, 1), (13, 13, 0), (97, 89, 2), (0, 5, 5), (3, 0, 7)])
@pytest.mark.parametrize("percents", [(60, 30, 10), (50, 50, 0), (34, 33, 33), (0, 0, 100)])
def test_the_mixture_is_the_largest_whose_shares_the_pools_hold(pools: tuple[int, int, int], percents: tuple[int, int, int]) -> None:
    mixtures = [apportioned(total, percents) for total in range(400)]
    fitting = [one for one in mixtures if all(n <= pool for n, pool in zip(one, pools, strict=True))]
    assert mixture(pools, [percent / 100 for percent in percents]) == max(fitting, key=sum)


def test_the_papers_mixture() -> None:
    assert mixture((600, 10**6, 10**6), PAPER) == [600, 300, 100]
    assert mixture((10**7, 10**7, 43_751), PAPER) == [262_510, 131_255, 43_751]  # FineVideo: as many spans as method.md 2.1 infers


def made_scenes(n_videos: int) -> dict[str, list[tuple[float, float]]]:
    """0 to 12 scenes each, back to back, some not from the beginning."""
    rng = np.random.default_rng(n_videos)
    found = {}
    for i in range(n_videos):
        cuts = np.cumsum(rng.uniform(0.7, 9.0, rng.integers(0, 13) + 1)).round(2).tolist()
        found[f"video {i}"] = list(itertools.pairwise(cuts if i % 3 else [0.0, *cuts]))
    return found


def test_spans_are_scenes_of_their_video_in_the_papers_shares_and_none_is_there_twice() -> None:
    found = made_scenes(211)
    rows = spans(found, mix=PAPER, seed=3)
    assert len({(row.video, row.start_s, row.end_s) for row in rows}) == len(rows)
    counts = Counter(row.kind for row in rows)
    assert counts == dict(zip(KINDS, mixture([10**9, 10**9, 211], PAPER), strict=True))  # full videos are the fewest
    assert counts["full"] == 211
    for row in rows:
        scenes = found[row.video]
        if row.kind == "full":
            assert (row.start_s, row.end_s) == (None, None)
            continue
        starts, ends = [start for start, _ in scenes], [end for _, end in scenes]
        n_scenes = ends.index(row.end_s) - starts.index(row.start_s) + 1
        assert n_scenes == 1 if row.kind == "scene" else n_scenes in (2, 3)
        assert row.start_s > 0 or row.end_s < ends[-1]  # all of it would be the full video


def test_spans_depend_on_seed_and_content_and_not_on_the_order() -> None:
    found = made_scenes(101)
    backwards = dict(reversed(found.items()))
    assert spans(found, seed=1) == spans(backwards, seed=1) != spans(found, seed=2)
    more = found | {"one more": [(0.0, 5.0), (5.0, 9.0)]}
    before, after = set(spans(found, seed=1)), set(spans(more, seed=1))
    assert len(before - after) <= 3 and len(after - before) <= 11


def test_all_scenes_of_a_video_are_the_full_video() -> None:
    def kinds(*scenes: tuple[float, float]) -> list[tuple[str, float | None, float | None]]:
        return [(one.kind, one.start_s, one.end_s) for one in spans_of_video("v", scenes)]

    full = ("full", None, None)
    assert kinds() == [full]
    assert kinds((0.0, 9.0)) == [full]
    assert kinds((5.0, 9.0)) == [full, ("scene", 5.0, 9.0)]
    assert kinds((0.0, 4.0), (4.0, 9.0)) == [full, ("scene", 0.0, 4.0), ("scene", 4.0, 9.0)]
    three = kinds((0.0, 4.0), (4.0, 9.0), (9.0, 11.0))
    assert three[4:] == [("adjacent", 0.0, 9.0), ("adjacent", 4.0, 11.0)]
    assert kinds((0.0, 5.0), (0.0, 9.0), (5.0, 9.0), (9.0, 13.0)).count(("adjacent", 0.0, 9.0)) == 0  # a scene already


def test_scenes_of_a_row_are_read_or_refused() -> None:
    assert parse_scenes([[3, 7.5], (0, 3), [3, 7.5]]) == [(0.0, 3.0), (3.0, 7.5)]
    assert parse_scenes([]) == []
    for wrong in (
        "ab",
        3,
        {"a": 1},
        [3, 4],
        [[1]],
        [[1, 2, 3]],
        [["1", "2"]],
        [[True, 2]],
        [[2, 2]],
        [[-1, 2]],
        [[0, math.inf]],
        [[math.nan, 2]],
    ):
        with pytest.raises(ValueError, match="scenes: got"):
            parse_scenes(wrong)


def test_rows_and_rejects_are_all_that_came_in(tmp_path: Path) -> None:
    """Scenes from the row for some, from the clip for others; test videos stay whole."""
    clip = write_scenes(tmp_path / "cut.mp4", [31, 29, 37])
    scenes = [[0, 2], [2, 4], [4, 6], [6, 8], [8, 10], [10, 12], [12, 14]]
    videos = [
        *(SourceVideo(f"row {i}", f"/nowhere/{i}.mp4", f"content {i}", "train", scenes) for i in range(5)),
        SourceVideo("cut", str(clip), "content of the clip", "train"),
        SourceVideo("kept", "/nowhere/test.mp4", "content of the test", "test"),
        SourceVideo("wrong", "/nowhere/wrong.mp4", "content 97", "train", [[3, 1]]),
        SourceVideo("gone", str(tmp_path / "gone.mp4"), "content 98", "train"),
    ]
    root = str(tmp_path / "data")
    rows, rejects = spans_of(videos, SceneSettings(), root)
    assert {one["key"]: one["reason"] for one in rejects} == {"wrong": "bad_row", "gone": "missing"}
    assert "[start_s, end_s]" in {one["key"]: one["detail"] for one in rejects}["wrong"]
    train = [row for row in rows if row["split"] == "train"]
    n_scenes, n_adjacent = 5 * 7 + 3, 5 * (6 + 5) + 2
    assert [Counter(row["span_kind"] for row in train)[kind] for kind in KINDS] == mixture([n_scenes, n_adjacent, 6], PAPER)
    whole = {"start_s": None, "end_s": None, "span_kind": "full"}
    assert {"key": "kept", "uri": "/nowhere/test.mp4", "content": "content of the test", "split": "test"} | whole in rows
    by_content = {one.content: one for one in videos}
    assert all((by_content[row["content"]].uri, by_content[row["content"]].key) == (row["uri"], row["key"]) for row in rows)
    clip.unlink()  # what was looked for once is not looked for again
    again, _ = spans_of(videos[::-1], SceneSettings(), root)
    assert sorted(map(str, again)) == sorted(map(str, rows))


def test_videos_without_a_scene_give_no_mixture_and_say_what_to_do(tmp_path: Path) -> None:
    root = str(tmp_path)
    videos = [SourceVideo(f"row {i}", f"/nowhere/{i}.mp4", f"content {i}", "train", []) for i in range(7)]
    with pytest.raises(BadInputError, match=r"7 videos of train, spans taken: 0 of 0 scene.*lower scenes.threshold"):
        spans_of(videos, SceneSettings(), root)
    rows, _ = spans_of(videos, SceneSettings(mix=(0.0, 0.0, 1.0)), root)
    assert len(rows) == 7
    with pytest.raises(ValueError, match="same content twice"):
        spans_of([*videos, videos[0]], SceneSettings(), root)


@pytest.mark.parametrize("mix", [(0.6, 0.3, 0.2), (1.1, -0.1, 0.0)])
def test_a_mix_is_shares_of_one(mix: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="expected shares"):
        SceneSettings(mix=mix)


def test_a_span_names_its_kind() -> None:
    assert Span("v", 0.0, 1.0, "scene") in spans({"v": [(0.0, 1.0), (1.0, 2.0)]}, mix=(1.0, 0.0, 0.0), seed=0)


def test_a_span_that_a_row_names_stays_that_rows(tmp_path: Path) -> None:
    """With its split, though the same span is drawn; and what is asked of a copy of a video that stays whole is asked of the video."""
    (tmp_path / "clips").mkdir()
    clip = write_scenes(tmp_path / "clips/cut.mp4", [25, 25, 25, 25])
    whole = clip.read_bytes() + b"\1"
    for name in ("whole", "copy"):
        (tmp_path / f"clips/{name}.mp4").write_bytes(whole)
    scenes = [[0, 1], [1, 2], [2, 3], [3, 4]]
    rows = [{"uri": "cut.mp4", "start_s": 1.0, "end_s": 2.0, "split": "test"}, {"uri": "cut.mp4", "scenes": scenes}]
    rows += [{"uri": f"{name}.mp4", "split": "test"} for name in ("whole", "copy")]
    source, questions = tmp_path / "clips/list.jsonl", tmp_path / "clips/questions.jsonl"
    source.write_text("".join(json.dumps(one) + "\n" for one in rows))
    questions.write_text(
        "".join(json.dumps({"uri": f"{name}.mp4", "question": name, "references": ["x"]}) + "\n" for name in ("whole", "copy"))
    )
    recipe, where = Recipe(scenes=SceneSettings(mix=(1.0, 0.0, 0.0))), Where(data=str(tmp_path / "data"))
    told = manifest.run(str(source), recipe, where)
    assert told.endswith("questions: 2 rows, 0 rejects"), told
    found = Table(where.data, "videos").read().to_pylist()
    of_clip = {(row["start_s"], row["end_s"]): row["split"] for row in found if row["uri"].endswith("cut.mp4")}
    assert of_clip == {(None, 1.0): "train", (1.0, 2.0): "test", (2.0, 3.0): "train", (3.0, 4.0): "train"}


def test_the_manifest_holds_spans_of_known_kinds_and_splits(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    clip = write_scenes(tmp_path / "clips/cut.mp4", [31, 29, 37, 23, 41])
    scenes = [[2 * i, 2 * i + 2] for i in range(7)]
    lines = [{"uri": "cut.mp4"}, {"uri": "test.mp4", "split": "test"}, {"uri": "span.mp4", "start_s": 0.1}]
    for i, name in enumerate(("test", "span", "named")):
        (tmp_path / f"clips/{name}.mp4").write_bytes(clip.read_bytes() + bytes([i + 1]))  # after the end: another content
    lines += [{"uri": "named.mp4", "scenes": scenes}]
    (tmp_path / "clips/list.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    recipe, where = Recipe(scenes=SceneSettings()), Where(data=str(tmp_path / "data"))
    told = manifest.run(str(tmp_path / "clips/list.jsonl"), recipe, where)
    rows = Table(where.data, "videos").read().to_pylist()
    by_clip = {name: [row for row in rows if row["uri"].endswith(f"{name}.mp4")] for name in ("cut", "test", "span", "named")}
    assert [(row["span_kind"], row["start_s"]) for row in by_clip["test"]] == [("full", None)]
    assert [(row["span_kind"], row["start_s"]) for row in by_clip["span"]] == [(None, 0.1)]
    mixed = by_clip["cut"] + by_clip["named"]
    n_scenes, n_adjacent = 5 + 7, 4 + 3 + 6 + 5
    assert [Counter(row["span_kind"] for row in mixed)[kind] for kind in KINDS] == mixture([n_scenes, n_adjacent, 2], PAPER)
    assert len({row["video_id"] for row in rows}) == len(rows)
    assert manifest.run(str(tmp_path / "clips/list.jsonl"), recipe, where) == told
    assert Table(where.data, "videos").read().to_pylist() == rows
