"""A recipe -> the set of each table that it makes and reads: one way of making rows, with all that they depend on.

A set's folder is named by what a person would call it and a short hash of its settings; the settings stand in the table's register,
<root>/<name>/sets/. Settings that say where or in which portions something is made (deadlines, blocks) are no part of it, and neither is
what was asked for: more videos and other prompts are further keys of the same set.

Hypernetworks lie side by side likewise, a folder for each training. What a training saw is fixed, so more examples make another one.
"""

import re
from typing import Any

from infra.config import HOW, Recipe, SceneSettings
from infra.digests import short_hash
from infra.errors import BadInputError
from infra.evaluation_config import JudgeModel
from infra.hypernetworks import HYPERNETWORKS, address_of, champion_folder, identity, vlm_label
from infra.log import Log
from infra.objects import folders, read_json
from infra.outputs import Output
from infra.storage import Table

REPORTS = "reports"
FIGURES = "figures"
READER = 1  # of frames: raised when the same file and settings would give other pictures
ENCODER = 1  # of visual tokens: raised when the same pictures and weights would give others

Made = dict[str, Any]


def frames_made(recipe: Recipe) -> Made:
    """What a row of `frames` depends on beside its video."""
    return {"stage": "frames", "reader": READER, "frames": recipe.frames.model_dump(mode="json", exclude={"deadline_s"})}


def scenes_made(settings: SceneSettings) -> Made:
    """What the scenes of a content depend on."""
    return {"stage": "scenes", **settings.model_dump(mode="json", include={"threshold", "min_scene_s"})}


def scenes_set(settings: SceneSettings, root: str) -> Table:
    """Scenes that were looked for so."""
    return _table(root, "scenes", f"scdet-{settings.threshold:g}", scenes_made(settings))


def frames_set(recipe: Recipe, root: str) -> Table:
    """The recipe's frames."""
    return _table(root, "frames", f"{recipe.frames.sampling.name}-{recipe.frames.longest_edge_px}px", frames_made(recipe))


def targets_made(recipe: Recipe, *, weights: str) -> Made:
    """What a row of `targets` depends on beside video and prompt; `weights` names the teacher's, as content or revision."""
    teacher = recipe.teacher.model_dump(mode="json", exclude={"prompts", "videos_per_block"})
    return {"stage": "targets", "frames": frames_made(recipe), "teacher": teacher, "weights": weights}


def targets_set(recipe: Recipe, root: str, *, weights: str) -> Table:
    """The recipe's targets by these weights."""
    return _table(root, "targets", vlm_label(recipe.teacher.model), targets_made(recipe, weights=weights))


def begun_targets(recipe: Recipe, root: str) -> list[Table]:
    """The recipe's targets by whichever weights of the teacher's name."""
    asked = targets_made(recipe, weights="")
    return [table for table, made in sets_of(root, "targets") if {**made, "weights": ""} == asked]


def made_targets(recipe: Recipe, root: str) -> Table:
    """The recipe's targets where they are finished already; of several weights of one name, those that `targets` was at last.

    Raises BadInputError where there are none.
    """
    missing = f"{root}/targets: no complete set of this recipe's teacher and frames: run `video2lora targets` first"
    return _last_finished(begun_targets(recipe, root), missing)


def examples_made(recipe: Recipe, targets: Table) -> Made:
    """What a row of `examples` depends on beside its video and version."""
    return {"stage": "examples", "examples": recipe.examples.model_dump(mode="json"), "targets": targets.set}


def examples_set(recipe: Recipe, targets: Table) -> Table:
    """The recipe's examples from these targets."""
    return _table(targets.root, "examples", targets.set.rsplit("-", 1)[0], examples_made(recipe, targets))


def visual_tokens_made(recipe: Recipe, *, weights: str) -> Made:
    """What a row of `visual_tokens` depends on beside its video; `weights` names the VLM's, as content or revision."""
    return {"stage": "encode", "encoder": ENCODER, "frames": frames_made(recipe), "vlm": {"weights": weights, "dtype": recipe.vlm.dtype}}


def visual_tokens_set(recipe: Recipe, root: str, *, weights: str) -> Table:
    """The recipe's visual tokens by these weights. Recipes that differ in their targets share them."""
    return _table(root, "visual_tokens", vlm_label(recipe.vlm.model), visual_tokens_made(recipe, weights=weights))


