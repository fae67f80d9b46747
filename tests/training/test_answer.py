"""Batched answers of every system against one question at a time, and the stage's books: rejects, second run, going on."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import made_examples
import numpy as np
import pytest
import torch
from made_examples import fill, fill_hypernetwork
from made_questions import (
    MAX_NEW_TOKENS,
    N_FRAMES,
    TEST_VIDEOS,
    a_data_folder,
    a_recipe,
    question,
    write_hypernetwork,
    write_vlm,
)
from PIL import Image

from infra.config import Recipe, Where
from infra.errors import BadInputError
from infra.evaluation_config import AnswerSettings
from infra.sets import answers_made, answers_set, examples_made, examples_set, made_targets, sets_of, trained_hypernetwork
from infra.stage import Order
from infra.storage import Table
from training import answer
from training.systems import Systems
from training.videos import frames_of
from video2lora import prompts
from video2lora.checkpoint import load_hypernetwork, save_hypernetwork
from video2lora.lora import adapted
from video2lora.pretrained import load_vlm
from video2lora.video import Frames
from video2lora.vlm import FrozenVLM

SEED = 42  # of a recipe that names none


@pytest.fixture(scope="module")
def vlm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vlm")
    write_vlm(folder)
    return folder


@pytest.fixture(scope="module")
def vlm(vlm_folder: Path) -> FrozenVLM:
    return load_vlm(str(vlm_folder))


@pytest.fixture(scope="module")
def hypernetwork_folder(vlm: FrozenVLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hypernetwork(vlm, tmp_path_factory.mktemp("data") / "hypernetwork", seed=5)


@pytest.fixture(scope="module")
def recipe(vlm_folder: Path) -> Recipe:
    return a_recipe(vlm_folder)


@pytest.fixture(scope="module")
def where(recipe: Recipe, hypernetwork_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Where:
    """A data folder in which the stage has run once."""
    where = a_data_folder(recipe, tmp_path_factory.mktemp("run"), {SEED: hypernetwork_folder})
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
    return answer.blocks(asked, contents={video: video for video in TEST_VIDEOS}, n_questions=recipe.answer.questions_per_batch)


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
    again = a_data_folder(recipe, tmp_path, {SEED: hypernetwork_folder})
    table, plan = answers_set(recipe, again.data), the_blocks(recipe, again)
    assert len(plan) > 2
    rows, rejects = answer.load(recipe, again)(plan[0], frozenset())
    keys = [table.spec.key_of(row) for row in rows] + [row["key"] for row in rejects]
    Order(table, {}, keys, answers_made(recipe, again.data)).begin().write(rows, rejects)
    first = set(table.shards())
    answer.run(recipe, again)
    assert first < set(table.shards()) and table.is_complete()
    one, two = answers(where), answers(again)
    assert one.keys() == two.keys()
    assert all(one[key]["answer"] == two[key]["answer"] for key in one)


@pytest.mark.slow
def test_where_training_has_gpus_they_answer_the_same(recipe: Recipe, where: Where, hypernetwork_folder: Path, tmp_path: Path) -> None:
    """Ray hands out the two that it is told of; torch finds none, and computes on what there is."""
    import ray

    ray.init("local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        there = a_data_folder(recipe, tmp_path, {SEED: hypernetwork_folder})
        answer.run(recipe, there.model_copy(update={"training_gpus": 1.0, "training_workers": 2}))
    finally:
        ray.shutdown()
    one, two = answers(where), answers(there)
    assert one.keys() == two.keys()
    assert all(one[key]["answer"] == two[key]["answer"] for key in one)
    rejects = [{(row["key"], row["reason"]) for row in the_answers(place).read_rejects().to_pylist()} for place in (where, there)]
    assert rejects[0] == rejects[1] and answers_set(recipe, there.data).is_complete()


def test_rejects_that_were_lost_are_made_again(recipe: Recipe, where: Where, tmp_path: Path) -> None:
    """As `verify --repair` leaves a table: of a block, nothing but a reject of a later question is wanted again."""
    again = Where(data=str(shutil.copytree(where.data, tmp_path / "data")))
    table, before = answers_set(recipe, again.data), answers(where)
    attempt = Order(table, {}, table.wanted().to_pylist(), answers_made(recipe, again.data)).begin()
    attempt.void(["q53/ours"])
    (block,) = (block for block in the_blocks(recipe, again) if "v2" in block.others)
    assert not table.is_complete() and block.questions[0]["question_id"] != "q53"
    answer.run(recipe, again)
    assert table.is_complete() and answers(again) == before
    assert "q53/ours" in {row["key"] for row in table.read_rejects().to_pylist()}


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


SEEDS = (7, 3)
SAME = ("base", "blind", "caption")


@pytest.fixture(scope="module")
def of_seeds(vlm: FrozenVLM, hypernetwork_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return {7: hypernetwork_folder, 3: write_hypernetwork(vlm, tmp_path_factory.mktemp("other") / "hypernetwork", seed=17)}


@pytest.fixture(scope="module")
def seeded(vlm_folder: Path) -> Recipe:
    return a_recipe(vlm_folder, seeds=SEEDS)


@pytest.fixture(scope="module")
def where_seeded(seeded: Recipe, of_seeds: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Where:
    where = a_data_folder(seeded, tmp_path_factory.mktemp("seeds"), of_seeds)
    told = answer.run(seeded, where)
    assert told.startswith("seed 7: answers: 87 answers") and "; seed 3: answers: 87 answers" in told
    return where


def by_seed(recipe: Recipe, where: Where) -> list[dict[tuple[str, str], dict[str, Any]]]:
    sets = [answers_set(one, where.data).read().to_pylist() for one in recipe.of_seeds()]
    return [{(row["question_id"], row["system"]): row for row in rows} for rows in sets]


def test_each_seed_has_its_answers_by_its_own_hypernetwork(
    seeded: Recipe, where_seeded: Where, vlm: FrozenVLM, of_seeds: dict[int, Path]
) -> None:
    frames, differ = frames_by_video(seeded, where_seeded), False
    first, second = by_seed(seeded, where_seeded)
    assert len(sets_of(where_seeded.data, "answers")) == 2 and first.keys() == second.keys()
    for row in plain_questions(seeded, where_seeded)[::4]:
        features = vlm.features([frames[row["video_id"]]])
        texts = []
        for seed, got in zip(SEEDS, (first, second), strict=True):
            hypernetwork = load_hypernetwork(of_seeds[seed])
            with adapted(vlm.layers, hypernetwork.with_static(hypernetwork(features.hidden, features.mask))):
                (alone,) = vlm.generate(vlm.question_batch([row["question"]]), max_new_tokens=MAX_NEW_TOKENS)
            assert got[row["question_id"], "ours"]["answer"] == alone.text
            texts.append(alone.text)
        differ |= texts[0] != texts[1]
    assert differ, "the oracle does not tell the seeds apart"


def test_what_no_training_changes_is_answered_once(seeded: Recipe, where_seeded: Where) -> None:
    """Taken over with its time, which no second run would have measured to the digit; and with its rejects."""
    first, second = by_seed(seeded, where_seeded)
    timed = [key for key, row in first.items() if row["ttft_s"] is not None]
    assert {system for _, system in timed} == set(AnswerSettings().systems)
    assert all(second[key] == first[key] for key in first if key[1] in SAME)
    assert all(second[key]["ttft_s"] != first[key]["ttft_s"] for key in timed if key[1] not in SAME)
    rejects = [answers_set(one, where_seeded.data).read_rejects().to_pylist() for one in seeded.of_seeds()]
    assert sorted(rejects[0], key=lambda row: row["key"]) == sorted(rejects[1], key=lambda row: row["key"])
    assert answer.run(seeded, where_seeded).count("nothing to do") == 2


@pytest.mark.parametrize("alone", [False, True])
def test_a_seed_killed_after_its_first_block_goes_on(
    seeded: Recipe, where_seeded: Where, of_seeds: dict[int, Path], tmp_path: Path, alone: bool
) -> None:
    """Also where the seed is then answered by itself, without the other's rows to take over."""
    again = a_data_folder(seeded, tmp_path, of_seeds)
    one, two = seeded.of_seeds()
    answer.of_seed(one, again)
    table, plan = answers_set(two, again.data), the_blocks(two, again)
    attempt = Order(table, {}, answers_set(one, again.data).wanted().to_pylist(), answers_made(two, again.data)).begin()
    attempt.write(*answer.same_as(answers_set(one, again.data), attempt.left))
    rest = answer.by_systems_left(two, attempt.left)
    assert set(rest.answer.systems) == set(answer.TRAINED) & set(AnswerSettings().systems)
    attempt.write(*answer.load(rest, again)(plan[0], frozenset()))
    before = set(table.shards())
    answer.of_seed(two, again) if alone else answer.run(seeded, again)
    assert before < set(table.shards()) and table.is_complete()
    fresh, went_on = by_seed(seeded, where_seeded)[1], by_seed(seeded, again)[1]
    assert fresh.keys() == went_on.keys() and all(fresh[key]["answer"] == went_on[key]["answer"] for key in fresh)


