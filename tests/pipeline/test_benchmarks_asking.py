"""`video2lora benchmark NAME` on real small clips: questions of the published formats through the manifest into the tables."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from clips import regular, write_clip

from infra import objects
from infra.config import Recipe, Where, WorldSettings
from infra.errors import BadInputError
from infra.storage import Table
from pipeline import manifest
from pipeline.benchmarks import Asked, run
from pipeline.made_world import clips as made_clips

NAMES = ("v_a.mp4", "deep/v_b.mkv", "v_c.webm", "311.mp4")
SUFFIX = " Answer only the question, in one sentence."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of 3 to 6 frames, as benchmarks name them."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "deep").mkdir()
    for i, name in enumerate(NAMES):
        clip = write_clip(folder / f"{i}.mkv", regular(3 + i))
        clip.rename(folder / name)
    return folder


@pytest.fixture
def where(tmp_path: Path) -> Where:
    return Where(data=str(tmp_path / "data"))


def write(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value))
    return str(path)


def lines(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def activitynet(tmp_path: Path, *videos: str, n: int = 2) -> list[str]:
    """Questions and answers on these videos, `n` on each."""
    names = [(video, f"v_{video}_{i}") for video in videos for i in range(n)]
    asked = [{"video_name": video, "question": f"is it {name}", "question_id": name} for video, name in names]
    answered = [{"answer": "no", "type": 3, "question_id": name} for _, name in names]
    return [write(tmp_path / "test_q.json", asked), write(tmp_path / "test_a.json", answered)]


def captions(tmp_path: Path, *videos: str) -> list[str]:
    said = {f"v_{video}": {"duration": 1.0, "timestamps": [[0, 1]], "sentences": [f"This is {video}."]} for video in videos}
    return [write(tmp_path / "val_1.json", said)]


def asked_in(where: Where, benchmark: str) -> list[dict[str, Any]]:
    rows = Table(where.data, "questions").read().to_pylist()
    return sorted((row for row in rows if row["benchmark"] == benchmark), key=lambda row: (row["question"], row["references"]))


def videos_in(where: Where) -> dict[str, str]:
    """Base name -> split."""
    rows = Table(where.data, "videos").read(["uri", "split"]).to_pylist()
    return {Path(row["uri"]).name: row["split"] for row in rows}


def rejects_in(where: Where, table: str) -> dict[str, str]:
    return {row["key"]: row["reason"] for row in Table(where.data, table).read_rejects().to_pylist()}


def how_drawn(where: Where) -> dict[str, Any]:
    return dict(Table(where.data, "questions").made_from()["asked"]["benchmarks"])


def versions(where: Where) -> list[int]:
    return [Table(where.data, name).state().version for name in ("files", "videos", "questions")]


def test_questions_and_their_videos(folder: Path, where: Where, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = activitynet(tmp_path, "a", "b", "gone")
    told = run(Asked("activitynet_qa", annotations=files, videos=str(folder)), Recipe(), where)
    assert told == (
        "activitynet_qa: 4 of 6 drawn questions are asked (6 in all, seed 0, question_without_video 2); "
        "videos: 2 rows, 1 rejects (missing 1); questions: 4 rows, 2 rejects (question_without_video 2)"
    )
    assert f"1 videos are missing: {folder}/v_gone.mp4" in capsys.readouterr().err
    assert videos_in(where) == {"v_a.mp4": "test", "v_b.mkv": "test"}
    rows = asked_in(where, "activitynet_qa")
    assert [row["question"] for row in rows] == [f"is it v_{video}_{i}{SUFFIX}" for video in "ab" for i in range(2)]
    assert {(row["task"], row["style"], *row["references"]) for row in rows} == {("question", "yes/no", "no")}
    assert rejects_in(where, "videos") == {"activitynet_qa:v_gone": "missing"}
    assert set(rejects_in(where, "questions")) == {"activitynet_qa:test_q.json:5", "activitynet_qa:test_q.json:6"}
    digests = how_drawn(where)["activitynet_qa"].pop("files")
    assert set(digests) == {"test_q.json", "test_a.json"} and len(set(digests.values())) == 2
    drawn = {"prompts": "paper", "n": 500, "by": "question", "seed": 0, "n_drawn": 6, "n_of_all": 6, "files": digests}
    assert how_drawn(where) == {"activitynet_qa": drawn}


def test_the_second_run_writes_nothing(folder: Path, where: Where, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = Asked("activitynet_qa", annotations=activitynet(tmp_path, "a", "gone"), videos=str(folder))
    first, before = run(asked, Recipe(), where), versions(where)
    assert "nothing to do" not in capsys.readouterr().err
    assert run(asked, Recipe(), where) == first and versions(where) == before
    assert "benchmark activitynet_qa: " in (told := capsys.readouterr().err) and "nothing to do" in told


def test_benchmarks_stand_beside_each_other(folder: Path, where: Where, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the same folder too; coming back to the first, there is nothing to do, so that what was made from the tables stays."""
    one = Asked("activitynet_qa", annotations=activitynet(tmp_path, "a", "gone"), videos=str(folder))
    other = Asked("activitynet_captions", annotations=captions(tmp_path, "a", "c", "missing"), videos=str(folder))
    for asked in (one, other):
        run(asked, Recipe(), where)
    assert len(asked_in(where, "activitynet_qa")) == 2
    found = asked_in(where, "activitynet_captions")
    assert [(row["question"], row["references"], row["task"]) for row in found] == [
        ("Describe what is happening in this video.", [f"This is {video}."], "caption") for video in "ac"
    ]
    assert videos_in(where) == {"v_a.mp4": "test", "v_c.webm": "test"}
    assert rejects_in(where, "videos") == {"activitynet_qa:v_gone": "missing", "activitynet_captions:v_missing": "missing"}
    assert set(how_drawn(where)) == {"activitynet_qa", "activitynet_captions"}
    before = versions(where)
    capsys.readouterr()
    for asked in (one, other, one):
        run(asked, Recipe(), where)
    assert versions(where) == before and capsys.readouterr().err.count("nothing to do") == 3


