"""The gate: whether a challenger takes the champion's place, by the paper's own statistics (section 4.3). docs/promotion.md has its rules.

Reads    the report of the recipe that `asked` gives: its rows, where `ours` is the challenger and `champion` the one there is; what each
         hypernetwork has seen (`infra.seen`); which questions there are.
Cost     seconds: a bootstrap for each benchmark and family.

It asks for proof of what it promotes and for none of what it keeps: what cannot be told, for want of clips, of answers or of knowing what
was trained on, keeps the champion, and the verdict says so.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Float
from scipy.stats import permutation_test

from infra.artifacts import QUESTIONS
from infra.config import Recipe, VLMSettings, Where
from infra.contents import contents_of
from infra.digests import digest, short_hash
from infra.errors import BadInputError
from infra.evaluation_config import CLAIMED_TOGETHER, EvaluationSettings
from infra.hypernetworks import identity
from infra.model_files import model_files
from infra.objects import read_json
from infra.outputs import Output
from infra.promotions import Champion, Standing
from infra.retraining_config import PromotionSettings
from infra.seen import Seen, read_seen
from infra.sets import frames_set, trained_hypernetwork
from infra.storage import Table
from training.answer import questions_of
from training.compare import read_rows
from training.measures import Marks, claims, difference, marks, sums
from training.report import output_of
from training.verdicts import SCORE_NAMES, holds, interval_text
from video2lora.equivalence import holm

NEEDED = ("base", "ours", "blind")
ALPHA_FIRST = 0.025  # one-sided, as the whole 95 % interval above 0 is
N_SIGNS = 9999
N_NAMED = 3  # of several videos or families at fault

Facts = dict[str, Any]

Claimed = dict[str, Facts | None]
"""Benchmark -> what is claimed of it (`equivalence.Claim`), with `holds` after Holm's correction; None where nothing can be compared."""


@dataclass(frozen=True)
class Verdict:
    """Whether the challenger is promoted, why in one sentence, and every number that it rests on, as plain JSON."""

    promote: bool
    why: str
    evidence: Facts

    def plain(self) -> Facts:
        """For the log of promotions and the webhook."""
        return asdict(self)


def asked(recipe: Recipe, champion: Champion | None) -> Recipe:
    """The recipe whose answers the gate needs: with the systems base, ours and blind, and the champion's where there is one.

    Raises BadInputError for promotion.score: judge of a recipe without a judge.
    """
    if recipe.promotion.score == "judge" and recipe.judge is None:
        raise BadInputError("recipe: promotion.score: got judge, and the recipe has no judge: give it one, or set token_f1 or exact_match")
    update: Facts = {} if champion is None else {"champion": champion.folder}
    systems = (*recipe.answer.systems, *NEEDED, *(("champion",) if champion else ()))
    update["systems"] = tuple(dict.fromkeys(systems))
    return recipe.model_copy(update={"answer": recipe.answer.model_copy(update=update)})


def check_champion(recipe: Recipe, where: Where, champion: Champion | None) -> None:
    """That the champion can answer on the recipe's VLM, and that a challenger could be let in beside it, whatever it answered.

    No model is loaded; files are read where the VLM has another name now. Raises BadInputError where its folder is gone, it was trained for
    other weights, as far as names and files tell, or what it was trained on (or does not say that it was) would keep every challenger out.
    """
    if champion is None:
        return
    try:
        identity(champion.folder, named_by=f"champion of VLM {champion.vlm}")
    except BadInputError as error:
        raise BadInputError(f"{error}: restore it, or make another one champion by hand: `video2lora promote`") from error
    vlm = read_json(f"{champion.folder}/config.json")["metadata"]["vlm"]  # promotions know none that does not say it
    before = VLMSettings(model=vlm["model"], revision=vlm.get("revision"))
    if not _are_same_weights(before, recipe.vlm):
        raise BadInputError(
            f"recipe: vlm: {_named(recipe.vlm)} has other weights, as far as can be told, than {_named(before)}, for which the champion"
            f" {champion.hypernetwork} was trained: it cannot answer there, so no challenger can be compared with it. Name the VLM as"
            f" it was; or give it a folder of another name than {champion.vlm}, which has a champion of its own; or make one by hand:"
            " `video2lora run`, look at its report, `video2lora promote`"
        )

    seen = read_seen(champion.folder)
    if recipe.retraining.start == "champion" and not seen.is_all:
        raise BadInputError(
            f"recipe: retraining.start: got champion, and {champion.hypernetwork} does not say what it was trained on: of a challenger that"
            " begins from it nobody could tell whether it has seen the test. Set it to afresh"
        )
    tested = contents_of(where.data, _answered(recipe, where))
    both = sorted(video_id for video_id, content in tested.items() if content in seen.contents)
    if both:
        raise BadInputError(
            f"champion {champion.hypernetwork}: it was trained or validated on {len(both)} of {len(tested)} test videos ({_some(both)}), so"
            " no challenger can be compared with it: test on others, or make by hand one champion that has not seen them:"
            " `video2lora run`, look at its report, `video2lora promote`"
        )


