"""`evaluate`: what it refuses, which steps it takes, and (slow) two seeds trained, answered and reported, once."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from made_examples import QUESTIONS, a_row, fill, write_examples, write_vlm
from made_questions import write_hypernetwork

from infra.config import Recipe, Where, load_recipe
from infra.errors import BadInputError
from infra.objects import read_json
from infra.sets import REPORTS, answers_set, frames_made, frames_set, hypernetworks_of, outputs_of, sets_of
from infra.steps import Step, trainings
from infra.storage import Table
from training import evaluate
from training.settings import check
from video2lora.pretrained import load_vlm

RECIPE = """
vlm: {model: VLM}
frames: {sampling: {policy: uniform, n_frames: 3}, longest_edge_px: 31}
hypernetwork: {r: 2, n_latents: 3, n_blocks: 1, d_latent: 16, n_heads: 2, n_kv_heads: 1, d_head: 8, normalise_features: true}
training: {n_steps: 3, videos_per_step: 2, targets_per_video: 2, lr: 1.0e-2, checkpoint_every: 3, validate_every: 3}
answer: {max_new_tokens: 5, systems: [base, ours, merged, other_video, blind]}
evaluation: {seeds: [7, 3]}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("VLM", str(tmp_path / "vlm")))
    return load_recipe(str(tmp_path / "recipe.yaml"))


def write_tables(recipe: Recipe, data: str, *names: str) -> None:
    """Those of these names, of sixteen videos; four are of the test split."""
    rows = [a_row(i, split=("train", "train", "validation", "test")[i % 4]) for i in range(16)]
    tests = [row for row in rows if row["split"] == "test"]
    if "videos" in names:
        fill(Table(data, "videos"), [{"video_id": row["video_id"], "uri": "u", "split": "test"} for row in tests])
    if "questions" in names:
        asked = [(row, k) for row in tests for k in range(2)]
        facts = {"benchmark": "made", "style": "colour", "task": "question"}
        fill(
            Table(data, "questions"),
            [
                {
                    "question_id": f"{row['video_id']}-{k}", "video_id": row["video_id"], "question": QUESTIONS[k],
                    "references": [row["targets"][k]["target"]], **facts,
                }
                for row, k in asked
            ],
        )  # fmt: skip
    if "frames" in names:
        sizes = {"sampling": "uniform-3", "height_px": 29, "width_px": 31}
        frames = [{name: row[name] for name in ("video_id", "jpegs", "timestamps_s", "duration_s")} | sizes for row in tests]
        fill(frames_set(recipe, data), frames, made=frames_made(recipe))
    if "examples" in names:
        write_examples(recipe, data, rows)


@pytest.mark.parametrize(
    ("there", "says"),
    [
        ((), r"videos is not there or not complete: run `video2lora manifest SOURCE` or `video2lora benchmark NAME` first"),
        (("videos",), r"questions is not there or not complete: run `video2lora manifest SOURCE` or"),
        (("videos", "questions"), r"frames/.* is not there or not complete: run `video2lora frames` first"),
        (("videos", "questions", "frames"), r"run `video2lora targets` first"),
    ],
)
def test_what_is_missing_is_named_with_its_command(recipe: Recipe, tmp_path: Path, there: tuple[str, ...], says: str) -> None:
    data = str(tmp_path / "data")
    write_tables(recipe, data, *there)
    with pytest.raises(BadInputError, match=says):
        evaluate.run(recipe, Where(data=data))
    assert not Path(data, "hypernetworks").exists() and not Path(data, "answers").exists()


