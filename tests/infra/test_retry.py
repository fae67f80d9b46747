"""Rejects tried again: by reason and stage, through the stages themselves."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra import retry, sets
from infra.config import Where, load_recipe
from infra.errors import BadInputError
from infra.storage import Table
from tests.infra.made_tables import IDS, RECIPE, WEIGHTS, make_root, row

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def ray_of_two_cpus() -> Iterator[None]:
    """Stages join it instead of starting one each."""
    from infra.cluster import cluster

    with cluster(Where(n_cpus=2)):
        yield


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """As the environment says; nothing in it yet."""
    monkeypatch.setenv("VIDEO2LORA_DATA", str(tmp_path / "data"))
    return str(tmp_path / "data")


def recipe(folder: Path, *, deadline_s: float) -> Path:
    path = folder / f"{deadline_s}.yaml"
    path.write_text(f"frames: {{deadline_s: {deadline_s}, longest_edge_px: 32, sampling: {{policy: uniform, n_frames: 2}}}}")
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("ray_of_two_cpus")
def test_what_took_too_long_is_tried_again_with_more_time(root: str, tmp_path: Path, clips: list[Path], command: Command) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clips[0].read_bytes()[:200])
    hasty, patient = recipe(tmp_path, deadline_s=0.001), recipe(tmp_path, deadline_s=60.0)
    assert command("manifest", tmp_path).code == 0
    assert command("frames", "-r", hasty).code == 0
    frames = sets.frames_set(load_recipe(str(patient)), root)
    assert set(frames.read_rejects()["reason"].to_pylist()) == {"deadline"} and frames.n_rejects() == 4

    ran = command("retry", "--reason", "decode_error", "-r", patient)
    assert ran.code == 0 and "nothing to try again of reason decode_error" in ran.out
    ran = command("retry", "--reason", "deadline", "-r", patient)
    assert ran.code == 0, ran.err
    assert "frames: 4 rejects of reason deadline are tried again" in ran.out
    assert "frames: 3 rows, 1 rejects" in ran.out
    assert "to take in what is new there: `video2lora targets`, `video2lora examples`" in ran.out
    assert frames.is_complete() and frames.n_rows() == 3
    assert command("verify").code == 0

    before = frames.state().attempt
    ran = command("retry", "-r", patient)
    assert ran.code == 0 and "1 rejects of reason" in ran.out, "without a reason, all"
    assert "1 rejects of `manifest` are looked at again whenever `video2lora manifest SOURCE` runs" in ran.err
    assert frames.state().attempt > before and (frames.n_rows(), frames.n_rejects()) == (3, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_of_two_cpus")
def test_what_a_killed_retry_left_is_made_and_nothing_else_again(root: str, tmp_path: Path, clips: list[Path], command: Command) -> None:
    """Killed when two of three rejects had been tried again, of which one is a reject again."""
    hasty, patient = recipe(tmp_path, deadline_s=0.001), recipe(tmp_path, deadline_s=60.0)
    command("manifest", tmp_path)
    command("frames", "-r", hasty)
    frames = sets.frames_set(load_recipe(str(patient)), root)
    state = frames.state()
    attempt = frames.begin((state.begun or {})["asked"], frames.wanted().to_pylist())
    first, second, third = sorted(attempt.state.live()["key"].to_pylist())
    attempt.void([first, second, third])
    attempt.write([row(frames, video_id=first)], [{"stage": "frames", "key": second, "reason": "deadline", "detail": "again"}])

    ran = command("retry", "-r", patient)
    assert ran.code == 0 and "is not complete: what is pending is made, and its rejects stay" in ran.err
    assert frames.read_rejects()["detail"].to_pylist() == ["again"] and frames.n_rows() == 2
    assert command("retry", "-r", patient).code == 0
    assert frames.n_rows() == 3


@pytest.mark.slow
@pytest.mark.usefixtures("ray_of_two_cpus")
def test_a_run_that_was_killed_before_it_said_what_to_try_again(root: str, tmp_path: Path, clips: list[Path], command: Command) -> None:
    hasty, patient = recipe(tmp_path, deadline_s=0.001), recipe(tmp_path, deadline_s=60.0)
    command("manifest", tmp_path)
    command("frames", "-r", hasty)
    frames = sets.frames_set(load_recipe(str(patient)), root)
    frames.begin((frames.state().begun or {})["asked"], frames.wanted().to_pylist())
    assert command("retry", "-r", patient).code == 0
    assert frames.is_complete() and frames.n_rows() == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--reason", "bored"), "--reason: got 'bored', expected one of bad_row, "),
        (("--stage", "train"), "--stage: got 'train', expected one of frames, targets, examples, encode, judge"),
        (("--stage", "manifest"), "rejects of `manifest` are looked at again whenever `video2lora manifest` runs"),
    ],
)
def test_what_is_none_is_refused(root: str, command: Command, arguments: tuple[str, ...], says: str) -> None:
    ran = command("retry", *arguments)
    assert ran.code == 3 and says in ran.err
    assert len(ran.err.strip().splitlines()) == 1 and not Path(root).exists()


def test_without_tables_there_is_nothing_to_try_again(root: str, command: Command) -> None:
    ran = command("retry")
    assert ran.code == 0 and "nothing to try again" in ran.out


def test_the_recipes_own_sets_are_meant(root: str, tmp_path: Path) -> None:
    """Of teachers of one name, the one that was run last."""
    make_root(Path(root))
    other = sets.targets_set(RECIPE, root, weights="other")
    tables = retry.tables_of_recipe(RECIPE, root)
    assert tables["targets"] == sets.made_targets(RECIPE, root) and tables["examples"].is_complete()
    sets.register(other, sets.targets_made(RECIPE, weights="other"))
    assert retry.tables_of_recipe(RECIPE, root) == tables, "registered, and not begun"
    other.begin({}, [])
    at = (tables["targets"].state().begun or {})["at"]
    last = (other.state().begun or {})["at"]
    expected = max([(at, tables["targets"].set, tables["targets"]), (last, other.set, other)])[-1]
    assert retry.tables_of_recipe(RECIPE, root)["targets"] == expected
    away = RECIPE.model_copy(update={"frames": RECIPE.frames.model_copy(update={"longest_edge_px": 32})})
    assert retry.tables_of_recipe(away, root) == {}


def test_visual_tokens_belong_to_recipes_that_have_them_stored(root: str) -> None:
    make_root(Path(root))
    stored = RECIPE.model_copy(update={"training": RECIPE.training.model_copy(update={"visual_tokens": "stored"})})
    assert "encode" not in retry.tables_of_recipe(RECIPE, root)
    assert retry.tables_of_recipe(stored, root)["encode"] == sets.visual_tokens_set(RECIPE, root, weights=WEIGHTS)
    for changes in ({"model": "another/one"}, {"dtype": "bfloat16"}):
        other = stored.model_copy(update={"vlm": RECIPE.vlm.model_copy(update=changes)})
        assert "encode" not in retry.tables_of_recipe(other, root)


def test_a_stage_is_chosen(root: str, command: Command, tmp_path: Path) -> None:
    """The teacher would have to start for targets; frames would be read from clips that are none."""
    make_root(Path(root))
    frames = sets.frames_set(RECIPE, root)
    before = frames.state().version
    with pytest.raises(BadInputError):
        retry.run(RECIPE, Where(data=root), stage="answers")
    retry.run(RECIPE, Where(data=root), stage="examples")
    assert frames.state().version == before
    assert Table(root, "videos").is_complete() and IDS[2] in frames.read_rejects()["key"].to_pylist()
