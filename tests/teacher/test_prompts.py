"""The prompt sets: who is asked what, that the split decides about questions, and that a change moves and remakes only what it must."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from infra.config import load_recipe
from infra.errors import BadInputError
from pipeline.made_world import texts
from teacher.prompts import Prompt, PromptSet, load_prompt_set, prompts_of

QUESTIONS = {"q2": "What shape is shown?", "q1": "How big is the object?"}
MADE_WORLD, MIXED, PAPER = (load_prompt_set(name) for name in ("made_world", "mixed", "paper"))
SET = {
    "id": "mine",
    "version": "1",
    "source": "ours",
    "groups": {"summary": {"task": "summary", "wordings": [{"id": f"summary-{i}", "text": f"Summarize it, way {i}."} for i in range(4)]}},
    "questions": {"forms": [{"id": "short", "text": "{question} In a word."}]},
}


def asked(video_id: str, split: str = "train", prompt_set: PromptSet = MIXED, span_kind: str | None = None) -> list[Prompt]:
    return prompts_of(video_id, split=split, questions=QUESTIONS, prompt_set=prompt_set, span_kind=span_kind)


def changed(**wordings: str) -> PromptSet:
    """SET with the texts of some wordings, by id, changed or added."""
    there = {one["id"]: one["text"] for one in SET["groups"]["summary"]["wordings"]}  # type: ignore[index]
    group = {"task": "summary", "wordings": [{"id": name, "text": text} for name, text in (there | wordings).items()]}
    return PromptSet.model_validate_json(json.dumps({**SET, "groups": {"summary": group}}))


def test_mixed_asks_a_summary_captions_of_five_styles_and_each_question_for_two_forms_of_answer() -> None:
    for split in ("train", "validation"):
        found = asked("video", split)
        assert [one.task for one in found] == ["summary", *["caption"] * 5, *["question"] * 4]
        assert [one.prompt_id for one in found[6:]] == ["q1.short", "q1.sentence", "q2.short", "q2.sentence"]
        assert found[6].prompt == "How big is the object? Answer with a word or a short phrase."
        assert found[9].prompt == "What shape is shown? Answer in one sentence."
        assert found == asked("video", split)
    styles = {one.prompt_id.rsplit("-", 1)[0] for one in found[1:6]}
    assert styles == {f"caption-{style}" for style in ("short", "detailed", "motion", "appearance", "order")}


def test_questions_of_test_videos_are_never_asked() -> None:
    for prompt_set in (MADE_WORLD, MIXED, PAPER):
        assert all(one.task != "question" for one in asked("video", "test", prompt_set))
    assert all(one.task != "question" for one in asked("video", "train", PAPER))


def test_the_made_worlds_set_is_what_the_demo_has_always_been_asked() -> None:
    """The demo's figures rest on it: these texts, dealt as they always were, and questions as they stand."""
    groups = {name: [one.text for one in group.wordings] for name, group in MADE_WORLD.groups.items()}
    assert groups == {"summary": list(texts.SUMMARY_PROMPTS), "caption": list(texts.CAPTION_PROMPTS)}
    assert [(one.prompt_id, one.prompt) for one in asked("video", "train", MADE_WORLD)] == [
        ("summary-2", "Give a summary of this video."),
        ("caption-1", "Caption the video."),
        ("q1", "How big is the object?"),
        ("q2", "What shape is shown?"),
    ]
    assert {load_recipe(name).teacher.prompts for name in ("demo", "tiny")} == {"made_world"}


@pytest.mark.parametrize("prompt_set", [MADE_WORLD, MIXED, PAPER], ids=lambda one: one.id)
def test_every_wording_is_drawn_about_equally_often_and_independently(prompt_set: PromptSet) -> None:
    drawn = [asked(f"video {i}", "test", prompt_set) for i in range(3000)]
    for i, group in enumerate(prompt_set.groups.values()):
        counts = Counter(one[i].prompt_id for one in drawn)
        expected = 3000 / len(group.wordings)
        assert set(counts) == {one.id for one in group.wordings}
        assert all(abs(n - expected) < 5 * expected**0.5 for n in counts.values())
    if len(prompt_set.groups) > 1:
        pairs = Counter((one[0].prompt_id, one[1].prompt_id) for one in drawn)
        assert len(pairs) == 9
        assert all(250 < n < 420 for n in pairs.values())  # 333 expected, deviation 17


