"""Clips -> adapters as a user makes them: one or many, from wherever, once; killed and continued; nothing lost without a word."""

import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from infra.collection import CATALOGUE
from infra.errors import BadInputError
from infra.fetch import OutOfReachError, expand, fetched, public_name
from infra.internalize import sampling_named
from video2lora import api
from video2lora.sampling import Sampling
from video2lora.video import VideoDecodeError, decode

Command = Callable[..., Any]
UNFINISHED = f".{'0a' * 10}.new-0123456789ab"  # what a kill in the middle of writing an adapter leaves


@pytest.fixture(scope="module")
def using() -> api.Internalizer:
    return api.load("tiny")


def catalogue(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows by id."""
    table = pq.read_table(folder / "catalogue.parquet")
    assert table.schema.equals(CATALOGUE)
    return {row["video_id"]: row for row in table.to_pylist()}


def rejects(folder: Path) -> dict[str, str]:
    """Reasons by file name."""
    path = folder / "rejects.parquet"
    return {Path(row["key"]).name: row["reason"] for row in pq.read_table(path).to_pylist()} if path.exists() else {}


def made_at(folder: Path) -> dict[str, int]:
    """When each adapter's weights were written, in ns."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("[!.]*/adapter_model.safetensors")}


def assert_adapter_of(folder: Path, clip: Path, using: api.Internalizer, **settings: Any) -> None:
    """The oracle: the method, called with this clip alone."""
    expected = api.internalize(clip, using=using, **settings)
    got = api.load_adapter(folder)
    assert got.provenance["video_id"] == expected.provenance["video_id"] == api.video_id_of(clip)
    lora = expected.lora if got.has_all else expected.generated
    assert got.lora.r == lora.r
    for module, a in lora.lora_a.items():
        torch.testing.assert_close(got.lora.lora_a[module], a, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got.lora.lora_b[module], lora.lora_b[module], rtol=1e-4, atol=1e-5)


def with_free_box(clip: Path, number: int, folder: Path) -> Path:
    """The same video as another content: a box of nothing at the end, which every reader skips (ISO 14496-12, 8.1.2)."""
    path = folder / f"{clip.stem}-{number}.mp4"
    path.write_bytes(clip.read_bytes() + struct.pack(">I4sI", 12, b"free", number))
    return path


def test_one_clip_becomes_the_folder_itself(command: Command, clips: list[Path], tmp_path: Path, using: api.Internalizer) -> None:
    ran = command("internalize", clips[0], "-o", tmp_path / "adapter")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"{tmp_path / 'adapter'}: adapter of {clips[0]}, rank 16")
    assert_adapter_of(tmp_path / "adapter", clips[0], using)
    assert api.load_adapter(tmp_path / "adapter").has_all
    ran = command("internalize", clips[0], "-o", tmp_path / "half", "--without-static")
    assert ran.out.startswith(f"{tmp_path / 'half'}: adapter of {clips[0]}, rank 8 (the static adapter stays with the hypernetwork")
    assert_adapter_of(tmp_path / "half", clips[0], using)
    assert not api.load_adapter(tmp_path / "half").has_all
    assert command("internalize", clips[0], "-o", tmp_path / "small", "--stored-as", "bfloat16").code == 0
    assert {a.dtype for a in api.load_adapter(tmp_path / "small").lora.lora_a.values()} == {torch.bfloat16}


