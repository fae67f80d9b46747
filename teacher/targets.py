"""`frames` x prompts -> `targets`: what the teacher writes about each video, and what it could not, in rejects.

Reads: `frames`; the splits of `videos`; `questions`, where the recipe's prompts ask them. Writes: `targets`, and to rejects
bad_row (its text spells an image token), prompt_too_long, empty_target, unfinished_target (cut off at max_tokens) and teacher_error
(frames that cannot be read).
Command: `video2lora targets`. Cost: 15 s of a core to start an engine; then, for the small VLM and 4 frames, 3 ms per prompt, of which 2
are vLLM's handling of a request, 1 the model, and 0.2 our frames and tokens.

One row in is one prompt, known before any engine starts, so a run with nothing to do starts none. A video's prompts stay together, in
one block of one engine, which encodes it once. Prompts are measured before they are sent: a bad one is a reject and never ends a run.
"""

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.artifacts import QUESTIONS, TARGETS
from infra.config import Recipe, TeacherSettings, Where, load_recipe, load_where
from infra.errors import BadInputError, StageFailedError
from infra.progress import counting, say
from infra.stage import failing, summary
from infra.storage import Table, read_json, reject
from teacher.engine import Engine, Model, Request, Written, engine_environment, find_model, max_model_len, pictures
from teacher.prompts import PROMPT_SETS, QUESTION, Prompt, PromptSet, prompts_of
from video2lora import prompts

if TYPE_CHECKING:
    import ray
    import ray.data

STAGE = "targets"
FRAME_COLUMNS = ["video_id", "sampling", "jpegs", "timestamps_s", "duration_s"]
PROMPTS = pa.list_(pa.struct([(name, pa.string()) for name in ("prompt_id", "task", "prompt")]))
PROMPTS_PER_ENGINE = 3000  # below this, one more engine takes longer to start than it saves (measured on a CPU)

Row = dict[str, Any]
PromptsByVideo = Mapping[str, Sequence[Prompt]]


@dataclass(frozen=True)
class Plan:
    """What every engine of a run is told."""

    model: Model
    settings: TeacherSettings
    sampling: str
    n_frames: int  # the most that a video has
    gpu: bool

    @property
    def teacher(self) -> str:
        return teacher_name(self.model, self.settings)

    @property
    def longest(self) -> int:
        """Tokens that a prompt may have, frames included."""
        return max_model_len(self.model, self.settings) - self.settings.max_tokens


def target_key(video_id: str, prompt: Prompt, teacher: str) -> str:
    """The key of a row or reject, as `Table.done_keys` has it."""
    return f"{video_id}/{prompt.prompt_id}/{teacher}"


def teacher_name(model: Model, settings: TeacherSettings) -> str:
    """The column `teacher`: whose words these are, down to weights and dtype."""
    return f"{model.identity}+{settings.dtype}"


def prompts_by_video(video_ids: Sequence[str], videos: pa.Table, questions: pa.Table, prompt_set: PromptSet) -> dict[str, list[Prompt]]:
    """Every prompt of every video that has frames: the rows that come in."""
    splits = dict(zip(videos["video_id"].to_pylist(), videos["split"].to_pylist(), strict=True))
    own: dict[str, list[Prompt]] = {}
    for row in questions.to_pylist():
        own.setdefault(row["video_id"], []).append(Prompt(row["question_id"], QUESTION, row["question"]))
    return {
        video_id: prompts_of(video_id, split=splits[video_id], questions=own.get(video_id, ()), prompt_set=prompt_set)
        for video_id in video_ids
    }


def without_done(asked: PromptsByVideo, done: set[str], teacher: str) -> dict[str, list[Prompt]]:
    """What is left to ask; videos with nothing left are gone."""
    left = {video_id: [one for one in of_video if target_key(video_id, one, teacher) not in done] for video_id, of_video in asked.items()}
    return {video_id: of_video for video_id, of_video in left.items() if of_video}


