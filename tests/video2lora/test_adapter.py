"""An adapter on disk, read by PEFT and by us; PEFT's answers are the oracle."""

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from video2lora.adapter import Adapter, load_adapter, save_adapter
from video2lora.lora import Lora, adapted, concatenate

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
    assert read.lora.scaling == pytest.approx(lora.scaling, rel=1e-12)
    for name in SIZES:
        assert torch.equal(read.lora.lora_a[name], lora.lora_a[name].bfloat16())
        assert torch.equal(read.lora.lora_b[name], lora.lora_b[name].bfloat16())


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
        (lambda f: (f / "adapter_model.safetensors").write_text("no"), "cannot read"),
        (lambda f: edit_config(f, peft_type="IA3"), "IA3"),
        (lambda f: edit_config(f, use_rslora=True), "use_rslora True"),
        (lambda f: edit_config(f, r=4), "rank 5, but r is 4"),
        (lambda f: edit_config(f, lora_alpha=None), "lora_alpha"),
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
    ],
)
def test_what_is_no_adapter_is_refused(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    save_adapter(Adapter(lora=random_lora(["down_proj"]), provenance=PROVENANCE), tmp_path / "adapter")
    spoil(tmp_path / "adapter")
    with pytest.raises(ValueError, match=message):
        load_adapter(tmp_path / "adapter")
