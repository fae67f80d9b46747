"""Jobs on a Ray cluster, over the job server of its head (its dashboard's port).

Ray keeps jobs as long as its head lives, takes no name twice, and knows the exit code of each. A job's name is its submission id.
"""

import logging
import os
import shlex
from datetime import UTC, datetime
from typing import Any

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from infra.config import Where
from infra.errors import BadInputError, StageFailedError
from infra.fetch import public_name
from infra.resources import Node, grown
from infra.shipped import Work, is_own_address, packed
from infra.submit import AwayError, Job, State, last_line

TIMEOUT_S = (10.0, 120.0)  # to connect, and to say something
STOP_S = 600  # that a job which is told to end may take to save, before Ray kills it: a training writes a checkpoint
RUN = "video2lora_run"  # of a job's metadata
STATES: dict[JobStatus, State] = {
    JobStatus.PENDING: "waiting",
    JobStatus.RUNNING: "running",
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.STOPPED: "stopped",
}


class RayJobs:
    """The job server at `address`. Raises BadInputError where there is another server, or none that takes our token; AwayError."""

    def __init__(self, address: str, *, with_code: bool = True) -> None:
        self.address = address.rstrip("/") if "://" in address else f"http://{address}"
        if not self.address.startswith(("http://", "https://")):
            raise BadInputError(f"--address: got {address!r}, expected the head's job server: http://HEAD:8265")
        shown = public_name(self.address)  # a password may be in it
        self.title, self.option = f"Ray at {shown}", f"--address {shown}"
        self.with_code = with_code
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # which Ray takes before what it is given; and RAY_ADDRESS, without it
        try:
            self.client = _Client(self.address)
        except (RuntimeError, requests.RequestException, KeyError) as error:
            raise BadInputError(f"{self.title}: no job server answers there: {last_line(str(error))}") from error

    def room(self, where: Where) -> list[Node]:
        """Those that are alive, or what they can grow to where that is known."""
        return grown(where) or self.nodes()

    def nodes(self) -> list[Node]:
        """Those that are alive."""
        try:
            found = list_nodes(address=self.address, limit=10_000, timeout=int(TIMEOUT_S[1]))
        except AuthenticationError as error:
            raise _refused(self.address) from error
        except (RayStateApiException, requests.RequestException) as error:
            raise AwayError(f"{self.title} does not tell its nodes: {last_line(str(error))}") from error
        return [
            Node(
                f"{'head' if one.is_head_node else 'worker'} {one.node_ip}",
                float(one.resources_total.get("CPU", 0.0)),
                float(one.resources_total.get("GPU", 0.0)),
                address=one.node_ip,
            )
            for one in sorted(found, key=lambda one: (not one.is_head_node, one.node_ip, one.node_id))
            if one.state == "ALIVE"
        ]

    def is_here(self) -> bool:
        """Whether all of its nodes are this machine; the address does not tell, which may be forwarded."""
        return all(node.address is not None and is_own_address(node.address) for node in self.nodes())

    def jobs(self) -> list[Job]:
        return [_job(one) for one in self._listed() if RUN in (one.metadata or {})]

    def start(self, work: Work, name: str) -> bool:
        """Upload what it needs, then start it: on the head, with no core of its own, from where it asks for the cluster's."""
        for chatty in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        environment = {**work.environment, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}
        try:
            with packed(work, with_code=self.with_code) as folder:
                self.client.submit_job(
                    entrypoint=shlex.join(["python", "-m", "infra.cli", *work.arguments()]),
                    submission_id=name,
                    runtime_env={"working_dir": folder, "env_vars": environment},
                    metadata={RUN: work.run, "data": work.where.data},
                )
        except RuntimeError as error:
            if any(one.submission_id == name for one in self._listed()):
                return False
            raise StageFailedError(f"{self.title} did not take {name}: {last_line(str(error))}") from error
        return True

    def log(self, job: Job) -> str:
        try:
            return str(self.client.get_job_logs(job.name))
        except RuntimeError as error:  # of a job whose node is gone
            raise AwayError(f"{self.title} does not tell the log of {job.name}: {last_line(str(error))}") from error

    def cancel(self, job: Job) -> None:
        try:
            self.client.stop_job(job.name)
        except RuntimeError as error:
            raise StageFailedError(f"{self.title} did not end {job.name}: {last_line(str(error))}") from error

    def _listed(self) -> list[JobDetails]:
        try:
            return list(self.client.list_jobs())
        except (RuntimeError, requests.RequestException) as error:  # it answers, but not as it should: a head that is starting
            raise AwayError(f"{self.title} does not tell its jobs: {last_line(str(error))}") from error


class _Client(JobSubmissionClient):
    """Ray's own, which would wait for ever for a server that does not answer."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        try:
            return super()._do_request(method, endpoint, **{"timeout": TIMEOUT_S, **options})
        except AuthenticationError as error:
            raise _refused(self._address) from error
        except requests.ConnectionError as error:
            raise AwayError(f"Ray at {public_name(self._address)}: no server answers there") from error
        except requests.Timeout as error:
            raise AwayError(f"Ray at {public_name(self._address)}: no answer in {TIMEOUT_S[1]:.0f} s") from error


def _refused(address: str) -> BadInputError:
    return BadInputError(
        f"Ray at {public_name(address)} does not take our token: RAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN or in the "
        "file that RAY_AUTH_TOKEN_PATH names"
    )


def _job(details: JobDetails) -> Job:
    state = STATES[details.status]
    return Job(
        name=details.submission_id,
        run=details.metadata[RUN],
        state=state,
        exit_code=details.driver_exit_code,
        why=last_line(details.message or "") if state == "failed" else "",
        begun=_time(details.start_time),
        ended=_time(details.end_time),
        data=details.metadata.get("data", ""),
    )


def _time(milliseconds: int | None) -> str:
    return "" if not milliseconds else datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
