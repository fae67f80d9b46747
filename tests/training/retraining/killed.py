"""`retrain` killed at each change of what it decides by, one after the other, and run again. As a program: everything is imported once, and
each run is a fork of it, that ends itself by SIGKILL right before its n-th file appears in the logs of runs and promotions (Python's audit
events; nothing of ours is replaced). Arguments, as JSON: folder of the recipe, address of the clips, data folder to begin with, folder for
the copies. A line of JSON for each n, until a run ends by itself.
"""

import json
import os
import shutil
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

LOGS = ("/runs/log/", "/promotions/log/")


def tick(base: Path, source: str, data: str, *, kill_at: int = 0) -> int:
    """Exit code of a run in a process of its own, negative for a signal."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.dup2(2, 1)  # what it prints is not for who reads ours
    try:
        if kill_at:
            sys.addaudithook(Killer(kill_at))
        from infra.config import Where
        from infra.heartbeat import Pace
        from tests.training.retraining.made import a_recipe
        from training import retrain

        where = Where(data=data, run="nightly", mlflow_tracking_uri="http://127.0.0.1:9")
        told = retrain.run(source, a_recipe(base), where, pace=Pace(beat_s=0.05, lease_s=0.4))
        print(told, file=sys.stderr)
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)


class Killer:
    """Of this process, before a name of the logs is taken for the n-th time."""

    def __init__(self, n: int) -> None:
        self.n_left = n

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.link" and any(log in str(arguments[1]) for log in LOGS):
            self.n_left -= 1
            if not self.n_left:
                os.kill(os.getpid(), signal.SIGKILL)


def main(base: str, source: str, prepared: str, copies: str) -> None:
    for name in ("tests.training.retraining.made", "mlflow.tracking", "mlflow.entities", "training.gallery", "training.page"):
        import_module(name)
    from infra import promotions, runs

    code, n = -signal.SIGKILL, 0
    while code:
        n, began_s = n + 1, time.monotonic()
        data = f"{copies}/{n}"
        shutil.copytree(prepared, data)
        code = tick(Path(base), source, data, kill_at=n)
        again = tick(Path(base), source, data)
        told = {
            "codes": [code, again],
            "promotions": [[entry["kind"], entry["by"]] for entry in promotions.history(data)],
            "closed": [(one.closed or {}).get("kind") for one in runs.read(data).attempts],
            "why": (runs.read(data).attempts[-1].closed or {}).get("why"),
        }
        print(json.dumps(told | {"seconds": time.monotonic() - began_s}), flush=True)


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
