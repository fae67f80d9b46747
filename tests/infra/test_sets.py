"""Sets: the same way of making rows is the same folder, any other way another one."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from infra.config import Recipe, load_recipe
from infra.errors import BadInputError, StorageError
from infra.outputs import Output
from infra.sets import (
    examples_made,
    examples_set,
    frames_made,
    frames_set,
    hypernetwork_made,
    hypernetwork_output,
    hypernetworks_of,
    made_targets,
    register,
    sets_of,
    tables_of,
    targets_made,
    targets_set,
    trained_hypernetwork,
)
from infra.storage import Table

RECIPE = load_recipe("tiny")


def changed(section: str, **settings: Any) -> Recipe:
    there = getattr(RECIPE, section)
    for name, value in settings.items():
        assert getattr(there, name) != value, "a change that is none"
    return RECIPE.model_copy(update={section: there.model_copy(update=settings)})


def filled(table: Table, made: dict[str, Any]) -> None:
    """Registered, and closed without a row."""
    register(table, made)
    table.begin({}, []).complete()


def test_a_set_is_named_for_people_and_by_its_settings() -> None:
    table = frames_set(RECIPE, "/data/")
    label, _, hashed = table.set.rpartition("-")
    assert label == f"{RECIPE.frames.sampling.name}-{RECIPE.frames.longest_edge_px}px" and len(hashed) == 8
    assert table.folder == f"/data/frames/{table.set}"
    assert frames_set(RECIPE.model_copy(deep=True), "/data") == Table("/data", "frames", table.set)


def test_what_says_only_where_or_how_long_is_the_same_set() -> None:
    assert frames_set(changed("frames", deadline_s=7.0), "/d") == frames_set(RECIPE, "/d")
    for same in (changed("teacher", videos_per_block=3), changed("teacher", prompts="paper"), changed("frames", deadline_s=7.0)):
        assert targets_set(same, "/d", weights="w") == targets_set(RECIPE, "/d", weights="w")


@pytest.mark.parametrize("settings", [{"jpeg_quality": 17}, {"longest_edge_px": 23}], ids=str)
def test_other_frames_are_another_set_of_frames_and_of_what_is_made_from_them(settings: dict[str, Any]) -> None:
    other = changed("frames", **settings)
    assert frames_set(other, "/d") != frames_set(RECIPE, "/d")
    assert targets_set(other, "/d", weights="w") != targets_set(RECIPE, "/d", weights="w")


@pytest.mark.parametrize("settings", [{"revision": "r2"}, {"dtype": "bfloat16"}, {"max_tokens": 17}, {"logprobs": 5}], ids=str)
def test_another_teacher_is_another_set_beside_the_old(settings: dict[str, Any]) -> None:
    other = changed("teacher", **settings)
    assert targets_set(other, "/d", weights="w") != targets_set(RECIPE, "/d", weights="w")
    assert frames_set(other, "/d") == frames_set(RECIPE, "/d")


def test_other_weights_of_the_same_name_are_another_set() -> None:
    first, second = (targets_set(RECIPE, "/d", weights=weights) for weights in ("w1", "w2"))
    assert first != second and first.set.rpartition("-")[0] == second.set.rpartition("-")[0]
    assert examples_set(RECIPE, first) != examples_set(RECIPE, second)


def test_a_path_as_a_teachers_name_makes_a_folder_s_name() -> None:
    for model in ("/models/My Teacher (v2)/", "org/My Teacher (v2)"):
        table = targets_set(changed("teacher", model=model), "/d", weights="w")
        assert table.set.startswith("My-Teacher-v2-") and "/" not in table.set


def test_a_set_is_registered_once_also_by_many_at_once(tmp_path: Path) -> None:
    made = [{"way": n} for n in range(3)]
    tables = [Table(str(tmp_path), "frames", f"set-{n}") for n in range(3)]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda i: register(tables[i % 3], made[i % 3]), range(12)))
    found = sets_of(str(tmp_path), "frames")
    assert sorted(found, key=lambda one: one[0].set) == list(zip(tables, made, strict=True))
    register(tables[0], made[0])
    assert sets_of(str(tmp_path), "frames")[-1] == (tables[0], made[0])
    assert sorted(sets_of(str(tmp_path), "frames"), key=lambda one: one[0].set) == sorted(found, key=lambda one: one[0].set)
    assert sets_of(str(tmp_path), "targets") == []


def test_a_damaged_register_is_an_error(tmp_path: Path) -> None:
    table = frames_set(RECIPE, str(tmp_path))
    register(table, frames_made(RECIPE))
    (entry,) = (tmp_path / "frames" / "sets").iterdir()
    entry.write_bytes(entry.read_bytes()[:-1])
    for use in (lambda: sets_of(str(tmp_path), "frames"), lambda: register(table, {}), lambda: tables_of(str(tmp_path))):
        with pytest.raises(StorageError, match="cannot be read"):
            use()


def test_tables_are_those_that_a_run_has_begun(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert tables_of(root) == []
    frames, other = frames_set(RECIPE, root), frames_set(changed("frames", jpeg_quality=17), root)
    register(frames, frames_made(RECIPE))
    filled(other, frames_made(changed("frames", jpeg_quality=17)))
    Table(root, "videos").begin({}, ["a"])
    assert tables_of(root) == [Table(root, "videos"), other]


def test_targets_are_found_again_without_their_weights(tmp_path: Path) -> None:
    root = str(tmp_path)
    with pytest.raises(BadInputError, match="run `video2lora targets` first"):
        made_targets(RECIPE, root)
    first, second = (targets_set(RECIPE, root, weights=weights) for weights in ("w1", "w2"))
    register(second, targets_made(RECIPE, weights="w2"))
    filled(first, targets_made(RECIPE, weights="w1"))
    filled(
        targets_set(changed("teacher", max_tokens=17), root, weights="w1"), targets_made(changed("teacher", max_tokens=17), weights="w1")
    )
    assert made_targets(RECIPE, root) == first, "the second is not complete"
    filled(second, targets_made(RECIPE, weights="w2"))
    assert made_targets(RECIPE, root) == second, "of two, the one that was made last, by whatever clock"
    n_entries = len(list((tmp_path / "targets" / "sets").iterdir()))
    for _ in range(2):
        register(first, targets_made(RECIPE, weights="w1"))  # `targets` finds nothing to do
    assert made_targets(RECIPE, root) == first, "the teacher has its first weights again"
    assert len(list((tmp_path / "targets" / "sets").iterdir())) == n_entries + 1


def closed_examples(recipe: Recipe, root: str) -> Table:
    """The recipe's, without a row."""
    targets = targets_set(recipe, root, weights="w")
    filled(targets, targets_made(recipe, weights="w"))
    examples = examples_set(recipe, targets)
    filled(examples, examples_made(recipe, targets))
    return examples


