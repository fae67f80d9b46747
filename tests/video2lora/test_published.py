"""Released checkpoints: their numbers, at any size, and nothing in them run or imported, whatever they ask for."""

import json
import os
import pickle
import random
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from released import importable, instance, package_class, program_of, published, save, save_released, settings, with_program
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from infra.config import HypernetworkSettings
from video2lora.checkpoint import load_hypernetwork, load_published, save_hypernetwork
from video2lora.hypernetwork import Hypernetwork, HypernetworkConfig
from video2lora.lora import adapted, compose

PARITY = Path(__file__).parent / "parity"
D_HEAD = 128
TWO = {"down_proj": (23, 13), "q_proj": (13, 19)}
SMALL = HypernetworkConfig(
    n_layers=3, d_vlm=13, target_modules=TWO, r=5, n_latents=7, n_blocks=2, d_latent=11, n_heads=4, n_kv_heads=2, n_pre_head_blocks=1
)


def random_network(config: HypernetworkConfig) -> Hypernetwork:
    """No number in it is zero or one."""
    made = Hypernetwork(config).requires_grad_(False)
    for i, parameter in enumerate(made.parameters()):
        parameter.normal_(generator=torch.Generator().manual_seed(i))
    return made


def inputs(config: HypernetworkConfig) -> tuple[Tensor, Tensor]:
    features = torch.randn(2, config.n_layers, 17, config.d_vlm, generator=torch.Generator().manual_seed(3))
    mask = torch.ones(2, 17, dtype=torch.bool)
    mask[1, 11:] = False
    return features, mask


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save_released(tmp_path / "small.pt", random_network(SMALL).state_dict(), SMALL)


def assert_near(got: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 of the largest number."""
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def widened(weights: dict[str, Tensor], d_head: int) -> dict[str, Tensor]:
    """Attention heads of width `d_head` as heads of the published width that compute the same: zeros, and the softmax's own scale."""
    made = dict(weights)
    for name, tensor in weights.items():
        by_head = tensor.unflatten(-1 if "o_proj" in name else 0, (-1, d_head)) if "attention." in name else tensor
        if ".q_proj." in name:
            by_head = by_head * (D_HEAD / d_head) ** 0.5
        if ".o_proj." in name:
            made[name] = F.pad(by_head, (0, D_HEAD - d_head)).flatten(1)
        elif "attention." in name:
            made[name] = F.pad(by_head, (0, 0, 0, D_HEAD - d_head)).flatten(0, 1)
    return made


def test_a_released_file_gives_the_published_numbers(tmp_path: Path) -> None:
    """Numbers of the published implementation (parity/make.py): generated, with the static adapter, composed, and through a linear."""
    numbers, facts = load_file(PARITY / "down_proj.safetensors"), json.loads((PARITY / "down_proj.json").read_text())
    narrow = HypernetworkConfig.model_validate(facts["config"])
    weights = {name.removeprefix("weights."): tensor for name, tensor in numbers.items() if name.startswith("weights.")}
    path = save_released(tmp_path / "tiny.pt", widened(weights, narrow.d_head), narrow)
    made = load_published(path).requires_grad_(False)
    assert made.config == narrow.model_copy(update={"d_head": D_HEAD})

    generated = made(numbers["inputs.features"], numbers["inputs.mask"])
    with_static = made.with_static(generated)
    composed = made.with_static(compose(generated, facts["composed_groups"]))
    for kind, lora in (("generated", generated), ("with_bias", with_static)):
        assert_near(lora.lora_a["down_proj"], numbers[f"outputs.{kind}.lora_a"])
        assert_near(lora.lora_b["down_proj"], numbers[f"outputs.{kind}.lora_b"])
    # Deltas, for a video of fewer chunks has its zero rows at another place here.
    a, b = numbers["outputs.composed.lora_a"], numbers["outputs.composed.lora_b"]
    assert_near(composed.lora_b["down_proj"] @ composed.lora_a["down_proj"], b @ a)
    layers = [nn.ModuleDict({"down_proj": nn.Linear(23, 13, bias=False)}) for _ in range(generated.n_layers)]
    layers[0]["down_proj"].weight = nn.Parameter(numbers["linear.weight"])
    assert with_static.scaling == facts["scaling"] == 2 * narrow.r**1.5
    with adapted(layers, with_static), torch.no_grad():
        assert_near(layers[0]["down_proj"](numbers["linear.x"]), numbers["linear.y"])


SIZES = [
    {},
    {"target_modules": {"o_proj": (17, 13)}, "n_blocks": 1, "n_heads": 16, "n_kv_heads": 4},
    {"r": 2, "n_latents": 3, "n_blocks": 11, "n_layers": 1, "d_latent": 6, "n_heads": 3, "n_kv_heads": 3},
    {"n_pre_head_blocks": 0, "d_vlm": 7, "target_modules": {"up_proj": (7, 29), "gate_proj": (7, 29), "v_proj": (7, 3)}, "n_layers": 2},
    {"n_pre_head_blocks": 3, "r": 7, "target_modules": TWO | {"k_proj": (13, 2)}},
]


@pytest.mark.parametrize("changes", SIZES)
@pytest.mark.parametrize("with_settings", [True, False])
def test_sizes_come_from_the_tensors(tmp_path: Path, changes: dict[str, Any], with_settings: bool) -> None:
    config = HypernetworkConfig.model_validate(SMALL.model_dump() | changes)
    made = random_network(config)
    tensors = published(made.state_dict(), config)
    beside = settings(config, lora={}, aggregator={}) if with_settings else {}
    read = load_published(save(tmp_path / "made.pt", tensors | beside))
    assert read.config == config
    torch.testing.assert_close(dict(read.state_dict()), dict(made.state_dict()), rtol=0, atol=0)
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in read.parameters())


