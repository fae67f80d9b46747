"""An adapter made ready to be taken away: a PEFT folder with a card, and a proof that it does something where it is loaded.

PEFT and vLLM load an adapter whose keys match nothing without an error, and then answer as the plain model. So each export is loaded back
by PEFT itself, on a copy of the plain transformers model, and asked a fixed question, text only: every key must have found its place, the
logits must differ from the plain model's, and must equal those under our own `adapted`. What was seen is written to `proof.json`, tied to
the files by their hash; `teacher.serving` adds the same for vLLM. A copy of the VLM in fp32 is the price of it.
"""

import copy
import json
import shutil
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from video2lora.adapter import PROVENANCE_FILE, Adapter, Dtype, check_made_for, load_adapter, write_adapter
from video2lora.checkpoint import new_folder, read_tensors
from video2lora.export_card import CARD_FILE, card
from video2lora.lora import adapted
from video2lora.peft_folder import CONFIG_FILE, WEIGHTS_FILE
from video2lora.proof import PROOF_FILE, PeftProof, Proofs, VllmProof, add_proof, read_proofs
from video2lora.vlm import FrozenVLM, TextBatch

QUESTION = "What happens in the video?"
TOLERANCE = 1e-4  # of the largest logit (at least of 1): what fp32 sums in another order may differ by
N_TOKENS = 16  # of the greedy answers that a proof shows


def export_peft(
    source: Path | Adapter, *, vlm: FrozenVLM, output: Path | None = None, question: str = QUESTION, dtype: Dtype | None = None
) -> PeftProof:
    """Writes adapter, provenance, card and proof to `output`; for a folder, by default to itself. Other files there stay.

    `output` is as it was unless the proof holds. The VLM is not touched. Raises ValueError for an adapter made for another VLM, or stored
    without its static part, or without effect; for keys that PEFT finds no place for; for logits under PEFT that are not ours; where
    peft is not installed; and as `load_adapter` and `write_adapter` do.
    """
    if isinstance(source, Adapter) and output is None:
        raise ValueError("output: got None for an adapter in memory, expected a folder")
    adapter = source if isinstance(source, Adapter) else load_adapter(source)
    folder = output if output is not None else Path(source)  # type: ignore[arg-type]
    check_made_for(adapter, vlm)
    with new_folder(folder, marker=PROVENANCE_FILE) as new:
        if folder.is_dir():
            shutil.copytree(folder, new, symlinks=True, dirs_exist_ok=True)
            for name in (CONFIG_FILE, WEIGHTS_FILE, PROVENANCE_FILE, CARD_FILE, PROOF_FILE):
                if (new / name).is_symlink():  # or what is written here would go to where it leads
                    (new / name).unlink()
        write_adapter(adapter, new, dtype=dtype)
        proof = prove(new, vlm=vlm, question=question)
        add_proof(new, peft=proof)
        (new / CARD_FILE).write_text(
            card(adapter, prompt=vlm.family.text_prompt("QUESTION"), end_token=vlm.family.end_token), encoding="utf-8"
        )
    return proof


@torch.no_grad()
def prove(folder: Path, *, vlm: FrozenVLM, question: str = QUESTION) -> PeftProof:
    """Loads the folder with PEFT beside ours. Raises ValueError where it has no effect there, or another one than here."""
    peft = _peft()
    adapter = load_adapter(folder)
    batch = vlm.question_batch([question])
    vlm.check_length(batch, n_new_tokens=N_TOKENS)
    plain = copy.deepcopy(vlm.model).float()
    before, tokens_before = _logits(plain, batch), _greedy(plain, batch, vlm)
    with adapted(list(plain.get_submodule(vlm.layers_path)), adapter.lora):
        ours = _logits(plain, batch)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of keys that are missing: counted below
            model = peft.PeftModel.from_pretrained(plain, str(folder)).eval()
    except (ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"{folder}: PEFT does not load it on {type(vlm.model).__name__}: {str(error).splitlines()[0]}") from error
    n_keys = _check_keys(peft.get_peft_model_state_dict(model, save_embedding_layers=False), folder)
    after, tokens_after = _logits(model, batch), _greedy(model, batch, vlm)
    largest = after.abs().max().item()
    change, difference, limit = (after - before).abs().max().item(), (after - ours).abs().max().item(), TOLERANCE * max(1.0, largest)
    if not change > limit:
        raise ValueError(
            f"{folder}: no effect: on {question!r} the largest change of a logit is {change:.2g} under PEFT and "
            f"{(ours - before).abs().max().item():.2g} under ours, expected more than {limit:.2g}"
        )
    if not difference <= limit:
        raise ValueError(f"{folder}: logits under PEFT are {difference:.2g} off those of `adapted`, expected at most {limit:.2g}")
    return PeftProof(
        prompt=vlm.family.text_prompt(question),
        logit_change=change,
        logit_difference=difference,
        largest_logit=largest,
        tokens_before=tokens_before,
        tokens_after=tokens_after,
        answer_before=vlm.tokenizer.decode(tokens_before, skip_special_tokens=True).strip(),
        answer_after=vlm.tokenizer.decode(tokens_after, skip_special_tokens=True).strip(),
        n_keys=n_keys,
        versions={name: version(name) for name in ("peft", "transformers", "torch")},
    )


