"""Directions of the rank: their strength against deltas that are formed, and what is left when some are taken away."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from made_figures import R, make
from made_questions import MAX_NEW_TOKENS

from infra.config import Recipe, Where
from infra.objects import read_json
from training.figures.bench import Bench, clips_of, opened_bench
from training.figures.figure import drawn, figure_output
from training.figures.pruning import Pruning, chosen, directions, strength
from training.report import figures_of
from video2lora.api import Decoding, ask_all, internalize, read_frames
from video2lora.lora import Lora, adapted, merged
from video2lora.video import Sampling


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Where]:
    return make(tmp_path_factory.mktemp("pruning"), kept_directions=(1, 3, 7))


@pytest.fixture(scope="module")
def found(made: tuple[Recipe, Where]) -> dict[str, Any]:
    return drawn(Pruning(), *made)


@pytest.fixture
def bench(made: tuple[Recipe, Where]) -> Iterator[Bench]:
    with opened_bench(*made, clips_of(*made)) as opened:
        yield opened


def said(made: tuple[Recipe, Where], kept: str, system: str) -> dict[str, str]:
    folder = figure_output(Pruning(), *made).folder
    return {row["question_id"]: row["answer"] for row in read_json(f"{folder}/cells/{kept}.json")["rows"] if row["system"] == system}


def a_lora(r: int) -> Lora:
    generator = torch.Generator().manual_seed(7)
    sizes = {"down_proj": (13, 11), "up_proj": (7, 5)}
    return Lora(
        lora_a={name: torch.randn(1, 3, r, d_in, generator=generator) for name, (d_in, _) in sizes.items()},
        lora_b={name: torch.randn(1, 3, d_out, r, generator=generator) for name, (_, d_out) in sizes.items()},
        scaling=2.0,
    )


def test_strength_is_the_norm_of_what_a_direction_adds() -> None:
    lora = a_lora(5)
    for direction in range(5):
        norms = [
            torch.linalg.matrix_norm(torch.outer(lora.lora_b[name][0, layer, :, direction], lora.lora_a[name][0, layer, direction]))
            for name in lora.lora_a
            for layer in range(3)
        ]
        torch.testing.assert_close(strength(lora)[direction], torch.stack(norms).sum())


def test_directions_add_up_to_the_adapter() -> None:
    lora = a_lora(5)
    kept, rest = directions(lora, [3, 0]), directions(lora, [1, 2, 4])
    for name in lora.lora_a:
        deltas = [one.lora_b[name] @ one.lora_a[name] for one in (kept, rest)]
        torch.testing.assert_close(sum(deltas), lora.lora_b[name] @ lora.lora_a[name])
    assert kept.r == 2 and kept.scaling == lora.scaling


def test_what_each_cell_keeps() -> None:
    ranked = [4, 2, 0, 3, 1]
    assert chosen("none", ranked, seed="") == [] and chosen("all", ranked, seed="") == ranked
    assert chosen("top-2", ranked, seed="") == [4, 2] and chosen("bottom-2", ranked, seed="") == [3, 1]
    assert chosen("but-the-strongest", ranked, seed="") == [2, 0, 3, 1]
    drawn_twice = [chosen("random-2", order, seed="0/v") for order in (ranked, ranked[::-1])]
    assert drawn_twice[0] == drawn_twice[1], "by the seed, whatever their strength"
    assert len({tuple(chosen("random-2", ranked, seed=f"{i}/v")) for i in range(20)}) > 5


def test_cells_are_those_that_the_rank_allows(found: dict[str, Any]) -> None:
    assert [(cell["kept"], cell["n_kept"]) for cell in found["cells"]] == [
        ("none", 0), ("top-1", 1), ("top-3", 3), ("all", R), ("bottom-2", 2), ("random-2", 2), ("but-the-strongest", R - 1),
    ]  # fmt: skip


def test_nothing_kept_is_the_vlm_alone_or_the_static_adapter(made: tuple[Recipe, Where], bench: Bench) -> None:
    blind, static = {}, {}
    for clip in bench.clips[:3]:
        for row in clip.questions:
            (answer,) = ask_all(None, [row["question"]], vlm=bench.vlm, decoding=Decoding(max_new_tokens=MAX_NEW_TOKENS))
            blind[row["question_id"]] = answer.text
            with adapted(bench.vlm.layers, bench.using.hypernetwork.static_lora()):
                (answer,) = ask_all(None, [row["question"]], vlm=bench.vlm, decoding=Decoding(max_new_tokens=MAX_NEW_TOKENS))
            static[row["question_id"]] = answer.text
    assert said(made, "none", "generated") == blind
    assert said(made, "none", "with_static") == static != blind


def test_all_kept_is_the_adapter_itself(made: tuple[Recipe, Where], bench: Bench) -> None:
    adapters = {clip.video_id: internalize(read_frames(clip.uri, using=bench.using), using=bench.using) for clip in bench.clips[:2]}
    told = said(made, "all", "with_static")
    decoding = Decoding(max_new_tokens=MAX_NEW_TOKENS)
    for clip in bench.clips[:2]:
        texts = [row["question"] for row in clip.questions]
        answers = ask_all(adapters[clip.video_id], texts, vlm=bench.vlm, decoding=decoding)
        assert [told[row["question_id"]] for row in clip.questions] == [answer.text for answer in answers]


def test_a_pruned_cell_is_what_merged_weights_say(made: tuple[Recipe, Where], bench: Bench) -> None:
    told = said(made, "but-the-strongest", "generated")
    clip = bench.clips[0]
    lora = bench.generated(read_frames(clip.uri, using=bench.using))
    strongest = int(strength(lora).argmax())
    zeroed = lora.map(torch.clone)
    zeroed.lora_a["down_proj"][:, :, strongest] = 0
    with merged(bench.vlm.layers, zeroed):
        answers = [bench.vlm.generate(bench.batch([row]), max_new_tokens=MAX_NEW_TOKENS)[0].text for row in clip.questions]
    assert [told[row["question_id"]] for row in clip.questions] == answers
    assert answers != [said(made, "all", "generated")[row["question_id"]] for row in clip.questions], "else the test could not fail"


def test_differences_are_to_the_whole_adapter(found: dict[str, Any]) -> None:
    of = {cell["kept"]: cell for cell in found["cells"]}
    for system in ("generated", "with_static"):
        value = of["top-1"]["systems"][system]["token_f1"] - of["all"]["systems"][system]["token_f1"]
        assert of["top-1"]["to_all"][system]["token_f1"]["value"] == pytest.approx(value)
        assert of["all"]["to_all"][system]["token_f1"]["value"] == 0
    assert of["all"]["systems"]["with_static"]["exact_match"] >= 1 / 3 and of["none"]["to_all"]["with_static"]["token_f1"]["value"] < 0


def test_the_strongest_directions_are_counted(found: dict[str, Any], bench: Bench) -> None:
    counted: dict[str, int] = {}
    for clip in bench.clips[:2]:
        direction = str(int(strength(bench.generated(read_frames(clip.uri, using=bench.using))).argmax()))
        counted[direction] = counted.get(direction, 0) + 1
    told = found["cells"][0]["strongest"]
    assert sum(told.values()) == 3 and all(told[direction] >= n for direction, n in counted.items())
    assert 1 <= found["cells"][0]["n_orders"] <= 3
    assert found["left_out"][-1]["key"] == "v3"


def test_a_video_that_the_vlm_has_no_room_for_is_left_out(bench: Bench) -> None:
    cell = Pruning().measure(replace(bench, using=bench.using.sampled(Sampling(n_frames=23))), "top-1")
    assert cell["n_videos"] == 2 and {row["video_id"] for row in cell["rows"]} == {"v1", "v2"}
    assert {one["key"]: one["reason"] for one in cell["left_out"]}.items() >= {"v0": "prompt_too_long", "v3": "not_a_video"}.items()


def test_the_report_finds_it(made: tuple[Recipe, Where], found: dict[str, Any]) -> None:
    assert [one.folder for one in figures_of(*made)] == [figure_output(Pruning(), *made).folder]
