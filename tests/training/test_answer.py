"""Batched answers of every system against one question at a time, and the stage's books: rejects, second run, going on."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_examples import fill, fill_hypernetwork, fill_targets
from PIL import Image

from infra.config import AnswerSettings, Recipe, VLMSettings, Where
from infra.errors import BadInputError
from infra.sets import answers_made, answers_set, examples_set, frames_made, frames_set, made_targets, sets_of
from infra.stage import Order
from infra.storage import Table
from training import answer
from training.systems import Systems, frames_of
from video2lora import prompts
from video2lora.checkpoint import load_hypernetwork, save_hypernetwork
from video2lora.hypernetwork import Hypernetwork, HypernetworkConfig
from video2lora.lora import adapted
from video2lora.pretrained import load_vlm
from video2lora.tiny.build import build_model, build_tokenizer, save_vlm
from video2lora.video import Frames, Sampling
from video2lora.vlm import FrozenVLM

N_FRAMES, MAX_NEW_TOKENS = 3, 7
TEST_VIDEOS = ("v0", "v1", "v2", "v3", "v4")
WORDINGS = ("What is this?", "Which way does the large object move, and how many are there?", "Colour?")


def jpegs(seed: int, *, height_px: int, width_px: int) -> list[bytes]:
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(N_FRAMES):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((width_px, height_px)).save(buffer, "JPEG", quality=95)
        pictures.append(buffer.getvalue())
    return pictures


def question(number: int, video_id: str, wording: str) -> dict[str, Any]:
    return {
        "question_id": f"q{number:02d}",
        "video_id": video_id,
        "benchmark": "toy",
        "style": ("colour", "direction")[number % 2],
        "question": wording,
        "references": ["red"],
    }


def write_inputs(recipe: Recipe, data: str) -> None:
    """Five test videos of different shapes with frames, one without, one to train on; v3 has no text by the teacher, v2 a caption alone."""
    videos = [{"video_id": v, "uri": v, "split": "test"} for v in (*TEST_VIDEOS, "blank")] + [
        {"video_id": "t0", "uri": "t", "split": "train"}
    ]
    fill(Table(data, "videos"), videos)
    asked = [question(3 * i + k, v, WORDINGS[k]) for i, v in enumerate(TEST_VIDEOS) for k in range(3)]
    asked += [question(50, "blank", WORDINGS[0]), question(51, "t0", WORDINGS[0])]
    asked += [question(52, "v1", "Is <image> a token?"), question(53, "v2", "why " * 1100)]
    fill(Table(data, "questions"), asked)
    frames = [
        {
            "video_id": v, "sampling": "uniform-3", "jpegs": jpegs(i, height_px=31 + i, width_px=41), "timestamps_s": [0.0, 0.5, 1.0],
            "duration_s": 1.2, "height_px": 31 + i, "width_px": 41,
        }
        for i, v in enumerate((*TEST_VIDEOS, "t0"))
    ]  # fmt: skip
    fill(frames_set(recipe, data), frames, made=frames_made(recipe))
    said = [(v, "caption") for v in ("v0", "v1", "v2", "v4")] + [(v, "summary") for v in ("v0", "v1", "v4")]
    targets = [
        {"video_id": v, "prompt_id": task, "teacher": "toy", "task": task, "prompt": "?", "target": f"A {task} of {v}."} for v, task in said
    ]
    fill_targets(recipe, data, targets)


@pytest.fixture(scope="module")
def vlm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vlm")
    tokenizer = build_tokenizer([*WORDINGS, "A summary of a red circle."], vocab_size=320)
    save_vlm(build_model(tokenizer, seed=3), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def vlm(vlm_folder: Path) -> FrozenVLM:
    return load_vlm(str(vlm_folder))


@pytest.fixture(scope="module")
def hypernetwork_folder(vlm: FrozenVLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained, with every zero that makes a fresh hypernetwork change nothing drawn at random."""
    config = HypernetworkConfig(
        n_layers=len(vlm.layers), d_vlm=vlm.d_vlm, target_modules=vlm.module_sizes(["down_proj"]), r=3, n_latents=5, n_blocks=1,
        d_latent=24, n_heads=2, n_kv_heads=1, d_head=12, scaling=1.0, normalise_features=True,
    )  # fmt: skip
    hypernetwork = Hypernetwork(config, seed=5)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, parameter in hypernetwork.named_parameters():
            if name.endswith(("scale_b", "static.down_proj.lora_b")):
                parameter.normal_(std=1.0, generator=generator)
            elif name.startswith("heads") and name.endswith("weight"):
                parameter.normal_(generator=generator)
    folder = tmp_path_factory.mktemp("data") / "hypernetwork"
    save_hypernetwork(hypernetwork, folder, metadata={"vlm_digest": vlm.digest, "step": 11})
    return folder