def inspect_adapter(folder: Path) -> dict[str, Any]:
    """What an adapter folder holds, as JSON values: `inspection` tells it. Raises ValueError where it is no adapter."""
    adapter, proofs = load_adapter(folder), read_proofs(folder)
    lora, made = adapter.lora, dict(adapter.provenance)
    return {
        "folder": str(folder),
        "r": lora.r,
        "static_r": made.get("static_r"),
        "has_all": adapter.has_all,
        "scaling": lora.scaling,
        "modules": {m: {"d_in": a.shape[-1], "d_out": lora.lora_b[m].shape[-2]} for m, a in lora.lora_a.items()},
        "n_layers": lora.n_layers,
        "layers_path": adapter.layers_path,
        "dtype": str(next(iter(lora.lora_a.values())).dtype).removeprefix("torch."),
        "n_bytes": (folder / WEIGHTS_FILE).stat().st_size,
        "provenance": made,
        "proofs": None if proofs is None else proofs.model_dump(mode="json"),
    }


def inspection(found: Mapping[str, Any]) -> list[str]:
    """Lines for a person, of what `inspect_adapter` found."""
    made, static_r = found["provenance"], found["static_r"]
    parts = "static part not told apart" if static_r is None else f"{found['r'] - static_r} generated, {static_r} static"
    n_parts = f", composed of {len(made['parts'])}" if "parts" in made else ""
    lines = [
        f"video         {json.dumps(made['video_id'])}{n_parts}",
        f"VLM           {json.dumps(made['vlm'])}, revision {made.get('vlm_revision')}, weights {made.get('vlm_digest')}",
        f"hypernetwork  {json.dumps(made.get('hypernetwork'))}, {made.get('hypernetwork_digest')}",
        f"frames        {made.get('n_frames')} in {made.get('n_chunks')} chunk(s), sampling {json.dumps(made.get('sampling'))}",
        f"rank          {found['r']} ({parts if found['has_all'] else 'the static part is stored apart'}), scaling {found['scaling']:g}",
        f"modules       {', '.join(found['modules'])} in {found['n_layers']} layers of {found['layers_path']}",
        f"weights       {found['n_bytes']} bytes, {found['dtype']}",
    ]
    proofs = Proofs.model_validate(found["proofs"] or {"files": ""})
    if proofs.peft:
        lines += _peft_lines(proofs.peft)
    if proofs.vllm:
        lines += _vllm_lines(proofs.vllm)
    if not (proofs.peft or proofs.vllm):
        lines.append(f"proof         no proof of effect; run: video2lora export {found['folder']} --to peft")
    return lines


def _peft_lines(proof: PeftProof) -> list[str]:
    told = f"logits change by up to {proof.logit_change:.3g}, ours within {proof.logit_difference:.1g}"
    return [
        f"in PEFT       {proof.versions.get('peft')}: {told}",
        f"              {json.dumps(proof.prompt)}: {json.dumps(proof.answer_before)} -> {json.dumps(proof.answer_after)}",
    ]


def _vllm_lines(proof: VllmProof) -> list[str]:
    told = f"log-probabilities change by up to {proof.logprob_change:.3g}, ours within {proof.logprob_difference:.1g}"
    return [
        f"in vLLM       {proof.versions.get('vllm')}, {proof.dtype}: {told}; {proof.n_equal} of {len(proof.answers)} answers are ours",
        *(f"              {json.dumps(one.question)}: {json.dumps(one.before)} -> {json.dumps(one.after)}" for one in proof.answers),
    ]


def _logits(model: Any, batch: TextBatch) -> Tensor:
    return model(input_ids=batch.input_ids, attention_mask=batch.mask).logits


def _greedy(model: Any, batch: TextBatch, vlm: FrozenVLM) -> list[int]:
    new = model.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.mask,
        max_new_tokens=N_TOKENS,
        do_sample=False,
        pad_token_id=vlm.tokenizer.pad_token_id,
        eos_token_id=vlm.tokenizer.convert_tokens_to_ids(vlm.family.end_token),
    )
    tokens: list[int] = new[0, batch.input_ids.shape[1] :].tolist()
    return tokens


def _check_keys(loaded: Mapping[str, Tensor], folder: Path) -> int:
    """How many tensors PEFT took from the file. Raises ValueError unless these are all, and nothing PEFT has is left as it was drawn."""
    written = read_tensors(folder / WEIGHTS_FILE)
    lost, extra = sorted(written.keys() - loaded.keys()), sorted(loaded.keys() - written.keys())
    if lost or extra:
        raise ValueError(f"{folder}: PEFT found no place for {len(lost)} keys ({lost[:1]}) and has {len(extra)} others ({extra[:1]})")
    changed = [key for key, tensor in written.items() if not torch.equal(tensor.float(), loaded[key].cpu().float())]
    if changed:
        raise ValueError(f"{folder}: PEFT loaded other numbers than the file's for {len(changed)} keys, {changed[0]} the first")
    return len(written)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError(f"the proof of an export needs peft, which does not import here ({error}); pip install peft") from error
    return peft
