"""A command of ours on somebody else's machines: submitted once, joined by whoever submits it again, followed, ended.

A job is named by what it does (`Work.run`), and its attempts by that name, `-2`, `-3`, ...: so the same work that is waiting or running is
joined and never started twice, also when two submit it at the same moment, since no cluster takes a name that it has. Only an attempt that
ended is followed by another, which goes on from storage: VIDEO2LORA_RUN is the name without the number, for all of them.

A cluster is Ray's job server (`infra.ray_jobs`) or Kubernetes (`infra.kubernetes`). Either may be away for a while: who follows waits for
AWAY_S, and a job that is gone then is not lost work. Logs are read whole each time, so that a connection that breaks costs no line.
"""

import os
import queue
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

from rich.table import Table as Grid

from infra.books import console
from infra.config import Where
from infra.errors import BadInputError, CommandError, StageFailedError
from infra.plan import Facts, plan, print_tables
from infra.progress import say
from infra.resources import Node, needs, print_needs, stages, totals, unmet
from infra.shipped import Work

POLL_S = 2.0
AWAY_S = 180.0  # a head that is started again is back in less
PLAN_S = 60.0  # for storage to tell what there is to do, before a job is submitted without its cost
TERMINATED = 143  # as shells have it

State = Literal["waiting", "running", "succeeded", "failed", "stopped"]


class AwayError(StageFailedError):
    """The cluster's server cannot be reached now."""


@dataclass(frozen=True)
class Job:
    """An attempt at a run, as its cluster has it. Times are UTC; `exit_code` is None where the cluster knows of none."""

    name: str
    run: str
    state: State
    exit_code: int | None = None
    why: str = ""
    begun: str = ""
    ended: str = ""
    data: str = ""  # folder

    @property
    def is_live(self) -> bool:
        return self.state in ("waiting", "running")

    @property
    def attempt(self) -> int:
        """1 for the first, and for one that somebody gave a name of their own."""
        numbered = re.fullmatch(rf"{re.escape(self.run)}-(\d+)", self.name)
        return int(numbered[1]) if numbered else 1

    def code(self) -> int:
        """What the command that waited for it ends with: the job's own exit code, as far as it has one."""
        if self.exit_code is not None:
            return self.exit_code if self.exit_code >= 0 else 128 - self.exit_code
        return {"succeeded": 0, "stopped": TERMINATED}.get(self.state, StageFailedError.exit_code)

    def line(self) -> str:
        code = f", exit code {self.exit_code}" if self.exit_code else ""
        return f"{self.name}: {self.state}{code}" + (f": {self.why}" if self.why and self.state != "succeeded" else "")


class Cluster(Protocol):
    """What runs jobs. Every method raises AwayError where it cannot be reached, BadInputError where it refuses who asks."""

    title: str  # as people are told
    option: str  # as it is named on the command line

    def room(self, where: Where) -> list[Node]:
        """The nodes that a job can have there, at their most."""
        ...

    def jobs(self) -> list[Job]:
        """Those that this command line submitted."""
        ...

    def start(self, work: Work, name: str) -> bool:
        """False where the name is taken."""
        ...

    def log(self, job: Job) -> str:
        """All that the job said so far."""
        ...

    def cancel(self, job: Job) -> None: ...


def tell(work: Work, cluster: Cluster) -> None:
    """Print what will run where, and what it costs. Raises BadInputError where the cluster has no room for it."""
    nodes = cluster.room(work.where)
    run = stages(work.command, work.source, work.recipe)
    asked = needs(run, work.recipe, work.where)
    print(f"run: {work.run}: video2lora {' '.join(work.arguments())}")
    print(f"data: {work.where.data}")
    print(f"on: {cluster.title}: {totals(nodes)}")
    print_needs(run, asked, nodes)
    print(f"environment: {', '.join(f'{name}={value}' for name, value in work.environment.items())}")
    wanting = unmet(asked, nodes)
    if wanting:
        raise BadInputError(f"{cluster.title} has {totals(nodes)}: {'; '.join(wanting)}")
    if "targets" not in run:
        return
    print_cost(work)


def print_cost(work: Work) -> None:
    """The plan's, where storage can be read from here in PLAN_S."""
    found: queue.Queue[Facts | CommandError] = queue.Queue()

    def look() -> None:
        try:
            found.put(plan(work.source, work.recipe, work.where))
        except CommandError as error:
            found.put(error)

    threading.Thread(target=look, daemon=True, name="plan").start()  # storage that is away is tried for minutes
    try:
        planned = found.get(timeout=PLAN_S)
    except queue.Empty:
        print(f"cost: cannot be told from here: {work.where.data} told nothing in {PLAN_S:.0f} s")
        return
    if isinstance(planned, CommandError):
        print(f"cost: cannot be told from here: {planned}")
    else:
        print_tables(planned)


