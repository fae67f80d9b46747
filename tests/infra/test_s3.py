"""The same on a real store: Ceph's S3 gateway, which checks signatures, rights and conditions itself."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from infra import objects, s3, s3_requests
from infra.artifacts import FRAMES
from infra.attempt import reject
from infra.errors import StorageError, SupersededError
from infra.storage import Table
from tests.infra.objects_contract import LARGE, Contract
from tests.servers.child import S3Server
from tests.servers.fault_proxy import Fault, FaultProxy, fault_proxy

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
ASKED = {"stage": "frames", "source": "made"}
N_WRITERS = 16


@pytest.fixture
def proxy(ceph_server: S3Server, ceph_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with fault_proxy(ceph_server.endpoint) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        yield between


class TestOnCeph(Contract):
    @pytest.fixture
    def folder(self, ceph_bucket: str) -> str:
        return ceph_bucket


def test_one_of_16_writers_of_large_objects_wins(ceph_bucket: str) -> None:
    """Ceph writes an object of this size in several pieces; the condition still decides between whole objects."""
    with ThreadPoolExecutor(N_WRITERS) as pool:
        won = list(pool.map(lambda i: objects.write_new(f"{ceph_bucket}/shard", bytes([i]) + LARGE), range(N_WRITERS)))
    assert sum(won) == 1
    assert objects.read_bytes(f"{ceph_bucket}/shard") == bytes([won.index(True)]) + LARGE


def test_one_of_16_writers_wins_though_answers_are_lost_and_the_store_is_away(ceph_bucket: str, proxy: FaultProxy) -> None:
    for turn in range(4):
        proxy.fail(Fault("lost", method="PUT", times=7))
        proxy.fail(Fault("status", status=503, times=5))
        proxy.fail(Fault("cut", method="GET", after_bytes=1, times=5))
        if turn == 3:
            proxy.refuse(1.0)
        with ThreadPoolExecutor(N_WRITERS) as pool:
            won = list(pool.map(lambda i, turn=turn: objects.write_new(f"{ceph_bucket}/log/{turn}", b"by %d" % i), range(N_WRITERS)))
        assert sum(won) == 1 and objects.read_bytes(f"{ceph_bucket}/log/{turn}") == b"by %d" % won.index(True)


def test_clips_are_read_whole_however_often_the_connection_breaks(ceph_bucket: str, proxy: FaultProxy, tmp_path: Path) -> None:
    objects.write_new(f"{ceph_bucket}/clip.mp4", LARGE)
    proxy.fail(Fault("cut", method="GET", after_bytes=len(LARGE) // 5, times=3))
    proxy.fail(Fault("short", method="GET", after_bytes=len(LARGE) // 5, times=3))
    assert s3.fetch(f"{ceph_bucket}/clip.mp4", str(tmp_path / "clip")) == len(LARGE)
    assert (tmp_path / "clip").read_bytes() == LARGE


WRONG = {
    "SignatureDoesNotMatch": ("AWS_SECRET_ACCESS_KEY", "another"),
    "InvalidAccessKeyId": ("AWS_ACCESS_KEY_ID", "nobody"),
}


@pytest.mark.parametrize("code", WRONG)
def test_wrong_credentials_are_refused_in_one_line(ceph_bucket: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, value = WRONG[code]
    monkeypatch.setenv(name, value)
    uri = f"{ceph_bucket}/a"
    of_objects = (objects.read_bytes, objects.remove, objects.names, s3.sha256, s3.described, s3.described_below)
    for act in (lambda: objects.write_new(uri, b"1"), *(partial(act, uri) for act in of_objects)):
        with pytest.raises(StorageError) as raised:
            act()
        assert f"the credentials are refused ({code}): check AWS_ACCESS_KEY_ID" in str(raised.value)
        assert "\n" not in str(raised.value) and value not in str(raised.value)


def test_a_bucket_that_may_not_be_written_is_said_in_one_line(ceph_server: S3Server, ceph_bucket: str) -> None:
    bucket = ceph_bucket.removeprefix("s3://")
    objects.write_new(f"{ceph_bucket}/a", b"1")
    denied = {"Effect": "Deny", "Principal": "*", "Action": ["s3:PutObject"], "Resource": [f"arn:aws:s3:::{bucket}/*"]}
    ceph_server.client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [denied]}))
    with pytest.raises(StorageError, match="b cannot be written: access is denied"):
        objects.write_new(f"{ceph_bucket}/b", b"1")
    assert objects.read_bytes(f"{ceph_bucket}/a") == b"1"


def test_a_name_that_no_object_can_have_is_one_that_is_not_there(ceph_bucket: str) -> None:
    uri = f"{ceph_bucket}/{'long' * 300}"
    assert objects.read_bytes(uri) is None
    for act in (s3.sha256, s3.described):
        with pytest.raises(FileNotFoundError):
            act(uri)
    with pytest.raises(StorageError, match="cannot be written"):
        objects.write_new(uri, b"1")


@pytest.mark.parametrize("name", ["a b", "ü", "a//b", "a%2Fb", "a+b?c#d&e=f", "~!*'();:@,[]", "a\u2028b", "x/"])
def test_names_arrive_as_they_are(ceph_bucket: str, name: str) -> None:
    assert objects.write_new(f"{ceph_bucket}/folder/{name}", name.encode())
    assert objects.read_bytes(f"{ceph_bucket}/folder/{name}") == name.encode()
    assert s3.sha256(f"{ceph_bucket}/folder/{name}")[1] == s3.described(f"{ceph_bucket}/folder/{name}")[0]
    if not name.endswith("/"):
        assert s3.names(f"{ceph_bucket}/folder", deep=True) == [name]


def test_a_bucket_that_overwrites_in_spite_of_the_condition_is_found_out(ceph_server: S3Server, ceph_bucket: str) -> None:
    """Ceph 16 ignores If-None-Match in a bucket with versions: two runs could both commit there."""
    objects.prove_written_once(ceph_bucket)
    bucket = ceph_bucket.removeprefix("s3://")
    ceph_server.client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    with pytest.raises(StorageError, match=r"overwrites what is there though asked not to .* a bucket without versions"):
        objects.prove_written_once(ceph_bucket)


def row(key: str) -> dict[str, object]:
    return dict.fromkeys(FRAMES.schema.names) | {"video_id": key, "sampling": "uniform", "jpegs": [b"1", b""], "duration_s": 1.5}


def test_a_tables_whole_life(ceph_bucket: str, proxy: FaultProxy) -> None:
    """Begun, committed, superseded, completed and read, with requests that fail all the way."""
    for part in ("wanted/", "log/00000000.json", "log/00000001.json", "shards/", "rejects/"):
        proxy.fail(Fault("status", status=503, part=part))
        proxy.fail(Fault("lost", method="PUT", part=part))
        proxy.fail(Fault("cut", method="GET", after_bytes=20, part=part))
    table = Table(f"{ceph_bucket}/root", "frames", "one-set")
    first = table.begin(ASKED, ["a", "b", "c", "d"])
    assert first.write([row("a")], []) == 1
    second = table.begin(ASKED, ["a", "b", "c", "d"])
    assert second.left == {"b", "c", "d"}
    with pytest.raises(SupersededError):
        first.write([row("b")], [])
    assert second.write([row("b")], [reject("frames", "c", "bad_row", "of w")]) == 2
    assert not table.is_complete()
    second.commit(second.writer().write([row("d")], []))
    second.complete()
    assert table.is_complete() and table.finished(ASKED)
    assert sorted(table.read(["video_id"])["video_id"].to_pylist()) == ["a", "b", "d"]
    assert table.read_rejects()["key"].to_pylist() == ["c"]
    assert proxy.n_left == 0, "a fault was never met"


def test_two_runs_that_begin_at_once_get_two_numbers(ceph_bucket: str) -> None:
    table = Table(f"{ceph_bucket}/root", "frames", "one-set")
    with ThreadPoolExecutor(8) as pool:
        attempts = list(pool.map(lambda _: table.begin(ASKED, ["a"]), range(8)))
    assert sorted(attempt.number for attempt in attempts) == list(range(1, 9))
    for attempt in sorted(attempts, key=lambda attempt: attempt.number):
        if attempt.number < 8:
            with pytest.raises(SupersededError):
                attempt.write([row("a")], [])
        else:
            assert attempt.write([row("a")], []) == 1


READ_BY_RAY = """
import sys
import ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
print(sorted(row["video_id"] for row in ray.data.read_parquet(sys.argv[1:], columns=["video_id"]).take_all()))
"""


def test_shards_are_read_by_pyarrow_and_by_ray(ceph_bucket: str) -> None:
    table = Table(f"{ceph_bucket}/root", "frames", "one-set")
    attempt = table.begin(ASKED, ["a", "b", "c"])
    attempt.write([row("a"), row("b")], [])
    attempt.write([row("c")], [])
    attempt.complete()
    tables = []
    for shard in table.shards():
        filesystem, path = pyarrow.fs.FileSystem.from_uri(shard)
        tables.append(pq.read_table(path, filesystem=filesystem, columns=["video_id"]))
    assert sorted(pa.concat_tables(tables)["video_id"].to_pylist()) == ["a", "b", "c"]
    ran = subprocess.run([sys.executable, "-c", READ_BY_RAY, *table.shards()], cwd=REPOSITORY, timeout=300, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.splitlines()[-1] == "['a', 'b', 'c']", ran.stderr


def test_checksums_of_newer_clients_do_no_harm_here(ceph_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION")
    monkeypatch.delenv("AWS_RESPONSE_CHECKSUM_VALIDATION")
    assert objects.write_new(f"{ceph_bucket}/a", LARGE) and not objects.write_new(f"{ceph_bucket}/a", b"1")
    assert objects.read_bytes(f"{ceph_bucket}/a") == LARGE


def test_a_store_that_stays_away_is_one_clear_error(ceph_bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_requests, "PATIENCE_S", 1.0)
    table = Table(f"{ceph_bucket}/root", "frames", "one-set")
    attempt = table.begin(ASKED, ["a"])
    proxy.refuse(600.0)
    with pytest.raises(StorageError, match="for 1 s; run the same command again, it continues"):
        attempt.write([row("a")], [])
    proxy.forget()
    assert table.begin(ASKED, ["a"]).left == {"a"}
