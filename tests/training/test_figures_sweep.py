"""The sweep's cells against the same by hand, what it says of frames that are not there or do not fit, and going on cell by cell."""

import json
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from statistics import fmean
from typing import Any

import av
import numpy as np
import pytest
from clips import frame_numbers, regular, write_clip
from made_figures import EDGE_PX, N_POSITIONS, N_SHOWN, make
from made_questions import MAX_NEW_TOKENS
from rich.console import Console

from infra.config import Recipe, Where
from infra.errors import BadInputError, StorageError
from infra.objects import names, read_json
from training.figures import scores, tables
from training.figures.bench import Bench, Clip, clips_of, opened, opened_bench
from training.figures.efficiency import Efficiency
from training.figures.figure import drawn, figure_output
from training.figures.frames_resolution import Sweep
from training.videos import chunks, evenly
from video2lora.api import Decoding, ask_all, internalize_batch
from video2lora.scoring import exact_match, token_f1
from video2lora.video import Sampling, decode

SETTINGS: dict[str, Any] = {"frame_caps": (3, 5, 29), "longest_edges_px": (19, EDGE_PX), "frames_per_chunk": 4, "n_timed": 1, "n_rounds": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Where]:
    return make(tmp_path_factory.mktemp("sweep"), **SETTINGS)


@pytest.fixture(scope="module")
def found(made: tuple[Recipe, Where]) -> dict[str, Any]:
    return drawn(Sweep(), *made)


@pytest.fixture
def bench(made: tuple[Recipe, Where]) -> Iterator[Bench]:
    with opened_bench(*made, clips_of(*made)) as opened:
        yield opened


def cell(found: dict[str, Any], cap: int, edge_px: int = EDGE_PX) -> dict[str, Any]:
    return next(one for one in found["cells"] if (one["frame_cap"], one["longest_edge_px"]) == (cap, edge_px))


def by_hand(bench: Bench, system: str, cap: int, edge_px: int) -> list[tuple[str, float, float, int]]:
    """Question, scores and input tokens, clip by clip, with the package's own calls alone."""
    told, decoding = [], Decoding(max_new_tokens=MAX_NEW_TOKENS)
    for clip in bench.clips[:3]:
        sampling = Sampling(policy="uniform", n_frames=min(cap, N_SHOWN[clip.video_id]))
        frames = decode(clip.uri, sampling, longest_edge_px=edge_px, start_s=clip.start_s, end_s=clip.end_s)
        shown = frames if system == "base" else evenly(frames, 4)
        adapter = internalize_batch([frames], using=bench.using, video_ids=[""], frames_per_chunk=4)[0] if system == "ours" else None
        for question in clip.questions:
            video = None if system == "ours" else shown
            (answer,) = ask_all(adapter, [question["question"]], vlm=bench.vlm, decoding=decoding, video=video)
            marks = token_f1(answer.text, question["references"]), exact_match(answer.text, question["references"])
            told.append((question["question_id"], *marks, answer.n_input_tokens))
    return told


@pytest.mark.parametrize(("cap", "edge_px"), [(3, EDGE_PX), (5, EDGE_PX), (5, 19)])
@pytest.mark.parametrize("system", ["base", "ours"])
def test_a_cell_is_what_answering_by_hand_gives(bench: Bench, found: dict[str, Any], system: str, cap: int, edge_px: int) -> None:
    told = by_hand(bench, system, cap, edge_px)
    of = cell(found, cap, edge_px)["systems"][system]
    assert of["n_answers"] == len(told) == 9
    assert of["token_f1"] == pytest.approx(fmean(one[1] for one in told))
    assert of["exact_match"] == pytest.approx(fmean(one[2] for one in told))
    assert of["n_input_tokens"] == pytest.approx(fmean(one[3] for one in told))
    assert (of["n_visual_tokens"] > 0) == (system == "base")


def test_the_difference_is_that_of_the_answers(bench: Bench, found: dict[str, Any]) -> None:
    ours, base = (by_hand(bench, system, 3, EDGE_PX) for system in ("ours", "base"))
    difference = cell(found, 3)["differences"]["ours - base"]["token_f1"]
    assert difference["value"] == pytest.approx(fmean(one[1] for one in ours) - fmean(one[1] for one in base)) != 0
    assert difference["low"] <= difference["value"] <= difference["high"] and difference["n_videos"] == 3
    assert cell(found, 3)["systems"]["base"]["exact_match"] >= 2 / 3 and cell(found, 3)["systems"]["ours"]["exact_match"] >= 1 / 3