def join_or_start(work: Work, cluster: Cluster) -> tuple[str, bool]:
    """The name of the run's live attempt, and whether it was there already."""
    of_run = sorted((job for job in cluster.jobs() if job.run == work.run), key=lambda one: one.attempt)
    for job in of_run:
        if job.is_live:
            return job.name, True
    n = of_run[-1].attempt + 1 if of_run else 1
    name = work.run if n == 1 else f"{work.run}-{n}"
    return name, not cluster.start(work, name)


def find(cluster: Cluster, name: str) -> Job:
    """The last attempt at the run of this name, or the attempt NAME-1, NAME-2, ... Raises BadInputError where there is none."""
    jobs = cluster.jobs()
    of_run = sorted((job for job in jobs if job.run == name), key=lambda one: one.attempt)
    found = of_run or [job for job in jobs if f"{job.run}-{job.attempt}" == name]
    if not found:
        raise BadInputError(f"{cluster.title} knows no job {name!r}: `video2lora status {cluster.option}` lists them")
    return found[-1]


def data_folders(cluster: Cluster) -> list[str]:
    """Those that its jobs work on, each once. Raises BadInputError where it knows no job, or a folder is not to be read from here."""
    found = list(dict.fromkeys(job.data for job in cluster.jobs() if job.data))
    if not found:
        raise BadInputError(f"{cluster.title} knows no job; without {cluster.option}, runs of the folder VIDEO2LORA_DATA are shown")
    for root in found:
        if "://" not in root and not os.path.isdir(root):
            raise BadInputError(f"{cluster.title}: {root}, where its jobs keep their data, is not on this machine")
    return found


def follow(cluster: Cluster, name: str, *, with_log: bool) -> Job:
    """Wait for a job's end, printing what it says `with_log`. Raises AwayError where the cluster stays away, StageFailedError where the
    job is gone."""
    told, away_since = "", 0.0
    while True:
        try:
            job = next((one for one in cluster.jobs() if one.name == name), None)
            if job is None:
                raise StageFailedError(
                    f"{cluster.title} knows nothing of {name} any more (a head that is started again does not): submit the same again, it "
                    "continues from storage"
                )
            said = cluster.log(job) if with_log else ""
        except AwayError as error:
            away_since = _away(cluster, name, error, away_since)
            continue
        if away_since:
            away_since = 0.0
            say(f"{cluster.title} is back")
        print(said.removeprefix(told), end="", flush=True)  # all of it, where another cluster has begun anew
        told = said
        if not job.is_live:
            return job
        time.sleep(POLL_S)


def _away(cluster: Cluster, name: str, error: AwayError, since: float) -> float:
    """Wait a little for a cluster that is away; since when it is. Raises AwayError where that is too long."""
    now = time.monotonic()
    if not since:
        say(f"{error}; trying again for {AWAY_S:.0f} s")
    elif now - since > AWAY_S:
        raise AwayError(
            f"{cluster.title} is away for {AWAY_S:.0f} s: {name} may have gone with it; once it is there, submit the same again: it joins "
            "the job or continues from storage"
        ) from error
    time.sleep(POLL_S)
    return since or now


def cancel(cluster: Cluster, name: str) -> Job:
    """Have a job end, and wait for that. One that has ended is left alone. Raises AwayError where that cannot be seen."""
    job = find(cluster, name)
    if not job.is_live:
        return job
    cluster.cancel(job)
    say(f"{job.name}: told to end; what it has made is kept")
    try:
        return follow(cluster, job.name, with_log=False)
    except AwayError:
        raise
    except StageFailedError:  # of Kubernetes, nothing is left of it
        return Job(job.name, job.run, "stopped")


def print_jobs(jobs: Sequence[Job]) -> None:
    """A line for each, the newest last."""
    grid = Grid("job", "state", "exit code", "begun", "ended", "why")
    for job in sorted(jobs, key=lambda one: (one.begun, one.name)):
        grid.add_row(job.name, job.state, "" if job.exit_code is None else str(job.exit_code), job.begun, job.ended, job.why)
    console().print(grid)


def described(job: Job) -> dict[str, object]:
    """For programs."""
    return asdict(job)


def last_line(text: str) -> str:
    """Of what a job said, without what only colours it."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()]
    return lines[-1] if lines else ""
