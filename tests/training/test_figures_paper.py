"""The paper's numbers against each other: what it says of them in words must follow from its tables, or one was copied wrongly."""

from itertools import chain
from statistics import fmean, geometric_mean

import pytest

from training.figures import paper
from training.figures.paper import AVERAGE, CAPTIONS, MODELS, QUESTIONS, STYLES, SWEEP, Compared

MARGINS = {"judge": 0.15, "token_f1": 0.05}  # section 4.3, on [0, 1]
LINES = [
    pytest.param(score, of, id=f"{model} {score} {benchmark}")
    for table in (CAPTIONS, QUESTIONS)
    for (model, score), lines in table.items()
    for benchmark, of in lines.items()
]


@pytest.mark.parametrize(("score", "of"), LINES)
def test_a_line_is_consistent(score: str, of: Compared) -> None:
    assert of.difference == pytest.approx(of.ours - of.base, abs=0.0016), "each of the three is rounded"
    assert of.low < of.difference < of.high
    assert of.noninferior == (of.low > -MARGINS[score])
    assert of.equivalent == (-MARGINS[score] < of.low and of.high < MARGINS[score])


@pytest.mark.parametrize("table", [CAPTIONS, QUESTIONS])
def test_averages_are_of_benchmarks_but_of_questions_in_table_4s_judge(table: dict[tuple[str, str], dict[str, Compared]]) -> None:
    for (_, score), lines in table.items():
        own = [benchmark for benchmark in lines if benchmark != AVERAGE]
        assert len(own) == (5 if table is CAPTIONS else 4)
        is_by_question = table is QUESTIONS and score == "judge"
        weights = [1523 if is_by_question and benchmark == "vidcapbench" else 500 for benchmark in own]
        for name in ("base", "ours"):
            values = [getattr(lines[benchmark], name) for benchmark in own]
            assert getattr(lines[AVERAGE], name) == pytest.approx(fmean(values, weights), abs=0.0011)


def test_styles_average_to_their_benchmark() -> None:
    for model, benchmark in ((model, benchmark) for model in MODELS for benchmark in ("vdc", "carebench")):
        of = CAPTIONS[model, "judge"][benchmark]
        for place, expected in enumerate((of.base, of.ours)):
            assert fmean(pair[place] for pair in STYLES[model][benchmark].values()) == pytest.approx(expected, abs=0.0011)


def test_what_the_text_says_of_the_sweep() -> None:
    for model, speedup, largest, reduction, most in (("500M", 6.7, 17.2, 150, 713), ("2.2B", 20.1, 79.1, 302, 1507)):
        cells = [cell for (name, _, _), cell in SWEEP.items() if name == model]
        assert len(cells) == 32
        assert geometric_mean(cell.faster for cell in cells) == pytest.approx(speedup, rel=0.01)
        assert max(cell.faster for cell in cells) == pytest.approx(largest, abs=0.5)
        assert geometric_mean(cell.fewer_tokens for cell in cells) == pytest.approx(reduction, rel=0.01)
        assert max(cell.fewer_tokens for cell in cells) == pytest.approx(most, rel=0.01)
    assert fmean(cell.token_f1 for (name, _, _), cell in SWEEP.items() if name == "500M") == pytest.approx(-0.012, abs=0.0005)


def test_what_the_text_says_of_efficiency_composition_and_pruning() -> None:
    assert [composed / whole for composed, whole in paper.COMPOSED_F1.values()] == pytest.approx([0.931, 0.862], abs=0.003)
    for curve in paper.AMORTISED_S.values():
        n, seconds = zip(*curve.items(), strict=True)
        assert list(n) == [1, 2, 3, 5, 10, 15, 20] or list(n) == [1, 2, 5, 10, 15, 20]
        assert list(seconds) == sorted(seconds, reverse=True)
    pruned = paper.PRUNED_F1["2.2B"]
    assert max(pruned, key=pruned.__getitem__) == "but-the-strongest" and min(pruned, key=pruned.__getitem__) == "none"


def test_benchmarks_are_known_by_the_names_they_are_asked_for_by() -> None:
    names = set(chain(CAPTIONS["500M", "judge"], QUESTIONS["500M", "judge"])) - {AVERAGE}
    assert len(names) == 9
    assert all(name == name.lower() and name.replace("_", "").isalnum() for name in names)


@pytest.mark.parametrize(
    ("vlm", "model"),
    [
        ("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "500M"),
        ("/models/SmolVLM2-2.2B-Instruct/", "2.2B"),
        ("HuggingFaceTB/SmolVLM2-256M-Video-Instruct", None),
        ("HuggingFaceTB/SmolVLM-500M-Instruct", None),
        ("tiny", None),
    ],
)
def test_the_papers_models_are_known_by_name(vlm: str, model: str | None) -> None:
    assert paper.model_of(vlm) == model
