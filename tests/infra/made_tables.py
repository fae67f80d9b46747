"""A data root with every table, as the stages would have made it of five videos, without decoding or a teacher."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from infra import sets
from infra.attempt import reject
from infra.config import Recipe, SceneSettings
from infra.evaluation_config import JudgeModel
from infra.judged import Judged
from infra.objects import write_new
from infra.outputs import Output
from infra.stage import Order
from infra.storage import Table
from video2lora.video_file import short_id

RECIPE = Recipe()
SPLITS = ["train", "train", "train", "validation", "test"]
PROMPTS = {"caption-1": "Caption the video.", "summary-2": "Give a summary of this video."}
WEIGHTS = "sha256:0123456789abcdef"


def content(i: int) -> bytes:
    return f"the bytes of video {i}".encode()


def content_hash(i: int) -> str:
    return hashlib.sha256(content(i)).hexdigest()


IDS = [short_id(content_hash(i)) for i in range(5)]


def jpeg(shade: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, shade, shade)).save(data, "JPEG")
    return data.getvalue()


def row(table: Table, **fields: Any) -> dict[str, Any]:
    return dict.fromkeys(table.spec.schema.names) | fields


def make_root(root: Path) -> str:
    """Clips, such as they are, and the tables."""
    root.mkdir(exist_ok=True)
    for i in range(len(IDS)):
        (root / f"{i}.mp4").write_bytes(content(i))
    return make_tables(str(root))


def make_tables(root: str) -> str:
    """Of five videos, number 2 is not to be decoded, and of 1 a caption is unfinished. All books are closed."""
    for make in (make_sources, make_frames, make_targets, make_examples, make_visual_tokens, make_answers, make_judgements):
        make(root, len(IDS))
    return root


def make_sources(root: str, n: int) -> None:
    files, videos, questions = (Table(root, name) for name in ("files", "videos", "questions"))
    rows = [row(files, uri=f"{root}/{i}.mp4", version="20-7", n_bytes=len(content(i)), content=content_hash(i)) for i in range(n)]
    write(Order(files, {"stage": "files"}, [files.spec.key_of(one) for one in rows]), rows)
    rows = [row(videos, video_id=IDS[i], version="v1", uri=f"{root}/{i}.mp4", duration_s=2.0, split=SPLITS[i]) for i in range(n)]
    scenes, made = sets.scenes_set(SceneSettings(), root), sets.scenes_made(SceneSettings())
    cuts = [row(scenes, content=content_hash(i), starts_s=[0.0], ends_s=[2.0]) for i in range(n)]
    write(Order(scenes, {}, [scenes.spec.key_of(one) for one in cuts], made), cuts)
    bad = reject("manifest", "list.jsonl:9", "bad_row", "not JSON")
    asked = {"stage": "manifest", "source": f"{root}/list.jsonl", "content": "abc"}
    write(Order(videos, asked, [*(videos.spec.key_of(one) for one in rows), "list.jsonl:9"]), rows, [bad])
    rows = [
        row(
            questions,
            question_id=f"q{i}{j}",
            version="v1",
            video_id=IDS[i],
            benchmark="made",
            question="What?",
            references=["it"],
            task="question",
        )
        for i in range(n)
        for j in range(2)
    ]
    write(Order(questions, {"stage": "questions"}, [questions.spec.key_of(one) for one in rows]), rows)


def make_frames(root: str, n: int) -> Table:
    frames = sets.frames_set(RECIPE, root)
    rows = [
        row(frames, video_id=IDS[i], sampling="uniform-12", jpegs=[jpeg(40 * i), jpeg(40 * i + 9)], timestamps_s=[0.0, 1.0], duration_s=2.0)
        for i in range(n)
        if i != 2
    ]
    rejects = [reject("frames", IDS[2], "decode_error", f"{root}/2.mp4: no picture in it")] if n > 2 else []
    asked = {"inputs": {"videos": Table(root, "videos").made_from()}}
    write(Order(frames, asked, IDS[:n], sets.frames_made(RECIPE)), rows, rejects)
    return frames


def make_targets(root: str, n: int) -> Table:
    targets = sets.targets_set(RECIPE, root, weights=WEIGHTS)
    rows = [
        row(
            targets, video_id=IDS[i], prompt_id=name, version="p1", teacher=WEIGHTS, task=name.split("-")[0], prompt=text,
            target=f"<b>Words</b> about {i}.", n_tokens=5 + i, finish_reason="stop",
        )
        for i in range(n)
        for name, text in PROMPTS.items()
        if i != 2
    ]  # fmt: skip
    rejected = targets.spec.key_of(rows[2])
    rejects = [reject("targets", rejected, "unfinished_target", "length after 64 tokens: And so")]
    keys = [targets.spec.key_of(one) for one in rows]
    asked = {"inputs": {"frames": sets.frames_set(RECIPE, root).made_from()}}
    order = Order(targets, asked, keys, sets.targets_made(RECIPE, weights=WEIGHTS))
    write(order, [one for one in rows if targets.spec.key_of(one) != rejected], rejects, measures={"tokens_per_s": 50.0, "n_engines": 1})
    return targets


def make_examples(root: str, n: int) -> Table:
    targets = sets.made_targets(RECIPE, root)
    examples, frames = sets.examples_set(RECIPE, targets), sets.frames_set(RECIPE, root)
    words = [{"task": "caption", "prompt": "Caption the video.", "target": "Words."}]
    rows = [row(examples, video_id=IDS[i], version="e1", split=SPLITS[i], jpegs=[jpeg(9)], targets=words) for i in range(n) if i != 2]
    inputs = {name: table.made_from() for name, table in {"videos": Table(root, "videos"), "frames": frames, "targets": targets}.items()}
    order = Order(examples, {"inputs": inputs}, [examples.spec.key_of(one) for one in rows], sets.examples_made(RECIPE, targets))
    write(order, rows)
    return examples


def make_visual_tokens(root: str, n: int) -> Table:
    tokens = sets.visual_tokens_set(RECIPE, root, weights=WEIGHTS)
    sizes = {"n_pictures": 1, "n_image_tokens": 1, "d_vlm": 2}
    rows = [row(tokens, video_id=IDS[i], vlm="0123+float32", tokens=bytes(8), **sizes) for i in range(n) if i != 2 and SPLITS[i] != "test"]
    asked = {"inputs": {"examples": sets.examples_set(RECIPE, sets.made_targets(RECIPE, root)).made_from()}}
    order = Order(tokens, asked, [one["video_id"] for one in rows], sets.visual_tokens_made(RECIPE, weights=WEIGHTS))
    write(order, rows)
    return tokens


def answer(i: int, j: int) -> str:
    """The first one of a video is like no other's, the second like all others'."""
    return "it" if j else f"it is {i}"


def make_judgements(root: str, n: int) -> Table:
    judge = JudgeModel(model="judge")
    judgements = sets.judgements_set(judge, root, weights=WEIGHTS, rubrics="r1")
    words = {answer(i, j): Judged("question", "What?", ("it",), answer(i, j)).judgement_id for i in range(n) for j in range(2)}
    rows = [
        row(judgements, judgement_id=key, score=1.0, points=5, rationale=f"says: {text}", replies=["{}"]) for text, key in words.items()
    ]
    made = sets.judgements_made(judge, weights=WEIGHTS, rubrics="r1")
    write(Order(judgements, {"inputs": {}}, [one["judgement_id"] for one in rows], made), rows)
    return judgements


def make_answers(root: str, n: int) -> Table:
    made = {"stage": "answer"}
    answers = Table(root, "answers", "answers-made")
    rows = [row(answers, question_id=f"q{i}{j}", system="ours", answer=answer(i, j), n_input_tokens=7) for i in range(n) for j in range(2)]
    write(Order(answers, {"inputs": {}}, [answers.spec.key_of(one) for one in rows], made), rows)
    return answers


def make_hypernetwork(root: str) -> Output:
    """Its lineage as training records it, without weights: published, and one checkpoint beside it."""
    examples = sets.examples_set(RECIPE, sets.made_targets(RECIPE, root))
    made_from, output = sets.hypernetwork_made(RECIPE, examples), sets.hypernetwork_output(RECIPE, examples)
    output.begin(made_from)
    for folder in (output.folder, f"{output.folder}/checkpoints/step-00000100-0123abcd"):
        write_new(f"{folder}/config.json", json.dumps({"metadata": {"made_from": made_from, "step": 100}}).encode())
    output.complete()
    return output


def write(order: Order, rows: list[dict[str, Any]], rejects: list[dict[str, Any]] | None = None, **closing: Any) -> None:
    """What is not there yet, two rows to a file; closed with what `closing` says."""
    attempt, spec = order.begin(), order.table.spec
    rows = [one for one in rows if spec.key_of(one) in attempt.left]
    for at in range(0, len(rows), 2):
        attempt.write(rows[at : at + 2], [])
    attempt.write([], [one for one in rejects or [] if one["key"] in attempt.left])
    attempt.complete(**closing)


def everything(root: str) -> dict[str, list[dict[str, Any]]]:
    """All rows and rejects of all tables, by the table's folder below the root, in the order of their keys."""
    found = {}
    for table in sets.tables_of(root):
        rows = sorted(table.read().to_pylist(), key=table.spec.key_of)
        rejects = sorted(table.read_rejects().to_pylist(), key=lambda one: one["key"])
        found[table.folder.removeprefix(f"{root}/")] = rows + rejects
    return found
