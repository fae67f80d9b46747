"""Objects on a disk and in a bucket keep one contract, whatever becomes of the requests."""

import hashlib
import logging
import os
import random
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra import objects, s3, s3_requests
from infra.errors import BadInputError, StorageError
from tests.infra.objects_contract import LARGE, Contract
from tests.servers.child import free_port
from tests.servers.fault_proxy import Fault, FaultProxy

# What a store or a network does to a request, for as often as a test asks.
TRANSIENT = {
    "internal error": {"kind": "status", "status": 500, "code": "InternalError"},
    "slow down": {"kind": "status", "status": 503, "code": "SlowDown"},
    "too many": {"kind": "status", "status": 429, "code": "TooManyRequests"},
    "gateway": {"kind": "status", "status": 502, "code": "BadGateway"},
    "timed out": {"kind": "status", "status": 400, "code": "RequestTimeout"},
    "reset": {"kind": "reset"},
    "lost": {"kind": "lost"},
    "slow": {"kind": "slow"},
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_requests, "PATIENCE_S", 1.0)


class TestOnADisk(Contract):
    @pytest.fixture
    def folder(self, tmp_path: Path) -> str:
        return str(tmp_path / "root")


class TestInABucket(Contract):
    @pytest.fixture
    def folder(self, bucket: str) -> str:
        return bucket


@pytest.mark.parametrize("path", ["http://host/a", "memory://a/b", "s3://", "s3:///a", "s3://bucket?/a", "s3://b/a/../c"])
def test_other_addresses_are_refused(path: str) -> None:
    with pytest.raises(BadInputError, match="expected"):
        objects.read_bytes(path)


# The disk


def test_a_parent_that_is_a_file_is_an_error_and_not_a_name_taken(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(StorageError, match="cannot be written"):
        objects.write_new(str(tmp_path / "file" / "a"), b"1")


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    """A real refusal of the system: /dev/full, as the file that is written beside the place."""
    code = (
        "import builtins, sys; from infra import objects; from infra.errors import StorageError\n"
        "real = builtins.open\n"
        "objects.open = lambda path, mode: real('/dev/full', 'wb') if mode == 'xb' else real(path, mode)\n"
        f"try: objects.write_new({str(tmp_path / 'x.bin')!r}, b'0' * 1000)\n"
        "except StorageError as error: print(error); sys.exit(error.exit_code)"
    )
    ran = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True)
    assert ran.returncode == StorageError.exit_code, ran.stderr
    assert "storage is full; free some" in ran.stdout
    assert list(tmp_path.iterdir()) == [], "a part of the file was left"


def test_a_writer_that_is_killed_leaves_no_half_file(tmp_path: Path) -> None:
    """SIGKILL at random moments of writes in a row: each name has its whole content or does not exist."""
    code = (
        f"import sys; from infra.objects import write_new\n"
        f"for i in range(10000): write_new({str(tmp_path)!r} + f'/f/{{i}}', b'%d' % (i % 10) * 3_000_000); print(i, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    time.sleep(random.Random(os.getpid()).uniform(0, 0.05))
    process.kill()
    said = process.stdout.read().split()
    process.stdout.close()
    process.wait()
    whole = [name for name in objects.names(str(tmp_path / "f")) if not name.endswith(".part")]
    assert len(whole) >= 3 + len(said)
    for name in whole:
        assert objects.read_bytes(str(tmp_path / "f" / name)) == name[-1:].encode() * 3_000_000


# The bucket, when requests fail for a while


@pytest.mark.parametrize("fault", TRANSIENT.values(), ids=list(TRANSIENT))
def test_what_passes_is_waited_out(bucket: str, proxy: FaultProxy, fault: dict[str, object]) -> None:
    path = f"{bucket}/t/a.bin"
    for method in ("GET", "PUT", "DELETE"):
        proxy.fail(Fault(**fault, times=1 if fault["kind"] == "slow" else 3, method=method))  # type: ignore[arg-type]
    assert objects.write_new(path, LARGE)
    assert objects.read_bytes(path) == LARGE
    objects.remove(path)
    assert objects.names(f"{bucket}/t") == []
    assert proxy.n_left == 0, "a fault was never met"


def test_a_write_whose_answer_was_lost_is_ours(bucket: str, proxy: FaultProxy) -> None:
    proxy.fail(Fault("lost", method="PUT"))
    assert objects.write_new(f"{bucket}/log/0.json", b"mine")
    assert not objects.write_new(f"{bucket}/log/0.json", b"another's")
    assert [method for method, _ in proxy.seen] == ["PUT", "PUT", "GET", "PUT", "GET"]


def test_a_write_that_lost_the_race_and_its_answer_is_not_ours(bucket: str, proxy: FaultProxy) -> None:
    objects.write_new(f"{bucket}/log/0.json", b"another's")
    proxy.fail(Fault("lost", method="PUT", times=2))
    assert not objects.write_new(f"{bucket}/log/0.json", b"mine")


def test_one_of_16_writers_wins_though_answers_are_lost(bucket: str, proxy: FaultProxy) -> None:
    for turn in range(3):
        proxy.fail(Fault("lost", method="PUT", times=9))
        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(lambda i, turn=turn: objects.write_new(f"{bucket}/{turn}", b"%d" % i), range(16)))
        assert sum(won) == 1 and objects.read_bytes(f"{bucket}/{turn}") == b"%d" % won.index(True)
    assert proxy.n_left == 0


