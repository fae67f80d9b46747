"""MLflow: one run of the experiment `training` per data folder and recipe, however often it was interrupted.

Writes: recipe as parameters, what it came from as tags, metrics, artifacts, the model's entry in the registry; by default to
sqlite:///<data>/mlflow.db and <data>/mlartifacts, else to the server that MLFLOW_TRACKING_URI names.

Tracking may be away, also from the start: that is said once and stops nothing. What it missed is kept in order, each point with the time
it happened at, and sent once when it is back: tried again every half minute with whatever is logged then, and by the next `open_run` of
the recipe, for what is left lies in storage (`infra.outbox`). A process that is killed while tracking is away loses what it logged within
that half minute; one that is killed between sending what was kept and saying so sends it again, which `infra.mlflow_run` makes harmless.

Every failure of MLflow, of whatever kind, ends in a line; what tells this process to end goes through. Credentials never pass through here
into a message, a file or a tag.
"""

import atexit
import base64
import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from infra import metrics
from infra.config import HOW, Recipe, Where
from infra.errors import CommandError, StorageError, command_error
from infra.lineage import Tags, code_tags, table_tags
from infra.mlflow_run import how, now_ms, opened, registered_name, send
from infra.objects import read_bytes, size_on_disk
from infra.outbox import Item, Outbox
from infra.progress import say

if TYPE_CHECKING:
    from mlflow import MlflowClient

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with the password that it may carry, among what commands print
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's own 7 hold a training up for minutes when the server is away
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
RETRY_S = 30.0  # between two tries while tracking is away
WAIT_SHARE = 10  # and so many times what a failed one took, that the caller waits a tenth of the time at most
AT_THE_END_S = 5.0  # what failed so short a time ago is not tried once more when the run is closed
LOGICAL_RUN = "video2lora.logical_run"  # the tag that names the run of `infra.runs` which it was made in
KEPT_BYTES = 1 << 20  # of a file that is kept by its content; a larger one by its address

Metric = tuple[str, float, int]
"""Name, value, step."""

Point = tuple[str, float, int, int]
"""Name, value, time in ms since 1970, step."""


