"""Systems beside the usual ones against plain code: sampled, merged, composed and champion; and what they refuse."""

import json
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from made_questions import MAX_NEW_TOKENS, N_FRAMES, WORDINGS, a_data_folder, a_recipe, frames_row, question, write_hypernetwork, write_vlm

from infra.artifacts import FRAMES
from infra.config import Recipe, Where
from infra.errors import BadInputError
from infra.hypernetworks import champion_folder, local_hypernetwork
from infra.objects import write_new
from infra.sets import answers_set
from training import answer
from training.systems import Systems
from training.videos import chunks, evenly, frames_of, trained_for
from video2lora.api import Internalizer, internalize_batch
from video2lora.checkpoint import hypernetwork_hash, load_hypernetwork
from video2lora.lora import adapted
from video2lora.pretrained import load_vlm
from video2lora.video import Frames, Sampling
from video2lora.vlm import FrozenVLM

SYSTEMS = ("sampled", "base", "ours", "merged", "composed", "other_video", "champion")
SIZES = {"still": 1, "pair": 2, "three": 3, "long": 227}  # frames of the videos; the long one's are some 2,600 tokens, the VLM has 1,024
N_SAMPLED, TAKEN = 7, (0, 38, 75, 113, 151, 188, 226)  # of 227 frames, in steps of 226 / 6, rounded


@pytest.fixture(scope="module")
def vlm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vlm")
    write_vlm(folder)
    return folder


@pytest.fixture(scope="module")
def vlm(vlm_folder: Path) -> FrozenVLM:
    return load_vlm(str(vlm_folder))


