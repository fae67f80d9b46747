"""The page of a report in a real browser: hostile texts, filters, order, keys, links, thousands of rows, a phone, light and dark.

Screenshots go to VIDEO2LORA_SCREENSHOTS (data/screenshots), which CI keeps; nothing is compared with them.
"""

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from made_rows import BENCHMARKS, a_row, rows_of
from PIL import Image

from infra.config import Recipe
from infra.evaluation_config import EvaluationSettings
from training import compare, gallery, measures, page

pytestmark = pytest.mark.slow

SYSTEMS = ("base", "ours", "other_video", "blind", "champion")
SHARES = {"base": 0.95, "ours": 0.85, "other_video": 0.35, "blind": 0.3, "champion": 0.85}
CHECKS = Path(__file__).parent / "page_checks.js"
SCREENSHOTS = Path(os.environ.get("VIDEO2LORA_SCREENSHOTS", "data/screenshots"))
PHONE = {"width": 360, "height": 740}
DESK = {"width": 1280, "height": 860}
HOSTILE = (
    "<script>document.title='owned'; alert(1)</script>",
    "</script><script>alert(2)</script><!--<script>",
    '"><img src=x onerror="alert(3)"> \'quoted\' & "quoted" {{ 7 * 7 }}',
    "right to left: \u202e\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 [then] left",
    "emoji \U0001f469\u200d\U0001f680 and lines\u2028of\u2029two kinds",
    "a" * 600,
)


def picture(seed: int) -> bytes:
    pixels = np.full((48, 64, 3), (40, 44, 60), np.uint8)
    pixels[12:36, 6 + 9 * seed : 24 + 9 * seed] = (210, 80, 60)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def frames(rows: list[dict[str, Any]]) -> pa.Table:
    """Of the first videos."""
    shown = {"jpegs": [picture(i) for i in range(4)], "timestamps_s": [0.0, 0.5, 1.0, 1.5], "duration_s": 2.0}
    videos = sorted({row["video_id"] for row in rows})[:60]
    return pa.Table.from_pylist([{"video_id": video, **shown} for video in videos])


def figures() -> list[dict[str, Any]]:
    """Made up, in the shape of figure.json."""
    about = {"n_questions": 90, "n_videos": 30, "left_out": [{"key": "v", "reason": "missing"}]}
    sweep = [
        {
            "frame_cap": cap, "longest_edge_px": edge, "n_videos": 30, "n_base_fits": 30 if cap < 48 else 3, "frames": {"mean": 0.8 * cap},
            "differences": {"ours - base" if cap < 48 else "ours - sampled": {"token_f1": {"value": 0.004 * (cap - edge / 16)}}},
            "systems": {
                name: {"ttft_s": 0.01 * cap * n, "n_input_tokens": 30.0 * n} for name, n in (("base", 5), ("sampled", 4), ("ours", 1))
            },
        }
        for cap in (8, 24, 48)
        for edge in (224, 512)
    ]  # fmt: skip
    seconds = {
        system: {str(n): {"value": once / n + each} for n in (1, 2, 5, 10)}
        for system, once, each in (("ours", 0.5, 0.02), ("again", 0.0, 0.3))
    }
    return [
        {"table": "sweep", **about, "cells": sweep},
        {"table": "efficiency", **about, "n_measured": 30, "device": "cpu", "parts_s": {"decode": {"value": 0.1}}, "amortised_s": seconds},
    ]


def report(rows: list[dict[str, Any]], *, drawn: list[dict[str, Any]] | None = None) -> str:
    recipe = Recipe(evaluation=EvaluationSettings(seeds=(7, 3), n_draws=200))
    systems = [system for system in SYSTEMS if any(row["system"] == system for row in rows)]
    numbers = {
        **measures.numbers(rows, systems, recipe.evaluation),
        "split": "test",
        "kept_bytes_per_video": {system: {"adapter fp16": 33e3} for system in systems},
        "judge": None,
        "rejects": [{"stage": "frames", "reason": "truncated", "n": 2, "example": HOSTILE[1]}],
        "figures": drawn or [],
        "recipe": recipe.model_dump(mode="json"),
        "hypernetwork": {"step": 3},
        "made_from": {},
        "drawn": {"benchmarks": {"toy_qa": {"n_drawn": 5, "seed": 0, "annotations": HOSTILE[0]}}, "question_ids": []},
    }
    return page.render_report(numbers, gallery.show(rows, frames(rows), systems=systems, scores=numbers["scores"]))


