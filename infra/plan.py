"""A recipe and what is there -> what a run would make, read and cost, before anything starts.

Command  video2lora plan [SOURCE]
Reads    the tables' logs, `files` and `videos`, and of a SOURCE what its storage says of each file. No byte of a video, and no cluster.

Where a stage before it is not done, what a stage will be asked is reckoned as if each pending video came out, and is marked so; files of
the SOURCE that were never read count as a video each. Hours are at the rate last measured with the same weights (`infra.teacher_cost`).
What a training costs is `train --dry-run`'s to say; here stands whether there will be one. Answers and a report follow it.
"""

import importlib
import json
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table as Grid

from infra import jobs, sets
from infra.books import console
from infra.config import Recipe, Where
from infra.errors import BadInputError
from infra.stage import Order
from infra.state import ROWS, among
from infra.storage import Table
from infra.teacher_cost import print_cost, teacher_cost

Facts = dict[str, Any]


def plan(source: str | None, recipe: Recipe, where: Where) -> Facts:
    """Raises BadInputError for a SOURCE, prompt set or teacher that is none; StorageError."""
    survey = None
    if source is not None:
        survey = asdict(importlib.import_module("pipeline.manifest").survey(source, recipe, where))
    n_new = survey["new"] + survey["changed"] if survey else 0
    table = Table(where.data, "videos")
    videos = table.read(["video_id", "uri", "split", "span_kind"])
    frames = _counted(_frames(recipe, where, videos), is_exact=table.is_complete() or not len(videos))
    expected = frames["done"] + frames["left"]
    order, per_video = targets_order(recipe, where, videos, expected)
    targets = _counted(order, is_exact=frames["is_exact"] and not frames["left"])
    examples = _examples(recipe, where, targets, expected)
    stages = [frames, targets, examples]
    for stage, n_more in zip(stages, (n_new, round(n_new * per_video), n_new), strict=True):
        stage["n_more"] = n_more
    if recipe.training.visual_tokens == "stored":
        stages.append(_visual_tokens(recipe, where, examples, videos, expected) | {"n_more": n_new})
    n_prompts = len(targets["left"]) + targets["n_more"]
    return {
        "root": where.data,
        "source": survey,
        "videos": {"known": len(videos), "done": len(frames["done"]), "rejected": table.n_rejects()},
        "stages": [{name: value for name, value in one.items() if name not in ("done", "left")} for one in stages],
        "reads": {"manifest_bytes": survey["n_bytes_to_read"] if survey else 0, **_bytes(where.data, videos, frames["left"])},
        "trainings": _trainings(recipe, where, examples),
        "teacher": teacher_cost(order, recipe, where, n_prompts=n_prompts) | {"is_exact": targets["is_exact"] and not n_new},
    }


def print_json(planned: Facts) -> None:
    print(json.dumps(planned, indent=1))


def print_tables(planned: Facts) -> None:
    """A line for each stage, then what it reads and costs."""
    source, videos, reads = planned["source"], planned["videos"], planned["reads"]
    if source is not None:
        print("source: " + ", ".join(f"{source[name]:,} files {name}" for name in ("known", "new", "changed", "missing")), end="")
        print(f", {source['bad']:,} rows that are none; {reads['manifest_bytes'] / 1e6:,.1f} MB to read for their content")
    print(f"videos: {videos['known']:,} known, {videos['done']:,} done, {videos['rejected']:,} rows of sources rejected")
    grid = Grid("stage", "set")
    for name in ("wanted", "done", "rejected", "pending", "obsolete"):
        grid.add_column(name, justify="right")
    for one in planned["stages"]:
        about = "" if one["is_exact"] else "about "
        pending = f"{about}{one['n_pending']:,}" + (f" + about {one['n_more']:,}" if one["n_more"] else "")
        counts = [f"{one[name]:,}" for name in ("n_done", "n_rejected")]
        grid.add_row(one["stage"], one["set"], f"{about}{one['n_wanted']:,}", *counts, pending, f"{one['n_obsolete']:,}")
    console().print(grid)
    if any(one["n_more"] for one in planned["stages"]):
        print("+ about: for files of the source that were never read, if each is another video")
    unknown = f", and {reads['n_unknown']:,} files of unknown size" if reads["n_unknown"] else ""
    for one in planned["trainings"]:
        told = (
            f"{one['name']} is finished"
            if one["is_complete"]
            else f"to be trained, {one['n_steps']:,} steps; `train --dry-run` measures one"
        )
        print(f"hypernetwork of seed {one['seed']}: {told}")
    print(f"frames: {reads['frames_bytes'] / 1e6:,.1f} MB of video to read for pending frames{unknown}")
    print_cost(planned["teacher"])


def _frames(recipe: Recipe, where: Where, videos: pa.Table) -> Order:
    """As the stage has it; while `videos` is not complete, of those that are there."""
    try:
        order: Order = importlib.import_module(jobs.STAGES["frames"]).order(recipe, where)
        return order
    except BadInputError:
        video_ids = sorted(set(videos["video_id"].to_pylist()))
        return Order(sets.frames_set(recipe, where.data), {}, video_ids, sets.frames_made(recipe))


