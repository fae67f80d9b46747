"""The prompt sets: who is asked what, and that the split decides about questions."""

from collections import Counter

from pipeline.made_world import texts
from teacher.prompts import MIXED, PAPER, PROMPT_SETS, Prompt, PromptSet, prompts_of

QUESTIONS = [Prompt("q2", "question", "What shape is shown?"), Prompt("q1", "question", "How big is the object?")]


def asked(video_id: str, split: str, prompt_set: PromptSet = MIXED) -> list[Prompt]:
    return prompts_of(video_id, split=split, questions=QUESTIONS, prompt_set=prompt_set)


def test_mixed_asks_a_summary_a_caption_and_the_videos_questions_in_a_fixed_order() -> None:
    for split in ("train", "validation"):
        found = asked("video", split)
        assert [one.task for one in found] == ["summary", "caption", "question", "question"]
        assert [one.prompt_id for one in found[2:]] == ["q1", "q2"]
        assert found == asked("video", split)


def test_questions_of_test_videos_are_never_asked() -> None:
    assert [one.task for one in asked("video", "test")] == ["summary", "caption"]
    assert all(one.task != "question" for split in ("train", "validation", "test") for one in asked("video", split, PAPER))


def test_wordings_are_those_of_the_made_world() -> None:
    assert tuple(one.prompt for one in MIXED.groups["summary"]) == texts.SUMMARY_PROMPTS
    assert tuple(one.prompt for one in MIXED.groups["caption"]) == texts.CAPTION_PROMPTS


def test_every_wording_is_drawn_about_equally_often_and_independently() -> None:
    drawn = [asked(f"video {i}", "test") for i in range(3000)]
    pairs = Counter((summary.prompt_id, caption.prompt_id) for summary, caption in drawn)
    assert len(pairs) == 9
    assert all(250 < n < 420 for n in pairs.values())  # 333 expected, deviation 17


def test_paper_asks_one_of_five_captions() -> None:
    drawn = Counter(one.prompt_id for i in range(1000) for one in asked(f"video {i}", "train", PAPER))
    assert set(drawn) == {"scene-1", "scene-2", "adjacent-1", "adjacent-2", "full-1"}
    assert drawn.total() == 1000


def test_prompt_ids_are_unique_within_a_set() -> None:
    for prompt_set in PROMPT_SETS.values():
        ids = [one.prompt_id for of in prompt_set.groups.values() for one in of]
        assert len(ids) == len(set(ids))


def test_version_follows_the_words() -> None:
    changed = PromptSet("mixed", {"summary": (Prompt("summary-1", "summary", "Other words."),)}, asks_questions=True)
    assert len({MIXED.version, PAPER.version, changed.version}) == 3