def test_another_seed_takes_the_place_of_the_first(folder: Path, where: Where, tmp_path: Path) -> None:
    files = activitynet(tmp_path, "a", "b", "c", n=7)
    run(Asked("activitynet_captions", annotations=captions(tmp_path, "b"), videos=str(folder)), Recipe(), where)
    drawn = []
    for seed in (0, 1, 0):
        told = run(Asked("activitynet_qa", annotations=files, videos=str(folder), n=5, seed=seed), Recipe(), where)
        assert told.startswith(f"activitynet_qa: 5 of 5 drawn questions are asked (21 in all, seed {seed});")
        drawn.append({row["question_id"] for row in asked_in(where, "activitynet_qa")})
        assert how_drawn(where)["activitynet_qa"]["seed"] == seed
    assert drawn[0] == drawn[2] != drawn[1] and {len(ids) for ids in drawn} == {5}
    assert len(asked_in(where, "activitynet_captions")) == 1


def test_the_draw_does_not_look_which_videos_are_there(folder: Path, where: Where, tmp_path: Path) -> None:
    files = activitynet(tmp_path, "a", "b", "c", "gone", n=7)
    partial = tmp_path / "partial"
    partial.mkdir()
    shutil.copy(folder / "v_a.mp4", partial)
    drawn = []
    for videos, data in ((folder, where), (partial, Where(data=str(tmp_path / "other")))):
        run(Asked("activitynet_qa", annotations=files, videos=str(videos), n=13), Recipe(), data)
        rows, rejects = asked_in(data, "activitynet_qa"), Table(data.data, "questions").read_rejects().to_pylist()
        assert len(rows) + len(rejects) == 13 and {one["reason"] for one in rejects} == {"question_without_video"}
        drawn.append({row["question"] for row in rows})
    assert drawn[1] < drawn[0]


