"""Adapters in a real vLLM (slow), and the rules by which its answers are judged."""

import math
from pathlib import Path

import pytest
import torch

from infra.config import WorldSettings
from infra.errors import BadInputError
from pipeline.made_world.clips import clips_of, encode
from teacher.serving import QUESTIONS, Asked, Greedy, check_effect, check_in_vllm, least_change, least_rank, serve
from video2lora import api
from video2lora.adapter import Adapter, load_adapter, save_adapter
from video2lora.export import export_peft, inspect_adapter, inspection
from video2lora.lora import Lora, pad_rank
from video2lora.proof import VllmProof, add_proof, read_proofs

RANKS = (1, 8, 16, 32)


def test_the_smallest_size_that_holds_a_rank_is_taken() -> None:
    assert [least_rank(r, RANKS) for r in (1, 2, 8, 9, 31, 32)] == [1, 8, 8, 16, 32, 32]
    with pytest.raises(ValueError, match=r"rank 33, this vLLM takes at most 32; compress it first"):
        least_rank(33, RANKS)


def test_a_change_is_never_overstated() -> None:
    """A token that was not among the likeliest before had some log-probability below them all."""
    before = Greedy([3], {3: -0.5, 7: -2.0})
    assert least_change(before, before) == 0.0
    assert least_change(before, Greedy([7], {7: -0.25, 3: -1.5})) == pytest.approx(1.75)
    assert least_change(before, Greedy([5], {5: -0.5})) == pytest.approx(1.5)
    assert least_change(before, Greedy([5], {5: -3.0})) == 0.0


def test_what_served_as_the_plain_model_or_answers_otherwise_is_no_proof() -> None:
    check_effect(change=2.0, difference=1e-5, n_unequal=0, dtype="float32")
    check_effect(change=2.0, difference=0.3, n_unequal=3, dtype="bfloat16")
    for change in (0.0, 1e-4, math.nan):
        with pytest.raises(ValueError, match="no effect in vLLM"):
            check_effect(change=change, difference=0.0, n_unequal=0, dtype="float32")
    with pytest.raises(ValueError, match="2 greedy answers in vLLM are not ours"):
        check_effect(change=2.0, difference=1e-5, n_unequal=2, dtype="float32")
    for difference in (1.5, math.nan):
        with pytest.raises(ValueError, match="off ours"):
            check_effect(change=2.0, difference=difference, n_unequal=0, dtype="bfloat16")


def made(path: Path, *, r: int = 3, **provenance: object) -> Path:
    """An adapter of the small VLM, of zeros."""
    lora = Lora(lora_a={"down_proj": torch.zeros(1, 4, r, 384)}, lora_b={"down_proj": torch.zeros(1, 4, 128, r)}, scaling=1.0)
    facts = {"video_id": "5f3a", "vlm": "tiny", "static_r": 0} | provenance
    save_adapter(Adapter(lora=lora, provenance=facts), path)
    return path


def test_what_cannot_be_served_is_said_before_vllm_starts(tmp_path: Path) -> None:
    folder = made(tmp_path / "adapter")
    refused = [
        ([tmp_path / "nothing"], {}, "is not an adapter of video2lora"),
        ([folder, made(tmp_path / "other", vlm="elsewhere")], {}, "expected those of one"),
        ([made(tmp_path / "gone", vlm=str(tmp_path / "no model"))], {}, "no model"),
        ([folder], {"gpu": True, "dtype": "float32"}, "float32 on a GPU"),
    ]
    for folders, options, message in refused:
        with pytest.raises(BadInputError, match=message):
            check_in_vllm(folders, **options)
    asked = Asked(
        adapters=[str(folder)], vlm="tiny", revision=None, questions=["word " * 2000], max_new_tokens=32, dtype="float32", gpu=False
    )
    with pytest.raises(ValueError, match=r"take \d{4} tokens, expected at most 1024"):
        serve(asked)
    apart = asked.model_copy(update={"adapters": [str(made(tmp_path / "apart", static="apart"))], "questions": ["What?"]})
    told = serve(apart)
    assert told.proofs == [None]
    assert "stored without the static adapter" in told.errors[0]


@pytest.mark.slow
def test_an_exported_adapter_answers_in_vllm_as_here_and_one_that_does_nothing_is_caught(tmp_path: Path) -> None:
    """One engine for all: a clip's adapter, the same under keys that vLLM passes over in silence, and one of too high a rank."""
    clip = next(clip for clip in clips_of(WorldSettings(level=1, seed=71, n_train=1, n_validation=1, n_test=2)) if clip.split == "test")
    (tmp_path / "clip.mp4").write_bytes(encode(clip))
    using = api.load("tiny")
    adapter = api.internalize(tmp_path / "clip.mp4", using=using)
    good, silent, large = (tmp_path / name for name in ("good", "silent", "large"))
    export_peft(adapter, vlm=using.vlm, output=good)
    in_peft = read_proofs(good)
    save_adapter(Adapter(lora=adapter.lora, provenance={**adapter.provenance, "layers_path": "model.language_model.layers"}), silent)
    add_proof(silent, vllm=VllmProof(
        answers=[], n_equal=0, logprob_change=1.0, logprob_difference=0.0, dtype="float32", max_lora_rank=16, versions={}
    ))  # fmt: skip
    save_adapter(Adapter(lora=pad_rank(adapter.lora, 1024), provenance={**adapter.provenance, "static_r": None}), large)
    questions = [*QUESTIONS, *(one.question for one in clip.questions())]
    with pytest.raises(BadInputError) as caught:
        check_in_vllm([good, silent, large], questions=questions)
    told = str(caught.value)
    assert f"{silent}: no effect in vLLM: log-probabilities of the first tokens change by 0 at most" in told
    assert f"{large}: the adapter has rank 1024, this vLLM takes at most 512; compress it first" in told
    assert str(good) not in told
    proofs = read_proofs(good)
    assert proofs.peft == in_peft.peft, "what PEFT showed stays"
    proof = proofs.vllm
    ours = [one.text for one in api.ask_all(load_adapter(good), questions, vlm=using.vlm, decoding=api.Decoding(max_new_tokens=32))]
    assert [one.after for one in proof.answers] == ours
    assert [one.before for one in proof.answers] != ours
    assert (proof.n_equal, proof.max_lora_rank, proof.dtype) == (len(questions), 16, "float32")
    assert proof.logprob_change > 0.1 > 1e-3 > proof.logprob_difference
    assert any(f"{len(questions)} of {len(questions)} answers are ours" in line for line in inspection(inspect_adapter(good)))
    assert read_proofs(silent).vllm is None, "an older proof must not be believed"
    assert read_proofs(large) is None
