"""Figures as the page draws them, from numbers in the shape of figure.json."""

from typing import Any

from training.figure_drawings import drawings

ABOUT = {"n_questions": 35, "n_videos": 7, "left_out": []}


def cell(cap: int, edge_px: int, *, fits: int = 7) -> dict[str, Any]:
    rival = "base" if fits == 7 else "sampled"
    systems = {name: {"ttft_s": 0.1 * n, "n_input_tokens": 11.0 * n} for name, n in (("ours", 1), (rival, 3), ("sampled", 3))}
    differences = {f"ours - {rival}": {"token_f1": {"value": -0.2 if fits == 7 else 0.05}, "exact_match": None}}
    return {
        "frame_cap": cap, "longest_edge_px": edge_px, "n_videos": 7, "n_base_fits": fits, "frames": {"mean": cap / 2},
        "systems": systems, "differences": differences,
    }  # fmt: skip


def texts(drawing: dict[str, Any]) -> list[list[str]]:
    return [[one["text"] for one in row["cells"]] for row in drawing["table"]["rows"]]


def test_a_sweep_is_three_heatmaps_by_cap_and_edge() -> None:
    cells = [cell(8, 224), cell(16, 512, fits=2), cell(8, 512)]
    f1, speed, tokens = drawings([{"table": "sweep", **ABOUT, "cells": cells}])
    assert [row["name"] for row in f1["table"]["rows"]] == ["8 (in fact 4.0)", "16 (in fact 8.0)"]
    assert f1["table"]["columns"] == ["224 px", "512 px"]
    assert texts(f1) == [["−0.200", "−0.200"], ["–", "+0.050 *"]]
    assert [[one["shade"] for one in row["cells"]] for row in f1["table"]["rows"]] == [["n4", "n4"], ["", "p1"]]
    assert texts(speed) == texts(tokens) == [["3.0 ×", "3.0 ×"], ["–", "3.0 × *"]]
    assert "7 clips" in f1["table"]["note"] and "* base does not fit" in f1["table"]["note"]
    assert drawings([{"table": "sweep", **ABOUT, "cells": [cell(8, 224)]}])[1]["table"]["note"] == "", "no star, no word of it"


def test_what_could_not_be_measured_is_said_with_the_figure() -> None:
    lost = [{"key": f"v{i}", "reason": "missing"} for i in range(4)] + [{"key": "q", "reason": "prompt_too_long"}]
    few = cell(8, 224) | {"n_videos": 3}
    (drawing, *_) = drawings([{"table": "sweep", **ABOUT, "left_out": lost, "cells": [few, cell(16, 224)]}])
    told = "35 questions about 7 clips. Left out: 4 for missing, 1 for prompt_too_long. Measured: 3 to 7 clips."
    assert drawing["table"]["note"].startswith(told)


def test_an_amortisation_curve_has_a_line_for_each_rival() -> None:
    spread = {"ours": {"1": {"value": 0.6}, "10": {"value": 0.15}}, "again": {"1": {"value": 0.3}, "10": {"value": 0.3}}}
    figure = {
        "table": "efficiency",
        **ABOUT,
        "n_measured": 7,
        "device": "cpu",
        "amortised_s": spread,
        "parts_s": {"decode": {"value": 0.0421}},
    }
    (drawn,) = drawings([figure])
    assert [name for name, _ in drawn["curves"].paths] == ["ours", "base, the video read again for each question"]
    assert texts(drawn) == [["0.6000", "0.1500"], ["0.3000", "0.3000"]]
    assert drawn["table"]["columns"] == ["n = 1", "n = 10"] and "decode 42.1 ms" in drawn["table"]["note"]


def test_composition_and_pruning() -> None:
    chunks = [
        {"n_chunks": n, "n_videos": 7, "systems": {"composed": {"token_f1": 1 / n}} | ({"half": {"token_f1": 0.5}} if n > 1 else {})}
        for n in (1, 2)
    ]
    kept = [
        {"kept": name, "n_videos": 7, "systems": {"with_static": {"token_f1": value}}} for name, value in (("top-1", 0.25), ("all", None))
    ]
    composition, pruning = drawings(
        [{"table": "pruning", **ABOUT, "cells": kept}, {"table": "composition", **ABOUT, "cells": chunks}],
    )
    assert texts(composition) == [["1.000", "0.500"], ["–", "0.500"]] and len(composition["curves"].marks) == 3
    assert texts(pruning) == [["0.250"], ["–"]] and pruning["curves"] is None and pruning["table"]["columns"] == ["with static"]


def test_one_pass_over_other_clips_says_so() -> None:
    systems = {"composed": {"token_f1": 0.5}, "one_pass": {"token_f1": 0.25}}
    cells = [{"n_chunks": n, "n_videos": 7, "n_one_pass_fits": fits, "systems": systems} for n, fits in ((2, 7), (4, 3))]
    one, other = ({"table": "composition", **ABOUT, "cells": of} for of in (cells, cells[:1]))
    drawn, whole = drawings([one, other])
    assert texts(drawn) == [["0.500", "0.500"], ["0.250", "0.250 (fits 3/7)"]] and "Fits n/m" in drawn["table"]["note"]
    assert texts(whole) == [["0.500"], ["0.250"]] and "Fits" not in whole["table"]["note"]


def test_what_measured_nothing_is_left_out() -> None:
    nothing = cell(8, 224) | {"n_videos": 0}
    empty = {"table": "efficiency", **ABOUT, "n_measured": 0, "parts_s": {}, "systems": {}, "amortised_s": {}}
    assert drawings([{"table": "sweep", **ABOUT, "cells": [nothing]}, empty, {"table": "pruning", **ABOUT, "cells": []}]) == []
    assert drawings([{"table": "captions", **ABOUT}]) == []
