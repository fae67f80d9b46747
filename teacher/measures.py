"""What a run of the teacher cost, as sums over its blocks, and what it says at the end: the speed, what engines waited for, ten targets.

Each block hands on plain numbers that add up, so the driver needs no row to sum them. A day's worth is reckoned from the seconds engines
were up and asked, not from those they took to start.
"""

import hashlib
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

DAY_S = 86_400.0
N_SAMPLED = 10


@dataclass
class Measures:
    """Of one block, or of many: seconds of one engine, not of the clock."""

    engine_s: float = 0.0  # at work
    prepare_s: float = 0.0  # idle while its frames were decoded and its prompts rendered
    waiting_s: float = 0.0  # idle while the next block came
    startup_s: float = 0.0
    n_starts: float = 0.0  # of engines, those that took the place of a dead one too
    n_videos: float = 0.0
    video_s: float = 0.0
    n_prompts: float = 0.0
    n_prompt_tokens: float = 0.0
    n_tokens: float = 0.0  # written

    @property
    def up_s(self) -> float:
        """Seconds that engines were up."""
        return self.engine_s + self.prepare_s + self.waiting_s

    def as_sums(self) -> dict[str, float]:
        return asdict(self)


def summed(sums: Mapping[str, float]) -> Measures:
    """What the driver added up; names it does not know are left out."""
    return Measures(**{name: value for name, value in sums.items() if name in Measures.__dataclass_fields__})


def told(measures: Measures, *, gpus_per_engine: float) -> list[str]:
    """Lines on what a run cost; none where nothing was asked."""
    if not measures.up_s:
        return []
    per_day = DAY_S / (measures.up_s * max(1.0, gpus_per_engine))
    unit = "GPU" if gpus_per_engine > 0 else "engine"
    shares = {name: 100 * seconds / measures.up_s for name, seconds in asdict(measures).items() if name.endswith("_s")}
    return [
        f"{measures.n_videos * per_day:,.0f} videos and {measures.video_s * per_day / 3600:,.1f} hours of video per day per {unit}; "
        f"{measures.n_tokens / measures.up_s:,.1f} tokens/s written and {measures.n_prompt_tokens / measures.up_s:,.1f} read, an engine",
        f"of {measures.up_s:,.1f} s up, engines wrote for {shares['engine_s']:.1f} %, waited for frames and prompts to be prepared for "
        f"{shares['prepare_s']:.1f} % and for the next block for {shares['waiting_s']:.1f} %; "
        f"{measures.n_starts:.0f} start(s) took {measures.startup_s:,.1f} s more",
    ]


def sampled(keys: Iterable[str], *, seed: int = 0, n: int = N_SAMPLED) -> list[str]:
    """The `n` keys that come first in an order drawn from the seed: the same ones of the same targets, wherever they were made."""
    return heapq.nsmallest(n, keys, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest())


def sample_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each of the targets."""
    return [f"  {row['video_id']} | {row['prompt']} | {row['target']}" for row in rows]
