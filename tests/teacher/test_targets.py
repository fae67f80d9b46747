"""The stage: row functions on plain data; then a real run through Ray and vLLM, with transformers as its oracle, and one after a change."""

import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import yaml
from PIL import Image

from infra.artifacts import FRAMES, QUESTIONS, VIDEOS
from infra.config import FramesSettings, Recipe, TeacherSettings, Where
from infra.sets import frames_made, frames_set
from infra.stage import Order
from infra.storage import Table
from teacher import targets
from teacher.engine import Refused, Written
from teacher.models import find_model
from teacher.prompts import Prompt, load_prompt_set
from teacher.write_targets import refused_text, target_key, target_reject, target_row, teacher_name
from tests.teacher.clips_of_noise import noise_jpeg
from video2lora.pretrained import load_vlm
from video2lora.sampling import Frames, Sampling

PROMPT = Prompt("summary-1", "summary", "Summarize the video.")
MADE_WORLD = load_prompt_set("made_world")


def table_of(spec: Any, rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=spec.schema)


def test_every_prompt_of_every_video_with_frames_is_asked_for() -> None:
    splits = {"a": "train", "b": "test"}
    videos = table_of(VIDEOS, [{"video_id": name, "split": split, "span_kind": "full"} for name, split in splits.items()])
    asked = [{"question_id": f"q{name}", "video_id": name, "question": "What shape is shown?"} for name in ("a", "b", "gone")]
    found = targets.prompts_by_video(["a", "b"], videos, table_of(QUESTIONS, asked), MADE_WORLD)
    assert {name: [one.task for one in of] for name, of in found.items()} == {
        "a": ["summary", "caption", "question"],
        "b": ["summary", "caption"],
    }
    of_paper = targets.prompts_by_video(["a"], videos, table_of(QUESTIONS, []), load_prompt_set("paper"))
    assert [one.prompt_id for one in of_paper["a"]] == ["full-1"]


def test_frames_come_with_what_is_left_to_ask() -> None:
    (asked,) = targets.ask_by_shard({"/shard": ["a", "b"], "/other": ["c"]}, {"b": [PROMPT], "gone": [PROMPT]})
    assert set(asked["address"].to_pylist()) == {"/shard"}
    frames = table_of(FRAMES, [{"video_id": name} for name in ("a", "b")]).select(targets.FRAME_COLUMNS)
    (found,) = targets.with_prompts(frames, asked).to_pylist()
    assert found["video_id"] == "b"
    assert [Prompt(**one) for one in found["prompts"]] == [PROMPT]


def test_a_text_is_refused_if_cut_off_or_empty() -> None:
    written = Written("red", 2, "stop", 40)
    assert refused_text(written, keep_unfinished=False) is None
    cut_off = Written("red", 2, "length", 40)
    assert refused_text(cut_off, keep_unfinished=True) is None
    for text, reason in ((Written("", 1, "stop", 40), "empty_target"), (cut_off, "unfinished_target")):
        why = refused_text(text, keep_unfinished=False)
        assert why is not None and why.reason == reason


def test_a_row_has_every_column_and_a_reject_the_same_key() -> None:
    spec, written = Table("", "targets").spec, Written("red", 2, "stop", 40, [5, 6], [5, 7, 6, 8], [-0.1, -2.0, -0.2, -1.0])
    row = target_row("a", PROMPT, written, "t")
    assert list(row) == spec.schema.names
    assert table_of(spec, [row]).to_pylist()[0]["top_token_ids"] == [5, 7, 6, 8]
    assert target_key("a", PROMPT) == spec.key_of(row) == f"a/summary-1/{PROMPT.version}"
    assert target_reject("a", PROMPT, Refused("empty_target", "nothing"))["key"] == spec.key_of(row)


@dataclass(frozen=True)
class Finished:
    """A finished run, and what went in."""

    recipe: Recipe
    where: Where
    told: str
    before: dict[str, Any]  # the row that a run before it had committed
    table: Table
    rows: list[dict[str, Any]]
    rejects: list[dict[str, Any]]


