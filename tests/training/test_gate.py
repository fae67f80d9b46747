"""The gate against rows whose truth is known: it lets in what is as good, keeps out what is worse or cannot be told, and says why."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from made_examples import fill, fill_hypernetwork, write_examples
from made_rows import BENCHMARKS, rows_of

from infra import promotions
from infra.config import Recipe, VLMSettings, Where
from infra.contents import contents_of, video_id
from infra.errors import BadInputError
from infra.evaluation_config import AnswerSettings, EvaluationSettings, JudgeSettings
from infra.objects import write_new
from infra.outputs import Output
from infra.parquet import to_parquet
from infra.retraining_config import PromotionSettings, RetrainingSettings
from infra.seen import SEEN, Seen, read_seen, write_seen
from infra.sets import answers_made, answers_set, frames_made, frames_set, trained_hypernetwork
from infra.storage import Table
from training import gate, report
from training.report_rows import SCHEMA
from video2lora.equivalence import claim
from video2lora.video_file import short_id

SETTINGS = PromotionSettings()
N = 200  # videos

Facts = dict[str, Any]


def rows_with(change: Callable[[Facts, np.random.Generator], float] | None = None, *, n: int = N, **more: Any) -> list[Facts]:
    """Base, ours and blind are right by chance, and the champion's answers are ours; of ours, `change` then gives other scores."""
    rows = rows_of(n, shares={"base": 0.8, "ours": 0.8, "blind": 0.3}, **more)
    champion = [row | {"system": "champion"} for row in rows if row["system"] == "ours"]
    rng = np.random.default_rng(11)
    for row in rows:
        if change is not None and row["system"] == "ours":
            value = change(row, rng)
            row |= {"token_f1": value, "exact_match": None if row["exact_match"] is None else value}
    # as good as the champion, and base too: else what is said of base would be left to chance
    base = [row | {"system": "base"} for row in champion]
    return [row for row in rows if row["system"] != "base"] + base + champion


def worse_by(share: float, *, benchmark: str | None = None, style: str | None = None) -> Callable[[Facts, np.random.Generator], float]:
    """A share of the answers becomes wrong."""

    def change(row: Facts, rng: np.random.Generator) -> float:
        is_meant = benchmark in (None, row["benchmark"]) and style in (None, row["style"])
        return 0.0 if is_meant and rng.random() < share else float(row["token_f1"])

    return change


def judged(rows: Sequence[Facts], *, champion: bool = True, **settings: Any) -> gate.Verdict:
    verdict = gate.judged(rows, PromotionSettings(**settings), champion=champion, n_draws=2000)
    json.dumps(verdict.plain())  # as the log and the webhook have it
    return verdict


def test_the_same_answers_are_promoted() -> None:
    verdict = judged(rows_with())
    assert verdict.promote
    assert verdict.why.startswith("not worse than the champion within 0.05 on token F1, worst on toy_")
    assert verdict.why.endswith("; nor than base on toy_captions, toy_qa, as the champion is")
    assert {one["value"] for one in verdict.evidence["against_champion"].values()} == {0.0}
    assert verdict.evidence["benchmarks"] == ["toy_captions", "toy_qa"] and verdict.evidence["seeds"] == [7, 3]
    assert [(one["benchmark"], one["style"], one["value"]) for one in verdict.evidence["families"]] == [
        ("toy_captions", "short", 0.0), ("toy_qa", "colour", 0.0), ("toy_qa", "direction", 0.0),
    ]  # fmt: skip


def test_a_spoiled_challenger_is_kept_out() -> None:
    verdict = judged(rows_with(worse_by(0.5)))
    assert not verdict.promote
    assert "toy_qa: not shown to be as good as the champion within 0.05: worse, −0." in verdict.why
    assert "toy_captions: not shown to be as good as base, as the champion is, within 0.05: worse" in verdict.why
    assert "3 of 3 question families fall by more than 0.1: " in verdict.why


