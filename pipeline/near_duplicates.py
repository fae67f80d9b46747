"""Sampled pictures -> 64-bit hashes; hashes of a set's videos -> which video is a copy of which earlier one.

A copy: as many sampled frames, and each within `max_distance_bits` of the other's. It finds what was encoded again, scaled or
recoloured; not what was cropped, mirrored or trimmed, nor a re-encode whose rate puts one sample on the other side of a cut.
The hash sees no colour and 32 x 32 points. Measured on 21 real clips of 12 frames: within 6 bits are all re-encodes at the
same rate and size, 95 % at half the size or darker, 81 % at another rate; the two most alike of the other 210 pairs, one signer
before one wall who signs different words, are 7 bits apart. So more than 6 removes what is not a copy.

A copy is one of a video that stays: videos are taken in the order given, and one that copies an earlier one is out. So
everything removed has a near twin among what is left, and a chain of small differences cannot remove its far end.

Nothing is missed and no pair guessed: two hashes at most d bits apart agree in at least one of d + 1 bands of their bits
(pigeonhole). So videos that share one band in each of two frames are candidates, and all hashes of these are compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int32, Int64, UInt8, UInt64
from PIL import Image

HASH_BITS = 64
SQUARE = 32  # pHash's
ROUNDING = 16.0  # ours, of waves as below: 3.5 times the deviation that rounding the means to whole levels gives them, 32 / 2 / sqrt(12)
MOST_DISTANCE_BITS = 8  # ours: above it (d + 1)^2 sorted tables cost more than comparing, and unlike pictures begin to match
PAIRS_AT_ONCE = 1 << 22  # ours: 100 MB of pairs
VIDEOS_AT_ONCE = 1 << 16
_WAVES = np.cos(np.pi / SQUARE * np.outer(np.arange(1, 9), np.arange(SQUARE) + 0.5))  # DCT-II, unscaled, without the mean
_MIXERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))  # odd; 2^64 / golden ratio, and a prime of xxHash64


def perceptual_hash(image: UInt8[np.ndarray, "height width 3"]) -> int:
    """Of 32 x 32 means of luma, the 8 x 8 lowest waves of the cosine transform that go both across and down: whether each is above
    their median, the first in the highest bit.

    Source: pHash (C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010). Ours: above it by more
    than rounding, so that plain pictures all have the hash 0 and not one of their noise.
    """
    means = np.asarray(Image.fromarray(image).convert("L").resize((SQUARE, SQUARE), Image.Resampling.BOX), np.float64)
    waves = _WAVES @ means @ _WAVES.T
    return int.from_bytes(np.packbits(waves - np.median(waves) > ROUNDING).tobytes())


def signature(images: UInt8[np.ndarray, "n_frames height width 3"]) -> list[int]:
    """A hash for each frame, in order: the column `hashes` of `frames`."""
    return [perceptual_hash(image) for image in images]


def near_duplicates(signatures: Mapping[str, Sequence[int]], max_distance_bits: int) -> dict[str, str]:
    """Video -> the earlier one that it copies, in the order of `signatures`; videos that copy none are not in it.

    Raises ValueError for a video without hashes, a hash that is no unsigned 64-bit number, max_distance_bits outside 0..8.
    """
    flat = np.fromiter(chain.from_iterable(signatures.values()), np.uint64)
    lengths = np.fromiter((len(one) for one in signatures.values()), np.int64, len(signatures))
    return _named(list(signatures), _earlier_ones(flat, lengths, max_distance_bits))


def near_duplicate_rows(frames: pa.Table, max_distance_bits: int) -> dict[str, str]:
    """`near_duplicates` of a table with the columns video_id and hashes (list<uint64>), in its order; null rows are left out.

    No hash becomes a Python number: 1,000,000 videos of 12 frames are 96 MB here, and 0.6 GB as lists.
    """
    rows = frames.select(["video_id", "hashes"]).drop_null().combine_chunks()
    hashes = pc.cast(rows["hashes"], pa.list_(pa.uint64()))
    flat = pc.list_flatten(hashes).to_numpy().astype(np.uint64, copy=False)
    found = _earlier_ones(flat, pc.list_value_length(hashes).to_numpy().astype(np.int64), max_distance_bits)
    names = rows["video_id"]
    return _named(names, found)


def _named(names: Sequence[str] | pa.ChunkedArray, earlier: Int64[np.ndarray, " n_videos"]) -> dict[str, str]:
    return {str(names[later]): str(names[earlier[later]]) for later in np.flatnonzero(earlier >= 0).tolist()}


def _earlier_ones(
    flat: UInt64[np.ndarray, " n_hashes"], lengths: Int64[np.ndarray, " n_videos"], max_distance_bits: int
) -> Int64[np.ndarray, " n_videos"]:
    """For each video the place of the one it copies, or -1. Videos with other numbers of frames are never copies."""
    if not 0 <= max_distance_bits <= MOST_DISTANCE_BITS:
        raise ValueError(f"max_distance_bits: got {max_distance_bits}, expected 0 to {MOST_DISTANCE_BITS}")
    if (lengths == 0).any():
        raise ValueError(f"video {int(np.argmin(lengths))} in order has no hashes, expected one for each frame")
    begins = np.cumsum(lengths) - lengths
    earlier = np.full(len(lengths), -1, np.int64)
    for n_frames in np.unique(lengths):
        places = np.flatnonzero(lengths == n_frames)
        hashes = flat[begins[places][:, None] + np.arange(n_frames)]
        found = copies(hashes, max_distance_bits)
        earlier[places] = np.where(found >= 0, places[found], -1)
    return earlier


def copies(hashes: UInt64[np.ndarray, "n_videos n_frames"], max_distance_bits: int) -> Int64[np.ndarray, " n_videos"]:
    """For each video the place of the earliest one that stays and whose every hash is near; -1 for those that stay."""
    buckets = list(_buckets(hashes, max_distance_bits))
    n_candidates = np.zeros(len(hashes), np.int64)
    for bucket in buckets:
        n_candidates += bucket.n_later
    earlier = np.full(len(hashes), -1, np.int64)
    begin = 0
    while begin < len(hashes):
        window = np.arange(begin, min(begin + VIDEOS_AT_ONCE, len(hashes)))
        asked = window[(earlier[window] < 0) & (n_candidates[window] > 0)]
        n_fit = max(1, int(np.searchsorted(np.cumsum(n_candidates[asked]), PAIRS_AT_ONCE, side="right")))
        begin = int(asked[n_fit]) if n_fit < len(asked) else begin + len(window)
        pairs = [_near_pairs(bucket, asked[:n_fit], earlier, hashes, max_distance_bits) for bucket in buckets]
        firsts, laters = (np.concatenate(side) for side in zip(*pairs, strict=True))
        order = np.argsort(firsts, kind="stable")
        firsts, laters = firsts[order], laters[order]
        edges = np.append(np.flatnonzero(np.diff(firsts, prepend=-1)), len(firsts))
        for low, high in pairwise(edges.tolist()):
            first, its = firsts[low], laters[low:high]
            if earlier[first] < 0:  # it stays: every earlier one has had its turn
                earlier[its[earlier[its] < 0]] = first
    return earlier


@dataclass(frozen=True)
class _Bucketed:
    """Videos sorted by what they must share; within a bucket in their own order."""

    order: Int32[np.ndarray, " n_videos"]
    begins: Int32[np.ndarray, " n_videos"]  # of each video: where in `order` those begin that share its bucket and come later
    n_later: Int32[np.ndarray, " n_videos"]


def _buckets(hashes: UInt64[np.ndarray, "n_videos n_frames"], max_distance_bits: int) -> Iterator[_Bucketed]:
    """One for each choice of a band in each of two frames (a third and two thirds in, where fades are rare): 12 bytes a video each."""
    n_frames = hashes.shape[1]
    chosen = sorted({n_frames // 3, 2 * n_frames // 3})
    bands = [_bands(hashes[:, frame], max_distance_bits + 1) * mixer for frame, mixer in zip(chosen, _MIXERS, strict=False)]
    seconds = bands[1] if len(bands) > 1 else np.zeros_like(bands[0][:1])
    for one in bands[0]:
        for other in seconds:
            yield _bucketed(one ^ other)  # another key may mix to the same: one more comparison, no error


def _bands(hashes: UInt64[np.ndarray, " n_videos"], n_bands: int) -> UInt64[np.ndarray, "n_bands n_videos"]:
    """The bits cut into `n_bands` runs of nearly the same length."""
    edges = [HASH_BITS * band // n_bands for band in range(n_bands + 1)]
    masks = [(1 << high) - (1 << low) for low, high in pairwise(edges)]
    return np.stack([hashes & np.uint64(mask) for mask in masks])


def _bucketed(keys: UInt64[np.ndarray, " n_videos"]) -> _Bucketed:
    order = np.argsort(keys, kind="stable").astype(np.int32)
    ordered = keys[order]
    is_last = np.append(ordered[1:] != ordered[:-1], True)
    ends = np.flatnonzero(is_last)[np.cumsum(is_last) - is_last] + 1  # of each place, where its bucket ends
    begins, n_later = np.empty(len(keys), np.int32), np.empty(len(keys), np.int32)
    begins[order] = np.arange(1, len(keys) + 1)
    n_later[order] = ends - np.arange(1, len(keys) + 1)
    return _Bucketed(order, begins, n_later)


def _near_pairs(
    bucket: _Bucketed,
    asked: Int64[np.ndarray, " n_asked"],
    earlier: Int64[np.ndarray, " n_videos"],
    hashes: UInt64[np.ndarray, "n_videos n_frames"],
    max_distance_bits: int,
) -> tuple[Int64[np.ndarray, " n_pairs"], Int64[np.ndarray, " n_pairs"]]:
    """(first, later) for those asked for and all later ones of their buckets that are not out yet and are near."""
    n_later = bucket.n_later[asked].astype(np.int64)
    firsts = np.repeat(asked, n_later)
    within = np.arange(len(firsts)) - np.repeat(np.cumsum(n_later) - n_later, n_later)
    laters = bucket.order[np.repeat(bucket.begins[asked], n_later) + within].astype(np.int64)
    is_in = earlier[laters] < 0
    firsts, laters = firsts[is_in], laters[is_in]
    for frame in range(hashes.shape[1]):
        is_near = np.bitwise_count(hashes[firsts, frame] ^ hashes[laters, frame]) <= max_distance_bits
        firsts, laters = firsts[is_near], laters[is_near]
    return firsts, laters
