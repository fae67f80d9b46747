"""`frames` x prompts -> `targets`: what the teacher writes about each video, and what it could not, in rejects.

Reads: `frames`; the splits of `videos`; `questions`, where the recipe's prompts ask them. Writes: `targets`, and to rejects
bad_row (its text spells an image token), prompt_too_long, empty_target, unfinished_target (cut off at max_tokens) and teacher_error
(frames that cannot be read).
Command: `video2lora targets`. Cost: 15 s of a core to start an engine; then, for the small VLM and 4 frames, 3 ms per prompt, of which 2
are vLLM's handling of a request, 1 the model, and 0.2 our frames and tokens.

One row in is one prompt, known before any engine starts, so a run with nothing to do starts none. A video's prompts stay together, in
one block of one engine, which encodes it once. Prompts are measured before they are sent: a bad one is a reject and never ends a run.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from infra import metrics
from infra.artifacts import QUESTIONS
from infra.attempt import Attempt, ShardWriter
from infra.config import Recipe, Where, load_recipe, load_where
from infra.progress import counting, say
from infra.resources import gpus_per_engine
from infra.sets import frames_set, register, targets_made, targets_set
from infra.stage import Order, failing, summary
from infra.storage import Table, read_shard
from teacher import measures as measures_of
from teacher.capacity import check_room, engine_count
from teacher.engine import engine_options
from teacher.lasting import Plan, teacher_name
from teacher.models import Model, find_model
from teacher.prompts import Prompt, PromptSet, load_prompt_set, prompts_of
from teacher.vllm_settings import engine_environment
from teacher.write_targets import STAGE, WriteTargets, target_key

if TYPE_CHECKING:
    import ray
    import ray.data

FRAME_COLUMNS = ["video_id", "jpegs", "timestamps_s", "duration_s"]
PROMPT_FIELDS = ("prompt_id", "task", "prompt")
PROMPTS = pa.list_(pa.struct([(name, pa.string()) for name in PROMPT_FIELDS]))
ASKED = pa.schema([(name, pa.string()) for name in ("address", "video_id", *PROMPT_FIELDS)])

PromptsByVideo = Mapping[str, Sequence[Prompt]]


def prompts_by_video(video_ids: Sequence[str], videos: pa.Table, questions: pa.Table, prompt_set: PromptSet) -> dict[str, list[Prompt]]:
    """Every prompt of every video that has frames: the rows that come in. `videos` may say what kind of span each is (`span_kind`)."""
    names = videos["video_id"].to_pylist()
    splits = dict(zip(names, videos["split"].to_pylist(), strict=True))
    spans = dict(zip(names, videos["span_kind"].to_pylist(), strict=True)) if "span_kind" in videos.column_names else {}
    own: dict[str, dict[str, str]] = {}
    for row in questions.to_pylist():
        own.setdefault(row["video_id"], {})[row["question_id"]] = row["question"]
    return {
        video_id: prompts_of(
            video_id, split=splits[video_id], questions=own.get(video_id, {}), prompt_set=prompt_set, span_kind=spans.get(video_id)
        )
        for video_id in video_ids
    }


def ask_by_shard(shards: Mapping[str, Sequence[str]], left: PromptsByVideo) -> list[pa.Table]:
    """For each shard's address and videos, what is left to ask about them: a row per prompt. Shards with nothing left are gone."""
    blocks = []
    for address, video_ids in shards.items():
        rows = [{"address": address, "video_id": video_id, **asdict(one)} for video_id in video_ids for one in left.get(video_id, ())]
        if rows:
            blocks.append(pa.Table.from_pylist(rows, schema=ASKED))
    return blocks


def with_prompts(frames: pa.Table, asked: pa.Table) -> pa.Table:
    """Frames that something is asked about, with a column `prompts`."""
    of_video: dict[str, list[dict[str, str]]] = {}
    for row in asked.select(["video_id", *PROMPT_FIELDS]).to_pylist():
        of_video.setdefault(row.pop("video_id"), []).append(row)
    frames = frames.append_column("prompts", pa.array([of_video.get(one, []) for one in frames["video_id"].to_pylist()], PROMPTS))
    return frames.filter(pc.greater(pc.list_value_length(frames["prompts"]), 0))


def build(ds: "ray.data.Dataset", plan: Plan, writer: ShardWriter, *, where: Where, n_engines: int) -> "ray.data.Dataset":
    """Blocks of what to ask, one for each shard of `frames` -> what describes the files they came to."""
    import ray.data

    # 1. shard -> its frames, each with what is left to ask, 1 to n. A reader per engine, without a core of its own: it waits for the disk,
    #    and engines may hold every core there is. (Ray's read_parquet lists files in a task of one core, whatever it is told: with every
    #    core held, it never runs. And of tasks without a core, unless told how many, Ray starts all at once.)
    ds = ds.map_batches(
        _frames_to_ask, batch_size=None, batch_format="pyarrow", num_cpus=0, compute=ray.data.TaskPoolStrategy(size=n_engines)
    )
    # 2. frames -> files of targets and rejects. An engine per GPU; else one per `teacher_cpus` cores: half of the work is Python on
    #    one thread, so two engines of a core each do more than one on two.
    return ds.map_batches(
        WriteTargets,
        fn_constructor_args=(plan, writer),
        batch_size=plan.settings.videos_per_block,
        batch_format="pyarrow",
        num_cpus=where.teacher_cpus,
        num_gpus=where.teacher_gpus,
        compute=ray.data.ActorPoolStrategy(size=n_engines),
        runtime_env={"env_vars": engine_environment(plan.model, plan.options)},
    )