def test_the_claim_is_the_papers_own_corrected_over_benchmarks() -> None:
    """Computed anew from the rows, without the gate's helpers."""
    rows = rows_with(worse_by(0.03))
    verdict = judged(rows)
    p_values = {}
    for benchmark, styles in BENCHMARKS.items():
        sums = np.zeros((2, N, 3))
        for row in rows:
            if row["benchmark"] == benchmark and row["system"] in ("ours", "champion"):
                at = (7, 3).index(row["seed"]), int(row["video_id"][1:])
                sums[*at, 0] += 0.5
                sums[*at, 1 if row["system"] == "ours" else 2] += row["token_f1"]
        assert (sums[:, :, 0] == len(styles)).all()
        expected = claim(sums, margin=0.05, alpha=0.05, n_draws=2000)
        assert expected is not None
        found = verdict.evidence["against_champion"][benchmark]
        assert (found["value"], found["low"], found["p_noninferior"]) == (expected.value, expected.low, expected.p_noninferior)
        p_values[benchmark] = expected.p_noninferior
    least, most = sorted(p_values, key=lambda name: p_values[name])
    corrected = {least: 2 * p_values[least], most: max(2 * p_values[least], p_values[most])}
    assert {name: one["p_noninferior_holm"] for name, one in verdict.evidence["against_champion"].items()} == corrected


def test_one_benchmark_that_is_worse_is_enough_unless_it_is_not_required() -> None:
    rows = rows_with(worse_by(0.08, benchmark="toy_captions"))
    assert "toy_captions: not shown" in judged(rows).why and "toy_qa" not in judged(rows).why
    assert judged(rows, benchmarks=("toy_qa",)).promote


def test_a_family_that_falls_while_the_mean_holds_is_enough() -> None:
    """Of 12 styles one is lost by a quarter: its benchmark as a whole by 0.02."""
    styles = {"toy_qa": tuple(f"style{i}" for i in range(12))}
    rows = rows_with(worse_by(0.3, style="style5"), benchmarks=styles)
    verdict = judged(rows)
    assert verdict.evidence["against_champion"]["toy_qa"]["holds"] and not verdict.promote
    assert verdict.why.startswith("1 of 12 question families fall by more than 0.1: toy_qa style5 (−0.2")
    assert judged(rows, max_family_fall=0.5).promote
    assert not judged(rows, benchmarks=("toy_qa",)).promote


def test_a_family_falls_also_in_a_benchmark_that_is_not_required() -> None:
    rows = rows_with(worse_by(0.4, benchmark="toy_captions"))
    assert judged(rows, benchmarks=("toy_qa",)).why.startswith("1 of 3 question families fall")


def test_base_counts_where_the_champion_is_as_good_and_only_there() -> None:
    """The champion loses 0.02 against base everywhere and is not worse; ours loses another 0.025, which no one rule but base's forbids."""
    rows = [row for row in rows_with(n=400, seeds=(7,)) if row["system"] != "champion"]
    lost = {"champion": 0.025, "ours": 0.052}
    by_id = {row["question_id"]: row["token_f1"] for row in rows if row["system"] == "base"}
    rng = np.random.default_rng(5)
    luck = {question_id: rng.random() for question_id in sorted(by_id)}
    made = [row for row in rows if row["system"] in ("base", "blind")]
    for row in rows:
        if row["system"] == "ours":
            for system, share in lost.items():
                value = 0.0 if luck[row["question_id"]] < share else by_id[row["question_id"]]
                made.append(row | {"system": system, "token_f1": value})
    verdict = judged(made)
    assert all(one["holds"] for one in verdict.evidence["against_champion"].values())
    assert all(one["holds"] for one in verdict.evidence["champion_against_base"].values())
    assert not verdict.promote and "not shown to be as good as base, as the champion is, within 0.05: it may be worse" in verdict.why
    assert "the champion within" not in verdict.why
    better = [row | {"token_f1": 1.0} if row["system"] == "base" else row for row in made]
    verdict = judged(better)
    assert verdict.promote and verdict.why.endswith("; base is not asked about, for the champion is not shown to be as good")
    assert verdict.evidence["against_base"] == {}


