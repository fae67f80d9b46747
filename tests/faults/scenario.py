"""A scenario: commands on one data root, a fault at a point drawn by a seed, and the judgement by the undisturbed table.

Commands join one Ray cluster that all scenarios share, since starting Ray takes longer than the work does here; its processes are below
this one, so what is to be killed is found among our own.
"""

import math
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.storage import Table
from tests.faults import results
from tests.faults.command import Ran, Running, below, kill, running
from tests.faults.judging import Cost, cost
from tests.faults.opened import Opened
from tests.faults.world import World, n_commits

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONFAULTHANDLER": "1",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_raylet_start_wait_time_s": "240",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # a busy host would starve the workers, and the scenario with them
    "VIDEO2LORA_STALL_S": "400",
}
COMMIT_S = 5.0  # in which the driver has committed what a worker handed it, on the busiest host
SETTLE_S = 0.2  # at most, between a commit that is waited for and the fault: about a block's time


@contextmanager
def ray_nodes(*n_cpus: int) -> Iterator[Any]:
    """A Ray cluster below this process: a head, which commands join, and further nodes."""
    from ray.cluster_utils import Cluster

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": n_cpus[0], "include_dashboard": False})
    try:
        for n in n_cpus[1:]:
            cluster.add_node(num_cpus=n)
        yield cluster
    finally:
        cluster.shutdown()


def lose(cluster: Any, node: Any) -> None:
    """SIGKILL to a node and to all that runs on it, as when its machine is gone."""
    processes = below(node.all_processes["raylet"][0].process.pid)
    cluster.remove_node(node, allow_graceful=False)
    kill(processes)


@dataclass(frozen=True)
class Undisturbed:
    """A table as a run makes it that nothing happens to; `opens` of each clip and seconds that took."""

    table: Table
    seconds: float
    opens: int = 0

    def decoded_again(self, clips: Opened) -> dict[str, int]:
        """Clips whose decode was begun more often than once, and how much more often, by the opens seen."""
        return {name: math.ceil(n / self.opens) - 1 for name, n in clips.counts.items() if n > self.opens}


@dataclass
class Job:
    """Commands on one data root, on one Ray cluster."""

    world: World
    root: str
    words: Path  # a folder for what the commands say
    environment: dict[str, str]
    seed: int = 0
    rng: random.Random = field(default_factory=random.Random)
    ran: list[Ran] = field(default_factory=list)
    n_started: int = 0
    struck_at: float = 0.0

    @contextmanager
    def start(self, stage: str, *, recipe: Path | None = None, **environment: str) -> Iterator[Running]:
        """The stage's command, for the block."""
        self.n_started += 1
        settings = {"VIDEO2LORA_DATA": self.root, **self.environment, **environment}
        said = self.words / f"{self.n_started}-{stage}"
        with running(stage, "--recipe", str(recipe or self.world.recipe_file()), said=said, environment=settings) as one:
            yield one

    def run(self, stage: str, *, recipe: Path | None = None, **environment: str) -> Ran:
        """The stage's command to its end."""
        with self.start(stage, recipe=recipe, **environment) as one:
            return self.end(one)

    def end(self, command: Running, *, timeout_s: float | None = None) -> Ran:
        """Wait for the command's end, and remember it."""
        self.ran.append(command.ended(timeout_s=timeout_s) if timeout_s else command.ended())
        return self.ran[-1]

    def run_until_done(self, stage: str, *, times: int = 3, recipe: Path | None = None, **environment: str) -> None:
        """The same command again, at most so many times, unless the last was done already. Raises AssertionError."""
        while (not self.ran or self.ran[-1].code != 0) and times > 0:
            self.run(stage, recipe=recipe, **environment)
            times -= 1
        assert self.ran[-1].code == 0, self.ran[-1].err

    def reach(self, command: Running, name: str, *, most: int) -> None:
        """Wait until the table has a random number of commits, 1 to `most`, and then for a part of the next block's time."""
        n = self.rng.randint(1, most)
        command.wait_until(lambda: n_commits(self.root, name) >= n, what=f"{n} commits")
        time.sleep(self.rng.uniform(0, SETTLE_S))
        assert command.process.poll() is None, "the command ended before the fault: give it more to do"
        self.struck_at = time.time()

    def kill_driver(self, command: Running) -> Ran:
        """SIGKILL to the command's own process, and the time of it: since `reach`, a block may have become whole."""
        self.struck_at = time.time()
        os.kill(command.process.pid, signal.SIGKILL)
        return self.end(command)

    def judge(
        self,
        fault: str,
        undisturbed: Undisturbed,
        *,
        most_in_flight: int,
        clips: Opened | None = None,
        but: Sequence[str] = (),
    ) -> Cost:
        """Nothing lost, nothing twice, all else as undisturbed; made again at most `most_in_flight` rows and those being committed.

        `clips`: opens of them, which tell of work that reached no file. Workers go on while the driver commits, so on top of a block for
        each worker come those that were whole and had not been committed: none of them for longer than COMMIT_S.
        """
        table = Table(self.root, undisturbed.table.name, undisturbed.table.set)
        found = cost(table, undisturbed.table, struck_at=self.struck_at, but=frozenset(but))
        again = undisturbed.decoded_again(clips) if clips else {}
        n_again = max(sum(again.values()), found.n_redone)
        results.note(
            fault,
            seed=self.seed,
            n_lost=found.n_lost,
            n_twice=found.n_twice,
            n_other=found.n_other,
            n_redone=n_again,
            n_waiting=found.n_waiting,
            codes=[one.code for one in self.ran],
            said=[one.last_line for one in self.ran if one.code],
        )
        assert found.findings == []
        assert (found.n_lost, found.n_twice, found.n_other) == (0, 0, 0), found
        assert 0 <= n_again - found.n_waiting <= most_in_flight, (again, found)
        assert found.oldest_s < COMMIT_S, found
        return found
