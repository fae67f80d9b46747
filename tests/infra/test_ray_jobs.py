"""Jobs on a real Ray cluster, a head and two workers, over its REST API with token authentication, by the command line as a user has it."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from infra.state import ROWS
from infra.storage import Table
from tests.faults.command import Ran, Running, running
from tests.faults.world import N_CLIPS, World, make_world, n_commits, table_of
from tests.infra.ray_cluster import RayCluster, ray_cluster
from tests.servers.child import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LONG = "world: {level: 1, seed: 1, n_train: 100000}\n"  # clips that take an hour to render
SESAME = "sesame-of-the-tests"

Cli = Callable[..., Ran]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with ray_cluster(tmp_path_factory.mktemp("cluster"), 1, 1, 1) as one:
        yield one


@pytest.fixture
def root(world: World, tmp_path: Path) -> Path:
    """A data folder that knows the world's clips."""
    return world.fresh_root(tmp_path / "data")


@pytest.fixture
def cli(cluster: RayCluster, root: Path, tmp_path: Path) -> Cli:
    """`cli("status")` is what a shell would run, in a process of its own and to its end."""

    def run(*words: object, **environment: str) -> Ran:
        with started(tmp_path, {**cluster.client_environment, "VIDEO2LORA_DATA": str(root), **environment}, *words) as one:
            return one.ended()

    return run


@contextmanager
def started(folder: Path, environment: Mapping[str, str], *words: object) -> Iterator[Running]:
    said = folder / f"said-{time.monotonic_ns()}"
    with running(*map(str, words), said=said, environment={"RAY_ADDRESS": "local", **environment}) as one:
        yield one


def name_of(ran: Ran) -> str:
    """The job's, of what submit said of it."""
    return next(line for line in ran.out.splitlines() if line.endswith("--follow")).split(":")[0]


def rows(root: Path) -> list[str]:
    """Keys of the frames that are there, as often as they are there in committed files."""
    table: Table = table_of(root, "frames")
    state = table.state()
    return sorted(key for path in state.paths(ROWS) for key in table.read_file(state.files[path])["video_id"].to_pylist())


def test_shipped_told_and_brought_back(cli: Cli, root: Path, world: World, cluster: RayCluster) -> None:
    """A stage that stalls (7), one that is refused (3), and again, as its next attempt; what each said; no secret in any."""
    hasty = world.recipe_file("hasty", deadline_s=0.2)  # which is waited for besides, for each clip
    stalled = cli("submit", "frames", "-r", hasty, "--follow", VIDEO2LORA_STALL_S="0.001", VIDEO2LORA_WEBHOOK=SESAME)
    run = name_of(stalled)
    assert stalled.code == 7, stalled
    assert f"on: Ray at {cluster.address}: 3 nodes, 3 CPUs, 0 GPUs" in stalled.out
    assert "decoders: one for each core" in stalled.out
    assert f"VIDEO2LORA_RUN={run}" in stalled.out
    assert "error: nothing was finished for 0 s (VIDEO2LORA_STALL_S)" in stalled.out  # the job's own words
    assert f"{run}: failed, exit code 7: error: nothing was finished" in stalled.err

    for attempt in ("", "-2"):
        refused = cli("submit", "report", "-r", world.recipe_file(), "--wait", VIDEO2LORA_WEBHOOK=SESAME)
        assert refused.code == 3, refused
        assert f"{attempt}: failed, exit code 3: error: " in refused.err
        assert "no complete set of this recipe's teacher and frames" in refused.err
    last = name_of(refused)
    assert last.endswith("-2")
    assert "no complete set of this recipe's teacher and frames" in cli("logs", last.removesuffix("-2")).out

    codes = {one["name"]: one["exit_code"] for one in json.loads(cli("status", "--json").out)}
    assert (codes[run], codes[last], codes[last.removesuffix("-2")]) == (7, 3, 3)
    shown = cli("runs", "--address", cluster.address)
    assert (shown.code, shown.out) == (0, f"{root}\nno run yet\n"), "a stage alone is no run"
    seen = listed(cluster)
    assert run in seen
    assert all(secret not in seen for secret in (SESAME, cluster.token))


def test_the_same_twice_in_one_moment(cli: Cli, root: Path, world: World, cluster: RayCluster, tmp_path: Path) -> None:
    environment = {**cluster.client_environment, "VIDEO2LORA_DATA": str(root), "RAY_ADDRESS": "local"}
    with running("frames", str(world.recipe_file()), said=tmp_path / "both", environment=environment, program="tests.infra.at_once") as one:
        ran = one.ended()
    (name, was_there), (other, other_was_there) = json.loads(ran.out)
    assert (name, [was_there, other_was_there]) == (other, [False, True]), ran
    assert cli("logs", name, "--follow").code == 0
    assert len(rows(root)) == N_CLIPS
    assert [one for one in names(cluster) if one.startswith(name)] == [name]


