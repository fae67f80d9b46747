"""The report's numbers against figures worked out by hand, and a page that stays inert whatever the texts say."""

import base64
import hashlib
import io
import json
import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_examples import fill, fill_hypernetwork, fill_targets
from PIL import Image

from infra.attempt import reject
from infra.config import AnswerSettings, FramesSettings, Recipe, VLMSettings, Where
from infra.errors import BadInputError
from infra.objects import read_json
from infra.outputs import Output
from infra.sets import answers_set, examples_made, examples_set, frames_made, frames_set
from infra.storage import Table
from training import gallery, measures, report
from video2lora.tiny.build import build_model, build_tokenizer
from video2lora.video import Sampling

SYSTEMS = ("base", "ours", "blind", "caption")
HOSTILE = "</td></table><script>alert('1')</script>\"><img src=x onerror=\"alert(2)\"> & 'quoted'"
SCRIPT = '<script>alert("9")</script>'
FAMILIES = ("colour", 'direction" onmouseover="alert(3)')
REFERENCES = {"a1": ["red"], "a2": ["left"], "a3": ["blue", HOSTILE], "b1": ["red"], "b2": ["right"]}
ANSWERS = {
    "base": {"a1": "red", "a2": "left", "a3": "green", "b1": "red", "b2": "right"},
    "ours": {"a1": "red", "a2": "to the left", "a3": "Blue", "b1": "The Red!", "b2": "left"},
    "blind": {"a1": "red", "a2": "up", "a3": SCRIPT, "b1": "", "b2": "left"},
    "caption": {"a1": "red", "a2": "up", "a3": "red"},  # the teacher wrote none about video b
}
TTFT_S = {("base", "a1"): 0.2, ("base", "a2"): 0.4, ("ours", "a1"): 0.1}