def test_a_wording_that_is_added_takes_its_share_and_moves_no_other_video() -> None:
    names = [f"video {i}" for i in range(2000)]
    before = {name: asked(name, "test", changed())[0].prompt_id for name in names}
    after = {name: asked(name, "test", changed(**{"summary-new": "Sum it up."}))[0].prompt_id for name in names}
    moved = {name for name in names if before[name] != after[name]}
    assert {after[name] for name in moved} == {"summary-new"}
    assert 320 < len(moved) < 480  # a fifth


def test_a_changed_text_changes_the_version_of_its_own_prompt_alone() -> None:
    other = changed(**{"summary-2": "Say it in short."})
    for name in (f"video {i}" for i in range(60)):
        (old, *old_questions), (new, *new_questions) = asked(name, "train", changed()), asked(name, "train", other)
        assert old.prompt_id == new.prompt_id
        assert (old.version != new.version) == (old.prompt_id == "summary-2")
        assert old_questions == new_questions
    assert Prompt("x", "summary", "Sum it up.").version != Prompt("x", "caption", "Sum it up.").version
    assert len(Prompt("x", "summary", "Sum it up.").version) == 8


def test_the_papers_prompts_fit_the_kind_of_span_where_it_is_known() -> None:
    ids = {"scene": {"scene-1", "scene-2"}, "adjacent": {"adjacent-1", "adjacent-2"}, "full": {"full-1"}}
    for kind, expected in ids.items():
        assert {asked(f"video {i}", "train", PAPER, kind)[0].prompt_id for i in range(60)} == expected
    assert {asked(f"video {i}", "train", PAPER)[0].prompt_id for i in range(60)} == set.union(*ids.values())


def test_the_digest_follows_all_that_is_asked_and_no_note() -> None:
    sets = [MADE_WORLD, MIXED, PAPER, changed(), changed(**{"summary-2": "Say it in short."})]
    assert len({one.digest for one in sets}) == 5
    assert PromptSet.model_validate_json(json.dumps({**SET, "version": "2", "source": "theirs"})).digest == changed().digest


def test_a_set_of_ones_own_is_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(SET))
    assert load_prompt_set(str(file)) == changed()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": {"a": {"task": "caption", "wordings": []}}}, "groups.a.wordings"),
        ({"groups": {"a": {"task": "caption", "wordings": [{"id": "x/y", "text": "Say."}]}}}, "groups.a.wordings.0.id"),
        ({"groups": {name: {"task": "t", "wordings": [{"id": "x", "text": "Say."}]} for name in "ab"}}, "'x' more than once"),
        ({"questions": {"forms": [{"id": "short", "text": "In a word."}]}}, "needs {question} once"),
        ({"source": None}, "source"),
        ({"groups": {}, "questions": None}, "asks nothing"),
        ({"drawn": "by lot"}, "drawn"),
    ],
)
def test_a_wrong_set_is_refused_with_the_place(tmp_path: Path, change: dict[str, object], message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(SET | change))
    with pytest.raises(BadInputError, match=r"mine\.yaml") as caught:
        load_prompt_set(str(file))
    assert message in str(caught.value)


def test_a_set_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    for name in ("mixd", str(tmp_path / "gone.yaml"), str(tmp_path)):
        with pytest.raises(BadInputError, match=r"teacher\.prompts.*made_world, mixed, paper"):
            load_prompt_set(name)
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(BadInputError, match="not YAML"):
        load_prompt_set(str(tmp_path / "broken.yaml"))