def a_recipe(vlm_folder: Path, **answer_settings: Any) -> Recipe:
    settings = AnswerSettings(**{"max_new_tokens": MAX_NEW_TOKENS, "questions_per_batch": 4, "n_timed": 5} | answer_settings)
    sampling = Sampling(policy="uniform", n_frames=N_FRAMES)
    recipe = Recipe(vlm=VLMSettings(model=str(vlm_folder)), answer=settings)
    return recipe.model_copy(update={"frames": recipe.frames.model_copy(update={"sampling": sampling})})


def a_data_folder(recipe: Recipe, folder: Path, hypernetwork_folder: Path) -> Where:
    data = folder / "data"
    write_inputs(recipe, str(data))
    fill(examples := examples_set(recipe, made_targets(recipe, str(data))), [])
    fill_hypernetwork(recipe, examples, {path.name: path.read_bytes() for path in hypernetwork_folder.iterdir()})
    return Where(data=str(data))


@pytest.fixture(scope="module")
def recipe(vlm_folder: Path) -> Recipe:
    return a_recipe(vlm_folder)


@pytest.fixture(scope="module")
def where(recipe: Recipe, hypernetwork_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Where:
    """A data folder in which the stage has run once."""
    where = a_data_folder(recipe, tmp_path_factory.mktemp("run"), hypernetwork_folder)
    answer.run(recipe, where)
    return where


def the_answers(where: Where) -> Table:
    """The one set there is."""
    ((table, _),) = sets_of(where.data, "answers")
    return table


def answers(where: Where) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["question_id"], row["system"]): row for row in the_answers(where).read().to_pylist()}


def the_blocks(recipe: Recipe, where: Where) -> list[answer.Block]:
    asked, _ = answer.askable(answer.questions_of(recipe, where), with_frames=set(TEST_VIDEOS))
    return answer.blocks(asked, n_questions=recipe.answer.questions_per_batch)


def frames_by_video(recipe: Recipe, where: Where) -> dict[str, Frames]:
    return {row["video_id"]: frames_of(row) for row in answer.frames_of(recipe, where).to_pylist()}


def plain_questions(recipe: Recipe, where: Where) -> list[dict[str, Any]]:
    return [row for row in answer.questions_of(recipe, where) if row["question_id"] < "q50"]


def test_adapter_systems_answer_as_one_question_at_a_time(recipe: Recipe, where: Where, vlm: FrozenVLM, hypernetwork_folder: Path) -> None:
    hypernetwork = load_hypernetwork(hypernetwork_folder)
    frames, got = frames_by_video(recipe, where), answers(where)
    others = {video: other for block in the_blocks(recipe, where) for video, other in block.others.items()}
    texts: dict[str, set[str]] = {"ours": set(), "other_video": set(), "static": set(), "blind": set()}
    for row in plain_questions(recipe, where):
        loras = {"static": hypernetwork.static_lora()}
        for system, video_id in (("ours", row["video_id"]), ("other_video", others[row["video_id"]])):
            features = vlm.features([frames[video_id]])
            loras[system] = hypernetwork.with_static(hypernetwork(features.hidden, features.mask))
        batch = vlm.question_batch([row["question"]])
        for system, lora in loras.items():
            with adapted(vlm.layers, lora):
                (alone,) = vlm.generate(batch, max_new_tokens=MAX_NEW_TOKENS)
            assert got[row["question_id"], system]["answer"] == alone.text
            texts[system].add(alone.text)
        (alone,) = vlm.generate(batch, max_new_tokens=MAX_NEW_TOKENS)
        assert got[row["question_id"], "blind"]["answer"] == alone.text
        texts["blind"].add(alone.text)
    # The oracle tells the systems apart: adapters of five videos give more than one answer to the three questions.
    assert len(texts["ours"]) > len(texts["static"]) and not texts["ours"] <= texts["blind"]


def test_base_and_caption_answer_as_transformers_alone(recipe: Recipe, where: Where, vlm: FrozenVLM) -> None:
    frames, got = frames_by_video(recipe, where), answers(where)
    for row in plain_questions(recipe, where):
        video = frames[row["video_id"]]
        size = vlm.family.image_size_px
        pictures = [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS)) for image in video.images]
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)[None] / 127.5 - 1
        prefix = prompts.video_prefix([0.0, 0.5, 1.0], 1.2, placeholder=prompts.frame_placeholder(vlm.family.n_image_tokens))
        alone = generated_by_transformers(vlm, prefix + row["question"] + prompts.ASSISTANT, {"pixel_values": pixels})
        base = got[row["question_id"], "base"]
        assert base["answer"] == alone
        assert base["n_visual_tokens"] == N_FRAMES * vlm.family.n_image_tokens
        if row["video_id"] == "v3":
            assert (row["question_id"], "caption") not in got
            continue
        task = "caption" if row["video_id"] == "v2" else "summary"
        text = prompts.text_prompt(f"A {task} of {row['video_id']}.\n\n{row['question']}")
        assert got[row["question_id"], "caption"]["answer"] == generated_by_transformers(vlm, text, {})


