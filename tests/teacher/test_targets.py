"""The stage: row functions on plain data; then one real run through Ray and vLLM, with transformers as its oracle."""

import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from PIL import Image

from infra.artifacts import FRAMES, QUESTIONS, VIDEOS
from infra.config import FramesSettings, Recipe, TeacherSettings, Where
from infra.errors import BadInputError, MadeFromOtherError, StageFailedError
from infra.storage import Table
from teacher import targets
from teacher.engine import Model, Pictures, Request, Written, find_model
from teacher.prompts import MIXED, Prompt
from video2lora.pretrained import load_vlm
from video2lora.sampling import Frames, Sampling

MODEL = Model("/m", None, "m@1", image_size_px=48, n_image_tokens=4, max_positions=100, n_kv_values=8, processor="Idefics3Processor")
PROMPT = Prompt("summary-1", "summary", "Summarize the video.")


def plan(**settings: Any) -> targets.Plan:
    return targets.Plan(MODEL, TeacherSettings(**settings), sampling="uniform-3", n_frames=3, gpu=False)


def test_prompts_left_are_those_without_an_outcome() -> None:
    videos = pa.Table.from_pylist([{"video_id": "a", "split": "train"}, {"video_id": "b", "split": "test"}], schema=VIDEOS.schema)
    questions = pa.Table.from_pylist(
        [{"question_id": f"q{name}", "video_id": name, "question": "What shape is shown?"} for name in ("a", "b", "gone")],
        schema=QUESTIONS.schema,
    )
    asked = targets.prompts_by_video(["a", "b"], videos, questions, MIXED)
    assert {name: [one.task for one in of] for name, of in asked.items()} == {
        "a": ["summary", "caption", "question"],
        "b": ["summary", "caption"],
    }
    done = {targets.target_key("a", one, "t") for one in asked["a"][:2]} | {targets.target_key("b", one, "t") for one in asked["b"]}
    assert targets.without_done(asked, done, "t") == {"a": [asked["a"][2]]}
    assert targets.without_done(asked, done, "another teacher") == asked


def test_frames_come_with_what_is_left_to_ask() -> None:
    rows = [{"video_id": name, "sampling": f"uniform-{n}"} for name in ("a", "b") for n in (3, 4)]
    frames = pa.Table.from_pylist(rows, schema=FRAMES.schema)
    found = targets.with_prompts(frames, {"b": [PROMPT], "gone": [PROMPT]}, sampling="uniform-4").to_pylist()
    assert [(row["video_id"], row["sampling"]) for row in found] == [("b", "uniform-4")]
    assert [Prompt(**one) for one in found[0]["prompts"]] == [PROMPT]


def test_a_prompt_is_refused_for_its_length_and_for_an_image_token_of_its_own() -> None:
    seen = Pictures(images=[Image.new("RGB", (48, 48))] * 3, image_ids=["x"] * 3)
    assert targets.refused_prompt(Request([0] * 20, 3, 50, seen), longest=50) is None
    for request, reason in ((Request([0] * 20, 3, 51, seen), "prompt_too_long"), (Request([0] * 20, 4, 30, seen), "bad_row")):
        why = targets.refused_prompt(request, longest=50)
        assert why is not None and why[0] == reason


def test_a_text_is_refused_if_cut_off_or_empty() -> None:
    assert targets.refused_text(Written("red", 2, "stop"), keep_unfinished=False) is None
    assert targets.refused_text(Written("red", 2, "length"), keep_unfinished=True) is None
    for written, reason in ((Written("", 1, "stop"), "empty_target"), (Written("red", 2, "length"), "unfinished_target")):
        why = targets.refused_text(written, keep_unfinished=False)
        assert why is not None and why[0] == reason


def test_a_row_has_every_column() -> None:
    row = targets.target_row("a", PROMPT, Written("red", 2, "stop"), "t")
    assert set(row) == set(Table("", "targets").spec.schema.names)
    assert targets.target_key("a", PROMPT, "t") == "/".join(row[name] for name in Table("", "targets").spec.key)


def test_frames_that_fill_the_context_are_refused_with_the_setting() -> None:
    targets.check_room(plan(max_tokens=8, max_model_len=20))
    with pytest.raises(BadInputError, match=r"teacher\.max_model_len"):
        targets.check_room(plan(max_tokens=9, max_model_len=20))