def test_regions_ask_the_same_of_spans_of_a_video(folder: Path, where: Where, tmp_path: Path) -> None:
    row = {"video": "v_a.mp4", "masklet_id": 0, "total_frames": 90, "start_frame": 0, "end_frame": 89}
    rows = [
        row | {"uid": 1, "caption": "One waves."}, row | {"uid": 2, "caption": "Another sits."},
        row | {"uid": 3, "caption": "A dog.", "start_frame": 3, "end_frame": 8}, row | {"uid": 4},
    ]  # fmt: skip
    asked = Asked("plm_rcap", annotations=[lines(tmp_path / "rcap.jsonl", *rows)], videos=str(folder))
    told = run(asked, Recipe(), where)
    assert told.startswith("plm_rcap: 3 of 3 drawn questions are asked (3 in all, seed 0, bad_row 1); videos: 2 rows, 0 rejects;")
    found = asked_in(where, "plm_rcap")
    assert {row["question"] for row in found} == {"Describe what happens in this video clip."}
    assert sorted(row["references"][0] for row in found) == ["A dog.", "Another sits.", "One waves."]
    spans = {row["video_id"]: (row["start_s"], row["end_s"]) for row in Table(where.data, "videos").read().to_pylist()}
    assert {row["references"][0]: spans[row["video_id"]] for row in found} == {
        "One waves.": (None, None), "Another sits.": (None, None), "A dog.": (0.5, 1.5),
    }  # fmt: skip
    assert rejects_in(where, "questions") == {"plm_rcap:rcap.jsonl:4": "bad_row"}


def test_styles_and_second_answers_come_through(folder: Path, where: Where, tmp_path: Path) -> None:
    row = {"video_id": "v_c", "video_name": "v_c.mp4"} | {
        f"{style}_caption": f"The {style}." for style in ("short", "detailed", "camera", "background", "main_object")
    }
    run(Asked("vdc", annotations=[lines(tmp_path / "VDC_1k.jsonl", row)], videos=str(folder), prompts="own"), Recipe(), where)
    found = {row["style"]: (row["question"], row["references"]) for row in asked_in(where, "vdc")}
    assert found["short"] == ("Write a one-sentence summary of the video.", ["The short."]) and len(found) == 5
    table = tmp_path / "test.csv"
    table.write_text("video,frame_count,width,height,question,answer,qid,type\n311,6,34,26,why did he run,late,0,CW\n")
    more = write(tmp_path / "add_reference_answer_test.json", {"311": {"0": "in a hurry"}})
    run(Asked("nextqa", annotations=[str(table), more], videos=str(folder)), Recipe(), where)
    [one] = asked_in(where, "nextqa")
    assert (one["question"], one["references"], one["style"]) == (f"why did he run{SUFFIX}", ["late", "in a hurry"], "CW")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_video_that_was_trained_on_becomes_no_test_video(folder: Path, where: Where, tmp_path: Path, split: str) -> None:
    """Told by its content, under any name, and from a span of it too."""
    (tmp_path / "train").mkdir()
    for name, copy in (("v_a.mp4", "other.mp4"), ("v_c.webm", "scene.mp4")):
        shutil.copy(folder / name, tmp_path / "train" / copy)
    rows = [{"uri": "train/other.mp4", "split": split}, {"uri": "train/scene.mp4", "split": split, "end_s": 0.1}]
    manifest.run(lines(tmp_path / "list.jsonl", *rows), Recipe(), where)
    told = run(Asked("activitynet_qa", annotations=activitynet(tmp_path, "a", "b", "c"), videos=str(folder)), Recipe(), where)
    assert "2 of 6 drawn questions are asked (6 in all, seed 0, question_without_video 4)" in told
    assert videos_in(where) == {"other.mp4": split, "scene.mp4": split, "v_b.mkv": "test"}
    assert rejects_in(where, "videos") == {"activitynet_qa:v_a": "duplicate", "activitynet_qa:v_c": "duplicate"}
    for row in Table(where.data, "questions").read_rejects().to_pylist():
        assert "has the content of" in row["detail"] and f"({split}): it was seen in training" in row["detail"]