def asked(recipe: Recipe, where: Where) -> dict[str, Any]:
    """What the stage is asked for. Raises BadInputError if an input is not complete."""
    prompt_set, questions = load_prompt_set(recipe.teacher.prompts), Table(where.data, "questions")
    tables = {"videos": Table(where.data, "videos"), "frames": frames_set(recipe, where.data)}
    if prompt_set.asks_questions and questions.state().begun is not None:  # a folder of clips may have none
        tables["questions"] = questions
    inputs = {name: table.made_from() for name, table in tables.items()}
    return {"prompts": {"id": prompt_set.id, "digest": prompt_set.digest}, "inputs": inputs}


def order(recipe: Recipe, where: Where) -> Order:
    """A row for each prompt of each video that has frames."""
    return _ordered(recipe, where, find_model(recipe.teacher))[0]


def run(recipe: Recipe, where: Where) -> str:
    """Raises BadInputError, StorageError, RowsLostError, StageFailedError, SupersededError."""
    where = where.model_copy(update={"teacher_gpus": gpus_per_engine(recipe.teacher.served_by, where)})
    model = find_model(recipe.teacher)
    targets = targets_set(recipe, where.data, weights=teacher_name(model, recipe.teacher))
    if targets.finished(asked(recipe, where)):
        register(targets, targets_made(recipe, weights=teacher_name(model, recipe.teacher)))
        say(f"targets: {targets.folder} is complete, nothing to do")
        return summary(targets)
    ordered, prompts = _ordered(recipe, where, model)
    attempt, measures = ordered.begin(), {}
    left = {name: [one for one in of_video if target_key(name, one) in attempt.left] for name, of_video in prompts.items()}
    left = {name: of_video for name, of_video in left.items() if of_video}
    if left:
        measures = _write(left, attempt, model, recipe, where)
    attempt.complete(measures=measures)
    if left:
        _tell(targets, measures, where)
    return summary(targets)


def main() -> None:
    print(run(load_recipe(sys.argv[1]), load_where()))


def _ordered(recipe: Recipe, where: Where, model: Model) -> tuple[Order, dict[str, list[Prompt]]]:
    wish = asked(recipe, where)
    videos = Table(where.data, "videos").read(["video_id", "split", "span_kind"])
    frames = frames_set(recipe, where.data).keys()
    prompts = prompts_by_video(
        frames.filter(pc.is_in(frames, value_set=videos["video_id"])).to_pylist(),  # some may be of videos that have left
        videos,
        Table(where.data, "questions").read() if "questions" in wish["inputs"] else QUESTIONS.schema.empty_table(),
        load_prompt_set(recipe.teacher.prompts),
    )
    weights = teacher_name(model, recipe.teacher)
    wanted = sorted(target_key(name, one) for name, of_video in prompts.items() for one in of_video)
    table = targets_set(recipe, where.data, weights=weights)
    return Order(table, wish, wanted, targets_made(recipe, weights=weights)), prompts


def _write(left: PromptsByVideo, attempt: Attempt, model: Model, recipe: Recipe, where: Where) -> dict[str, Any]:
    """Returns what was measured."""
    import ray.data  # here, so that a run with nothing to do starts in a second

    from infra.cluster import cluster, nodes
    from infra.flow import commit_as_it_comes

    frames = frames_set(recipe, where.data)
    n_frames = recipe.frames.sampling.n_frames or most_frames(frames)
    plan = Plan(model, recipe.teacher, engine_options(where), n_frames=n_frames)
    check_room(plan)
    n_prompts, started = sum(map(len, left.values())), time.monotonic()
    with cluster(where), failing(STAGE), counting(STAGE, "prompts", n_prompts) as counter:
        n_engines = engine_count(n_prompts, nodes(where), where)
        metrics.ENGINES.set(n_engines, stage=STAGE)
        say(f"targets: {n_prompts} prompts about {len(left)} videos; starting {n_engines} vLLM engine(s) with {plan.teacher}")
        ds = build(
            ray.data.from_blocks(ask_by_shard(frames.shards_of(left), left)), plan, attempt.writer(), where=where, n_engines=n_engines
        )
        sums = commit_as_it_comes(ds, attempt, counter, stall_s=where.stall_s)
    tokens_per_s = sums["n_tokens"] / up_s if (up_s := measures_of.summed(sums).up_s) else None
    device = "gpu" if where.teacher_gpus else "cpu"
    return {**sums, "seconds": time.monotonic() - started, "n_engines": n_engines, "tokens_per_s": tokens_per_s, "device": device}


def most_frames(frames: Table) -> int:
    """Of the videos, whose sampling has no limit. Reads every shard."""
    return max((len(times) for times in frames.read(["timestamps_s"])["timestamps_s"].to_pylist()), default=1)


def _tell(targets: Table, sums: dict[str, Any], where: Where) -> None:
    """What the run cost, and ten of all targets, always the same ones of the same table."""
    for line in measures_of.told(measures_of.summed(sums), gpus_per_engine=where.teacher_gpus):
        say(f"targets: {line}")
    say("targets: ten of them, drawn by seed 0; more: `video2lora targets browse`")
    drawn = targets.read_keys(measures_of.sampled(targets.keys().to_pylist()), ["video_id", "prompt", "target"])
    for line in measures_of.sample_lines(drawn.to_pylist()):
        say(line)


def _frames_to_ask(asked: pa.Table) -> pa.Table:
    (address,) = set(asked["address"].to_pylist())
    return with_prompts(read_shard(address, FRAME_COLUMNS), asked)


if __name__ == "__main__":
    main()