def targets_order(recipe: Recipe, where: Where, videos: pa.Table, video_ids: list[str]) -> tuple[Order, float]:
    """What the stage is to make once all of these have frames, and prompts per video. Frames of no other video are looked at."""
    stage, writing = importlib.import_module(jobs.STAGES["targets"]), importlib.import_module("teacher.write_targets")
    prompt_set = importlib.import_module("teacher.prompts").load_prompt_set(recipe.teacher.prompts)
    model = importlib.import_module("teacher.models").find_model(recipe.teacher)
    questions = Table(where.data, "questions").read()
    asked = stage.prompts_by_video(video_ids, videos, questions, prompt_set)
    wanted = [writing.target_key(video_id, one) for video_id, of_video in asked.items() for one in of_video]
    if asked:
        per_video = len(wanted) / len(asked)
    else:  # of a video without questions
        nobody = pa.table({"video_id": ["0"], "split": ["train"]})
        per_video = len(stage.prompts_by_video(["0"], nobody, questions, prompt_set)["0"])
    weights = writing.teacher_name(model, recipe.teacher)
    table = sets.targets_set(recipe, where.data, weights=weights)
    return Order(table, {}, wanted, sets.targets_made(recipe, weights=weights)), per_video


def _examples(recipe: Recipe, where: Where, targets: Facts, video_ids: list[str]) -> Facts:
    """As the stage has it; while targets are pending, an example is to be made anew where one of its targets is."""
    if targets["is_exact"] and not targets["left"]:
        try:
            return _counted(importlib.import_module(jobs.STAGES["examples"]).order(recipe, where), is_exact=True)
        except BadInputError:  # no row of targets, or their books are still open
            pass
    table = sets.examples_set(recipe, Table(where.data, "targets", targets["set"]))
    live = table.state().live()["key"].to_pylist()
    there = {key.split("/")[0] for key in live} - {key.split("/")[0] for key in targets["left"]}
    done = [one for one in video_ids if one in there]
    n_obsolete = len(live) - len(done)
    counts = {"n_wanted": len(video_ids), "n_done": len(done), "n_rejected": 0, "n_pending": len(video_ids) - len(done)}
    return {"stage": table.name, "set": table.set, "is_exact": False, **counts, "n_obsolete": n_obsolete}


def _visual_tokens(recipe: Recipe, where: Where, examples: Facts, videos: pa.Table, video_ids: list[str]) -> Facts:
    """As the stage has it; while examples are pending, one for each video of the splits that it encodes."""
    stage = importlib.import_module(jobs.STAGES["encode"])
    if examples["is_exact"] and not examples["n_pending"]:
        try:
            return _counted(stage.order(recipe, where), is_exact=True)
        except BadInputError:  # the examples' books are still open
            pass
    encoded = pc.is_in(videos["split"], value_set=pa.array(stage.SPLITS))
    expected = pc.is_in(videos["video_id"], value_set=pa.array(video_ids, pa.string()))
    wanted = sorted(set(videos.filter(pc.and_(encoded, expected))["video_id"].to_pylist()))
    return _counted(Order(stage.table_of(recipe, where), {}, wanted), is_exact=False)


def _trainings(recipe: Recipe, where: Where, examples: Facts) -> list[Facts]:
    """One for each seed that is evaluated; none where the recipe names a hypernetwork. Of examples that are still to come, one is to be."""
    found = []
    for one in recipe.of_seeds() if recipe.answer.hypernetwork is None else ():
        facts: Facts = {"seed": one.training.seed, "name": None, "is_complete": False, "n_steps": one.training.n_steps}
        if examples["is_exact"] and not examples["n_pending"] + examples["n_more"]:
            with suppress(BadInputError):  # the examples' books are still open, or `training.start_from` is not there
                output = sets.hypernetwork_output(one, Table(where.data, examples["stage"], examples["set"]))
                facts |= {"name": output.name, "is_complete": output.is_complete()}
        found.append(facts)
    return found


def _counted(order: Order, *, is_exact: bool) -> Facts:
    """What of an order is there; `done` and `left` are keys."""
    live, wanted = order.table.state().live(), pa.array(order.wanted, pa.string())
    counted = among(live, wanted)
    done = counted.filter(pc.equal(counted["kind"], ROWS))["key"].to_pylist()
    left = wanted.filter(pc.invert(pc.is_in(wanted, value_set=counted["key"]))).to_pylist()
    counts = {"n_wanted": len(wanted), "n_done": len(done), "n_rejected": len(counted) - len(done), "n_pending": len(left)}
    facts = {"stage": order.table.name, "set": order.table.set, "is_exact": is_exact, **counts}
    return facts | {"n_obsolete": len(live) - len(counted), "done": done, "left": left}


def _bytes(root: str, videos: pa.Table, left: list[str]) -> Facts:
    """Of the files that pending frames are in; a file with several spans is read for each."""
    files = Table(root, "files").read(["uri", "n_bytes"])
    sizes = dict(zip(files["uri"].to_pylist(), files["n_bytes"].to_pylist(), strict=True))
    uris = videos.filter(pc.is_in(videos["video_id"], value_set=pa.array(left, pa.string())))["uri"].to_pylist()
    known = [sizes[uri] for uri in uris if uri in sizes]
    return {"frames_bytes": sum(known), "n_unknown": len(uris) - len(known)}
