"""The commands that use a cluster: submit, status, logs, cancel. `infra.cli` mounts them.

Over Ray's job server (`--address`, or RAY_API_SERVER_ADDRESS) or on Kubernetes by kubectl (`--kubernetes`).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.config import load_recipe, load_where
from infra.errors import BadInputError
from infra.options import ClusterOptions, grouped
from infra.progress import say
from infra.table_commands import JsonOption, RecipeOption

if TYPE_CHECKING:
    from infra.submit import Cluster


@dataclass(frozen=True)
class SubmitOptions:
    """How it is submitted."""

    from_: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="The overlay that the RayJob is taken from; by default, from the cluster.")
    ] = None
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the RayJob there and start nothing.")] = None
    ship_code: Annotated[bool, typer.Option(help="Over --address: run this code, or the cluster's own video2lora.")] = True
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run where, and stop.")] = False
    wait: Annotated[bool, typer.Option("--wait", help="Until it ends, and end with its exit code.")] = False
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait, and print what it says.")] = False


def mount(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    for command in (submit, status, logs, cancel):
        app.command(rich_help_panel="Clusters")(grouped(command))


def submit(
    command: Annotated[str, typer.Argument(metavar="COMMAND", help="A stage's command, `run`, `retrain`, `evaluate` or `demo`.")],
    source: Annotated[str | None, typer.Argument(metavar="[SOURCE]", help="Of `manifest`, `run` and `retrain`.")] = None,
    recipe: RecipeOption = "demo",
    *,
    where: ClusterOptions,
    how: SubmitOptions,
) -> None:
    """Run a command on a cluster: told and checked first, then started, or joined where it runs already."""
    if (how.from_ or how.output) and not where.kubernetes:
        raise typer.BadParameter("--from and --output go with --kubernetes")
    _check_one(where)
    from infra import shipped
    from infra import submit as work
    from infra.steps import gathering

    made = load_recipe(recipe)
    if command in ("run", "retrain"):
        gathering(made, source)  # or says what is missing, before a cluster starts for it
    asked = shipped.work(command, source, made, load_where())
    if where.kubernetes:
        from infra import kubernetes

        on_kubernetes, asked = kubernetes.for_work(asked, overlay=how.from_, namespace=where.namespace)
        cluster: Cluster = on_kubernetes
    else:
        from infra.ray_jobs import RayJobs

        ray = RayJobs(_address(where), with_code=how.ship_code)
        cluster, asked = ray, shipped.placed(asked, is_here=ray.is_here())
    work.tell(asked, cluster)
    if how.dry_run:
        return
    if how.output is not None:
        print(kubernetes.write(asked, on_kubernetes.template, how.output))
        return
    name, was_there = work.join_or_start(asked, cluster)
    print(f"{name}: {'runs already, joined' if was_there else 'submitted'}; {_hint('logs', name, cluster)} --follow", flush=True)
    if how.wait or how.follow:
        _wait(cluster, name, with_log=how.follow)


def status(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="As of `logs`; by default, all.")] = None,
    as_json: JsonOption = False,
    *,
    where: ClusterOptions,
) -> None:
    """Jobs of a cluster: waiting, running, and how they ended."""
    from infra import submit as work

    cluster = cluster_of(where)
    jobs = cluster.jobs() if job is None else [work.find(cluster, job)]
    if as_json:
        print(json.dumps([work.described(one) for one in jobs], indent=1))
    elif jobs:
        work.print_jobs(jobs)
    else:
        say(f"{cluster.title}: no job")


def logs(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A run: its last attempt; or NAME-1, NAME-2, ...")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends, and end with its exit code.")] = False,
    *,
    where: ClusterOptions,
) -> None:
    """What a job said."""
    from infra import submit as work

    cluster = cluster_of(where)
    found = work.find(cluster, job)
    if follow:
        _wait(cluster, found.name, with_log=True)
    else:
        print(cluster.log(found), end="")


def cancel(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A run: its last attempt; or NAME-1, NAME-2, ...")],
    *,
    where: ClusterOptions,
) -> None:
    """Have a job end; what it has made is kept, and the same command submitted again goes on from it."""
    from infra import submit as work

    print(work.cancel(cluster_of(where), job).line())


def cluster_of(where: ClusterOptions) -> "Cluster":
    """The one that the options name. Raises BadInputError where they name none."""
    _check_one(where)
    if where.kubernetes:
        from infra.kubernetes import Kubernetes

        return Kubernetes(namespace=where.namespace)
    from infra.ray_jobs import RayJobs

    return RayJobs(_address(where))


def _check_one(where: ClusterOptions) -> None:
    if where.kubernetes and where.address:
        raise typer.BadParameter("--address and --kubernetes: one or the other")
    if where.namespace and not where.kubernetes:
        raise typer.BadParameter("--namespace goes with --kubernetes")


def _address(where: ClusterOptions) -> str:
    address = where.address or load_where().ray_api
    if address is None:
        raise BadInputError("no cluster: give --address http://HEAD:8265 (or RAY_API_SERVER_ADDRESS), or --kubernetes")
    return address


def _wait(cluster: "Cluster", name: str, *, with_log: bool) -> None:
    """Ends the command with the job's exit code."""
    from infra import submit as work

    try:
        job = work.follow(cluster, name, with_log=with_log)
    except KeyboardInterrupt:
        say(f"{name} goes on without this terminal; {_hint('cancel', name, cluster)} ends it")
        raise typer.Exit(130) from None
    say(job.line())
    raise typer.Exit(job.code())


def _hint(command: str, name: str, cluster: "Cluster") -> str:
    return f"video2lora {command} {name} {cluster.option}"