def test_engines_that_fit() -> None:
    assert targets.engines_that_fit({"CPU": 2.0}, Where()) == 2
    assert targets.engines_that_fit({"CPU": 8.0, "GPU": 3.0}, Where(teacher_gpus=1.0)) == 3
    with pytest.raises(StageFailedError, match="VIDEO2LORA_TEACHER"):
        targets.engines_that_fit({"CPU": 8.0}, Where(teacher_gpus=1.0))


@dataclass(frozen=True)
class Finished:
    """A finished run, and what went in."""

    recipe: Recipe
    where: Where
    told: str
    before: dict[str, Any]  # the row that a run before it had committed
    rows: list[dict[str, Any]]
    rejects: list[dict[str, Any]]


VIDEO_IDS = ("train-0", "train-1", "train-2", "validation-0", "test-0", "damaged-0")
LONG, SPELT = "Which way does the object move?" * 20, "What is <image> about?"
TIMES_S = [0.0, 0.9, 1.9]


def write_inputs(root: str) -> None:
    """Six videos of three frames, one of them damaged; a question for each, one far too long, one with an image token."""
    rng = np.random.default_rng(7)
    videos, frames = [], []
    for name in VIDEO_IDS:
        files = [io.BytesIO() for _ in TIMES_S]
        for file in files:
            Image.fromarray(rng.integers(0, 256, (40, 64, 3), dtype=np.uint8)).resize((64, 40)).save(file, format="JPEG", quality=95)
        jpegs = [file.getvalue() for file in files]
        jpegs[1] = jpegs[1][:300] if name == "damaged-0" else jpegs[1]
        split = "train" if name == "damaged-0" else name.split("-")[0]
        videos.append({"video_id": name, "uri": f"/{name}.mp4", "split": split})
        frames.append({"video_id": name, "sampling": "uniform-3", "jpegs": jpegs, "timestamps_s": TIMES_S, "duration_s": 2.9})
        frames[-1] |= {"height_px": 40, "width_px": 64}
    asked = [(f"q-{name}", name, "What shape is shown?") for name in VIDEO_IDS]
    asked += [("q-long", "train-0", LONG), ("q-spelt", "train-1", SPELT)]
    questions = [{"question_id": key, "video_id": name, "question": text, "references": ["circle"]} for key, name, text in asked]
    for spec, rows in ((VIDEOS, videos), (FRAMES, frames), (QUESTIONS, questions)):
        table = Table(root, spec.name)
        table.begin({"stage": "test"})
        for start in range(0, len(rows), 4):
            table.commit(rows[start : start + 4], [])
        table.complete(n_in=len(rows))


@pytest.fixture(scope="module")
def finished(vlm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One real run, which continues behind a block that an earlier one had committed. One CPU: engine and reader must share it."""
    root = str(tmp_path_factory.mktemp("data"))
    write_inputs(root)
    recipe = Recipe(
        frames=FramesSettings(sampling=Sampling(policy="uniform", n_frames=3)),
        teacher=TeacherSettings(model=str(vlm_folder), max_tokens=5, max_model_len=160, unfinished="reject", videos_per_block=2),
    )
    where = Where(data=root, n_cpus=1)
    model, table = find_model(recipe.teacher), Table(root, "targets")
    assert table.begin(targets.made_from(recipe, where, model))
    question = Prompt("q-train-2", "question", "What shape is shown?")
    before = targets.target_row("train-2", question, Written("of an earlier run", 4, "stop"), targets.teacher_name(model, recipe.teacher))
    table.commit([before], [])
    told = targets.run(recipe, where)
    return Finished(recipe, where, told, before, table.read().to_pylist(), table.read_rejects().to_pylist())


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
    prompts = {one.prompt_id: one.prompt for of in MIXED.groups.values() for one in of}
    prompts |= {f"q-{name}": "What shape is shown?" for name in VIDEO_IDS}
    written = {(row["video_id"], row["prompt_id"]): row["target"] for row in finished.rows if row != finished.before}
    for row in finished.rejects:
        if row["reason"] in ("empty_target", "unfinished_target"):
            video_id, prompt_id = row["key"].split("/")[:2]
            written[video_id, prompt_id] = "" if row["reason"] == "empty_target" else row["detail"].split(": ", 1)[1]
    assert len(written) == 4 * 3 + 2 - 1
    for frames in Table(finished.where.data, "frames").read().to_pylist():
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
def test_another_teacher_is_refused(finished: Finished) -> None:
    other = finished.recipe.model_copy(update={"teacher": finished.recipe.teacher.model_copy(update={"max_tokens": 6})})
    with pytest.raises(MadeFromOtherError, match=r"teacher\.max_tokens"):
        targets.run(other, finished.where)
