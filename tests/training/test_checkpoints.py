"""Checkpoints exist whole or not at all, on a disk and in a bucket alike (here: ministack's)."""

from pathlib import Path

import fsspec
import pytest
import torch

from infra.errors import StorageError
from tests.servers.child import free_port
from tests.servers.fault_proxy import Fault, FaultProxy
from training import checkpoints
from video2lora.hypernetwork import Hypernetwork, HypernetworkConfig

CONFIG = HypernetworkConfig(
    n_layers=2, d_vlm=5, target_modules={"down_proj": (7, 5)}, r=3, n_latents=2, n_blocks=1, d_latent=11, n_heads=2, n_kv_heads=1, d_head=3
)


@pytest.fixture(params=["disk", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    root = str(tmp_path) if request.param == "disk" else request.getfixturevalue("bucket")
    return f"{root}/checkpoints"


def save(folder: str, step: int) -> checkpoints.Checkpoint:
    moments = {"exp_avg/x": torch.full((2, 3), float(step))}
    return checkpoints.save(Hypernetwork(CONFIG, seed=step), moments, folder, state={"step": step}, metadata={"step": step})


def folders(folder: str) -> list[str]:
    fs, inner = fsspec.core.url_to_fs(folder)
    return sorted(path.rstrip("/").rsplit("/", 1)[-1].rsplit("-", 1)[0] for path in fs.ls(inner, detail=False))


def test_what_was_saved_is_loaded(folder: str) -> None:
    assert checkpoints.latest(folder) is None
    save(folder, 5)
    found = checkpoints.latest(folder)
    assert found is not None and found.step == 5
    hypernetwork, moments = checkpoints.load(found)
    expected = Hypernetwork(CONFIG, seed=5).state_dict()
    assert hypernetwork.config == CONFIG and moments["exp_avg/x"].tolist() == [[5.0] * 3] * 2
    assert all(torch.equal(value, expected[name]) for name, value in hypernetwork.state_dict().items())


def test_one_without_a_state_is_none_and_goes_with_the_old_ones(folder: str) -> None:
    save(folder, 5)
    half = save(folder, 10)
    fs, inner = fsspec.core.url_to_fs(half.folder)
    fs.rm(f"{inner}/state.json")
    found = checkpoints.latest(folder)
    assert found is not None and found.step == 5
    for step in (10, 15):
        save(folder, step)
    checkpoints.prune(folder, kept=2)
    assert folders(folder)[-1] == "step-00000015" and "step-00000005" not in folders(folder)
    found = checkpoints.latest(folder)
    assert found is not None and found.step == 15
    checkpoints.prune(folder, kept=1)
    assert folders(folder) == ["step-00000015"]


def test_a_writer_keeps_the_last_ones_and_the_best(folder: str) -> None:
    writer = checkpoints.Writer(folder, kept=2)
    for step, best_step in ((5, None), (10, 10), (15, 10), (20, 10), (25, 10)):
        writer.save(Hypernetwork(CONFIG, seed=step), {}, state={"step": step, "best_step": best_step}, metadata={})
    writer.wait()
    assert folders(folder) == ["step-00000010", "step-00000020", "step-00000025"]
    best = checkpoints.of_step(folder, 10)
    assert best is not None and checkpoints.of_step(folder, 5) is None
    expected = Hypernetwork(CONFIG, seed=10).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in checkpoints.load(best)[0].state_dict().items())


def test_who_lags_behind_removes_nothing_of_who_is_ahead(folder: str) -> None:
    """A worker that was paused and wakes, or was cut off, while another has gone on from its checkpoint: it knows an older best."""
    ahead, behind = checkpoints.Writer(folder, kept=2), checkpoints.Writer(folder, kept=2)
    for writer, step, best_step in ((ahead, 10, 10), (ahead, 30, 30), (ahead, 35, 30), (ahead, 40, 30), (behind, 12, 10)):
        writer.save(Hypernetwork(CONFIG, seed=step), {}, state={"step": step, "best_step": best_step}, metadata={})
        writer.wait()
    assert folders(folder) == ["step-00000012", "step-00000030", "step-00000035", "step-00000040"]
    ahead.save(Hypernetwork(CONFIG, seed=45), {}, state={"step": 45, "best_step": 30}, metadata={})
    ahead.wait()
    assert folders(folder) == ["step-00000030", "step-00000040", "step-00000045"]


def test_what_a_thread_could_not_write_is_said_at_the_next_save(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    writer = checkpoints.Writer(str(tmp_path / "checkpoints"), kept=2)
    writer.save(Hypernetwork(CONFIG), {}, state={"step": 1, "best_step": None}, metadata={})
    with pytest.raises(StorageError, match="cannot be written"):
        writer.save(Hypernetwork(CONFIG), {}, state={"step": 2, "best_step": None}, metadata={})


@pytest.mark.slow
def test_a_bucket_that_is_away_is_an_error_of_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.s3_requests.PATIENCE_S", 0.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of-nobody")
    monkeypatch.setattr("s3fs.S3FileSystem.cachable", False)  # or one that knows another endpoint is taken
    folder = "s3://bucket/checkpoints"
    for call in (lambda: save(folder, 5), lambda: checkpoints.latest(folder), lambda: checkpoints.prune(folder, kept=1)):
        with pytest.raises(StorageError, match=f"^{folder}.* cannot be (written|read): .*; run the same command again, it continues"):
            call()


@pytest.mark.slow
def test_a_bucket_that_answers_that_it_is_unwell_is_waited_for(bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than s3fs does by itself, which then makes an error of Python's out of the answer."""
    monkeypatch.setattr("s3fs.S3FileSystem.cachable", False)
    proxy.fail(Fault("status", status=503, times=8))
    save(f"{bucket}/checkpoints", 5)
    assert proxy.n_left == 0
    proxy.fail(Fault("status", status=503, times=8))
    found = checkpoints.latest(f"{bucket}/checkpoints")
    assert proxy.n_left == 0 and found is not None and found.step == 5


def test_a_changed_file_is_refused(folder: str) -> None:
    found = save(folder, 5)
    fs, inner = fsspec.core.url_to_fs(found.folder)
    fs.pipe_file(f"{inner}/{checkpoints.OPTIMIZER_FILE}", b"something else")
    with pytest.raises(StorageError, match=r"optimizer\.safetensors was changed"):
        checkpoints.load(found)
