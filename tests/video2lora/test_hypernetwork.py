"""Hypernetwork against numbers of the published implementation (parity/); initialisation against the formulas."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from video2lora.hypernetwork import Hypernetwork, HypernetworkConfig
from video2lora.lora import adapted, compose, concatenate

PARITY = Path(__file__).parent / "parity"
SMALL = HypernetworkConfig(
    n_layers=3,
    d_vlm=13,
    target_modules={"down_proj": (23, 11), "q_proj": (11, 17)},
    r=5,
    n_latents=2,
    n_blocks=2,
    d_latent=7,
    n_heads=4,
    n_kv_heads=2,
    d_head=19,
)


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    return load_file(PARITY / "down_proj.safetensors")


@pytest.fixture(scope="module")
def facts() -> dict[str, object]:
    return json.loads((PARITY / "down_proj.json").read_text())


@pytest.fixture(scope="module")
def hypernetwork(published: dict[str, Tensor], facts: dict[str, object]) -> Hypernetwork:
    made = Hypernetwork(HypernetworkConfig.model_validate(facts["config"]))
    prefix = "weights."
    made.load_state_dict({k.removeprefix(prefix): t for k, t in published.items() if k.startswith(prefix)})
    return made.requires_grad_(False)


def small_inputs(batch: int = 2, n_tokens: int = 29) -> tuple[Tensor, Tensor]:
    features = torch.randn(batch, SMALL.n_layers, n_tokens, SMALL.d_vlm, generator=torch.Generator().manual_seed(3))
    return features, torch.ones(batch, n_tokens, dtype=torch.bool)


def assert_near(got: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 of the largest number."""
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_generated_factors_are_the_published_ones(hypernetwork: Hypernetwork, published: dict[str, Tensor]) -> None:
    lora = hypernetwork(published["inputs.features"], published["inputs.mask"])
    assert_near(lora.lora_a["down_proj"], published["outputs.generated.lora_a"])
    assert_near(lora.lora_b["down_proj"], published["outputs.generated.lora_b"])


def test_static_adapter_joins_as_published(hypernetwork: Hypernetwork, published: dict[str, Tensor]) -> None:
    lora = hypernetwork.with_static(hypernetwork(published["inputs.features"], published["inputs.mask"]))
    assert_near(lora.lora_a["down_proj"], published["outputs.with_bias.lora_a"])
    assert_near(lora.lora_b["down_proj"], published["outputs.with_bias.lora_b"])


def test_chunks_compose_as_published(hypernetwork: Hypernetwork, published: dict[str, Tensor], facts: dict[str, list[int]]) -> None:
    chunks = hypernetwork(published["inputs.features"], published["inputs.mask"])
    lora = hypernetwork.with_static(compose(chunks, facts["composed_groups"]))
    a, b = published["outputs.composed.lora_a"], published["outputs.composed.lora_b"]
    assert lora.r == a.shape[2]
    # Deltas, for a video of fewer chunks has its zero rows at another place here; where there are none, factors too.
    assert_near(lora.lora_b["down_proj"] @ lora.lora_a["down_proj"], b @ a)
    assert_near(lora.lora_a["down_proj"][0], a[0])
    assert_near(lora.lora_b["down_proj"][0], b[0])


def test_a_linear_module_answers_as_published(hypernetwork: Hypernetwork, published: dict[str, Tensor], facts: dict[str, float]) -> None:
    lora = hypernetwork.with_static(hypernetwork(published["inputs.features"], published["inputs.mask"]))
    assert lora.scaling == facts["scaling"]
    layers = [nn.ModuleDict({"down_proj": nn.Linear(23, 13, bias=False)}) for _ in range(lora.n_layers)]
    layers[0]["down_proj"].weight = nn.Parameter(published["linear.weight"])
    with adapted(layers, lora), torch.no_grad():
        assert_near(layers[0]["down_proj"](published["linear.x"]), published["linear.y"])