@pytest.mark.parametrize(("n_videos", "n_benchmarks", "least"), [(58, 1, 59), (71, 2, 72)])
def test_too_few_clips_claim_nothing_and_it_says_how_many_would(n_videos: int, n_benchmarks: int, least: int) -> None:
    """Also where no answer differs. 72 clips for two benchmarks, each at half of 0.05."""
    benchmarks = dict(list(BENCHMARKS.items())[:n_benchmarks])
    verdict = judged(rows_with(n=n_videos, benchmarks=benchmarks))
    assert not verdict.promote and f"{n_videos} clips are too few to tell, {least} the least, +0.000" in verdict.why
    assert judged(rows_with(n=least, benchmarks=benchmarks)).promote


def test_a_required_benchmark_without_questions_or_without_this_score_keeps_the_champion() -> None:
    verdict = judged(rows_with(), benchmarks=("toy_qa", "toy_asked"))
    assert verdict.why == "toy_asked: no question of it has an answer of both with a score (token F1)" and not verdict.promote
    assert verdict.evidence["against_champion"]["toy_asked"] is None
    assert (
        "toy_captions: no question of it has an answer of both with a score (exact match)" in judged(rows_with(), score="exact_match").why
    )
    assert judged(rows_with(), score="exact_match", benchmarks=("toy_qa",)).promote


def test_a_report_without_base_or_without_the_champion_keeps_it() -> None:
    rows = rows_with()
    assert "no answers by base" in judged([row for row in rows if row["system"] != "base"]).why
    assert "no question of it has an answer of both" in judged([row for row in rows if row["system"] != "champion"]).why


def test_many_benchmarks_have_draws_enough_to_be_claimed() -> None:
    """Holm's correction over 30 of them multiplies the smallest p of 600 draws by 30."""
    benchmarks = {f"toy{i:02d}": ("colour",) for i in range(30)}
    rows = rows_with(n=130, benchmarks=benchmarks, seeds=(7,))
    verdict = gate.judged(rows, SETTINGS, champion=True, n_draws=100)
    assert verdict.promote and verdict.evidence["n_draws"] == 600


def test_the_first_champion_must_beat_the_question_alone() -> None:
    rows = [row for row in rows_with() if row["system"] != "champion"]
    verdict = judged(rows, champion=False)
    assert verdict.promote and verdict.why.startswith("the first champion: +0.") and "200 clips" in verdict.why
    assert verdict.evidence["against_blind"]["low"] > 0
    blind = [row | {"token_f1": float(hash_of(row) < 0.3)} if row["system"] == "ours" else row for row in rows]
    verdict = judged(blind, champion=False)
    assert not verdict.promote and verdict.why.startswith("there is no champion, and it is not shown to do better than without the video: ")
    one_clip = [row for row in rows if row["video_id"] == "v0001"]
    assert not judged(one_clip, champion=False).promote
    assert "toy_asked: no question of it" in judged(rows, champion=False, benchmarks=("toy_qa", "toy_asked")).why


@pytest.mark.parametrize(("n_videos", "promotes"), [(2, False), (5, False), (6, True)])
def test_few_clips_make_no_first_champion_however_alike_they_are(n_videos: int, promotes: bool) -> None:
    """Each is better than blind by 0.1: the bootstrap's interval is that, without width. Of six, 0.5 ** 6 is below 0.025."""
    rows = [row for row in rows_with(n=n_videos, seeds=(7,)) if row["system"] in ("ours", "blind")]
    rows = [row | {"token_f1": 0.6 if row["system"] == "ours" else 0.5} for row in rows]
    verdict = judged(rows, champion=False)
    found = verdict.evidence["against_blind"]
    assert found["low"] == pytest.approx(0.1) and found["p_signs"] == pytest.approx(0.5**n_videos)
    assert verdict.promote == promotes


