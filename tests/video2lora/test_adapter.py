"""An adapter on disk, read by PEFT and by us; PEFT's answers are the oracle."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, SmolVLMConfig, SmolVLMForConditionalGeneration

from video2lora.adapter import Adapter, check_made_for, compose_adapters, load_adapter, save_adapter, with_static, without_static
from video2lora.lora import Lora, adapted, compress, concatenate
from video2lora.pretrained import load_vlm
from video2lora.vlm import FrozenVLM

N_LAYERS, D_MODEL, D_FFN = 3, 22, 37
SIZES = {"down_proj": (D_FFN, D_MODEL), "q_proj": (D_MODEL, 12)}
PROVENANCE = {"video_id": "5f3a", "vlm": "tiny-smolvlm", "sampling": {"n_frames": 4}, "made_by": "a test"}


def random_lora(modules: list[str], *, batch: int = 1, r: int = 5, scaling: float = 2.0, seed: int = 0) -> Lora:
    generator = torch.Generator().manual_seed(seed)
    return Lora(
        lora_a={m: 0.3 * torch.randn(batch, N_LAYERS, r, SIZES[m][0], generator=generator) for m in modules},
        lora_b={m: 0.3 * torch.randn(batch, N_LAYERS, SIZES[m][1], r, generator=generator) for m in modules},
        scaling=scaling,
    )


@pytest.fixture(scope="module")
def vlm() -> SmolVLMForConditionalGeneration:
    torch.manual_seed(1)
    text = {
        "model_type": "llama",
        "vocab_size": 41,
        "hidden_size": D_MODEL,
        "intermediate_size": D_FFN,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 6,
        "initializer_range": 0.3,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 10,
        "intermediate_size": 14,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    config = SmolVLMConfig(text_config=text, vision_config=vision, image_token_id=40, pad_token_id=0)
    return SmolVLMForConditionalGeneration(config).eval().requires_grad_(False)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(40, (2, 7), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("modules", [["down_proj"], ["down_proj", "q_proj"]])
@pytest.mark.parametrize("scaling", [2.0, 2 * 7**1.5], ids=["whole alpha", "broken alpha"])
def test_peft_answers_like_adapted(
    vlm: SmolVLMForConditionalGeneration, tokens: Tensor, tmp_path: Path, modules: list[str], scaling: float
) -> None:
    lora = random_lora(modules, scaling=scaling)
    save_adapter(Adapter(lora=lora, provenance=PROVENANCE), tmp_path / "adapter")
    base = vlm(tokens).logits
    with adapted(vlm.model.text_model.layers, lora):
        ours = vlm(tokens).logits
    assert (ours - base).abs().max() > 0.1
    model = peft.PeftModel.from_pretrained(vlm, tmp_path / "adapter")
    try:
        adapted_modules = {path for path, module in model.named_modules() if isinstance(module, peft.tuners.lora.Linear)}
        theirs = model(tokens).logits
        config = model.peft_config["default"]
    finally:
        model.unload()
    assert len(adapted_modules) == len(modules) * N_LAYERS
    assert all(".text_model." in path for path in adapted_modules)
    assert (config.base_model_name_or_path, config.task_type, config.r) == ("tiny-smolvlm", "CAUSAL_LM", 5)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


def test_the_keys_are_those_that_peft_itself_writes(vlm: SmolVLMForConditionalGeneration, tmp_path: Path) -> None:
    save_adapter(Adapter(lora=random_lora(list(SIZES)), provenance=PROVENANCE), tmp_path / "ours")
    model = peft.PeftModel.from_pretrained(vlm, tmp_path / "ours")
    try:
        model.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)  # or it asks the hub
    finally:
        model.unload()
    ours, theirs = (load_file(tmp_path / which / "adapter_model.safetensors") for which in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    lora = concatenate([random_lora(list(SIZES), scaling=2 * 3**1.5), random_lora(list(SIZES), r=2, scaling=2 * 3**1.5)])
    save_adapter(Adapter(lora=lora.map(Tensor.bfloat16), provenance=PROVENANCE), tmp_path / "adapter")
    read = load_adapter(tmp_path / "adapter")
    assert read.provenance == PROVENANCE
    assert read.layers_path == "model.text_model.layers"
    assert read.lora.scaling == pytest.approx(lora.scaling, rel=1e-12)
    for name in SIZES:
        assert torch.equal(read.lora.lora_a[name], lora.lora_a[name].bfloat16())
        assert torch.equal(read.lora.lora_b[name], lora.lora_b[name].bfloat16())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_factors_are_written_in_the_dtype_asked_for(tmp_path: Path, dtype: str) -> None:
    lora = random_lora(["down_proj"])
    save_adapter(Adapter(lora=lora, provenance=PROVENANCE), tmp_path / "adapter", dtype=dtype)
    read = load_adapter(tmp_path / "adapter").lora.lora_a["down_proj"]
    assert read.dtype == getattr(torch, dtype)
    assert torch.equal(read, lora.lora_a["down_proj"].to(read.dtype))


def test_a_factor_that_the_dtype_cannot_hold_is_refused(tmp_path: Path) -> None:
    large = Adapter(lora=random_lora(["down_proj"]).map(lambda factor: 1e6 * factor), provenance=PROVENANCE)
    with pytest.raises(ValueError, match=r"not all finite in torch.float16.*65504"):
        save_adapter(large, tmp_path / "adapter", dtype="float16")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def qwen() -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(5)
    text = {
        "vocab_size": 41,
        "hidden_size": D_MODEL,
        "intermediate_size": D_FFN,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "initializer_range": 0.3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 4, 4]},
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    vision = {
        "depth": 1,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_heads": 2,
        "out_hidden_size": D_MODEL,
        "fullatt_block_indexes": [0],
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=40, video_token_id=39, vision_start_token_id=38)
    return Qwen2_5_VLForConditionalGeneration(config).eval().requires_grad_(False)


def test_another_vlm_has_its_layers_elsewhere(qwen: Qwen2_5_VLForConditionalGeneration, tokens: Tensor, tmp_path: Path) -> None:
    """Qwen2.5-VL's vision tower has a down_proj of its own, which must stay as it is."""
    provenance = PROVENANCE | {"layers_path": "model.language_model.layers"}
    lora = random_lora(["down_proj"])
    save_adapter(Adapter(lora=lora, provenance=provenance), tmp_path / "adapter")
    read = load_adapter(tmp_path / "adapter")
    assert (read.layers_path, read.provenance) == ("model.language_model.layers", provenance)
    base = qwen(tokens % 38).logits
    with adapted(qwen.model.language_model.layers, read.lora):
        ours = qwen(tokens % 38).logits
    model = peft.PeftModel.from_pretrained(qwen, tmp_path / "adapter")
    theirs = model(tokens % 38).logits
    adapted_modules = {path for path, module in model.named_modules() if isinstance(module, peft.tuners.lora.Linear)}
    assert len(adapted_modules) == N_LAYERS
    assert all(".language_model." in path for path in adapted_modules)
    assert (ours - base).abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


