"""What a run would make and cost: as the stages themselves have it where they can tell, reckoned where they cannot yet."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra import jobs, sets
from infra.config import Recipe, Where, load_recipe
from infra.stage import Order
from infra.storage import Table
from infra.teacher_cost import teacher_cost
from tests.infra.made_tables import IDS, content, make_frames, make_sources, row, write

Command = Callable[..., Any]
MEASURES = {"engine_s": 6.0, "prepare_s": 1.0, "waiting_s": 3.0, "n_tokens": 500.0, "n_prompts": 50.0, "n_prompt_tokens": 20_000.0}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    root = tmp_path / "data"
    monkeypatch.setenv("VIDEO2LORA_DATA", str(root))
    root.mkdir()
    for i in range(5):
        (root / f"{i}.mp4").write_bytes(content(i))
    return str(root)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("teacher: {max_tokens: 24, prompts: mixed}")
    return path


def planned(command: Command, recipe: Path, *arguments: object) -> Any:
    ran = command("plan", *arguments, "-r", recipe, "--json")
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def stages(found: Any) -> dict[str, tuple[int, int, int, int, int]]:
    """Wanted, done, rejected, pending, obsolete."""
    names = ("n_wanted", "n_done", "n_rejected", "n_pending", "n_obsolete")
    return {one["stage"]: tuple(one[name] for name in names) for one in found["stages"]}


def order_of(stage: str, recipe: Path, root: str) -> Order:
    order: Order = importlib.import_module(jobs.STAGES[stage]).order(load_recipe(str(recipe)), Where(data=root))
    return order


def write_targets(recipe: Path, root: str, *, n: int | None = None, **closing: Any) -> Order:
    """The first n of what the stage is to make, of 10 tokens each; closed if these are all."""
    order = order_of("targets", recipe, root)
    rows = []
    for key in order.wanted[:n]:
        video_id, prompt_id, version = key.split("/")
        rows.append(row(order.table, video_id=video_id, prompt_id=prompt_id, version=version, task="caption", target="It.", n_tokens=10))
    if n is None:
        write(order, rows, **closing)
    else:
        order.begin().write(rows, [])
    return order


def test_of_a_source_that_was_never_seen(root: str, recipe: Path, command: Command) -> None:
    found = planned(command, recipe, root)
    assert found["source"] == {"known": 0, "changed": 0, "new": 5, "missing": 0, "bad": 0, "n_bytes_to_read": 5 * len(content(0))}
    assert stages(found) == dict.fromkeys(("frames", "targets", "examples"), (0, 0, 0, 0, 0))
    assert [one["n_more"] for one in found["stages"]] == [5, 5 * len(load_prompts(recipe)), 5]
    teacher = found["teacher"]
    assert teacher["n_prompts"] == 5 * len(load_prompts(recipe)) and not teacher["is_exact"]
    assert teacher["output_tokens"] == 24 * teacher["n_prompts"] and "teacher.max_tokens of the recipe" in teacher["output_tokens_from"]
    assert teacher["hours"] is None and teacher["measured"] is None
    assert sorted(path.name for path in Path(root).iterdir()) == [f"{i}.mp4" for i in range(5)], "nothing was written"

    text = command("plan", root, "-r", recipe).out
    assert "5 files new" in text and "hours: never measured here with these weights; 1 engine, 0 GPUs" in text


def load_prompts(recipe: Path) -> dict[str, Any]:
    """Groups of the recipe's prompt set: a prompt of each for every video."""
    groups: dict[str, Any] = importlib.import_module("teacher.prompts").load_prompt_set(load_recipe(str(recipe)).teacher.prompts).groups
    return groups


def test_of_a_source_that_grew(root: str, tmp_path: Path, recipe: Path, command: Command) -> None:
    command("manifest", root, "-r", recipe)
    (Path(root) / "new.mp4").write_bytes(b"new")
    (Path(root) / "0.mp4").write_bytes(b"another, and longer than what was there before")
    found = planned(command, recipe, root)
    assert {name: found["source"][name] for name in ("known", "new", "changed")} == {"known": 4, "new": 1, "changed": 1}
    assert stages(found)["frames"] == (5, 0, 0, 5, 0) and found["stages"][0]["n_more"] == 2
    assert found["reads"] == {"manifest_bytes": 3 + 46, "frames_bytes": 5 * len(content(0)), "n_unknown": 0}
    assert found["videos"] == {"known": 5, "done": 0, "rejected": 0}


def test_while_frames_are_pending_targets_are_reckoned(root: str, recipe: Path, command: Command) -> None:
    make_sources(root, 5)
    found = planned(command, recipe)
    expected = stages(found)["targets"]
    assert found["stages"][0]["is_exact"] and not found["stages"][1]["is_exact"] and not found["stages"][2]["is_exact"]
    assert stages(found)["examples"] == (5, 0, 0, 5, 0)
    make_frames(root, 5)
    order = order_of("targets", recipe, root)
    n_of_the_rejected = len(load_prompts(recipe)) + 2 * n_forms(recipe)
    assert expected[0] == len(order.wanted) + n_of_the_rejected, "one did not come out"