def test_seeds_that_saw_different_examples_are_not_pooled(seeded: Recipe, of_seeds: dict[int, Path], tmp_path: Path) -> None:
    where = a_data_folder(seeded, tmp_path, {7: of_seeds[7]})
    targets = made_targets(seeded, where.data)
    examples = examples_set(seeded, targets)
    fill(examples, [made_examples.a_row(0)], made=examples_made(seeded, targets))
    fill_hypernetwork(seeded.of_seeds()[1], examples, {path.name: path.read_bytes() for path in of_seeds[3].iterdir()})
    with pytest.raises(BadInputError, match=r"different examples \(seed 7: 0 of .*; seed 3: 1 of .*\): run `video2lora train`"):
        answer.run(seeded, where)
    assert not Path(where.data, "answers").exists()


def test_a_seed_that_was_not_trained_is_named(seeded: Recipe, hypernetwork_folder: Path, tmp_path: Path) -> None:
    where = a_data_folder(seeded, tmp_path, {7: hypernetwork_folder})
    with pytest.raises(BadInputError, match=r"not trained with seed 3 \(recipe: evaluation\.seeds\): run `video2lora evaluate`"):
        answer.run(seeded, where)
    assert not Path(where.data, "answers").exists(), "the seed that was trained is not begun either"
    only = seeded.of_seeds()[0]
    assert trained_hypernetwork(only, where.data).is_complete() and answer.untrained(seeded, where)[0].training.seed == 3


