"""A report from tables: its files, its rows, what is told of systems and rejects, and a page that stays inert whatever the texts say."""

import base64
import hashlib
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_examples import fill, fill_hypernetwork, fill_targets
from PIL import Image

from infra.attempt import reject
from infra.config import FramesSettings, Recipe, VLMSettings, Where
from infra.errors import BadInputError
from infra.evaluation_config import AnswerSettings, EvaluationSettings, FigureSettings, JudgeModel, JudgeSettings
from infra.judged import judged
from infra.objects import read_json, write_new
from infra.outputs import Output
from infra.sets import (
    FIGURES,
    REPORTS,
    answers_set,
    examples_made,
    examples_set,
    frames_made,
    frames_set,
    judgements_made,
    judgements_set,
    made_output,
    outputs_of,
)
from infra.storage import Table
from training import report, report_rows, verdicts
from training.figures.figure import figure_made
from training.figures.pruning import Pruning
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
            "task": "question",
        }
        for question_id, references in REFERENCES.items()
    ]


def answers(seed: int = 7) -> list[dict[str, Any]]:
    return [
        {
            "question_id": question_id,
            "system": system,
            "answer": text if (seed, system, question_id) != (3, "ours", "a2") else "left",
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
        evaluation=EvaluationSettings(seeds=(7, 3), n_draws=500),
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
    for seed, one in zip(recipe.evaluation.seeds or (), recipe.of_seeds(), strict=True):
        fill_hypernetwork(one, examples, {"config.json": json.dumps(config).encode()})
        rejects = [reject("answer", f"{q}/caption", "no_targets") for q in ("b1", "b2")]
        fill(answers_set(one, where.data), answers(seed), rejects, made={"stage": "answer", "seed": seed})
    return where


@pytest.fixture(scope="module")
def where(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Where:
    """A data folder in which the stage has run once."""
    where = a_data_folder(recipe, tmp_path_factory.mktemp("report"))
    report.run(recipe, where)
    return where


def folder_of(where: Where) -> Path:
    (output,) = outputs_of(where.data, REPORTS)
    return Path(output.folder)


def numbers(where: Where) -> dict[str, Any]:
    found: dict[str, Any] = read_json(f"{folder_of(where)}/report.json")
    return found


def test_systems_over_both_trainings(where: Where) -> None:
    """Ours is right on three questions in one training, on four in the other, and says one half of the fifth in the first."""
    got = numbers(where)
    assert (got["seeds"], got["scores"], got["primary"]) == ([7, 3], ["token_f1", "exact_match", "rouge_l"], "token_f1")
    systems = got["systems"]
    assert {system: row["n_answers"] for system, row in systems.items()} == {"base": 10, "ours": 10, "blind": 10, "caption": 6}
    expected = {"base": (0.8, 0.8), "ours": (0.7, (3 + 2 / 3 + 4) / 10), "blind": (0.2, 0.2), "caption": (1 / 3, 1 / 3)}
    for system, (match, f1) in expected.items():
        scores = systems[system]["scores"]
        assert (scores["exact_match"], scores["token_f1"]) == (pytest.approx(match), pytest.approx(f1))
    assert (systems["base"]["n_input_tokens"], systems["base"]["n_visual_tokens"]) == (50, 32)
    assert (systems["ours"]["n_input_tokens"], systems["ours"]["n_visual_tokens"]) == (11, 0)
    assert (systems["base"]["ttft_s"], systems["base"]["n_timed"]) == (pytest.approx(0.3), 2)
    assert (systems["ours"]["ttft_s"], systems["blind"]["ttft_s"]) == (0.1, None)
    assert (systems["blind"]["degenerate"], systems["base"]["degenerate"]) == ({"empty": 2}, {})


def test_benchmarks_and_styles(where: Where) -> None:
    got = numbers(where)["benchmarks"]["toy"]
    assert (got["task"], got["n_questions"], got["n_videos"]) == ("question", 5, 2)
    colour, direction = got["styles"][FAMILIES[0]], got["styles"][FAMILIES[1]]
    assert (colour["n_questions"], direction["n_questions"]) == (3, 2)
    assert colour["scores"]["exact_match"] == pytest.approx({"base": 2 / 3, "ours": 1, "blind": 1 / 3, "caption": 1 / 2})
    assert direction["scores"]["exact_match"] == {"base": 1, "ours": 1 / 4, "blind": 0, "caption": 0}
    assert colour["gap_closed"]["exact_match"]["value"] == pytest.approx(2)
    assert direction["gap_closed"]["exact_match"]["value"] == 1 / 4
    (claim,) = got["claims"]["exact_match"]
    assert (claim["system"], claim["against"], claim["margin"], claim["n_seeds"]) == ("ours", "base", 0.05, 2)
    assert claim["value"] == pytest.approx(-0.1) and claim["noninferior"] is False


def test_a_row_for_each_question_system_and_training(where: Where) -> None:
    rows = pq.read_table(folder_of(where) / "rows.parquet")
    assert rows.schema == report_rows.SCHEMA and rows.num_rows == 36
    (row,) = (r for r in rows.to_pylist() if (r["question_id"], r["system"], r["seed"]) == ("a2", "ours", 7))
    assert (row["answer"], row["exact_match"], row["token_f1"], row["wups"]) == ("to the left", 0.0, pytest.approx(2 / 3), None)
    assert (row["benchmark"], row["task"], row["references"], row["degenerate"]) == ("toy", "question", ["left"], None)


def test_bytes_kept_of_a_video(where: Where) -> None:
    got = numbers(where)["kept_bytes_per_video"]
    n_factors = 4 * 3 * (384 + 128)
    assert got["ours"] == {"adapter fp32, per chunk": 4 * n_factors, "adapter fp16, per chunk": 2 * n_factors}
    kv_of_video = (50 - 11) * 2 * 4 * 4 * 32  # tokens, keys and values, 4 layers, 4 heads of 32
    assert got["base"] == {
        "frames JPEG": len(jpeg()) + len(jpeg(seed=1)),
        "KV cache fp32": 4 * kv_of_video,
        "KV cache fp16": 2 * kv_of_video,
    }
    assert got["caption"] == {"text": 7}  # the summary goes before the caption; two letters of five take two bytes
    assert got["blind"] == {"nothing": 0}


def test_counts_rejects_and_what_made_it(where: Where, recipe: Recipe) -> None:
    got = numbers(where)
    assert got["counts"] == {"videos": 2, "questions": 5, "answers": 36}
    assert got["rejects"] == [
        {"stage": "answer", "reason": "no_targets", "n": 4, "example": ""},
        {"stage": "frames", "reason": "truncated", "n": 2, "example": HOSTILE},
    ]
    assert got["recipe"] == recipe.model_dump(mode="json")
    assert got["drawn"] == {"benchmarks": {}, "question_ids": ["a1", "a2", "a3", "b1", "b2"]}
    assert got["hypernetwork"]["step"] == 11
    assert [one["asked"] for one in got["made_from"]["inputs"]["answers"]] == [{"stage": "test of answers"}] * 2


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
        if tag not in ("meta", "img", "br", "input"):
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
    return Page((folder_of(where) / "report.html").read_text())


def test_hostile_texts_are_inert(page: Page) -> None:
    """Rejects, styles and the hypernetwork's notes stand in the page; questions and answers in its JSON."""
    assert not page.open  # every element is closed where it should be: nothing broke out
    assert sum(tag == "script" for tag, _ in page.elements) == 2
    for tag, attributes in page.elements:
        assert tag != "img" and not any(name.startswith("on") for name in attributes)
    text = "".join(page.texts)
    assert HOSTILE in text and FAMILIES[1] in text and "</pre>" in text
    data, script = page.scripts
    assert not set(data) & set("<>&") and data.isascii() and "alert" not in script
    rows = json.loads(data)["rows"]
    assert {row["question"] for row in rows} == {f"What? {HOSTILE}"} and len(rows) == 5
    assert SCRIPT in {said["answer"] for row in rows for said in row["said"] if said}
    assert {row["video"] for row in rows} == {"<b>a", "<b>b"} == set(json.loads(data)["pictures"])


def test_the_page_needs_no_network_and_says_in_words_what_holds(page: Page) -> None:
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    addresses = [a[name] for _, a in page.elements for name in ("src", "href", "srcset") if name in a]
    assert addresses and all(address.startswith("#") for address in addresses)
    pictures = json.loads(page.scripts[0])["pictures"].values()
    assert all(one["src"].startswith("data:image/jpeg;base64,") and "2 of 2 frames" in one["alt"] for one in pictures)
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for content in (page.scripts[1], page.style):  # byte for byte, or the browser would refuse them
        assert f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'" in policy
    ids = {a["id"] for _, a in page.elements if "id" in a}
    for tag, attributes in page.elements:
        assert tag != "th" or attributes["scope"] in ("row", "col")
        assert not attributes.get("href", "").startswith("#") or attributes["href"][1:] in ids
        assert attributes.get("aria-labelledby", next(iter(ids))) in ids
    text = " ".join("".join(page.texts).split())
    assert "5 of 5 questions about 2 clips, in an order drawn with seed 0; answers of the training with seed 7. 2 of these clips" in text
    assert "2 trainings, seeds 7, 3" in text
    assert "ours is not shown to be as good as base within 0.05 on token F1 it may be worse, −" in text
    assert "ours over the question alone: +0.567" in text


def test_the_second_run_makes_nothing_and_a_killed_one_is_finished(
    recipe: Recipe, where: Where, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(where)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert before.keys() == {"made.json", "report.json", "report.html", "rows.parquet", "complete.json"}
    assert f"complete, nothing to do; gap closed 0.94; open {folder}/report.html" in report.run(recipe, where)
    printed = capsys.readouterr().out
    assert "gap closed by exact match" in printed and "0.833" in printed and "adapter fp16" in printed
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "complete.json").unlink()
    (folder / "report.html").unlink()
    assert "nothing to do" not in report.run(recipe, where)
    assert (folder / "report.html").is_file() and Output(where.data, f"{REPORTS}/{folder.name}").is_complete()


def test_the_files_are_attached_to_the_mlflow_run(where: Where) -> None:
    attached = {path.name: path.read_bytes() for path in Path(where.data, "mlartifacts").rglob("report/*")}
    assert attached.keys() == {"report.json", "report.html", "rows.parquet"}
    assert json.loads(attached["report.json"]) == numbers(where)


def test_other_inputs_and_none_are_refused(recipe: Recipe, where: Where, tmp_path: Path) -> None:
    other = recipe.model_copy(update={"answer": AnswerSettings(systems=SYSTEMS, max_new_tokens=9)})
    with pytest.raises(BadInputError, match=r"answers/.* is not there or not complete"):
        report.run(other, where)
    with pytest.raises(BadInputError, match="run `video2lora targets` first"):
        report.run(recipe, Where(data=str(tmp_path)))


def judgement_ids() -> set[str]:
    """Of all answers there are."""
    pairs = ((question, answer) for question in questions() for answer in answers() if answer["question_id"] == question["question_id"])
    return {judged(question, answer["answer"]).judgement_id for question, answer in pairs}


def test_a_judge_and_a_figure_make_another_report_beside_the_first(recipe: Recipe, tmp_path: Path) -> None:
    where = a_data_folder(recipe, tmp_path)
    judge = JudgeSettings(model="toy-judge")
    judging = recipe.model_copy(update={"judge": judge})
    with pytest.raises(BadInputError, match="run `video2lora judge` first"):
        report.run(judging, where)
    marked = [
        {
            "judgement_id": judged(question, answer["answer"]).judgement_id,
            "score": 0.8,
            "points": 4,
            "rationale": HOSTILE,
            "replies": ["{}"],
        }
        for question in questions()
        for answer in answers()
        if answer["question_id"] == question["question_id"] == "a1"
    ]
    unique = list({row["judgement_id"]: row for row in marked}.values())
    table = judgements_set(judge, where.data, weights="w", rubrics="r")
    made = judgements_made(judge, weights="w", rubrics="r")
    unmarked = judged(questions()[1], ANSWERS["base"]["a2"]).judgement_id
    fill(table, unique, [reject("judge", unmarked, "judge_error")], made=made)
    with pytest.raises(BadInputError, match=r"\d+ of \d+ different answers were not given to the judge toy-judge: run `video2lora judge`"):
        report.run(judging, where)
    refused = sorted(judgement_ids() - {row["judgement_id"] for row in unique})
    fill(table, unique, [reject("judge", key, "judge_error") for key in refused], made=made)
    of_other = dict.fromkeys(table.spec.schema.names) | {"judgement_id": "of another recipe", "score": 1.0}
    fill(table, [of_other], [reject("judge", "of another recipe too", "teacher_error")], made=made)  # which the set was asked for last
    report.run(judging, where)
    got = numbers(where)
    assert got["primary"] == "judge" and got["systems"]["ours"]["scores"]["judge"] == pytest.approx(0.8)
    assert got["judge"] == {
        "model": "toy-judge", "set": table.set, "n_judged": 10, "missing": {"base": 6, "ours": 8, "blind": 8, "caption": 4},
        "rejects": {"judge_error": len(refused)}, "agreement": None,
    }  # fmt: skip
    (told, *_) = verdicts.verdicts(got)
    assert told.text == "26 answers have no mark by the judge: what is claimed is of the others" and told.holds is None
    assert told.detail.startswith("6 of base, 8 of ours, ")
    # base says of b1 what it says of a1, whose question and references are the same words: judged once
    assert [one["margin"] for one in got["benchmarks"]["toy"]["claims"]["judge"]] == [0.15, 0.05]
    drawn = a_figure(judging.of_seeds()[0], where, kept="top-1")
    a_figure(judging.of_seeds()[0].model_copy(update={"figures": FigureSettings(n_videos=3)}), where, kept="bottom-1")
    assert report.figures_of(judging, where) == [drawn], "of other settings"
    report.run(judging, where)
    first, second = sorted(outputs_of(where.data, REPORTS), key=lambda one: str(one.completed_at()))
    assert "top-1" not in Path(first.folder, "report.html").read_text()
    html = Path(second.folder, "report.html").read_text()
    assert "top-1" in html and "0.123" in html and "bottom-1" not in html
    fill(Table(where.data, "questions"), [questions()[0] | {"question_id": "b9"}])
    assert report.figures_of(judging, where) == [], "of the questions of before"


def a_figure(recipe: Recipe, where: Where, *, kept: str) -> Output:
    made = figure_made(Pruning(), recipe, where)
    figure = made_output(where.data, FIGURES, "pruning", made)
    figure.begin(made)
    cell = {"kept": kept, "n_videos": 2, "systems": {"generated": {"token_f1": 0.123}}}
    drawn = {"table": "pruning", "n_questions": 5, "n_videos": 2, "left_out": [], "cells": [cell]}
    write_new(f"{figure.folder}/figure.json", json.dumps(drawn).encode())
    figure.complete()
    return figure


def test_wordnet_and_the_second_judge_make_another_report_when_they_come(recipe: Recipe, tmp_path: Path) -> None:
    without = a_data_folder(recipe, tmp_path).model_copy(update={"wordnet": str(tmp_path / "wordnet")})
    judge = JudgeSettings(model="toy-judge", second=JudgeModel(model="toy-second"))
    judging = recipe.model_copy(update={"judge": judge})
    mark = {
        "judgement_id": judged(questions()[0], ANSWERS["base"]["a1"]).judgement_id,
        "score": 0.8,
        "points": 4,
        "rationale": "",
        "replies": [],
    }

    def judge_all(by: JudgeModel, rubrics: str) -> None:
        made = judgements_made(by, weights="w", rubrics=rubrics)
        rest = [reject("judge", key, "judge_error") for key in sorted(judgement_ids() - {str(mark["judgement_id"])})]
        fill(judgements_set(by, without.data, weights="w", rubrics=rubrics), [mark], rest, made=made)

    judge_all(judge, "r")
    names = [report.output_of(judging, without)[0].name]
    (tmp_path / "wordnet").mkdir()
    names.append(report.output_of(judging, without)[0].name)
    assert report.output_of(judging, without)[0].name == names[-1]
    assert judge.second is not None
    judge_all(judge.second, "r")
    names.append(report.output_of(judging, without)[0].name)
    judge_all(judge.second, "others, which say the same of it")
    names.append(report.output_of(judging, without)[0].name)
    assert len(set(names)) == 4
