"""Copies are what a comparison of every pair finds, and the hash is what its definition says, on real encodes too."""

import itertools
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
import scipy.fft
from PIL import Image, ImageDraw

from pipeline.near_duplicates import copies, near_duplicate_rows, near_duplicates, perceptual_hash, signature
from video2lora.video import Sampling, decode


def by_every_pair(hashes: np.ndarray, max_distance_bits: int) -> list[int]:
    """The definition: in order, each copies the first that stays and is near in every frame."""
    earlier: list[int] = []
    for later, its in enumerate(hashes.tolist()):
        near = (
            first
            for first in range(later)
            if earlier[first] < 0
            and all((one ^ two).bit_count() <= max_distance_bits for one, two in zip(hashes[first].tolist(), its, strict=True))
        )
        earlier.append(next(near, -1))
    return earlier


def made_hashes(n_videos: int, n_frames: int, n_flips: int, *, seed: int) -> np.ndarray:
    """Families of 7: each member is its predecessor with up to `n_flips` bits of each frame flipped, so ends drift apart. Shuffled."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, (n_videos, n_frames), dtype=np.uint64)
    for i in range(n_videos):
        if i % 7:
            hashes[i] = hashes[i - 1]
            for _ in range(n_flips):
                hashes[i] ^= np.uint64(1) << rng.integers(0, 64, n_frames).astype(np.uint64)
    return rng.permutation(hashes)


@pytest.mark.parametrize("max_distance_bits", [0, 1, 3, 4, 8])
@pytest.mark.parametrize("n_frames", [1, 2, 3, 11])
def test_finds_what_comparing_every_pair_finds(n_frames: int, max_distance_bits: int) -> None:
    hashes = made_hashes(211, n_frames, (max_distance_bits + 1) // 2, seed=n_frames)
    expected = by_every_pair(hashes, max_distance_bits)
    assert copies(hashes, max_distance_bits).tolist() == expected
    n_copies = sum(one >= 0 for one in expected)
    assert 60 < n_copies < 211


def test_many_of_one_kind_do_not_hide_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crowd of nearly black clips, in rounds of few pairs."""
    monkeypatch.setattr("pipeline.near_duplicates.PAIRS_AT_ONCE", 101)
    monkeypatch.setattr("pipeline.near_duplicates.VIDEOS_AT_ONCE", 13)
    rng = np.random.default_rng(5)
    crowd = np.uint64(1) << rng.integers(0, 64, (307, 5)).astype(np.uint64)
    hashes = rng.permutation(np.concatenate([crowd, made_hashes(101, 5, 2, seed=3)]))
    expected = by_every_pair(hashes, 3)
    assert copies(hashes, 3).tolist() == expected
    assert sum(one >= 0 for one in expected) > 306


def test_a_chain_of_small_steps_does_not_remove_its_far_end() -> None:
    """b is near a, c near b and not a: b is out, c stays; d is near c alone."""
    found = near_duplicates({"a": [0b0], "b": [0b11], "c": [0b1111], "d": [0b111111]}, 2)
    assert found == {"b": "a", "d": "c"}


def test_the_order_given_decides_who_stays() -> None:
    assert near_duplicates({"z": [7, 7], "a": [7, 6]}, 1) == {"a": "z"}
    assert near_duplicates({"a": [7, 6], "z": [7, 7]}, 1) == {"z": "a"}


def test_every_frame_has_to_be_near_and_as_many_there() -> None:
    assert near_duplicates({"a": [5, 9], "b": [5, 9 ^ 0b111]}, 2) == {}
    assert near_duplicates({"a": [5, 9], "b": [5, 9, 9]}, 2) == {}
    assert near_duplicates({}, 2) == {}


@pytest.mark.parametrize(("signatures", "bits", "message"), [({"a": [1]}, 9, "got 9"), ({"a": [1], "b": []}, 4, "video 1 in order has no")])
def test_refuses_what_it_cannot_compare(signatures: dict[str, list[int]], bits: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        near_duplicates(signatures, bits)


def test_a_table_gives_the_same_and_rows_without_hashes_are_left_out() -> None:
    signatures = {f"v{i}": row for i, row in enumerate(made_hashes(53, 3, 2, seed=2).tolist())}
    signatures |= {"short": [2**64 - 1], "short again": [2**64 - 1]}
    names, hashes = [*signatures, "none"], [*signatures.values(), None]
    schema = pa.schema([("video_id", pa.string()), ("hashes", pa.list_(pa.uint64()))])
    whole = pa.table({"video_id": names, "hashes": hashes}, schema=schema)
    pieces = pa.concat_tables([whole.slice(0, 17), whole.slice(17)])
    expected = near_duplicates(signatures, 4)
    assert len(expected) > 20
    assert near_duplicate_rows(pieces, 4) == near_duplicate_rows(pieces.slice(0), 4) == expected
    assert near_duplicate_rows(whole.slice(0, 0), 4) == {}


def test_a_bit_says_whether_a_wave_is_stronger_than_most() -> None:
    """Against scipy's transform, on 32 x 32 blocks of 3 x 2 px with known levels."""
    levels = np.random.default_rng(3).integers(0, 256, (32, 32)).astype(np.uint8)
    image = levels.repeat(3, axis=0).repeat(2, axis=1)[..., None].repeat(3, axis=2)
    waves = scipy.fft.dctn(levels.astype(np.float64))[1:9, 1:9] / 4
    expected = "".join("1" if wave > np.median(waves) + 16 else "0" for wave in waves.ravel())
    assert perceptual_hash(image) == int(expected, 2)


@pytest.mark.parametrize("level", [0, 1, 127, 254])
def test_plain_pictures_have_no_hash_of_their_noise(level: int) -> None:
    noise = np.random.default_rng(level).integers(0, 2, (192, 256, 1), dtype=np.uint8)
    assert perceptual_hash((level + noise).repeat(3, axis=2).astype(np.uint8)) == 0


def encode(path: Path, *, seed: int, width_px: int, crf: int) -> Path:
    """24 frames of discs that drift over a shaded ground."""
    rng = np.random.default_rng(seed)
    discs = rng.integers([0, 0, -3, -3, 20, 0], [320, 240, 4, 4, 70, 255], (9, 6)).tolist()
    height_px = width_px * 3 // 4
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": str(crf), "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        for i in range(24):
            image = Image.linear_gradient("L").resize((320, 240)).convert("RGB")
            draw = ImageDraw.Draw(image)
            for x, y, dx, dy, r, level in discs:
                draw.ellipse((x + dx * i - r, y + dy * i - r, x + dx * i + r, y + dy * i + r), fill=(level, 255 - level, level))
            frame = av.VideoFrame.from_image(image.resize((width_px, height_px)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_a_clip_encoded_again_smaller_and_worse_is_found_and_others_are_not(tmp_path: Path) -> None:
    signatures = {}
    for seed, (width_px, crf) in itertools.product(range(5), [(320, 18), (192, 32)]):
        path = encode(tmp_path / f"{seed}-{width_px}.mp4", seed=seed, width_px=width_px, crf=crf)
        frames = decode(path, Sampling(n_frames=7), longest_edge_px=224)
        signatures[path.stem] = signature(frames.images)
    assert near_duplicates(signatures, 6) == {f"{seed}-192": f"{seed}-320" for seed in range(5)}
