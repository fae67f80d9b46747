"""Costs of systems against figures worked out by hand."""

from typing import Any

import pytest
from made_rows import a_row

from training.costs import by_system, kept_bytes, size_text

SYSTEMS = ("base", "sampled", "ours", "merged", "composed", "other_video", "static", "blind", "caption", "champion")
ADAPTER = {"n_layers": 4, "r": 3, "target_modules": {"down_proj": [384, 128]}}


def test_times_are_medians_and_tokens_means() -> None:
    times = [0.2, 0.9, 0.3, None]
    rows = [
        a_row(f"v-{i}", "ours", 1.0, ttft_s=s, n_input_tokens=10 + i, degenerate="empty" if i == 1 else None) for i, s in enumerate(times)
    ]
    got = by_system(rows, ("ours", "base"))
    ours = {"n_answers": 4, "n_input_tokens": 11.5, "n_visual_tokens": 0, "ttft_s": 0.3, "n_timed": 3, "degenerate": {"empty": 1}}
    assert got["ours"] == ours
    assert got["base"]["ttft_s"] is None and got["base"]["n_answers"] == 0


def test_a_time_that_seeds_share_counts_once() -> None:
    shared = [a_row(name, "base", 1.0, ttft_s=s, seed=seed) for seed in (3, 5) for name, s in (("v-1", 0.2), ("v-2", 0.4), ("v-3", 0.9))]
    own = [a_row("v-1", "ours", 1.0, ttft_s=s, seed=seed) for seed, s in ((3, 0.1), (5, 0.3))]
    got = by_system([*shared, *own], ("base", "ours"))
    assert (got["base"]["n_timed"], got["base"]["ttft_s"]) == (3, 0.4)
    assert (got["ours"]["n_timed"], got["ours"]["ttft_s"]) == (2, pytest.approx(0.2))


def test_bytes_kept_of_a_video() -> None:
    tokens = {"base": 61, "sampled": 31}
    systems = {system: {"n_input_tokens": tokens.get(system, 11)} for system in SYSTEMS}
    sizes: Any = {"champion": ADAPTER | {"r": 7}, "n_chunks": 5, "n_kv_values": 7}
    got = kept_bytes(systems, jpeg_bytes=[100, 300], captions=["Größe", "big"], hypernetwork=ADAPTER, **sizes)
    n_factors = 4 * 3 * (384 + 128)
    assert (
        got["ours"]
        == got["merged"]
        == got["other_video"]
        == {
            "adapter fp32, per chunk": 4 * n_factors,
            "adapter fp16, per chunk": 2 * n_factors,
        }
    )
    assert got["composed"] == {"adapter fp32, 5 chunks": 5 * 4 * n_factors, "adapter fp16, 5 chunks": 5 * 2 * n_factors}
    assert got["base"] == {"frames JPEG": 200, "KV cache fp32": 4 * 50 * 7, "KV cache fp16": 2 * 50 * 7}
    assert got["sampled"] == {"KV cache fp32": 4 * 20 * 7, "KV cache fp16": 2 * 20 * 7}
    assert got["caption"] == {"text": 5}  # two letters of five take two bytes: 7 and 3
    assert got["blind"] == got["static"] == {"nothing": 0}
    assert got["champion"] == {"adapter fp32, per chunk": 4 * 4 * 7 * (384 + 128), "adapter fp16, per chunk": 2 * 4 * 7 * (384 + 128)}
    del systems["blind"]
    assert kept_bytes(systems, jpeg_bytes=[], captions=[], hypernetwork=ADAPTER, **sizes)["base"] == {
        "frames JPEG": None,
        "KV cache fp32": None,
        "KV cache fp16": None,
    }


@pytest.mark.parametrize(
    ("n_bytes", "text"), [(None, "–"), (0.0, "0 B"), (999.0, "999 B"), (1e3, "1 kB"), (193.4e3, "193 kB"), (2.5e9, "2.5 GB")]
)
def test_sizes(n_bytes: float | None, text: str) -> None:
    assert size_text(n_bytes) == text
