"""All items of a benchmark -> those that are asked: seeded, before anyone looks which videos are there, and the same in any order.

Each unit's place follows from the seed and its own name alone (SHA-256), and the first n are taken. So rows that were added or taken
away elsewhere move nothing, and a draw of 100 is a part of the draw of 500.
"""

import hashlib
from collections.abc import Iterable
from typing import Literal

from pipeline.benchmarks.items import Item

By = Literal["question", "video", "style"]


def drawn(items: Iterable[Item], *, n: int, seed: int, by: By) -> list[Item]:
    """`n` of them (0: all), in an order that follows from what they are.

    By question; by video, with all its questions; or by style, of each the items of `n` videos, which are the same ones for each style.
    """
    by_group: dict[str, dict[str, list[Item]]] = {}
    for item in items:
        units = by_group.setdefault(item.style if by == "style" else "", {})
        units.setdefault(item.id if by == "question" else item.videos[0], []).append(item)
    chosen: list[Item] = []
    for units in by_group.values():
        names = sorted(units, key=lambda name: _place(name, seed))
        chosen += [item for name in names[: n or None] for item in units[name]]
    return sorted(chosen, key=lambda item: (item.id, item.references, item.key))


def _place(name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}\n{name}".encode()).hexdigest()