VIDEO_IDS = ("train-0", "train-1", "train-2", "validation-0", "test-0", "damaged-0")
LONG, SPELT = "Which way does the object move?" * 20, "What is <image> about?"
TIMES_S = [0.0, 0.9, 1.9]


def complete(order: Order, rows: list[dict[str, Any]]) -> None:
    """Write a table in blocks of four, and close its books."""
    attempt = order.begin()
    for start in range(0, len(rows), 4):
        attempt.write([dict.fromkeys(order.table.spec.schema.names) | row for row in rows[start : start + 4]], [])
    attempt.complete()


def write_inputs(recipe: Recipe, root: str) -> None:
    """Six videos of three frames, one of them damaged; a question for each, one far too long, one with an image token."""
    rng = np.random.default_rng(7)
    videos, frames = [], []
    for name in VIDEO_IDS:
        jpegs = [noise_jpeg(rng) for _ in TIMES_S]
        jpegs[1] = jpegs[1][:300] if name == "damaged-0" else jpegs[1]
        split = "train" if name == "damaged-0" else name.split("-")[0]
        videos.append({"video_id": name, "version": "1", "uri": f"/{name}.mp4", "split": split})
        frames.append({"video_id": name, "sampling": "uniform-3", "jpegs": jpegs, "timestamps_s": TIMES_S, "duration_s": 2.9})
        frames[-1] |= {"height_px": 40, "width_px": 64}
    asked = [(f"q-{name}", name, "What shape is shown?") for name in VIDEO_IDS]
    asked += [("q-long", "train-0", LONG), ("q-spelt", "train-1", SPELT)]
    questions = [
        {"question_id": key, "version": "1", "video_id": name, "question": text, "references": ["circle"]} for key, name, text in asked
    ]
    for table, rows in ((Table(root, "videos"), videos), (frames_set(recipe, root), frames), (Table(root, "questions"), questions)):
        made = frames_made(recipe) if table.name == "frames" else {}
        complete(Order(table, {"stage": "test"}, [table.spec.key_of(row) for row in rows], made), rows)


