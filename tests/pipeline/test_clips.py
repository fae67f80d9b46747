"""Clips on disk against the renderer, and the ways in which writing them ends."""

import hashlib
import json
from pathlib import Path

import av
import numpy as np
import pytest

from infra.config import Recipe, Where, WorldSettings, load_recipe
from infra.errors import BadInputError, MadeFromOtherError
from infra.hypernetworks import address_of
from infra.seen import read_seen
from pipeline.made_world import texts
from pipeline.made_world.clips import CLIP_SIZES_PX, Clip, clips_of, encode, pictures, run, write_clips
from video2lora.video_file import short_id

SETTINGS = WorldSettings(n_train=5, n_validation=1, n_test=2)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    assert write_clips(SETTINGS, folder, n_processes=2)
    return folder


def test_the_same_settings_give_the_same_bytes(world: Path, tmp_path: Path) -> None:
    assert write_clips(SETTINGS, tmp_path, n_processes=1)
    assert contents(tmp_path) == contents(world)


def test_a_clip_decodes_to_the_rendered_pictures(world: Path) -> None:
    for clip in [Clip(1, 0, "train", 0), Clip(1, 0, "test", 1)]:
        film = clip.film()
        with av.open(world / clip.uri) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.average_rate) == ("h264", film.rate_per_s)
            frames = list(container.decode(stream))
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in frames]).astype(np.int16)
        drawn = np.stack(list(pictures(clip)))
        assert decoded.shape == drawn.shape == (film.n_frames, film.height_px, film.width_px, 3)
        assert np.abs(decoded - drawn).mean() < 3.0
        assert frames[0].time == 0.0
        assert float(frames[-1].time or 0.0) == pytest.approx((film.n_frames - 1) / film.rate_per_s)


def test_clips_vary_in_all_that_real_ones_vary_in() -> None:
    clips = [Clip(1, 0, "train", i) for i in range(200)]
    films = [clip.film() for clip in clips]
    assert {(film.width_px, film.height_px) for film in films} == set(CLIP_SIZES_PX)
    assert {film.n_b_frames for film in films} == {0, 1, 2, 3}
    assert len({film.gop_frames for film in films}) > 20
    rates, lengths_s = zip(*[(float(film.rate_per_s), float(film.n_frames / film.rate_per_s)) for film in films], strict=True)
    assert min(rates) == 10 and 29 < max(rates) <= 30
    assert 0.9 < min(lengths_s) < 1.3 and 3.7 < max(lengths_s) < 4.1


def test_b_frames_are_really_in_the_file() -> None:
    clip = next(clip for clip in (Clip(1, 0, "train", i) for i in range(50)) if clip.film().n_b_frames == 3)
    data = encode(clip)
    assert data == encode(clip)
    assert b"bframes=3" in data and f"keyint={clip.film().gop_frames} ".encode() in data  # x264 writes its settings down


def test_the_books_beside_the_clips(world: Path) -> None:
    rows = {
        name: [json.loads(line) for line in (world / f"{name}.jsonl").read_text().splitlines()] for name in ("clips", "questions", "truth")
    }
    uris = [row["uri"] for row in rows["clips"]]
    assert len(uris) == len(set(uris)) == 8 and all((world / uri).is_file() for uri in uris)
    assert [row["split"] for row in rows["clips"]] == ["train"] * 5 + ["validation"] + ["test"] * 2
    assert [row["uri"] for row in rows["truth"]] == uris
    assert rows["truth"][0]["summary"] == texts.summary(Clip(1, 0, "train", 0).scene())
    assert len(rows["questions"]) == 8 * len(texts.families(1))
    for row in rows["questions"]:
        assert row["uri"] in uris and row["benchmark"] == "made_world"
        assert len(row["references"]) == 1 and row["references"][0] in texts.answers_of(row["style"])


def test_a_killed_run_goes_on_and_a_complete_one_has_nothing_to_do(tmp_path: Path) -> None:
    write_clips(SETTINGS, tmp_path, n_processes=1)
    whole = contents(tmp_path)
    for name in ("train/00003.mp4", "test/00001.mp4", "questions.jsonl", "clips.jsonl"):
        (tmp_path / name).unlink()
    (tmp_path / "train/00003.mp4.0.part").write_bytes(b"what the kill left")
    kept = (tmp_path / "train/00000.mp4").stat().st_mtime_ns
    assert write_clips(SETTINGS, tmp_path, n_processes=1)
    assert contents(tmp_path) == whole | {"train/00003.mp4.0.part": b"what the kill left"}
    assert (tmp_path / "train/00000.mp4").stat().st_mtime_ns == kept
    assert not write_clips(SETTINGS, tmp_path, n_processes=1)


def test_a_folder_of_other_settings_is_refused(world: Path) -> None:
    with pytest.raises(MadeFromOtherError, match=r"world\.seed: there 0, here 3"):
        write_clips(SETTINGS.model_copy(update={"seed": 3}), world)


def test_a_world_that_cannot_be_drawn_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"world\.level: got 4, expected one of 1, 2, 3"):
        write_clips(SETTINGS.model_copy(update={"level": 4}), tmp_path)
    with pytest.raises(BadInputError, match="world: not there"):
        run(Recipe(), Where(data=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_run_writes_into_the_data_folder(world: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").symlink_to(world)
    assert run(Recipe(world=SETTINGS), Where(data=str(tmp_path))) == f"made world: 8 clips in {tmp_path}/clips"


def test_the_hypernetwork_that_ships_says_which_of_these_clips_it_has_seen() -> None:
    settings = load_recipe("tiny").world
    assert settings is not None
    seen = read_seen(address_of("tiny"))
    assert seen.is_all and len(seen.contents) == settings.n_train + settings.n_validation
    for clip in clips_of(settings)[:: settings.n_validation - 1]:
        content = short_id(hashlib.sha256(encode(clip)).hexdigest())
        assert (content in seen.contents) == (clip.split != "test"), clip.uri