def test_by_chance_a_first_champion_is_made_no_more_often_than_is_said() -> None:
    """Adapters as good as nothing, on four clips or seven: of 400 each, at most 1 in 40, give or take three standard errors."""
    rng = np.random.default_rng(3)
    for n_videos in (4, 7):
        p_values = [gate.signs_p(rng.normal(size=n_videos)) for _ in range(400)]
        assert np.mean(np.array(p_values) <= gate.ALPHA_FIRST) <= 0.025 + 3 * (0.025 * 0.975 / 400) ** 0.5
        assert max(p_values) > 0.5 > min(p_values)


def test_what_the_judge_could_not_mark_counts_against_the_challenger() -> None:
    """A challenger whose answers are wrong, as good where its judge has a mark: on a third of the questions."""
    rows = [row | {"judge": row["token_f1"]} for row in rows_with(seeds=(7,))]
    assert judged(rows, score="judge").evidence["n_without_score"] == 0 and judged(rows, score="judge").promote
    unmarked = [row | {"judge": None} if row["system"] == "ours" and hash_of(row) > 0.33 else row for row in rows]
    verdict = judged(unmarked, score="judge")
    n = sum(row["judge"] is None for row in unmarked)
    assert not verdict.promote and verdict.evidence["n_without_score"] == n > N
    assert verdict.why.endswith(f"; {n} of the challenger's answers have no score (judge) and count as 0")
    nobody = [row | {"judge": None} if row["video_id"] < "v0010" else row for row in rows]
    assert judged(nobody, score="judge").promote and judged(nobody, score="judge").evidence["n_without_score"] == 0


def hash_of(row: Facts) -> float:
    return float(np.random.default_rng([int(row["video_id"][1:]), row["seed"], len(row["style"])]).random())


# What was seen in training


def seen(*contents: str, is_all: bool = True) -> Seen:
    return Seen(frozenset(contents), is_all)


ASKED = {"question_id": "q1", "video_id": "v0001", "question": "What?", "references": ["red"]}
TESTED = {f"span{i}": f"content{i}" for i in range(5)}


@pytest.mark.parametrize(
    ("trained", "champion", "fault"),
    [
        (seen("x"), seen("y"), None),
        (seen("x", "content3", "content1"), None, "the challenger was trained or validated on 2 of 5 test videos: span1, span3"),
        (seen(*TESTED.values()), None, "5 of 5 test videos: span0, span1, span2 and 2 more"),
        (seen("x"), seen("content0"), "the champion was trained or validated on 1 of 5 test videos: span0"),
        (seen("x"), seen("content0", is_all=False), "the champion was trained or validated on 1 of 5"),
        (seen("x", is_all=False), None, "cannot tell what the challenger has seen"),
        (seen("x"), seen(is_all=False), None),  # if it has seen them, so much the better for the champion
    ],
)
def test_a_test_video_that_was_trained_on_tests_nothing(trained: Seen, champion: Seen | None, fault: str | None) -> None:
    found, faults = gate.not_seen(TESTED, trained, champion=champion)
    assert found["n_videos"] == 5
    assert not faults if fault is None else fault in "".join(faults)
    assert ("champion" in found) == (champion is not None)


def test_a_span_is_the_video_it_was_cut_from(tmp_path: Path) -> None:
    """By the files' contents: of ids alone it could not be told."""
    root, hashes = str(tmp_path), {name: (name * 64)[:64] for name in "abcd"}
    spans = {"a": (0.0, 1.5), "b": (None, None), "c": (None, 2.0), "d": (1.0, 2.0)}
    ids = {name: video_id(hashes[name], spans[name]) for name in "abcd"}
    fill(Table(root, "files"), [{"uri": f"{name}.mp4", "version": "1", "n_bytes": 1, "content": hashes[name]} for name in "abc"])
    fill(
        Table(root, "videos"),
        [
            {"video_id": ids[name], "version": "v", "uri": f"{name}.mp4", "start_s": spans[name][0], "end_s": spans[name][1],
             "duration_s": 2.0, "split": "train", "span_kind": None}
            for name in "abcd"
        ],
    )  # fmt: skip
    found = contents_of(root, [*ids.values(), "unknown"])
    assert found == {ids[name]: short_id(hashes[name]) for name in "abc"} | {ids["d"]: ids["d"], "unknown": "unknown"}


