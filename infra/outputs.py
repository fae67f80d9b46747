"""A folder that is made once and has no rows: a hypernetwork, the report.

made.json       what makes it, with the same of all its inputs
...             its files
complete.json   written last, with the time
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from infra.digests import now
from infra.errors import BadInputError, MadeFromOtherError
from infra.objects import read_json, remove, write_new


@dataclass(frozen=True)
class Output:
    """A folder under a data root."""

    root: str
    name: str

    @property
    def folder(self) -> str:
        return f"{self.root.rstrip('/')}/{self.name}"

    def begin(self, made_from: dict[str, Any]) -> bool:
        """True if there is work to do, False if it is complete. Raises MadeFromOtherError with the differences."""
        made_from = json.loads(json.dumps(made_from))
        while (there := read_json(f"{self.folder}/made.json")) is None:
            write_new(f"{self.folder}/made.json", _json(made_from))
        differences = list(_differences(there, made_from))
        if differences:
            raise MadeFromOtherError(
                f"{self.folder} was made from something else: {'; '.join(differences[:5])}. "
                "Move it away to make it anew beside the tables there are, or use another data folder (VIDEO2LORA_DATA)."
            )
        return not self.is_complete()

    def is_begun(self) -> bool:
        return read_json(f"{self.folder}/made.json") is not None

    def is_complete(self) -> bool:
        return self.completed_at() is not None

    def completed_at(self) -> str | None:
        """When it was finished, in UTC; None if it is not."""
        complete = read_json(f"{self.folder}/complete.json")
        return None if complete is None else str(complete.get("at", ""))

    def made_from(self) -> dict[str, Any]:
        """What made it. Raises BadInputError if it is not complete: nothing is to be built on it."""
        made = read_json(f"{self.folder}/made.json")
        if made is None or not self.is_complete():
            raise BadInputError(f"{self.folder} is not there or not complete: run the stage that makes it first")
        return dict(made)

    def complete(self) -> None:
        """To be said last."""
        write_new(f"{self.folder}/complete.json", _json({"at": now()}))

    def abandon(self) -> None:
        """Nothing was made: what is begun next may be made from something else."""
        remove(f"{self.folder}/made.json")


def _differences(there: Any, here: Any, path: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted(there.keys() | here.keys()):
            yield from _differences(there.get(name), here.get(name), f"{path}.{name}" if path else name)
    elif there != here:
        yield f"{path}: there {json.dumps(there)}, here {json.dumps(here)}"


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()
