"""docs/storage.md, row by row: a run is killed at every change of what is stored, one after the other, and the same command run again.

No window is named to be tested: the scenario is run for n = 1, 2, 3 ... until its n-th change is never reached. What was there when it was
killed says which window that was, and all windows of the docs must have come up.
"""

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.attempt import reject
from infra.storage import Table
from tests.infra.crashing import BLOCK, FORGOTTEN, REJECTED, WANTED, Runs, runs, text_of, times_made
from tests.infra.killing_proxy import MOMENTS, KillingProxy, Moment, killing_proxy
from tests.servers.child import S3Server
from tests.servers.fault_proxy import Fault, FaultProxy

WINDOWS = {
    "nothing yet",
    "asked for, not begun",
    "begun, nothing written",
    "files written, not committed",
    "committed",
    "committed, the pack not written",
    "all committed, not closed",
    "closed",
}
NOTHING_IN_FLIGHT = WINDOWS - {"begun, nothing written", "files written, not committed", "committed"}
KILLED = -signal.SIGKILL
HARMLESS = {"orphan", "pack"}  # what `verify` may find after a kill and a run to the end


@pytest.fixture(scope="module")
def server() -> Iterator[Runs]:
    with runs() as one:
        yield one


@dataclass
class Place:
    """Where the tables of a test lie, and runs there that may be killed."""

    runs: Runs
    root: str
    journal: Path
    environment: dict[str, str]
    proxy: KillingProxy | None = None
    n_runs_before: int = 1

    def run(self, command: str, **kill: int) -> tuple[int, Any]:
        self.runs.on_start = lambda pid: None
        self.runs.start(command, self.root, self.journal, environment=self.environment, **kill)
        return self.runs.ended()

    def run_through_proxy(self, command: str, n: int, moment: Moment) -> int:
        assert self.proxy
        self.proxy.arm(n, moment)
        self.runs.on_start = self.proxy.aim
        self.runs.start(command, self.root, self.journal, environment={**self.environment, "AWS_ENDPOINT_URL": self.proxy.endpoint})
        return self.runs.ended()[0]

    def done(self, command: str) -> Any:
        """The result of a run that nothing happens to."""
        code, result = self.run(command)
        assert code == 0
        return result


def window_of(seen: dict[str, Any], n_runs_before: int) -> str:
    """Which window a run of `make` was killed in, by what there is."""
    n_said = len(seen["rows"]) + len(seen["rejects"])
    if seen["is_complete"]:
        return "closed"
    if n_said == len(WANTED):
        return "all committed, not closed"
    if seen["n_stray"]:
        return "files written, not committed"
    if n_said:
        return "committed" if seen["version"] < 64 or seen["has_pack"] else "committed, the pack not written"
    if seen["attempt"] > n_runs_before:
        return "begun, nothing written"
    return "asked for, not begun" if seen["n_wanted_files"] > n_runs_before else "nothing yet"


def said(seen: dict[str, Any]) -> set[str]:
    """Keys with an outcome, each once; every row as it is always made."""
    keys = [key for key, _ in seen["rows"]] + seen["rejects"]
    assert len(set(keys)) == len(keys), "a key twice"
    assert all(text == text_of(key) for key, text in seen["rows"])
    return set(keys)


def assert_whole(seen: dict[str, Any], *, rejected: set[str], wanted: set[str]) -> None:
    assert said(seen) == wanted and set(seen["rejects"]) == rejected
    assert seen["is_complete"] and set(seen["findings"]) <= HARMLESS, seen["findings"]


def make_after_kill(place: Place) -> tuple[str, dict[str, Any]]:
    """The same command again after a run of `make` was killed: all that the docs promise; which window it was, and what a reader saw."""
    killed, made = place.done("look"), times_made(place.journal)
    committed = said(killed)
    in_flight = set(made) - committed
    assert committed <= set(made) and len(in_flight) <= BLOCK and len(committed) % BLOCK == 0, "blocks are whole or not there"
    window = window_of(killed, place.n_runs_before)
    assert not in_flight or window not in NOTHING_IN_FLIGHT
    assert killed["attempt"] == place.n_runs_before or set(killed["findings"]) <= HARMLESS | {"pending", "open"}, killed["findings"]
    place.done("make")
    assert times_made(place.journal) - made == {key: 1 for key in WANTED if key not in committed}, "made again: the block in flight alone"
    after = place.done("look")
    assert_whole(after, rejected=REJECTED, wanted=set(WANTED))
    assert after["attempt"] == killed["attempt"] + (not killed["is_complete"])
    return window, killed


# On a disk