@pytest.fixture(scope="module")
def own(vlm: FrozenVLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hypernetwork(vlm, tmp_path_factory.mktemp("own") / "hypernetwork", seed=5)


@pytest.fixture(scope="module")
def champion(vlm: FrozenVLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of another rank, and reading features up to where the answer begins."""
    return write_hypernetwork(vlm, tmp_path_factory.mktemp("champion") / "hypernetwork", seed=29, r=2, opens_answer=True)


@pytest.fixture(scope="module")
def recipe(vlm_folder: Path, champion: Path) -> Recipe:
    return a_recipe(vlm_folder, systems=SYSTEMS, sampled_frames=N_SAMPLED, n_chunks=2, champion=str(champion))


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    return {name: frames_row(name, i, n=n) for i, (name, n) in enumerate(SIZES.items())}


@pytest.fixture(scope="module")
def videos(rows: dict[str, dict[str, Any]]) -> dict[str, Frames]:
    return {name: frames_of(row) for name, row in rows.items()}


@pytest.fixture(scope="module")
def systems(recipe: Recipe, own: Path, champion: Path, rows: dict[str, dict[str, Any]]) -> Systems:
    return Systems(recipe, hypernetwork=own, frames=as_table(list(rows.values())), captions={}, champion=champion)


def as_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([dict.fromkeys(FRAMES.schema.names) | row for row in rows], schema=FRAMES.schema)


QUESTIONS = tuple(question(3 * i + k, name, wording) for i, name in enumerate(SIZES) for k, wording in enumerate(WORDINGS))
OTHERS = dict(zip(SIZES, [*list(SIZES)[1:], "still"], strict=True))
TIMED = frozenset({"q00", "q09"})


@pytest.fixture(scope="module")
def got(systems: Systems) -> dict[tuple[str, str], dict[str, Any]]:
    rows, rejects = systems(answer.Block(OTHERS, QUESTIONS), TIMED)
    assert {(row["key"], row["reason"]) for row in rejects} == {(f"q{n:02d}/base", "prompt_too_long") for n in (9, 10, 11)}
    assert len(rows) == 12 * len(SYSTEMS) - 3
    return {(row["question_id"], row["system"]): row for row in rows}


Got = dict[tuple[str, str], dict[str, Any]]


def text(vlm: FrozenVLM, asked: dict[str, Any], video: Frames | None = None) -> str:
    """One question by itself."""
    if video is None:
        return vlm.generate(vlm.question_batch([asked["question"]]), max_new_tokens=MAX_NEW_TOKENS)[0].text
    batch = vlm.video_batch([video], [asked["question"]])
    return vlm.generate(batch, max_new_tokens=MAX_NEW_TOKENS, frame_tokens=vlm.frame_tokens([video]))[0].text


def test_sampled_is_base_where_all_frames_fit(got: Got) -> None:
    for asked in QUESTIONS[:9]:
        base = got[asked["question_id"], "base"]
        assert got[asked["question_id"], "sampled"] == base | {"system": "sampled"}
    assert got["q00", "base"]["ttft_s"] > 0


def test_sampled_is_base_on_evenly_chosen_frames_where_they_do_not(got: Got, vlm: FrozenVLM, videos: dict[str, Frames]) -> None:
    long, taken = videos["long"], list(TAKEN)
    thinned = Frames(long.images[taken], long.timestamps_s[taken], long.duration_s)
    first = Frames(long.images[:N_SAMPLED], long.timestamps_s[:N_SAMPLED], long.duration_s)
    for asked in QUESTIONS[9:]:
        row = got[asked["question_id"], "sampled"]
        assert row["answer"] == text(vlm, asked, thinned) and row["n_visual_tokens"] == N_SAMPLED * 4
    assert any(text(vlm, asked, thinned) != text(vlm, asked, first) for asked in QUESTIONS[9:]), "which frames they are makes no difference"
    assert got["q09", "sampled"]["ttft_s"] > 0


def test_sampled_without_base_answers_as_base(recipe: Recipe, own: Path, rows: dict[str, dict[str, Any]], got: Got) -> None:
    settings = recipe.answer.model_copy(update={"systems": ("sampled",), "champion": None})
    alone = Systems(recipe.model_copy(update={"answer": settings}), hypernetwork=own, frames=as_table(list(rows.values())), captions={})
    answered, rejects = alone(answer.Block(OTHERS, QUESTIONS), frozenset())
    assert not rejects and {row["question_id"]: row["answer"] for row in answered} == {
        asked["question_id"]: got[asked["question_id"], "sampled"]["answer"] for asked in QUESTIONS
    }


def test_a_question_that_overflows_with_fewer_frames_too_is_a_reject(systems: Systems) -> None:
    endless, token = question(60, "long", "why " * 1100), question(61, "pair", "Is <image> a token?")
    _, rejects = systems(answer.Block({"pair": "long", "long": "pair"}, (token, endless)), frozenset())
    reasons = {(row["key"], row["reason"]) for row in rejects}
    assert reasons == {(f"q60/{system}", "prompt_too_long") for system in SYSTEMS} | {(f"q61/{system}", "bad_row") for system in SYSTEMS}


def test_merged_says_what_ours_says(got: Got, vlm: FrozenVLM) -> None:
    answers = {asked["question_id"]: got[asked["question_id"], "ours"]["answer"] for asked in QUESTIONS}
    assert {asked["question_id"]: got[asked["question_id"], "merged"]["answer"] for asked in QUESTIONS} == answers
    assert any(text(vlm, asked) != answers[asked["question_id"]] for asked in QUESTIONS), "the adapter says no more than nothing"
    assert got["q09", "merged"]["ttft_s"] > 0


def using(vlm: FrozenVLM, folder: Path) -> Internalizer:
    return Internalizer(vlm, load_hypernetwork(folder), Sampling(n_frames=N_FRAMES), 41, hypernetwork_hash(folder), str(folder))


def fewest_chunks(vlm: FrozenVLM, video: Frames) -> int:
    """By trying, as the VLM itself says what it can read."""
    for n in count(1):
        try:
            for part in chunks(video, n):
                vlm.features([part])
            return n
        except ValueError:
            continue
    raise AssertionError


@pytest.mark.parametrize(("system", "n_chunks"), [("composed", 2), ("ours", 1)])
def test_composed_and_what_does_not_fit_in_one_pass_are_the_apis_chunks(
    got: Got, vlm: FrozenVLM, own: Path, videos: dict[str, Frames], system: str, n_chunks: int
) -> None:
    differ = False
    for name, video in videos.items():
        n = max(min(n_chunks, len(video.images)), fewest_chunks(vlm, video))
        assert (n > n_chunks) == (name == "long"), "the long one takes more, the others not"
        frames_per_chunk = -(-len(video.images) // n)
        (adapter,) = internalize_batch([video], using=using(vlm, own), video_ids=[name], frames_per_chunk=frames_per_chunk)
        assert adapter.provenance["n_chunks"] == n
        for asked in (one for one in QUESTIONS if one["video_id"] == name):
            with adapted(vlm.layers, adapter.lora):
                assert got[asked["question_id"], system]["answer"] == text(vlm, asked)
            differ |= name == "three" and got[asked["question_id"], "composed"]["answer"] != got[asked["question_id"], "ours"]["answer"]
    assert differ, "two chunks of three frames say what one pass says"


def test_the_champion_reads_the_video_as_it_was_trained_to(got: Got, vlm: FrozenVLM, champion: Path, videos: dict[str, Frames]) -> None:
    hypernetwork, opened = load_hypernetwork(champion), False
    for asked in QUESTIONS[:9]:
        texts = []
        for opens_answer in (True, False):
            features = vlm.features([videos[asked["video_id"]]], opens_answer=opens_answer)
            with adapted(vlm.layers, hypernetwork.with_static(hypernetwork(features.hidden, features.mask))):
                texts.append(text(vlm, asked))
        assert got[asked["question_id"], "champion"]["answer"] == texts[0]
        opened |= texts[0] != texts[1]
    assert opened, "the oracle does not tell one reading from the other"


def test_a_hypernetwork_challenged_by_itself_gives_ours(recipe: Recipe, own: Path, rows: dict[str, dict[str, Any]]) -> None:
    itself = Systems(recipe, hypernetwork=own, frames=as_table(list(rows.values())), captions={}, champion=own)
    answered, _ = itself(answer.Block({"pair": "three", "three": "pair"}, QUESTIONS[3:9]), frozenset())
    by_system = {system: {row["question_id"]: row["answer"] for row in answered if row["system"] == system} for system in SYSTEMS}
    assert by_system["champion"] == by_system["ours"] and len(by_system["ours"]) == 6


def test_only_what_has_the_video_in_context_gets_a_visual_token(got: Got) -> None:
    for (_, system), row in got.items():
        assert (row["n_visual_tokens"] > 0) == (system in ("base", "sampled"))
    assert {question_id for (question_id, _), row in got.items() if row["ttft_s"] is not None} == TIMED


def test_the_answers_of_another_champion_are_another_set_and_its_place_does_not_matter(
    recipe: Recipe, own: Path, champion: Path, tmp_path: Path
) -> None:
    where = a_data_folder(recipe, tmp_path, {42: own})
    there = answers_set(recipe, where.data)
    assert with_champion(recipe, where, shutil.copytree(champion, tmp_path / "moved")) == there
    assert with_champion(recipe, where, own) != there
    config = json.loads((old := tmp_path / "moved" / "config.json").read_text())
    del config["weights_sha256"]
    old.write_text(json.dumps(config))
    assert with_champion(recipe, where, old.parent) == there, "of before the hash was saved"
    answer.run(recipe, where)
    assert answers_set(recipe, where.data).n_rows() == 15 * len(SYSTEMS)


def with_champion(recipe: Recipe, where: Where, champion: Path) -> Any:
    settings = recipe.answer.model_copy(update={"champion": str(champion)})
    return answers_set(recipe.model_copy(update={"answer": settings}), where.data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"systems": ("ours", "champion")}, "answer.systems has champion, and answer.champion names no hypernetwork"),
        ({"systems": ("ours",), "champion": "there"}, "answer.champion: got 'there', and answer.systems has no champion"),
        ({"systems": ("champion",), "champion": "there"}, "there holds no hypernetwork"),
    ],
)
def test_a_champion_that_is_not_there_is_refused(
    vlm_folder: Path, own: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    recipe = a_recipe(vlm_folder, **settings)
    where = a_data_folder(recipe, tmp_path, {42: own})
    with pytest.raises(BadInputError, match=message):
        answer.run(recipe, where)


def test_a_champion_of_another_vlm_is_refused(recipe: Recipe, own: Path, rows: dict[str, dict[str, Any]]) -> None:
    shipped = recipe.model_copy(update={"answer": recipe.answer.model_copy(update={"champion": "tiny"})})
    tiny = Path(champion_folder(shipped) or "")
    with pytest.raises(BadInputError, match=f"{tiny}: trained for VLM weights "):
        Systems(recipe, hypernetwork=own, frames=as_table(list(rows.values())), captions={}, champion=tiny)
    assert trained_for(load_vlm("tiny"), tiny).config.n_layers > 0, "the one that ships, for the VLM that ships"


def test_a_champion_in_a_bucket_is_fetched(own: Path, bucket: str) -> None:
    with pytest.raises(BadInputError, match="holds no hypernetwork that can be read"), local_hypernetwork(f"{bucket}/champion"):
        pass
    for path in own.iterdir():
        write_new(f"{bucket}/champion/{path.name}", path.read_bytes())
    with local_hypernetwork(f"{bucket}/champion") as folder:
        assert hypernetwork_hash(folder) == hypernetwork_hash(own)
    assert not folder.exists()


@pytest.mark.parametrize(("n_frames", "n", "taken"), [(5, 3, [0, 2, 4]), (11, 4, [0, 3, 7, 10]), (3, 7, [0, 1, 2]), (5, 1, [0])])
def test_frames_are_chosen_evenly(n_frames: int, n: int, taken: list[int]) -> None:
    images = np.arange(n_frames * 2 * 3 * 3, dtype=np.uint8).reshape(n_frames, 2, 3, 3)
    chosen = evenly(Frames(images, np.arange(n_frames) / 7, 13.0), n)
    assert chosen.timestamps_s.tolist() == [i / 7 for i in taken] and chosen.duration_s == 13.0
    assert np.array_equal(chosen.images, images[taken])


@pytest.mark.parametrize(("n_frames", "n", "sizes"), [(7, 3, [2, 2, 3]), (5, 2, [2, 3]), (2, 5, [1, 1]), (1, 1, [1])])
def test_chunks_are_all_frames_in_their_order(n_frames: int, n: int, sizes: list[int]) -> None:
    images = np.arange(n_frames * 2 * 3 * 3, dtype=np.uint8).reshape(n_frames, 2, 3, 3)
    parts = chunks(Frames(images, np.arange(n_frames) / 7, 13.0), n)
    assert [len(part.images) for part in parts] == sizes and {part.duration_s for part in parts} == {13.0}
    assert np.array_equal(np.concatenate([part.images for part in parts]), images)
    assert np.concatenate([part.timestamps_s for part in parts]).tolist() == [i / 7 for i in range(n_frames)]
