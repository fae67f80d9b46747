"""A hypernetwork written and read again, and everything that must be refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from video2lora.checkpoint import hypernetwork_hash, load_hypernetwork, new_folder, read_metadata, save_hypernetwork
from video2lora.hypernetwork import Hypernetwork, HypernetworkConfig

CONFIG = HypernetworkConfig(
    n_layers=2,
    d_vlm=7,
    target_modules={"down_proj": (11, 7), "q_proj": (7, 13)},
    r=3,
    n_latents=2,
    n_blocks=1,
    d_latent=5,
    n_heads=2,
    n_kv_heads=1,
    d_head=17,
    scaling=1.5,
    normalise_features=True,
    read_every=2,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_hypernetwork(Hypernetwork(CONFIG, seed=1), tmp_path / "step-7", metadata={"step": 7, "vlm": "é"})
    return tmp_path / "step-7"


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_what_is_read_generates_the_same_numbers_and_can_be_trained_on(folder: Path) -> None:
    read = load_hypernetwork(folder)
    assert read.config == CONFIG
    assert read_metadata(folder) == {"step": 7, "vlm": "é"}
    torch.testing.assert_close(read.state_dict(), Hypernetwork(CONFIG, seed=1).state_dict(), rtol=0, atol=0)
    features, mask = torch.randn(3, 2, 19, 7), torch.ones(3, 19, dtype=torch.bool)
    torch.testing.assert_close(read(features, mask).lora_a, Hypernetwork(CONFIG, seed=1)(features, mask).lora_a)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in read.parameters())


def test_a_config_from_before_there_was_a_setting_is_as_published(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config["hypernetwork"].pop("read_every"))
    assert load_hypernetwork(folder).config == CONFIG.model_copy(update={"read_every": 1})


def test_bf16_weights_stay_bf16(tmp_path: Path) -> None:
    save_hypernetwork(Hypernetwork(CONFIG).bfloat16(), tmp_path / "low", metadata={})
    assert {parameter.dtype for parameter in load_hypernetwork(tmp_path / "low").parameters()} == {torch.bfloat16}


def test_the_files_may_be_read_by_whoever_may_read_the_config(folder: Path) -> None:
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_the_hash_follows_weights_and_config_and_not_metadata(tmp_path: Path) -> None:
    hashes = []
    for i, (seed, scaling) in enumerate([(1, 1.5), (1, 1.5), (2, 1.5), (1, 2.5)]):
        made = Hypernetwork(CONFIG.model_copy(update={"scaling": scaling}), seed=seed)
        save_hypernetwork(made, tmp_path / str(i), metadata={"step": i})
        hashes.append(hypernetwork_hash(tmp_path / str(i)))
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_a_newer_checkpoint_replaces_an_older_one_and_leaves_nothing_behind(folder: Path) -> None:
    save_hypernetwork(Hypernetwork(CONFIG, seed=2), folder, metadata={"step": 8})
    assert read_metadata(folder) == {"step": 8}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_failed_write_keeps_the_older_checkpoint(folder: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_hypernetwork(Hypernetwork(CONFIG), folder, metadata={"tensor": torch.zeros(1)})
    assert read_metadata(folder)["step"] == 7
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not overwriting"):
        save_hypernetwork(Hypernetwork(CONFIG), tmp_path, metadata={})
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty", marker="x") as new:
        (new / "x").write_text("")
    assert (tmp_path / "empty" / "x").is_file()


def drop_weights(folder: Path) -> None:
    (folder / "hypernetwork.safetensors").unlink()


def truncate_weights(folder: Path) -> None:
    path = folder / "hypernetwork.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(folder: Path) -> None:
    path = folder / "hypernetwork.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def weights_of_another(folder: Path) -> None:
    save_hypernetwork(Hypernetwork(CONFIG, seed=2), folder.parent / "other", metadata={})
    shutil.copyfile(folder.parent / "other" / "hypernetwork.safetensors", folder / "hypernetwork.safetensors")


def promise_a_longer_header(folder: Path) -> None:
    path = folder / "hypernetwork.safetensors"
    path.write_bytes((10**15).to_bytes(8, "little") + path.read_bytes()[8:])


def rename_tensor(folder: Path) -> None:
    path = folder / "hypernetwork.safetensors"
    tensors = load_file(path)
    tensors["perceiver.surprise"] = tensors.pop("perceiver.encoder.latents")
    save_file(tensors, path)


def reshape_tensor(folder: Path) -> None:
    path = folder / "hypernetwork.safetensors"
    save_file(load_file(path) | {"perceiver.encoder.latents": torch.zeros(5, 2)}, path)


def integer_tensor(folder: Path) -> None:
    path = folder / "hypernetwork.safetensors"
    save_file(load_file(path) | {"perceiver.encoder.latents": torch.zeros(2, 5, dtype=torch.int64)}, path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_weights, r"is not a hypernetwork checkpoint: it has no hypernetwork\.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), r"is not a hypernetwork checkpoint: it has no config\.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "JSON object"),
        (
            lambda folder: edit_json(folder / "config.json", lambda c: c.update(format="v0")),
            "format is 'v0', .* reads 'video2lora-hypernetwork-1'",
        ),
        (
            lambda folder: edit_json(folder / "config.json", lambda c: c.pop("format")),
            "format is None, .* reads 'video2lora-hypernetwork-1'",
        ),
        (lambda folder: edit_json(folder / "config.json", lambda c: c.update(metadata=[7])), r"metadata is \[7\], expected a JSON object"),
        (lambda folder: edit_json(folder / "config.json", lambda c: c.update(extra=1)), "extra"),
        (lambda folder: edit_json(folder / "config.json", lambda c: c["hypernetwork"].update(rank=8)), r"config\.json: rank: .*\(got 8\)"),
        (
            lambda folder: edit_json(folder / "config.json", lambda c: c["hypernetwork"].update(r="x", d_vlm=0)),
            "d_vlm: .*; r: .*valid integer",
        ),
        (lambda folder: edit_json(folder / "config.json", lambda c: c.update(hypernetwork=3)), r"config\.json: hypernetwork: .*\(got 3\)"),
        (
            lambda folder: edit_json(folder / "config.json", lambda c: c["hypernetwork"].update(r=4)),
            r"\(2, 4, 1\)|\(8, 5\)",
        ),
        (truncate_weights, "cannot read: damaged, cut short or no safetensors file"),
        (promise_a_longer_header, "cannot read: damaged, cut short or no safetensors file"),
        (lambda folder: (folder / "hypernetwork.safetensors").write_bytes(b""), r"cannot read: .*\(0 bytes"),
        (flip_a_bit, r"SHA-256 is [0-9a-f]{64}, config\.json says [0-9a-f]{64}: damaged"),
        (weights_of_another, r"SHA-256 is .* of another checkpoint than config\.json"),
        (rename_tensor, "missing: .*encoder.latents.*unknown: .*surprise"),
        (reshape_tensor, r"\(5, 2\), expected floating-point \(2, 5\)"),
        (integer_tensor, "int64"),
    ],
)
def test_what_is_no_checkpoint_is_refused(folder: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_hypernetwork(folder)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


def test_of_many_names_a_message_has_a_few(folder: Path) -> None:
    save_file({"x": torch.zeros(1)}, folder / "hypernetwork.safetensors")
    n = len(Hypernetwork(CONFIG).state_dict())
    with pytest.raises(ValueError, match=f"missing: .* and {n - 5} more; tensors unknown: x; config.json expects {n}"):
        load_hypernetwork(folder)


def test_a_folder_written_before_the_weights_had_a_hash_is_read(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config.pop("weights_sha256"))
    torch.testing.assert_close(load_hypernetwork(folder).state_dict(), Hypernetwork(CONFIG, seed=1).state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["mlp.down_proj", "", "keys", "training", "down proj"])
def test_a_name_that_no_module_can_have_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="takes the last name of a module"):
        HypernetworkConfig.model_validate(CONFIG.model_dump() | {"target_modules": {name: (2, 3)}})


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a hypernetwork checkpoint"):
        load_hypernetwork(tmp_path / "nowhere")
