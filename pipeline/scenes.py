"""Videos -> spans of them: single scenes, 2 or 3 adjacent scenes, and full videos, mixed 60/30/10 (paper 4.1).

Scenes come with a video's row, or ffmpeg's scene detection finds the cuts between them. It decodes every frame of the clip
(measured here: 0.07 s of a core for 4 s of 176 x 144 px, 0.05 s for a second of 720p), and a clip in a bucket is fetched for
it. It sees hard cuts alone: no fades, and few cuts between dark pictures, whose luma hardly changes.

The mixture is the largest that has these shares and no span twice. Which spans are in it is drawn by the hash of seed,
content and span: the order of the videos changes nothing, and a video more or less changes few. A span that is the whole
video is the full video and counts once. What the mixture leaves out is no reject: it was never asked for.
"""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal

from infra.attempt import Row, reject
from infra.config import SceneSettings
from infra.errors import BadInputError
from infra.progress import counting, say
from infra.sets import scenes_made, scenes_set
from infra.stage import Order
from infra.storage import Table
from pipeline.sources import local_copy
from video2lora.ffmpeg_program import scene_changes
from video2lora.video import VideoDecodeError, probe

STAGE = "manifest"  # whose step this is
ADJACENT = (2, 3)  # paper 4.1: so many scenes in a span of adjacent ones
VIDEOS_PER_COMMIT = 64
BEGINNING_S = 0.05  # ours: what begins within it begins with the video, at 25 frames/s and rounded to 0.01 s

Kind = Literal["scene", "adjacent", "full"]
KINDS: tuple[Kind, Kind, Kind] = ("scene", "adjacent", "full")
Scene = tuple[float, float]


@dataclass(frozen=True)
class Span:
    """A part of a video, or all of it: then start_s and end_s are None. `video` is its content's hash."""

    video: str
    start_s: float | None
    end_s: float | None
    kind: Kind


@dataclass(frozen=True)
class SourceVideo:
    """A video of a SOURCE, each content once; `key` names its row in rejects, `scenes` is what the row says of them, None where nothing."""

    key: str
    uri: str
    content: str
    split: str
    scenes: Any = None


def parse_scenes(value: Any) -> list[Scene]:
    """A list of [start_s, end_s], in order and each once. Raises ValueError for anything else."""
    pairs = [tuple(one) if isinstance(one, Sequence) else one for one in value] if isinstance(value, Sequence) else value
    if not isinstance(pairs, list) or isinstance(value, str):
        raise ValueError(f"scenes: got {value!r}, expected a list of [start_s, end_s]")
    for pair in pairs:
        are_numbers = isinstance(pair, tuple) and len(pair) == 2 and all(type(one) in (int, float) for one in pair)
        if not (are_numbers and 0 <= pair[0] < pair[1] < math.inf):
            raise ValueError(f"scenes: got {pair!r}, expected [start_s, end_s] with 0 <= start_s < end_s")
    return sorted({(float(start_s), float(end_s)) for start_s, end_s in pairs})


def find_scenes(uri: str, settings: SceneSettings) -> list[Scene]:
    """The stretches between a video's cuts; none where nothing is cut. One shorter than `min_scene_s` joins a neighbour.

    Raises VideoDecodeError (what `probe` raises; deadline), StorageError.
    """
    with local_copy(uri) as path:
        end_s = probe(path).duration_s
        changes_s = scene_changes(path, threshold=settings.threshold, timeout_s=settings.deadline_s).tolist()
    cuts_s = [0.0]
    for change_s in changes_s:
        if change_s - cuts_s[-1] >= settings.min_scene_s and end_s - change_s >= settings.min_scene_s:
            cuts_s.append(change_s)
    return list(pairwise([*cuts_s, end_s])) if len(cuts_s) > 1 else []


