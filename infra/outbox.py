"""What the tracking server could not be told, kept in storage: the next process of the same recipe reads it there and sends it.

    <data>/tracking/<digest of the recipe>/
        00000000.json       who the run is: a random name, written before anything is sent, by which the server's run is found again
        00000001.json ...   kept: items, in order; or sent: numbers of entries that need not be sent any more

A numbered log (`infra.log`), on a disk or in a bucket, as tables have it: nothing is overwritten and two processes may write to it. What
has been sent stays in it as it is: a few kilobytes for each hour without a server.
"""

import uuid
from typing import Any

from infra.log import Log

Item = dict[str, Any]
"""One thing to send, as plain JSON; its kinds are those of `infra.mlflow_run.send`."""


class Outbox:
    """The log of one run, and where it ends as far as this process knows."""

    def __init__(self, folder: str) -> None:
        self.log, self.n_entries = Log(folder), 0

    def read(self) -> tuple[str | None, dict[int, list[Item]]]:
        """Who the run is, None if it has never been opened; number of an entry -> its items, of those not sent yet. Raises StorageError."""
        entries = list(self.log.read())
        self.n_entries = len(entries)
        sent = {number for entry in entries if entry["kind"] == "sent" for number in entry["numbers"]}
        kept = {number: entry["items"] for number, entry in enumerate(entries) if entry["kind"] == "kept" and number not in sent}
        return (entries[0]["id"] if entries else None), kept

    def open(self) -> tuple[str, dict[int, list[Item]]]:
        """As `read`, with a name for a run that has none. Raises StorageError."""
        while True:
            identity, kept = self.read()
            if identity is not None:
                return identity, kept
            self.log.append({"kind": "identity", "id": uuid.uuid4().hex}, number=0)

    def keep(self, items: list[Item]) -> int:
        """The number under which the items lie in storage now. Raises StorageError."""
        return self._append({"kind": "kept", "items": items, "by": uuid.uuid4().hex})

    def sent(self, numbers: list[int]) -> None:
        """The items of these entries have been sent, or never will be. Raises StorageError."""
        self._append({"kind": "sent", "numbers": numbers})

    def _append(self, entry: dict[str, Any]) -> int:
        while not self.log.append(entry, number=self.n_entries):
            self.n_entries += 1
        self.n_entries += 1
        return self.n_entries - 1
