"""The benchmark's rivals answer what they should: a rival that is fast because it reads less of the video is no rival."""

import dataclasses

import pytest
import torch

from benchmarks.answering import Row, break_even, made_hypernetwork, made_video, measure, table
from benchmarks.rivals import QUESTION, Again, Bench, Connector, KVCache, Ours, OursMerged
from video2lora.lora import adapted
from video2lora.pretrained import load_vlm

N_FRAMES = 5


@pytest.fixture(scope="module")
def bench() -> Bench:
    vlm = load_vlm("tiny")
    return Bench(vlm, made_hypernetwork(vlm), n_new_tokens=7)


def ids(bench: Bench, rival: Again | Connector | KVCache | Ours, n_rows: int = 1) -> list[list[int]]:
    """Of two questions in a row: what the first one left behind must not show."""
    video = made_video(bench.vlm, N_FRAMES)
    kept = rival.prepare(video)
    with rival.ready([kept] * n_rows) as state:
        first = torch.stack(list(rival.steps(state, [video] * n_rows)), 1).tolist()
        assert torch.stack(list(rival.steps(state, [video] * n_rows)), 1).tolist() == first
    return first


def test_rivals_with_the_video_in_context_say_the_same(bench: Bench) -> None:
    again = ids(bench, Again(bench))
    assert ids(bench, Connector(bench)) == again
    assert ids(bench, KVCache(bench)) == again
    assert ids(bench, KVCache(bench), n_rows=3) == again * 3


def test_ours_merged_says_what_ours_says_and_not_what_the_bare_model_says(bench: Bench) -> None:
    with torch.no_grad():
        for head in bench.hypernetwork.heads.values():
            head.scale_b.fill_(0.02)
    per_request = ids(bench, Ours(bench))
    assert ids(bench, OursMerged(bench)) == per_request
    assert ids(bench, Ours(bench), n_rows=3) == per_request * 3
    rival = Ours(bench)
    kept = rival.prepare(made_video(bench.vlm, N_FRAMES))
    batch = bench.vlm.question_batch([QUESTION])
    with torch.no_grad(), adapted(bench.vlm.layers, rival.lora_of(kept)):
        adapted_logits = bench.vlm.model(input_ids=batch.input_ids).logits
    assert not torch.allclose(adapted_logits, bench.vlm.model(input_ids=batch.input_ids).logits, atol=1e-3)


@pytest.mark.slow
def test_the_table_has_every_rival_and_true_sizes(bench: Bench) -> None:
    rows = measure(bench, n_frames=N_FRAMES, n_rounds=1, n_batch=2, say=lambda _line: None)
    by = {row.system: row for row in rows}
    vlm = bench.vlm
    text = vlm.model.config.text_config
    n_tokens = vlm.video_batch([made_video(vlm, N_FRAMES)], [QUESTION]).input_ids.shape[1]
    assert by["connector"].kept_bytes == N_FRAMES * vlm.family.n_image_tokens * vlm.d_vlm * 2
    per_token = 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    assert n_tokens - 40 <= by["kv cache"].kept_bytes / per_token < n_tokens
    assert by["ours"].kept_bytes == len(vlm.layers) * 16 * sum(vlm.module_sizes(["down_proj"])["down_proj"]) * 2
    assert all(row.warm_s > 0 and row.cold_s > 0 and row.tokens_per_s > 0 for row in rows)
    assert table(rows).count("\n") == 1 + len(rows) == 6


def test_break_even_is_where_the_two_lines_meet() -> None:
    ours = Row("ours", n_frames=3, n_shown=3, rank=16, n_input_tokens=5, kept_bytes=7, prepare_s=7.0, cold_s=0.6, warm_s=0.5)
    again = dataclasses.replace(ours, system="again", prepare_s=1.0, warm_s=2.0)
    assert break_even(ours, again) == pytest.approx(4.0)  # 7 + 4 x 0.5 = 1 + 4 x 2
    assert break_even(again, ours) is None  # it is dearer from the fifth question on
    assert break_even(dataclasses.replace(ours, warm_s=3.0), again) is None
