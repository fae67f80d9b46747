"""The benchmarks there are, what each wants, and how many of its questions are drawn: as many as in the paper (4.2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from infra.errors import BadInputError
from pipeline.benchmarks import captions, questions
from pipeline.benchmarks.draw import By
from pipeline.benchmarks.items import File, Loaded
from pipeline.benchmarks.prompts import WITHOUT_OWN


@dataclass(frozen=True)
class Benchmark:
    """`n` units are drawn by default: questions, videos with all their questions, or videos of each style."""

    name: str
    load: Callable[[Sequence[File]], Loaded]
    annotations: str
    videos: str
    n: int = 500
    by: By = "question"


PUBLISHED = (
    Benchmark("activitynet_captions", captions.activitynet_captions, "val_1.json -a val_2.json", "folder of v_ID.mp4"),
    Benchmark("plm_rdcap", captions.plm_rdcap, "plm_rdcap_test.jsonl", "SA-V's videos_fps_6"),
    Benchmark("plm_rcap", captions.plm_rcap, "plm_rcap_test.jsonl", "SA-V's videos_fps_6"),
    Benchmark("vdc", captions.vdc, "VDC_1k.jsonl", "videos", by="style"),
    Benchmark("carebench", captions.carebench, "metadata.json", "videos", by="style"),
    Benchmark("nextqa", questions.nextqa, "test.csv [-a add_reference_answer_test.json]", "folder of ID.mp4"),
    Benchmark("activitynet_qa", questions.activitynet_qa, "test_q.json -a test_a.json", "folder of v_ID.mp4"),
    Benchmark("plm_sgqa", questions.plm_sgqa, "plm_sgqa_test.jsonl", "videos/sgqa"),
    Benchmark("vidcapbench", questions.vidcapbench, "VidCapBench-AE_QA.jsonl [-a VidCapBench-HE_QA.jsonl]", "videos", n=100, by="video"),
)
MADE_WORLD, JSONL = "made_world", "jsonl"
OTHERS = (
    (MADE_WORLD, "nothing: renders the recipe's world"),
    (JSONL, "-a one file of uri, question, references [, style, task, ...] [-v what uris count from, else its folder]"),
)
UNITS = {"question": "questions", "video": "videos, all questions", "style": "of each style"}


def published(name: str) -> Benchmark:
    """Raises BadInputError for a name that is none."""
    found = next((one for one in PUBLISHED if one.name == name), None)
    if found is None:
        names = ", ".join([*(one.name for one in PUBLISHED), *(other for other, _ in OTHERS)])
        raise BadInputError(f"benchmark {name!r}: expected one of {names}")
    return found


def print_list() -> None:
    """The benchmarks as a table on standard output, a line each whatever the terminal's width."""
    rows = [("NAME", "DRAWN", "OWN PROMPTS", "WANTS")]
    for one in PUBLISHED:
        own = "none" if one.name in WITHOUT_OWN else "yes"
        rows.append((one.name, f"{one.n} {UNITS[one.by]}", own, f"-a {one.annotations} -v {one.videos}"))
    rows += [(name, "all", "no others", wants) for name, wants in OTHERS]
    for name, n_drawn, own, wants in rows:
        print(f"{name:<22}{n_drawn:<26}{own:<13}{wants}")
