"""The disk is full; the bucket is out of reach for a while."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from infra import s3
from infra.config import Where
from pipeline import manifest
from tests.faults.scenario import Job, Undisturbed
from tests.faults.test_frames import MOST
from tests.faults.world import BLOCK, N_DECODERS, World
from tests.servers.child import S3Server
from tests.servers.fault_proxy import FaultProxy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

OUTAGE_S = 60.0 if os.environ.get("V2L_CHAOS") else 8.0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk in memory, whose size can be changed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def resize(disk: Path, n_bytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={n_bytes}", disk], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a disk in memory, which takes root")
def test_the_disk_is_full(
    world: World, cluster: Any, small_disk: Path, make_job: Callable[..., Job], undisturbed: Undisturbed, seed: int
) -> None:
    job = make_job(str(world.fresh_root(small_disk / "data")), cluster.address)
    status = os.statvfs(small_disk)
    used = (status.f_blocks - status.f_bfree) * status.f_frsize
    rows = sum(file.n_bytes for file in undisturbed.table.state().files.values())
    resize(small_disk, used + int(rows * job.rng.uniform(0.1, 0.9)))
    full = job.run("frames")
    assert full.code == 5, full.err
    assert "storage is full; free some and run the same command again, it continues" in full.last_line
    resize(small_disk, 64 << 20)
    job.run_until_done("frames", times=1)
    job.judge("disk full", undisturbed, most_in_flight=N_DECODERS * BLOCK)


@pytest.fixture(scope="package")
def bucket_world(world: World, store: FaultProxy, server: S3Server) -> str:
    """A bucket with the clips, and a root with their manifest."""
    bucket = server.make_bucket()
    for clip in sorted(world.clips.iterdir()):
        s3.write_new(f"{bucket}/clips/{clip.name}", clip.read_bytes())
    manifest.run(f"{bucket}/clips", world.recipe, Where(data=f"{bucket}/root"))
    return bucket


def fresh_root(bucket: str) -> str:
    root = f"{bucket}/{uuid4().hex[:8]}"
    for name in s3.names(f"{bucket}/root", deep=True):
        content = s3.read_bytes(f"{bucket}/root/{name}")
        assert content is not None
        s3.write_new(f"{root}/{name}", content)
    return root


def test_the_bucket_is_out_of_reach_for_a_while(
    bucket_world: str, cluster: Any, store: FaultProxy, make_job: Callable[..., Job], undisturbed: Undisturbed, seed: int
) -> None:
    job = make_job(fresh_root(bucket_world), cluster.address)
    with job.start("frames") as command:
        job.reach(command, "frames", most=MOST)
        store.refuse(OUTAGE_S)
        ran = job.end(command)
    assert ran.code == 0, ran.err
    job.judge(f"S3 out of reach for {OUTAGE_S:.0f} s", undisturbed, most_in_flight=N_DECODERS * BLOCK)
