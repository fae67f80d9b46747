"""Composed chunks against the sum of their deltas, order that does not matter, and controls by hand."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from clips import frame_numbers, write_clip
from made_figures import EDGE_PX, N_SHOWN, make
from made_questions import MAX_NEW_TOKENS
from rich.console import Console

from infra.config import Recipe, Where
from infra.errors import BadInputError
from infra.objects import read_json
from training.figures import tables
from training.figures.bench import Bench, clips_of, opened_bench
from training.figures.composition import Composition
from training.figures.figure import drawn, figure_output
from video2lora.api import Decoding, ask_all, internalize_batch
from video2lora.lora import Lora, adapted, concatenate, slice_rank
from video2lora.scoring import token_f1
from video2lora.video import Frames, Sampling, decode

N_IN_CHUNK = 2
IN_THREE_CHUNKS = {"v0": [[0, 4], [8, 13], [17, 22]], "v1": [[0, 1], [2, 3], [4, 6]], "v2": [[0, 1], [2, 3], [4, 5]]}
"""Of a span's frames, 40 ms each: those on show at six even times from its first to its last."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Where]:
    return make(tmp_path_factory.mktemp("composition"), n_chunks=(1, 3, 11), frames_in_chunk=N_IN_CHUNK)


@pytest.fixture(scope="module")
def found(made: tuple[Recipe, Where]) -> dict[int, dict[str, Any]]:
    return {one["n_chunks"]: one for one in drawn(Composition(), *made)["cells"]}


@pytest.fixture
def bench(made: tuple[Recipe, Where]) -> Iterator[Bench]:
    with opened_bench(*made, clips_of(*made)) as opened:
        yield opened


def rows_of(made: tuple[Recipe, Where], n: int, system: str) -> dict[str, str]:
    folder = figure_output(Composition(), *made).folder
    return {row["question_id"]: row["answer"] for row in read_json(f"{folder}/cells/{n}-chunks.json")["rows"] if row["system"] == system}


def by_hand(bench: Bench, kept: slice) -> dict[str, str]:
    """Answers under the sum of the adapters of three chunks, the static one once; chunks picked by number and internalized one by one."""
    said = {}
    for clip in bench.clips[:3]:
        end_s = clip.end_s or N_SHOWN[clip.video_id] * 0.04
        span_s, loras, n_shown = end_s - clip.start_s, [], N_SHOWN[clip.video_id]
        every = decode(clip.uri, Sampling(n_frames=n_shown), longest_edge_px=EDGE_PX, start_s=clip.start_s, end_s=clip.end_s)
        assert len(set(frame_numbers(every.images))) == n_shown
        times_s = np.linspace(0, every.timestamps_s[-1], 6).reshape(3, 2)
        for numbers, at_s in zip(IN_THREE_CHUNKS[clip.video_id], times_s, strict=True):
            placed = Frames(every.images[numbers], at_s, span_s)
            (adapter,) = internalize_batch([placed], using=bench.using, video_ids=[""])
            loras.append(adapter.lora)
        r = bench.using.hypernetwork.config.r
        chosen = [slice_rank(lora, 0, r) for lora in loras[kept]]
        summed = concatenate([*chosen, slice_rank(loras[0], r, 2 * r)])
        with adapted(bench.vlm.layers, summed):
            for question in clip.questions:
                (answer,) = bench.vlm.generate(bench.batch([question]), max_new_tokens=MAX_NEW_TOKENS)
                said[question["question_id"]] = answer.text
    return said


def test_chunks_are_composed_by_the_sum_of_their_deltas(made: tuple[Recipe, Where], bench: Bench, found: dict[int, Any]) -> None:
    said = by_hand(bench, slice(None))
    assert rows_of(made, 3, "composed") == said
    assert rows_of(made, 3, "half") == by_hand(bench, slice(0, 1)) != said
    references = {row["question_id"]: row["references"] for clip in bench.clips for row in clip.questions}
    mean = fmean(token_f1(text, references[question_id]) for question_id, text in said.items())
    assert found[3]["systems"]["composed"]["token_f1"] == pytest.approx(mean)


def test_the_whole_is_one_adapter_of_as_many_frames(made: tuple[Recipe, Where], bench: Bench, found: dict[int, Any]) -> None:
    said = {}
    for clip in bench.clips[:3]:
        frames = decode(clip.uri, Sampling(n_frames=N_IN_CHUNK), longest_edge_px=EDGE_PX, start_s=clip.start_s, end_s=clip.end_s)
        (adapter,) = internalize_batch([frames], using=bench.using, video_ids=[""])
        texts = [row["question"] for row in clip.questions]
        answers = ask_all(adapter, texts, vlm=bench.vlm, decoding=Decoding(max_new_tokens=MAX_NEW_TOKENS))
        said |= {row["question_id"]: answer.text for row, answer in zip(clip.questions, answers, strict=True)}
    assert rows_of(made, 3, "whole") == rows_of(made, 1, "composed") == said
    assert found[3]["systems"]["whole"]["exact_match"] >= 1 / 3, "a third of the references are its answers"
    assert set(found[1]["systems"]) == {"composed"}, "one chunk is the whole: nothing to compare it with"