@pytest.mark.parametrize(
    ("answer_settings", "hypernetwork_settings", "says"),
    [
        ({"systems": ("ours", "champion")}, {}, "answer.champion names no hypernetwork"),
        ({"systems": ("ours", "champion"), "champion": "/no/such/folder"}, {}, "/no/such/folder holds no hypernetwork"),
        ({"systems": ("ours", "static")}, {"static_adapter": False}, "`static` needs hypernetwork.static_adapter"),
        ({"hypernetwork": "/no/such/folder"}, {}, "recipe: answer.hypernetwork: /no/such/folder holds no hypernetwork"),
        ({"split": "validation"}, {}, "no question about a video of split 'validation'"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_the_trainings(
    recipe: Recipe, tmp_path: Path, answer_settings: dict[str, Any], hypernetwork_settings: dict[str, Any], says: str
) -> None:
    answer = recipe.answer.model_copy(update=answer_settings)
    recipe = recipe.model_copy(update={"answer": answer, "hypernetwork": recipe.hypernetwork.model_copy(update=hypernetwork_settings)})
    data = str(tmp_path / "data")
    write_tables(recipe, data, "videos", "questions", "frames", "examples")
    with pytest.raises(BadInputError, match=says):
        evaluate.run(recipe, Where(data=data))
    assert not Path(data, "hypernetworks").exists()


def test_each_seed_is_a_step_that_says_so(recipe: Recipe) -> None:
    steps = trainings(recipe.of_seeds(), recipe)
    assert [(step.name, step.title, step.recipe.training.seed) for step in steps] == [
        ("train", "train, seed 7", 7),
        ("train", "train, seed 3", 3),
    ]
    demo = load_recipe("demo")
    assert trainings(demo.of_seeds(), demo) == [Step("train", demo, "train")]


def test_a_hypernetwork_that_is_named_is_evaluated_without_training_anything(
    recipe: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As an imported one is: there are neither targets nor examples; its answers are those it gives as champion."""
    write_vlm(tmp_path / "vlm")
    folder = write_hypernetwork(load_vlm(str(tmp_path / "vlm")), tmp_path / "imported", seed=5)
    settings = {"hypernetwork": str(folder), "champion": str(folder), "systems": ("base", "ours", "champion", "blind")}
    recipe = recipe.model_copy(
        update={"answer": recipe.answer.model_copy(update=settings), "evaluation": recipe.evaluation.model_copy(update={"seeds": None})}
    )
    where = Where(data=str(tmp_path / "data"))
    write_tables(recipe, where.data, "videos", "questions", "frames")
    evaluate.run(recipe, where)
    assert not Path(where.data, "hypernetworks").exists()
    rows = {(row["question_id"], row["system"]): row["answer"] for row in answers_set(recipe, where.data).read().to_pylist()}
    assert len(rows) == 4 * 8
    assert all(rows[question, "ours"] == rows[question, "champion"] for question, _ in rows)
    assert any(rows[question, "ours"] != rows[question, "blind"] for question, _ in rows)
    (report,) = outputs_of(where.data, REPORTS)
    page, said = Path(report.folder, "report.html").read_text(), "".join(capfd.readouterr().out.split())
    assert f"frozen; hypernetwork {folder}." in page and f";hypernetwork{folder}" in said and "trainingseeds" not in said
    claims = read_json(f"{report.folder}/report.json")["overall"]["claims"]["token_f1"]
    assert [(one["system"], one["against"]) for one in claims] == [("ours", "base"), ("champion", "base"), ("ours", "champion")]
    moved = shutil.copytree(folder, tmp_path / "moved")
    there = recipe.model_copy(update={"answer": recipe.answer.model_copy(update={"hypernetwork": str(moved)})})
    assert answers_set(there, where.data).is_complete(), "it counts by what it is"
    with pytest.raises(BadInputError, match=r"answer\.hypernetwork: got .* leave it out to train"):
        check(recipe, where)


@pytest.mark.slow
def test_seeds_are_trained_once_answered_and_reported(recipe: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_vlm(tmp_path / "vlm")
    write_tables(recipe, str(tmp_path / "data"), "videos", "questions", "frames", "examples")
    where = Where(data=str(tmp_path / "data"), n_cpus=2, training_workers=1)
    evaluate.run(recipe, where)
    said = capfd.readouterr()
    for line in ("[1/4] train, seed 7", "[2/4] train, seed 3", "[3/4] answer", "[4/4] report"):
        assert line in said.err
    assert "what there is now" in said.out
    assert all(one.is_complete() for one in hypernetworks_of(where.data)) and len(hypernetworks_of(where.data)) == 2
    tables = [answers_set(one, where.data) for one in recipe.of_seeds()]
    assert {table.set for table in tables} == {table.set for table, _ in sets_of(where.data, "answers")} and tables[0] != tables[1]
    assert [table.n_rows() for table in tables] == [4 * 2 * 5] * 2
    made = {path: path.stat().st_mtime_ns for path in Path(where.data).rglob("*") if path.suffix in (".parquet", ".safetensors", ".html")}
    assert any(path.suffix == ".html" for path in made)

    evaluate.run(recipe, where)
    said = capfd.readouterr()
    assert "[1/2] answer" in said.err and "[2/2] report" in said.err and "train, seed" not in said.err
    assert made == {path: path.stat().st_mtime_ns for path in made}, "the second run wrote something anew"
    fewer = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"seeds": (3,)})})
    assert evaluate.untrained(fewer, where) == []
