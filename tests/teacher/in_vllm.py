"""What tests have done in a process whose environment is vLLM's: `call(function, ...)` starts one, pickles go in and come out.

vLLM reads its environment when it is imported, binds its process to cores and warns of much that is not ours.
"""

import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from teacher.engine import Clip, EngineOptions, Refused, Written, start
from teacher.models import Model
from teacher.vllm_settings import engine_environment
from teacher.write_targets import Plan, WriteTargets

ROOT = Path(__file__).parents[2]
Results = list[list[Written | Refused]]


def call(function: Callable[..., Any], *, model: Model, options: EngineOptions, **arguments: Any) -> Any:
    """`function(model=..., options=..., ...)`, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.pickle"
        done = subprocess.run(
            [sys.executable, "-m", "tests.teacher.in_vllm", str(told)],
            input=pickle.dumps((function.__name__, {"model": model, "options": options, **arguments})),
            cwd=ROOT,
            env=os.environ | engine_environment(model, options),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=800,
            check=False,
        )
        if not told.is_file():
            raise AssertionError(done.stdout.decode(errors="replace")[-3000:])
        return pickle.loads(told.read_bytes())


def write_counting(
    *, model: Model, settings: Any, options: EngineOptions, limits: Sequence[EngineOptions], clips: Sequence[Clip], n_frames: int
) -> list[tuple[Results, int, float]]:
    """For each of the limits an engine, one after the other: what it wrote, images through its vision tower, seconds to start it."""
    found = []
    for limit in limits:
        started = time.monotonic()
        engine = start(model, settings, limit, n_frames=n_frames)
        startup_s = time.monotonic() - started
        seen: list[int] = []
        engine.llm.apply_model(lambda net, seen=seen: count_images(net, seen))  # type: ignore[attr-defined]
        found.append((engine.write(clips), sum(seen), startup_s))
        engine.stop()
    return found


def count_images(net: Any, seen: list[int]) -> None:
    towers = [module for name, module in net.named_modules() if name.rsplit(".", 1)[-1] in ("vision_model", "vision_tower")]
    towers[0].register_forward_hook(
        lambda _module, args, kwargs, _out: seen.append(len(kwargs["pixel_values"] if "pixel_values" in kwargs else args[0])),
        with_kwargs=True,
    )


def write_while_killed(
    *, model: Model, settings: Any, options: EngineOptions, videos: Sequence[dict[str, Any]], deadly: int
) -> dict[str, Any]:
    """The actor on a block undisturbed, then with one kill, then with a kill -9 whenever `deadly` prompts or more are with an engine."""
    writing = WriteTargets(Plan(model, settings, options, n_frames=3), writer=None)  # type: ignore[arg-type]
    calm = writing.write(videos)
    kills: list[int] = []
    limit = [1]
    threading.Thread(target=_kill_engines, args=(writing, deadly, kills, limit), daemon=True).start()
    once = writing.write(videos)
    n_once = len(kills)
    limit[0] = 100
    always = writing.write(videos)
    limit[0] = 0
    after = writing.write(videos)
    writing.stop()
    return {"calm": calm, "once": once, "n_once": n_once, "always": always, "n_kills": len(kills), "after": after, "m": writing.measures}


def _kill_engines(writing: WriteTargets, deadly: int, kills: list[int], limit: list[int]) -> None:
    """An engine's process is a child of this one, and new with every engine; one that starts is let be."""
    killed: list[Any] = []
    while True:
        time.sleep(0.002)
        engine: Any = writing.engine
        if len(kills) < limit[0] and engine not in killed and engine.llm.llm_engine.get_num_unfinished_requests() >= deadly:
            for child in psutil.Process().children(recursive=True):
                if child.status() != psutil.STATUS_ZOMBIE and "EngineCore" in " ".join(child.cmdline()):
                    killed.append(engine)
                    kills.append(child.pid)
                    child.kill()


def main() -> None:
    name, arguments = pickle.loads(sys.stdin.buffer.read())
    told = globals()[name](**arguments)
    Path(sys.argv[1]).write_bytes(pickle.dumps(told))


if __name__ == "__main__":
    main()
