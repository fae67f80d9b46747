"""Which items are drawn, in which words they are asked, and where their videos are found."""

import hashlib
import random
from pathlib import Path

import pytest

from infra.errors import BadInputError
from pipeline.benchmarks.catalogue import PUBLISHED, print_list, published
from pipeline.benchmarks.draw import By, drawn
from pipeline.benchmarks.found import Folder
from pipeline.benchmarks.items import Item
from pipeline.benchmarks.prompts import PAPER, prompts_of, worded

STYLES = ("red", "green", "blue")
ITEMS = [
    Item(f"file:{video}-{style}", f"{video}/{style}", (f"v{video}.mp4", f"v{video}"), (f"{video} is {style}",), style=style)
    for video in range(53)
    for style in STYLES
]


def ids(items: list[Item]) -> list[str]:
    return [item.id for item in items]


@pytest.mark.parametrize("by", ["question", "video", "style"])
def test_the_order_of_rows_makes_no_difference(by: By) -> None:
    shuffled = random.Random(0).sample(ITEMS, len(ITEMS))
    assert drawn(shuffled, n=17, seed=3, by=by) == drawn(ITEMS, n=17, seed=3, by=by)


@pytest.mark.parametrize(("by", "n"), [("question", 17), ("video", 17 * 3), ("style", 17 * 3)])
def test_as_many_as_asked_and_others_with_another_seed(by: By, n: int) -> None:
    one, other = (ids(drawn(ITEMS, n=17, seed=seed, by=by)) for seed in (0, 1))
    assert len(set(one)) == len(one) == len(other) == n and one != other


def test_the_draw_is_by_sha256_of_seed_and_name() -> None:
    """docs/benchmarks.md: anyone can draw the same; another rule would draw others than were published."""

    def place(name: str) -> str:
        return hashlib.sha256(f"3\n{name}".encode()).hexdigest()

    assert set(ids(drawn(ITEMS, n=17, seed=3, by="question"))) == set(sorted(ids(ITEMS), key=place)[:17])
    videos = sorted({item.videos[0] for item in ITEMS}, key=place)[:17]
    for by in ("video", "style"):
        assert {item.videos[0] for item in drawn(ITEMS, n=17, seed=3, by=by)} == set(videos)


def test_zero_and_more_than_there_are_take_all() -> None:
    for n in (0, 1000):
        for by in ("question", "video", "style"):
            assert sorted(ids(drawn(ITEMS, n=n, seed=0, by=by))) == sorted(ids(ITEMS))  # type: ignore[arg-type]


def test_videos_come_with_all_their_questions_and_each_style_has_the_same_videos() -> None:
    for by in ("video", "style"):
        chosen = drawn(ITEMS, n=5, seed=0, by=by)  # type: ignore[arg-type]
        videos = {item.videos for item in chosen}
        assert len(videos) == 5 and len(chosen) == 15
        assert {(item.videos, item.style) for item in chosen} == {(video, style) for video in videos for style in STYLES}


def test_a_style_that_lacks_a_video_takes_another() -> None:
    first = drawn(ITEMS, n=1, seed=0, by="style")[0].videos
    rest = [item for item in ITEMS if not (item.style == "red" and item.videos == first)]
    chosen = drawn(rest, n=5, seed=0, by="style")
    assert [sum(item.style == style for item in chosen) for style in STYLES] == [5, 5, 5]


def test_a_smaller_draw_is_part_of_a_larger_one() -> None:
    assert set(ids(drawn(ITEMS, n=13, seed=0, by="question"))) < set(ids(drawn(ITEMS, n=31, seed=0, by="question")))


def test_every_benchmark_is_drawn_about_equally_often() -> None:
    """Of 1,000 seeds, each of 159 items is among 53 about a third of the times; 5 standard deviations are 75."""
    counts = dict.fromkeys(ids(ITEMS), 0)
    for seed in range(1000):
        for name in ids(drawn(ITEMS, n=53, seed=seed, by="question")):
            counts[name] += 1
    assert all(abs(n - 1000 / 3) < 75 for n in counts.values())