def begun_visual_tokens(recipe: Recipe, root: str) -> list[Table]:
    """The recipe's visual tokens by whichever weights of the VLM's name."""
    mine = visual_tokens_set(recipe, root, weights="").set.rsplit("-", 1)[0]
    asked = visual_tokens_made(recipe, weights="")
    found = [(table, {**made, "vlm": {**made["vlm"], "weights": ""}}) for table, made in sets_of(root, "visual_tokens")]
    return [table for table, made in found if made == asked and table.set.rsplit("-", 1)[0] == mine]


def hypernetwork_made(recipe: Recipe, examples: Table) -> Made:
    """What a hypernetwork depends on: all but how its training is run. Raises BadInputError if examples or start_from are not there."""
    return {"stage": "train", **_trained_by(recipe), "inputs": {"examples": examples.made_from()}}


def hypernetwork_output(recipe: Recipe, examples: Table) -> Output:
    """The folder that training writes, on these examples as they are now. Raises BadInputError if they are not complete."""
    made = hypernetwork_made(recipe, examples)
    return Output(examples.root, f"{HYPERNETWORKS}/{_folder_name(vlm_label(recipe.vlm.model), made)}")


def trained_hypernetwork(recipe: Recipe, root: str) -> Output:
    """The recipe's hypernetwork where it is finished: that of the examples there are now; where none is, the one finished last.

    Raises BadInputError where there is none.
    """
    try:
        of_now = hypernetwork_output(recipe, examples_set(recipe, made_targets(recipe, root)))
        if of_now.is_complete():
            return of_now
    except BadInputError:  # examples are not there, or being made
        pass
    asked = _trained_by(recipe)
    examples = {examples_set(recipe, targets).set for targets in begun_targets(recipe, root)}
    found = []
    for output in hypernetworks_of(root):
        at, made = output.completed_at(), read_json(f"{output.folder}/made.json")
        if at is not None and _without(made, "stage", "inputs") == asked and made["inputs"]["examples"]["set"] in examples:
            found.append((at, output))
    if not found:
        raise BadInputError(f"{root}/{HYPERNETWORKS}: none was trained by this recipe: run `video2lora train` first")
    return max(found, key=lambda one: one[0])[1]


def evaluated_hypernetwork(recipe: Recipe, root: str) -> tuple[str, Made]:
    """The folder of the one that `ours` answers by, and what it is: what the recipe trained, unless answer.hypernetwork names another.

    Raises BadInputError where it is not there.
    """
    named = recipe.answer.hypernetwork
    if named is None:
        output = trained_hypernetwork(recipe, root)
        return output.folder, output.made_from()
    folder = address_of(named)
    return folder, identity(folder, named_by="recipe: answer.hypernetwork")


def _trained_by(recipe: Recipe) -> Made:
    """The settings that make a hypernetwork. What it starts from counts by what it is and not by where it lies."""
    made = recipe.section("vlm", "hypernetwork")
    made["training"] = recipe.training.model_dump(mode="json", exclude={*HOW, "start_from"})
    if recipe.training.start_from is not None:
        started = identity(address_of(recipe.training.start_from), named_by="recipe: training.start_from")
        made["start_from"] = {"weights_sha256": started["weights_sha256"]}
    return made


def _without(made: Made, *names: str) -> Made:
    return {name: value for name, value in made.items() if name not in names}


def made_output(root: str, folder: str, label: str, made: Made) -> Output:
    """The folder of a report or a figure that was made so, beside others of its kind (REPORTS, FIGURES)."""
    return Output(root, f"{folder}/{_folder_name(label, made)}")


def outputs_of(root: str, folder: str) -> list[Output]:
    """Every output that was begun in a folder of a root. Raises StorageError."""
    outputs = [Output(root, f"{folder}/{name}") for name in folders(f"{root.rstrip('/')}/{folder}")]
    return [output for output in outputs if output.is_begun()]


def hypernetworks_of(root: str) -> list[Output]:
    """Every training that was begun under a root. Raises StorageError."""
    return outputs_of(root, HYPERNETWORKS)