def n_forms(recipe: Path) -> int:
    """Prompts for each question of a video that is trained on."""
    prompt_set = importlib.import_module("teacher.prompts").load_prompt_set(load_recipe(str(recipe)).teacher.prompts)
    return len(prompt_set.questions.forms) if prompt_set.questions is not None else 0


def test_once_frames_are_there_it_is_what_the_stages_say(root: str, recipe: Path, command: Command) -> None:
    make_sources(root, 5)
    make_frames(root, 5)
    order = order_of("targets", recipe, root)
    found = planned(command, recipe)
    assert stages(found)["frames"] == (5, 4, 1, 0, 0) and found["reads"]["frames_bytes"] == 0
    assert stages(found)["targets"] == (len(order.wanted), 0, 0, len(order.wanted), 0) and found["stages"][1]["is_exact"]
    assert found["stages"][1]["set"] == order.table.set

    write_targets(recipe, root, n=3)
    found = planned(command, recipe)
    assert stages(found)["targets"] == (len(order.wanted), 3, 0, len(order.wanted) - 3, 0)
    assert found["teacher"]["output_tokens"] == 10 * (len(order.wanted) - 3)
    assert found["teacher"]["output_tokens_from"] == "mean of 3 rows of this set"
    assert found["teacher"]["is_exact"]

    write_targets(recipe, root, measures=MEASURES)
    found = planned(command, recipe)
    assert stages(found)["targets"] == (len(order.wanted), len(order.wanted), 0, 0, 0)
    assert stages(found)["examples"] == (4, 0, 0, 4, 0) and all(one["is_exact"] for one in found["stages"])
    assert found["teacher"]["hours"] == 0.0
    to_come = {"seed": 42, "name": None, "is_complete": False, "n_steps": load_recipe(str(recipe)).training.n_steps}
    assert found["trainings"] == [to_come]

    examples = order_of("examples", recipe, root)
    parts = [key.split("/") for key in examples.wanted]
    write(examples, [row(examples.table, video_id=video_id, version=version, split="train") for video_id, version in parts])
    assert stages(planned(command, recipe))["examples"] == (4, 4, 0, 0, 0)
    text = command("plan", "-r", recipe).out
    assert "about" not in text and "0 prompts pending" in text
    assert "hypernetwork of seed 42: to be trained, " in text
    output = sets.hypernetwork_output(load_recipe(str(recipe)), examples.table)
    output.begin({"stage": "train"})
    output.complete()
    found = planned(command, recipe)
    assert found["trainings"] == [to_come | {"name": output.name, "is_complete": True}]
    assert f"hypernetwork of seed 42: {output.name} is finished" in command("plan", "-r", recipe).out
    (Path(root) / "5.mp4").write_bytes(content(5))
    assert planned(command, recipe, root)["trainings"] == [to_come], "on one video more"


def test_stored_visual_tokens_are_a_stage_of_their_own(root: str, tmp_path: Path, command: Command) -> None:
    recipe = tmp_path / "stored.yaml"
    recipe.write_text("vlm: {model: tiny}\nteacher: {max_tokens: 24, prompts: mixed}\ntraining: {visual_tokens: stored}")
    make_sources(root, 5)
    found = planned(command, recipe)
    assert stages(found)["visual_tokens"] == (4, 0, 0, 4, 0) and not found["stages"][3]["is_exact"], "the fifth is a test video"
    make_frames(root, 5)
    assert stages(planned(command, recipe))["visual_tokens"] == (3, 0, 0, 3, 0), "one was rejected"

    write_targets(recipe, root, measures=MEASURES)
    examples = order_of("examples", recipe, root)
    made = [row(examples.table, video_id=key.split("/")[0], version=key.split("/")[1], split="train") for key in examples.wanted]
    write(examples, [{**one, "split": "test" if one["video_id"] == IDS[4] else "train"} for one in made])
    order = order_of("encode", recipe, root)
    tokens = row(order.table, vlm="v", tokens=bytes(8), n_pictures=1, n_image_tokens=1, d_vlm=2)
    order.begin().write([{**tokens, "video_id": order.wanted[1]}], [])
    found = planned(command, recipe)
    assert order.wanted == sorted(IDS[i] for i in (0, 1, 3)) and found["stages"][3]["set"] == order.table.set
    assert stages(found)["visual_tokens"] == (3, 1, 0, 2, 0) and found["stages"][3]["is_exact"]


