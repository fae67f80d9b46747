"""The made world: no scene in two splits, no answer to guess, nothing about motion in one frame, and no answer that the pictures belie."""

from collections import defaultdict

import numpy as np
import pytest

from pipeline.made_world import render, scene, texts

N_SCENES = 2000


@pytest.fixture(scope="module", params=scene.LEVELS)
def scenes(request: pytest.FixtureRequest) -> list[scene.Scene]:
    return [scene.draw_scene(request.param, seed=0, index=i, split="train") for i in range(N_SCENES)]


def asked_of(scenes: list[scene.Scene]) -> list[tuple[scene.Scene, texts.Question]]:
    rng = np.random.default_rng(0)
    return [(one, question) for one in scenes for question in texts.questions(one, rng)]


def test_the_same_numbers_give_the_same_scene(scenes: list[scene.Scene]) -> None:
    level = scenes[0].level
    assert scene.draw_scene(level, seed=0, index=7, split="train") == scenes[7]
    assert scene.draw_scene(level, seed=1, index=7, split="train") != scenes[7]
    assert scene.draw_scene(level, seed=0, index=7, split="test") != scenes[7]


def test_splits_share_no_scene(scenes: list[scene.Scene]) -> None:
    level = scenes[0].level
    train = {one.key for one in scenes}
    validation, test = ({scene.draw_scene(level, seed=0, index=i, split=split).key for i in range(300)} for split in ("validation", "test"))
    assert not train & validation and not train & test and not validation & test


def test_each_level_holds_what_it_says(scenes: list[scene.Scene]) -> None:
    level = scenes[0].level
    assert {len(one.groups) for one in scenes} == ({1} if level == 1 else {1, 2, 3})
    assert {sum(group.count for group in one.groups) for one in scenes} == {1, 2, 3}
    for one in scenes:
        assert len({group.colour for group in one.groups}) == len({group.shape for group in one.groups}) == len(one.groups)
        assert all((group.speed is None) == (level < 3) for group in one.groups)
        sampled = [sum(group.is_shown(time) for time in (0.0, 0.33, 0.66, 0.98)) for group in one.groups]
        assert min(sampled) >= 2 and max(sampled) == 4, "a group seen less than twice has no direction; a frame without any shows nothing"
    events = {group.event.kind for one in scenes for group in one.groups if group.event}
    assert events == (set(scene.EVENTS) if level == 3 else set())


def test_no_answer_of_a_family_is_frequent_enough_to_guess(scenes: list[scene.Scene]) -> None:
    given: dict[str, list[str]] = defaultdict(list)
    for _, question in asked_of(scenes):
        given[question.family].append(question.answer)
    assert set(given) == set(texts.families(scenes[0].level))
    for family, answers in given.items():
        possible = texts.answers_of(family)
        shares = np.array([answers.count(answer) for answer in possible]) / len(answers)
        assert sum(shares) == pytest.approx(1.0), f"{family}: an answer that is not in answers_of"
        noise = 2.5 / np.sqrt(len(answers))
        allowed = 0.5 if family == "n_moving" else 1 / len(possible)
        assert shares.max() < allowed + noise, (family, dict(zip(possible, shares, strict=True)))


def test_enough_families_and_enough_of_them_temporal(scenes: list[scene.Scene]) -> None:
    level = scenes[0].level
    families = texts.families(level)
    assert len(texts.TEMPORAL & set(families)) / len(families) >= (1 / 3 if level == 1 else 1 / 2)
    rng = np.random.default_rng(0)
    for one in scenes[:200]:
        asked = [question.family for question in texts.questions(one, rng)]
        assert len(asked) >= 8 and len(set(asked)) == len(asked)


def guessed(features: np.ndarray, answers: np.ndarray, *, n_bins: int = 10) -> float:
    """Share of the second half that the most frequent answer of the first half in the same bin gets right. features in [0, 1)."""
    bins = (features * n_bins).astype(int) @ np.array([n_bins, 1])
    half = len(answers) // 2
    table = np.zeros((n_bins * n_bins, answers.max() + 1))
    np.add.at(table, (bins[:half], answers[:half]), 1)
    return float((table[bins[half:]].argmax(axis=1) == answers[half:]).mean())