def answers_made(recipe: Recipe, root: str) -> Made:
    """What a row of `answers` depends on beside question and system. Raises BadInputError where an input is not complete."""
    tables = {"videos": Table(root, "videos"), "questions": Table(root, "questions"), "frames": frames_set(recipe, root)}
    if "caption" in recipe.answer.systems:
        tables["targets"] = made_targets(recipe, root)
    champion = champion_folder(recipe)
    inputs = {name: table.made_from() for name, table in tables.items()}
    inputs["hypernetwork"] = evaluated_hypernetwork(recipe, root)[1]
    if champion is not None:
        inputs["champion"] = identity(champion, named_by="recipe: answer.champion")
    by_what_they_are = {"champion", "hypernetwork"}  # and not by where they lie
    asked = recipe.section("vlm") | {"answer": recipe.answer.model_dump(mode="json", exclude=by_what_they_are)}
    return {"stage": "answer", **asked, "inputs": inputs}


def answers_set(recipe: Recipe, root: str) -> Table:
    """The recipe's answers, from the tables and the hypernetwork that are there now. Raises BadInputError as `answers_made`."""
    return _table(root, "answers", "answers", answers_made(recipe, root))


def judgements_made(judge: JudgeModel, *, weights: str, rubrics: str) -> Made:
    """What a row of `judgements` depends on beside its words; `weights` names the judge's, `rubrics` is the digest of what it is told."""
    asked = judge.model_dump(mode="json", include=set(JudgeModel.model_fields))
    return {"stage": "judge", "judge": asked, "weights": weights, "rubrics": rubrics}


def judgements_set(judge: JudgeModel, root: str, *, weights: str, rubrics: str) -> Table:
    """What this judge said by these rubrics, whichever recipe asked it."""
    return _table(root, "judgements", vlm_label(judge.model), judgements_made(judge, weights=weights, rubrics=rubrics))


def begun_judgements(judge: JudgeModel, root: str) -> list[Table]:
    """What the judge said, by whichever weights and rubrics of its name."""
    asked = judgements_made(judge, weights="", rubrics="")
    return [table for table, made in sets_of(root, "judgements") if {**made, "weights": "", "rubrics": ""} == asked]


def made_judgements(judge: JudgeModel, root: str) -> Table:
    """What the judge said, where that is finished; of several weights and rubrics, by those that `judge` was at last.

    Raises BadInputError where there is nothing.
    """
    return _last_finished(
        begun_judgements(judge, root), f"{root}/judgements: no complete set of this recipe's judge: run `video2lora judge` first"
    )


def sets_of(root: str, name: str) -> list[tuple[Table, Made]]:
    """The registered sets of a table and what makes each; last the one that a stage was at last. Raises StorageError."""
    found: dict[str, Made] = {}
    for one in _register(root, name).read():
        found.pop(one["set"], None)
        found[one["set"]] = one["made"]
    return [(Table(root, name, one), made) for one, made in found.items()]


def register(table: Table, made: Made) -> None:
    """Enter that a stage is at a set now, before it begins to write it or when it finds nothing to do. Raises StorageError.

    By this order, and by no clock, is told which of several sets is the present one.
    """
    log = _register(table.root, table.name)
    while True:
        there = list(log.read())
        if (there and there[-1]["set"] == table.set) or log.append({"set": table.set, "made": made}, number=len(there)):
            return


def tables_of(root: str) -> list[Table]:
    """Every table under a root that a run has begun, each set of it. Raises StorageError."""
    found = [Table(root, name) for name in ("files", "videos", "questions")]
    for name in ("scenes", "frames", "targets", "examples", "visual_tokens", "answers", "judgements"):
        found += [table for table, _ in sets_of(root, name)]
    return [table for table in found if table.state().begun is not None]


def _last_finished(tables: list[Table], missing: str) -> Table:
    """Raises BadInputError with `missing` where none is complete."""
    for table in reversed(tables):
        if table.state().is_complete:
            return table
    raise BadInputError(missing)


def _table(root: str, name: str, label: str, made: Made) -> Table:
    return Table(root, name, _folder_name(label, made))


def _folder_name(label: str, made: Made) -> str:
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', label)[:60]}-{short_hash(made)}"


def _register(root: str, name: str) -> Log:
    return Log(f"{root.rstrip('/')}/{name}/sets")
