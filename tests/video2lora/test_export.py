"""An export is proved by loading it as a stranger would: PEFT on the plain transformers model, and the commands of the card itself."""

import contextlib
import io
import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import peft
import pytest
import torch
import yaml
from torch import Tensor
from transformers import AutoModelForImageTextToText

from video2lora.adapter import Adapter, load_adapter, save_adapter, without_static
from video2lora.export import export_peft, inspect_adapter, inspection
from video2lora.export_card import card
from video2lora.lora import Lora, adapted
from video2lora.pretrained import load_vlm, vlm_path
from video2lora.proof import VllmAnswers, VllmProof, add_proof, read_proofs
from video2lora.vlm import FrozenVLM

N_LAYERS, R = 4, 5
SIZES = {"down_proj": (384, 128), "q_proj": (128, 128)}
FILES = {"adapter_config.json", "adapter_model.safetensors", "provenance.json", "README.md", "proof.json"}


@pytest.fixture(scope="module")
def vlm() -> FrozenVLM:
    return load_vlm("tiny")


def random_lora(*, size: float = 0.1, seed: int = 0) -> Lora:
    generator = torch.Generator().manual_seed(seed)
    return Lora(
        lora_a={m: size * torch.randn(1, N_LAYERS, R, d_in, generator=generator) for m, (d_in, _) in SIZES.items()},
        lora_b={m: size * torch.randn(1, N_LAYERS, d_out, R, generator=generator) for m, (_, d_out) in SIZES.items()},
        scaling=2 * 5**1.5,
    )


def adapter_for(for_vlm: FrozenVLM, *, lora: Lora | None = None, **provenance: object) -> Adapter:
    facts = {
        "video_id": "5f3a77b0",
        "vlm": "tiny",
        "vlm_revision": None,
        "vlm_digest": for_vlm.digest,
        "layers_path": "model.text_model.layers",
        "hypernetwork": "some/folder",
        "hypernetwork_digest": "cc33",
        "sampling": {"policy": "uniform", "n_frames": 7},
        "n_frames": 7,
        "n_chunks": 1,
        "static_r": 2,
    }
    return Adapter(lora=lora or random_lora(), provenance=facts | provenance)


@pytest.fixture
def folder(vlm: FrozenVLM, tmp_path: Path) -> Path:
    """An adapter as `internalize` leaves it."""
    save_adapter(adapter_for(vlm), tmp_path / "adapter")
    return tmp_path / "adapter"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def last_logits(model: torch.nn.Module, vlm: FrozenVLM, question: str) -> Tensor:
    batch = vlm.question_batch([question])
    with torch.no_grad():
        return model(input_ids=batch.input_ids, attention_mask=batch.mask).logits


def test_the_proof_is_what_peft_does_on_the_plain_model(vlm: FrozenVLM, folder: Path) -> None:
    before = {name: tensor.clone() for name, tensor in vlm.model.state_dict().items()}
    question = "What colour is the object?"
    proof = export_peft(folder, vlm=vlm, question=question)
    assert set(contents(folder)) == FILES
    stranger = AutoModelForImageTextToText.from_pretrained(vlm_path("tiny"), dtype=torch.float32).eval()
    plain = last_logits(stranger, vlm, question)
    theirs = last_logits(peft.PeftModel.from_pretrained(stranger, folder), vlm, question)
    assert (theirs - plain).abs().max().item() == pytest.approx(proof.logit_change, rel=1e-4)
    assert proof.logit_change > 0.1 > 1e-4 * proof.largest_logit > proof.logit_difference
    assert proof.n_keys == 2 * len(SIZES) * N_LAYERS
    assert proof.tokens_before[0] == plain[0, -1].argmax()
    assert proof.tokens_after[0] == theirs[0, -1].argmax()
    assert proof.answer_before == vlm.generate(vlm.question_batch([question]), max_new_tokens=16)[0].text
    with adapted(vlm.layers, load_adapter(folder).lora):
        assert proof.answer_after == vlm.generate(vlm.question_batch([question]), max_new_tokens=16)[0].text
    assert read_proofs(folder).peft == proof
    after = vlm.model.state_dict()
    assert after.keys() == before.keys(), "the caller's model is not PEFT's"
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_card_loads_the_adapter_as_it_says(vlm: FrozenVLM, folder: Path) -> None:
    export_peft(folder, vlm=vlm)
    (in_peft, in_vllm) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)
    question = "Which way does the object move?"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(in_peft.replace("FOLDER", str(folder)).replace("QUESTION", question), "card", "exec"), {})
    with adapted(vlm.layers, load_adapter(folder).lora):
        ours = vlm.generate(vlm.question_batch([question]), max_new_tokens=64)[0].text
    assert printed.getvalue().strip() == ours
    compile(in_vllm, "card", "exec")
    assert "max_lora_rank=8)" in in_vllm