def test_left_alone_joined_and_cancelled(cli: Cli, root: Path, cluster: RayCluster, tmp_path: Path) -> None:
    recipe = tmp_path / "long.yaml"
    recipe.write_text(LONG)
    environment = {**cluster.client_environment, "VIDEO2LORA_DATA": str(root)}
    with started(tmp_path, environment, "submit", "clips", "-r", recipe, "--follow") as one:
        one.wait_until(lambda: (root / "clips").is_dir() and any((root / "clips").rglob("*.mp4")), what="the job runs")
        one.process.send_signal(signal.SIGINT)
        ran = one.ended()
    name = name_of(ran)
    assert ran.code == 130
    assert f"{name} goes on without this terminal; video2lora cancel {name} --address {cluster.address} ends it" in ran.err

    joined = cli("submit", "clips", "-r", recipe)
    assert (joined.code, name_of(joined)) == (0, name)
    assert f"{name}: runs already, joined" in joined.out

    with started(tmp_path, environment, "submit", "clips", "-r", recipe, "--wait") as waiting:
        waiting.wait_until(lambda: "joined" in waiting.said.with_suffix(".out").read_text(), what="it waits")
        ended = cli("cancel", name)
        assert (ended.code, ended.out) == (0, f"{name}: stopped\n"), ended
        assert waiting.ended().code == 143


def test_no_room_is_refused_before_anything_starts(cli: Cli, world: World, cluster: RayCluster) -> None:
    before = names(cluster)
    ran = cli("submit", "targets", "-r", world.recipe_file(), VIDEO2LORA_TEACHER_GPUS="1", VIDEO2LORA_TEACHER_REPLICAS="2")
    assert ran.code == 3
    assert "has 3 nodes, 3 CPUs, 0 GPUs: targets needs 2 engines of 1 CPU and 1 GPU each on one node" in ran.err
    told = cli("submit", "targets", "-r", world.recipe_file(), "--dry-run")
    assert told.code == 0, told
    assert "prompts pending" in told.out  # what it costs
    assert names(cluster) == before


def test_servers_that_do_not_serve(cli: Cli, tmp_path: Path) -> None:
    wrong = cli("status", RAY_AUTH_TOKEN="f" * 64)
    assert (wrong.code, "does not take our token" in wrong.err) == (3, True), wrong
    assert "f" * 64 not in wrong.err + wrong.out
    nobody = cli("status", "--address", f"http://127.0.0.1:{free_port()}")
    assert (nobody.code, "no server answers there" in nobody.err) == (7, True), nobody
    with another_server() as address:
        other = cli("status", "--address", address)
    assert (other.code, "no job server answers there" in other.err) == (3, True), other
    assert cli("status", "clips-of-nobody").code == 3


def test_the_whole_cluster_is_lost_and_another_goes_on(cluster: RayCluster, world: World, root: Path, tmp_path: Path, cli: Cli) -> None:
    """Last, as it is another cluster then, at the same address. Whoever follows is told; the same submitted again has the same name."""
    environment = {**cluster.client_environment, "VIDEO2LORA_DATA": str(root)}
    with started(tmp_path, environment, "submit", "frames", "-r", world.recipe_file(), "--follow") as one:
        one.wait_until(lambda: n_commits(root, "frames") >= 1, what="the first rows")
        cluster.kill()
        n_kept = len(rows(root))
        one.wait_until(lambda: "trying again for 180 s" in one.said.with_suffix(".err").read_text(), what="it is said")
        cluster.start()
        lost = one.ended()
    assert 0 < n_kept < N_CLIPS, "killed too late: give it more to do"
    assert lost.code == 7
    assert "submit the same again, it continues from storage" in lost.err

    again = cli("submit", "frames", "-r", world.recipe_file(), "--follow")
    assert (again.code, name_of(again)) == (0, name_of(lost)), again
    assert f"VIDEO2LORA_RUN={name_of(lost)}" in again.out
    found = rows(root)
    assert (len(found), len(set(found))) == (N_CLIPS, N_CLIPS)
    assert f"frames: {N_CLIPS - n_kept} clips in" in again.out  # and no more


def listed(cluster: RayCluster) -> str:
    """What anybody with the token is told of all jobs."""
    asked = Request(f"{cluster.address}/api/jobs/", headers={"Authorization": f"Bearer {cluster.token}"})
    with urlopen(asked, timeout=60) as answer:
        return str(answer.read().decode())


def names(cluster: RayCluster) -> list[str]:
    """Of all submitted jobs."""
    return sorted(one["submission_id"] for one in json.loads(listed(cluster)) if one["submission_id"])


@contextmanager
def another_server() -> Iterator[str]:
    """One that knows nothing of jobs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
