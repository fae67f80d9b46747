"""Commands on one table, each run in a process of its own that is killed at a chosen point: what the crash tests are made of.

As a program, a server: it imports everything once, and forks for each command that comes as a line of JSON on standard input, so a run
costs milliseconds. Its answers are lines too: {"pid"} when the run starts, {"code", "result"} when it ended, by itself or not.

`kill_at` n: the process ends itself, by SIGKILL, right before its n-th change of the disk below `root`: a file opened for writing,
linked or removed, a folder made (Python's audit events; nothing of ours is replaced). Between two of them the disk stays as it is, but for
bytes that flow into an open file. `kill_at_bytes`: the system ends it within the write that makes any file longer than so many bytes.
On S3 the proxy of `killing_proxy.py` kills instead.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import shake_256
from pathlib import Path
from typing import IO, Any

REPOSITORY = Path(__file__).parents[2]
MADE = {"stage": "frames", "of": "made pictures"}
ASKED = {"videos": "k0 to k8"}
BLOCK = 3  # keys made and committed at a time
WANTED = [f"k{i}" for i in range(3 * BLOCK)]
REJECTED = {"k1", "k3", "k4", "k5"}  # the second block has no rows
FORGOTTEN = ["k2", "k5", "k6"]
CHANGES = ("os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def text_of(key: str) -> str:
    """A row's content: always the same, and longer than any other file of the table."""
    return shake_256(key.encode()).hexdigest(2500)


def table_of(root: str) -> Any:
    from infra.storage import Table

    return Table(root, "frames", "made-1a2b3c4d")


def prepare(root: str, journal: str) -> None:
    """A log of 61 entries by an earlier run for something else, so that the third entry from here on fills a pack."""
    attempt = table_of(root).begin({"videos": "old"}, ["old"])
    for _ in range(60):
        attempt.void(["never made"])


def make(root: str, journal: str) -> None:
    """The command: as a stage does it, with one worker."""
    from infra.sets import register

    table = table_of(root)
    if table.finished(ASKED):
        return
    register(table, MADE)
    attempt = table.begin(ASKED, WANTED)
    make_left(attempt, journal, rejected=REJECTED)
    attempt.complete()


def retry(root: str, journal: str) -> None:
    """Rejects again, which are rows now."""
    table = table_of(root)
    attempt = table.begin(ASKED, WANTED)
    attempt.void(table.read_rejects()["key"].to_pylist())
    make_left(attempt, journal, rejected=set())
    attempt.complete()


def forget(root: str, journal: str) -> None:
    """Keys removed for good."""
    attempt = table_of(root).begin(ASKED, [key for key in WANTED if key not in FORGOTTEN])
    attempt.drop(FORGOTTEN)
    attempt.complete()


