"""`questions` of one split -> `answers`: every question answered by every system of the recipe, for each training seed of the recipe.

Reads    videos (for the split), questions, frames, targets (the teacher's captions, for the system `caption` alone) and the
         recipe's hypernetworks.
Writes   answers, a set for each seed. Rejects: question_without_video, once for a question whose video has no frames; and for a question
         and system prompt_too_long, bad_row (its text spells an image token) and no_targets (no caption by the teacher).
Command  video2lora answer --recipe demo
Cost     the demo's 540 questions in 6 systems: about 15 s of one core; memory grows with questions_per_batch adapters.

Where training has GPUs (VIDEO2LORA_TRAINING_GPUS), blocks are answered on those, by Ray (`training.answer_on_gpus`). Else in plain torch
in this process: one test split is small, and a time to first token measured beside other workers means nothing.
Videos go through in a seeded shuffle; `other_video` is the next one in it that is of another file, so nobody gets the own adapter and each
video is internalized once. A block is some whole videos with all their questions and systems, and one commit: a killed run goes on with
the same blocks, and so with the same batches. What does not depend on the training (base, say) is answered for the first seed, and its
rows, with the times measured then, are those of the other seeds too.
"""

import json
import random
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from infra.attempt import reject
from infra.config import Recipe, Where, load_recipe, load_where
from infra.contents import contents_of
from infra.errors import BadInputError
from infra.hypernetworks import champion_folder, local_hypernetwork
from infra.progress import counting, say
from infra.sets import answers_made, answers_set, evaluated_hypernetwork, frames_set, made_targets, trained_hypernetwork
from infra.stage import Order
from infra.storage import Table

if TYPE_CHECKING:
    from training.systems import Systems

SEED = 0  # of the order of videos, and of the questions that are timed
TRAINED = ("ours", "merged", "composed", "other_video", "static")  # the systems that another training makes other ones

Row = dict[str, Any]


@dataclass(frozen=True)
class Block:
    """Whole videos and their questions. `others` names, for each of them, the video whose adapter it gets in `other_video`."""

    others: dict[str, str]
    questions: tuple[Row, ...]


def askable(questions: Sequence[Row], *, with_frames: set[str]) -> tuple[list[Row], list[Row]]:
    """Questions whose video has frames, and a reject for each of the rest."""
    asked = [row for row in questions if row["video_id"] in with_frames]
    rejects = [
        reject("answer", row["question_id"], "question_without_video", f"video {row['video_id']} has no frames")
        for row in questions
        if row["video_id"] not in with_frames
    ]
    return asked, rejects


def blocks(questions: Sequence[Row], *, contents: Mapping[str, str], n_questions: int) -> list[Block]:
    """Videos in a seeded shuffle, as many in a block as ask at most `n_questions` questions, but at least one. `contents` by video."""
    by_video: dict[str, list[Row]] = {}
    for question in sorted(questions, key=lambda row: row["question_id"]):
        by_video.setdefault(question["video_id"], []).append(question)
    videos = sorted(by_video)
    random.Random(SEED).shuffle(videos)
    cut: list[Block] = []
    for i, video in enumerate(videos):
        behind = chain(videos[i + 1 :], videos[:i])
        other = next((one for one in behind if contents[one] != contents[video]), video)
        if cut and len(cut[-1].questions) + len(by_video[video]) <= n_questions:
            cut[-1] = Block({**cut[-1].others, video: other}, (*cut[-1].questions, *by_video[video]))
        else:
            cut.append(Block({video: other}, tuple(by_video[video])))
    return cut


def timed_questions(questions: Sequence[Row], n_timed: int) -> frozenset[str]:
    """Ids of the questions whose time to first token is measured: a seeded sample, the same for every system."""
    ids = sorted(row["question_id"] for row in questions)
    return frozenset(random.Random(SEED).sample(ids, min(n_timed, len(ids))))