MADE_BY = {
    "vlm_digest": "aa11",
    "vlm_revision": None,
    "hypernetwork": "h",
    "hypernetwork_digest": "cc33",
    "layers_path": "model.text_model.layers",
}
STATIC = random_lora(["down_proj"], r=2, seed=99)


def chunk(video_id: str, seed: int, **provenance: object) -> Adapter:
    """Generated rows and the static ones, as `api.internalize` puts them together."""
    generated = random_lora(["down_proj"], r=3, seed=seed)
    facts = PROVENANCE | MADE_BY | {"video_id": video_id, "static_r": 2, "n_frames": 7, "n_chunks": 1} | provenance
    return Adapter(lora=concatenate([generated, STATIC]), provenance=facts)


def delta(*loras: Lora) -> Tensor:
    """The sum of what they add to the weights."""
    return sum(lora.scaling * lora.lora_b["down_proj"] @ lora.lora_a["down_proj"] for lora in loras)


def test_generated_and_static_parts_are_told_apart() -> None:
    adapter = chunk("5f3a", seed=1)
    assert (adapter.generated.r, adapter.static.r) == (3, 2)
    torch.testing.assert_close(delta(adapter.generated), delta(random_lora(["down_proj"], r=3, seed=1)))
    torch.testing.assert_close(delta(adapter.static), delta(STATIC))
    whole = chunk("5f3a", seed=1, static_r=0)
    assert (whole.generated.r, whole.static.r) == (5, 0)
    squeezed = Adapter(lora=compress(adapter.lora, 2)[0], provenance={**adapter.provenance, "static_r": None})
    for part in (lambda: squeezed.generated, lambda: squeezed.static, lambda: without_static(squeezed)):
        with pytest.raises(ValueError, match=r"'5f3a'.*cannot be told apart"):
            part()


