"""The one list of stages: name -> module. The command line and the demo start them by name and import none of them.

Each module has `run(recipe, where) -> str`, which does the stage's work (or finds it done) and says in a line what there is now.
"""

import importlib
from typing import Protocol, cast

from infra.config import Recipe, Where

STAGES = {  # in their order; `manifest`, which takes a source besides, stands between clips and frames
    "clips": "pipeline.made_world.clips",
    "frames": "pipeline.frames",
    "targets": "teacher.targets",
    "examples": "pipeline.examples",
    "encode": "training.visual_tokens",
    "train": "training.train",
    "answer": "training.answer",
    "judge": "teacher.judge",
    "report": "training.report",
}


class Stage(Protocol):
    def run(self, recipe: Recipe, where: Where) -> str: ...


def stage(name: str) -> Stage:
    """The module of a stage, imported now."""
    return cast(Stage, importlib.import_module(STAGES[name]))
