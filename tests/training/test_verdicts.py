"""What a report says in words, for numbers whose meaning is known."""

from typing import Any

import pytest

from training.verdicts import forests, interval_text, signed, verdicts

CLAIM = {
    "system": "ours", "against": "base", "value": -0.01, "low": -0.03, "high": 0.01, "margin": 0.05, "noninferior": True,
    "equivalent": True, "smallest_noninferior": 0.03, "smallest_equivalent": 0.031, "p_noninferior_holm": 0.001, "p_equivalent_holm": 0.002,
}  # fmt: skip
WORSE = CLAIM | {"value": -0.2, "low": -0.3, "high": -0.1, "noninferior": False, "equivalent": False, "smallest_noninferior": 0.3}


def numbers(claims: dict[str, dict[str, Any]], *, differences: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "primary": "token_f1",
        "recipe": {"evaluation": {"alpha": 0.025, "margin": 0.05}},
        "benchmarks": {name: {"claims": {"token_f1": [claim]}, "styles": {}} for name, claim in claims.items()},
        "overall": {"differences": {"token_f1": differences or []}, "claims": {"token_f1": []}},
        "systems": {"ours": {"degenerate": {}, "n_answers": 40}, "base": {"degenerate": {"empty": 1, "repetition": 2}, "n_answers": 40}},
    } | more


def test_one_benchmark() -> None:
    held, broken = verdicts(numbers({"toy": CLAIM}))
    assert held.holds is True
    assert held.text == "ours is as good as base within 0.05 on token F1"
    assert held.detail == "equivalent, −0.010 [−0.030, +0.010]; would hold from a margin of 0.030, equivalent from 0.031"
    assert (broken.holds, broken.text) == (None, "broken answers: base 7.5 %")


@pytest.mark.parametrize(
    ("claims", "holds", "says"),
    [
        ({"a": CLAIM, "b": CLAIM}, True, "is as good as base within 0.05 on token F1: not worse on 2 of 2 benchmarks, equivalent on 2"),
        ({"a": CLAIM, "b": WORSE}, False, "is not shown to be as good as base within 0.05 on token F1: not worse on 1 of 2 benchmarks"),
        ({"a": CLAIM, "b": WORSE}, False, "worst on b, −0.200 [−0.300, −0.100]"),
        ({"a": CLAIM, "b": WORSE}, False, "worst on b, −0.200 [−0.300, −0.100]; taken alone, would hold from a margin of 0.300"),
        ({"a": WORSE}, False, "it may be worse, −0.200"),
        ({"a": WORSE | {"low": -0.04}}, False, "too few clips to tell, −0.200"),
        ({"a": WORSE | {"low": None}}, False, "too few clips to tell, −0.200; would hold from a margin of 0.300"),
        ({"a": CLAIM | {"equivalent": False}}, True, "not worse, −0.010"),
        ({"a": CLAIM, "b": CLAIM | {"p_noninferior_holm": 0.03}}, False, "not worse on 1 of 2 benchmarks"),  # Holm takes it away
    ],
)
def test_claims_over_benchmarks(claims: dict[str, dict[str, Any]], holds: bool | None, says: str) -> None:
    first = verdicts(numbers(claims))[0]
    assert first.holds is holds and says in f"{first.text}: {first.detail}"


@pytest.mark.parametrize(
    ("low", "high", "holds", "says"),
    [
        (-0.02, 0.04, True, "as it should be"),
        (0.01, 0.2, False, "how answers look, not what the video shows"),
        (-0.01, 0.2, None, "too uncertain"),
    ],
)
def test_controls(low: float, high: float, holds: bool | None, says: str) -> None:
    control = {"system": "other_video", "against": "blind", "value": (low + high) / 2, "low": low, "high": high}
    _, told, _ = verdicts(numbers({"toy": CLAIM}, differences=[control]))
    assert told.holds is holds and says in told.detail and told.text.startswith("another video's adapter over the question alone")


def test_styles_that_lose_are_named() -> None:
    one = {
        "claims": {"token_f1": [CLAIM]},
        "styles": {"count": {"claims": {"token_f1": [WORSE]}}, "size": {"claims": {"token_f1": [CLAIM]}}},
    }
    told = verdicts(numbers({}, benchmarks={"toy": one}))[1]
    assert told.holds is False and "in 1 style, each taken alone" in told.text
    assert told.detail == "toy, count (−0.200 [−0.300, −0.100])"


def test_intervals_are_written_with_their_signs() -> None:
    assert interval_text({"value": 0.0, "low": None, "high": None}) == "+0.000"
    assert interval_text({"value": None}) == "–"


def test_a_forest_has_a_row_for_each_benchmark_and_for_all_together() -> None:
    loose = CLAIM | {"margin": 0.15}
    both = {name: {"claims": {"judge": [loose, CLAIM]}, "styles": {}} for name in ("a", "b")}
    found = forests(numbers({}, benchmarks=both, overall={"claims": {"judge": [loose, CLAIM, WORSE | {"system": "merged"}]}}), "judge")
    assert [(one.system, one.against, one.margins, list(one.rows)) for one in found] == [
        ("ours", "base", (0.15, 0.05), ["a", "b", "all together"]),
        ("merged", "base", (0.05,), ["all together"]),
    ]
    alone = forests(numbers({}, benchmarks={"a": both["a"]}), "judge")
    assert [list(one.rows) for one in alone] == [["a"]]


def test_a_zero_has_no_minus_sign() -> None:
    assert [signed(value) for value in (-0.0, -0.0004, -0.0006, 0.25)] == ["+0.000", "+0.000", "−0.001", "+0.250"]
