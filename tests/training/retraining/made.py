"""A data folder as the stages leave it, made in a second: clips that are mere bytes, targets without a teacher, hypernetworks without
training, answers that are right or wrong as a test wants them. `retrain` finds each stage done, and is left with deciding.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from made_examples import a_row, fill_hypernetwork

from infra import jobs
from infra.attempt import reject
from infra.config import Recipe, Where
from infra.outputs import Output
from infra.promotions import Standing, standing
from infra.seen import write_seen
from infra.sets import answers_made, answers_set, examples_set, made_targets
from infra.stage import Order
from infra.storage import Table
from pipeline import manifest
from training import gate, retrain
from video2lora.tiny.build import build_model, build_tokenizer
from video2lora.video_file import short_id

N_TEST = 60  # clips: the gate asks for 59 where no answer differs
VLM = "toy"

RIGHT = {"base": True, "ours": True, "champion": True, "blind": False}


def a_recipe(folder: Path, **settings: Any) -> Recipe:
    """Of a VLM that has a config and no weights, and of a teacher likewise."""
    vlm = folder / VLM
    if not vlm.exists():
        build_model(build_tokenizer(["a word"], vocab_size=300), seed=0).config.save_pretrained(vlm)
    plain = {
        "vlm": {"model": str(vlm)},
        "frames": {"sampling": {"policy": "uniform", "n_frames": 3}, "longest_edge_px": 31},
        "answer": {"systems": ["ours"]},
        "evaluation": {"n_draws": 500},
        "training": {"n_steps": 3},
    }
    return Recipe.model_validate_json(json.dumps(plain | settings))


class Source:
    """A JSONL of clips and the questions beside it; of a folder that is there, what it has."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder, list[dict[str, Any]]()
        if folder.is_dir():
            self.rows = [json.loads(line) for line in Path(self.address).read_text().splitlines()]
            return
        folder.mkdir(parents=True)
        for i in range(N_TEST):
            self.add(f"test {i}", split="test")

    @property
    def address(self) -> str:
        return str(self.folder / "clips.jsonl")

    def add(self, content: str, *, split: str = "train", name: str | None = None) -> None:
        """A clip of this content, under another name than its own if one is given."""
        file = self.folder / f"{(name or content).replace(' ', '-')}.mp4"
        file.write_bytes(content.encode())
        self.rows = [row for row in self.rows if row["uri"] != file.name] + [{"uri": file.name, "split": split}]
        self._write()

    def remove(self, name: str) -> None:
        self.rows = [row for row in self.rows if row["uri"] != f"{name.replace(' ', '-')}.mp4"]
        self._write()

    def _write(self) -> None:
        Path(self.address).write_text("".join(f"{json.dumps(row)}\n" for row in self.rows))
        asked = [{"uri": row["uri"], "question": "What?", "references": ["red"]} for row in self.rows if row["split"] == "test"]
        (self.folder / "questions.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in asked))


def prepare(source: Source, recipe: Recipe, where: Where, *, unreadable: tuple[str, ...] = ()) -> None:
    """Videos, frames, targets and examples; a clip whose content is named cannot be decoded."""
    manifest.run(source.address, recipe, where)
    bad = {content_id(content) for content in unreadable}
    row = a_row(0)
    pictures = {name: row[name] for name in ("jpegs", "timestamps_s", "duration_s")}
    order = _order("frames", recipe, where)
    sizes = {"sampling": "uniform-3", "height_px": 29, "width_px": 31}
    _write(order, {key: {"video_id": key, **pictures, **sizes} for key in order.wanted if key not in bad})
    order = _order("targets", recipe, where)
    said = {"teacher": "nobody", "task": "caption", "prompt": "Caption.", "target": "Words.", "n_tokens": 2, "finish_reason": "stop"}
    _write(order, {key: dict(zip(("video_id", "prompt_id", "version"), key.split("/"), strict=True)) | said for key in order.wanted})
    order = _order("examples", recipe, where)
    splits = {one["video_id"]: one["split"] for one in Table(where.data, "videos").read(["video_id", "split"]).to_pylist()}
    _write(
        order,
        {
            key: {
                "video_id": key.split("/")[0],
                "version": key.split("/")[1],
                "split": splits[key.split("/")[0]],
                **pictures,
                "targets": [],
            }
            for key in order.wanted
        },
    )


def content_id(content: str) -> str:
    """The video's."""
    return short_id(hashlib.sha256(content.encode()).hexdigest())


def _order(stage: str, recipe: Recipe, where: Where) -> Order:
    order: Order = import_module(jobs.STAGES[stage]).order(recipe, where)
    return order


def _write(order: Order, rows: Mapping[str, dict[str, Any]]) -> None:
    attempt = order.begin()
    missing = [reject(order.table.name, key, "decode_error") for key in attempt.left if key not in rows]
    blank = dict.fromkeys(order.table.spec.schema.names)
    attempt.write([blank | rows[key] for key in sorted(attempt.left) if key in rows], missing)
    attempt.complete()


def train(recipe: Recipe, where: Where) -> Output:
    """A hypernetwork of what there is now."""
    examples = examples_set(recipe, made_targets(recipe, where.data))
    state = examples.state().completed or {}
    weights = hashlib.sha256(json.dumps([state["rows"], recipe.training.model_dump(mode="json")]).encode()).hexdigest()
    config = {
        "format": "video2lora-hypernetwork-1",
        "hypernetwork": {"n_layers": 4, "r": recipe.hypernetwork.r, "target_modules": {"down_proj": [384, 128]}, "static_adapter": True},
        "metadata": {"vlm": {"model": recipe.vlm.model}, "step": 3, "losses": [], "validation": [], "n_rejected": 0},
        "weights_sha256": weights,
    }
    output = fill_hypernetwork(recipe, examples, {"config.json": json.dumps(config).encode()})
    write_seen(output.folder, examples, start_from=recipe.training.start_from)
    return output


def answer(recipe: Recipe, where: Where, right: Mapping[str, bool] = RIGHT, *, trained: bool = False) -> Standing:
    """Hypernetwork (unless it is `trained`) and answers as `retrain` will ask for them now; a system that is right is always right."""
    seen = standing(where.data, VLM)
    challenging = gate.asked(retrain.started(recipe, seen), seen.champion)
    if not trained:
        train(challenging, where)
    table = answers_set(challenging, where.data)
    asked = Table(where.data, "questions").read(["question_id"])["question_id"].to_pylist()
    common = {"n_input_tokens": 5, "n_visual_tokens": 0, "ttft_s": None}
    rows = {
        f"{name}/{system}": {"question_id": name, "system": system, "answer": "red" if right[system] else "a cow", **common}
        for name in asked
        for system in challenging.answer.systems
    }
    _write(Order(table, answers_made(challenging, where.data), sorted(rows), answers_made(challenging, where.data)), rows)
    return seen


@contextmanager
def before_entry(log: str, n: int, do: Callable[[], object]) -> Iterator[None]:
    """In the block, `do` right before an entry takes its name in a log for the n-th time: by Python's audit events, nothing is replaced."""
    left = [n]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if left and event == "os.link" and f"/{log}/" in str(arguments[1]):
            left[0] -= 1
            if not left[0]:
                left.clear()
                do()

    sys.addaudithook(hook)
    try:
        yield
    finally:
        left.clear()