def test_a_training_writes_down_what_it_sees_with_what_it_began_from(tmp_path: Path) -> None:
    root, recipe = str(tmp_path / "data"), Recipe()
    splits = {"v1": "train", "v2": "validation", "v3": "test"}
    blank: Facts = {"jpegs": [b""], "timestamps_s": [0.0], "duration_s": 1.0, "targets": []}
    examples = write_examples(recipe, root, [{"video_id": name, "version": "v", "split": split, **blank} for name, split in splits.items()])
    write_seen(f"{root}/h1", examples, start_from=None)
    assert read_seen(f"{root}/h1") == seen("v1", "v2")
    write_new(f"{root}/h0/{SEEN}", json.dumps({"contents": ["v0", "v1"], "is_all": True}).encode())
    write_seen(f"{root}/h2", examples, start_from=f"{root}/h0")
    assert read_seen(f"{root}/h2") == seen("v0", "v1", "v2")
    write_seen(f"{root}/h3", examples, start_from=f"{root}/imported")
    assert read_seen(f"{root}/h3") == seen("v1", "v2", is_all=False) and read_seen(f"{root}/imported") == seen(is_all=False)
    write_seen(f"{root}/h3", examples, start_from=None)  # a training that goes on
    assert not read_seen(f"{root}/h3").is_all


# With tables: the report of a recipe, and who is champion


def a_config(vlm: str = "toy") -> bytes:
    return json.dumps({"hypernetwork": {"r": 3}, "weights_sha256": f"weights for {vlm}", "metadata": {"vlm": {"model": vlm}}}).encode()


@pytest.fixture
def where(tmp_path: Path) -> Where:
    return Where(data=str(tmp_path / "data"))


def a_recipe(**settings: Any) -> Recipe:
    answer = AnswerSettings(systems=("ours", "caption"))
    plain = {"vlm": VLMSettings(model="toy"), "answer": answer, "evaluation": EvaluationSettings(n_draws=1000)}
    return Recipe(**plain | settings)


def made_report(recipe: Recipe, where: Where, rows: list[Facts], *, trained_on: Sequence[str] = ("v9998", "v9999")) -> Output:
    """Tables of one row as far as the report's name depends on them, two trained hypernetworks, and a report with these rows."""
    blank: Facts = {"jpegs": [b""], "timestamps_s": [0.0], "duration_s": 1.0, "targets": []}
    examples = write_examples(recipe, where.data, [{"video_id": "v9999", "version": "v", "split": "train", **blank}])
    frames = frames_set(recipe, where.data)
    fill(frames, [], made=frames_made(recipe))
    fill(Table(where.data, "videos"), [])
    fill(Table(where.data, "questions"), [ASKED])
    for one in recipe.of_seeds():
        output = fill_hypernetwork(one, examples, {"config.json": a_config()})
        write_new(f"{output.folder}/{SEEN}", json.dumps({"contents": sorted(trained_on), "is_all": True}).encode())
        fill(answers_set(one, where.data), [], made=answers_made(one, where.data))
    there, made_from, _ = report.output_of(recipe, where)
    there.begin(made_from)
    write_new(f"{there.folder}/rows.parquet", to_parquet(pa.Table.from_pylist(rows, SCHEMA)))
    there.complete()
    return there


def a_champion(where: Where, *, weights: str = "others", trained_on: Sequence[str] = ("v9997",), vlm: str = "toy") -> promotions.Standing:
    config = json.loads(a_config(vlm)) | {"weights_sha256": weights}
    write_new(f"{where.data}/hypernetworks/before/config.json", json.dumps(config).encode())
    write_new(f"{where.data}/hypernetworks/before/{SEEN}", json.dumps({"contents": sorted(trained_on), "is_all": True}).encode())
    promotions.promote(where.data, "before", expected=0, verdict={"why": "by hand"})
    return promotions.standing(where.data, "toy")