def test_several_modules_share_one_head_tensor_in_the_order_of_their_names(tmp_path: Path, file: Path) -> None:
    """The published definition, written out on the tensors of the file: unit latents by module, one product, the first rows of each."""
    tensors = published(random_network(SMALL).state_dict(), SMALL)
    assert tensors["head.weight"].shape == (3, 2, 11, 36)
    read = load_published(file).requires_grad_(False)
    features, mask = inputs(SMALL)
    lora = read(features, mask)
    latents = read.pre_head(read.perceiver(features.flatten(0, 1), mask=mask.repeat_interleave(3, 0)))
    latents = latents.unflatten(0, (2, 3)).unflatten(2, (2, 5))
    rows = torch.einsum("blmrd,lmdo->blmro", latents / latents.norm(dim=-1, keepdim=True), tensors["head.weight"])
    for i, (module, (d_in, d_out)) in enumerate(sorted(TWO.items())):
        a, b = rows[:, :, i, :, : d_in + d_out].split([d_in, d_out], dim=-1)
        assert_near(lora.lora_a[module], a * tensors[f"scaler_A.{module}"])
        assert_near(lora.lora_b[module], (b * tensors[f"scaler_B.{module}"]).mT)
    static = read.static_lora()
    torch.testing.assert_close(static.lora_b["q_proj"][0], tensors["bias_B.q_proj"].mT)


@pytest.mark.parametrize(
    ("alpha", "scaling"),
    [(2 * 5**1.5, None), (torch.tensor(22.5).item(), 22.5), (16, 16.0), (None, None)],
    ids=["2r^1.5", "float", "int", "-"],
)
def test_the_scaling_is_lora_alpha(tmp_path: Path, alpha: float | None, scaling: float | None) -> None:
    config = load_published(save_released(tmp_path / "a.pt", random_network(SMALL).state_dict(), SMALL, lora={"lora_alpha": alpha})).config
    assert config.scaling == scaling
    assert config.lora_scaling == (2 * 5**1.5 if scaling is None else scaling)


def test_without_a_static_adapter_sizes_come_from_the_settings_or_the_vlm(tmp_path: Path) -> None:
    for modules in (TWO, {"down_proj": (23, 13)}, {"q_proj": (13, 19)}):
        config = SMALL.model_copy(update={"static_adapter": False, "target_modules": modules})
        made = random_network(config)
        tensors = published(made.state_dict(), config)
        beside = settings(config, lora={}, aggregator={}) if len(modules) > 1 else {}
        read = load_published(save(tmp_path / "bare.pt", tensors | beside))
        assert read.config == config
        torch.testing.assert_close(dict(read.state_dict()), dict(made.state_dict()), rtol=0, atol=0)