def test_the_card_says_whose_weights_these_are(vlm: FrozenVLM, folder: Path) -> None:
    export_peft(folder, vlm=vlm)
    text = (folder / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1]) == {"base_model": "tiny", "library_name": "peft", "tags": ["lora", "video", "video2lora"]}
    for fact in ("`5f3a77b0`", "`7`", '`{"policy": "uniform", "n_frames": 7}`', "`tiny`", vlm.digest, "`some/folder`", "`cc33`", "rank 5"):
        assert fact in text


HOSTILE = 'x"\n---\n# `Click` [here](http://evil)\r\u2028\x85\x00```\n<script>'


def test_names_cannot_write_into_the_card(vlm: FrozenVLM) -> None:
    """Every place that data goes to holds a name that would break out of YAML, Markdown, a code span and Python."""
    names = ("vlm", "vlm_revision", "video_id", "hypernetwork", "hypernetwork_digest", "sampling", "n_frames", "compression_error")
    hostile = adapter_for(vlm, **dict.fromkeys(names, HOSTILE), parts=[{"video_id": HOSTILE}])
    text = card(hostile, prompt="<|im_start|>User: QUESTION", end_token="<end>")
    harmless = card(
        adapter_for(vlm, **dict.fromkeys(names, "x"), parts=[{"video_id": "x"}]), prompt="<|im_start|>User: QUESTION", end_token="<end>"
    )
    assert [line[:6] for line in text.splitlines()] == [line[:6] for line in harmless.splitlines()], "no line more, none less"
    assert yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))["base_model"] == HOSTILE
    for code in re.findall(r"^```python\n(.*?)^```$", text, flags=re.S | re.M):
        compile(code, "card", "exec")
        assert repr(HOSTILE) in code
    spans = [line for line in text.splitlines() if line.startswith("- VLM: ")]
    assert spans[0].startswith("- VLM: ```` x"), "the fence is longer than the name's own backticks"


def test_a_rank_that_vllm_does_not_take_is_said_in_the_card(vlm: FrozenVLM) -> None:
    large = Lora(lora_a={"down_proj": torch.zeros(1, 1, 513, 2)}, lora_b={"down_proj": torch.zeros(1, 1, 3, 513)}, scaling=1.0)
    text = card(adapter_for(vlm, lora=large), prompt="QUESTION", end_token="<end>")
    assert "vLLM takes ranks up to 512, and this adapter has 513" in text


