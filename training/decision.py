"""Whether a retraining is worth it, from storage alone: the ledger of runs, the promotions, the tables. Rules: docs/retraining.md.

    budget   spent this month                                                                                     -> skip
    nothing  fewer new training videos than the recipe asks for, no other targets and no other training than the  -> skip
             champion's, or than those of a challenger that was judged since, by this test and gate, and did not
             take its place
    budget   what the teacher and a training, if there is to be one, are expected to take does not fit in         -> skip
    else, and where there is no champion yet                                                                      -> go

A video is new by its content: under another name, moved, or as other spans it is not. What is rejected, forgotten or superseded is not
counted, so that a clip which cannot be read does not fire a training each night.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra.config import HOW, Recipe, Where
from infra.contents import contents_of
from infra.errors import StorageError
from infra.hypernetworks import HYPERNETWORKS, vlm_label
from infra.log import Entry
from infra.objects import read_json
from infra.plan import targets_order
from infra.promotions import Standing, history
from infra.runs import RunAttempt, Runs
from infra.seen import read_seen
from infra.sets import examples_set, frames_set
from infra.stage import Order
from infra.state import State
from infra.storage import Table
from infra.trained import closed_on
from training.gate import yardstick

TRAIN = "train"  # the stage, and how the titles of its trainings begin
STARTS = ("seed", "start_from")  # of the training's settings: which of the same trainings it is

Facts = dict[str, Any]


@dataclass(frozen=True)
class Decision:
    """Whether to go on, and why in a sentence; and whether that takes a training, where no challenger is there already."""

    goes: bool
    why: str
    trains: bool = True


@dataclass(frozen=True)
class News:
    """What there is beyond that which a hypernetwork was trained on."""

    n_videos: int  # training videos, by content
    changes: tuple[str, ...]  # of targets and training, in words

    def is_enough(self, recipe: Recipe) -> bool:
        return self.n_videos >= recipe.retraining.min_new_videos or bool(self.changes)


def month_now() -> str:
    """Of UTC, "2026-11", by this machine's clock."""
    return datetime.now(UTC).strftime("%Y-%m")


def decide(recipe: Recipe, where: Where, standing: Standing, runs: Runs, *, planned: Facts, n_unread: int = 0) -> Decision:
    """`planned` is what `video2lora plan` says; `n_unread` are files that nobody has read yet, each another video for all one knows.

    Raises BadInputError, StorageError.
    """
    if (spent := over_budget(recipe, runs, None, month=month_now())) is not None:
        return Decision(False, spent)
    decision = worth(recipe, where, standing, n_unread=n_unread)
    if decision.goes:
        too_dear = over_budget(recipe, runs, planned["teacher"], month=month_now(), trains=decision.trains)
        return decision if too_dear is None else Decision(False, too_dear)
    return decision


def worth(recipe: Recipe, where: Where, standing: Standing, *, n_unread: int) -> Decision:
    """Whether there is something new, whatever it costs."""
    champion, trains = standing.champion, True
    if champion is None:
        return Decision(True, f"{vlm_label(recipe.vlm.model)} has no champion yet")
    order, contents = asked_now(recipe, where)
    first = news(recipe, where, champion.hypernetwork, order, contents, n_unread=n_unread)
    if not first.is_enough(recipe):
        least = recipe.retraining.min_new_videos
        there = f"{_videos(first.n_videos)} since champion {champion.hypernetwork} ({least} asked for)"
        return Decision(False, f"{there}, and targets and training are still its own")
    why = "; ".join([_videos(first.n_videos), *first.changes]) + f" since champion {champion.hypernetwork}"
    for entry in judged_since(standing, history(where.data), vlm_label(recipe.vlm.model)):
        if news(recipe, where, entry["hypernetwork"], order, contents, n_unread=n_unread).is_enough(recipe):
            continue
        if entry["kind"] == "keep" and measured_otherwise(entry, recipe, where):
            why += f"; the test or the gate changed since {entry['hypernetwork']} was kept out"
            trains = False
            continue
        what = "was kept out" if entry["kind"] == "keep" else "was rolled back from"
        told = f"nothing that was not judged already: {entry['hypernetwork']} {what} ({entry['verdict']['why']})"
        return Decision(False, told)
    return Decision(True, why, trains)