class Run:
    """An MLflow run, open for this process; for one thread at a time. What cannot be sent is kept. Raises TerminatedError alone."""

    def __init__(self, where: Where, recipe: Recipe, *, uri: str, made_from: dict[str, Any] | None) -> None:
        """Raises StorageError."""
        self.where, self.recipe, self.uri, self.lineage = where, recipe, uri, table_tags(made_from or {})
        self.began_ms = now_ms()
        self.outbox = Outbox(_folder(where, recipe))
        self.identity, kept = self.outbox.open()
        self.pending: list[tuple[int | None, Item]] = [(number, item) for number, items in kept.items() for item in items]
        self.stored = set(kept)  # numbers of the outbox's entries whose items are among the pending ones
        self.client: MlflowClient | None = None
        self.run_id: str | None = None  # None until the server was there
        self.is_away, self.tried_s, self.wait_s = False, 0.0, 0.0
        running = {"kind": "status", "status": "RUNNING", "at_ms": self.began_ms}
        tags = [] if made_from is None else [{"kind": "tags", "tags": {**code_tags(), **how(recipe), **self.lineage}}]
        if where.run is not None:
            tags.append({"kind": "tags", "tags": {LOGICAL_RUN: where.run}})
        self._log(running, *tags)
        atexit.register(self.close)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def log_metrics(self, metrics: Sequence[Metric], *, at_ms: int | None = None) -> None:
        """Points that happened at `at_ms` (since 1970), by default now."""
        at_ms = at_ms or now_ms()
        self.log_points([(name, value, at_ms, step) for name, value, step in metrics])

    def log_points(self, points: Sequence[Point]) -> None:
        """Points with a time of their own. The same point again is no second one: MLflow's database has it by all that it is."""
        self._log({"kind": "metrics", "points": [(name, float(value), at_ms, step) for name, value, at_ms, step in points]})

    def log_files(self, addresses: Sequence[str], *, folder: str) -> None:
        """Files of a disk or a bucket as artifacts in a folder of the run. Those of 1 MiB or more must stay while tracking is away."""
        self._log(*(_file(address, folder=folder) for address in addresses))

    def log_bytes(self, data: bytes, *, folder: str, name: str) -> None:
        """An artifact. One of 1 MiB or more is left out while tracking is away: give `log_files` the address where it lies instead."""
        self._log({"kind": "file", "folder": folder, "name": name, "data": base64.b64encode(data).decode()})

    def register_model(self, *, folder: str, tags: Tags) -> None:
        """The artifacts in a folder of the run become a version of the registered model `video2lora-<VLM>`, with its tables as tags.

        Tags tell what it is (the hash of its weights): a version of this run that has them all is not made again.
        """
        name = registered_name(self.recipe.vlm.model)
        self._log({"kind": "model", "name": name, "folder": folder, "tags": {**self.lineage, **tags}})

    def end(self) -> None:
        """The run is finished, and closed; a later `open_run` of the same recipe opens it again."""
        self._log({"kind": "status", "status": "FINISHED", "at_ms": now_ms()})
        self.close()

    def close(self) -> None:
        """What is left goes to storage. To be said before the same recipe is opened again; by itself when the process ends."""
        atexit.unregister(self.close)
        if self.pending:
            self._deliver(wait_s=AT_THE_END_S)
        self._keep()

    def _log(self, *items: Item) -> None:
        self.pending += [(None, item) for item in items]
        self._deliver(wait_s=self.wait_s)

    def _deliver(self, *, wait_s: float) -> None:
        """Send what is pending, unless the last try failed less than `wait_s` seconds ago."""
        if self.is_away and time.monotonic() < self.tried_s + wait_s:
            return
        late = list(self.pending) if self.is_away or self.stored else []
        started_s, underway = time.monotonic(), sys.exception()
        try:
            self._send_all()
        except Exception as error:  # whatever MLflow, its database driver or the network raise: see the module's docstring
            if (ours := ended_by(error, underway)) is not None:
                raise ours from None
            self.client = None  # the next try looks for the run again: it may be another server's database by then
            self.tried_s = time.monotonic()
            self.wait_s = max(RETRY_S, WAIT_SHARE * (self.tried_s - started_s))
            if not self.is_away:
                say(f"tracking: {public(self.uri)} is away ({type(error).__name__}); going on without it")
            self.is_away = True
            metrics.TRACKING_AWAY.set(1)
            self._keep()
            return
        self.is_away = False
        metrics.TRACKING_AWAY.set(0)
        if late:
            say(f"tracking: {public(self.uri)} is back; {_counted([item for _, item in late])} sent")
        self._settle()

    def _send_all(self) -> None:
        if self.client is None:
            from mlflow import MlflowClient

            for name in ("alembic", "mlflow"):
                logging.getLogger(name).setLevel(logging.ERROR)
            client = MlflowClient(tracking_uri=self.uri)
            self.run_id = opened(client, self.where, self.recipe, identity=self.identity, began_ms=self.began_ms)
            self.client = client
        while self.pending:
            del self.pending[: send(self.client, str(self.run_id), [item for _, item in self.pending])]

    def _keep(self) -> None:
        """Bring to storage what is pending and not there yet, and say what need not be sent any more."""
        self.pending = [(number, item) for number, item in self.pending if number is not None or _is_kept(item)]
        fresh = [item for number, item in self.pending if number is None]
        try:
            if fresh:
                kept = self.outbox.keep(fresh)
                self.stored.add(kept)
                self.pending = [(kept if number is None else number, item) for number, item in self.pending]
        except StorageError as error:
            say(f"tracking: what it missed cannot be kept: {error}")
        self._settle()

    def _settle(self) -> None:
        gone = self.stored - {number for number, _ in self.pending if number is not None}
        try:
            if gone:
                self.outbox.sent(sorted(gone))
                self.stored -= gone
        except StorageError as error:
            say(f"tracking: that it was sent cannot be kept, so it will be sent again: {error}")


