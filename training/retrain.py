"""A retraining that decides for itself: whether it is worth one, and whether what comes of it takes the champion's place.

Reads    SOURCE, or the clips of the recipe's made world; the ledger of runs, the promotions.
Writes   as `training.whole_run`; then promotions, MLflow's registry, and the webhook.
Command  video2lora retrain SOURCE --recipe smolvlm2_500m
Cost     a look at SOURCE (`manifest`) and a plan where it skips: seconds; else what is missing of each table, a training, an evaluation.

    another run alive -> leaves      `training.decision` says no -> skips      else: frames ... examples, trainings, answers, report, gate,
    promote or keep

A decision, whichever, ends with exit code 0, so that no scheduler tries it again; an error keeps its own. Killed anywhere, the same run
(VIDEO2LORA_RUN) goes on as its next attempt: it does not decide again whether to go, finds what it promoted if it came so far, and promotes
once. An attempt that was only paused while another took its place cannot promote: to begin deciding is to claim the log of promotions, and
only who claimed last may write there.
"""

import os

from infra.config import Recipe, Where
from infra.errors import BadInputError, SupersededError
from infra.heartbeat import PACE, Pace
from infra.hypernetworks import vlm_label
from infra.log import Entry
from infra.plan import plan, print_tables
from infra.progress import say
from infra.promotions import Standing, claim, history, keep, promote, standing
from infra.registry import mirror
from infra.run_turns import OtherRunError, leave, look, made_up
from infra.running import Running, held
from infra.runs import Facts, read
from infra.sets import HYPERNETWORKS, REPORTS, examples_set, hypernetwork_output, made_targets, trained_hypernetwork
from infra.steps import evaluating, gathering, preparing, run_steps, trainings
from infra.webhook import post
from training import gate
from training.decision import Decision, came_of, decide, is_trained_on, month_now, over_budget
from training.evaluate import check_systems
from training.settings import check
from training.whole_run import asked, gather, print_stages

GONE = "gone"  # what a note in the log of runs is about: that it was decided to go on


def run(source: str | None, recipe: Recipe, where: Where, *, pace: Pace = PACE) -> str:
    """Decide, and do it; says in a line what was decided. Raises BadInputError, and all that the stages raise."""
    check_systems(recipe)
    check(recipe, where)
    gathering(recipe, source)  # or says what is missing
    gate.asked(recipe, None)
    try:
        with held(where, "retrain", asked(source, recipe), pace=pace) as running:
            running.why = retrain(source, recipe, running)
    except OtherRunError as error:
        leave(where.data, name=where.run or made_up("retrain"), command="retrain", why=str(error))
        return f"left: {error}"
    print_stages(running)
    return running.why


def dry_run(source: str | None, recipe: Recipe, where: Where, *, pace: Pace = PACE) -> str:
    """What `run` would decide, and the plan. Nothing is written, so each file of SOURCE that was never read counts as another video."""
    gathering(recipe, source)
    vlm, runs = vlm_label(recipe.vlm.model), read(where.data)
    if (holder := runs.holder) is not None and look(where.data, runs, holder, pace=pace) == "alive":
        return f"would leave: {holder.line()} is alive"
    planned = plan(source, recipe, where)
    print_tables(planned)
    n_unread = planned["source"]["new"] + planned["source"]["changed"] if source else 0
    seen = standing(where.data, vlm)
    decision = decide(recipe, where, seen, runs, planned=planned, n_unread=n_unread)
    if decision.goes:
        challenging(recipe, where, seen)
    return f"would {'go on' if decision.goes else 'skip'}: {decision.why}" + (f"; {n_unread} files were never read" if n_unread else "")


def retrain(source: str | None, recipe: Recipe, running: Running) -> str:
    """Within a run that is held: what became of it, in a line."""
    where, vlm = running.where, vlm_label(recipe.vlm.model)
    mirror(where)  # what a server that was away has missed
    if (entry := judged_before(running)) is not None:
        say(f"retrain: an earlier attempt came to a verdict about {entry['hypernetwork']}")
        return told(entry, where)
    gather(gathering(recipe, source), recipe, running)
    seen = standing(where.data, vlm)
    decision = decided(recipe, where, seen, running)
    if not decision.goes:
        return f"skip: {decision.why}"
    asked_for = challenging(recipe, where, seen)
    expected = claim(where.data, vlm=vlm, by=running.mine.run)
    if entries := changes(where, vlm, since=seen.n_entries):
        what = f"{entries[-1]['hypernetwork']} became champion by {entries[-1]['by']} at {entries[-1]['at']}"
        raise SupersededError(f"{where.data}: {what}, while it was decided whether to go on: run the same command again")
    run_steps(preparing(asked_for), where, running)
    if (nothing := came_of(recipe, where, seen)) is not None:
        return f"skip: {nothing}"
    run_steps(trainings(to_train(asked_for, where), asked_for), where, running)
    challenger = gate.challenger(asked_for, where).name.removeprefix(f"{HYPERNETWORKS}/")
    if seen.champion is not None and challenger == seen.champion.hypernetwork:
        return f"skip: what is new left no example: {challenger} is the champion already"
    run_steps(evaluating(asked_for), where, running)
    settle(asked_for, challenger, seen, running, expected=expected)
    settled = judged_before(running)
    assert settled is not None
    return told(settled, where)


