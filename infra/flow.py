"""Ray Data -> committed tables: what a stage's last step hands on, and how the driver commits it.

Workers write their files themselves and hand on what describes them, a kilobyte each, so no row passes through Ray's object store or
the driver. The driver, which alone may, commits what has arrived: a killed run loses at most the blocks in flight, one per worker.
Nothing arriving for too long is an error that says what the cluster was doing, not a wait without end.
"""

import json
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from ray.data import Dataset

from infra import metrics
from infra.attempt import Attempt
from infra.errors import StageFailedError
from infra.progress import Counter
from infra.state import File

_TOLD = pa.schema([("file", pa.string()), ("measures", pa.string())])

Measures = dict[str, float]


def told(files: Sequence[File], measures: Measures | None = None) -> pa.Table:
    """What a block came to, as a block: a row for each of its files, and one for what was measured on the way."""
    described = [{**file.described(), "reasons": file.reasons} for file in files]
    rows: list[dict[str, Any]] = [{"file": json.dumps(one), "measures": None} for one in described]
    if measures is not None:
        rows.append({"file": None, "measures": json.dumps(measures)})
    return pa.Table.from_pylist(rows, schema=_TOLD)


def commit_as_it_comes(ds: Dataset, attempt: Attempt, counter: Counter, *, stall_s: float) -> Measures:
    """Run the flow and commit its files, counting keys; returns the sums of what was measured.

    Raises StageFailedError if nothing arrives for `stall_s`; SupersededError, StorageError; what the flow raises.
    """
    sums: Measures = {}
    metrics.begun(attempt.table.name, n_left=len(attempt.left))
    for block in arriving(ds, batch_size=None, stall_s=stall_s):
        counter.advance(attempt.commit(files_of(block)))
        for text in block["measures"].drop_null().to_pylist():
            measures = json.loads(text)
            metrics.measured(attempt.table.name, measures)
            for name, value in measures.items():
                sums[name] = sums.get(name, 0.0) + value
    return sums


def files_of(block: pa.Table) -> list[File]:
    """The files that `told` told of."""
    described = [json.loads(text) for text in block["file"].drop_null().to_pylist()]
    return [File(**{**one, "keys": tuple(one["keys"]), "reasons": tuple(one["reasons"])}) for one in described]


def arriving(ds: Dataset, *, batch_size: int | None, stall_s: float) -> Iterator[pa.Table]:
    """Batches as they come (None: blocks). A thread waits for Ray, since its own waiting has no end; one batch waits in memory."""
    came: queue.Queue[pa.Table | BaseException | None] = queue.Queue(maxsize=1)

    def pull() -> None:
        try:
            for batch in ds.iter_batches(batch_size=batch_size, batch_format="pyarrow"):
                came.put(batch)
            came.put(None)
        except BaseException as error:
            came.put(error)

    threading.Thread(target=pull, daemon=True, name="ray-data").start()
    while True:
        try:
            found = came.get(timeout=stall_s)
        except queue.Empty:
            raise StageFailedError(
                f"nothing was finished for {stall_s:.0f} s (VIDEO2LORA_STALL_S): {_what_ray_does()}; "
                "what was committed is kept, the same command continues"
            ) from None
        if isinstance(found, BaseException):
            raise found
        if found is None:
            return
        yield found


def _what_ray_does() -> str:
    import ray

    there, free = ray.cluster_resources(), ray.available_resources()
    parts = [f"{name} {free.get(name, 0.0):g} of {there[name]:g} free" for name in ("CPU", "GPU") if name in there]
    return f"the Ray cluster has {len(ray.nodes())} node(s), {', '.join(parts)}"