def test_a_recipe_is_asked_for_the_systems_that_the_gate_compares(where: Where) -> None:
    recipe = a_recipe()
    assert gate.asked(recipe, None).answer == recipe.answer.model_copy(update={"systems": ("ours", "caption", "base", "blind")})
    champion = a_champion(where).champion
    asked = gate.asked(recipe, champion).answer
    assert asked.systems == ("ours", "caption", "base", "blind", "champion") and asked.champion == f"{where.data}/hypernetworks/before"
    with pytest.raises(BadInputError, match=r"promotion\.score: got judge, and the recipe has no judge"):
        gate.asked(a_recipe(promotion=PromotionSettings(score="judge")), None)
    gate.asked(a_recipe(promotion=PromotionSettings(score="judge"), judge=JudgeSettings(model="judge")), None)


def test_a_verdict_says_what_it_rests_on(where: Where) -> None:
    seen = a_champion(where)
    recipe = gate.asked(a_recipe().model_copy(update={"evaluation": EvaluationSettings(seeds=(7, 3), n_draws=1000)}), seen.champion)
    there = made_report(recipe, where, rows_with())
    verdict = gate.judge(recipe, where, seen)
    assert verdict.promote, verdict.why
    challenger = gate.challenger(recipe, where)
    assert verdict.evidence["report"] == there.name.split("/")[1] and verdict.evidence["champion"]["hypernetwork"] == "before"
    assert verdict.evidence["seeds"] == [7] and all(one["n_seeds"] == 1 for one in verdict.evidence["against_champion"].values())
    assert verdict.evidence["yardstick"] == gate.yardstick(a_recipe(), where)
    assert verdict.evidence["challenger"]["hypernetwork"] == challenger.name.split("/")[1]
    assert challenger.name == trained_hypernetwork(recipe.of_seeds()[0], where.data).name
    assert verdict.evidence["unseen"] == {
        "n_videos": N, "challenger": {"n_seen": 0, "is_known": True}, "champion": {"n_seen": 0, "is_known": True},
    }  # fmt: skip
    promotions.promote(where.data, challenger.name.split("/")[1], expected=1, verdict=verdict.plain(), by="run-1")
    assert promotions.history(where.data)[-1]["verdict"] == verdict.plain()
    assert gate.judge(recipe, where, promotions.standing(where.data, "toy")).why == "it is the champion already"
    promotions.rollback(where.data, "toy")
    verdict = gate.judge(recipe, where, promotions.standing(where.data, "toy"))
    assert not verdict.promote and verdict.why == "it was champion and rolled back from: promote it by hand"


def test_of_several_seeds_the_one_that_is_promoted_is_judged(where: Where) -> None:
    """The first is worse, the other better than the champion by as much: of all together nothing would be said against it."""
    seen = a_champion(where)
    change = {7: worse_by(0.2), 3: lambda row, rng: 1.0 if rng.random() < 0.8 else float(row["token_f1"])}
    rows = rows_with(lambda row, rng: change[row["seed"]](row, rng))
    recipe = gate.asked(a_recipe().model_copy(update={"evaluation": EvaluationSettings(seeds=(7, 3), n_draws=1000)}), seen.champion)
    made_report(recipe, where, rows)
    assert judged(rows).evidence["against_champion"]["toy_qa"]["value"] > -0.04, "over both"
    verdict = gate.judge(recipe, where, seen)
    assert not verdict.promote and "not shown to be as good as the champion within 0.05: worse" in verdict.why


@pytest.mark.parametrize("who", ["challenger", "champion"])
def test_what_was_trained_on_a_test_video_is_kept_out(where: Where, who: str) -> None:
    seen = a_champion(where, trained_on=("v0003",) if who == "champion" else ())
    recipe = gate.asked(a_recipe(), seen.champion)
    made_report(recipe, where, rows_with(seeds=(42,)), trained_on=("v0003",) if who == "challenger" else ())
    verdict = gate.judge(recipe, where, seen)
    assert not verdict.promote and verdict.why == f"the {who} was trained or validated on 1 of 200 test videos: v0003"
    assert verdict.evidence["against_champion"]["toy_qa"]["holds"], "all is found out nevertheless"