@pytest.mark.parametrize("n_videos", [2, 3, 17])
def test_nobody_gets_the_own_adapter_and_blocks_hold_whole_videos(n_videos: int) -> None:
    rows = [question(k, f"v{k % n_videos}", "?") for k in range(60)]
    contents = {row["video_id"]: row["video_id"] for row in rows}
    plan = answer.blocks(rows, contents=contents, n_questions=7)
    others = {video: other for block in plan for video, other in block.others.items()}
    assert others.keys() == set(others.values()) == {row["video_id"] for row in rows}
    assert all(video != other for video, other in others.items())
    assert sorted(row["question_id"] for block in plan for row in block.questions) == sorted(row["question_id"] for row in rows)
    for block in plan:
        assert {row["video_id"] for row in block.questions} == block.others.keys()
    assert plan == answer.blocks(rows[::-1], contents=contents, n_questions=7)


@pytest.mark.parametrize("n_files", [2, 3, 5])
def test_a_span_never_gets_the_adapter_of_another_span_of_its_file(n_files: int) -> None:
    contents = {f"v{i}": f"file {i % n_files}" for i in range(17)}
    plan = answer.blocks([question(i, f"v{i}", "?") for i in range(17)], contents=contents, n_questions=7)
    others = {video: other for block in plan for video, other in block.others.items()}
    assert others.keys() == contents.keys()
    assert all(contents[video] != contents[other] for video, other in others.items())