@pytest.fixture(scope="module")
def templates(server: Runs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What each command starts from: `make` from a log of 61 entries, the others from its result."""
    folder = tmp_path_factory.mktemp("templates")
    found = {name: folder / name for name in ("make", "retry")}
    Place(server, str(found["make"]), folder / "j", {}).done("prepare")
    shutil.copytree(found["make"], found["retry"])
    Place(server, str(found["retry"]), folder / "j", {}).done("make")
    return {**found, "forget": found["retry"]}


@pytest.fixture
def on_disk(server: Runs, templates: dict[str, Path], tmp_path: Path) -> Callable[[str], Place]:
    """A new place for a command each time."""
    n = iter(range(1_000_000))

    def new(command: str) -> Place:
        folder = tmp_path / f"{next(n)}"
        shutil.copytree(templates[command], folder / "root")
        return Place(server, str(folder / "root"), folder / "journal", {})

    return new


def killed_at(new: Callable[[str], Place], command: str, numbers: Iterator[int]) -> Iterator[Place]:
    """A place for each n, where the command was killed before its n-th change of the disk, up to where there is none."""
    for n in numbers:
        place = new(command)
        code, _ = place.run(command, kill_at=n)
        if code == 0:
            return
        assert code == KILLED, f"change {n}"
        yield place


def every(step: int = 1) -> Iterator[int]:
    return iter(range(1, 1_000_000, step))


def test_killed_now_and_then(on_disk: Callable[[str], Place]) -> None:
    assert len([make_after_kill(place) for place in killed_at(on_disk, "make", every(9))]) >= 5


@pytest.mark.slow
def test_killed_at_every_change_of_a_disk(on_disk: Callable[[str], Place]) -> None:
    seen = []
    for place in killed_at(on_disk, "make", every()):
        seen.append(make_after_kill(place))
        place.done("mend")
        mended = place.done("look")
        assert mended["findings"] == [] and mended["n_stray"] == 0 and mended["has_pack"]
    windows = [window for window, _ in seen]
    assert len(seen) > 40
    assert WINDOWS - set(windows) == set()
    assert {killed["n_parts"] for _, killed in seen} == {0, 1}, "a file half there and a file that is linked were among them"


@pytest.mark.parametrize("n_bytes", [20, 200, 500, 4000])
def test_killed_within_a_write_to_a_disk(on_disk: Callable[[str], Place], n_bytes: int) -> None:
    """The first file that gets longer than so many bytes stays as that many; an entry of the log, the wanted keys, rows."""
    place = on_disk("make")
    code, _ = place.run("make", kill_at_bytes=n_bytes)
    assert code == -signal.SIGXFSZ
    cut = [path for path in Path(place.root).rglob("*.part") if path.stat().st_size == n_bytes]
    assert len(cut) == 1
    make_after_kill(place)


def retry_after_kill(place: Place) -> None:
    """Rejects tried again: until that is committed a reader sees fewer, and never a row less."""
    killed = place.done("look")
    assert {key for key, _ in killed["rows"]} >= set(WANTED) - REJECTED
    assert said(killed) | set(WANTED) == set(WANTED)
    place.done("retry")
    assert_whole(place.done("look"), rejected=set(), wanted=set(WANTED))
    assert set(times_made(place.journal)) == REJECTED and max(times_made(place.journal).values()) <= 2


def forget_after_kill(place: Place) -> int:
    """Rows removed for good: all at once for a reader; bytes of theirs may be left behind, which `verify --repair` removes. How many."""
    killed = place.done("look")
    assert said(killed) in (set(WANTED), set(WANTED) - set(FORGOTTEN))
    place.done("forget")
    assert_whole(place.done("look"), rejected=REJECTED - set(FORGOTTEN), wanted=set(WANTED) - set(FORGOTTEN))
    n_left = len(holding(place))
    place.done("mend")
    assert holding(place) == [] and place.done("look")["findings"] == []
    return n_left


def holding(place: Place) -> list[Path]:
    """Committed or not, files that hold a row of a key that was to be forgotten."""
    import pyarrow.parquet as pq

    found = []
    for path in sorted(Path(place.root, "frames").glob("*/[sr]*s/*.parquet")):
        column = "key" if path.parent.name == "rejects" else "video_id"
        if not set(FORGOTTEN).isdisjoint(pq.read_table(path, columns=[column])[column].to_pylist()):
            found.append(path)
    return found


@pytest.mark.slow
def test_a_retry_killed_at_every_change_of_a_disk(on_disk: Callable[[str], Place]) -> None:
    assert len([retry_after_kill(place) for place in killed_at(on_disk, "retry", every())]) > 15


@pytest.mark.slow
def test_forgetting_killed_at_every_change_of_a_disk(on_disk: Callable[[str], Place]) -> None:
    left = [forget_after_kill(place) for place in killed_at(on_disk, "forget", every())]
    assert len(left) > 15 and max(left) > 0, "it was killed between the commit and the removal, too"


def test_a_retry_and_forgetting_killed_now_and_then(on_disk: Callable[[str], Place]) -> None:
    for place in killed_at(on_disk, "retry", every(13)):
        retry_after_kill(place)
    for place in killed_at(on_disk, "forget", every(13)):
        forget_after_kill(place)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_killed_again_and_again(on_disk: Callable[[str], Place], seed: int) -> None:
    """Each run gets a few changes further, until one reaches the end."""
    chance, place = random.Random(seed), on_disk("make")
    code, n_runs = KILLED, 0
    while code == KILLED:
        before, made = said(place.done("look")), times_made(place.journal)
        code, _ = place.run("make", kill_at=chance.randint(2, 25))
        assert before <= said(place.done("look")), "what was committed stays"
        assert before.isdisjoint(times_made(place.journal) - made), "and is not made again"
        n_runs += 1
        assert n_runs < 200
    assert code == 0 and n_runs > 1
    assert_whole(place.done("look"), rejected=REJECTED, wanted=set(WANTED))
    assert max(times_made(place.journal).values()) <= n_runs


def test_two_schedulers_that_start_the_same_at_once(on_disk: Callable[[str], Place]) -> None:
    """Whoever begins later goes on; the other ends with exit code 8. No key is there twice."""
    codes: list[int] = []
    with runs() as other:
        while 8 not in codes:
            assert len(codes) < 60, "they never meet"
            place = on_disk("make")
            for one in (place.runs, other):
                one.on_start = lambda pid: None
                one.start("make", place.root, place.journal, environment={})
            ended = sorted(one.ended()[0] for one in (place.runs, other))
            assert ended in ([0, 0], [0, 8]), "the later one is never ended by the first"
            codes += ended
            assert_whole(place.done("look"), rejected=REJECTED, wanted=set(WANTED))
            made = times_made(place.journal)
            assert set(made) == set(WANTED) and sum(made.values()) <= len(WANTED) + BLOCK, "twice: at most the block in flight"


# In a bucket


@pytest.fixture
def in_bucket(server: Runs, tmp_path: Path) -> Iterator[Callable[[S3Server], Callable[[], Place]]]:
    """`in_bucket(s3)()`: a new place in a new bucket, with a log of 61 entries or, for a quick test, without."""
    from contextlib import ExitStack

    with ExitStack() as open_now:

        def on(s3: S3Server, *, prepared: bool = True) -> Callable[[], Place]:
            proxy, bucket = open_now.enter_context(killing_proxy(s3.endpoint)), s3.make_bucket()
            n = iter(range(1_000_000))

            def new() -> Place:
                name = f"{next(n)}"
                place = Place(server, f"{bucket}/{name}", tmp_path / name, s3.environment, proxy, n_runs_before=int(prepared))
                if prepared:
                    place.done("prepare")
                return place

            return new

        yield on


def killed_at_requests(new: Callable[[], Place], moment: Moment, numbers: Iterator[int]) -> Iterator[Place]:
    """A place for each n, where `make` was killed at its n-th request that changes what is stored."""
    for n in numbers:
        place = new()
        code = place.run_through_proxy("make", n, moment)
        if code == 0:
            return
        assert code == KILLED, f"request {n}"
        yield place


def assert_killed_at_requests(on: Callable[..., Callable[[], Place]], s3: S3Server, moment: Moment, *, step: int) -> None:
    """At every `step`-th request of a short log; under `make chaos` at each, and of a log that has a pack: 10 minutes on 2 cores."""
    is_chaos = "V2L_CHAOS" in os.environ
    numbers = every() if is_chaos else every(step)
    seen = [make_after_kill(place) for place in killed_at_requests(on(s3, prepared=is_chaos), moment, numbers)]
    assert len(seen) >= (12 if is_chaos else 10 // step)
    assert {killed["n_parts"] for _, killed in seen} == {0}, "an object is there whole or not at all"
    expected = WINDOWS if moment == "after" else WINDOWS - {"closed"}
    if is_chaos or step == 1:
        assert {window for window, _ in seen} == expected - (set() if is_chaos else {"committed, the pack not written"})


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_some_requests(in_bucket: Any, ministack_server: S3Server, moment: Moment) -> None:
    n = {"before": 7, "midway": 7, "after": 9}[moment]  # behind the three of `prove_written_once`: the first file, or the first commit
    (place,) = killed_at_requests(in_bucket(ministack_server, prepared=False), moment, iter([n]))
    window, _ = make_after_kill(place)
    assert window == ("committed" if moment == "after" else "begun, nothing written")
    assert max(times_made(place.journal).values()) == (1 if moment == "after" else 2)


@pytest.mark.parametrize("part", ["/wanted/", "/log/00000000", "/shards/", "/rejects/", "/log/00000001", "/log/00000002"])
def test_an_answer_that_is_lost_is_not_another_run(bucket: str, proxy: FaultProxy, part: str) -> None:
    """The process lives, and the store has done what it does not know of: it finds its own bytes and goes on."""
    table = Table(bucket, "frames", "one-set")
    proxy.fail(Fault("lost", method="PUT", part=part))
    attempt = table.begin({}, ["a", "b"])
    attempt.write([{"video_id": "a", "sampling": "s", "jpegs": []}], [reject("frames", "b", "no_frames")])
    attempt.complete()
    assert proxy.n_left == 0, "it was lost"
    assert table.is_complete() and (table.n_rows(), table.n_rejects(), table.state().version) == (1, 1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_every_request_to_ministack(in_bucket: Any, ministack_server: S3Server, moment: Moment) -> None:
    assert_killed_at_requests(in_bucket, ministack_server, moment, step=1)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_requests_to_ceph(in_bucket: Any, ceph_server: S3Server, moment: Moment) -> None:
    assert_killed_at_requests(in_bucket, ceph_server, moment, step=3)
