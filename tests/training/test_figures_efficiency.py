"""Rivals that must answer alike, times that add up, bytes counted by hand, and the cost of n questions."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from made_figures import EDGE_PX, N_SHOWN, R, make

from infra.config import Recipe, Where
from infra.objects import read_json
from training.figures import efficiency
from training.figures.bench import clips_of, opened, opened_bench
from training.figures.efficiency import PARTS, PREPARED, SYSTEMS, Efficiency, amortised_s, break_even
from training.figures.figure import drawn, figure_output
from video2lora.generation import Decoding
from video2lora.kept_cache import asked_again, split
from video2lora.lora import adapted
from video2lora.video import Sampling
from video2lora.vlm import FrozenVLM


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Where]:
    return make(tmp_path_factory.mktemp("efficiency"), n_rounds=2, n_questions=(1, 3, 20))


@pytest.fixture(scope="module")
def found(made: tuple[Recipe, Where]) -> dict[str, Any]:
    return drawn(Efficiency(), *made)


@pytest.fixture(scope="module")
def cells(made: tuple[Recipe, Where], found: dict[str, Any]) -> list[dict[str, Any]]:
    folder = figure_output(Efficiency(), *made).folder
    return [read_json(f"{folder}/cells/{video_id}.json") for video_id in ("v0", "v1", "v2")]


def test_the_cost_of_n_questions_is_preparing_and_n_queries_by_n() -> None:
    system = {"prepare_s": 5.5, "query_s": 0.25}
    assert [amortised_s(system, n) for n in (1, 2, 5, 20)] == [5.75, 3.0, 1.35, 0.525]
    ours, rival = ({"prepare_s": {"value": p}, "query_s": {"value": q}} for p, q in ((6.0, 0.25), (1.0, 1.5)))
    assert break_even(ours, rival) == 4.0, "after four questions both have cost 7 s"
    assert break_even(rival, ours) is None
    assert break_even(ours, {**rival, "prepare_s": {"value": 9.0}}) == 0.0


def test_each_video_is_measured_and_its_parts_add_up(found: dict[str, Any], cells: list[dict[str, Any]]) -> None:
    assert found["n_measured"] == 3 and found["frames"] == {"mean": 3, "min": 3, "max": 3}
    assert {one["key"]: one["reason"] for one in found["left_out"]} == {"v3": "not_a_video", "q51": "bad_row", "q52": "prompt_too_long"}
    for cell in cells:
        assert set(cell["parts_s"]) == set(PARTS) and min(cell["parts_s"].values()) > 0
        for system in SYSTEMS:
            of = cell["systems"][system]
            assert of["prepare_s"] == pytest.approx(sum(cell["parts_s"][part] for part in PREPARED[system]))
            assert of["query_s"] > 0
    assert found["systems"]["again"]["prepare_s"]["value"] == 0


def test_the_figure_is_the_mean_of_its_videos(found: dict[str, Any], cells: list[dict[str, Any]]) -> None:
    for system in SYSTEMS:
        queries = [cell["systems"][system]["query_s"] for cell in cells]
        prepared = [cell["systems"][system]["prepare_s"] for cell in cells]
        assert found["systems"][system]["query_s"]["value"] == pytest.approx(sum(queries) / 3)
        spread = found["amortised_s"][system]["20"]
        assert spread["value"] == pytest.approx(sum(p / 20 + q for p, q in zip(prepared, queries, strict=True)) / 3)
        assert spread["low"] <= spread["value"] <= spread["high"]


def test_bytes_are_those_of_what_is_kept(made: tuple[Recipe, Where], cells: list[dict[str, Any]]) -> None:
    with opened_bench(*made, clips_of(*made)) as bench:
        clip, vlm = bench.clips[0], bench.vlm
        n_shared = efficiency.shared_tokens(bench, clip, _frames(bench, clip))
    text = vlm.model.config.get_text_config()
    d_in, d_out = vlm.module_sizes(["down_proj"])["down_proj"]
    kept = cells[0]["systems"]
    assert kept["ours"]["kept_bytes"] == 2 * R * (d_in + d_out) * text.num_hidden_layers
    assert kept["kv_cache"]["kept_bytes"] == 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * n_shared
    assert kept["connector"]["kept_bytes"] == 2 * 3 * vlm.family.n_image_tokens * vlm.d_vlm  # type: ignore[attr-defined]
    assert kept["again"]["kept_bytes"] == 0 and 0 < kept["frames"]["kept_bytes"] < 3 * 3 * EDGE_PX**2
    assert kept["ours"]["n_input_tokens"] < kept["connector"]["n_input_tokens"] == kept["again"]["n_input_tokens"]


def test_rivals_that_see_the_same_say_the_same(made: tuple[Recipe, Where]) -> None:
    with opened_bench(*made, clips_of(*made)) as bench:
        clip = bench.clips[1]
        frames = _frames(bench, clip)
        at = efficiency.shared_tokens(bench, clip, frames)
        with opened(clip) as file:
            prepared = efficiency.prepared(bench, clip, file, at=at)
        assert len(frames.images) == 3 < N_SHOWN["v1"]
        for question in clip.questions:  # the same kept cache, question after question
            whole = bench.batch([question], frames)
            base = _ids(bench.vlm, whole, frame_tokens=bench.vlm.frame_tokens([frames]))
            assert _ids(bench.vlm, whole, frame_tokens=prepared.tokens) == base
            assert _ids(bench.vlm, split(whole, at)[1], cache=asked_again(prepared.layers)) == base
            with adapted(bench.vlm.layers, prepared.lora):
                ours = _ids(bench.vlm, bench.batch([question]))
            first = efficiency.first_token(bench, bench.batch([question]), lora=prepared.lora)
            assert first == ours[:1] and efficiency.first_token(bench, whole, frame_tokens=prepared.tokens) == base[:1]


def test_a_video_that_the_vlm_has_no_room_for_is_left_out(made: tuple[Recipe, Where]) -> None:
    with opened_bench(*made, clips_of(*made)) as bench:
        bench = replace(bench, using=bench.using.sampled(Sampling(n_frames=17)))
        cell = Efficiency().measure(bench, "v0")
        assert not cell["measured"] and cell["left_out"][-1]["reason"] == "prompt_too_long"
        assert Efficiency().measure(bench, "v1")["n_frames"] == N_SHOWN["v1"]
    numbers = Efficiency().numbers(made[0], [cell])
    assert numbers["n_measured"] == 0


def _frames(bench: Any, clip: Any) -> Any:
    with opened(clip) as file:
        return efficiency.decoded(bench, file)


def _ids(vlm: FrozenVLM, batch: Any, **given: Any) -> list[int]:
    with torch.no_grad():
        return [int(ids) for ids in vlm.token_steps(batch, decoding=Decoding(max_new_tokens=2), **given)]