def test_the_500m_model_takes_3_6_megabytes_a_video(tmp_path: Path) -> None:
    """Rank 16 on the down_proj of 32 layers, 2560 -> 960, in bfloat16: method.md 1.2."""
    a, b = torch.ones(1, 32, 16, 2560), torch.ones(1, 32, 960, 16)
    static = Lora(lora_a={"down_proj": a}, lora_b={"down_proj": b}, scaling=128.0)
    whole = Adapter(lora=concatenate([static, static]), provenance=PROVENANCE | {"static_r": 16})
    save_adapter(without_static(whole), tmp_path / "apart", dtype="bfloat16")
    n_bytes = sum(path.stat().st_size for path in (tmp_path / "apart").iterdir())
    assert 3_600_000 < n_bytes < 3_630_000


def test_a_store_keeps_what_the_video_made_and_gives_the_whole_adapter_back(tmp_path: Path) -> None:
    adapter = chunk("5f3a", seed=1)
    save_adapter(without_static(adapter), tmp_path / "apart")
    save_adapter(adapter, tmp_path / "whole")
    sizes = [sum(t.numel() for t in load_file(tmp_path / name / "adapter_model.safetensors").values()) for name in ("apart", "whole")]
    assert sizes[0] * 5 == sizes[1] * 3
    apart = load_adapter(tmp_path / "apart")
    assert (apart.provenance["static"], apart.provenance["static_r"], apart.has_all) == ("apart", 0, False)
    again = with_static(apart, STATIC, hypernetwork_digest="cc33")
    assert again.provenance == adapter.provenance
    assert torch.equal(again.lora.lora_a["down_proj"], adapter.lora.lora_a["down_proj"])
    assert torch.equal(again.lora.lora_b["down_proj"], adapter.lora.lora_b["down_proj"])
    assert with_static(again, STATIC, hypernetwork_digest="another") is again
    with pytest.raises(ValueError, match=r"'5f3a': made by hypernetwork cc33, got the static adapter of dd44"):
        with_static(apart, STATIC, hypernetwork_digest="dd44")
    none = chunk("5f3a", seed=1, static_r=0)
    assert without_static(none) is none


@pytest.mark.parametrize("r", [6, 10, 16, 24])
def test_what_pefts_lora_alpha_does_to_the_scaling_hinders_nobody(tmp_path: Path, r: int) -> None:
    """2 r^1.5 n / n is not 2 r^1.5, to the bit, for many n: what is read is still for the static adapter it was stored without."""
    generated, static = (random_lora(["down_proj"], r=n, seed=n) for n in (3, r))
    generated, static = (Lora(one.lora_a, one.lora_b, scaling=2 * r**1.5) for one in (generated, static))
    ranks = []
    for n_chunks in range(1, 18):
        whole = Adapter(lora=concatenate([*[generated] * n_chunks, static]), provenance=PROVENANCE | MADE_BY | {"static_r": r})
        save_adapter(without_static(whole), tmp_path / "apart")
        apart = load_adapter(tmp_path / "apart")
        again = with_static(apart, static, hypernetwork_digest=MADE_BY["hypernetwork_digest"])
        torch.testing.assert_close(delta(again.lora), delta(whole.lora))
        assert compose_adapters([again, whole]).lora.r == 6 * n_chunks + r
        ranks.append(apart.lora.scaling)
    other = Lora(static.lora_a, static.lora_b, scaling=2 * r**1.5 * 1.001)
    with pytest.raises(ValueError, match="adapters differ in"):
        with_static(apart, other, hypernetwork_digest=MADE_BY["hypernetwork_digest"])
    assert len(set(ranks)) > 1 or r == 16, "the scaling was never another one: this shows nothing"


def test_a_composition_is_the_sum_of_its_parts_and_one_static_adapter() -> None:
    parts = [chunk("5f3a", seed=1), chunk("77b0", seed=2), chunk("c4c4", seed=3, n_frames=5)]
    whole = compose_adapters(parts)
    assert (whole.lora.r, whole.generated.r, whole.static.r) == (3 * 3 + 2, 9, 2)
    torch.testing.assert_close(delta(whole.lora), delta(*(part.generated for part in parts), STATIC))
    assert [part["video_id"] for part in whole.provenance["parts"]] == ["5f3a", "77b0", "c4c4"]
    assert {name: whole.provenance[name] for name in MADE_BY} == MADE_BY
    assert (whole.provenance["n_frames"], whole.provenance["n_chunks"], whole.provenance["sampling"]) == (19, 3, {"n_frames": 4})
    assert len(whole.provenance["video_id"]) == 20