def _answered(recipe: Recipe, where: Where) -> set[str]:
    """Videos of the split with questions, but for those without frames: nobody answers about them. Raises BadInputError for none."""
    videos = Table(where.data, "videos").read(["video_id", "split"])
    of_split = set(videos.filter(pc.equal(videos["split"], recipe.answer.split))["video_id"].to_pylist())
    rejected = set(frames_set(recipe, where.data).read_rejects()["key"].to_pylist())
    return {row["video_id"] for row in questions_of(recipe, where)} & (of_split - rejected)


def _are_same_weights(one: VLMSettings, other: VLMSettings) -> bool:
    """By name and revision; where these differ, by content or commit, which moved files and a revision that was spelled out keep."""
    if (one.model, one.revision) == (other.model, other.revision):
        return True
    try:
        found = [model_files(vlm.model, revision=vlm.revision, setting="vlm").identity for vlm in (one, other)]
    except BadInputError:
        return False
    return len({identity.rpartition("@")[2] for identity in found}) == 1


def _named(vlm: VLMSettings) -> str:
    return repr(vlm.model) + (f" at revision {vlm.revision}" if vlm.revision else "")


def yardstick(recipe: Recipe, where: Where) -> str:
    """A short hash of what a verdict is measured by, beside the hypernetworks: the gate's settings, who answers, and what is asked.

    The same for the recipe and for what `asked` makes of it. Raises BadInputError where the split has no question.
    """
    answer = recipe.answer.model_dump(mode="json", include={"split", "max_new_tokens"})
    systems = sorted({*recipe.answer.systems, *NEEDED} - {"champion"})
    judge = None if recipe.judge is None or recipe.promotion.score != "judge" else recipe.judge.model_dump(mode="json")
    questions = digest([QUESTIONS.key_of(row) for row in questions_of(recipe, where)])  # a version is of the references too
    return short_hash([recipe.promotion.model_dump(mode="json"), answer, systems, judge, questions])


def challenger(recipe: Recipe, where: Where) -> Output:
    """The hypernetwork that would be promoted: of several seeds, the first one's. Raises BadInputError where it is not trained."""
    return trained_hypernetwork(recipe.of_seeds()[0], where.data)


def judge(recipe: Recipe, where: Where, standing: Standing) -> Verdict:
    """Of a recipe as `asked` gives it, whose report is made. Raises BadInputError where it is not, StorageError."""
    report = output_of(recipe, where)[0]
    if not report.is_complete():
        raise BadInputError(f"{report.folder} is not complete: run `video2lora report` first")
    trained, champion = challenger(recipe, where), standing.champion
    weights = identity(trained.folder, named_by="promote")["weights_sha256"]
    seed = recipe.of_seeds()[0].training.seed
    rows = [row for row in read_rows(report.folder) if row["seed"] == seed]  # the others' trainings may be better, and are not promoted
    verdict = judged(rows, recipe.promotion, champion=champion is not None, n_draws=recipe.evaluation.n_draws)
    about = {
        "report": _name(report),
        "yardstick": yardstick(recipe, where),
        "challenger": {"hypernetwork": _name(trained), "weights_sha256": weights},
        "champion": None if champion is None else {"hypernetwork": champion.hypernetwork, "weights_sha256": champion.weights_sha256},
    }
    tested = contents_of(where.data, {row["video_id"] for row in rows})
    unseen, faults = not_seen(tested, read_seen(trained.folder), champion=None if champion is None else read_seen(champion.folder))
    if champion is not None and champion.weights_sha256 == weights:
        faults.append("it is the champion already")
    if weights in standing.rolled_back:
        faults.append("it was champion and rolled back from: promote it by hand")
    evidence = about | verdict.evidence | {"unseen": unseen}
    if not faults:
        return Verdict(verdict.promote, verdict.why, evidence)
    return Verdict(False, "; ".join([*faults, *([] if verdict.promote else [verdict.why])]), evidence)