def jpeg(*, width_px: int = 23, height_px: int = 19, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def questions() -> list[dict[str, Any]]:
    return [
        {
            "question_id": question_id,
            "video_id": f"<b>{question_id[0]}",
            "benchmark": "toy",
            "style": FAMILIES[question_id in ("a2", "b2")],
            "question": f"What? {HOSTILE}",
            "references": references,
        }
        for question_id, references in REFERENCES.items()
    ]


def answers() -> list[dict[str, Any]]:
    return [
        {
            "question_id": question_id,
            "system": system,
            "answer": text,
            "n_input_tokens": 50 if system == "base" else 11,
            "n_visual_tokens": 32 if system == "base" else 0,
            "ttft_s": TTFT_S.get((system, question_id)),
        }
        for system, texts in ANSWERS.items()
        for question_id, text in texts.items()
    ]


def frames() -> list[dict[str, Any]]:
    return [
        {
            "video_id": f"<b>{name}",
            "sampling": "uniform-2",
            "jpegs": [jpeg(), jpeg(seed=1)],
            "timestamps_s": [0.0, 1.5],
            "duration_s": 2.0,
            "height_px": 19,
            "width_px": 23,
        }
        for name in "ab"
    ]


def targets() -> list[dict[str, Any]]:
    row = {"video_id": "<b>a", "teacher": "toy", "prompt": "?"}
    return [
        row | {"prompt_id": "c", "task": "caption", "target": "words"},
        row | {"prompt_id": "s", "task": "summary", "target": "Größe"},
    ]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("vlm")
    build_model(build_tokenizer(["a word"], vocab_size=300), seed=0).config.save_pretrained(folder)
    return Recipe(
        vlm=VLMSettings(model=str(folder)),
        frames=FramesSettings(sampling=Sampling(policy="uniform", n_frames=2)),
        answer=AnswerSettings(systems=SYSTEMS),
    )


def a_data_folder(recipe: Recipe, folder: Path) -> Where:
    where = Where(data=str(folder / "data"))
    fill(Table(where.data, "videos"), [])
    fill(Table(where.data, "questions"), questions())
    rejects = [reject("frames", "x", "truncated", HOSTILE), reject("frames", "y", "truncated")]
    fill(frames_set(recipe, where.data), frames(), rejects, made=frames_made(recipe))
    of_targets = fill_targets(recipe, where.data, targets())
    fill(examples := examples_set(recipe, of_targets), [], made=examples_made(recipe, of_targets))
    config = {
        "format": "video2lora-hypernetwork-1",
        "hypernetwork": {"n_layers": 4, "r": 3, "target_modules": {"down_proj": [384, 128]}},
        "metadata": {"step": 11, "note": f"</pre>{HOSTILE}"},
    }
    fill_hypernetwork(recipe, examples, {"config.json": json.dumps(config).encode()})
    rejects = [reject("answer", f"{q}/caption", "no_targets") for q in ("b1", "b2")]
    fill(answers_set(recipe, where.data), answers(), rejects, made={"stage": "answer"})
    return where


@pytest.fixture(scope="module")
def where(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Where:
    """A data folder in which the stage has run once."""
    where = a_data_folder(recipe, tmp_path_factory.mktemp("report"))
    report.run(recipe, where)
    return where


def numbers(where: Where) -> dict[str, Any]:
    found: dict[str, Any] = read_json(f"{where.data}/report/report.json")
    return found


def test_systems(where: Where) -> None:
    got = numbers(where)["systems"]
    assert {system: row["n_answers"] for system, row in got.items()} == {"base": 5, "ours": 5, "blind": 5, "caption": 3}
    expected = {"base": (0.8, 0.8), "ours": (0.6, (3 + 2 / 3) / 5), "blind": (0.2, 0.2), "caption": (1 / 3, 1 / 3)}
    for system, (match, f1) in expected.items():
        assert (got[system]["exact_match"], got[system]["token_f1"]) == (pytest.approx(match), pytest.approx(f1))
    assert (got["base"]["n_input_tokens"], got["base"]["n_visual_tokens"]) == (50, 32)
    assert (got["ours"]["n_input_tokens"], got["ours"]["n_visual_tokens"]) == (11, 0)
    assert (got["base"]["ttft_s"], got["base"]["n_timed"]) == (pytest.approx(0.3), 2)
    assert (got["ours"]["ttft_s"], got["blind"]["ttft_s"]) == (0.1, None)


def test_families(where: Where) -> None:
    got = numbers(where)["families"]
    colour, direction = got[FAMILIES[0]], got[FAMILIES[1]]
    assert (colour["n_questions"], direction["n_questions"]) == (3, 2)
    assert colour["exact_match"] == pytest.approx({"base": 2 / 3, "ours": 1, "blind": 1 / 3, "caption": 1 / 2})
    assert direction["exact_match"] == {"base": 1, "ours": 0, "blind": 0, "caption": 0}
    assert direction["token_f1"]["ours"] == pytest.approx(1 / 3)
    assert colour["gap_closed"]["exact_match"]["value"] == pytest.approx(2)
    assert direction["gap_closed"]["exact_match"]["value"] == 0


def test_gap_and_differences_with_intervals(where: Where) -> None:
    """Two videos can be drawn as a, a; a, b; b, b: the interval's edges are the first and the last."""
    got = numbers(where)
    gap = got["gap_closed"]["exact_match"]
    assert gap["value"] == pytest.approx((3 - 1) / (4 - 1))
    assert (gap["low"], gap["high"]) == (pytest.approx(1 / 2), pytest.approx(1))
    against_base = got["differences"]["ours - base"]["exact_match"]
    assert against_base["value"] == pytest.approx(-1 / 5)
    assert (against_base["low"], against_base["high"]) == (pytest.approx(-1 / 2), 0)
    assert (against_base["n_videos"], against_base["n_questions"]) == (2, 5)
    against_caption = got["differences"]["ours - caption"]["exact_match"]
    assert against_caption["value"] == pytest.approx(1 / 3)
    assert (against_caption["n_videos"], against_caption["n_questions"]) == (1, 3)
    assert "other_video - blind" not in got["differences"]


def test_the_interval_is_about_that_of_the_normal_approximation() -> None:
    rng = random.Random(3)
    rows, asked = [], []
    for i in range(400):
        asked.append({"question_id": str(i), "video_id": str(i), "style": "s", "references": ["yes"]})
        for system, share in (("base", 0.9), ("ours", 0.6)):
            text = "yes" if rng.random() < share else "no"
            cost = {"n_input_tokens": 1, "n_visual_tokens": 0, "ttft_s": None}
            rows.append({"question_id": str(i), "system": system, "answer": text, **cost})
    scored = measures.score(rows, asked)
    got = measures.difference(scored, ("ours", "base"), "exact_match")
    ours, base = (np.array([one.exact_match for one in scored if one.system == s]) for s in ("ours", "base"))
    half = 1.96 * (ours - base).std() / 400**0.5
    assert got["value"] == pytest.approx((ours - base).mean())
    assert (got["low"], got["high"]) == pytest.approx((got["value"] - half, got["value"] + half), abs=0.005)


def test_a_gap_that_is_none_has_no_share_closed() -> None:
    rows = [row for row in answers() if row["system"] != "base"] + [
        row | {"system": "base"} for row in answers() if row["system"] == "blind"
    ]
    got = measures.gap_closed(measures.score(rows, questions()), "exact_match")
    assert (got["value"], got["low"], got["n_questions"]) == (None, None, 5)
    alone = [row for row in answers() if row["system"] == "ours"]
    assert measures.gap_closed(measures.score(alone, questions()), "exact_match")["value"] is None


def test_bytes_kept_of_a_video(where: Where) -> None:
    got = numbers(where)["kept_bytes_per_video"]
    n_factors = 4 * 3 * (384 + 128)
    assert got["ours"] == {"adapter fp32": 4 * n_factors, "adapter fp16": 2 * n_factors}
    kv_of_a_token = 4 * 2 * 4 * 4 * 32  # fp32, keys and values, 4 layers, 4 heads of 32
    assert got["base"] == {"frames JPEG": len(jpeg()) + len(jpeg(seed=1)), "KV cache": (50 - 11) * kv_of_a_token}
    assert got["caption"] == {"text": 7}  # the summary goes before the caption; two letters of five take two bytes
    assert got["blind"] == {"nothing": 0}


def test_counts_rejects_and_what_made_it(where: Where, recipe: Recipe) -> None:
    got = numbers(where)
    assert got["counts"] == {"videos": 2, "questions": 5, "answers": 18}
    assert got["rejects"] == [
        {"stage": "answer", "reason": "no_targets", "n": 2, "example": ""},
        {"stage": "frames", "reason": "truncated", "n": 2, "example": HOSTILE},
    ]
    assert got["recipe"] == recipe.model_dump(mode="json")
    assert got["hypernetwork"]["step"] == 11
    assert got["made_from"]["inputs"]["answers"]["asked"] == {"stage": "test of answers"}


class Page(HTMLParser):
    """What a browser would make of the page: elements, attributes, text, and the content of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.style = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "img", "br", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["style"]:
            self.style += data
        else:
            (self.scripts if self.open[-1:] == ["script"] else self.texts).append(data)


@pytest.fixture(scope="module")
def page(where: Where) -> Page:
    return Page(Path(f"{where.data}/report/report.html").read_text())


def test_hostile_texts_are_inert(page: Page) -> None:
    assert not page.open  # every element is closed where it should be: nothing broke out
    assert sum(tag == "script" for tag, _ in page.elements) == 1 and "alert" not in "".join(page.scripts)
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert tag != "img" or attributes["src"].startswith("data:image/jpeg;base64,")
    text = "".join(page.texts)
    assert text.count(f"What? {HOSTILE}") == 5
    assert SCRIPT in text and FAMILIES[1] in text and "<b>a" in text


def test_the_page_needs_no_network_and_says_right_and_wrong_in_words(page: Page) -> None:
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    addresses = [a[name] for _, a in page.elements for name in ("src", "href", "srcset") if name in a]
    assert addresses and all(address.startswith("data:") for address in addresses)
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "unsafe" not in policy
    cells = [a["class"] for tag, a in page.elements if tag == "td" and a.get("class") in ("right", "wrong")]
    assert (cells.count("right"), cells.count("wrong")) == (4 + 3 + 1 + 1, 1 + 2 + 4 + 2)
    for content in ("".join(page.scripts), page.style):  # byte for byte, or the browser would refuse them
        assert f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'" in policy
    text = "".join(page.texts)
    assert (text.count("✓ right"), text.count("✗ wrong")) == (9, 9)
    for tag, attributes in page.elements:
        assert tag != "img" or ("2 frames" in attributes["alt"] and "0.0, 1.5 of 2.0 seconds" in attributes["alt"])
        assert tag != "th" or attributes["scope"] in ("row", "col")
    assert "2 of 2 clips, drawn with seed 0" in text


def test_the_page_stays_small() -> None:
    pictures = [jpeg(width_px=160, height_px=96, seed=seed) for seed in range(12)]
    row = {"jpegs": pictures, "timestamps_s": [float(i) for i in range(12)], "duration_s": 12.0}
    asked = [{"question_id": f"{i}", "video_id": f"v{i}", "style": "s", "question": "?" * 99, "references": ["&" * 9]} for i in range(70)]
    cost = {"n_input_tokens": 1, "n_visual_tokens": 0, "ttft_s": None}
    rows = [{"question_id": f"{i}", "system": "ours", "answer": "&", **cost} for i in range(70)]
    scored = measures.score(rows, asked)
    clips = gallery.sample_clips(scored, questions=asked, frames=[row | {"video_id": f"v{i}"} for i in range(70)])
    assert 10 < len(clips) < gallery.MAX_CLIPS
    assert sum(len(clip.picture) for clip in clips) < 2_500_000
    assert [clip.video_id for clip in clips] != sorted(clip.video_id for clip in clips)


def test_the_second_run_makes_nothing_and_a_killed_one_is_finished(
    recipe: Recipe, where: Where, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(where.data) / "report"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert "nothing to do" in report.run(recipe, where)
    printed = capsys.readouterr().out
    assert "gap closed" in printed and "0.667" in printed and "adapter fp16" in printed
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "complete.json").unlink()
    (folder / "report.html").unlink()
    assert "nothing to do" not in report.run(recipe, where)
    assert (folder / "report.html").is_file() and Output(where.data, "report").is_complete()


def test_the_files_are_attached_to_the_mlflow_run(where: Where) -> None:
    attached = {path.name: path.read_bytes() for path in Path(where.data, "mlartifacts").rglob("report.*")}
    assert attached.keys() == {"report.json", "report.html"}
    assert json.loads(attached["report.json"]) == numbers(where)


def test_other_inputs_and_none_are_refused(recipe: Recipe, where: Where, tmp_path: Path) -> None:
    other = recipe.model_copy(update={"answer": AnswerSettings(systems=SYSTEMS, max_new_tokens=9)})
    with pytest.raises(BadInputError, match=r"answers/.* is not there or not complete"):
        report.run(other, where)
    with pytest.raises(BadInputError, match="run `video2lora targets` first"):
        report.run(recipe, Where(data=str(tmp_path)))