def came_of(recipe: Recipe, where: Where, standing: Standing) -> str | None:
    """Why what was new is not worth a training any more, once frames, targets and examples were made of it; None where it is."""
    if standing.champion is None:
        return None
    left = news(recipe, where, standing.champion.hypernetwork, *asked_now(recipe, where))
    if left.is_enough(recipe):
        return None
    told = f"of what is new, {_videos(left.n_videos)} came to examples ({recipe.retraining.min_new_videos} asked for)"
    return f"{told}; the others are rejects: `video2lora targets browse --rejects`, `video2lora ls`"


def over_budget(recipe: Recipe, runs: Runs, teacher: Facts | None, *, month: str, trains: bool = True) -> str | None:
    """Why the month's GPU-hours do not allow more; None where they do.

    `teacher` is what it is expected to take; None: only what is spent counts. `trains` says whether a training is expected.
    """
    limit = recipe.retraining.gpu_hours_per_month
    if limit is None:
        return None
    spent = runs.gpu_hours_of(month)
    if spent >= limit:
        return f"budget: {spent:.2f} of {limit:g} GPU-hours of {month} are spent"
    if teacher is None:
        return None
    taught = (teacher["hours"] or 0.0) * teacher["n_gpus"]
    trained = last_training(runs) if trains else 0.0
    if spent + taught + trained <= limit:
        return None
    told = f"budget: {spent:.2f} of {limit:g} GPU-hours of {month} are spent, and the teacher is expected to take {taught:.2f}"
    return told + (f" and a training {trained:.2f} (as the last one did)" if trains else "")


def last_training(runs: Runs) -> float:
    """GPU-hours of the trainings of the last run that finished one, over its attempts; 0 where none has."""
    for attempt in reversed(runs.attempts):
        if any(_is_training(stage) and not stage["failed"] for stage in attempt.stages):
            return sum(_trained_hours(one) for one in _up_to(runs.of(attempt.run), attempt))
    return 0.0


def _up_to(attempts: Sequence[RunAttempt], last: RunAttempt) -> list[RunAttempt]:
    """It and those before it that it went on from."""
    at = attempts.index(last)
    first = max((i + 1 for i in range(at) if attempts[i].ended_well), default=0)
    return list(attempts[first : at + 1])


def _trained_hours(attempt: RunAttempt) -> float:
    at_death = attempt.closed if attempt.closed is not None and attempt.closed["kind"] == "died" else None
    dying = at_death["gpu_hours"] if at_death is not None and str(at_death["stage"]).startswith(TRAIN) else 0.0
    return float(dying + sum(stage["gpu_hours"] for stage in attempt.stages if _is_training(stage)))


def _is_training(stage: Entry) -> bool:
    return str(stage["stage"]).startswith(TRAIN) and not stage["was_there"]


def asked_now(recipe: Recipe, where: Where) -> tuple[Order, dict[str, str]]:
    """What the teacher is to write about videos of train and validation; and each training video that is not rejected -> its content."""
    videos = Table(where.data, "videos").read(["video_id", "uri", "split", "span_kind"])
    taught = videos.filter(pc.is_in(videos["split"], value_set=pa.array(["train", "validation"])))
    order, _ = targets_order(recipe, where, videos, sorted(set(taught["video_id"].to_pylist())))
    train = set(taught.filter(pc.equal(taught["split"], "train"))["video_id"].to_pylist())
    for table in (frames_set(recipe, where.data), examples_set(recipe, order.table)):
        train -= {key.split("/")[0] for key in table.read_rejects()["key"].to_pylist()}
    return order, contents_of(where.data, train)