@pytest.fixture(scope="module")
def browser(chromium: dict[str, Any]) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**chromium)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page from disk; at the end nothing was said on the console, asked of the network, or put up as a dialog."""
    contexts, heard = [], []

    def open_page(html: str, *, at: str = "", viewport: dict[str, int] = DESK, **settings: Any) -> Any:
        path = tmp_path / f"page-{len(contexts)}.html"
        path.write_text(html)
        context = browser.new_context(viewport=viewport, **settings)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: heard.append(message.text))
        tab.on("pageerror", lambda error: heard.append(str(error)))
        tab.on("dialog", lambda dialog: (heard.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else heard.append(request.url))
        tab.goto(path.as_uri() + at)
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert heard == []


def shot(tab: Any, name: str, *, full_page: bool = False) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=full_page)


def ids(tab: Any) -> list[str]:
    found: list[str] = tab.eval_on_selector_all(".row", "rows => rows.map(row => row.dataset.id)")
    return found


def checked(tab: Any, name: str) -> list[Any]:
    """What a check of page_checks.js finds wrong."""
    found: list[Any] = tab.evaluate(f"() => {{ {CHECKS.read_text()}; return checks.{name}(); }}")
    return found


def current(tab: Any) -> str | None:
    found: str | None = tab.evaluate("document.querySelector('.row.current')?.dataset.id ?? null")
    return found


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return rows_of(80, shares=SHARES, judged=True)


@pytest.fixture(scope="module")
def html(rows: list[dict[str, Any]]) -> str:
    return report(rows, drawn=figures())


def test_hostile_texts_are_inert(opened: Callable[..., Any]) -> None:
    made = []
    for i, text in enumerate(HOSTILE):
        about = {
            "style": text[:60].encode("utf-8", "replace").decode(),
            "question": text,
            "references": [text],
            "judge_points": 3,
            "judge": 0.6,
        }
        made += [a_row(f"v{i}-{text}", system, 0.5, answer=text, judge_rationale=text, **about) for system in ("base", "ours")]
    tab = opened(report(made))
    assert tab.title() == "video2lora: What zero visual tokens answer"
    assert tab.locator(".row").count() == len(HOSTILE)
    shown = tab.eval_on_selector_all(".row h3", "all => all.map(one => one.textContent)")
    said = tab.eval_on_selector_all("td.answer > span", "all => all.map(one => one.textContent)")
    assert set(shown) == set(said) == set(HOSTILE)
    assert tab.locator("script").count() == 2 and tab.locator(".row img").count() == len(HOSTILE), "contact sheets alone"
    tab.fill("#search", "</script><script>")
    assert tab.locator(".row").count() == 1
    tab.keyboard.press("Escape")
    tab.keyboard.press("j")
    assert current(tab) == f"v1-{HOSTILE[1]}"
    address = tab.evaluate("location.hash")
    again = opened(report(made), at=address)
    assert current(again) == f"v1-{HOSTILE[1]}"
    tab.fill("#search", "")
    shot(tab, "hostile", full_page=True)


def test_filters_and_order(opened: Callable[..., Any], html: str, rows: list[dict[str, Any]]) -> None:
    tab = opened(html)
    count = tab.locator("#count")
    assert count.inner_text() == "240 of 240 questions, page 1 of 12" and tab.locator(".row").count() == 20
    tab.select_option("#benchmark", "toy_qa")
    assert count.inner_text().startswith("160 of 240 ")
    assert tab.eval_on_selector_all("#style option", "all => all.map(one => one.value)") == ["", *BENCHMARKS["toy_qa"]]
    tab.select_option("#style", "direction")
    assert count.inner_text().startswith("80 of 240 ")
    tab.fill("#search", "V0017")
    assert ids(tab) == ["v0017-toy_qa-direction"]
    tab.fill("#search", "nothing like it")
    assert "nothing fits" in count.inner_text() and tab.locator("#next").is_disabled()
    tab.fill("#search", "")
    tab.select_option("#benchmark", "")
    tab.select_option("#style", "")
    score = {(row["question_id"], row["system"]): row["judge"] for row in rows if row["seed"] == 7}
    for against in ("base", "champion"):
        change = {one: score[one, "ours"] - score[one, against] for one, _ in score}
        tab.select_option("#against", label=against)
        for verdict, fits in (("worse", lambda by: by < 0), ("better", lambda by: by > 0), ("same", lambda by: by == 0)):
            tab.select_option("#verdict", verdict)
            assert count.inner_text().startswith(f"{sum(map(fits, change.values()))} of 240 ")
        tab.select_option("#verdict", "")
        for order, sign in (("worst", 1), ("best", -1)):
            tab.select_option("#order", order)
            first = [sign * change[one] for one in ids(tab)]
            assert first == sorted(first) and first[0] == min(sign * by for by in change.values()) < 0
    tab.select_option("#score", label="exact match")
    tab.select_option("#verdict", "same")
    assert "toy_captions" not in " ".join(ids(tab)), "captions have no exact match"


def test_keys(opened: Callable[..., Any], html: str) -> None:
    tab = opened(html)
    order = ids(tab)
    tab.keyboard.press("j")
    tab.keyboard.press("j")
    assert current(tab) == order[1] == tab.evaluate("document.activeElement.dataset.id")
    tab.keyboard.press("k")
    assert current(tab) == order[0]
    tab.keyboard.press("ArrowDown")
    assert current(tab) == order[1]
    for _ in range(19):
        tab.keyboard.press("j")
    assert tab.locator("#count").inner_text().endswith("page 2 of 12") and current(tab) == ids(tab)[0] != order[0]
    tab.keyboard.press("ArrowUp")
    assert current(tab) == order[19]
    tab.keyboard.press("n")
    assert tab.locator("#count").inner_text().endswith("page 2 of 12")
    tab.keyboard.press("/")
    tab.keyboard.type("jk?")
    assert tab.locator("#search").input_value() == "jk?" and not tab.locator("#help").is_visible()
    tab.keyboard.press("Escape")
    tab.keyboard.press("?")
    assert tab.locator("#help").is_visible()
    shot(tab, "help")
    tab.keyboard.press("Escape")
    assert not tab.locator("#help").is_visible()


def test_a_link_leads_to_its_row_whatever_is_filtered(opened: Callable[..., Any], html: str) -> None:
    tab = opened(html)
    tab.select_option("#benchmark", "toy_captions")
    tab.locator("#next").click()
    wanted = ids(tab)[-1]
    tab.reload()
    assert wanted not in ids(tab)
    again = opened(html, at=f"#row={wanted}")
    assert current(again) == wanted == again.evaluate("document.activeElement.dataset.id")
    box = again.locator(".row.current").bounding_box()
    assert box is not None and 0 <= box["y"] < DESK["height"]
    shot(again, "linked")
    tab.select_option("#benchmark", "toy_qa")
    tab.evaluate(f"location.hash = '#row={wanted}'")
    tab.wait_for_selector(".row.current")
    assert current(tab) == wanted and tab.locator("#benchmark").input_value() == ""
    tab.evaluate("location.hash = '#row=nobody'")
    tab.wait_for_function("document.getElementById('count').textContent.includes('not among')")


def test_thousands_of_rows_are_as_many_elements_as_a_few(opened: Callable[..., Any], html: str) -> None:
    n = "document.querySelectorAll('*').length"
    few = opened(html)
    many = opened(report(rows_of(1700, shares=SHARES, seeds=(7,), judged=True), drawn=figures()))
    assert many.locator("#count").inner_text().startswith("5,100 of 5,100 questions")
    assert many.evaluate(n) <= few.evaluate(n) + 20
    for needle, left in (("v1234", 3), ("v12", 300), ("", 5100)):
        many.fill("#search", needle)
        assert many.locator("#count").inner_text().startswith(f"{left:,} of 5,100")
        assert many.evaluate(n) <= few.evaluate(n) + 20
    many.select_option("#order", "worst")
    assert many.locator(".row").count() == 20


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_on_a_desk_and_on_a_phone(opened: Callable[..., Any], html: str, scheme: str) -> None:
    for name, viewport in (("desk", DESK), ("phone", PHONE)):
        tab = opened(html, viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
        assert tab.evaluate("document.documentElement.scrollWidth") == viewport["width"], "nothing is wider than the window"
        shot(tab, f"report-{name}-{scheme}", full_page=True)
        tab.locator("#outputs").scroll_into_view_if_needed()
        tab.keyboard.press("j")
        shot(tab, f"outputs-{name}-{scheme}")
        assert checked(tab, "pale") == [] == checked(tab, "unnamed") == checked(tab, "skipped")


def test_the_first_key_leads_past_the_tables_and_is_seen(opened: Callable[..., Any], html: str) -> None:
    tab = opened(html)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "To the outputs"
    outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle + getComputedStyle(document.activeElement).clipPath")
    assert outline == "solidnone", "the focus is to be seen"


def test_without_a_script_the_tables_are_there(opened: Callable[..., Any], html: str) -> None:
    tab = opened(html, java_script_enabled=False)
    assert tab.locator("#systems tbody tr").count() == len(SYSTEMS) and tab.locator("#systems").is_visible()
    assert (
        tab.locator("noscript").inner_text().strip().startswith("The outputs need this page's script")
        and not tab.locator("#bar").is_visible()
    )


def test_a_comparison_links_to_what_changed_most(opened: Callable[..., Any], rows: list[dict[str, Any]]) -> None:
    sides = [rows, rows_of(80, shares={**SHARES, "ours": 0.6}, judged=True, draw=9)]
    numbers, kept = compare.compared(sides, names=["one", HOSTILE[0]])
    tab = opened(page.render_comparison(numbers, compare._shown(kept, numbers), lines=compare.lines(numbers)))
    assert tab.locator("#count").inner_text().startswith("240 of 240")
    chosen = tab.eval_on_selector_all("#system, #against", "all => all.map(one => one.selectedOptions[0].text)")
    assert chosen == ["ours, B", "ours, A"]
    tab.locator("#changed a").first.click()
    tab.wait_for_selector(".row.current")
    assert current(tab) == numbers["changed_most"][0]["question_id"]
    shot(tab, "compare")
    assert json.loads(tab.locator("#data").text_content())["pictures"] == {}