def test_a_static_adapter_that_was_not_used_is_left_out(tmp_path: Path) -> None:
    read = load_published(save_released(tmp_path / "a.pt", random_network(SMALL).state_dict(), SMALL, use_bias=False))
    assert read.config == SMALL.model_copy(update={"static_adapter": False})


def test_names_of_a_compiled_network_and_blocks_that_share_weights_are_read(tmp_path: Path) -> None:
    made = random_network(SMALL)
    tensors = published(made.state_dict(), SMALL)
    first, second = ([name for name in tensors if f"encoder.layers.{i}." in name] for i in (0, 1))
    tensors |= {ours: tensors[shared] for ours, shared in zip(second, first, strict=True)}
    read = load_published(save(tmp_path / "a.pt", {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}))
    save_hypernetwork(read, tmp_path / "ours", metadata={})  # safetensors takes no two names for one memory
    again = load_hypernetwork(tmp_path / "ours").state_dict()
    torch.testing.assert_close(
        again["perceiver.encoder.blocks.1.mlp.up_proj.weight"], again["perceiver.encoder.blocks.0.mlp.up_proj.weight"]
    )
    torch.testing.assert_close(again["perceiver.decoder.latents"], made.state_dict()["perceiver.decoder.latents"])


def test_bf16_stays_bf16_and_training_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    weights = {name: tensor.bfloat16() for name, tensor in random_network(SMALL).state_dict().items()}
    path = save_released(tmp_path / "low.pt", weights, SMALL)
    before = path.read_bytes()
    read = load_published(path)
    assert {parameter.dtype for parameter in read.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        for parameter in read.parameters():
            parameter.zero_()
    assert path.read_bytes() == before


# --- nothing in a file is run or imported


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def function_at(path: str) -> Any:
    """A function that pickle will look for under `path`; called, it fails the test."""
    module, _, name = path.rpartition(".")

    def forbidden(*_: Any) -> None:
        raise AssertionError(f"{path} was called")

    forbidden.__module__, forbidden.__qualname__, forbidden.__name__ = module, name, name
    return forbidden


def spoilt(tmp_path: Path, value: Any, *things: Any, under: str = "hypernet_config") -> Path:
    tensors = published(random_network(SMALL).state_dict(), SMALL)
    with importable(*things):
        torch.save(tensors | {under: value}, tmp_path / "spoilt.pt")
    return tmp_path / "spoilt.pt"


@pytest.mark.parametrize("under", ["hypernet_config", "head.weight"])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "posix.system"),
        (eval, "builtins.eval"),
        (exec, "builtins.exec"),
        (torch.hub.load, "torch.hub.load"),
        (getattr, "builtins.getattr"),
    ],
)
def test_a_call_of_anything_is_refused_by_name(tmp_path: Path, function: Any, name: str, under: str) -> None:
    marker = tmp_path / "was-run"
    argument = f"touch {marker}" if function is os.system else f"__import__('pathlib').Path({str(marker)!r}).touch()"
    path = spoilt(tmp_path, Call(function, argument), under=under)
    with pytest.raises(ValueError, match=f"spoilt.pt: asks for '{name}'.*nothing of it was run") as caught:
        load_published(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["peftx.Config", "ctx_to_lora_extra.run", "transformers.AutoModel", "numpy.load", "dill._dill.run", "pefT.x"]
)
def test_only_the_packages_of_released_checkpoints_are_known(tmp_path: Path, name: str) -> None:
    function = function_at(name)
    with pytest.raises(ValueError, match=f"asks for '{name}'"):
        load_published(spoilt(tmp_path, Call(function, 1), function))


@pytest.mark.parametrize("name", ["peft.utils.something.os.system", "ctx_to_lora.__builtins__.eval", "peft.os.system"])
def test_code_behind_the_name_of_a_known_package_does_nothing(tmp_path: Path, name: str) -> None:
    function = function_at(name)
    marker = tmp_path / "was-run"
    path = spoilt(tmp_path, Call(function, f"touch {marker}"), function)
    loaded = set(sys.modules)
    assert load_published(path).config == SMALL
    with pytest.raises(ValueError, match=r"'head\.weight' is an object, expected a tensor"):
        load_published(spoilt(tmp_path, Call(function, f"touch {marker}"), function, under="head.weight"))
    assert not marker.exists()
    assert not {new for new in set(sys.modules) - loaded if new.startswith(("peft", "ctx_to_lora"))}


