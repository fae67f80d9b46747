"""What a benchmark wants of the tables: sources of videos and questions as `manifest` reads them, and how the questions were drawn."""

from dataclasses import dataclass
from typing import Any

from pipeline.sources import Source


@dataclass(frozen=True)
class Wanted:
    """`told` goes into what the table `questions` was asked for, under the benchmark's name."""

    name: str
    videos: Source
    questions: Source
    told: dict[str, Any]