def spans_of_video(video: str, scenes: Sequence[Scene]) -> Iterator[Span]:
    """Every span that a mixture may take of it, each once; of two kinds with the same times the first of KINDS.

    What begins with the video and holds all of its scenes is the full video.
    """
    yield Span(video, None, None, "full")
    last_end_s = max((end_s for _, end_s in scenes), default=0.0)
    seen: set[Scene] = set()
    for n_scenes in (1, *ADJACENT):
        for first in range(len(scenes) - n_scenes + 1):
            span = scenes[first][0], max(end_s for _, end_s in scenes[first : first + n_scenes])
            is_all = span[0] <= BEGINNING_S and span[1] >= last_end_s
            if not is_all and span not in seen:
                seen.add(span)
                yield Span(video, *span, "scene" if n_scenes == 1 else "adjacent")


def spans(scenes_by_video: Mapping[str, Sequence[Scene]], *, mix: tuple[float, float, float] = (0.6, 0.3, 0.1), seed: int) -> list[Span]:
    """The largest mixture of distinct spans whose shares of KINDS are `mix`, to within one span; sorted by video and time."""
    pools: dict[Kind, list[Span]] = {kind: [] for kind in KINDS}
    for video, scenes in scenes_by_video.items():
        for span in spans_of_video(video, scenes):
            pools[span.kind].append(span)
    counts = mixture([len(pools[kind]) for kind in KINDS], mix)
    chosen = [span for kind, n in zip(KINDS, counts, strict=True) for span in _drawn(pools[kind], n, seed)]
    return sorted(chosen, key=lambda span: (span.video, span.start_s or 0.0, span.end_s or math.inf))


def mixture(pools: Sequence[int], mix: Sequence[float]) -> list[int]:
    """How many to take of each pool: the most whose shares are `mix`, each number rounded down or up, largest remainders first."""
    shares = [Fraction(str(share)) for share in mix]
    whole = sum(shares)
    limits = [math.floor((pool + 1) * whole / share) for pool, share in zip(pools, shares, strict=True) if share]
    for total in range(min(limits), -1, -1):  # rounding up by one at most, so it ends within a few steps
        exact = [total * share / whole for share in shares]
        counts = [math.floor(one) for one in exact]
        by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] - exact[i])
        for i in by_remainder[: total - sum(counts)]:
            counts[i] += 1
        if all(count <= pool for count, pool in zip(counts, pools, strict=True)):
            return counts
    raise AssertionError("a mixture of nothing always fits")


