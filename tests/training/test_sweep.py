"""A sweep: what it refuses, its table's numbers against numpy and scipy, and (slow) two trainings that are done once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from made_examples import QUESTIONS, a_row, fill, write_examples, write_vlm

from infra.config import Where, load_recipe, read_yaml
from infra.errors import BadInputError, StageFailedError
from infra.sets import examples_set, frames_made, frames_set, hypernetwork_output, hypernetworks_of, made_targets
from infra.storage import Table
from teacher.prompts import QUESTION, load_prompt_set
from training import measures, sweep, sweep_table
from training.sweep_measures import Outcome, numbers

RECIPE = """
vlm: {model: VLM}
frames: {sampling: {policy: uniform, n_frames: 3}, longest_edge_px: 31}
hypernetwork: {r: 2, n_latents: 3, n_blocks: 1, d_latent: 16, n_heads: 2, n_kv_heads: 1, d_head: 8, normalise_features: true}
training: {n_steps: 3, videos_per_step: 2, targets_per_video: 2, lr: 1.0e-2, checkpoint_every: 3, validate_every: 3}
answer: {max_new_tokens: 5}
"""
N_VIDEOS, N_EACH = 37, 3


def written(folder: Path, text: str) -> str:
    (folder / "base.yaml").write_text(RECIPE.replace("VLM", str(folder / "vlm")))
    (folder / "mine.yaml").write_text(f"base: {folder / 'base.yaml'}\n{text}")
    return str(folder / "mine.yaml")


def runs_of(folder: Path, text: str) -> list[sweep.Run]:
    return sweep.runs_of(read_yaml(sweep.Sweep, written(folder, text), kind="sweep"), where="sweep mine")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("changes: {a: {hypernetwork.rr: 3}}", r"changes\.a: hypernetwork\.rr: Extra inputs are not permitted \(got 3\)"),
        ("changes: {a: {hypernetwork.r: '3'}}", r"changes\.a: hypernetwork\.r: Input should be a valid integer \(got '3'\)"),
        ("changes: {a: {training.seed: 3}}", r"changes\.a\.training\.seed: the seeds set it"),
        ("changes: {a: {vlm.model: tiny}}", r"changes\.a\.vlm\.model: expected a setting of hypernetwork or training"),
        ("changes: {a: {frames.sampling.n_frames: 2}}", r"changes\.a\.frames\.sampling\.n_frames: expected a setting"),
        ("changes: {a: {answer.systems: [ours]}}", r"changes\.a\.answer\.systems: expected a setting of hypernetwork or training"),
        ("changes: {a: {hypernetwork.r: 2}}", r"changes\.a: makes the same hypernetwork as base"),
        ("changes: {a: {training.zero_stage: 3}}", r"changes\.a: makes the same hypernetwork as base"),
        ("changes: {a: {hypernetwork.r: 3}, b: {hypernetwork.r: 3}}", r"changes\.b: makes the same hypernetwork as a"),
        ("changes: {base: {hypernetwork.r: 3}}", r"changes\.base: is the row without a change"),
        ("changes: {}", r"changes: Dictionary should have at least 1 item"),
        ("changes: {a: {hypernetwork.r: 3}}\nseeds: [1, 1]", r"seeds: .*expected each seed once"),
        ("changes: {a: {hypernetwork.r: 3}}\nrepeats: 2", r"repeats: Extra inputs"),
    ],
)
def test_a_wrong_sweep_is_refused_by_its_path(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(BadInputError, match=says):
        runs_of(tmp_path, text)


def test_each_change_and_seed_is_a_recipe_and_the_vlm_alone_is_asked_once(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, "seeds: [7, 3]\nchanges: {a: {hypernetwork.r: 3, training.lr: 0.5}, b: {training.tasks: [question]}}")
    assert [(one.change, one.seed) for one in runs] == [("base", 7), ("a", 7), ("b", 7), ("base", 3), ("a", 3), ("b", 3)]
    assert [one.recipe.training.seed for one in runs] == [7, 7, 7, 3, 3, 3]
    assert [one.recipe.hypernetwork.r for one in runs] == [2, 3, 2] * 2 and runs[1].recipe.training.lr == 0.5
    assert runs[2].recipe.training.tasks == ("question",)
    assert [set(one.recipe.answer.systems) for one in runs] == [{"base", "blind", "ours", "other_video"}] + [{"ours", "other_video"}] * 5
    assert runs[0].settings == {} and runs[4].settings == {"hypernetwork.r": 3, "training.lr": 0.5}


def test_the_shipped_sweep_is_of_recipes(tmp_path: Path) -> None:
    runs = sweep.runs_of(read_yaml(sweep.Sweep, "ablations", kind="sweep"), where="sweep ablations")
    assert len({one.change for one in runs}) == 17 and len(runs) == 34
    assert load_recipe("ablation").teacher.logprobs > 0, "rows of KL need them"


def scored(rng: np.random.Generator, shares: dict[str, float]) -> tuple[measures.Scored, ...]:
    """Answers that are right by chance; questions of a video agree more than others."""
    questions, answers = [], []
    for video in range(N_VIDEOS):
        for k in range(N_EACH):
            questions.append({"question_id": f"{video}-{k}", "video_id": f"{video}", "style": "s", "references": ["yes"]})
    for system, share in shares.items():
        ease = rng.normal(0, 0.2, N_VIDEOS)
        for i, one in enumerate(questions):
            text = "yes" if rng.random() < share + ease[i // N_EACH] else "no"
            cost = {"n_input_tokens": 1, "n_visual_tokens": 0, "ttft_s": None}
            answers.append({"question_id": one["question_id"], "system": system, "answer": text, **cost})
    return tuple(measures.score(answers, questions, contents={f"{video}": f"{video}" for video in range(N_VIDEOS)}))


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    rng, found = np.random.default_rng(5), []
    for seed in (7, 3, 11):
        for change, share in (("base", 0.6), ("a", 0.75), ("b", 0.5)):
            shares = {"ours": share, "other_video": 0.3} | ({"base": 0.95, "blind": 0.35} if (seed, change) == (7, "base") else {})
            settings = {} if change == "base" else {"training.lr": share}
            if (seed, change) == (11, "b"):
                found.append(Outcome(change, settings, seed, failure="train: stopped | at step 2"))
            else:
                seconds = {"loss": 6.0 + seed, "data": 1.0, "validation": 5.0}
                found.append(Outcome(change, settings, seed, scored=scored(rng, shares), n_parameters=17, n_steps=100, seconds=seconds))
    return found


@pytest.fixture(scope="module")
def found(outcomes: list[Outcome]) -> dict[str, Any]:
    return {"sweep": "mine", "base": "demo", "seeds": [7, 3, 11], **numbers(outcomes)}


def by_video(outcome: Outcome, system: str) -> np.ndarray:
    """Mean exact match of each video: every video has as many questions."""
    return np.array([one.exact_match for one in outcome.scored if one.system == system]).reshape(N_VIDEOS, N_EACH).mean(1)


def test_means_differences_and_gaps_are_those_of_the_answers(outcomes: list[Outcome], found: dict[str, Any]) -> None:
    base, a, b = found["rows"]
    ours = {(one.change, one.seed): by_video(one, "ours") for one in outcomes if one.scored}
    assert a["exact_match"]["ours"]["value"] == pytest.approx(np.mean([ours["a", seed] for seed in (7, 3, 11)]))
    assert a["exact_match"]["difference"]["value"] == pytest.approx(np.mean([ours["a", s] - ours["base", s] for s in (7, 3, 11)]))
    assert b["exact_match"]["difference"]["value"] == pytest.approx(np.mean([ours["b", s] - ours["base", s] for s in (7, 3)]))
    assert b["seeds"] == [7, 3] and b["failed"] == [{"seed": 11, "why": "train: stopped | at step 2"}]
    vlm, blind = by_video(outcomes[0], "base").mean(), by_video(outcomes[0], "blind").mean()
    gap = (np.mean([ours["base", s] for s in (7, 3, 11)]) - blind) / (vlm - blind)
    assert base["exact_match"]["gap_closed"]["value"] == pytest.approx(gap) and "difference" not in base["exact_match"]
    assert (b["train_s"], b["step_s"], b["n_parameters"]) == (pytest.approx(17.0), pytest.approx(0.12), 17)
    assert base["token_f1"]["ours"]["value"] == base["exact_match"]["ours"]["value"], "of one-word answers"


def test_with_one_seed_the_interval_is_scipys_over_videos(outcomes: list[Outcome]) -> None:
    one = outcomes[:2]
    a = numbers(one)["rows"][1]["exact_match"]
    ours, base = by_video(one[1], "ours"), by_video(one[0], "ours")
    for got, values in ((a["ours"], ours), (a["difference"], ours - base)):
        known = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(1))
        assert (got["low"], got["high"]) == pytest.approx(tuple(known.confidence_interval), abs=0.01)


def test_seeds_are_drawn_too_and_with_them_the_videos(outcomes: list[Outcome], found: dict[str, Any]) -> None:
    """Against a plain loop: draw seeds, draw videos, once for all seeds."""
    got = found["rows"][1]["exact_match"]["difference"]
    pairs = {(one.change, one.seed): by_video(one, "ours") for one in outcomes if one.change in ("base", "a")}
    differences = np.array([pairs["a", seed] - pairs["base", seed] for seed in (7, 3, 11)])
    rng, drawn = np.random.default_rng(1), []
    for _ in range(5000):
        seeds, videos = rng.integers(0, 3, 3), rng.integers(0, N_VIDEOS, N_VIDEOS)
        drawn.append(differences[seeds][:, videos].mean())
    assert (got["low"], got["high"]) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])), abs=0.01)
    one_seed = np.array([differences.mean(0)[rng.integers(0, N_VIDEOS, N_VIDEOS)].mean() for _ in range(5000)])
    assert got["high"] - got["low"] > 1.1 * np.ptp(np.percentile(one_seed, [2.5, 97.5])), "seeds differ, and that counts"


def test_only_questions_that_all_answered_count(outcomes: list[Outcome]) -> None:
    fewer = [one for one in outcomes if one.seed == 7]
    without = tuple(one for one in fewer[2].scored if not one.question_id.startswith("4-") and one.question_id != "5-0")
    fewer[2] = Outcome("b", fewer[2].settings, 7, scored=without, n_parameters=17, n_steps=100)
    found = numbers(fewer)
    assert (found["n_questions"], found["n_videos"]) == (N_VIDEOS * N_EACH - 4, N_VIDEOS - 1)
    right = [one.exact_match for one in fewer[1].scored if one.system == "ours" and one.question_id in {two.question_id for two in without}]
    assert found["rows"][1]["exact_match"]["ours"]["value"] == pytest.approx(np.mean(right))
    assert found["rows"][2]["train_s"] is None


def test_a_base_that_failed_leaves_the_rows_without_gap_and_difference(outcomes: list[Outcome]) -> None:
    failed = Outcome("base", {}, 7, failure="no memory")
    base, a = (row["exact_match"] for row in numbers([failed, outcomes[1]])["rows"])
    assert a["ours"]["value"] == pytest.approx(by_video(outcomes[1], "ours").mean())
    assert a["gap_closed"]["value"] is a["difference"]["value"] is base["ours"]["value"] is None
    assert numbers([failed])["n_questions"] == 0


def test_the_table_names_the_settings_and_the_failures(found: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    page = sweep_table.as_markdown(found)
    header, rule, *rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) == 3 and header.count("|") == rule.count("|") == rows[1].count("|")
    a = found["rows"][1]["exact_match"]["difference"]
    assert "| a | training.lr: 0.75 | 7, 3, 11 |" in rows[1] and f"{a['value']:+.3f} [{a['low']:+.3f}, {a['high']:+.3f}]" in rows[1]
    assert "- b, seed 11, failed: train: stopped | at step 2" in page
    assert json.loads(sweep_table.as_json(found)) == found
    sweep_table.print_table(found)
    assert "training.lr: 0.75" in (printed := capsys.readouterr().out) and f"[{a['low']:+.3f}, " in printed


@pytest.fixture
def where(tmp_path: Path) -> Where:
    """Examples, and frames and questions of four test videos."""
    recipe, data = load_recipe(written(tmp_path, "changes: {}").replace("mine", "base")), str(tmp_path / "data")
    rows = [a_row(i, split=("train", "train", "validation", "test")[i % 4]) for i in range(16)]
    write_examples(recipe, data, rows)
    tests = [row for row in rows if row["split"] == "test"]
    fill(Table(data, "videos"), [{"video_id": row["video_id"], "uri": "u", "split": "test"} for row in tests])
    sizes = {"sampling": "uniform-3", "height_px": 29, "width_px": 31}
    frames = [{name: row[name] for name in ("video_id", "jpegs", "timestamps_s", "duration_s")} | sizes for row in tests]
    fill(frames_set(recipe, data), frames, made=frames_made(recipe))
    fill(Table(data, "questions"), [a_question(row, k) for row in tests for k in range(2)])
    return Where(data=data, n_cpus=2, training_workers=1)


def a_question(row: dict[str, Any], k: int) -> dict[str, Any]:
    target = row["targets"][k]
    asked = {"question": QUESTIONS[k], "references": [target["target"]], "benchmark": "made", "style": "colour"}
    return {"question_id": f"{row['video_id']}-{k}", "video_id": row["video_id"], **asked}


def test_a_sweep_without_examples_begins_nothing(tmp_path: Path) -> None:
    file = written(tmp_path, "changes: {a: {hypernetwork.r: 3}}")
    with pytest.raises(BadInputError, match="run `video2lora targets` first"):
        sweep.run(file, Where(data=str(tmp_path / "data")))
    assert not (tmp_path / "data").exists()


def test_the_sweep_that_ships_trains_on_tasks_that_its_teacher_has() -> None:
    for run in sweep.runs_of(read_yaml(sweep.Sweep, "ablations", kind="sweep"), where="sweep ablations"):
        groups = load_prompt_set(run.recipe.teacher.prompts).groups.values()
        assert set(run.recipe.training.tasks or ()) <= {QUESTION, *(group.task for group in groups)}, run.change


@pytest.mark.slow
def test_a_sweep_trains_each_recipe_once_and_tells_which_failed(where: Where, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_vlm(tmp_path / "vlm")
    text = "seeds: [7]\nchanges:\n  a: {hypernetwork.read_every: 3}"
    file = written(tmp_path, f"{text}\n  b: {{hypernetwork.r: 3}}")
    recipe = runs_of(tmp_path, f"{text}\n  b: {{hypernetwork.r: 3}}")[2].recipe
    taken = hypernetwork_output(recipe, examples_set(recipe, made_targets(recipe, where.data)))
    taken.begin({"stage": "something else"})
    capsys.readouterr()  # what DeepSpeed says when transformers imports it
    with pytest.raises(StageFailedError, match="sweep mine: 1 of 3 trainings failed"):
        sweep.run(file, where, as_json=True)
    first = json.loads(capsys.readouterr().out)
    base, a, b = first["rows"]
    assert (first["n_questions"], first["n_videos"]) == (8, 4)
    assert f"{taken.folder} was made from something else" in b["failed"][0]["why"] and b["seeds"] == []
    assert a["seeds"] == base["seeds"] == [7] and a["settings"] == {"hypernetwork.read_every": 3}
    assert a["n_parameters"] == base["n_parameters"] > 0 and a["exact_match"]["difference"]["value"] is not None
    assert a["train_s"] > 3 * a["step_s"] > 0
    made = {path: path.stat().st_mtime_ns for path in Path(where.data).rglob("*.safetensors")}
    assert len([one for one in hypernetworks_of(where.data) if one.is_complete()]) == 2

    written(tmp_path, text)
    sweep.run(file, where, as_json=True)
    assert json.loads(capsys.readouterr().out)["rows"] == [base, a], "from what is there, without Ray"
    assert made == {path: path.stat().st_mtime_ns for path in Path(where.data).rglob("*.safetensors")}
    assert {path.name for path in Path(where.data, "sweeps").iterdir()} == {"mine.json", "mine.md"}
    assert json.loads(Path(where.data, "sweeps", "mine.json").read_text())["rows"] == [base, a]
