"""Clips, tables and all in a bucket: the same videos and frames as from a disk, with connections that break all the way."""

import json
from pathlib import Path

import pytest
from clips import regular, write_clip

from infra import objects, s3_requests
from infra.cluster import cluster
from infra.config import FramesSettings, Recipe, Where
from infra.errors import BadInputError, StorageError
from infra.sets import frames_set
from infra.storage import Table
from pipeline import frames, manifest
from tests.servers.fault_proxy import Fault, FaultProxy
from video2lora.video import Sampling

RECIPE = Recipe(frames=FramesSettings(sampling=Sampling(n_frames=3), longest_edge_px=32, deadline_s=60.0))
N_FRAMES = (9, 13, 21)
KINDS = ("cut", "short", "reset", "lost")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for n in N_FRAMES:
        write_clip(folder / f"{n}.mp4", regular(n))
    return folder


@pytest.fixture
def in_bucket(clips: Path, bucket: str) -> str:
    for clip in clips.iterdir():
        objects.write_new(f"{bucket}/clips/{clip.name}", clip.read_bytes())
    return f"{bucket}/clips"


def videos(where: Where) -> dict[str, str]:
    return {row["video_id"]: row["uri"].rsplit("/", 1)[-1] for row in Table(where.data, "videos").read().to_pylist()}


def break_each(proxy: FaultProxy, *, part: str) -> None:
    """The next four requests for each clip, each in another way."""
    for n in N_FRAMES:
        for kind in KINDS:
            proxy.fail(Fault(kind, method="GET", part=f"{part}/{n}.mp4", after_bytes=100))  # type: ignore[arg-type]


def test_a_folder_in_a_bucket_is_the_folder_on_the_disk(
    clips: Path, in_bucket: str, bucket: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    on_disk, remote = Where(data=str(tmp_path / "data")), Where(data=f"{bucket}/data")
    manifest.run(str(clips), Recipe(), on_disk)
    break_each(proxy, part="clips")
    proxy.fail(Fault("status", status=503, times=3))
    manifest.run(in_bucket, Recipe(), remote)
    assert proxy.n_left == 0, "a fault was never met"
    assert videos(remote) == videos(on_disk) and len(videos(remote)) == len(N_FRAMES)


def test_rows_that_lead_nowhere_are_rejects_and_not_the_end(in_bucket: str, bucket: str, tmp_path: Path) -> None:
    where = Where(data=str(tmp_path / "data"))
    names = [f"{in_bucket}/9.mp4", f"{in_bucket}/none.mp4", f"{bucket}-none/a.mp4", f"{in_bucket}/../13.mp4", "s3://?/a.mp4"]
    names += [f"{in_bucket}/{'long' * 300}", "13.mp4"]
    objects.write_new(f"{in_bucket}/list.jsonl", "".join(json.dumps({"uri": name}) + "\n" for name in names).encode())
    manifest.run(f"{in_bucket}/list.jsonl", Recipe(), where)
    assert set(videos(where).values()) == {"9.mp4", "13.mp4"}
    reasons = Table(where.data, "videos").read_rejects()["reason"].to_pylist()
    assert sorted(reasons) == ["bad_row", *["missing"] * 4]  # the one with ..: some stores would take it for another folder


def test_a_source_that_is_not_there_is_told_from_a_store_that_is_away(
    in_bucket: str, bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    where = Where(data=str(tmp_path / "data"))
    with pytest.raises(BadInputError, match="no such file or folder"):
        manifest.run(f"{bucket}/none", Recipe(), where)
    monkeypatch.setattr(s3_requests, "PATIENCE_S", 0.5)
    proxy.refuse(600.0)
    with pytest.raises(StorageError, match="run the same command again"):
        manifest.run(in_bucket, Recipe(), where)


@pytest.mark.slow
def test_frames_of_clips_in_a_bucket_are_those_of_the_disk(
    clips: Path, in_bucket: str, bucket: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    """Ray's workers read through the proxy too: they have this process's environment."""
    on_disk, remote = Where(data=str(tmp_path / "data"), n_cpus=2), Where(data=f"{bucket}/data", n_cpus=2)
    for where, source in ((on_disk, str(clips)), (remote, in_bucket)):
        manifest.run(source, Recipe(), where)
    with cluster(on_disk):
        frames.run(RECIPE, on_disk)
        break_each(proxy, part="clips")
        proxy.fail(Fault("lost", method="PUT", part="shards/", times=2))
        assert frames.run(RECIPE, remote) == f"frames: {len(N_FRAMES)} rows, 0 rejects"
    assert proxy.n_left == 0, "a fault was never met"
    expected, found = (frames_set(RECIPE, where.data).read().sort_by("video_id") for where in (on_disk, remote))
    assert found == expected