def test_order_makes_no_difference(found: dict[int, Any]) -> None:
    for n in (3, 11):
        assert found[n]["same_answers"] == {"reversed": 1.0, "shuffled": 1.0}
        assert found[n]["systems"]["reversed"]["token_f1"] == found[n]["systems"]["composed"]["token_f1"]


def test_deltas_of_any_order_are_one(bench: Bench) -> None:
    frames = [
        decode(bench.clips[0].uri, Sampling(n_frames=2), longest_edge_px=EDGE_PX, start_s=start_s, end_s=start_s + 0.2)
        for start_s in (0.0, 0.2, 0.4)
    ]
    from training.figures.composition import composed

    made = [bench.generated(one) for one in frames]
    one, other = composed(bench, made), composed(bench, made[::-1])
    deltas = [lora.lora_b["down_proj"] @ lora.lora_a["down_proj"] for lora in (one, other)]
    torch.testing.assert_close(*deltas)
    assert not torch.equal(one.lora_a["down_proj"], other.lora_a["down_proj"])


def test_a_clip_has_no_more_chunks_than_frames(found: dict[int, Any]) -> None:
    assert found[11]["chunks"] == {"mean": fmean((11, 7, 6)), "min": 6, "max": 11}
    assert found[11]["frames"] == {"mean": fmean((22, 7, 6)), "min": 6, "max": 22}
    assert found[3]["frames"] == {"mean": 6, "min": 6, "max": 6}


def test_one_pass_is_there_where_it_fits(found: dict[int, Any]) -> None:
    assert found[3]["n_one_pass_fits"] == 3 and found[11]["n_one_pass_fits"] == 2
    assert found[11]["systems"]["one_pass"]["n_answers"] == 6
    assert found[11]["differences"]["composed - one_pass"]["token_f1"]["n_questions"] == 6
    assert found[11]["differences"]["composed - whole"]["token_f1"]["n_questions"] == 9


def test_styles_are_told_apart(found: dict[int, Any]) -> None:
    styles = found[3]["styles"]
    assert {style: of["n_questions"] for style, of in styles.items()} == {"colour": 5, "direction": 4}
    mean = (5 * styles["colour"]["token_f1"]["composed"] + 4 * styles["direction"]["token_f1"]["composed"]) / 9
    assert mean == pytest.approx(found[3]["systems"]["composed"]["token_f1"])


@dataclass(frozen=True)
class Watched(Bench):
    """Remembers which frames adapters were made of."""

    seen: list[list[int]] = field(default_factory=list)

    def generated(self, frames: Frames) -> Lora:
        self.seen.append(frame_numbers(frames.images))
        return super().generated(frames)


def watched(bench: Bench, *clips: Any) -> Watched:
    return Watched(bench.recipe, bench.using, clips, ())


def test_no_frame_is_in_two_chunks(bench: Bench) -> None:
    one = watched(bench, bench.clips[0])
    cell = Composition().measure(one, "11-chunks")
    numbers = [number for chunk in one.seen[:11] for number in chunk]
    assert [len(chunk) for chunk in one.seen[:11]] == [N_IN_CHUNK] * 11 and numbers == sorted(numbers)
    assert len(set(numbers)) == cell["frames"]["mean"] == 22 and (numbers[0], numbers[-1]) == (0, 22)


def test_a_frame_on_show_for_long_is_counted_once(bench: Bench, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "slow.mp4", [*range(0, 400, 40), 1500, 4000])
    one = watched(bench, replace(bench.clips[0], uri=str(path)))
    cell = Composition().measure(one, "11-chunks")
    assert one.seen[:4] == [[0], [9], [10], [11]], "at twelve even times of 4 s"
    assert cell["frames"]["mean"] == cell["chunks"]["mean"] == 4


def test_a_chunk_that_the_vlm_has_no_room_for_is_named(made: tuple[Recipe, Where]) -> None:
    recipe, where = made
    large = recipe.model_copy(update={"figures": recipe.figures.model_copy(update={"frames_in_chunk": 23})})
    with pytest.raises(BadInputError, match=r"recipe: figures\.frames_in_chunk: got 23: a prompt of .* positions"):
        drawn(Composition(), large, where)


def test_one_pass_over_other_clips_says_so(found: dict[int, Any]) -> None:
    def printed(*n_chunks: int) -> str:
        out, about = StringIO(), {"n_questions": 9, "n_videos": 4, "left_out": []}
        Console(file=out, width=400).print(tables.composition({**about, "cells": [found[n] for n in n_chunks]}, None))
        return out.getvalue()

    assert "(fits 2/3)" in printed(1, 3, 11) and "fits n/m: one pass is of the n clips" in printed(1, 3, 11)
    assert "fits" not in printed(1, 3)
