"""Rows of a report: answers of several systems and trainings that are right by chance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BENCHMARKS = {"toy_qa": ("colour", "direction"), "toy_captions": ("short",)}
SHARES = {"base": 0.9, "ours": 0.8, "other_video": 0.35, "blind": 0.3}

Facts = dict[str, Any]


def a_row(question_id: str, system: str, value: float | None, **fields: Any) -> Facts:
    """An answer whose every score is `value`."""
    return {
        "question_id": question_id, "video_id": question_id.split("-")[0], "content": question_id.split("-")[0],
        "benchmark": "toy_qa", "style": "colour", "task": "question",
        "question": "What colour is it?", "references": ["red"], "system": system, "seed": 7, "answer": "red",
        "token_f1": value, "exact_match": value, "rouge_l": value, "wups": None, "judge": None, "judge_points": None,
        "judge_rationale": None, "degenerate": None, "n_input_tokens": 11, "n_visual_tokens": 0, "ttft_s": None, **fields,
    }  # fmt: skip


def rows_of(
    n_videos: int,
    *,
    shares: Mapping[str, float] = SHARES,
    seeds: Sequence[int] = (7, 3),
    benchmarks: Mapping[str, Sequence[str]] = BENCHMARKS,
    judged: bool = False,
    draw: int = 0,
) -> list[Facts]:
    """A question of each style about each video. Captions have no exact match, as in a report."""
    rng, rows = np.random.default_rng(draw), []
    for video in range(n_videos):
        for benchmark, styles in benchmarks.items():
            for style in styles:
                about = {"benchmark": benchmark, "style": style, "task": "caption" if "caption" in benchmark else "question"}
                for seed in seeds:
                    for system, share in shares.items():
                        right = float(rng.random() < share)
                        row = a_row(f"v{video:04d}-{benchmark}-{style}", system, right, seed=seed, **about)
                        row |= {"answer": "red" if right else "blue", "exact_match": right if about["task"] == "question" else None}
                        if judged:
                            row |= {"judge": right, "judge_points": int(5 * right), "judge_rationale": "says so"}
                        rows.append(row)
    return rows