def judged(rows: Sequence[Facts], settings: PromotionSettings, *, champion: bool, n_draws: int = 10_000) -> Verdict:
    """By a report's rows alone (report_rows.SCHEMA): against the champion, or where there is none yet, against the question alone."""
    of, n_without = without_as_worst(marks(rows, sorted({row["system"] for row in rows})), settings.score)
    required = settings.benchmarks or tuple(sorted(set(of.labels("benchmark"))))
    # No bootstrap's p is below 1 / (n_draws + 1), which Holm's correction multiplies by the number of benchmarks.
    n_draws = max(n_draws, math.ceil(max(CLAIMED_TOGETHER, len(required)) / settings.alpha))
    how = EvaluationSettings(margin=settings.margin, judge_margin=settings.margin, alpha=settings.alpha, n_draws=n_draws)
    evidence = settings.model_dump(mode="json") | {"benchmarks": list(required), "n_draws": n_draws, "seeds": list(of.seeds)}
    evidence["n_without_score"] = n_without
    against = _against_champion if champion else _first
    faults, why, found = against(of, required, settings, how)
    told = "; ".join(faults) or why
    if n_without:
        told += f"; {n_without} of the challenger's answers have no score ({SCORE_NAMES[settings.score]}) and count as 0"
    return Verdict(not faults, told, evidence | found)


def without_as_worst(of: Marks, score: str) -> tuple[Marks, int]:
    """The marks with 0 where `ours` has no score of a question that another system has one of, and how many these are.

    What a judge could make nothing of is not missing by chance: left out, the worse a challenger answers, the better it looks.
    """
    if score not in of.values or "ours" not in of.systems:
        return of, 0
    values, ours = of.values[score].copy(), of.systems.index("ours")
    is_without = np.isnan(values[ours]) & ~np.isnan(values).all((0, 1))
    values[ours][is_without] = 0.0
    return replace(of, values={**of.values, score: values}), int(is_without.sum())


def not_seen(tested: dict[str, str], trained: Seen, *, champion: Seen | None) -> tuple[Facts, list[str]]:
    """Whether no content of the test was trained on; `tested` is video -> content. What is found, and what is at fault.

    A champion of which that is not known may have seen the test: that would be to its own good, and to no challenger's.
    """
    found: Facts = {"n_videos": len(tested)}
    faults = []
    for who, seen in (("challenger", trained), ("champion", champion)):
        if seen is None:
            continue
        both = sorted(video_id for video_id, content in tested.items() if content in seen.contents)
        found[who] = {"n_seen": len(both), "is_known": seen.is_all}
        if both:
            faults.append(f"the {who} was trained or validated on {len(both)} of {len(tested)} test videos: {_some(both)}")
        elif not seen.is_all and who == "challenger":
            faults.append("cannot tell what the challenger has seen: it began from weights that do not say what they were trained on")
    return found, faults


def _first(of: Marks, required: Sequence[str], settings: PromotionSettings, how: EvaluationSettings) -> tuple[list[str], str, Facts]:
    """There is no champion: the adapters must do better than the question alone, beyond chance.

    By the interval, and by an exact test too, since the interval of few clips is too narrow: of 5 of them one in 12 would pass by chance.
    """
    pair = "ours", "blind"
    faults = [_nothing(name, settings) for name in required if not sums(of.part("benchmark", name), settings.score, pair).size]
    asked = of.where(np.isin(of.labels("benchmark"), required))
    found = difference(asked, settings.score, pair, how)
    summed = sums(asked, settings.score, pair).sum(0)
    found["p_signs"] = signs_p(summed[:, 1] - summed[:, 2])
    told = f"{interval_text(found)} on {SCORE_NAMES[settings.score]} against the question alone, {found['n_videos']} clips"
    if found["low"] is None or found["low"] <= 0 or found["p_signs"] > ALPHA_FIRST:
        faults.append(f"there is no champion, and it is not shown to do better than without the video: {told}")
    return faults, f"the first champion: {told}", {"against_blind": found}