def test_frames_are_counted_as_they_are(found: dict[str, Any]) -> None:
    assert cell(found, 3)["frames"] == {"mean": 3, "min": 3, "max": 3} and cell(found, 3)["n_below_cap"] == 0
    shown = N_SHOWN.values()
    assert cell(found, 29)["frames"] == {"mean": fmean(shown), "min": min(shown), "max": max(shown)}
    assert cell(found, 29)["n_below_cap"] == 3
    assert cell(found, 29)["n_chunks"] == {"mean": fmean((6, 2, 2)), "min": 2, "max": 6}


def test_what_does_not_fit_is_said_and_fewer_frames_stand_in(bench: Bench, found: dict[str, Any]) -> None:
    large = cell(found, 29)
    assert large["n_base_fits"] == 2 and cell(found, 5)["n_base_fits"] == 3
    assert large["systems"]["base"]["n_answers"] == 6 and large["systems"]["sampled"]["n_answers"] == 9
    assert "sampled" not in cell(found, 5)["systems"]
    rows = [row for row in cell_rows(found, bench, "29-frames-37px") if row["system"] == "sampled" and row["video_id"] == "v0"]
    told = {one[0]: one[3] for one in by_hand(bench, "sampled", 29, EDGE_PX)}
    assert [row["n_input_tokens"] for row in rows] == [told[row["question_id"]] for row in rows]
    assert max(row["n_input_tokens"] for row in rows) + MAX_NEW_TOKENS <= N_POSITIONS
    assert large["differences"]["ours - sampled"]["token_f1"]["n_questions"] == 9
    assert large["differences"]["ours - base"]["token_f1"]["n_questions"] == 6


def cell_rows(found: dict[str, Any], bench: Bench, name: str) -> list[dict[str, Any]]:
    where = Where(data=str(Path(bench.recipe.vlm.model).parent / "data"))
    folder = figure_output(Sweep(), bench.recipe, where).folder
    rows: list[dict[str, Any]] = read_json(f"{folder}/cells/{name}.json")["rows"]
    return rows


def test_what_cannot_be_read_or_asked_is_left_out_with_its_reason(found: dict[str, Any]) -> None:
    assert {one["key"]: one["reason"] for one in found["left_out"]} == {"v3": "not_a_video", "q51": "bad_row", "q52": "prompt_too_long"}
    assert all(one["n_videos"] == 3 for one in found["cells"])


def test_first_tokens_are_timed_of_the_clips_asked_for(found: dict[str, Any]) -> None:
    times = {system: of["ttft_s"] for system, of in cell(found, 5)["systems"].items()}
    assert all(0 < seconds < 60 for seconds in times.values()) and set(times) == {"base", "ours"}
    assert cell(found, 29)["systems"]["base"]["ttft_s"] is None, "the one clip that is timed does not fit"


class Stopping(Sweep):
    """Ends at its third cell, as a run does that is killed there."""

    def measure(self, bench: Bench, cell: str) -> dict[str, Any]:
        if cell == "5-frames-19px":
            raise KeyboardInterrupt
        return super().measure(bench, cell)