def test_many_clips_become_a_collection_in_which_each_is_accounted_for(
    command: Command, clips: list[Path], tmp_path: Path, using: api.Internalizer
) -> None:
    """Batches of 2 give what each clip alone gives; of a bad file, a missing one and a copy none disappears without a word."""
    bad, copy, frames, out = tmp_path / "bad.mp4", tmp_path / "copy.mp4", tmp_path / "frames", tmp_path / "adapters"
    bad.write_bytes(b"no video at all")
    shutil.copy(clips[1], copy)
    frames.mkdir()
    for i, image in enumerate(decode(clips[2], Sampling(n_frames=11), longest_edge_px=64).images):
        Image.fromarray(image).save(frames / f"{i}.png")
    given = [clips[0], bad, clips[1], clips[2], tmp_path / "gone.mp4", copy, frames, bad]
    ran = command("internalize", *given, "-o", out, "--batch-size", 2)
    assert ran.code == 3
    assert f"error: 3 of 8 gave no adapter: see {out / 'rejects.parquet'} (4 made, 1 the same again;" in ran.err
    assert f"{bad}: no adapter: not_a_video" in ran.err
    assert "the same content as an earlier clip" in ran.err
    assert rejects(out) == {"bad.mp4": "not_a_video", "gone.mp4": "missing"}
    rows = catalogue(out)
    assert set(rows) == {api.video_id_of(path) for path in (*clips, frames)} == set(made_at(out))
    for path in (*clips, frames):
        row = rows[api.video_id_of(path)]
        assert_adapter_of(out / row["adapter"], path, using)
        assert row["uri"] in ({str(path), str(copy)} if path == clips[1] else {str(path)})
        assert (row["sampling"], row["n_frames"], row["n_chunks"], row["rank"]) == ("uniform-4", 4, 1, 16)
        assert (row["vlm"], row["vlm_digest"], row["hypernetwork_digest"]) == ("tiny", using.vlm.digest, using.digest)
        assert row["n_bytes"] == sum(file.stat().st_size for file in (out / row["adapter"]).iterdir())


def test_the_same_command_again_makes_only_what_is_not_there(command: Command, clips: list[Path], tmp_path: Path) -> None:
    bad, out = tmp_path / "bad.mp4", tmp_path / "adapters"
    bad.write_bytes(b"no video at all")
    assert command("internalize", *clips[:2], bad, "-o", out).code == 3
    before = made_at(out)
    shutil.copy(clips[2], bad)  # mended
    (out / "catalogue.parquet").unlink()  # as after a kill: the adapters are there, and what was being written
    (out / UNFINISHED).mkdir()
    ran = command("internalize", str(tmp_path / "*.mp4"), "-o", out)  # a quoted pattern: all four, two of them the same
    assert ran.code == 0, ran.err
    assert ran.out == f"1 made, 2 there already, 1 the same again; 3 in {out / 'catalogue.parquet'}\n"
    assert rejects(out) == {}
    after = made_at(out)
    assert len(after) == 3 and before.items() <= after.items(), "an adapter that was there was made again"
    assert set(catalogue(out)) == set(after)
    assert all(row["uri"] for row in catalogue(out).values()), "the addresses come back with the clips"
    assert not (out / UNFINISHED).exists()
    shutil.rmtree(out / api.video_id_of(clips[0]))
    assert command("internalize", clips[0], "-o", out, "--batch-size", 1).out.startswith("1 made; 3 in")