def open_run(where: Where, recipe: Recipe, *, made_from: dict[str, Any] | None = None) -> Run | None:
    """The recipe's run, which gets what was kept for it first; None where nothing can be tracked.

    `made_from`, as the output's made.json has it, tells which tables it was made from; give it where training goes on.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    uri = tracking_uri(where)
    if uri is None:
        say("tracking: the data folder is no local folder and MLFLOW_TRACKING_URI is not set, so nothing is tracked")
        return None
    try:
        return Run(where, recipe, uri=uri, made_from=made_from)
    except StorageError as error:
        say(f"tracking: {error}; going on without it")
        return None


def log_artifacts(where: Where, recipe: Recipe, paths: Sequence[str], *, folder: str = "report") -> None:
    """Attach files to the recipe's run."""
    run = open_run(where, recipe)
    if run is not None:
        run.log_files(paths, folder=folder)
        run.end()


def send_missed(where: Where, recipe: Recipe) -> None:
    """Send what was kept for the recipe, if anything was: of a finished training, whose command has nothing else to do."""
    try:
        if Outbox(_folder(where, recipe)).read()[1] and (run := open_run(where, recipe)) is not None:
            run.end()
    except StorageError as error:
        say(f"tracking: {error}; going on without it")


def tracking_uri(where: Where) -> str | None:
    """Where MLflow keeps its runs; None if the data folder is in a bucket and nothing else is named."""
    if where.mlflow_tracking_uri is not None:
        return where.mlflow_tracking_uri
    return None if "://" in where.data else f"sqlite:///{os.path.abspath(where.data)}/mlflow.db"


def ended_by(error: Exception, underway: BaseException | None) -> CommandError | None:
    """What told this process to end while MLflow was at work, which takes it for a failure of its own; None where that is not behind it.

    `underway` was on its way before.
    """
    found = command_error(error)
    return None if found is command_error(underway) else found


def public(uri: str) -> str:
    """An address without user, password and query. A database's password may hold a / as well, so it ends at the last @."""
    scheme, sign, rest = uri.partition("://")
    if not sign:
        return uri
    before, _, shown = rest.rpartition("@") if not rest.startswith("/") else ("", "", rest)  # of a file, its path may have an @
    if re.search("[?#]", before):
        return f"{scheme}://..."  # of a password or of a query: who can tell
    return f"{scheme}://{re.split('[?#]', shown)[0]}"


def _folder(where: Where, recipe: Recipe) -> str:
    """Of the outbox: one for each server and recipe, whatever the settings that may change between attempts."""
    settings = recipe.model_dump(mode="json", exclude={"training": set(HOW)})
    told = json.dumps([public(where.mlflow_tracking_uri or ""), settings], sort_keys=True)
    return f"{where.data.rstrip('/')}/tracking/{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def _file(address: str, *, folder: str) -> Item:
    """A small file of this machine by its content, which nothing can change or remove any more."""
    item = {"kind": "file", "folder": folder, "name": address.rsplit("/", 1)[-1]}
    size = size_on_disk(address)
    try:
        data = None if size is None or size >= KEPT_BYTES else read_bytes(address)
    except StorageError:
        data = None  # said when it is to be sent
    if data is None:
        return {**item, "address": address if "://" in address else os.path.abspath(address)}
    return {**item, "data": base64.b64encode(data).decode()}


def _is_kept(item: Item) -> bool:
    """Whether it is small enough; says so if not."""
    if len(item.get("data", "")) * 3 // 4 < KEPT_BYTES:
        return True
    say(f"tracking: {item['folder']}/{item['name']} is too large to be kept until tracking is back; left out")
    return False


def _counted(items: list[Item]) -> str:
    n_points = sum(len(item["points"]) for item in items if item["kind"] == "metrics")
    n_files = sum(item["kind"] == "file" for item in items)
    return f"{n_points} points" + (f", {n_files} files" if n_files else "")