def news(recipe: Recipe, where: Where, hypernetwork: str, order: Order, contents: dict[str, str], *, n_unread: int = 0) -> News:
    """Beyond what a hypernetwork of this folder's name was trained on; of one that does not say, all of it. Raises StorageError."""
    folder = f"{where.data.rstrip('/')}/{HYPERNETWORKS}/{hypernetwork}"
    made = read_json(f"{folder}/made.json") or {}
    n_new = len(set(contents.values()) - read_seen(folder).contents) + n_unread
    return News(n_new, (*_other_targets(order, made), *_other_training(recipe, made)))


def judged_since(standing: Standing, entries: Sequence[Entry], vlm: str) -> Iterator[Entry]:
    """Challengers that were judged against the present champion and kept out, or rolled back from: the newest first."""
    has_changed = False
    for entry in reversed([one for one in entries if one.get("vlm") == vlm]):
        has_changed = has_changed or entry["kind"] in ("promote", "rollback")
        is_kept = entry["kind"] == "keep" and not has_changed
        if is_kept or (entry["kind"] == "promote" and entry["weights_sha256"] in standing.rolled_back):
            yield entry


def measured_otherwise(entry: Entry, recipe: Recipe, where: Where) -> bool:
    """Whether a verdict would rest on another test or gate now; of one that does not say what it rests on, no. Raises BadInputError."""
    before = (entry["verdict"].get("evidence") or {}).get("yardstick")
    return before is not None and before != yardstick(recipe, where)


def is_trained_on(before: Facts, examples: Table, where: Where) -> bool:
    """Whether examples, as a training's made.json has them, are those of now, but for some of test videos more: no training reads those.

    Raises StorageError.
    """
    closed = closed_on(examples, before["rows"]) if before["set"] == examples.set else None
    try:
        then = None if closed is None else set(examples.wanted(State().take(closed[0])).to_pylist())
    except StorageError:
        then = None
    if then is None:
        return False
    now, videos = set(examples.wanted().to_pylist()), Table(where.data, "videos").read(["video_id", "split"])
    tested = set(videos.filter(pc.equal(videos["split"], "test"))["video_id"].to_pylist())
    return then <= now and {key.split("/")[0] for key in now - then} <= tested


def _other_targets(order: Order, made: Facts) -> Iterator[str]:
    """In which way targets would be others than those that a hypernetwork was trained on."""
    try:
        before = made["inputs"]["examples"]["asked"]["inputs"]["targets"]
        table, rows = Table(order.table.root, "targets", before["set"]), before["rows"]
    except (KeyError, TypeError):
        yield "its targets cannot be told"
        return
    if table.set != order.table.set:
        yield f"targets of another teacher or other frames ({order.table.set}, before {table.set})"
        return
    try:
        closed = closed_on(table, rows)
        then = None if closed is None else table.wanted(State().take(closed[0])).to_pylist()
    except StorageError:
        then = None
    if then is None:
        yield "what its teacher was asked cannot be told"
        return
    asked = _by_video(order.wanted), _by_video(then)
    n_other = sum(asked[0][name] != asked[1][name] for name in asked[0].keys() & asked[1].keys())
    if n_other:
        yield f"other prompts about {n_other} of its videos"


def _other_training(recipe: Recipe, made: Facts) -> Iterator[str]:
    """Settings of the training that were others; of one that did not exist then nothing is said."""
    now = recipe.section("vlm", "hypernetwork") | {"training": recipe.training.model_dump(mode="json", exclude={*HOW, *STARTS})}
    for section, settings in now.items():
        before = made.get(section, {})
        for name, value in settings.items():
            if name in before and before[name] != value:
                yield f"{section}.{name} is {value}, before {before[name]}"


def _by_video(keys: Sequence[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for key in keys:
        found.setdefault(key.split("/")[0], set()).add(key)
    return found


def _videos(n: int) -> str:
    return f"{n} new training video{'' if n == 1 else 's'}"