@pytest.mark.slow
def test_a_killed_run_leaves_no_half_adapter_and_is_continued(command: Command, clips: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "adapters"
    many = [with_free_box(clips[0], number, tmp_path) for number in range(60)]
    arguments = [sys.executable, "-m", "infra.cli", "internalize", *map(str, many), "-o", str(out), "--batch-size", "1"]
    run = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(made_at(out)) < 3 and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, "it ended before it could be killed"
    before = made_at(out)
    assert 3 <= len(before) < 60
    for folder in before:
        api.load_adapter(out / folder)
    assert len(catalogue(out)) < len(before), "the catalogue follows the folders"
    (out / UNFINISHED).mkdir()
    ran = command("internalize", *many, "-o", out, "--batch-size", 16)
    assert ran.code == 0, ran.err
    assert ran.out.startswith(f"{60 - len(before)} made, {len(before)} there already; 60 in ")
    assert before.items() <= made_at(out).items()
    assert set(catalogue(out)) == {api.video_id_of(path) for path in many}
    assert sorted(path.name for path in out.glob(".*")) == [".lock"]


def test_weights_that_lost_their_end_are_made_anew(command: Command, clips: list[Path], tmp_path: Path) -> None:
    """Whether the catalogue lists them or not."""
    out = tmp_path / "adapters"
    assert command("internalize", *clips[:2], "-o", out).code == 0
    first, second = (out / api.video_id_of(clip) for clip in clips[:2])
    for is_listed in (True, False):
        os.truncate(first / "adapter_model.safetensors", 100)
        if not is_listed:
            (out / "catalogue.parquet").unlink()
        ran = command("internalize", *clips[:2], "-o", out)
        assert ran.out.startswith("1 made, 1 there already; 2 in "), ran.err
        api.load_adapter(first)
    (second / "README.md").write_text("a note")
    (second / "README.md").unlink()
    assert command("internalize", *clips[:2], "-o", out).out.startswith("2 there already")


@pytest.mark.slow
def test_a_name_that_is_no_text_costs_nobody_anything(command: Command, clips: list[Path], tmp_path: Path) -> None:
    odd = os.path.join(os.fsencode(tmp_path), b"odd\xff.mp4")
    shutil.copy(os.fsencode(clips[0]), odd)
    out = tmp_path / "adapters"
    arguments = [b"internalize", odd, os.fsencode(clips[1]), b"-o", os.fsencode(out)]
    ran = subprocess.run([sys.executable, "-m", "infra.cli", *arguments], capture_output=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    assert sorted(str(row["uri"]) for row in catalogue(out).values()) == sorted([str(clips[1]), f"{tmp_path}/odd\\xff.mp4"])
    asked = [sys.executable, "-m", "infra.cli", "ask", os.fsencode(out), b"what\xff?"]
    ran = subprocess.run(asked, capture_output=True, timeout=300, check=False)
    assert ran.returncode == 2 and b"not UTF-8" in ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_told_to_end_leaves_its_books(clips: list[Path], tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "adapters"
    many = [with_free_box(clips[0], one, tmp_path) for one in range(60)]
    arguments = [sys.executable, "-m", "infra.cli", "internalize", *map(str, many), "-o", str(out), "--batch-size", "1"]
    before = signal.signal(number, signal.SIG_DFL)  # under nohup it would be ignored
    run = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    signal.signal(number, before)
    deadline = time.monotonic() + 120
    while len(made_at(out)) < 3 and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    run.send_signal(number)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 143 and "error: terminated; what was made is kept" in said, said
    assert 3 <= len(made_at(out)) < 60 and 0 <= len(made_at(out)) - len(catalogue(out)) <= 1, "but for one that it was about to enter"


def test_a_folder_that_is_stood_in_is_not_replaced(
    command: Command, clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder in (".", ".."):
        ran = command("internalize", clips[0], "-o", folder)
        assert ran.code == 3 and "is where this command runs, and is replaced as a whole: run it from outside" in ran.err
    assert list((tmp_path / "here").iterdir()) == []


def test_a_collection_made_by_something_else_is_left_alone(command: Command, clips: list[Path], tmp_path: Path) -> None:
    out, alone = tmp_path / "adapters", tmp_path / "alone"
    assert command("internalize", *clips[:2], "-o", out).code == 0
    ran = command("internalize", *clips, "-o", out, "--frames", 7, "--frames-per-chunk", 3)
    assert ran.code == 4
    assert 'sampling: there "uniform-4", here "uniform-7"' in ran.err and "frames_per_chunk: there 64, here 3" in ran.err
    assert len(catalogue(out)) == 2
    assert command("internalize", clips[0], "-o", alone, "--frames", 7).code == 0
    shutil.copytree(alone, out / api.video_id_of(clips[2]))  # an adapter from elsewhere
    (out / "catalogue.parquet").unlink()
    ran = command("internalize", *clips, "-o", out)
    assert ran.code == 4 and 'there "uniform-7", here "uniform-4"' in ran.err
    assert "is an adapter, expected a new folder" in command("internalize", *clips, "-o", alone).err
    assert "holds 'clip" in command("internalize", *clips, "-o", tmp_path).err
    shutil.rmtree(out / api.video_id_of(clips[2]))
    with (out / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ran = command("internalize", *clips, "-o", out)
    assert ran.code == 3 and "another run is writing" in ran.err
    ran = command("internalize", *clips, "-o", out)
    assert ran.out.startswith("1 made, 2 there already; 3 in "), ran.err
    assert "is a collection" in command("internalize", clips[0], "-o", out).err


def test_frames_are_chosen_chunked_and_compressed_as_asked(
    command: Command, clips: list[Path], tmp_path: Path, using: api.Internalizer
) -> None:
    options = ("--sampling", "uniform-11", "--frames-per-chunk", 5, "--batch-size", 2)
    out = tmp_path / "adapters"
    assert command("internalize", *clips, "-o", out, *options).code == 0
    for clip in clips:
        row = catalogue(out)[api.video_id_of(clip)]
        assert (row["sampling"], row["n_frames"], row["n_chunks"], row["rank"]) == ("uniform-11", 11, 3, 32)
        assert_adapter_of(out / row["adapter"], clip, using.sampled(Sampling(n_frames=11)), frames_per_chunk=5)
    assert command("internalize", clips[0], "-o", tmp_path / "small", *options[:4], "--max-rank", 21).code == 0
    assert api.load_adapter(tmp_path / "small").lora.r == 21
    ran = command("internalize", *clips, "-o", tmp_path / "none", "--max-rank", 8)
    assert ran.code == 3 and "--max-rank: got 8, expected more than 8" in ran.err


def test_a_video_that_the_vlm_refuses_costs_itself_alone(
    command: Command, clips: list[Path], tmp_path: Path, using: api.Internalizer
) -> None:
    """All pictures of it in one chunk are more tokens than the VLM has positions; the others of its batch are made."""
    frames, out = tmp_path / "frames", tmp_path / "adapters"
    frames.mkdir()
    for i in range(using.vlm.n_positions // 4):
        Image.new("RGB", (17, 13), (i % 256, 0, 0)).save(frames / f"{i}.bmp")
    ran = command("internalize", *clips, frames, "-o", out, "--sampling", "fps-1", "--frames-per-chunk", 4096, "--batch-size", 4)
    assert ran.code == 3
    assert f"1 of 4 gave no adapter: see {out / 'rejects.parquet'} (3 made;" in ran.err
    assert f"has {using.vlm.n_positions} positions" in ran.err
    assert rejects(out) == {"frames": "decode_error"}


class Server(SimpleHTTPRequestHandler):
    """A folder on loopback, for who knows the user and the token."""

    def do_GET(self) -> None:
        if "token=s3cr3t" not in self.path or "Basic dXNlcjpwYXNzdzByZA==" not in str(self.headers["Authorization"]):
            self.send_error(403)
            return
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        """Nothing: standard error is looked at."""


@pytest.fixture
def served(clips: list[Path], tmp_path: Path) -> Iterator[str]:
    """Host and port of a server of this test's clips."""
    with HTTPServer(("127.0.0.1", 0), partial(Server, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_url_is_fetched_and_its_secrets_are_told_nowhere(
    command: Command, clips: list[Path], served: str, tmp_path: Path, using: api.Internalizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, temporary = tmp_path / "adapters", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    (tmp_path / "bad.mp4").write_bytes(b"no video at all")
    secret = f"http://user:passw0rd@{served}"
    one = command("internalize", f"{secret}/clip0.mp4?token=s3cr3t", "-o", tmp_path / "one")
    assert one.code == 0, one.err
    assert f"fetch http://{served}/clip0.mp4" in one.err
    assert_adapter_of(tmp_path / "one", clips[0], using)
    names = ["clip1.mp4?token=s3cr3t", "bad.mp4?token=s3cr3t", "gone.mp4?token=s3cr3t", "clip2.mp4?token=wr0ng"]
    many = command("internalize", *(f"{secret}/{name}" for name in names), f"http://user:passw0rd@127.0.0.1:{free_port()}/a.mp4", "-o", out)
    assert many.code == 3
    assert rejects(out) == {"bad.mp4": "not_a_video", "gone.mp4": "missing", "clip2.mp4": "unreadable", "a.mp4": "unreadable"}
    assert catalogue(out)[api.video_id_of(clips[1])]["uri"] == f"http://{served}/clip1.mp4"
    told = "".join((one.out, one.err, many.out, many.err, *(path.read_text("latin-1") for path in out.rglob("*") if path.is_file())))
    told += "".join(map(str, pq.read_table(out / "rejects.parquet").to_pylist() + pq.read_table(out / "catalogue.parquet").to_pylist()))
    assert not [word for word in ("passw0rd", "s3cr3t", "wr0ng", str(temporary)) if word in told]
    assert list(temporary.iterdir()) == []


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def test_what_stops_a_single_url_is_one_line(command: Command, served: str, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    for url, code, says in (
        (f"http://{served}/clip0.mp4", 3, "no right to read it"),
        (f"http://user:passw0rd@{served}/gone.mp4?token=s3cr3t", 3, f"missing: http://{served}/gone.mp4 is not there"),
        (f"http://127.0.0.1:{free_port()}/clip0.mp4", 5, "out of reach"),
        ("nosuch://host/clip0.mp4", 3, "no URL that fsspec opens"),
    ):
        ran = command("internalize", url, "-o", out)
        assert (ran.code, len(ran.err.splitlines())) == (code, 1), ran.err
        assert says in ran.err and "s3cr3t" not in ran.err
    assert not out.exists()


def test_other_addresses_that_fsspec_opens(command: Command, clips: list[Path], tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for i in (2, 10):
        memory.pipe_file(f"/bucket/clip{i}.mp4", clips[0].read_bytes() if i == 2 else clips[1].read_bytes())
    try:
        assert expand(["memory://bucket/*.mp4"]) == ["memory:///bucket/clip2.mp4", "memory:///bucket/clip10.mp4"]
        ran = command("internalize", "memory://bucket/*.mp4", f"file://{clips[2]}", "-o", tmp_path / "adapters")
        too_large = r"too_large: memory://bucket/clip2.mp4 has \d+ bytes or more, expected 100 at most"
        with pytest.raises(VideoDecodeError, match=too_large), fetched("memory://bucket/clip2.mp4", max_bytes=100):
            pass
    finally:
        memory.rm("/bucket", recursive=True)
    assert ran.code == 0, ran.err
    uris = [catalogue(tmp_path / "adapters")[api.video_id_of(clip)]["uri"] for clip in clips]
    assert uris == ["memory:///bucket/clip2.mp4", "memory:///bucket/clip10.mp4", f"file://{clips[2]}"]


def test_a_pattern_is_what_it_matches_in_natural_order(tmp_path: Path) -> None:
    for name in ("clip10.mp4", "clip9.mp4", "clip[1].mp4", "other.txt"):
        (tmp_path / name).touch()
    found = [Path(path).name for path in expand([f"{tmp_path}/*.mp4", f"{tmp_path}/clip[1].mp4"])]
    assert found == ["clip9.mp4", "clip10.mp4", "clip[1].mp4", "clip[1].mp4"]
    with pytest.raises(BadInputError, match="no file matches"):
        expand([f"{tmp_path}/*.avi"])
    assert public_name("s3://bucket/clip #1?.mp4") == "s3://bucket/clip #1?.mp4" and public_name("s3://me:pw@bucket/a") == "s3://bucket/a"
    assert public_name("zip://a.mp4::https://me:pw@host/x.zip?sig=1#top") == "zip://a.mp4::https://host/x.zip"


def test_urls_that_lead_nowhere_cost_one_clip_and_archives_keep_their_place(tmp_path: Path) -> None:
    with pytest.raises(OutOfReachError, match=r"ftp://127\.0\.0\.1:1/a\.mp4 is out of reach"), fetched("ftp://127.0.0.1:1/a.mp4"):
        pass
    with pytest.raises(OutOfReachError, match="is out of reach"):
        expand(["ftp://127.0.0.1:1/*.mp4"])
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        archive.writestr("in/a.mp4", b"of the archive")
    (url,) = expand([f"zip://in/*.mp4::{tmp_path}/clips.zip"])
    with fetched(url) as path:
        assert Path(path).read_bytes() == b"of the archive"


def test_a_pipe_is_refused_and_not_waited_for(command: Command, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    ran = command("internalize", tmp_path / "pipe.mp4", "-o", tmp_path / "adapter")
    assert ran.code == 3 and "neither a file nor a folder" in ran.err


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(n_frames=64),
        Sampling(policy="published", n_frames=12),
        Sampling(policy="published", n_frames=17, fps=0.5),
        Sampling(policy="fps", n_frames=0, fps=2.0),
        Sampling(policy="fps", n_frames=31, fps=29.97),
    ],
)
def test_a_sampling_is_known_by_its_name(sampling: Sampling) -> None:
    got = sampling_named(sampling.name)
    assert got.name == sampling.name
    assert got == (sampling if sampling.policy != "uniform" else Sampling(n_frames=64))


@pytest.mark.parametrize("name", ["uniform", "uniform-0", "fps-0", "published-12", "every-3", "uniform-12-max-3", ""])
def test_a_sampling_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(BadInputError, match="--sampling: got"):
        sampling_named(name)
