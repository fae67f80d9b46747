"""The page of targets: what was drawn, in whole, escaped, and nothing that a browser would fetch."""

import base64
import hashlib
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from infra import sets
from infra.errors import BadInputError
from infra.storage import Table
from teacher import browse
from tests.infra.made_tables import IDS, RECIPE, jpeg, make_root, row

VOID = {"meta", "input", "img", "link", "br"}


class Page(HTMLParser):
    """Every element with its attributes, the text of each article, and whether tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.articles: list[str] = []
        self.raw: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self._open += [] if tag in VOID else [tag]
        if tag == "article":
            self.articles.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("style", "script"):
            self.raw[self._open[-1]] = self.raw.get(self._open[-1], "") + data
        if "article" in self._open:
            self.articles[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def root(tmp_path: Path) -> str:
    return make_root(tmp_path / "data")


@pytest.fixture
def page(root: str, tmp_path: Path) -> Callable[..., Page]:
    def made(**asked: Any) -> Page:
        browse.run(root, tmp_path / "page.html", **{"n": 24, **asked})
        return Page((tmp_path / "page.html").read_text())

    return made


def keys(page: Page) -> list[tuple[str | None, str]]:
    """Prompt and video of each article, in order."""
    return [
        (one["data-prompt"], video_id)
        for one, text in zip(page.all("article"), page.articles, strict=True)
        for video_id in IDS
        if video_id in text
    ]


def test_each_target_with_its_frames_and_where_it_is_from(root: str, page: Callable[..., Page]) -> None:
    shown = page()
    assert len(shown.articles) == 7, "five videos of two prompts, of which one gave no frames and one target was rejected"
    (text,) = [one for one in shown.articles if IDS[3] in one and "Caption the video." in one]
    targets = sets.made_targets(RECIPE, root)
    for said in (
        "8 tokens, finished by stop",
        f"{root}/3.mp4",
        "split validation",
        targets.set,
        "caption-1",
        "video of 2.0 s",
        "0.0 s",
        "1.0 s",
    ):
        assert said in text
    assert "<b>Words</b> about 3." in text, "as the teacher wrote it, not as markup"
    assert shown.all("b") == []
    pictures = shown.all("img")
    assert len(pictures) == 2 * 7
    first = Image.open(io.BytesIO(base64.b64decode(str(pictures[0]["src"]).removeprefix("data:image/jpeg;base64,"))))
    assert first.size == (8, 6) == (int(str(pictures[0]["width"])), int(str(pictures[0]["height"])))


def test_frames_are_made_small() -> None:
    data = io.BytesIO()
    Image.new("RGB", (1000, 500), (200, 10, 10)).save(data, "JPEG")
    shown = browse.picture(data.getvalue(), 12.34)
    assert (shown.width_px, shown.height_px, shown.time) == (176, 88, "12.3 s")
    pixel = Image.open(io.BytesIO(base64.b64decode(shown.address.partition(",")[2]))).getpixel((80, 40))
    assert isinstance(pixel, tuple) and abs(pixel[0] - 200) < 8 and pixel[1] < 25
    assert browse.picture(jpeg(40), 0.0).width_px == 8, "and never larger"


def test_a_seed_draws_the_same_and_another_one_others(page: Callable[..., Page]) -> None:
    first = keys(page(n=3, seed=1))
    assert len(first) == 3 and keys(page(n=3, seed=1)) == first
    assert keys(page(n=7, seed=1))[:3] == first, "more show these, and more"
    assert len({tuple(keys(page(n=3, seed=seed))) for seed in range(5)}) > 1


def test_one_prompt(page: Callable[..., Page]) -> None:
    assert {prompt for prompt, _ in keys(page(prompt="caption"))} == {"caption-1"}
    with pytest.raises(BadInputError, match="no targets whose prompt's id begins with 'scene'"):
        page(prompt="scene")


def test_rejects_with_their_reasons(page: Callable[..., Page]) -> None:
    shown = page(rejects=True)
    (text,) = shown.articles
    assert "rejected: unfinished_target" in text and "length after 64 tokens: And so" in text and IDS[1] in text
    assert len(shown.all("img")) == 2
    assert [value.get("value") for value in shown.all("option")].count("unfinished_target") == 1, "reasons to choose from"


def test_every_set_is_shown_and_which_it_is(root: str, page: Callable[..., Page]) -> None:
    made = sets.targets_made(RECIPE, weights="other")
    other = sets.targets_set(RECIPE, root, weights="other")
    sets.register(other, made)
    one = row(
        other, video_id=IDS[0], prompt_id="caption-9", version="v", task="caption", prompt="Caption.", target="Other words.", n_tokens=2
    )
    attempt = other.begin({}, [other.spec.key_of(one), "x/never/made"])
    attempt.write([one], [])
    shown = page()
    assert {one["data-set"] for one in shown.all("article")} == {other.set, sets.made_targets(RECIPE, root).set}
    assert any("Other words." in text for text in shown.articles), "also of a set that is not complete"


def test_what_is_wanted_no_longer_is_not_shown(root: str, page: Callable[..., Page]) -> None:
    targets = sets.made_targets(RECIPE, root)
    targets.begin({"fewer": 1}, [key for key in targets.wanted().to_pylist() if "caption" in key]).complete()
    assert {prompt for prompt, _ in keys(page())} == {"caption-1"}


def test_targets_whose_frames_and_video_are_gone(root: str, page: Callable[..., Page]) -> None:
    frames, videos = sets.frames_set(RECIPE, root), Table(root, "videos")
    attempt = frames.begin({}, [])
    attempt.drop(IDS)
    attempt.complete()
    videos.begin({}, []).complete()
    shown = page()
    assert len(shown.articles) == 7 and shown.all("img") == []
    assert all("Its frames are not there any more." in text and "split" not in text for text in shown.articles)


def test_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no targets to show"):
        browse.run(str(tmp_path / "none"), tmp_path / "page.html", n=3)
    assert not (tmp_path / "page.html").exists()


def test_a_page_fetches_nothing_and_runs_only_its_own_script(root: str, tmp_path: Path, page: Callable[..., Page]) -> None:
    targets = sets.made_targets(RECIPE, root)
    evil = '</p></article><script>document.title="x"</script><img src=https://example.org/x onerror=alert(1)> {{ 7*7 }} "\' onload="x'
    one = row(
        targets, video_id=IDS[0], prompt_id="z\"'><i>", version="v", task='"><i>', prompt=evil, target=evil, n_tokens=2, finish_reason=evil
    )
    attempt = targets.begin({}, [*targets.wanted().to_pylist(), targets.spec.key_of(one)])
    attempt.write([one], [])
    attempt.complete()
    shown = page()
    assert len(shown.articles) == 8
    (text,) = [text for text in shown.articles if "{{ 7*7 }}" in text]
    assert text.count(evil) == 3
    assert len(shown.all("script")) == 1 and shown.all("i") == [] and shown.all("link") == []
    assert all(str(one["src"]).startswith("data:image/jpeg;base64,") for one in shown.all("img"))
    assert not [name for _, attributes in shown.elements for name in attributes if name.startswith("on")]
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest", shown.raw["style"] + shown.raw["script"])
    (policy,) = [str(one["content"]) for one in shown.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    for name in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(shown.raw[name].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_filters_name_what_is_there(page: Callable[..., Page]) -> None:
    shown = page()
    values = [one.get("value") for one in shown.all("option")]
    assert {"caption", "summary", "caption-1", "summary-2", "train", "validation", "test"} <= set(values)
    ids = {one["id"] for _, one in shown.elements if one.get("id")}
    used = set(re.findall(r'getElementById\("(\w+)"\)', shown.raw["script"])) | set(
        re.findall(r'"(task|prompt|split|set)"', shown.raw["script"])
    )
    assert used == ids, "every control that the script looks for, and no other"
    assert all({f"data-{name}" for name in ("task", "prompt", "split", "set")} <= set(one) for one in shown.all("article"))