@pytest.mark.parametrize("kind", ["cut", "short"])
@pytest.mark.parametrize("after_bytes", [1, 1 << 20, len(LARGE) - 1])
def test_a_body_that_was_cut_is_read_whole(bucket: str, proxy: FaultProxy, tmp_path: Path, kind: str, after_bytes: int) -> None:
    path = f"{bucket}/clip.mp4"
    objects.write_new(path, LARGE)
    for read in (
        lambda: objects.read_bytes(path) == LARGE,
        lambda: s3.sha256(path) == (hashlib.sha256(LARGE).hexdigest(), len(LARGE)),
        lambda: s3.fetch(path, str(tmp_path / "clip")) == len(LARGE) and (tmp_path / "clip").read_bytes() == LARGE,
    ):
        proxy.forget()
        proxy.fail(Fault(kind, method="GET", after_bytes=after_bytes, times=3))  # type: ignore[arg-type]
        assert read()
        assert len(proxy.seen) > 1


def test_a_long_object_is_read_on_where_it_broke_off(
    bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With no patience at all: a body that brought something has not failed."""
    monkeypatch.setattr(s3_requests, "PATIENCE_S", 0.0)
    objects.write_new(f"{bucket}/clip.mp4", LARGE)
    proxy.fail(Fault("cut", method="GET", after_bytes=len(LARGE) // 12, times=12))
    assert s3.fetch(f"{bucket}/clip.mp4", str(tmp_path / "clip")) == len(LARGE)
    assert (tmp_path / "clip").read_bytes() == LARGE
    assert proxy.n_left == 0


def test_an_object_that_changes_while_it_is_read_is_an_error(bucket: str, proxy: FaultProxy, tmp_path: Path) -> None:
    objects.write_new(f"{bucket}/clip.mp4", LARGE)

    proxy.fail(Fault("cut", method="GET", after_bytes=1 << 20))
    proxy.fail(Fault("slow", method="GET", wait_s=1.0))
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(s3.sha256, f"{bucket}/clip.mp4")
        while proxy.n_left:  # the second GET has come
            time.sleep(0.01)
        objects.remove(f"{bucket}/clip.mp4")
        objects.write_new(f"{bucket}/clip.mp4", LARGE[::-1])
        with pytest.raises(StorageError, match="was changed while it was read: run the same command again"):
            reading.result()


def test_a_listing_of_many_pages_survives_faults(bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "N_PER_PAGE", 7)
    for i in range(23):
        objects.write_new(f"{bucket}/many/{i:02d}", b"1")
    proxy.fail(Fault("status", status=503, part="list-type=2", times=2))
    proxy.fail(Fault("cut", part="continuation-token", times=2))
    assert objects.names(f"{bucket}/many") == [f"{i:02d}" for i in range(23)]
    assert s3.names(bucket, deep=True) == [f"many/{i:02d}" for i in range(23)]
    tag = hashlib.md5(b"1").hexdigest()
    assert s3.described_below(bucket) == {f"{bucket}/many/{i:02d}": (1, tag) for i in range(23)}
    assert s3.described(f"{bucket}/many/07") == (1, tag)
    assert proxy.n_left == 0


def test_a_store_that_was_away_is_waited_for(bucket: str, proxy: FaultProxy, caplog: pytest.LogCaptureFixture) -> None:
    objects.write_new(f"{bucket}/a", b"1")
    proxy.refuse(2.0)
    with caplog.at_level(logging.WARNING, "infra.s3_requests"):
        started_s = time.monotonic()
        assert objects.read_bytes(f"{bucket}/a") == b"1"
    assert time.monotonic() - started_s > 1.9
    assert "try 5 follows in" in caplog.text and "try 2 follows" not in caplog.text


def test_a_store_that_stays_away_is_one_clear_error(
    bucket: str, proxy: FaultProxy, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_requests, "LONGEST_WAIT_S", 0.2)
    proxy.fail(Fault("status", status=503, times=1000))
    _fails(f"{bucket}/a", "SlowDown", "for 1 s; run the same command again, it continues", within_s=20.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:hunter2@127.0.0.1:{free_port()}")
    _fails(f"{bucket}/a", "Could not connect to the endpoint URL", "for 1 s", within_s=20.0)


def test_a_store_that_never_answers_is_one_clear_error(bucket: str, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_requests, "READ_S", 0.4)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        _fails(f"{bucket}/a", "Read timeout", "for 1 s", within_s=20.0)


# The bucket, when waiting cannot help


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, "AccessDenied", "access is denied"),
        (403, "InvalidAccessKeyId", "the credentials are refused"),
        (403, "SignatureDoesNotMatch", "the credentials are refused"),
        (400, "ExpiredToken", "the credentials are refused"),
        (403, "QuotaExceeded", "storage is full"),
        (507, "XMinioStorageFull", "storage is full"),
        (411, "MissingContentLength", "AWS_REQUEST_CHECKSUM_CALCULATION=when_required"),
        (501, "NotImplemented", "AWS_REQUEST_CHECKSUM_CALCULATION=when_required"),
        (400, "InvalidRequest", "InvalidRequest"),
    ],
)
def test_what_stays_wrong_is_said_at_once(bucket: str, proxy: FaultProxy, status: int, code: str, said: str) -> None:
    proxy.fail(Fault("status", status=status, code=code, times=2))
    _fails(f"{bucket}/a", said, within_s=20.0)
    assert proxy.n_left == 0 and len(proxy.seen) == 2, "it was tried again"


def test_no_bucket_is_said_at_once(bucket: str) -> None:
    _fails(f"{bucket}-none/a", "there is no bucket", within_s=20.0)
    with pytest.raises(StorageError, match="there is no bucket"):
        objects.names(f"{bucket}-none/a")
    with pytest.raises(StorageError, match="there is no bucket"):
        objects.remove(f"{bucket}-none/a")


def test_no_credentials_are_said_at_once(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    _fails(f"{bucket}/a", "no credentials: set AWS_ACCESS_KEY_ID", within_s=20.0)


def test_a_clip_that_is_not_there_is_told_from_a_store_that_is_away(bucket: str, proxy: FaultProxy, tmp_path: Path) -> None:
    for uri in (f"{bucket}/none.mp4", f"{bucket}-none/a.mp4", bucket):
        with pytest.raises(FileNotFoundError):
            s3.sha256(uri)
        with pytest.raises(FileNotFoundError):
            s3.described(uri)
        with pytest.raises(FileNotFoundError):
            s3.fetch(uri, str(tmp_path / "clip"))
    proxy.fail(Fault("status", status=403, code="AccessDenied"))
    with pytest.raises(PermissionError):
        s3.sha256(f"{bucket}/none.mp4")
    for act in (s3.sha256, s3.described):
        proxy.forget()
        proxy.fail(Fault("status", status=403, code="InvalidAccessKeyId", times=2))
        with pytest.raises(StorageError, match="the credentials are refused"):
            act(f"{bucket}/none.mp4")


def test_a_clip_that_finds_no_room_is_an_error_of_storage(bucket: str) -> None:
    objects.write_new(f"{bucket}/clip.mp4", LARGE)
    with pytest.raises(StorageError, match="/dev/full cannot be written: No space left"):
        s3.fetch(f"{bucket}/clip.mp4", "/dev/full")


def _fails(path: str, *said: str, within_s: float) -> None:
    """Both reading and writing, in one line that has the words and no secret."""
    secret = os.environ.get("AWS_SECRET_ACCESS_KEY", "hunter2")
    for act in (lambda: objects.read_bytes(path), lambda: objects.write_new(path, b"1")):
        started_s = time.monotonic()
        with pytest.raises(StorageError) as raised:
            act()
        message = str(raised.value)
        assert time.monotonic() - started_s < within_s
        assert path in message and all(words in message for words in said), message
        assert "\n" not in message and secret not in message and "hunter2" not in message