def read_shard(address: str) -> pa.Table:
    """The rows of one shard of `frames`."""
    fs, path = fsspec.core.url_to_fs(address)
    return pq.read_table(path, filesystem=fs, columns=FRAME_COLUMNS)


def with_prompts(frames: pa.Table, left: PromptsByVideo, *, sampling: str) -> pa.Table:
    """Frames of this sampling that something is left to ask about, with a column `prompts`."""
    asked = [[asdict(one) for one in left.get(video_id, ())] for video_id in frames["video_id"].to_pylist()]
    frames = frames.append_column("prompts", pa.array(asked, PROMPTS))
    return frames.filter(pc.and_(pc.equal(frames["sampling"], sampling), pc.greater(pc.list_value_length(frames["prompts"]), 0)))


def video_prefix(row: Row) -> str:
    """All that precedes a prompt about these frames, with a bare image token for each."""
    return prompts.video_prefix(row["timestamps_s"], row["duration_s"], placeholder=prompts.IMAGE)


def refused_prompt(request: Request, *, longest: int) -> tuple[str, str] | None:
    """Reason and detail of the reject for a prompt the engine would not take; `longest` in tokens."""
    n_frames = len(request.pictures.images)
    if request.n_image_ids != n_frames:  # the tokenizer reads `<image>` in a text as the token
        return "bad_row", f"got {request.n_image_ids} image tokens, expected {n_frames}, one per frame"
    if request.n_tokens > longest:
        return "prompt_too_long", f"got {request.n_tokens} tokens, expected at most {longest} (teacher.max_model_len)"
    return None


def refused_text(written: Written, *, keep_unfinished: bool) -> tuple[str, str] | None:
    """Reason and detail of the reject for a text that is no target."""
    if written.finish_reason != "stop" and not keep_unfinished:
        return "unfinished_target", f"{written.finish_reason} after {written.n_tokens} tokens: {written.text}"
    if not written.text:
        return "empty_target", f"no text in {written.n_tokens} tokens"
    return None


def target_row(video_id: str, prompt: Prompt, written: Written, teacher: str) -> Row:
    """A row of `targets`."""
    return {
        "video_id": video_id,
        "prompt_id": prompt.prompt_id,
        "teacher": teacher,
        "task": prompt.task,
        "prompt": prompt.prompt,
        "target": written.text,
        "n_tokens": written.n_tokens,
        "finish_reason": written.finish_reason,
    }