def trained(recipe: Recipe, examples: Table) -> Output:
    output = hypernetwork_output(recipe, examples)
    assert output.begin(hypernetwork_made(recipe, examples))
    output.complete()
    return output


def test_hypernetworks_lie_side_by_side_and_how_they_are_trained_is_no_part_of_their_name(tmp_path: Path) -> None:
    root = str(tmp_path)
    with pytest.raises(BadInputError, match="not there or not complete"):
        hypernetwork_output(RECIPE, examples_set(RECIPE, targets_set(RECIPE, root, weights="w")))
    examples = closed_examples(RECIPE, root)
    folder = hypernetwork_output(RECIPE, examples).folder
    assert folder.startswith(f"{root}/hypernetworks/tiny-")
    for how in ({"zero_stage": 3}, {"compile": True}, {"checkpoint_every": 17}, {"checkpoints_kept": 5}):
        assert hypernetwork_output(changed("training", **how), examples).folder == folder
    others = [changed("training", seed=7), changed("training", n_steps=17), changed("hypernetwork", r=3), changed("vlm", model="a/b-C")]
    folders = [hypernetwork_output(other, examples).folder for other in others]
    assert len({folder, *folders}) == 5 and folders[-1].startswith(f"{root}/hypernetworks/b-C-")


def test_the_hypernetwork_of_a_recipe_is_the_finished_one_of_its_settings_and_examples(tmp_path: Path) -> None:
    root = str(tmp_path)
    first, longer, other_frames = RECIPE, changed("training", n_steps=17), changed("frames", jpeg_quality=17)
    examples = closed_examples(first, root)
    begun = hypernetwork_output(first, examples)
    begun.begin(hypernetwork_made(first, examples))
    with pytest.raises(BadInputError, match="none was trained by this recipe: run `video2lora train` first"):
        trained_hypernetwork(first, root)
    of_longer, of_other = trained(longer, examples), trained(other_frames, closed_examples(other_frames, root))
    begun.complete()
    assert hypernetworks_of(root) == sorted([begun, of_longer, of_other], key=lambda one: one.name)
    assert trained_hypernetwork(changed("training", zero_stage=3), root) == trained_hypernetwork(first, root) == begun
    assert trained_hypernetwork(longer, root) == of_longer and trained_hypernetwork(other_frames, root) == of_other


def test_of_hypernetworks_on_fewer_and_more_examples_the_one_finished_last(tmp_path: Path) -> None:
    root = str(tmp_path)
    examples = closed_examples(RECIPE, root)
    found = []
    for asked in ({"n": 1}, {"n": 2}, {"n": 3}):
        examples.begin(asked, []).complete()
        found.append(trained(RECIPE, examples))
        time.sleep(0.002)  # a time to the millisecond tells them apart
    assert len({one.folder for one in found}) == 3
    examples.begin({"n": 4}, []).complete()  # which none was trained on
    assert trained_hypernetwork(RECIPE, root) == found[-1]
    examples.begin({"n": 5}, [])  # being made
    assert trained_hypernetwork(RECIPE, root) == found[-1]


def test_the_hypernetwork_of_the_examples_there_are_now_comes_first_whatever_a_clock_said(tmp_path: Path) -> None:
    root = str(tmp_path)
    examples = closed_examples(RECIPE, root)
    before = trained(RECIPE, examples)
    Path(before.folder, "complete.json").write_text('{"at": "2099-01-01T00:00:00.000+00:00"}')
    examples.begin({"n": 2}, []).complete()
    assert trained_hypernetwork(RECIPE, root) == before != trained(RECIPE, examples) == trained_hypernetwork(RECIPE, root)