def test_packages_that_are_there_are_not_imported(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "imported"
    for package in ("ctx_to_lora", "evil"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"open({str(marker)!r}, 'w')\ndef run(*_): open({str(marker)!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_published(file).config == SMALL
    function = function_at("evil.run")
    with pytest.raises(ValueError, match=r"evil\.run"):
        load_published(spoilt(tmp_path, Call(function, 1), function))
    assert not marker.exists()
    assert not {"ctx_to_lora", "evil"} & set(sys.modules)


class Allowed:
    """A class that other code of the process lets `torch.load` make."""

    made = 0

    def __setstate__(self, state: Any) -> None:
        Allowed.made += 1


def test_what_other_code_has_declared_safe_is_not_safe_here(tmp_path: Path) -> None:
    thing = Allowed()
    thing.__dict__["x"] = 1
    with torch.serialization.safe_globals([Allowed]):
        safe = set(torch.serialization.get_safe_globals())
        with pytest.raises(ValueError, match=r"asks for '[\w.]*Allowed'"):
            load_published(spoilt(tmp_path, thing, Allowed))
        assert set(torch.serialization.get_safe_globals()) == safe
        load_published(save_released(tmp_path / "good.pt", random_network(SMALL).state_dict(), SMALL))
        assert set(torch.serialization.get_safe_globals()) == safe
    assert Allowed.made == 0


# --- what is no checkpoint


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_bare_pickle_is_refused_and_named(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "was-run"
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"posix": Call(os.system, f"touch {marker}")}, protocol=protocol))
    with pytest.raises(ValueError, match=r"x\.pt: is no zip file, expected .*; it asks for 'posix\.system', which was not run"):
        load_published(tmp_path / "x.pt")
    torch.save({"x": Call(os.system, f"touch {marker}")}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"is no zip file.*; it asks for 'posix\.system'"):
        load_published(tmp_path / "x.pt")
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [0, 3, 4, 5])
def test_a_pickle_of_another_protocol_is_refused_and_named(file: Path, tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "was-run"
    with_program(file, pickle.dumps([1.5, "system", Call(os.system, f"touch {marker}")], protocol=protocol))
    with pytest.raises(ValueError, match=r"small\.pt: .*asks for 'posix\.system'(, which was not run|, and is refused)") as caught:
        load_published(file)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def truncated(share: float) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def flipped(where: str) -> Callable[[Path], object]:
    """One bit of one part."""

    def spoil(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            at = archive.getinfo(next(name for name in archive.namelist() if name.endswith(where)))
            data = bytearray(path.read_bytes())
            n_name, n_extra = (int.from_bytes(data[at.header_offset + i : at.header_offset + i + 2], "little") for i in (26, 28))
            data[at.header_offset + 30 + n_name + n_extra + at.file_size // 2] ^= 1
        path.write_bytes(data)

    return spoil


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("holiday.txt", "sun")


def script(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/constants.pkl", b"\x80\x02).")
        archive.writestr("x/data.pkl", b"\x80\x02).")
        archive.writestr("x/version", "3")


def without_a_part(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist() if not part.filename.endswith("/data/3")}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("not a checkpoint"), "is no zip file, expected"),
        (truncated(0.001), "is damaged or cut short"),
        (truncated(0.5), "is damaged or cut short"),
        (truncated(0.99), "is damaged or cut short"),
        (flipped("data.pkl"), "is damaged: the bytes of '.*data.pkl'"),
        (flipped("data/5"), "is damaged: the bytes of '.*data/5'.*copy it again"),
        (compressed, "compressed or overlap"),
        (other_zip, "cannot read the pickle in it"),
        (script, "cannot read the pickle in it .*torchscript"),
        (without_a_part, "cannot read the pickle in it"),
        (lambda path: path.unlink(), "there is no such file"),
        (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
        (lambda path: torch.save([1, 2], path), "holds a list, expected a dict"),
        (lambda path: torch.save({}, path), "has no scaler_A"),
        (lambda path: torch.save({"model": {"x": torch.zeros(1)}}, path), "'model' is a dict, expected a tensor"),
        (lambda path: torch.save({3: torch.zeros(1)}, path), "something under 3"),
        (lambda path: torch.save({"\x1b[2Jx": torch.zeros(1)}, path), r"something under '\\x1b\[2Jx'"),
        (lambda path: with_program(path, program_of(path)[:-40]), "cannot read the pickle in it"),
        (lambda path: with_program(path, b"\x80\x02" + b"(" * 50 + b"."), "cannot read the pickle in it"),
        (lambda path: with_program(path, b""), "cannot read the pickle in it"),
    ],
)
def test_what_is_no_released_checkpoint_is_refused_in_a_line(file: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(file)
    with pytest.raises(ValueError, match=message) as caught:
        load_published(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_a_program_spoilt_anywhere_gives_a_network_or_one_clear_error(file: Path) -> None:
    """Checksums right, so the reader itself must cope: opcodes without operands, numbers without end, calls of tensors."""
    whole, dice, n_refused = program_of(file), random.Random(0), 0
    for _ in range(60):
        program = bytearray(whole)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(program)) if dice.random() < 0.5 else dice.randrange(len(program) - 2000, len(program))
            program[at] = dice.randrange(256)
        with_program(file, bytes(program))
        try:
            load_published(file)
        except ValueError as error:
            n_refused += 1
            assert str(error).startswith(str(file)) and "\n" not in str(error)
    assert n_refused > 20


def with_tensor(name: str, change: Callable[[Tensor], Any]) -> dict[str, Any]:
    tensors = published(random_network(SMALL).state_dict(), SMALL)
    return tensors | {name: change(tensors[name])}


LATENTS = "aggregator.perceiver.encoder.latents_q"
QUERY = "aggregator.perceiver.encoder.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (LATENTS, lambda t: t[:, :-1].clone(), r"modality_projection\.down_proj\.weight is \(11, 52\), expected \(10, 52\)|is .*expected"),
        (LATENTS, lambda t: t[0].clone(), r"latents_q is \(11,\), expected 2 axes"),
        (LATENTS, lambda t: t.long(), r"latents_q is torch\.int64"),
        (LATENTS, lambda t: t.half(), r"torch\.float16, torch\.float32, expected one dtype"),
        (LATENTS, lambda t: t.to_sparse(), r"latents_q is torch\.float32, torch\.sparse_coo"),
        (LATENTS, lambda t: t.to("meta"), "on meta"),
        (LATENTS, lambda _: torch.zeros(1).expand(2**20, 2**16), r"latents_q is \(1048576, 65536\), more than the 4 bytes"),
        (QUERY, lambda t: t[:-1].clone(), r"q_proj\.weight has 511 rows, expected a multiple of 128"),
        (
            "aggregator.perceiver.encoder.layers.1.mlp.up_proj.weight",
            lambda t: t.mT.contiguous(),
            r"up_proj\.weight is \(11, 44\), expected \(44, 11\)",
        ),
        ("head.weight", lambda t: t[..., :-1].clone(), r"head\.weight is \(3, 2, 11, 35\), expected \(3, 2, 11, 36\)"),
        ("bias_B.q_proj", lambda t: t.mT.contiguous(), r"bias_B\.q_proj|head\.weight is"),
        ("scaler_B.q_proj", lambda t: t[0].clone(), r"scaler_B\.q_proj is \(3, 5, 1\), expected \(1, 3, 5, 1\)"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path: Path, name: str, change: Callable[[Tensor], Any], message: str) -> None:
    torch.save(with_tensor(name, change), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message) as caught:
        load_published(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


def test_tensors_missing_and_unknown_have_their_published_names(tmp_path: Path) -> None:
    tensors = published(random_network(SMALL).state_dict(), SMALL)
    tensors["layers.0.layers.3.weight"] = tensors.pop("layers.0.mlp.5.weight")
    torch.save(tensors, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"missing: layers\.0\.mlp\.5\.weight; tensors unknown: layers\.0\.layers\.3\.weight"):
        load_published(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_layer_processing": True}, r"hypernet_config\.per_layer_processing is True, expected False"),
        ({"per_rank_gen": False}, "per_rank_gen is False"),
        ({"extra_modules": ["input_layernorm"]}, "extra_modules is"),
        ({"aggregator": {"num_self_attn_per_block": 1}}, "num_self_attn_per_block is 1, expected 0"),
        ({"aggregator": {"layer_to_layer_ctx_encoder": False}}, "layer_to_layer_ctx_encoder is False"),
        ({"layer_indices": torch.tensor([0, 2, 1])}, r"layer_indices is \[0, 2, 1\], but \[0, 1, 2\]"),
        ({"layer_indices": [torch.zeros(3), 1, 2]}, "layer_indices is"),
        (
            {"feature_sizes": ({"down_proj": 13}, {"down_proj": 23})},
            r"down_proj has \(d_in, d_out\) = \(23, 13\), .*feature_sizes \(13, 23\)",
        ),
        ({"lora": {"r": 8}}, r"lora_config\.r is 8, but 5 in the tensors"),
        ({"lora": {"target_modules": {"down_proj"}}}, r"target_modules is \['down_proj'\], but \['down_proj', 'q_proj'\]"),
        ({"lora": {"lora_alpha": float("nan")}}, "lora_alpha is nan, expected a number above 0"),
        ({"lora": {"lora_alpha": "128"}}, "lora_alpha is '128'"),
        ({"lora": {"lora_alpha": True}}, "lora_alpha is True"),
        ({"lora": {"lora_alpha": instance("peft.Number")}}, "lora_alpha is <"),
    ],
)
def test_settings_of_another_network_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = save_released(tmp_path / "x.pt", random_network(SMALL).state_dict(), SMALL, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_published(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_sizes_of_several_modules_that_nothing_tells_are_asked_for(tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"static_adapter": False})
    torch.save(published(random_network(config).state_dict(), config), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"neither bias_A\.down_proj nor hypernet_config\.feature_sizes"):
        load_published(tmp_path / "x.pt")


def test_settings_without_state_are_no_settings(tmp_path: Path) -> None:
    """An object that was never given values, and a cycle of objects."""
    loop = package_class("ctx_to_lora.modeling.hypernet.HypernetConfig")()
    loop.__dict__["lora_config"] = loop
    path = spoilt(tmp_path, loop, type(loop))
    assert load_published(path).config == SMALL


# --- the published settings are the defaults


def test_defaults_are_the_published_values() -> None:
    published_values = {
        "r": 16, "n_latents": 8, "n_blocks": 9, "d_latent": 512, "n_heads": 16, "n_kv_heads": 4, "d_head": 128, "n_pre_head_blocks": 1,
        "scaling": None, "static_adapter": True, "normalise_features": False,
        "opens_answer": False, "read_every": 1,
    }  # fmt: skip
    config = HypernetworkConfig(n_layers=2, d_vlm=3, target_modules={"down_proj": (5, 3)})
    assert config.model_dump(exclude={"n_layers", "d_vlm", "target_modules"}) == published_values
    assert HypernetworkSettings().model_dump() == {"target_modules": ("down_proj",)} | published_values
    assert [config.model_copy(update={"r": r}).lora_scaling for r in (4, 16)] == [16, 128]


def test_a_smaller_module_starts_with_the_spread_of_the_largest() -> None:
    """One head tensor serves all modules in the published network, so its spread follows the most rows."""
    config = HypernetworkConfig(n_layers=5, d_vlm=61, target_modules={"down_proj": (97, 61), "k_proj": (61, 7)}, d_latent=83, n_blocks=1)
    made = Hypernetwork(config, seed=3)
    for module in config.target_modules:
        assert made.heads[module].weight.std().item() == pytest.approx(0.5 / (83 + (97 + 61) * 16) ** 0.5, rel=0.02)
        assert made.static[module].lora_a.std().item() == pytest.approx(0.2 / (config.target_modules[module][0] * 16) ** 0.5, rel=0.05)


def test_rank_latents_are_of_unit_length_and_each_layer_has_its_own_head() -> None:
    """A head of ones sums its latent, so no row is longer than sqrt(d_latent); zeroing one layer's head silences that layer alone."""
    made = random_network(SMALL)
    seen: list[Tensor] = []
    made.heads["down_proj"].register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    made.heads["down_proj"].weight[1].zero_()
    lora = made(*inputs(SMALL))
    torch.testing.assert_close(seen[0].norm(dim=-1), torch.ones(2, 3, 5))
    assert [bool(lora.lora_a["down_proj"][:, layer].any()) for layer in range(3)] == [True, False, True]