def captions(targets: Sequence[Row]) -> dict[str, str]:
    """The teacher's words for each video: its summary, which says most, else its caption."""
    chosen: dict[str, str] = {}
    for task in ("caption", "summary"):  # the later one wins
        rows = sorted((row for row in targets if row["task"] == task), key=lambda row: (row["prompt_id"], row["teacher"]))
        chosen |= {row["video_id"]: row["target"] for row in reversed(rows)}
    return chosen


def is_done(block: Block, left: set[str], systems: Sequence[str]) -> bool:
    """Whether nothing of it is left. Keys are those of `answers`: question_id/system."""
    return not any(f"{question['question_id']}/{system}" in left for question in block.questions for system in systems)


def untrained(recipe: Recipe, where: Where) -> list[Recipe]:
    """The recipe with each of its seeds that no hypernetwork was trained with; none where it names one. Raises StorageError."""
    missing = []
    for one in recipe.of_seeds() if recipe.answer.hypernetwork is None else ():
        try:
            trained_hypernetwork(one, where.data)
        except BadInputError:
            missing.append(one)
    return missing


def check_same_examples(recipe: Recipe, where: Where) -> None:
    """Raises BadInputError where trainings of the recipe's seeds saw different examples: their differences would not be the seeds'."""
    seeds: dict[str, list[int]] = {}
    for one in recipe.of_seeds():
        examples = trained_hypernetwork(one, where.data).made_from()["inputs"]["examples"]
        seeds.setdefault(json.dumps(examples, sort_keys=True), []).append(one.training.seed)
    if len(seeds) > 1:
        told = "; ".join(
            f"seed {', '.join(map(str, same))}: {(of := json.loads(examples))['n_rows']} of {of['set']}" for examples, same in seeds.items()
        )
        raise BadInputError(
            f"{where.data}: trainings of this recipe saw different examples ({told}): run `video2lora train` with training.seed set to each"
            " seed whose examples are not those there are now, or leave it out of evaluation.seeds"
        )


def load(recipe: Recipe, where: Where) -> "Systems":
    """What answers: called with a block, it gives its answers and rejects. Raises BadInputError, StorageError."""
    from training.systems import Systems  # torch and transformers: not needed to find that there is nothing to do

    # 1. frames of one sampling, as Arrow: pictures are decoded block by block
    rows = frames_of(recipe, where)
    # 2. the teacher's words
    said = captions(made_targets(recipe, where.data).read().to_pylist()) if "caption" in recipe.answer.systems else {}
    # 3. models, once; 1 block -> (its questions x systems) rows
    challenged = champion_folder(recipe)
    with ExitStack() as fetched:
        folder = fetched.enter_context(local_hypernetwork(evaluated_hypernetwork(recipe, where.data)[0]))
        champion = fetched.enter_context(local_hypernetwork(challenged)) if challenged else None
        return Systems(recipe, hypernetwork=folder, frames=rows, captions=said, champion=champion)


def run(recipe: Recipe, where: Where) -> str:
    """Answer what is not answered yet, seed by seed. Raises BadInputError, StorageError, RowsLostError, SupersededError."""
    if recipe.evaluation.seeds is None:
        return of_seed(recipe, where)
    if missing := untrained(recipe, where):
        seeds = ", ".join(str(one.training.seed) for one in missing)
        raise BadInputError(
            f"{where.data}: this recipe was not trained with seed {seeds} (recipe: evaluation.seeds): run `video2lora evaluate`, which"
            " trains what is missing"
        )
    check_same_examples(recipe, where)
    told, first = [], None
    for one in recipe.of_seeds():
        told.append(f"seed {one.training.seed}: {of_seed(one, where, about=f', seed {one.training.seed}', like=first)}")
        first = first or answers_set(one, where.data)
    return "; ".join(told)