def generated_by_transformers(vlm: FrozenVLM, text: str, pictures: dict[str, torch.Tensor]) -> str:
    ids = torch.tensor([vlm.tokenizer.encode(text, add_special_tokens=False)])
    new = vlm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_NEW_TOKENS, do_sample=False, **pictures)
    return str(vlm.tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def test_no_system_but_base_gets_a_visual_token(where: Where) -> None:
    for (_, system), row in answers(where).items():
        assert (row["n_visual_tokens"] > 0) == (system == "base")
        assert row["n_visual_tokens"] < row["n_input_tokens"]


def test_the_same_questions_are_timed_in_every_system(recipe: Recipe, where: Where) -> None:
    asked, _ = answer.askable(answer.questions_of(recipe, where), with_frames=set(TEST_VIDEOS))
    timed = answer.timed_questions(asked, recipe.answer.n_timed)
    assert len(timed) == 5 and any(question_id < "q50" for question_id in timed)
    for (question_id, _), row in answers(where).items():
        assert (row["ttft_s"] is not None) == (question_id in timed)
        assert row["ttft_s"] is None or 0 < row["ttft_s"] < 60


def test_what_cannot_be_asked_is_rejected_and_the_books_close(where: Where) -> None:
    table = the_answers(where)
    rejects = {(row["key"], row["reason"]) for row in table.read_rejects().to_pylist()}
    n_systems = len(AnswerSettings().systems)
    assert ("q50", "question_without_video") in rejects
    assert {(f"q52/{system}", "bad_row") for system in AnswerSettings().systems} <= rejects
    assert {(f"q53/{system}", "prompt_too_long") for system in AnswerSettings().systems} <= rejects
    assert {(f"q{n:02d}/caption", "no_targets") for n in (9, 10, 11)} <= rejects
    assert len(rejects) == 1 + 2 * n_systems + 3 == table.n_rejects()
    assert table.n_rows() == 15 * n_systems - 3
    assert len(table.wanted()) == 17 * n_systems + 1 and table.is_complete()


def test_a_killed_run_goes_on_behind_its_blocks(recipe: Recipe, where: Where, hypernetwork_folder: Path, tmp_path: Path) -> None:
    again = a_data_folder(recipe, tmp_path, hypernetwork_folder)
    table, plan = answers_set(recipe, again.data), the_blocks(recipe, again)
    assert len(plan) > 2
    rows, rejects = next(answer.build(recipe, again, todo=plan, timed=frozenset()))
    keys = [table.spec.key_of(row) for row in rows] + [row["key"] for row in rejects]
    Order(table, {}, keys, answers_made(recipe, again.data)).begin().write(rows, rejects)
    first = set(table.shards())
    answer.run(recipe, again)
    assert first < set(table.shards()) and table.is_complete()
    one, two = answers(where), answers(again)
    assert one.keys() == two.keys()
    assert all(one[key]["answer"] == two[key]["answer"] for key in one)


def test_the_second_run_returns_without_torch(recipe: Recipe, where: Where, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.model_dump_json())
    code = (
        "import sys; from infra.config import load_recipe, Where; from training import answer; "
        "print(answer.run(load_recipe(sys.argv[1]), Where(data=sys.argv[2]))); print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(file), where.data], capture_output=True, text=True, check=True, timeout=60)
    told, has_torch = ran.stdout.splitlines()
    assert "nothing to do" in told and has_torch == "False"


def test_other_settings_are_a_set_beside_and_missing_inputs_are_refused(
    recipe: Recipe, where: Where, vlm_folder: Path, tmp_path: Path
) -> None:
    other = answers_set(a_recipe(vlm_folder, n_timed=6), where.data)
    assert other.set != the_answers(where).set and not other.is_complete() and the_answers(where).is_complete()
    with pytest.raises(BadInputError, match=r"not there or not complete|video2lora targets"):
        answer.run(recipe, Where(data=str(tmp_path / "nothing")))


def test_a_hypernetwork_of_another_vlm_is_refused(recipe: Recipe, where: Where, hypernetwork_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hypernetwork"
    save_hypernetwork(load_hypernetwork(hypernetwork_folder), folder, metadata={"vlm_digest": "another"})
    with pytest.raises(BadInputError, match="trained for VLM weights another"):
        Systems(recipe, hypernetwork=folder, frames=answer.frames_of(recipe, where), captions={})


@pytest.mark.parametrize("n_videos", [2, 3, 17])
def test_nobody_gets_the_own_adapter_and_blocks_hold_whole_videos(n_videos: int) -> None:
    rows = [question(k, f"v{k % n_videos}", "?") for k in range(60)]
    plan = answer.blocks(rows, n_questions=7)
    others = {video: other for block in plan for video, other in block.others.items()}
    assert others.keys() == set(others.values()) == {row["video_id"] for row in rows}
    assert all(video != other for video, other in others.items())
    assert sorted(row["question_id"] for block in plan for row in block.questions) == sorted(row["question_id"] for row in rows)
    for block in plan:
        assert {row["video_id"] for row in block.questions} == block.others.keys()
    assert plan == answer.blocks(rows[::-1], n_questions=7)