def test_hours_are_at_the_rate_last_measured_with_these_weights(
    root: str, tmp_path: Path, recipe: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_sources(root, 5)
    make_frames(root, 5)
    order = write_targets(recipe, root, measures={**MEASURES, "n_tokens": 9.0})
    (order.table.begin({"again": 1}, order.wanted)).complete(measures=MEASURES)
    (order.table.begin({"again": 2}, order.wanted)).complete(measures={})  # nothing was left to do: that measures nothing
    unlike = Table(root, "targets", "other-0")
    sets.register(unlike, {**order.made, "weights": "other"})
    unlike.begin({}, []).complete(measures={**MEASURES, "n_tokens": 1e6})

    longer = tmp_path / "longer.yaml"
    longer.write_text("teacher: {max_tokens: 48, prompts: mixed}")
    monkeypatch.setenv("VIDEO2LORA_TEACHER_REPLICAS", "4")
    monkeypatch.setenv("VIDEO2LORA_TEACHER_GPUS", "2")
    found = planned(command, longer)
    teacher, n = found["teacher"], len(order.wanted)
    assert found["stages"][1]["set"] != order.table.set and teacher["n_prompts"] == n
    assert teacher["measured"]["tokens_per_s"] == 50.0 and teacher["measured"]["set"] == order.table.set
    assert (teacher["output_tokens"], teacher["input_tokens"]) == (10 * n, 400 * n)
    assert teacher["output_tokens_from"] == f"mean measured in {order.table.set}"
    assert teacher["hours"] == pytest.approx(10 * n / 50 / 4 / 3600) and (teacher["n_engines"], teacher["n_gpus"]) == (4, 8.0)
    text = " ".join(command("plan", "-r", longer).out.split())
    assert "on 4 engines, 8 GPUs" in text and "50.0 tokens/s of an engine, measured here in" in text


def test_engines_are_counted_as_they_will_start(root: str, recipe: Path) -> None:
    make_sources(root, 5)
    make_frames(root, 5)
    order, asked = order_of("targets", recipe, root), load_recipe(str(recipe))
    grows = Where(data=root, teacher_gpus=2.0, grows_to='[{"n": 3, "CPU": 8, "GPU": 4}, {"n": 2, "CPU": 8}]')

    def expected(where: Where, n_prompts: int, by: Recipe = asked) -> tuple[int, float]:
        cost = teacher_cost(order, by, where, n_prompts=n_prompts)
        return cost["n_engines"], cost["n_gpus"]

    assert [expected(grows, n) for n in (0, 10, 10_000, 1_000_000)] == [(1, 2.0), (1, 2.0), (4, 8.0), (6, 12.0)]
    assert expected(grows.model_copy(update={"grows_to": None}), 1_000_000) == (1, 2.0), "one at least, where nobody is asked"
    elsewhere = asked.model_copy(update={"teacher": asked.teacher.model_copy(update={"served_by": "endpoint"})})
    assert expected(grows, 10_000, elsewhere) == (4, 0.0)


def test_another_prompt_set_makes_its_own_prompts_pending_and_no_others(root: str, tmp_path: Path, recipe: Path, command: Command) -> None:
    make_sources(root, 5)
    make_frames(root, 5)
    order = write_targets(recipe, root, measures=MEASURES)
    paper = tmp_path / "paper.yaml"
    paper.write_text("teacher: {max_tokens: 24, prompts: paper}")
    found = planned(command, paper)
    other = order_of("targets", paper, root)
    assert other.table == order.table, "prompts are keys of the same set"
    n_new = len(set(other.wanted) - set(order.wanted))
    assert n_new > 0
    assert stages(found)["targets"] == (len(other.wanted), len(other.wanted) - n_new, 0, n_new, len(set(order.wanted) - set(other.wanted)))


def test_new_videos_leave_old_examples_done(root: str, recipe: Path, command: Command) -> None:
    make_sources(root, 4)
    make_frames(root, 4)
    write_targets(recipe, root, measures=MEASURES)
    examples = order_of("examples", recipe, root)
    parts = [key.split("/") for key in examples.wanted]
    write(examples, [row(examples.table, video_id=video_id, version=version, split="train") for video_id, version in parts])
    make_sources(root, 5)
    found = planned(command, recipe)
    assert stages(found)["frames"] == (5, 3, 1, 1, 0)
    assert stages(found)["examples"] == (4, 3, 0, 1, 0), "of the fifth alone"
    assert found["reads"]["frames_bytes"] == len(content(4)) and IDS[4] not in str(found)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere",), "nowhere: no such file or folder"),
        (("-r", "nowhere.yaml"), "recipe 'nowhere.yaml': no such file"),
    ],
)
def test_what_is_none_is_refused(root: str, command: Command, arguments: tuple[str, ...], says: str) -> None:
    ran = command("plan", *arguments)
    assert ran.code == 3 and says in ran.err


def test_it_needs_no_cluster_and_no_model(root: str, recipe: Path) -> None:
    """Neither is as much as imported."""
    import os
    import subprocess

    code = (
        "import sys; sys.argv = ['video2lora', 'plan', sys.argv[1], '-r', sys.argv[2]]; from infra.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "loaded = {'ray', 'vllm', 'transformers', 'deepspeed'} & set(sys.modules); sys.exit(f'imported {loaded}' if loaded else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code, root, str(recipe)], capture_output=True, text=True, timeout=240, env=os.environ)
    assert ran.returncode == 0, ran.stderr
    assert "5 files new" in ran.stdout
