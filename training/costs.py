"""What each system costs: tokens, time to the first token, and bytes that it keeps of a video so as to answer about it later."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

FORMS = {"fp32": 4.0, "fp16": 2.0}  # bytes of a value

Number = float | None
Facts = dict[str, Any]


def by_system(rows: Sequence[Facts], systems: Sequence[str]) -> dict[str, Facts]:
    """Mean costs of each system's answers, over all trainings; the time to first token is the median of those measured."""
    found = {}
    for system in systems:
        own = [row for row in rows if row["system"] == system]
        # What no training changes is timed once, and every seed's rows have that time.
        times = [ttft_s for _, ttft_s in {(row["question_id"], row["ttft_s"]) for row in own} if ttft_s is not None]
        found[system] = {
            "n_answers": len(own),
            "n_input_tokens": mean([row["n_input_tokens"] for row in own]),
            "n_visual_tokens": mean([row["n_visual_tokens"] for row in own]),
            "ttft_s": median(times) if times else None,
            "n_timed": len(times),
            "degenerate": dict(sorted(Counter(row["degenerate"] for row in own if row["degenerate"] is not None).items())),
        }
    return found


def kept_bytes(
    systems: Mapping[str, Facts],
    *,
    jpeg_bytes: Sequence[int],
    captions: Sequence[str],
    hypernetwork: Mapping[str, Any],
    champion: Mapping[str, Any] | None,
    n_chunks: int,
    n_kv_values: int,
) -> dict[str, dict[str, Number]]:
    """Mean bytes that a system keeps of one video, by form.

    `hypernetwork` and `champion` are their configs; the static adapter is kept once for all videos and does not count. Adapters are counted
    per chunk: a video that the VLM's positions do not hold is read in several (`training.videos`), and keeps as many times the bytes.
    `composed` is of `n_chunks`. Base keeps pictures, or the keys and values of the tokens that the video adds to a prompt
    (`n_kv_values` of each). Both forms of both, since they compare only where they are alike.
    """
    without = systems["blind"]["n_input_tokens"] if "blind" in systems else None
    kept: dict[str, dict[str, Number]] = {}
    for system in systems:
        if system in ("base", "sampled"):
            with_video = systems[system]["n_input_tokens"]
            n_cached = None if with_video is None or without is None else (with_video - without) * n_kv_values
            cache = {f"KV cache {form}": None if n_cached is None else n_bytes * n_cached for form, n_bytes in FORMS.items()}
            kept[system] = ({"frames JPEG": mean(jpeg_bytes)} if system == "base" else {}) | cache
        elif system in ("ours", "merged", "other_video", "composed"):
            kept[system] = _adapter(hypernetwork, n_chunks=n_chunks if system == "composed" else 1)
        elif system == "champion" and champion is not None:
            kept[system] = _adapter(champion)
        elif system == "caption":
            kept[system] = {"text": mean([len(text.encode()) for text in captions])}
        else:
            kept[system] = {"nothing": 0.0}
    return kept


def _adapter(hypernetwork: Mapping[str, Any], *, n_chunks: int = 1) -> dict[str, Number]:
    """Of the adapters that a hypernetwork of this config makes of so many chunks."""
    of = "per chunk" if n_chunks == 1 else f"{n_chunks} chunks"
    n_factors = n_chunks * hypernetwork["n_layers"] * hypernetwork["r"] * sum(map(sum, hypernetwork["target_modules"].values()))
    return {f"adapter {form}, {of}": n_bytes * n_factors for form, n_bytes in FORMS.items()}


def size_text(n_bytes: Number) -> str:
    """Bytes as people read them: 1 kB is 1,000 bytes."""
    if n_bytes is None:
        return "–"
    for unit in ("B", "kB", "MB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} GB"


def mean(values: Sequence[float | int]) -> Number:
    return fmean(values) if values else None