def test_a_composition_is_named_by_its_parts_alone(tmp_path: Path) -> None:
    """In any order, in any grouping, from disk or not, with the static adapter or without."""
    first, second, third = (chunk(video_id, seed=seed) for seed, video_id in enumerate(("5f3a", "77b0", "c4c4")))
    whole = compose_adapters([first, second, third])
    grouped = compose_adapters([third, compose_adapters([second, first])])
    torch.testing.assert_close(delta(grouped.lora), delta(whole.lora))
    save_adapter(whole, tmp_path / "whole")
    apart = compose_adapters([without_static(one) for one in (first, second, third)])
    assert (apart.has_all, apart.static.r) == (False, 0)
    torch.testing.assert_close(delta(with_static(apart, STATIC, hypernetwork_digest="cc33").lora), delta(whole.lora))
    mixed = compose_adapters([without_static(first), second, third])
    torch.testing.assert_close(delta(mixed.lora), delta(whole.lora))
    names = {adapter.provenance["video_id"] for adapter in (whole, grouped, load_adapter(tmp_path / "whole"), apart, mixed)}
    assert len(names) == 1
    assert compose_adapters([first, second]).provenance["video_id"] not in names
    assert compose_adapters([first]) is first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vlm_digest": "bb22", "vlm": "other"}, r"vlms.*'5f3a' has 'tiny-smolvlm' \(aa11\), video '77b0' has 'other' \(bb22\)"),
        ({"hypernetwork_digest": "dd44"}, r"hypernetworks.*'5f3a' has 'h' \(cc33\), video '77b0' has 'h' \(dd44\)"),
        ({"hypernetwork_digest": None}, r"not known.*\(cc33\).*\(None\)"),
        ({"layers_path": "model.language_model.layers"}, r"model.text_model.layers.*model.language_model.layers"),
        ({"static_r": None}, "'77b0'.*cannot be told apart"),
    ],
)
def test_adapters_that_do_not_belong_together_are_not_composed(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose_adapters([chunk("5f3a", seed=1), chunk("77b0", seed=2, **change)])


def test_adapters_of_other_modules_or_none_are_not_composed() -> None:
    other = Adapter(lora=random_lora(["q_proj"]), provenance=chunk("77b0", seed=2).provenance)
    with pytest.raises(ValueError, match=r"\['down_proj'\].*\['q_proj'\]"):
        compose_adapters([chunk("5f3a", seed=1), other])
    with pytest.raises(ValueError, match="at least one"):
        compose_adapters([])


@pytest.fixture(scope="module")
def tiny() -> FrozenVLM:
    return load_vlm("tiny")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"vlm": "moved elsewhere", "vlm_revision": "v1"}, None),  # the digest names the weights, not the place
        ({"vlm_digest": "bb22"}, r"'5f3a': made for VLM weights bb22 of 'tiny', got \w{16} of 'tiny'"),
        ({"vlm_digest": "bb22", "vlm": "other"}, r"weights bb22 of 'other', got \w{16} of 'tiny'"),
        ({"vlm_digest": "bb22", "vlm_revision": "v1"}, r"VLM 'tiny' at revision v1, got revision None"),
        ({"vlm_digest": None}, None),
        ({"vlm_digest": None, "vlm": "other"}, r"of 'other', got \w{16} of 'tiny'"),
        ({"vlm_digest": None, "vlm_revision": "v1"}, r"at revision v1, got revision None"),
        ({"static": "apart"}, r"'5f3a': was stored without the static adapter, which hypernetwork 'h' has"),
    ],
)
def test_an_adapter_is_for_one_vlm(tiny: FrozenVLM, change: dict[str, object], message: str | None) -> None:
    adapter = chunk("5f3a", seed=1, **({"vlm": "tiny", "vlm_digest": tiny.digest} | change))
    if message is None:
        check_made_for(adapter, tiny)
    else:
        with pytest.raises(ValueError, match=message):
            check_made_for(adapter, tiny)


def test_another_revision_of_the_same_vlm_is_told_as_such(tiny: FrozenVLM) -> None:
    pinned = dataclasses.replace(tiny, name="org/vlm", revision="v2", digest="bb22")
    adapter = chunk("5f3a", seed=1, vlm="org/vlm", vlm_revision="v1", vlm_digest="aa11")
    with pytest.raises(ValueError, match="'org/vlm' at revision v1, got revision v2"):
        check_made_for(adapter, pinned)