def test_a_verdict_is_measured_by_the_gate_who_answers_and_what_is_asked(where: Where) -> None:
    questions, plain = Table(where.data, "questions"), a_recipe()
    one = {"question_id": "q1", "video_id": "v1", "question": "What?", "references": ["red"]}
    fill(questions, [one])
    before = gate.yardstick(plain, where)
    champion = a_champion(where).champion
    how = a_recipe(retraining=RetrainingSettings(min_new_videos=7))
    judge = plain.model_copy(update={"judge": JudgeSettings(model="judge")})
    for same in (gate.asked(plain, None), gate.asked(plain, champion), how, judge):
        assert gate.yardstick(same, where) == before
    by_judge = {"promotion": PromotionSettings(score="judge")}
    others = [
        a_recipe(promotion=PromotionSettings(max_family_fall=0.2)),
        plain.model_copy(update={"answer": AnswerSettings(systems=("ours", "caption", "merged"))}),
        plain.model_copy(update={"answer": AnswerSettings(systems=("ours", "caption"), max_new_tokens=65)}),
        judge.model_copy(update=by_judge),
        plain.model_copy(update={"judge": JudgeSettings(model="another")} | by_judge),
    ]
    found = {gate.yardstick(other, where) for other in others}
    fill(questions, [one, one | {"question_id": "q2"}])
    found.add(gate.yardstick(plain, where))
    fill(questions, [one | {"version": "of other references"}])
    found.add(gate.yardstick(plain, where))
    assert len(found | {before}) == 8


def a_vlm(folder: Path, weights: bytes = b"weights") -> str:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    return str(folder)


def test_a_champion_of_other_vlm_weights_cannot_be_challenged(where: Where, tmp_path: Path) -> None:
    """A VLM that moved is the same one; one of other weights is not, nor one that cannot be looked at."""
    before = a_vlm(tmp_path / "before" / "toy")
    champion = a_champion(where, vlm=before).champion
    fill(Table(where.data, "questions"), [ASKED])
    gate.check_champion(a_recipe(), where, None)
    for same in (before, a_vlm(tmp_path / "moved" / "toy")):
        gate.check_champion(a_recipe(vlm=VLMSettings(model=same, dtype="bfloat16")), where, champion)
    others = [{"model": a_vlm(tmp_path / "other" / "toy", b"others")}, {"model": before, "revision": "abc"}, {"model": "/nowhere/toy"}]
    for other in others:
        with pytest.raises(
            BadInputError, match=r"recipe: vlm: .*has other weights.*before/toy', for which the champion before was trained"
        ):
            gate.check_champion(a_recipe(vlm=VLMSettings(**other)), where, champion)


def test_a_challenger_that_nothing_could_let_in_is_not_begun(where: Where) -> None:
    """The champion has seen the test by now; or does not say what it has seen, and the challenger is to begin from it."""
    fill(Table(where.data, "questions"), [ASKED, ASKED | {"question_id": "q2", "video_id": "v0002"}])  # of a video that is not there
    fill(Table(where.data, "videos"), [{"video_id": "v0001", "version": "v", "uri": "1.mp4", "split": "test"}])
    champion = a_champion(where, trained_on=("v0001", "v0002")).champion
    assert champion is not None
    with pytest.raises(BadInputError, match=r"champion before: it was trained or validated on 1 of 1 test videos \(v0001\).*by hand"):
        gate.check_champion(a_recipe(), where, champion)
    Path(champion.folder, SEEN).unlink()
    gate.check_champion(a_recipe(), where, champion)
    with pytest.raises(BadInputError, match=r"retraining\.start: got champion, and before does not say.*afresh"):
        gate.check_champion(a_recipe(retraining=RetrainingSettings(start="champion")), where, champion)


def test_without_a_report_there_is_no_verdict(where: Where) -> None:
    recipe = gate.asked(a_recipe(), None)
    with pytest.raises(BadInputError, match="run `video2lora"):
        gate.judge(recipe, where, promotions.standing(where.data, "toy"))
