"""`proof.json` of an exported adapter: what PEFT and vLLM were seen to make of it, tied to the files they read by a hash.

Who finds the hash different has other files than those that were proved: no proof. The schema is here, below PEFT and vLLM, so that
whoever reads an adapter folder can read it.
"""

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from video2lora.checkpoint import read_json, write_json
from video2lora.peft_folder import CONFIG_FILE, WEIGHTS_FILE

PROOF_FILE = "proof.json"


class Seen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PeftProof(Seen):
    """The adapter in PEFT on the plain model, in fp32, text only. Logits are those of all positions of `prompt`."""

    prompt: str
    logit_change: float  # largest, from the plain model to PEFT
    logit_difference: float  # largest, between PEFT and `lora.adapted`
    largest_logit: float
    tokens_before: list[int]  # greedy, of the plain model
    tokens_after: list[int]
    answer_before: str
    answer_after: str
    n_keys: int  # tensors of the file that PEFT put in their place: all
    versions: dict[str, str]


class VllmAnswers(Seen):
    """Greedy answers to one question, text only."""

    question: str
    before: str  # vLLM without the adapter
    after: str  # vLLM with it
    ours: str


class VllmProof(Seen):
    """The adapter as a LoRA request in vLLM. Log-probabilities are of the likeliest first tokens of each answer."""

    answers: list[VllmAnswers]
    n_equal: int  # answers whose token ids are all ours
    logprob_change: float  # largest, from vLLM without the adapter to vLLM with it
    logprob_difference: float  # largest, between vLLM with it and ours
    dtype: str
    max_lora_rank: int
    versions: dict[str, str]


class Proofs(Seen):
    """All of proof.json."""

    files: str  # `files_digest`
    peft: PeftProof | None = None
    vllm: VllmProof | None = None


def read_proofs(folder: Path) -> Proofs | None:
    """What was seen of the adapter in the folder; None where nothing was, or cannot be read, or was of other files than are there now."""
    try:
        proofs = Proofs.model_validate(read_json(folder / PROOF_FILE))
    except (ValueError, ValidationError):
        return None
    return proofs if proofs.files == files_digest(folder) else None


def add_proof(folder: Path, *, peft: PeftProof | None = None, vllm: VllmProof | None = None) -> None:
    """Writes what was seen of the files as they are now, beside what was seen of them before."""
    known = read_proofs(folder)
    proofs = Proofs(
        files=files_digest(folder),
        peft=peft or (known.peft if known else None),
        vllm=vllm or (known.vllm if known else None),
    )
    write_json(proofs.model_dump(mode="json"), folder / PROOF_FILE)


def drop_vllm_proof(folder: Path) -> None:
    """After one that failed, an older one must not be believed."""
    known = read_proofs(folder)
    if known is not None and known.vllm is not None:
        write_json(known.model_copy(update={"vllm": None}).model_dump(mode="json"), folder / PROOF_FILE)


def files_digest(folder: Path) -> str:
    """SHA-256 in hex of what PEFT and vLLM read: config and weights."""
    total = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with (folder / name).open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