def test_only_an_adapter_of_ours_is_overwritten(tmp_path: Path) -> None:
    adapter = Adapter(lora=random_lora(["down_proj"]), provenance=PROVENANCE)
    save_adapter(adapter, tmp_path / "adapter")
    save_adapter(Adapter(lora=random_lora(["q_proj"]), provenance=PROVENANCE), tmp_path / "adapter")
    assert list(load_adapter(tmp_path / "adapter").lora.lora_a) == ["q_proj"]
    (tmp_path / "adapter" / "provenance.json").unlink()
    with pytest.raises(ValueError, match="not overwriting"):
        save_adapter(adapter, tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_adapter_is_one_video_with_its_provenance() -> None:
    with pytest.raises(ValueError, match="batch of 2"):
        Adapter(lora=random_lora(["q_proj"], batch=2), provenance=PROVENANCE)
    with pytest.raises(ValueError, match=r"layers_path is 'a/\.\./b'"):
        Adapter(lora=random_lora(["q_proj"]), provenance=PROVENANCE | {"layers_path": "a/../b"})
    with pytest.raises(ValueError, match=r"lacks \['vlm'\]"):
        Adapter(lora=random_lora(["q_proj"]), provenance={"video_id": "5f3a"})


def test_a_module_without_a_known_place_is_refused(tmp_path: Path) -> None:
    lora = random_lora(["q_proj"])
    odd = Lora(lora_a={"fc1": lora.lora_a["q_proj"]}, lora_b={"fc1": lora.lora_b["q_proj"]}, scaling=1.0)
    with pytest.raises(ValueError, match=r"\['fc1'\].*down_proj"):
        save_adapter(Adapter(lora=odd, provenance=PROVENANCE), tmp_path / "adapter")


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_provenance(folder: Path, **changes: object) -> None:
    path = folder / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncate(path: Path, share: float) -> None:
    """As a full disk or a broken copy leaves it."""
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


PREFIX = "base_model.model.model.text_model.layers"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "provenance.json").unlink(), "has no provenance.json"),
        (lambda f: (f / "provenance.json").write_text("{}"), "lacks"),
        (lambda f: (f / "adapter_config.json").write_text("no"), "cannot read"),
        (lambda f: (f / "adapter_config.json").write_bytes(b"\xff\xfe"), "cannot read"),
        (lambda f: (f / "adapter_config.json").write_text("[]"), "expected a JSON object, got list"),
        (lambda f: (f / "adapter_model.safetensors").write_text("no"), "cannot read"),
        (lambda f: truncate(f / "adapter_model.safetensors", 0.5), r"adapter_model.safetensors: cannot read: .*[Ii]ncomplete"),
        (lambda f: truncate(f / "adapter_model.safetensors", 0.0), "cannot read"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"\xff" * 64), "cannot read"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
        (lambda f: edit_config(f, peft_type="IA3"), "IA3"),
        (lambda f: edit_config(f, use_rslora=True), "use_rslora True"),
        (lambda f: edit_config(f, r=4), "rank 5, but r is 4"),
        (lambda f: edit_config(f, lora_alpha=None), "lora_alpha"),
        (lambda f: edit_config(f, lora_alpha=float("nan")), "lora_alpha.*nan"),
        (lambda f: edit_config(f, r=True), "whole number.*True"),
        (lambda f: edit_provenance(f, layers_path="model.language_model.layers"), r"of 'model.text_model.layers', but.*language_model"),
        (lambda f: edit_provenance(f, static_r=6), "static_r is 6, expected a part of the adapter's rank 5"),
        (lambda f: edit_provenance(f, static_r=True), "static_r is True"),
        (
            lambda f: edit_tensors(f, lambda t: t.pop(f"{PREFIX}.1.mlp.down_proj.lora_A.weight")),
            r"layers missing: \[1\]",
        ),
        (lambda f: edit_tensors(f, lambda t: t.pop(f"{PREFIX}.2.mlp.down_proj.lora_A.weight")), r"\(1, 2, 5\)|lora_b"),
        (lambda f: edit_tensors(f, lambda t: t.update({"model.x.lora_A.weight": torch.zeros(1)})), "model.x.lora_A"),
        (
            lambda f: edit_tensors(f, lambda t: t.update({f"{PREFIX}.1.mlp.down_proj.lora_A.weight": torch.zeros(5, 2)})),
            r"shapes \[\(5, 2\), \(5, 37\)\]",
        ),
        (lambda f: edit_tensors(f, dict.clear), "no tensors"),
        (lambda f: edit_tensors(f, lambda t: t.update({k: v.long() for k, v in t.items()})), "torch.int64, expected floating-point"),
        (
            lambda f: edit_tensors(f, lambda t: t.update({"base_model.model.x.layers.0.mlp.down_proj.lora_A.weight": torch.zeros(5, 37)})),
            r"\['model.text_model.layers', 'x.layers'\], expected layers of one path",
        ),
    ],
)
def test_what_is_no_adapter_is_refused(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    save_adapter(Adapter(lora=random_lora(["down_proj"]), provenance=PROVENANCE), tmp_path / "adapter")
    spoil(tmp_path / "adapter")
    with pytest.raises(ValueError, match=message):
        load_adapter(tmp_path / "adapter")