def test_questions_are_worded_as_in_the_paper() -> None:
    paper = prompts_of("nextqa", "paper")
    assert worded("why {so}?", "CW", paper) == "why {so}? Answer only the question, in one sentence."
    assert worded("", "camera", prompts_of("vdc", "paper")) == "Describe the camera work, framing, and viewpoint in this video."
    assert worded("is it red", "", prompts_of("activitynet_qa", "own")) == "is it red? Answer the question using a single word or phrase."
    assert worded("", "events", prompts_of("carebench", "own")) == "Describe the video in detail."


def test_every_benchmark_has_the_papers_prompts_and_its_own_or_why_not() -> None:
    assert [one.name for one in PUBLISHED] == list(PAPER)
    refused = []
    for one in PUBLISHED:
        assert all(text.strip() for text in prompts_of(one.name, "paper").values())
        try:
            assert all(text.strip() for text in prompts_of(one.name, "own").values())
        except BadInputError as error:
            refused.append(one.name)
            assert f"{one.name}: --prompts own: " in str(error) and "use --prompts paper" in str(error)
    assert refused == ["activitynet_captions", "plm_rdcap", "plm_rcap"]


def test_the_list_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    print_list()
    told = capsys.readouterr().out
    assert all(f"\n{name} " in told for name in [*PAPER, "made_world", "jsonl"]) and "-a VDC_1k.jsonl" in told
    with pytest.raises(BadInputError, match=r"benchmark 'vcd': expected one of activitynet_captions, .*, made_world, jsonl"):
        published("vcd")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    for path in ("a.webm", "a.mp4", "deep/a.mp4", "deep/b.MKV", "deep/c.d.mp4", "v_e.mp4", "notes.txt", "deep/.f.mp4"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    return Folder(str(tmp_path))


@pytest.mark.parametrize(
    ("names", "path"),
    [
        (("a",), "a.mp4"), (("a.webm",), "a.webm"), (("deep/a",), "deep/a.mp4"), (("elsewhere/a.mp4",), "a.mp4"),
        (("b",), "deep/b.MKV"),
        (("b.mp4",), "deep/b.MKV"), (("c.d",), "deep/c.d.mp4"), (("e", "v_e"), "v_e.mp4"), (("c",), None),
        (("notes",), None), (("f",), None),
    ],
)  # fmt: skip
def test_a_video_is_found_by_its_name(folder: Folder, names: tuple[str, ...], path: str | None) -> None:
    assert folder.find(names) == (path and f"{folder.address}/{path}")


def test_a_name_that_means_files_of_several_folders_is_refused(tmp_path: Path) -> None:
    for path in ("one/a.mp4", "other/a.mp4", "other/a.webm", "other/b.mp4", "other/b.webm"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    folder = Folder(str(tmp_path))
    for name in ("a", "a.mp4", "third/a.mp4"):
        with pytest.raises(BadInputError, match=rf"video {name} may be one/a\.mp4 or other/a\.mp4"):
            folder.find((name,))
    assert folder.find(("other/a.mp4",)) == folder.find(("other/a",)) == f"{folder.address}/other/a.mp4"
    assert folder.find(("a.webm",)) == f"{folder.address}/other/a.webm" and folder.find(("b",)) == f"{folder.address}/other/b.mp4"


def test_a_name_that_is_looked_for_tells_a_terminal_nothing(folder: Folder) -> None:
    with pytest.raises(BadInputError) as raised:
        folder.check("nextqa", [Item("1", "1", ("\x1b[31m",), ("r",))])
    assert "\x1b" not in str(raised.value) and r"\x1b[31m" in str(raised.value)


def test_a_video_that_is_missing_has_an_address_in_the_folder(folder: Folder) -> None:
    assert folder.address_of(("g",)) == f"{folder.address}/g.mp4"
    assert folder.address_of(("g.mkv",)) == f"{folder.address}/g.mkv"
    assert folder.address_of(("../../etc/passwd",)) == f"{folder.address}/passwd.mp4"
    assert folder.address_of(("/etc/g.mp4",)) == f"{folder.address}/g.mp4"


def test_a_folder_of_other_videos_is_refused(folder: Folder) -> None:
    folder.check("nextqa", [Item("1", "1", ("g",), ("r",)), Item("2", "2", ("b",), ("r",))])
    with pytest.raises(BadInputError, match=r"none of the videos that nextqa asks about is there \(looked for g, h, \.\.\.\)"):
        folder.check("nextqa", [Item("1", "1", ("h",), ("r",)), Item("2", "2", ("g",), ("r",))])
