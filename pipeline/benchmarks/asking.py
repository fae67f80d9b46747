"""A benchmark that is asked for -> its questions in `questions`, its videos in `videos`, split test.

Reads: annotation files, a folder of videos; `files` and `videos`, so that no video that they have of another split becomes a test video.
Writes: through `manifest` what it writes, with the same rejects. Command: `video2lora benchmark NAME ...`. Cost: every byte of each drawn
video that was never read.

Questions are drawn before anyone looks which videos are there. What was drawn stands in the `asked` of `questions`, under `benchmarks`,
and the drawn rows are the table's: run again with another seed or number, they take the place of those before. Benchmarks stand beside
each other, and so do a benchmark's questions of videos of other splits, which teach. Videos of an earlier draw stay in `videos`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from infra.config import Recipe, Where
from infra.errors import BadInputError
from infra.progress import say
from infra.stage import summary
from infra.storage import Table
from pipeline.benchmarks import own
from pipeline.benchmarks.catalogue import JSONL, MADE_WORLD, Benchmark, published
from pipeline.benchmarks.draw import drawn
from pipeline.benchmarks.found import Folder
from pipeline.benchmarks.items import Item, read_file, shown
from pipeline.benchmarks.prompts import prompts_of, worded
from pipeline.benchmarks.seen import trained_on, without_seen
from pipeline.benchmarks.wanted import Wanted
from pipeline.manifest import examine, write_videos
from pipeline.questions import Draw, write_questions
from pipeline.sources import Source, SourceRow

N_NAMED = 10  # missing videos that are said; the rejects of `videos` have all


@dataclass(frozen=True)
class Asked:
    """A benchmark as its user asks for it. `n` is how many are drawn, 0 all, None as many as in the paper."""

    name: str
    annotations: Sequence[str] = ()
    videos: str | None = None
    prompts: Literal["paper", "own"] = "paper"
    n: int | None = None
    seed: int = 0


def run(asked: Asked, recipe: Recipe, where: Where) -> str:
    """What there is now, in a line. Raises BadInputError, StorageError, SupersededError."""
    tables = [Table(where.data, name) for name in ("videos", "questions")]
    before = [table.state().version for table in tables]
    wanted = _wanted(asked, recipe, where)
    missing = _bring_in(wanted, where.data)
    if before == [table.state().version for table in tables]:
        say(f"benchmark {wanted.name}: {tables[1].folder} has all of it, nothing to do")
    if missing:
        more = f", and {len(missing) - N_NAMED} more" if len(missing) > N_NAMED else ""
        say(f"benchmark {wanted.name}: {len(missing)} videos are missing: {', '.join(map(shown, missing[:N_NAMED]))}{more}")
    return "; ".join([_told(wanted, tables[1]), *map(summary, tables)])


def _wanted(asked: Asked, recipe: Recipe, where: Where) -> Wanted:
    if asked.prompts == "own" and asked.name in (MADE_WORLD, JSONL):
        raise BadInputError(f"{asked.name}: --prompts own: its questions are asked as they are written; leave it out")
    if asked.name == MADE_WORLD:
        if asked.annotations or asked.videos:
            raise BadInputError(f"{MADE_WORLD}: got --annotations or --videos, expected none: it renders the recipe's own clips")
        return own.made_world(recipe, where, n=asked.n, seed=asked.seed)
    if asked.name == JSONL:
        return own.jsonl(asked.annotations, asked.videos, where, n=asked.n, seed=asked.seed)
    return _published(asked, published(asked.name), where)


def _published(asked: Asked, benchmark: Benchmark, where: Where) -> Wanted:
    prompts = prompts_of(benchmark.name, asked.prompts)
    if not asked.annotations or asked.videos is None:
        raise BadInputError(f"{benchmark.name}: expected -a {benchmark.annotations} -v {benchmark.videos}; see docs/benchmarks.md")
    files = [read_file(address) for address in asked.annotations]
    if len({file.name for file in files}) < len(files):
        raise BadInputError(f"{benchmark.name}: got annotation files of the same name, by which rejects are known; rename one of them")
    loaded = benchmark.load(files)
    if not loaded.items:
        why = f"{loaded.bad[0][0]}: {loaded.bad[0][1]}" if loaded.bad else "no rows"
        raise BadInputError(f"{benchmark.name}: {', '.join(asked.annotations)}: {why}; expected {benchmark.annotations}")
    n = benchmark.n if asked.n is None else asked.n
    chosen = drawn(loaded.items, n=n, seed=asked.seed, by=benchmark.by)
    folder = Folder(asked.videos, where.roots)
    folder.check(benchmark.name, chosen)
    told = {
        "files": {file.name: file.digest for file in files}, "prompts": asked.prompts, "n": n, "by": benchmark.by, "seed": asked.seed,
        "n_drawn": len(chosen), "n_of_all": len(loaded.items),
    }  # fmt: skip
    return Wanted(
        benchmark.name,
        _videos(benchmark.name, chosen, folder),
        _questions(benchmark.name, chosen, loaded.bad, folder, prompts),
        told,
    )


def _videos(name: str, items: Sequence[Item], folder: Folder) -> Source:
    """Each video and span once, known in rejects by the benchmark's name for it."""
    rows: dict[str, SourceRow] = {}
    for item in sorted(items, key=lambda item: item.videos[0]):
        key = f"{name}:{item.videos[0]}" + ("" if item.span == (None, None) else f"@{item.span[0]}-{item.span[1]}")
        fields = {"uri": folder.address_of(item.videos), "split": "test", "start_s": item.span[0], "end_s": item.span[1]}
        rows.setdefault(key, SourceRow(key, fields))
    return Source(name, folder.address, list(rows.values()))