def test_training_videos_that_came_later_are_seen_by_the_next_run(folder: Path, where: Where, tmp_path: Path) -> None:
    asked = Asked("activitynet_qa", annotations=activitynet(tmp_path, "a", "b", "c"), videos=str(folder))
    assert run(asked, Recipe(), where).startswith("activitynet_qa: 6 of 6 drawn")
    shutil.copy(folder / "v_a.mp4", tmp_path / "scene.mp4")
    manifest.run(lines(tmp_path / "list.jsonl", {"uri": "scene.mp4", "end_s": 0.1}), Recipe(), where)
    assert run(asked, Recipe(), where).startswith(
        "activitynet_qa: 4 of 6 drawn questions are asked (6 in all, seed 0, question_without_video 2)"
    )
    assert len(asked_in(where, "activitynet_qa")) == 4


def test_questions_of_a_video_that_is_gone_are_gone(folder: Path, where: Where, tmp_path: Path) -> None:
    """The file of its name holds another content now, so that the old video is of no split."""
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("v_a.mp4", "v_c.webm"):
        shutil.copy(folder / name, mine)
    asked = Asked("activitynet_qa", annotations=activitynet(tmp_path, "a", "c"), videos=str(mine))
    run(asked, Recipe(), where)
    shutil.copy(folder / "311.mp4", mine / "v_a.mp4")
    assert run(asked, Recipe(), where) == (
        "activitynet_qa: 4 of 4 drawn questions are asked (4 in all, seed 0); "
        "videos: 2 rows, 1 rejects (superseded 1); questions: 4 rows, 0 rejects"
    )
    videos = Table(where.data, "videos").read(["video_id"])["video_id"].to_pylist()
    assert {row["video_id"] for row in asked_in(where, "activitynet_qa")} == set(videos)


def test_a_missing_video_of_a_name_that_would_steer_a_terminal(
    folder: Path, where: Where, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"question": "What is it?", "references": ["a clip"]}
    source = lines(tmp_path / "mine.jsonl", row | {"uri": "v_a.mp4"}, row | {"uri": "v_\x1b[31m.mp4"})
    told = run(Asked("jsonl", annotations=[source], videos=str(folder)), Recipe(), where)
    err = capsys.readouterr().err
    assert "missing 1" in told and r"v_\x1b[31m.mp4" in err and "v_\x1b" not in err


def test_a_video_under_two_names_is_one(folder: Path, where: Where, tmp_path: Path) -> None:
    twice = tmp_path / "twice"
    twice.mkdir()
    for name in ("v_a.mp4", "v_copy.mp4"):
        shutil.copy(folder / "v_a.mp4", twice / name)
    run(Asked("activitynet_qa", annotations=activitynet(tmp_path, "a", "copy", n=1), videos=str(twice)), Recipe(), where)
    assert len({row["video_id"] for row in asked_in(where, "activitynet_qa")}) == 1 and len(asked_in(where, "activitynet_qa")) == 2
    assert rejects_in(where, "videos") == {"activitynet_qa:v_copy": "duplicate"}


def test_the_made_world_needs_nothing(where: Where) -> None:
    recipe = Recipe(world=WorldSettings(n_train=2, n_validation=1, n_test=3))
    told = run(Asked("made_world"), recipe, where)
    n = sum(len(made_clips.Clip(1, 0, "test", i).questions()) for i in range(3))
    asked = f"made_world: {n} of {n} drawn questions are asked ({n} in all, seed 0)"
    assert told == f"{asked}; videos: 3 rows, 0 rejects; questions: {n} rows, 0 rejects"
    assert set(videos_in(where).values()) == {"test"}
    assert how_drawn(where)["made_world"]["world"]["n_test"] == 3

    manifest.run(f"{where.data}/clips/clips.jsonl", recipe, where)
    of_all = len(asked_in(where, "made_world"))
    assert of_all > n and Table(where.data, "videos").n_rows() == 6
    told = run(Asked("made_world", n=7, seed=1), recipe, where)
    assert told.startswith(f"made_world: 7 of 7 drawn questions are asked ({n} in all, seed 1); videos: 6 rows")
    assert len(asked_in(where, "made_world")) == of_all - n + 7, "questions of clips that teach stay"
    with pytest.raises(BadInputError, match="made_world: got --annotations or --videos, expected none"):
        run(Asked("made_world", videos="x"), recipe, where)


