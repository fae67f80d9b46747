"""A benchmark's annotation files and videos -> `videos` of split test, and `questions`.

    annotation files -> items (captions.py, questions.py, own.py) -> drawn (draw.py) -> videos found (found.py) -> the manifest's tables

Command: `video2lora benchmark NAME -a FILE -v FOLDER`; `video2lora benchmark list`. Reads and writes what `manifest` does, and goes
through it (asking.py). Sources, prompts and licences: docs/benchmarks.md.
"""

from pipeline.benchmarks.asking import Asked, run
from pipeline.benchmarks.catalogue import print_list

__all__ = ["Asked", "print_list", "run"]
