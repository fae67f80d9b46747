"""The made world: no scene in two splits, no answer to guess, nothing about motion in one frame."""

import numpy as np
import pytest

from pipeline.made_world import scene, texts

N_SCENES = 2000


@pytest.fixture(scope="module")
def scenes() -> list[scene.Scene]:
    return [scene.draw_scene(1, seed=0, index=i, split="train") for i in range(N_SCENES)]


def test_the_same_numbers_give_the_same_scene(scenes: list[scene.Scene]) -> None:
    assert scene.draw_scene(1, seed=0, index=7, split="train") == scenes[7]
    assert scene.draw_scene(1, seed=1, index=7, split="train") != scenes[7]
    assert scene.draw_scene(1, seed=0, index=7, split="test") != scenes[7]


def test_splits_share_no_scene(scenes: list[scene.Scene]) -> None:
    train = {one.key for one in scenes}
    validation, test = ({scene.draw_scene(1, seed=0, index=i, split=split).key for i in range(300)} for split in ("validation", "test"))
    assert not train & validation and not train & test and not validation & test


def test_each_answer_of_a_family_is_as_frequent_as_the_others(scenes: list[scene.Scene]) -> None:
    rng = np.random.default_rng(0)
    given: dict[str, list[str]] = {family: [] for family in texts.QUESTIONS}
    for one in scenes:
        for question in texts.questions(one, rng):
            given[question.family].append(question.answer)
    for family, answers in given.items():
        possible = texts.answers_of(family)
        shares = np.array([answers.count(answer) for answer in possible]) / N_SCENES
        assert sum(shares) == pytest.approx(1.0), f"{family}: an answer that is not in answers_of"
        assert np.abs(shares - 1 / len(possible)).max() < 0.05, (family, dict(zip(possible, shares, strict=True)))


def test_a_third_of_at_least_eight_families_is_temporal(scenes: list[scene.Scene]) -> None:
    asked = [question.family for question in texts.questions(scenes[0], np.random.default_rng(0))]
    assert len(asked) >= 8 and len(set(asked)) == len(asked)
    assert len(texts.TEMPORAL & set(asked)) / len(asked) >= 1 / 3


def guessed(positions: np.ndarray, answers: np.ndarray, *, n_bins: int = 10) -> float:
    """Share of the second half that the most frequent answer of the first half in the same place gets right."""
    bins = np.clip((positions * n_bins).astype(int), 0, n_bins - 1) @ np.array([n_bins, 1])
    half = len(answers) // 2
    table = np.zeros((n_bins * n_bins, answers.max() + 1))
    np.add.at(table, (bins[:half], answers[:half]), 1)
    return float((table[bins[half:]].argmax(axis=1) == answers[half:]).mean())


def test_where_objects_are_in_one_frame_does_not_tell_where_they_go(scenes: list[scene.Scene]) -> None:
    """Of four directions, chance is 0.25; of two axes, 0.5. A frame in the middle tells nothing, one of unknown time little."""
    directions = np.array([list(scene.DIRECTIONS).index(one.groups[0].direction) for one in scenes])
    rng = np.random.default_rng(0)
    moments = {"middle": np.full(N_SCENES, 0.5), "unknown": rng.random(N_SCENES)}
    for name, allowed in {"middle": 0.05, "unknown": 0.15}.items():
        positions = np.array([np.mean(one.groups[0].centres(t), axis=0) for one, t in zip(scenes, moments[name], strict=True)])
        assert guessed(positions, directions) < 0.25 + allowed
        assert guessed(positions, directions // 2) < 0.5 + allowed


def test_a_level_or_split_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="level: got 2, expected 1"):
        scene.draw_scene(2, seed=0, index=0, split="train")
    with pytest.raises(ValueError, match="split: got 'dev', expected one of train, validation, test"):
        scene.draw_scene(1, seed=0, index=0, split="dev")