def test_an_export_keeps_what_is_not_its_own_and_goes_elsewhere_if_told(vlm: FrozenVLM, folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    before = contents(folder)
    export_peft(folder, vlm=vlm, output=tmp_path / "taken", dtype="bfloat16")
    assert contents(folder) == before
    assert set(contents(tmp_path / "taken")) == FILES
    assert load_adapter(tmp_path / "taken").lora.lora_a["q_proj"].dtype == torch.bfloat16
    export_peft(folder, vlm=vlm)
    assert set(contents(folder)) == FILES | {"notes.txt"}
    assert contents(folder)["adapter_model.safetensors"] == before["adapter_model.safetensors"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="not overwriting"):
        export_peft(folder, vlm=vlm, output=tmp_path / "other")


def test_an_export_writes_through_no_link(vlm: FrozenVLM, folder: Path, tmp_path: Path) -> None:
    """As a hub's cache has them; or a stranger's adapter, whose README leads to a file of the user's."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in list(folder.iterdir()):
        shutil.move(path, elsewhere / path.name)
        path.symlink_to(elsewhere / path.name)
    for name in ("README.md", "proof.json"):
        (elsewhere / name).write_text("the user's")
        (folder / name).symlink_to(elsewhere / name)
    before = contents(elsewhere)
    export_peft(folder, vlm=vlm)
    assert contents(elsewhere) == before
    assert set(contents(folder)) == FILES and not any(path.is_symlink() for path in folder.iterdir())


def test_a_vlm_in_bfloat16_is_proved_in_fp32(folder: Path) -> None:
    low = load_vlm("tiny", dtype="bfloat16")
    proof = export_peft(folder, vlm=low)
    assert proof.logit_difference <= 1e-4 * proof.largest_logit
    assert next(low.model.parameters()).dtype == torch.bfloat16


VLLM = VllmProof(
    answers=[VllmAnswers(question="What?", before="a", after="b", ours="b")],
    n_equal=1,
    logprob_change=2.5,
    logprob_difference=1e-6,
    dtype="float32",
    max_lora_rank=16,
    versions={"vllm": "0.32"},
)


def test_inspection_tells_proved_from_unproved(vlm: FrozenVLM, folder: Path) -> None:
    found = inspect_adapter(folder)
    assert (found["r"], found["static_r"], found["n_layers"], found["dtype"], found["proofs"]) == (5, 2, 4, "float32", None)
    assert found["modules"] == {name: {"d_in": d_in, "d_out": d_out} for name, (d_in, d_out) in SIZES.items()}
    assert found["n_bytes"] == (folder / "adapter_model.safetensors").stat().st_size
    assert json.loads(json.dumps(found)) == found
    assert f"no proof of effect; run: video2lora export {folder} --to peft" in inspection(found)[-1]
    export_peft(folder, vlm=vlm)
    add_proof(folder, vllm=VLLM)
    lines = "\n".join(inspection(inspect_adapter(folder)))
    assert "no proof" not in lines
    for told in ("5 (3 generated, 2 static)", "in PEFT", "in vLLM       0.32, float32", "1 of 1 answers are ours", '"5f3a77b0"', "cc33"):
        assert told in lines


def test_a_proof_is_of_these_files(vlm: FrozenVLM, folder: Path) -> None:
    export_peft(folder, vlm=vlm)
    add_proof(folder, vllm=VLLM)
    export_peft(folder, vlm=vlm)
    assert read_proofs(folder).vllm == VLLM, "the same files again: what vLLM showed still holds"
    proved = (folder / "proof.json").read_text()
    for spoilt in (proved[:-40], proved.replace('"logit_change"', '"change"'), "[]", "{}"):
        (folder / "proof.json").write_text(spoilt)
        assert read_proofs(folder) is None
        assert "no proof of effect" in inspection(inspect_adapter(folder))[-1]
    (folder / "proof.json").write_text(proved)
    save_adapter(adapter_for(vlm, lora=random_lora(seed=1)), folder.with_name("another"))
    (folder / "adapter_model.safetensors").write_bytes((folder.with_name("another") / "adapter_model.safetensors").read_bytes())
    assert read_proofs(folder) is None
    export_peft(folder, vlm=vlm)
    assert read_proofs(folder).vllm is None


def with_zero_b(lora: Lora) -> Lora:
    return Lora(lora_a=lora.lora_a, lora_b={name: torch.zeros_like(b) for name, b in lora.lora_b.items()}, scaling=lora.scaling)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": with_zero_b(random_lora())}, r"no effect: on 'What happens.*is 0 under PEFT and 0 under ours, expected more than"),
        ({"lora": random_lora(size=1e-4)}, "no effect"),
        ({"layers_path": "model.language_model.layers"}, r"PEFT does not load it on SmolVLM.*language_model"),
        ({"layers_path": "text_model.layers"}, r"PEFT found no place for 16 keys .*base_model.model.text_model.layers.0.mlp.down_proj"),
        ({"vlm_digest": "0" * 16}, r"made for VLM weights 0{16} of 'tiny', got \w{16} of 'tiny'"),
        ({"vlm_digest": "0" * 16, "vlm_revision": "v1"}, "at revision v1, got revision None"),
    ],
    ids=["zero", "next to zero", "keys of another VLM", "keys that load in silence", "another VLM", "another revision"],
)
def test_what_has_no_effect_is_not_exported(vlm: FrozenVLM, tmp_path: Path, change: Mapping[str, object], message: str) -> None:
    save_adapter(adapter_for(vlm, **change), tmp_path / "adapter")
    before = contents(tmp_path / "adapter")
    with pytest.raises(ValueError, match=message):
        export_peft(tmp_path / "adapter", vlm=vlm)
    assert contents(tmp_path / "adapter") == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_adapter_stored_without_its_static_part_is_not_exported_as_if_it_were_whole(vlm: FrozenVLM, tmp_path: Path) -> None:
    save_adapter(without_static(adapter_for(vlm)), tmp_path / "apart")
    assert any("the static part is stored apart" in line for line in inspection(inspect_adapter(tmp_path / "apart")))
    with pytest.raises(ValueError, match=r"stored without the static adapter, which hypernetwork 'some/folder' has"):
        export_peft(tmp_path / "apart", vlm=vlm)
    export_peft(adapter_for(vlm), vlm=vlm, output=tmp_path / "apart")
    assert load_adapter(tmp_path / "apart").lora.r == R
    with pytest.raises(ValueError, match="output"):
        export_peft(adapter_for(vlm), vlm=vlm)


def test_a_question_longer_than_the_context_is_refused(vlm: FrozenVLM, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"prompt of \d{4} tokens.*has 1024 positions"):
        export_peft(folder, vlm=vlm, question="word " * 2000)


def test_without_peft_the_export_says_so(vlm: FrozenVLM, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # what an `import peft` finds where it is not installed
    with pytest.raises(ValueError, match="pip install peft"):
        export_peft(folder, vlm=vlm)