@pytest.mark.parametrize("time", [0.0, 0.5, 1.0])
def test_where_objects_are_in_one_frame_does_not_tell_where_they_go(scenes: list[scene.Scene], time: float) -> None:
    """Of four directions, chance is 0.25; of two axes, 0.5. The time of the frame is known to who guesses."""
    directions = np.array([list(scene.DIRECTIONS).index(one.groups[0].direction) for one in scenes])
    places = np.array([one.groups[0].middle(time) for one in scenes])
    assert guessed(places, directions) < 0.25 + 0.05
    assert guessed(places, directions // 2) < 0.5 + 0.05


@pytest.mark.parametrize(("time", "allowed"), [(0.0, 0.05), (1.0, 0.10)])
def test_where_objects_are_to_one_another_does_not_tell_where_they_go(time: float, allowed: float) -> None:
    """The first frame tells nothing. Later ones may: two groups that overlap go different ways, since they started apart."""
    several = [one for i in range(2 * N_SCENES) if len((one := scene.draw_scene(2, seed=0, index=i, split="train")).groups) > 1]
    directions = np.array([list(scene.DIRECTIONS).index(one.groups[0].direction) for one in several])
    same = np.array([int(one.groups[0].direction == one.groups[1].direction) for one in several])
    between = np.array([np.subtract(one.groups[1].middle(time), one.groups[0].middle(time)) % 1.0 for one in several])
    assert guessed(between, directions) < 0.25 + allowed
    assert guessed(between, same) < max(same.mean(), 1 - same.mean()) + allowed


def centroid(picture: np.ndarray, colour: str) -> np.ndarray:
    """Where a colour is in a picture without borders: (x, y) in [0, 1), by the mean angle of its pixels."""
    near = np.abs(picture.astype(int) - scene.COLOURS[colour]).max(axis=2) < 24
    y, x = np.nonzero(near)
    places = np.stack([(x + 0.5) / picture.shape[1], (y + 0.5) / picture.shape[0]])
    return (np.angle(np.exp(2j * np.pi * places).mean(axis=1)) / (2 * np.pi)) % 1.0


def test_answers_are_true_of_the_pictures() -> None:
    """Directions, movers and relations against the centroids of colours in rendered frames: the oracle knows no scene."""
    scenes = [scene.draw_scene(2, seed=3, index=i, split="test") for i in range(120)]
    checked: dict[str, int] = defaultdict(int)
    for one, question in asked_of(scenes):
        if len(one.groups) == 1 or question.family not in ("direction", "mover", "relation"):
            continue
        first, later = (render.draw(one, time, height_px=90, width_px=120) for time in (0.0, 0.02))
        colours = [group.colour for group in one.groups]
        starts = {colour: centroid(first, colour) for colour in colours}
        moved = {}
        for colour in colours:
            across, down = (centroid(later, colour) - starts[colour] + 0.5) % 1.0 - 0.5
            moved[colour] = ("right" if across > 0 else "left") if abs(across) > abs(down) else ("down" if down > 0 else "up")
        words = question.question.replace("?", "").replace(".", "").split()
        named = [word for word in words if word in colours]
        if question.family == "direction":
            assert question.answer == moved[named[0]]
        elif question.family == "mover":
            assert moved[question.answer] == next(word for word in words if word in scene.DIRECTIONS)
        else:
            way = next(word for word in words if word in ("left", "right", "above", "below"))
            across, down = starts[named[0]] - starts[named[1]]
            truth = {"left": across < 0, "right": across > 0, "above": down < 0, "below": down > 0}[way]
            assert question.answer == ("yes" if truth else "no")
        checked[question.family] += 1
    assert min(checked[family] for family in ("direction", "mover", "relation")) > 20


def test_a_shape_that_leaves_the_frame_comes_in_on_the_other_side() -> None:
    group = scene.Group(colour="red", shape="square", size="large", count=1, direction="right", start=(0.0, 0.5), path=0.4, angle=0.0)
    one = scene.Scene(level=1, background="black", groups=(group,), tint=(0, 0, 0))
    split, whole = (render.draw(one, time, height_px=60, width_px=100) for time in (0.0, 0.25))
    assert np.array_equal(np.roll(split, 10, axis=1), whole)
    red = (split == scene.COLOURS["red"]).all(axis=2)
    assert red[30, :11].all() and red[30, -11:].all() and not red[30, 13:-13].any()


def test_events_are_in_the_pictures_and_told_in_their_order() -> None:
    scenes = [one for i in range(300) if len((one := scene.draw_scene(3, seed=2, index=i, split="train")).events) == 2]
    assert len(scenes) > 5
    for one in scenes:
        changes = {}
        for group in one.groups:
            lone = scene.Scene(3, "black", (group,), (0, 0, 0))
            shown = [bool(np.any(render.draw(lone, i / 100, height_px=40, width_px=40) > 60)) for i in range(101)]
            changes |= {group.colour: (shown.index(not shown[0]), "appears" if shown[-1] else "disappears")} if len(set(shown)) > 1 else {}
        (first, (_, kind)), (then, (_, kind_then)) = sorted(changes.items(), key=lambda change: change[1][0])
        assert texts.summary(one).endswith(f" First {first} {kind}, then {then} {kind_then}.")
        assert [q.answer for q in texts.questions(one, np.random.default_rng(0)) if q.family == "first_event"] == [first]


def test_a_level_or_split_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="level: got 4, expected one of 1, 2, 3"):
        scene.draw_scene(4, seed=0, index=0, split="train")
    with pytest.raises(ValueError, match="split: got 'dev', expected one of train, validation, test"):
        scene.draw_scene(1, seed=0, index=0, split="dev")