class WriteTargets:
    """Holds an engine, which takes seconds to start."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.engine = Engine(plan.model, plan.settings, n_frames=plan.n_frames, gpu=plan.gpu)

    def __call__(self, frames: pa.Table) -> pa.Table:
        """Rows of `frames` with `prompts` -> outcomes, one per prompt."""
        from infra.flow import outcomes  # brings Ray

        asked: list[tuple[str, Prompt, Request]] = []
        rows: list[Row] = []
        rejects: list[Row] = []
        for video in frames.to_pylist():
            able, refused = self.requests(video)
            asked += able
            rejects += refused
        written = self.engine.generate([request for _, _, request in asked]) if asked else []
        for (video_id, prompt, _), one in zip(asked, written, strict=True):
            why = refused_text(one, keep_unfinished=self.plan.settings.unfinished == "keep")
            if why is None:
                rows.append(target_row(video_id, prompt, one, self.plan.teacher))
            else:
                rejects.append(self.reject(video_id, prompt, why))
        return outcomes(TARGETS, rows, rejects)

    def requests(self, video: Row) -> tuple[list[tuple[str, Prompt, Request]], list[Row]]:
        """What can be asked about a video, and a reject for each prompt that cannot."""
        video_id, of_video = video["video_id"], [Prompt(**one) for one in video["prompts"]]
        able: list[tuple[str, Prompt, Request]] = []
        rejects: list[Row] = []
        try:
            seen = pictures(video["jpegs"], size_px=self.plan.model.image_size_px)
        except ValueError as error:
            return [], [self.reject(video_id, one, ("teacher_error", str(error))) for one in of_video]
        for prompt in of_video:
            request = self.engine.request(seen, prefix=video_prefix(video), prompt=prompt.prompt)
            why = refused_prompt(request, longest=self.plan.longest)
            if why is None:
                able.append((video_id, prompt, request))
            else:
                rejects.append(self.reject(video_id, prompt, why))
        return able, rejects

    def reject(self, video_id: str, prompt: Prompt, why: tuple[str, str]) -> Row:
        return reject(STAGE, target_key(video_id, prompt, self.plan.teacher), *why)


def build(ds: "ray.data.Dataset", left: "ray.ObjectRef", plan: Plan, *, where: Where, n_engines: int) -> "ray.data.Dataset":
    """Addresses of shards of `frames`, one a block -> blocks of outcomes."""
    import ray.data

    # 1. shard -> its frames, each with what is left to ask, 1 to n. A reader per engine, without a core of its own: it waits for the disk,
    #    and engines may hold every core there is. (Ray's read_parquet lists files in a task of one core, whatever it is told: with every
    #    core held, it never runs. And of tasks without a core, unless told how many, Ray starts all at once.)
    ds = ds.map_batches(
        _frames_to_ask,
        fn_kwargs={"left": left, "sampling": plan.sampling},
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(size=n_engines),
    )
    # 2. frames -> outcomes, one for each prompt. An engine per GPU; else one per `teacher_cpus` cores: half of the work is Python on
    #    one thread, so two engines of a core each do more than one on two.
    return ds.map_batches(
        WriteTargets,
        fn_constructor_args=(plan,),
        batch_size=plan.settings.videos_per_block,
        batch_format="pyarrow",
        num_cpus=where.teacher_cpus,
        num_gpus=where.teacher_gpus,
        compute=ray.data.ActorPoolStrategy(size=n_engines),
        runtime_env={"env_vars": engine_environment(plan.model, gpu=plan.gpu, n_threads=max(1, round(where.teacher_cpus)))},
    )


def made_from(recipe: Recipe, where: Where, model: Model) -> dict[str, Any]:
    """What the table is made from. Raises BadInputError if an input is not complete."""
    prompt_set = PROMPT_SETS[recipe.teacher.prompts]
    frames, questions = Table(where.data, "frames"), Table(where.data, "questions")
    inputs = {"frames": frames.made_from()}
    if prompt_set.asks_questions and read_json(f"{questions.folder}/made.json") is not None:  # a folder of clips may have none
        inputs["questions"] = questions.made_from()
    weights = teacher_name(model, recipe.teacher)
    return {"stage": STAGE, **recipe.section("teacher"), "weights": weights, "prompts": prompt_set.version, "inputs": inputs}


def run(recipe: Recipe, where: Where) -> str:
    """Raises BadInputError, MadeFromOtherError, StorageError, RowsLostError, StageFailedError."""
    frames, videos, questions, targets = (Table(where.data, name) for name in ("frames", "videos", "questions", "targets"))
    model, sampling = find_model(recipe.teacher), recipe.frames.sampling.name
    made = made_from(recipe, where, model)
    if not targets.begin(made):
        say(f"targets: {targets.folder} is complete, nothing to do")
        return _told(targets)
    seen = frames.read(["video_id", "sampling", "timestamps_s"])
    seen = seen.filter(pc.equal(seen["sampling"], sampling))
    asked = prompts_by_video(
        seen["video_id"].to_pylist(),
        videos.read(["video_id", "split"]),
        questions.read() if "questions" in made["inputs"] else QUESTIONS.schema.empty_table(),
        PROMPT_SETS[recipe.teacher.prompts],
    )
    left = without_done(asked, targets.done_keys(), teacher_name(model, recipe.teacher))
    if left:
        n_frames = pc.max(pc.list_value_length(seen["timestamps_s"])).as_py()
        plan = Plan(model, recipe.teacher, sampling=sampling, n_frames=n_frames, gpu=where.teacher_gpus > 0)
        _write(frames, left, plan, targets=targets, where=where)
    targets.complete(n_in=sum(map(len, asked.values())))
    return _told(targets)


def main() -> None:
    print(run(load_recipe(sys.argv[1]), load_where()))


def _write(frames: Table, left: PromptsByVideo, plan: Plan, *, targets: Table, where: Where) -> None:
    import ray  # here, so that a run with nothing to do starts in a second

    from infra.cluster import cluster

    check_room(plan)
    n_prompts, n_before, started = sum(map(len, left.values())), _n_tokens(targets), time.monotonic()
    with cluster(where):
        n_engines = min(math.ceil(n_prompts / PROMPTS_PER_ENGINE), engines_that_fit(ray.cluster_resources(), where))
        say(f"targets: {n_prompts} prompts about {len(left)} videos; starting {n_engines} vLLM engine(s) with {plan.teacher}")
        with failing(STAGE):
            ds = ray.data.from_arrow([pa.table({"address": [shard]}) for shard in frames.shards()])
            ds = build(ds, ray.put(left), plan, where=where, n_engines=n_engines)
            _commit(iter(ds.iter_batches(batch_size=None, batch_format="pyarrow")), targets, n_prompts=n_prompts)
    n_tokens, seconds = _n_tokens(targets) - n_before, time.monotonic() - started
    say(f"targets: {n_tokens} tokens in {seconds:.1f} s, {n_tokens / seconds:.1f}/s, start of Ray and engines included")


def _commit(blocks: Iterator[pa.Table], targets: Table, *, n_prompts: int) -> None:
    """Counts from the first block on: until then engines start, and a rate would say nothing of the time left."""
    from infra.flow import commit_outcomes

    first = next(blocks, None)
    if first is None:
        return  # closing the books finds the rows that are missing
    with counting(STAGE, "prompts", n_prompts) as counter:
        for block in chain((first,), blocks):
            commit_outcomes(targets, block)
            counter.advance(len(block))


def check_room(plan: Plan) -> None:
    """Says where the model has fewer positions than the recipe asks for. Raises BadInputError where frames alone fill the context."""
    if plan.model.max_positions < plan.settings.max_model_len:
        say(f"targets: teacher.max_model_len: got {plan.settings.max_model_len}, taking the model's own {plan.model.max_positions}")
    n_needed = plan.n_frames * plan.model.n_image_tokens
    if n_needed > plan.longest:
        raise BadInputError(
            f"recipe: teacher.max_model_len: {plan.n_frames} frames are {n_needed} tokens, and {plan.longest} is all that "
            f"max_model_len and max_tokens leave; take fewer frames or a larger max_model_len"
        )


def engines_that_fit(resources: Mapping[str, float], where: Where) -> int:
    """How many engines the cluster has room for. Raises StageFailedError for none: Ray would wait for ever."""
    wanted = {"CPU": where.teacher_cpus, "GPU": where.teacher_gpus}
    fit = [int(resources.get(name, 0.0) / n) for name, n in wanted.items() if n > 0]
    if min(fit, default=1) < 1:
        raise StageFailedError(f"targets: an engine asks for {wanted} and the Ray cluster has {dict(resources)}; see VIDEO2LORA_TEACHER_*")
    return min(fit, default=1)


def _told(targets: Table) -> str:
    return summary(targets, rows=f"rows of {_n_tokens(targets)} tokens")


def _n_tokens(targets: Table) -> int:
    return pc.sum(targets.read(["n_tokens"])["n_tokens"]).as_py() or 0


def _frames_to_ask(addresses: pa.Table, *, left: "ray.ObjectRef", sampling: str) -> pa.Table:
    import ray

    (address,) = addresses["address"].to_pylist()
    return with_prompts(read_shard(address), ray.get(left), sampling=sampling)


if __name__ == "__main__":
    main()