def of_seed(recipe: Recipe, where: Where, *, about: str = "", like: Table | None = None) -> str:
    """The answers of one training. `like` are another's, complete: what does not depend on the training is taken over from there."""
    made = answers_made(recipe, where.data)
    table, systems = answers_set(recipe, where.data), recipe.answer.systems
    if table.is_complete():
        return f"answers: complete, {table.n_rows()} answers by {len(systems)} systems; nothing to do"
    questions = questions_of(recipe, where)
    asked, rejects = askable(questions, with_frames=set(frames_of(recipe, where)["video_id"].to_pylist()))
    n_videos = len({row["video_id"] for row in asked})
    contents = contents_of(where.data, {row["video_id"] for row in asked})
    if "other_video" in systems and len(set(contents.values())) == 1:
        raise BadInputError("recipe: answer.systems: other_video needs two videos with questions, there is one; leave it out")
    # What is asked: every question by every system, and the questions that cannot be asked at all.
    wanted = [f"{row['question_id']}/{system}" for row in asked for system in systems] + [row["key"] for row in rejects]
    attempt = Order(table, {}, wanted, made).begin()
    attempt.write([], [row for row in rejects if row["key"] in attempt.left])
    if like is not None:
        attempt.write(*same_as(like, attempt.left))
    recipe = by_systems_left(recipe, attempt.left)
    plan = blocks(asked, contents=contents, n_questions=recipe.answer.questions_per_batch)
    todo = [block for block in plan if not is_done(block, attempt.left, recipe.answer.systems)]
    if len(todo) < len(plan):
        say(f"answer{about}: {len(plan) - len(todo)} of {len(plan)} blocks were answered before; going on behind them")
    if todo:
        timed = timed_questions(asked, recipe.answer.n_timed)
        n_answers = sum(len(block.questions) for block in todo) * len(recipe.answer.systems)
        with counting(f"answer{about}", "answers", n_answers) as counter:
            if where.training_gpus:
                from training import answer_on_gpus

                answer_on_gpus.answer(todo, recipe, where, attempt, counter, timed=timed)
            else:
                answers = load(recipe, where)
                for block in todo:
                    counter.advance(attempt.write(*answers(block, timed)))
    attempt.complete()
    return f"answers: {table.n_rows()} answers to {len(asked)} questions about {n_videos} videos, {table.n_rejects()} rejects"


def same_as(table: Table, left: set[str]) -> tuple[list[Row], list[Row]]:
    """Rows and rejects of another training's answers, of the systems that are the same in both, as far as their keys are left."""
    rows = [row for row in table.read().to_pylist() if row["system"] not in TRAINED and table.spec.key_of(row) in left]
    rejects = [row for row in table.read_rejects().to_pylist() if system_of(row["key"]) not in TRAINED and row["key"] in left]
    return rows, rejects


def by_systems_left(recipe: Recipe, left: set[str]) -> Recipe:
    """The recipe, without the systems that have answered all that was asked."""
    remaining = {system_of(key) for key in left}
    systems = tuple(system for system in recipe.answer.systems if system in remaining)
    champion = recipe.answer.champion if "champion" in systems else None
    return recipe.model_copy(update={"answer": recipe.answer.model_copy(update={"systems": systems, "champion": champion})})


def system_of(key: str) -> str:
    """Of a key of `answers`."""
    return key.rpartition("/")[2]


def questions_of(recipe: Recipe, where: Where) -> list[Row]:
    """Questions of the recipe's split, with those whose video is in no split. Raises BadInputError where there is none."""
    split = recipe.answer.split
    splits = {row["video_id"]: row["split"] for row in Table(where.data, "videos").read(["video_id", "split"]).to_pylist()}
    questions = Table(where.data, "questions").read().to_pylist()
    chosen = [row for row in questions if splits.get(row["video_id"], split) == split]
    if not chosen:
        raise BadInputError(f"{where.data}/questions: no question about a video of split {split!r} (recipe: answer.split)")
    return chosen


def frames_of(recipe: Recipe, where: Where) -> pa.Table:
    """Rows of the recipe's `frames`."""
    return frames_set(recipe, where.data).read()


def main() -> None:
    """python -m training.answer [RECIPE]"""
    print(run(load_recipe(sys.argv[1] if len(sys.argv) > 1 else "demo"), load_where()))


if __name__ == "__main__":
    main()