def _questions(name: str, items: Sequence[Item], bad: Sequence[tuple[str, str]], folder: Folder, prompts: dict[str, str]) -> Source:
    rows = [
        SourceRow(
            f"{name}:{item.key}",
            {
                "uri": folder.address_of(item.videos), "start_s": item.span[0], "end_s": item.span[1], "style": item.style,
                "task": item.task, "question": worded(item.question, item.style, prompts), "references": list(item.references),
                "told_apart_by": item.told_apart_by,
            },
        )
        for item in items
    ]  # fmt: skip
    return Source(name, folder.address, rows + [SourceRow(f"{name}:{key}", {}, problem=why) for key, why in bad])


def _bring_in(wanted: Wanted, root: str) -> list[str]:
    """Through the manifest into the tables; the addresses at which a video is missing."""
    videos = Table(root, "videos")
    examined, why = without_seen(examine(wanted.videos, root), trained_on(root))
    write_videos(videos, examined)
    there = videos.read(["video_id", "split"]).to_pylist()
    tested = frozenset(row["video_id"] for row in there if row["split"] == "test")
    ids = {named: one for named, one in examined.ids.items() if one in tested}
    taught = frozenset(row["video_id"] for row in there) - tested
    write_questions(root, wanted.questions, ids, benchmark=wanted.name, draw=Draw(wanted.told, why, taught))
    return sorted({one["detail"].partition(": ")[0] for one in examined.rejects if one["reason"] == "missing"})


def _told(wanted: Wanted, questions: Table) -> str:
    """How many were drawn, and how many of them are asked."""
    rejects = [row for row in questions.read_rejects().to_pylist() if row["key"].startswith(f"{wanted.questions.address}:")]
    reasons: Counter[str] = Counter(row["reason"] for row in rejects)
    told, n_asked = wanted.told, len(wanted.questions.rows) - len(rejects)
    left = "".join(f", {reason} {n}" for reason, n in sorted(reasons.items()))
    return f"{wanted.name}: {n_asked} of {told['n_drawn']} drawn questions are asked ({told['n_of_all']} in all, seed {told['seed']}{left})"
