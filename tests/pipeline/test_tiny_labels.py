"""Labels of the small VLM's training against the scene in words and the rendered picture."""

import numpy as np
import pytest

from pipeline.made_world import render, scene
from pipeline.tiny_labels import NONE, clip_facts, frame_facts, labels_of, n_slots
from video2lora.tiny.heads import IGNORE

TIMES = np.array([0.0, 0.37, 0.91])
SIDE, CELL_PX = 7, 9  # patches a side, pixels a patch


def named(one: scene.Scene) -> dict[str, str]:
    """The scene's facts in words."""
    facts = labels_of(one, TIMES, side=SIDE).facts
    return {name: clip_facts(one.level)[name][number] for name, number in facts.items()}


def test_level_1_names_its_one_kind_of_object() -> None:
    one = scene.draw_scene(1, seed=0, index=5, split="train")
    (group,) = one.groups
    assert named(one) == {
        "colour": group.colour, "shape": group.shape, "size": group.size, "direction": group.direction,
        "background": one.background, "count": scene.COUNTS[group.count - 1],
    }  # fmt: skip


@pytest.mark.parametrize("level", [2, 3])
def test_later_levels_bind_attributes_to_colours(level: int) -> None:
    one = next(one for i in range(99) if len((one := scene.draw_scene(level, seed=0, index=i, split="train")).groups) == 3)
    facts = named(one)
    for group in one.groups:
        assert (facts[f"{group.colour} shape"], facts[f"{group.colour} direction"]) == (group.shape, group.direction)
        assert facts.get(f"{group.colour} speed") == group.speed
    absent = set(scene.COLOURS) - {group.colour for group in one.groups}
    assert {facts[f"{colour} {kind}"] for colour in absent for kind in ("shape", "size", "direction")} == {NONE}
    assert facts["count"] == "three"
    assert not [name for name in frame_facts(level) if "direction" in name or "speed" in name], "no single frame shows these"


@pytest.mark.parametrize("level", scene.LEVELS)
def test_patches_and_places_are_those_of_the_picture(level: int) -> None:
    for index in range(12):
        one = scene.draw_scene(level, seed=4, index=index, split="train")
        labels = labels_of(one, TIMES, side=SIDE)
        assert labels.places.shape == (len(TIMES), n_slots(level), 2)
        assert labels.patches.shape == (len(TIMES), SIDE * SIDE) and labels.offsets.shape == (len(TIMES), SIDE * SIDE, 2)
        for t, time in enumerate(map(float, TIMES)):
            shown = [group for group in one.groups if group.is_shown(time)]
            picture = render.draw(one, time, height_px=SIDE * CELL_PX, width_px=SIDE * CELL_PX)
            centres = picture[CELL_PX // 2 :: CELL_PX, CELL_PX // 2 :: CELL_PX].reshape(-1, 3).astype(int)
            background = np.asarray(scene.BACKGROUNDS[one.background]) + one.tint
            bare = labels.patches[t] == IGNORE
            if {group.shape for group in shown} <= {"circle", "cross"}:  # corners of the others reach beyond the disc of a label
                assert (np.abs(centres[bare] - background).max(axis=1) < 3).all()
            assert set(labels.patches[t][~bare]) <= {scene.SHAPES.index(group.shape) for group in shown}
            middles = (np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="xy"), -1).reshape(-1, 2) + 0.5) / SIDE
            found = middles[~bare] - labels.offsets[t][~bare]
            true = np.array([centre for group in shown for centre in group.centres(time)])
            assert (np.abs(scene.offset(found[:, None], true)).max(axis=2).min(axis=1) < 1e-6).all()
            assert np.isnan(labels.places[t]).all(axis=1).sum() == n_slots(level) - len(shown)