def spans_of(videos: Sequence[SourceVideo], settings: SceneSettings, root: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows for `videos` before they have an id (key, uri, content, split, start_s, end_s, span_kind), and rejects.

    Each of the splits in `settings.splits` is mixed for itself; videos of others stay whole. A video without scenes can be in the
    mixture as a full one. Rejected is one whose row names scenes that are none (bad_row), or whose scenes cannot be looked for (what
    `find_scenes` raises). Raises BadInputError where a split's videos give no mixture of all kinds; ValueError for a content
    that is there twice; StorageError.
    """
    if len({one.content for one in videos}) < len(videos):
        raise ValueError("videos: the same content twice, expected each once")
    others = [one for one in videos if one.split not in settings.splits]
    mixed = [one for one in videos if one.split in settings.splits]
    found, rejects = _scenes_of(mixed, settings, scenes_set(settings, root))
    rows = [_row(one, Span(one.content, None, None, "full")) for one in others]
    for split in settings.splits:
        by_content = {one.content: one for one in mixed if one.split == split and one.content in found}
        if not by_content:
            continue
        scenes = {content: found[content] for content in by_content}
        chosen = spans(scenes, mix=settings.mix, seed=settings.seed)
        _check_mixture(split, chosen, scenes, settings)
        rows += [_row(by_content[span.video], span) for span in chosen]
    return rows, rejects


def _scenes_of(videos: Sequence[SourceVideo], settings: SceneSettings, table: Table) -> tuple[dict[str, list[Scene]], list[Row]]:
    """The scenes of each content, and rejects. What was looked for before is in the table; what a row names is not."""
    found: dict[str, list[Scene]] = {}
    rejects = []
    known = {row["content"]: list(zip(row["starts_s"], row["ends_s"], strict=True)) for row in table.read().to_pylist()}
    unknown = []
    for one in videos:
        if one.scenes is not None:
            try:
                found[one.content] = parse_scenes(one.scenes)
            except ValueError as error:
                rejects.append(reject(STAGE, one.key, "bad_row", f"{one.uri}: {error}"))
        elif one.content in known:
            found[one.content] = known[one.content]
        else:
            unknown.append(one)
    if unknown:
        searched, not_read = _search(unknown, settings, _order(table, [*known, *(one.content for one in unknown)], settings))
        found |= searched
        rejects += not_read
    return found, rejects


def _order(table: Table, contents: list[str], settings: SceneSettings) -> Order:
    return Order(table, {"stage": "scenes"}, contents, scenes_made(settings))


def _search(videos: Sequence[SourceVideo], settings: SceneSettings, order: Order) -> tuple[dict[str, list[Scene]], list[Row]]:
    """Threads do: each waits for its ffmpeg, which runs on one core. Committed as it comes."""

    def scenes_or_error(one: SourceVideo) -> list[Scene] | VideoDecodeError:
        try:
            return find_scenes(one.uri, settings)
        except VideoDecodeError as error:
            return error

    found: dict[str, list[Scene]] = {}
    rejects = []
    attempt = order.begin()
    attempt.reopen(one.content for one in videos)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool, counting(STAGE, "videos searched for scenes", len(videos)) as counter:
        for start in range(0, len(videos), VIDEOS_PER_COMMIT):
            block = videos[start : start + VIDEOS_PER_COMMIT]
            rows, refused = [], []
            for one, scenes in zip(block, pool.map(scenes_or_error, block), strict=True):
                if isinstance(scenes, VideoDecodeError):
                    rejects.append(reject(STAGE, one.key, scenes.reason, f"{one.uri}: {scenes.detail}"))
                    refused.append(reject("scenes", one.content, scenes.reason, scenes.detail))
                else:
                    found[one.content] = scenes
                    times = {"starts_s": [start_s for start_s, _ in scenes], "ends_s": [end_s for _, end_s in scenes]}
                    rows.append({"content": one.content, **times})
                counter.advance()
            attempt.write(rows, refused)
    attempt.complete()
    return found, rejects


def _drawn(pool: Iterable[Span], n: int, seed: int) -> list[Span]:
    """The n whose hashes are lowest."""
    return sorted(pool, key=lambda span: hashlib.sha256(f"{seed} {span.video} {span.start_s} {span.end_s}".encode()).digest())[:n]


def _row(video: SourceVideo, span: Span) -> dict[str, Any]:
    return {
        "key": video.key,
        "uri": video.uri,
        "content": video.content,
        "split": video.split,
        "start_s": span.start_s,
        "end_s": span.end_s,
        "span_kind": span.kind,
    }


def _check_mixture(split: str, chosen: Sequence[Span], scenes: Mapping[str, Sequence[Scene]], settings: SceneSettings) -> None:
    """Says what was taken of what there was. Raises BadInputError where a kind that is asked for has no span in the mixture."""
    taken = Counter(span.kind for span in chosen)
    pools = Counter(span.kind for video, its in scenes.items() for span in spans_of_video(video, its))
    line = f"{len(scenes)} videos of {split}, spans taken: " + ", ".join(f"{taken[kind]} of {pools[kind]} {kind}" for kind in KINDS)
    if any(share and not taken[kind] for kind, share in zip(KINDS, settings.mix, strict=True)):
        raise BadInputError(
            f"scenes.mix: {line}; too few for the shares {settings.mix}: "
            f"lower scenes.threshold ({settings.threshold:g}), change scenes.mix, or leave {split} out of scenes.splits"
        )
    say(f"{STAGE}: {line}")