def make_left(attempt: Any, journal: str, *, rejected: set[str]) -> None:
    from infra.attempt import reject

    writer, left = attempt.writer(), [key for key in WANTED if key in attempt.left]
    for at in range(0, len(left), BLOCK):
        block = left[at : at + BLOCK]
        with open(journal, "a") as file:
            file.write("".join(f"{key}\n" for key in block))
        rows = [{"video_id": key, "sampling": text_of(key), "jpegs": [b"1"]} for key in block if key not in rejected]
        rejects = [reject("frames", key, "no_frames") for key in block if key in rejected]
        attempt.commit(writer.write(rows, rejects, place=at // BLOCK))


def mend(root: str, journal: str) -> None:
    """`video2lora verify --repair`."""
    from infra import books
    from infra.repair import repair

    repair(books.examine(root))


def look(root: str, journal: str) -> dict[str, Any]:
    """What a reader sees, what `verify` finds, and how far the run got."""
    from infra import books
    from infra.objects import names, read_bytes

    table = table_of(root)
    state = table.state()
    rows, rejects = table.read().to_pylist(), table.read_rejects().to_pylist()
    files = {
        folder: names(f"{table.folder}/{folder}" if folder != "sets" else f"{root}/frames/sets")
        for folder in ("log", "shards", "rejects", "wanted", "sets")
    }
    stray = [name for kind in ("shards", "rejects") for name in files[kind] if f"{kind}/{name}" not in state.files]
    return {
        "rows": [(row["video_id"], row["sampling"]) for row in rows],
        "rejects": [row["key"] for row in rejects],
        "version": state.version,
        "attempt": state.attempt,
        "is_complete": state.is_complete,
        "n_wanted_files": len(files["wanted"]),
        "n_parts": sum(name.endswith(".part") for found in files.values() for name in found),
        "n_stray": sum(name.endswith(".parquet") for name in stray),
        "has_pack": read_bytes(f"{table.folder}/log/pack-00000000.jsonl") is not None,
        "findings": sorted({finding.kind for book in books.examine(root) for finding in book.findings}),
    }


COMMANDS: dict[str, Callable[[str, str], Any]] = {one.__name__: one for one in (prepare, make, retry, forget, mend, look)}


def kill_before_change(n: int, root: str) -> None:
    """End this process right before it changes what is below `root` for the n-th time."""
    n_changes = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal n_changes
        is_change = event in CHANGES or (event == "open" and arguments[2] & WRITING)
        if is_change and str(arguments[0]).startswith(root):
            n_changes += 1
            if n_changes == n:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def run(asked: dict[str, Any], answer: int) -> int:
    """One command, in a process of its own; its exit code."""
    from infra.errors import CommandError

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the server's answers go where it went
    os.environ.update(asked["environment"])
    if asked["kill_at"]:
        kill_before_change(asked["kill_at"], asked["root"])
    if asked["kill_at_bytes"]:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (asked["kill_at_bytes"], asked["kill_at_bytes"]))
    try:
        result = COMMANDS[asked["command"]](asked["root"], asked["journal"])
    except CommandError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    except Exception:
        traceback.print_exc()
        return 1
    os.write(answer, json.dumps(result).encode())
    return 0


def serve() -> None:
    import botocore.session  # noqa: F401  forked runs have it already
    import pandas  # noqa: F401  pyarrow imports it at its first array

    import infra.repair
    import infra.sets  # noqa: F401

    for line in sys.stdin:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            code = run(json.loads(line), writing)
            os._exit(code)
        os.close(writing)
        print(json.dumps({"pid": pid}), flush=True)
        with open(reading, "rb") as answer:
            result = answer.read()
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps({"code": ended, "result": json.loads(result or b"null")}), flush=True)


@dataclass
class Runs:
    """A server of runs, as the tests use it."""

    to_server: IO[str]
    from_server: IO[str]
    on_start: Callable[[int], None] = field(default=lambda pid: None)

    def start(
        self, command: str, root: str, journal: Path, *, environment: dict[str, str], kill_at: int = 0, kill_at_bytes: int = 0
    ) -> None:
        asked = {"command": command, "root": root, "journal": str(journal), "environment": environment}
        self.to_server.write(json.dumps({**asked, "kill_at": kill_at, "kill_at_bytes": kill_at_bytes}) + "\n")
        self.to_server.flush()

    def ended(self) -> tuple[int, Any]:
        """The started run's exit code, negative for the signal that killed it, and its result."""
        self.on_start(json.loads(self.from_server.readline())["pid"])
        answer = json.loads(self.from_server.readline())
        return answer["code"], answer["result"]


@contextmanager
def runs() -> Iterator[Runs]:
    """A server for the block."""
    command = [sys.executable, "-m", "tests.infra.crashing"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        yield Runs(process.stdin, process.stdout)
        process.stdin.close()
        assert process.wait(60) == 0


def times_made(journal: Path) -> Counter[str]:
    """How often the work for each key was done."""
    return Counter(journal.read_text().split()) if journal.exists() else Counter()


if __name__ == "__main__":
    serve()