def test_anyones_own_questions(folder: Path, where: Where, tmp_path: Path) -> None:
    row = {"uri": "v_a.mp4", "question": "What is it?", "references": ["a clip", "a video"], "style": "what"}
    rows = [
        row,
        row | {"uri": "deep/v_b.mkv", "task": "caption"},
        row | {"end_s": 0.1},
        row | {"uri": "gone.mp4"},
        row | {"references": []},
    ]
    source = lines(tmp_path / "mine.v1.jsonl", *rows)
    told = run(Asked("jsonl", annotations=[source], videos=str(folder)), Recipe(), where)
    assert told.startswith("mine: 3 of 4 drawn questions are asked (4 in all, seed 0, bad_row 1, question_without_video 1); videos: 3 rows")
    found = asked_in(where, "mine")
    assert sorted(one["task"] for one in found) == ["caption", "question", "question"]
    assert {(one["style"], *one["references"]) for one in found} == {("what", "a clip", "a video")}
    assert rejects_in(where, "questions") == {f"{source}:4": "question_without_video", f"{source}:5": "bad_row"}
    one = {row["question_id"] for row in found}
    run(Asked("jsonl", annotations=[source], videos=str(folder), n=2), Recipe(), where)
    assert {row["question_id"] for row in asked_in(where, "mine")} < one


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (Asked("nothing"), "benchmark 'nothing': expected one of activitynet_captions"),
        (Asked("vdc"), r"vdc: expected -a VDC_1k\.jsonl -v videos; see docs/benchmarks\.md"),
        (Asked("plm_rcap", prompts="own"), "plm_rcap: --prompts own: its prompt asks about a red rectangle"),
        (Asked("jsonl", annotations=["nowhere.jsonl"], prompts="own"), "jsonl: --prompts own: its questions are asked as they are written"),
        (Asked("made_world", prompts="own"), "made_world: --prompts own: its questions are asked as they are written"),
        (Asked("vdc", annotations=["nowhere.jsonl"], videos="x"), r"nowhere\.jsonl: no such file"),
        (Asked("jsonl"), "jsonl: got 0 annotation files, expected one"),
        (Asked("jsonl", annotations=["nowhere.jsonl"]), r"nowhere\.jsonl: no such file"),
        (Asked("made_world"), r"recipe: world: not there"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(asked: Asked, says: str, where: Where) -> None:
    with pytest.raises(BadInputError, match=says):
        run(asked, Recipe(), where)
    assert not Path(where.data).exists()


def test_files_and_folders_that_are_others_are_refused(folder: Path, where: Where, tmp_path: Path) -> None:
    bad = lines(tmp_path / "sgqa.jsonl", {"video": "v_a.mp4"})
    with pytest.raises(BadInputError, match=r"plm_sgqa: .*sgqa\.jsonl: sgqa\.jsonl:1: question: got None"):
        run(Asked("plm_sgqa", annotations=[bad], videos=str(folder)), Recipe(), where)
    with pytest.raises(BadInputError, match="none of the videos that activitynet_qa asks about is there"):
        run(Asked("activitynet_qa", annotations=activitynet(tmp_path, "x"), videos=str(folder)), Recipe(), where)
    with pytest.raises(BadInputError, match="no such file or folder"):
        run(Asked("activitynet_qa", annotations=activitynet(tmp_path, "a"), videos=str(tmp_path / "no")), Recipe(), where)
    good = activitynet(tmp_path, "a")
    listed = lines(tmp_path / "list.jsonl", {"uri": "v_a.mp4"})
    with pytest.raises(BadInputError, match=r"list\.jsonl: a file, expected a folder of videos"):
        run(Asked("activitynet_qa", annotations=good, videos=listed), Recipe(), where)
    with pytest.raises(BadInputError, match="annotation files of the same name"):
        run(Asked("activitynet_qa", annotations=[*good, good[0]], videos=str(folder)), Recipe(), where)
    nothing = lines(tmp_path / "mine.jsonl", {"uri": "v_a.mp4", "question": "What?"})
    with pytest.raises(BadInputError, match="no row asks anything: references: Field required"):
        run(Asked("jsonl", annotations=[nothing]), Recipe(), where)
    assert not Path(where.data).exists()


def test_annotations_and_videos_in_a_bucket(folder: Path, bucket: str, tmp_path: Path, where: Where) -> None:
    for name in NAMES:
        objects.write_new(f"{bucket}/videos/{name}", (folder / name).read_bytes())
    files = activitynet(tmp_path, "a", "b", "gone")
    for path in files:
        objects.write_new(f"{bucket}/{Path(path).name}", Path(path).read_bytes())
    remote = [f"{bucket}/{Path(path).name}" for path in files]
    told = run(Asked("activitynet_qa", annotations=remote, videos=f"{bucket}/videos"), Recipe(), Where(data=f"{bucket}/data"))
    assert told == run(Asked("activitynet_qa", annotations=files, videos=str(folder)), Recipe(), where)
    here, there = (asked_in(data, "activitynet_qa") for data in (where, Where(data=f"{bucket}/data")))
    assert here == there and len(here) == 4


def test_rows_that_name_their_own_benchmark_are_no_others(folder: Path, where: Where, tmp_path: Path) -> None:
    rows = [{"uri": "v_a.mp4", "question": f"What {i}?", "references": ["red"], "benchmark": "bb"} for i in range(4)]
    for n in (3, 3, 4):
        asked = Asked("jsonl", annotations=[lines(tmp_path / "mine.jsonl", *rows[:n])], videos=str(folder))
        assert run(asked, Recipe(), where).startswith(f"mine: {n} of {n} drawn questions are asked ({n} in all, seed 0); ")
        assert len(asked_in(where, "bb")) == n and rejects_in(where, "questions") == {}


def test_a_plain_file_takes_nothing_from_a_benchmark(folder: Path, where: Where, tmp_path: Path) -> None:
    rows = [{"uri": str(folder / "v_a.mp4"), "question": f"What {i}?", "references": ["red"]} for i in range(3)]
    run(Asked("jsonl", annotations=[lines(tmp_path / "first.jsonl", *rows[:2])], videos=str(folder)), Recipe(), where)
    source = lines(tmp_path / "list.jsonl", {"uri": str(folder / "v_a.mp4"), "split": "test"})
    told = manifest.run(source, Recipe(), where, questions=lines(tmp_path / "other.jsonl", *rows[1:]))
    assert told.endswith("questions: 3 rows, 1 rejects (duplicate 1)"), told
    assert [len(asked_in(where, name)) for name in ("first", "other")] == [2, 1]


def test_what_another_benchmark_asks_already_is_a_reject(folder: Path, where: Where, tmp_path: Path) -> None:
    def row(question: str, *references: str) -> dict[str, Any]:
        return {"uri": "v_a.mp4", "question": question, "references": references}

    first = lines(tmp_path / "a.jsonl", *(row(f"What {i}?", "red") for i in range(5)))
    second = lines(tmp_path / "b.jsonl", row("What 1?", "blue"), row("What 3?", "red"), row("What 7?", "red"))
    told = {}
    for name, source in (("a", first), ("b", second), ("a again", first), ("b again", second)):
        told[name] = run(Asked("jsonl", annotations=[source], videos=str(folder)), Recipe(), where)
    assert told["a"].startswith("a: 5 of 5 drawn questions are asked (5 in all, seed 0); ")
    assert told["b"].startswith("b: 1 of 3 drawn questions are asked (3 in all, seed 0, duplicate 2); ")
    assert (len(asked_in(where, "a")), len(asked_in(where, "b"))) == (5, 1)
    assert list(rejects_in(where, "questions").values()) == ["duplicate", "duplicate"]
    assert (told["a again"], told["b again"]) == (told["a"].replace("5 rows, 0 rejects", "6 rows, 2 rejects (duplicate 2)"), told["b"])