@pytest.fixture(scope="module")
def finished(vlm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One real run, which continues behind a block that an earlier one had committed. One CPU: engine and reader must share it."""
    root = str(tmp_path_factory.mktemp("data"))
    teacher = TeacherSettings(model=str(vlm_folder), prompts="made_world", max_tokens=5, max_model_len=160, videos_per_block=2)
    recipe = Recipe(frames=FramesSettings(sampling=Sampling(policy="uniform", n_frames=3)), teacher=teacher)
    write_inputs(recipe, root)
    where = Where(data=root, n_cpus=1)
    weights = teacher_name(find_model(teacher), teacher)
    question = Prompt("q-train-2", "question", "What shape is shown?")
    before = target_row("train-2", question, Written("of an earlier run", 4, "stop", 40), weights)
    order = targets.order(recipe, where)
    order.begin().write([before], [])
    told = targets.run(recipe, where)
    return Finished(recipe, where, told, before, order.table, order.table.read().to_pylist(), order.table.read_rejects().to_pylist())


@pytest.mark.slow
def test_every_prompt_is_a_row_or_a_reject(finished: Finished) -> None:
    asked = {f"{name}/{task}" for name in VIDEO_IDS for task in ("summary", "caption")}
    asked |= {f"{name}/q-{name}" for name in VIDEO_IDS if not name.startswith("test")} | {"train-0/q-long", "train-1/q-spelt"}
    keys = [f"{row['video_id']}/{row['prompt_id']}" for row in finished.rows]
    keys += ["/".join(row["key"].split("/")[:2]) for row in finished.rejects]
    short = [key.rsplit("-", 1)[0] if "/summary" in key or "/caption" in key else key for key in keys]
    assert sorted(short) == sorted(asked)
    assert finished.before in finished.rows


@pytest.mark.slow
def test_rejects_say_why(finished: Finished) -> None:
    reasons = {"/".join(row["key"].split("/")[:2]): row["reason"] for row in finished.rejects}
    assert reasons["train-0/q-long"] == "prompt_too_long"
    assert reasons["train-1/q-spelt"] == "bad_row"
    assert {reason for key, reason in reasons.items() if key.startswith("damaged-0")} == {"teacher_error"}
    assert sum(key.startswith("damaged-0") for key in reasons) == 3


@pytest.mark.slow
def test_texts_are_those_of_transformers_on_the_same_frames(finished: Finished, vlm_folder: Path) -> None:
    vlm = load_vlm(str(vlm_folder))
    prompts = {one.id: one.text for of in MADE_WORLD.groups.values() for one in of.wordings}
    prompts |= {f"q-{name}": "What shape is shown?" for name in VIDEO_IDS}
    written = {(row["video_id"], row["prompt_id"]): row["target"] for row in finished.rows if row != finished.before}
    for row in finished.rejects:
        if row["reason"] in ("empty_target", "unfinished_target"):
            video_id, prompt_id = row["key"].split("/")[:2]
            written[video_id, prompt_id] = "" if row["reason"] == "empty_target" else row["detail"].split(": ", 1)[1]
    assert len(written) == 4 * 3 + 2 - 1
    for frames in frames_set(finished.recipe, finished.where.data).read().to_pylist():
        mine = {prompt_id: text for (video_id, prompt_id), text in written.items() if video_id == frames["video_id"]}
        if not mine:
            continue
        images = np.stack([np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in frames["jpegs"]])
        video = Frames(images, np.array(frames["timestamps_s"]), frames["duration_s"])
        batch = vlm.video_batch([video] * len(mine), [prompts[prompt_id] for prompt_id in mine])
        answers = vlm.generate(batch, max_new_tokens=5, frame_tokens=vlm.frame_tokens([video] * len(mine)))
        assert [one.text for one in answers] == list(mine.values())
    assert {len(text) > 0 for text in written.values()} == {True, False}


@pytest.mark.slow
def test_a_second_run_starts_neither_ray_nor_an_engine(finished: Finished) -> None:
    assert not ray.is_initialized()
    started = time.monotonic()
    nowhere = finished.where.model_copy(update={"ray_address": "127.0.0.1:1"})  # Ray would fail to join this
    assert targets.run(finished.recipe, nowhere) == finished.told
    assert time.monotonic() - started < 10
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_changed_prompt_is_asked_anew_and_nothing_else(finished: Finished, tmp_path: Path) -> None:
    """Another caption, another form of questions; the summaries and their rejects stay where they were written."""
    summary, caption = (asdict_of(MADE_WORLD.groups[name].wordings) for name in ("summary", "caption"))
    for one in caption:
        one["text"] += " Be short."
    changed = {
        "id": "changed",
        "version": "1",
        "source": "ours",
        "draw": "remainder",
        "groups": {"summary": {"task": "summary", "wordings": summary}, "caption": {"task": "caption", "wordings": caption}},
        "questions": {"forms": [{"id": "", "text": "{question}"}, {"id": "short", "text": "{question} Be short."}]},
    }
    (tmp_path / "changed.yaml").write_text(yaml.safe_dump(changed))
    recipe = finished.recipe.model_copy(
        update={"teacher": finished.recipe.teacher.model_copy(update={"prompts": str(tmp_path / "changed.yaml")})}
    )
    before = dict(zip(*(finished.table.counted()[name].to_pylist() for name in ("key", "path")), strict=True))
    targets.run(recipe, finished.where)
    after = dict(zip(*(finished.table.counted()[name].to_pylist() for name in ("key", "path")), strict=True))
    new = after.keys() - before.keys()
    n_asked = {"caption": 6, "short": 7}  # one for each video; one for each question that may be asked
    assert {task: sum(task in key for key in new) for task in n_asked} == n_asked
    assert len(new) == sum(n_asked.values())
    assert {key: path for key, path in after.items() if key not in new} == {
        key: path for key, path in before.items() if "caption" not in key
    }


def asdict_of(wordings: Any) -> list[dict[str, Any]]:
    return [{"id": one.id, "text": one.text} for one in wordings]