def test_a_stopped_run_goes_on_behind_the_cells_it_has(
    made: tuple[Recipe, Where], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, where = make(tmp_path, **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        drawn(Stopping(), recipe, where)
    output = figure_output(Sweep(), recipe, where)
    before = {name: Path(f"{output.folder}/cells/{name}").read_bytes() for name in names(f"{output.folder}/cells")}
    assert set(before) == {"3-frames-19px.json", "3-frames-37px.json"} and not output.is_complete()
    found = drawn(Sweep(), recipe, where)
    assert "2 of 6 cells were measured before" in capsys.readouterr().err
    after = {name: Path(f"{output.folder}/cells/{name}").read_bytes() for name in names(f"{output.folder}/cells")}
    assert len(after) == len(found["cells"]) == 6
    assert {name: after[name] for name in before} == before, "times would differ, had they been measured again"
    assert drawn(Sweep(), recipe, where) == found == json.loads(Path(f"{output.folder}/figure.json").read_text())
    assert "complete, nothing to do" in capsys.readouterr().err


def test_other_settings_are_another_figure_and_those_of_other_figures_are_not(made: tuple[Recipe, Where]) -> None:
    recipe, where = made

    def name(**settings: Any) -> str:
        changed = recipe.model_copy(update={"figures": recipe.figures.model_copy(update=settings)})
        return figure_output(Sweep(), changed, where).name

    assert name() == name(n_chunks=(1, 3)) != name(frame_caps=(3, 5))
    assert name(seed=1) != name()


def test_settings_that_the_vlm_has_no_room_for_are_named(made: tuple[Recipe, Where]) -> None:
    recipe, where = made
    chunks = recipe.model_copy(update={"figures": recipe.figures.model_copy(update={"frames_per_chunk": 23})})
    with pytest.raises(BadInputError, match=r"recipe: figures\.frames_per_chunk: got 23: a prompt of .* positions"):
        drawn(Sweep(), chunks, where)
    fewer = recipe.model_copy(update={"answer": recipe.answer.model_copy(update={"sampled_frames": 22})})
    with pytest.raises(BadInputError, match=r"recipe: answer\.sampled_frames: 22 frames, a question and its answer do not fit"):
        drawn(Sweep(), fewer, where)


def test_clips_are_drawn_by_the_seed_and_questions_by_style(made: tuple[Recipe, Where]) -> None:
    recipe, where = made

    def clips(**settings: Any) -> list[Any]:
        return clips_of(recipe.model_copy(update={"figures": recipe.figures.model_copy(update=settings)}), where)

    assert [clip.video_id for clip in clips()] == ["v0", "v1", "v2", "v3"]
    pairs = {tuple(clip.video_id for clip in clips(n_videos=2, seed=seed)) for seed in range(12)}
    assert len(pairs) > 2 and all(len(pair) == 2 for pair in pairs)
    assert {row["style"] for clip in clips(styles=("colour",)) for row in clip.questions} == {"colour"}
    with pytest.raises(BadInputError, match=r"figures\.benchmark \(vdc\)"):
        clips(benchmark="vdc")


def test_sums_are_by_video_over_questions_both_answered() -> None:
    def row(question_id: str, content: str, system: str, value: float) -> dict[str, Any]:
        return {"question_id": question_id, "content": content, "system": system, "token_f1": value}

    rows = [row("a", "v", "one", 0.5), row("a", "v", "two", 0.25), row("b", "v", "one", 1.0), row("b", "v", "two", 0.0)]
    rows += [row("c", "w", "one", 1.0), row("c", "w", "two", 0.5), row("d", "w", "one", 1.0)]
    assert scores.sums_by_video(rows, ("one", "two"), "token_f1").tolist() == [[2, 1.5, 0.25], [1, 1.0, 0.5]]


@pytest.mark.parametrize(
    ("times_ms", "n", "shown"),
    [
        (regular(23), 22, [*range(21), 22]),
        (regular(7), 12, list(range(7))),
        ([*range(0, 400, 40), 1500, 4000], 12, [0, 9, 10, 11]),
        ([*range(0, 400, 40), 1500, 4000], 3, [0, 10, 11]),
    ],
)
def test_no_frame_is_shown_twice(tmp_path: Path, times_ms: list[int], n: int, shown: list[int]) -> None:
    path = write_clip(tmp_path / "clip.mp4", times_ms)
    with opened(Clip("v", "v", str(path), 0.0, None, ())) as file:
        frames = file.frames(Sampling(n_frames=n), longest_edge_px=EDGE_PX)
    assert frame_numbers(frames.images) == shown
    assert len(frames.timestamps_s) == len(shown) and all(np.diff(frames.timestamps_s) > 0)


def test_frames_that_look_alike_are_all_shown(tmp_path: Path) -> None:
    path, still = tmp_path / "still.mp4", np.zeros((26, 34, 3), np.uint8)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 34, 26, "yuv444p"
        for _ in range(13):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(still, format="rgb24")))
        container.mux(stream.encode(None))
    with opened(Clip("v", "v", str(path), 0.0, None, ())) as file:
        assert len(file.frames(Sampling(n_frames=7), longest_edge_px=EDGE_PX).images) == 7