@pytest.mark.parametrize(
    ("n_layers", "d_vlm", "d_ffn", "millions"),
    [(32, 960, 2560, 128.63), (24, 2048, 8192, 227.32)],
    ids=["500M", "2.2B"],
)
def test_parameter_counts_of_the_released_checkpoints(n_layers: int, d_vlm: int, d_ffn: int, millions: float) -> None:
    config = HypernetworkConfig(n_layers=n_layers, d_vlm=d_vlm, target_modules={"down_proj": (d_ffn, d_vlm)})
    with torch.device("meta"):
        made = Hypernetwork(config)
    assert round(sum(parameter.numel() for parameter in made.parameters()) / 1e6, 2) == millions
    assert config.lora_scaling == 128


def test_a_fresh_hypernetwork_changes_nothing_and_can_learn() -> None:
    made = Hypernetwork(SMALL)
    lora = made.with_static(made(*small_inputs()))
    for name, (d_in, d_out) in SMALL.target_modules.items():
        assert lora.lora_a[name].shape == (2, 3, 2 * 5, d_in)
        assert lora.lora_b[name].shape == (2, 3, d_out, 2 * 5)
        assert not (lora.lora_b[name] @ lora.lora_a[name]).any()
    sum((lora.lora_b[name] @ lora.lora_a[name]).sum() for name in lora.lora_a).backward()
    learning = {name for name, parameter in made.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert learning == {f"{part}.{m}.{b}" for m in lora.lora_a for part, b in (("heads", "scale_b"), ("static", "lora_b"))}


def test_initialisation_has_the_published_spreads() -> None:
    config = HypernetworkConfig(
        n_layers=5, d_vlm=61, target_modules={"down_proj": (97, 61)}, d_latent=83, n_heads=4, n_kv_heads=2, d_head=31
    )
    made = Hypernetwork(config, seed=7)
    r, d_in, d_out = 16, 97, 61
    expected = {
        "perceiver.encoder.latents": 1.0,
        "perceiver.projection.up_proj.weight": (1 / 61 / 3) ** 0.5,  # uniform in +-1/sqrt(fan-in)
        "perceiver.decoder.blocks.0.attention.o_proj.weight": (1 / (4 * 31) / 3) ** 0.5,
        "pre_head.0.up_proj.bias": (1 / 83 / 3) ** 0.5,
        "heads.down_proj.weight": 0.5 / (83 + (d_in + d_out) * r) ** 0.5,
        "static.down_proj.lora_a": 0.2 / (d_in * r) ** 0.5,
    }
    state = made.state_dict()
    for name, std in expected.items():
        assert state[name].std().item() == pytest.approx(std, rel=0.1), name
    constants = {name for name, tensor in state.items() if not tensor.std() > 0}
    assert constants == {name for name in state if "norm" in name or "scale" in name or name.endswith("lora_b")}


def test_weights_depend_on_the_seed_alone_and_leave_the_global_state() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = Hypernetwork(SMALL, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    torch.testing.assert_close(Hypernetwork(SMALL, seed=1).state_dict(), first, rtol=0, atol=0)
    assert not torch.equal(Hypernetwork(SMALL, seed=2).state_dict()["heads.q_proj.weight"], first["heads.q_proj.weight"])


def test_each_module_and_each_video_is_generated_by_itself() -> None:
    """Two modules and a batch at once give what one row gives by the definition."""
    made = Hypernetwork(SMALL, seed=5).requires_grad_(False)
    for parameter in made.parameters():
        parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    features, mask = small_inputs()
    mask[1, 23:] = False
    lora = made(features, mask)
    video, layer, rank = 1, 2, 3
    latents = made.pre_head(made.perceiver(features[video, layer][None], mask=mask[video][None]))[0]
    for i, name in enumerate(["down_proj", "q_proj"]):
        latent, head = latents[i * SMALL.r + rank], made.heads[name]
        row = (latent / latent.norm()) @ head.weight[layer]
        d_in = SMALL.target_modules[name][0]
        torch.testing.assert_close(lora.lora_a[name][video, layer, rank], row[:d_in] * head.scale_a[layer, rank])
        torch.testing.assert_close(lora.lora_b[name][video, layer, :, rank], row[d_in:] * head.scale_b[layer, rank])


@pytest.mark.parametrize(("read_every", "read"), [(2, [1, 1, 3, 3, 4]), (3, [2, 2, 2, 4, 4]), (5, [4] * 5), (7, [4] * 5)])
def test_layers_of_a_group_read_its_last_layer(read_every: int, read: list[int]) -> None:
    """As the published network does when it is given that layer's features for each of them; with its gradients."""
    config = SMALL.model_copy(update={"n_layers": 5})
    features = torch.randn(2, 5, 29, config.d_vlm, generator=torch.Generator().manual_seed(3))
    mask = torch.arange(29) >= torch.tensor([[0], [6]])
    own, grouped = Hypernetwork(config), Hypernetwork(config.model_copy(update={"read_every": read_every}))
    for parameter in own.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
    grouped.load_state_dict(own.state_dict())
    expected, got = own(features[:, read], mask), grouped(features, mask)
    torch.testing.assert_close((got.lora_a, got.lora_b), (expected.lora_a, expected.lora_b), rtol=1e-4, atol=1e-4)
    for lora in (expected, got):
        sum((b @ lora.lora_a[name]).square().mean() for name, b in lora.lora_b.items()).backward()
    for (name, one), other in zip(grouped.named_parameters(), own.parameters(), strict=True):
        if not name.startswith("static"):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3 * float(other.grad.abs().max()), msg=name)


def test_the_perceiver_runs_once_for_each_layer_that_is_read() -> None:
    made = Hypernetwork(SMALL.model_copy(update={"read_every": 2}))
    seen: list[torch.Size] = []
    made.perceiver.register_forward_hook(lambda _module, _inputs, latents: seen.append(latents.shape))
    made(*small_inputs(batch=5))
    assert seen == [(5 * 2, 2 * SMALL.r, SMALL.d_latent)]


def test_normalised_features_forget_their_scale() -> None:
    made = Hypernetwork(SMALL.model_copy(update={"normalise_features": True})).requires_grad_(False)
    features, mask = small_inputs()
    scale = torch.linspace(1, 100, features.shape[2])[:, None]
    torch.testing.assert_close(made(features * scale, mask).lora_a, made(features, mask).lora_a, rtol=1e-4, atol=1e-5)
    rms = features.square().mean(-1, keepdim=True).sqrt()
    raw = Hypernetwork(SMALL).requires_grad_(False)
    torch.testing.assert_close(raw(features / rms, mask).lora_a, made(features, mask).lora_a, rtol=1e-4, atol=1e-5)


def test_bf16_features_and_bf16_autocast_are_accepted() -> None:
    made = Hypernetwork(SMALL).requires_grad_(False)
    features, mask = small_inputs()
    exact = made(features, mask).lora_a["q_proj"]
    assert made(features.bfloat16(), mask).lora_a["q_proj"].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        low = made(features.bfloat16(), mask).lora_a["q_proj"]
    torch.testing.assert_close(low.float(), exact, rtol=0, atol=0.1 * exact.abs().max().item())


def test_without_a_static_adapter_there_is_none() -> None:
    made = Hypernetwork(SMALL.model_copy(update={"static_adapter": False}))
    lora = made(*small_inputs())
    assert made.with_static(lora) is lora
    assert not any("static" in name for name in made.state_dict())
    with pytest.raises(ValueError, match="no static adapter"):
        made.static_lora()


def test_static_lora_is_what_with_static_appends() -> None:
    made = Hypernetwork(SMALL)
    lora = made(*small_inputs())
    torch.testing.assert_close(made.with_static(lora).lora_a, concatenate([lora, made.static_lora()]).lora_a)


def test_features_of_another_vlm_are_refused() -> None:
    features, mask = small_inputs()
    with pytest.raises(ValueError, match=r"\(2, 13\).*\(3, 13\)"):
        Hypernetwork(SMALL)(features[:, :2], mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_kv_heads": 3}, "multiple of n_kv_heads"),
        ({"target_modules": {"mlp.down_proj": (2, 3)}}, "last name"),
        ({"target_modules": {}}, "target_modules"),
        ({"rank": 8}, "rank"),
        ({"r": 0}, "greater than 0"),
        ({"read_every": 0}, "greater than 0"),
        ({"scaling": -1.0}, "greater than 0"),
    ],
)
def test_config_refuses(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HypernetworkConfig.model_validate(SMALL.model_dump() | change)