def signs_p(differences: Float[np.ndarray, " n_videos"]) -> float:
    """How likely a sum so large is by chance, if each video's difference could as well have had the other sign (Fisher's test of pairs).

    Exact for up to N_SIGNS drawn ones; at least 0.5 ** n.
    """
    if len(differences) < 2:  # of one clip nothing can be told
        return 1.0
    tested = permutation_test(
        (differences, np.zeros_like(differences)),
        lambda one, other, axis: (one - other).sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=N_SIGNS,
        batch=max(1, 2**18 // len(differences)),  # of memory; all at once is 0.7 MB a video
        alternative="greater",
        rng=0,
    )
    return float(tested.pvalue)


def _against_champion(
    of: Marks, required: Sequence[str], settings: PromotionSettings, how: EvaluationSettings
) -> tuple[list[str], str, Facts]:
    """Not worse than the champion, nor than base where the champion is not; and no family falls."""
    mine = _claimed(of, ("ours", "champion"), required, settings, how)
    theirs = _claimed(of, ("champion", "base"), required, settings, how)
    held = [name for name, one in theirs.items() if one is not None and one["holds"]]
    as_base = _claimed(of, ("ours", "base"), held, settings, how)
    families = _families(of, settings, how)
    faults = [*_faults(mine, "the champion", settings), *_faults(as_base, "base, as the champion is,", settings)]
    faults += _falls(families, settings)
    faults += [] if "base" in of.systems else ["the report has no answers by base"]
    found = {"against_champion": mine, "champion_against_base": theirs, "against_base": as_base, "families": families}
    return faults, "" if faults else _held(mine, as_base, settings), found


def _held(mine: Claimed, as_base: Claimed, settings: PromotionSettings) -> str:
    known = {name: one for name, one in mine.items() if one is not None}
    worst = min(known, key=lambda name: known[name]["value"])
    told = f"not worse than the champion within {settings.margin:g} on {SCORE_NAMES[settings.score]}, worst on {worst}: "
    base = "; base is not asked about, for the champion is not shown to be as good"
    if as_base:
        base = f"; nor than base on {', '.join(as_base)}, as the champion is"
    return told + interval_text(known[worst]) + base


def _claimed(of: Marks, pair: tuple[str, str], benchmarks: Sequence[str], settings: PromotionSettings, how: EvaluationSettings) -> Claimed:
    """That the first system of the pair is not worse, on each of these benchmarks."""
    found: Claimed = {}
    for name in benchmarks:
        claimed = claims(of.part("benchmark", name), settings.score, [pair], how)
        found[name] = claimed[0] if claimed else None
    known = [one for one in found.values() if one is not None]
    for one, corrected in zip(known, holm([one["p_noninferior"] for one in known]), strict=True):
        one["p_noninferior_holm"] = corrected
        one["holds"] = holds(one, "noninferior", settings.alpha)
    return found


def _faults(claimed: Claimed, against: str, settings: PromotionSettings) -> list[str]:
    """Of the benchmarks where a claim does not hold, why."""
    least = math.ceil(math.log(settings.alpha / max(1, len(claimed))) / math.log(1 - settings.margin))
    faults = []
    for name, one in claimed.items():
        if one is None:
            faults.append(_nothing(name, settings))
        elif not one["holds"]:
            worse = one["high"] is not None and one["high"] < -settings.margin
            few = one["n_videos"] < least
            said = "worse" if worse else f"{one['n_videos']} clips are too few to tell, {least} the least" if few else "it may be worse"
            faults.append(f"{name}: not shown to be as good as {against} within {settings.margin:g}: {said}, {interval_text(one)}")
    return faults


def _families(of: Marks, settings: PromotionSettings, how: EvaluationSettings) -> list[Facts]:
    """Of each benchmark's styles, whether it is required or not: challenger - champion over questions both answered."""
    found = []
    for benchmark in sorted(set(of.labels("benchmark"))):
        own = of.part("benchmark", benchmark)
        for style in sorted(set(own.labels("style"))):
            one = difference(own.part("style", style), settings.score, ("ours", "champion"), how)
            found.append({"benchmark": benchmark, "style": style, **one})
    return found


def _falls(families: Sequence[Facts], settings: PromotionSettings) -> list[str]:
    fallen = [one for one in families if one["value"] is not None and one["value"] < -settings.max_family_fall]
    if not fallen:
        return []
    worst = sorted(fallen, key=lambda one: one["value"])
    told = _some([f"{one['benchmark']} {one['style']} ({interval_text(one)})".replace("  ", " ") for one in worst])
    return [f"{len(fallen)} of {len(families)} question families fall by more than {settings.max_family_fall:g}: {told}"]


def _nothing(benchmark: str, settings: PromotionSettings) -> str:
    return f"{benchmark}: no question of it has an answer of both with a score ({SCORE_NAMES[settings.score]})"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else ""
    return ", ".join(names[:N_NAMED]) + more


def _name(output: Output) -> str:
    return output.name.rsplit("/", 1)[-1]
