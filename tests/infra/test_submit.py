"""Whoever follows, ends or counts jobs, whatever their cluster does meanwhile."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from infra import submit
from infra.config import Where
from infra.errors import BadInputError, StageFailedError
from infra.resources import Node
from infra.shipped import Work
from infra.submit import AwayError, Job, cancel, follow, print_jobs

JOB = Job("run-1", "run-1", "running")


@dataclass
class Scripted:
    """A cluster that tells of its jobs as it is told to; then it is away."""

    told: list[list[Job]]
    title: str = "The cluster"
    option: str = "--address x"
    ended: list[str] = field(default_factory=list)

    def jobs(self) -> list[Job]:
        if not self.told:
            raise AwayError("no server answers there")
        return self.told.pop(0)

    def room(self, where: Where) -> list[Node]:
        return []

    def start(self, work: Work, name: str) -> bool:
        return False

    def log(self, job: Job) -> str:
        return ""

    def cancel(self, job: Job) -> None:
        self.ended.append(job.name)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "POLL_S", 0.01)
    monkeypatch.setattr(submit, "AWAY_S", 0.1)


def test_a_job_whose_cluster_is_away_is_not_said_to_be_stopped() -> None:
    cluster = Scripted([[JOB], [JOB]])
    with pytest.raises(AwayError, match="The cluster is away for 0 s: run-1 may have gone with it"):
        cancel(cluster, "run-1")
    assert cluster.ended == ["run-1"]


def test_a_job_of_which_nothing_is_left_is_stopped() -> None:
    assert cancel(Scripted([[JOB], [JOB], []]), "run-1").state == "stopped"
    assert cancel(Scripted([[JOB], [replace(JOB, state="failed")]]), "run-1").state == "failed"


def test_a_cluster_that_comes_back_is_followed_on(capsys: pytest.CaptureFixture[str]) -> None:
    class Back(Scripted):
        def jobs(self) -> list[Job]:
            if len(self.told) == 1 and not self.ended:
                self.ended.append("away once")
                raise AwayError("no server answers there")
            return super().jobs()

    assert follow(Back([[JOB], [replace(JOB, state="succeeded")]]), "run-1", with_log=True).state == "succeeded"
    assert "The cluster is back" in capsys.readouterr().err
    with pytest.raises(StageFailedError, match="knows nothing of run-1 any more"):
        follow(Scripted([[]]), "run-1", with_log=True)


def test_data_folders_are_those_of_the_jobs(tmp_path: Path) -> None:
    roots = ["s3://a/b", str(tmp_path), "s3://a/b", ""]
    assert submit.data_folders(Scripted([[replace(JOB, data=root) for root in roots]])) == ["s3://a/b", str(tmp_path)]
    for job, says in ((JOB, "knows no job; without --address x"), (replace(JOB, data="/of/another"), "/of/another, where .* not on this")):
        with pytest.raises(BadInputError, match=says):
            submit.data_folders(Scripted([[job]]))


@pytest.mark.parametrize(
    ("name", "attempt"), [("run-1a2b", 1), ("run-1a2b-2", 2), ("run-1a2b-17", 17), ("mine", 1), ("run-1a2b-copy", 1), ("run-1a2bc", 1)]
)
def test_a_job_that_somebody_renamed_is_counted_too(name: str, attempt: int) -> None:
    job = Job(name, "run-1a2b", "failed")
    assert job.attempt == attempt
    print_jobs([job])