def settle(recipe: Recipe, challenger: str, seen: Standing, running: Running, *, expected: int) -> None:
    """The gate, and what follows from it. Raises SupersededError where another run or a person decided meanwhile."""
    where = running.where
    with running.stage("gate") as facts:
        verdict = gate.judge(recipe, where, seen)
        facts["told"] = f"{'promote' if verdict.promote else 'keep'}: {verdict.why}"
        say(f"gate: {facts['told']}")
    running.check()
    by, report = running.mine.run, verdict.evidence.get("report")
    if verdict.promote:
        promote(where.data, challenger, expected=expected, verdict=verdict.plain(), by=by, report=report)
    else:
        keep(where.data, challenger, expected=expected, verdict=verdict.plain(), by=by, report=report)


def challenging(recipe: Recipe, where: Where, seen: Standing) -> Recipe:
    """The recipe as its challenger is trained and answers. Raises BadInputError where that cannot be: before anything is made for it."""
    gate.check_champion(recipe, where, seen.champion)
    found = gate.asked(started(recipe, seen), seen.champion)
    check(found, where)  # that the champion's weights fit the recipe
    return found


def to_train(recipe: Recipe, where: Where) -> list[Recipe]:
    """The recipe with each of its seeds; with none where more test videos are all that the last trainings have not seen.

    Raises BadInputError where the examples are not complete, StorageError.
    """
    seeds, examples = recipe.of_seeds(), examples_set(recipe, made_targets(recipe, where.data))
    try:
        there = [trained_hypernetwork(one, where.data) for one in seeds]
    except BadInputError:
        return seeds
    seen = [one.made_from()["inputs"]["examples"] for one in there]
    if seen[0] == examples.made_from() or any(one != seen[0] for one in seen) or not is_trained_on(seen[0], examples, where):
        return seeds
    say(f"retrain: {', '.join(one.name for one in there)}: nothing more to train on, not trained again")
    return []


def changes(where: Where, vlm: str, *, since: int) -> list[Entry]:
    """Who became champion of a VLM, from an entry of the log of promotions on. Raises StorageError."""
    return [one for one in history(where.data, since=since) if one["vlm"] == vlm and one["kind"] in ("promote", "rollback")]


def judged_before(running: Running) -> Entry | None:
    """The verdict that this run came to since it was decided to go on, in whichever attempt. Raises StorageError."""
    if (gone := gone_on(running)) is None:
        return None
    entries = [entry for entry in history(running.where.data, since=gone["n_entries"]) if entry["by"] == running.mine.run]
    return entries[-1] if entries else None


def gone_on(running: Running) -> Entry | None:
    """The note that it was decided to go on, of this attempt or one that it goes on from."""
    notes = [note for one in running.runs.going_on(running.mine.run) for note in one.notes if note["about"] == GONE]
    return notes[-1] if notes else None


def decided(recipe: Recipe, where: Where, seen: Standing, running: Running) -> Decision:
    """Whether to go on. That it was decided to stays so over the attempts of a run, while the champion and the month's GPU-hours last:
    for what is still to come before a training is begun, and then until they are spent.

    Raises BadInputError where no challenger could be judged.
    """
    gone, mine = gone_on(running), running.mine.run
    if gone is not None and all(one["by"] == mine for one in changes(where, vlm_label(recipe.vlm.model), since=gone["n_entries"])):
        teacher = None if is_begun(started(recipe, seen), where) else plan(None, recipe, where)["teacher"]
        spent = over_budget(recipe, running.runs, teacher, month=month_now(), trains=gone.get("trains", True))
        decision = Decision(spent is None, spent or f"{gone['why']} (decided by attempt {gone['attempt']})")
    else:
        planned = plan(None, recipe, where)
        decision = decide(recipe, where, seen, running.runs, planned=planned)
        if decision.goes:
            challenging(recipe, where, seen)  # or it is refused, and is to be decided anew
            running.note(about=GONE, why=decision.why, n_entries=seen.n_entries, trains=decision.trains)
            print_tables(planned)
    say(f"retrain: {'going on' if decision.goes else 'skipped'}: {decision.why}")
    return decision


def is_begun(recipe: Recipe, where: Where) -> bool:
    """Whether a training was, on the examples that there are now. Raises StorageError."""
    try:
        examples = examples_set(recipe, made_targets(recipe, where.data))
        return any(hypernetwork_output(one, examples).is_begun() for one in recipe.of_seeds())
    except BadInputError:  # there are none yet
        return False


def started(recipe: Recipe, seen: Standing) -> Recipe:
    """The recipe whose training begins as `retraining.start` says."""
    if recipe.retraining.start == "afresh" or seen.champion is None:
        return recipe
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"start_from": seen.champion.folder})})


def told(entry: Entry, where: Where) -> str:
    """A verdict to all who are to know: MLflow's registry, the webhook; and in a line."""
    mirror(where)
    champion = standing(where.data, entry["vlm"]).champion
    data = where.data.rstrip("/") if "://" in where.data else os.path.abspath(where.data)
    report = entry["report"] and f"{data}/{REPORTS}/{entry['report']}/report.html"
    facts: Facts = {
        "run": entry["by"],
        "verdict": entry["kind"],
        "why": entry["verdict"]["why"],
        "champion": champion and champion.hypernetwork,
        "challenger": entry["hypernetwork"],
        "report": report,
        "data": data,
    }
    post(where, facts)
    return f"{entry['kind']}: {entry['hypernetwork']}: {facts['why']}" + (f"; {report}" if report else "")