def test_frames_of_a_span_are_its_own(bench: Bench) -> None:
    clip = next(one for one in bench.clips if one.video_id == "v2")  # frames 3 to 8
    with opened(clip) as file:
        assert file.n_frames == 6
        whole = file.frames(Sampling(n_frames=12), longest_edge_px=EDGE_PX)
    assert frame_numbers(whole.images) == [3, 4, 5, 6, 7, 8]
    parts = chunks(whole, 2)
    assert [frame_numbers(part.images) for part in parts] == [[3, 4, 5], [6, 7, 8]]
    assert [*parts[0].timestamps_s, *parts[1].timestamps_s] == pytest.approx(list(whole.timestamps_s))
    assert parts[1].duration_s == pytest.approx(whole.duration_s) == pytest.approx(0.24)


def as_long_as_fits(bench: Bench, clip: Clip, n_frames: int) -> dict[str, Any]:
    """A question about the clip that no frame more would fit beside."""
    frames = None
    if n_frames:
        frames = decode(clip.uri, Sampling(n_frames=n_frames), longest_edge_px=EDGE_PX, start_s=clip.start_s, end_s=clip.end_s)
    row: dict[str, Any] = {**clip.questions[0], "question_id": f"long-{n_frames}"}
    n_words = max(
        n for n in range(1, 190) if bench.batch([row | {"question": "a" * n}], frames).input_ids.shape[1] + MAX_NEW_TOKENS <= N_POSITIONS
    )
    return row | {"question": "a" * n_words}


def test_a_question_that_does_not_fit_costs_itself_alone(bench: Bench) -> None:
    v0, v1 = bench.clips[:2]
    longest, long = as_long_as_fits(bench, v1, 0), as_long_as_fits(bench, v1, 4)
    asked = replace(bench, clips=(v0, replace(v1, questions=(longest, long, *v1.questions))))
    cell = Sweep().measure(asked, f"7-frames-{EDGE_PX}px")
    answered = {system: {row["question_id"] for row in cell["rows"] if row["system"] == system} for system in ("base", "sampled", "ours")}
    short = {row["question_id"] for clip in (v0, v1) for row in clip.questions}
    assert answered == {"base": short, "sampled": {*short, "long-4"}, "ours": {*short, "long-4"}}
    assert (cell["n_videos"], cell["n_base_fits"]) == (2, 1)
    assert [(one["key"], one["reason"]) for one in cell["left_out"][-1:]] == [("long-0", "prompt_too_long")]
    alone = replace(bench, clips=(replace(v1, questions=(longest,)),))
    with pytest.raises(BadInputError, match=r"answer\.sampled_frames: 3 frames, a question and its answer do not fit"):
        Sweep().measure(alone, f"3-frames-{EDGE_PX}px")


def test_a_folder_that_is_away_completes_no_figure(tmp_path: Path) -> None:
    small = {"frame_caps": (2,), "longest_edges_px": (19,), "n_timed": 0, "n_rounds": 1}
    recipe, where = make(tmp_path, **small)
    away = tmp_path / "away"
    away.mkdir()
    clips = sorted(tmp_path.glob("*.mp4"))
    for path in clips:
        path.rename(away / path.name)
    for figure in (Sweep(), Efficiency()):
        with pytest.raises(
            StorageError,
            match=r"none of the clips' 4 files can be read .*Cells measured so far are kept; a later run goes on with this one",
        ):
            drawn(figure, recipe, where)
        output = figure_output(figure, recipe, where)
        assert not output.is_complete() and not names(f"{output.folder}/cells")
    for path in clips:
        if path.name != "v1.mp4":
            (away / path.name).rename(path)
    found = drawn(Sweep(), recipe, where)
    assert found["cells"][0]["n_videos"] == 2
    assert {one["key"]: one["reason"] for one in found["left_out"]}.items() >= {"v1": "missing", "v3": "not_a_video"}.items()
    assert drawn(Efficiency(), recipe, where)["n_measured"] == 2


def test_what_stands_in_for_the_base_is_starred(found: dict[str, Any]) -> None:
    def printed(*caps: int) -> str:
        out, cells = StringIO(), [one for one in found["cells"] if one["frame_cap"] in caps]
        Console(file=out, width=400).print(tables.sweep({**found, "cells": cells}, None))
        return out.getvalue()

    assert "*" not in printed(3, 5)
    starred = printed(29)
    of = cell(found, 29)["systems"]["sampled"]
    assert f" {of['n_input_tokens']:.0f} *" in starred and f" {1000 * of['ttft_s']:.1f} *" in starred
    assert "* base does not fit its context for every clip" in starred
