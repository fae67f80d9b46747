"""An exported adapter in vLLM: does it answer there as it does here? A LoRA request whose keys match nothing is served without an error.

    adapter folders -> vLLM, each question without and with the adapter, greedy, text only -> compared with ours -> proof.json

Called by `video2lora export DIR --to peft --check vllm`. Cost: vLLM starts once for all folders, in a process of its own, for it reads
its environment when it is imported (20 to 50 s on 2 cores, half of it the import); then seconds. Served as `teacher.vllm_engine` serves.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import BaseModel

from infra.config import TeacherSettings
from infra.errors import BadInputError, StageFailedError
from teacher.engine import EngineOptions
from teacher.models import Model, find_model, max_model_len
from teacher.vllm_settings import class_override, cpu_settings, engine_environment, inspect_here
from video2lora.adapter import Adapter, check_made_for, load_adapter
from video2lora.generation import Decoding
from video2lora.lora import adapted
from video2lora.pretrained import load_vlm
from video2lora.proof import VllmAnswers, VllmProof, add_proof, drop_vllm_proof
from video2lora.vlm import FrozenVLM, TextBatch

QUESTIONS = ("What happens in the video?", "Describe the video in one sentence.", "What is shown, and how does it move?")
MAX_MODEL_LEN = 2048  # tokens of question and answer: no frames here
N_LOGPROBS = 20  # of the likeliest first tokens: vLLM's own limit
LEAST_CHANGE = {"float32": 1e-3, "bfloat16": 0.1}  # of a log-probability; below, it may be the order of sums


class Asked(BaseModel):
    """What the process that starts vLLM is told."""

    adapters: list[str]
    vlm: str
    revision: str | None
    questions: list[str]
    max_new_tokens: int
    dtype: Literal["float32", "bfloat16"]
    gpu: bool


class Told(BaseModel):
    """What it found: a proof for each adapter, or None and an error that names it."""

    proofs: list[VllmProof | None]
    errors: list[str]


@dataclass(frozen=True)
class Greedy:
    """An answer, and log-probabilities of first tokens: vLLM's N_LOGPROBS likeliest, or ours of the whole vocabulary."""

    token_ids: list[int]
    logprobs: Mapping[int, float]


def check_in_vllm(
    adapters: Sequence[Path],
    *,
    vlm: str | None = None,
    revision: str | None = None,
    questions: Sequence[str] = QUESTIONS,
    max_new_tokens: int = 32,
    dtype: Literal["float32", "bfloat16"] | None = None,
    gpu: bool = False,
) -> list[VllmProof]:
    """Serves each adapter folder with the VLM it names (or the same from another place) and adds what was seen to its proof.json.

    In float32 (by default on a CPU) every greedy answer must be ours, token by token; in bfloat16 (by default on a GPU, where vLLM's LoRA
    has no float32) the first tokens' log-probabilities must be nearer to ours than to those without the adapter. Raises BadInputError,
    after all have been tried, for adapters of which that is not so or that do nothing there (an older proof of theirs is dropped), for a
    rank that this vLLM does not take, and for a VLM that it does not serve; StageFailedError where vLLM does not start.
    """
    if gpu and dtype == "float32":
        raise BadInputError("--check vllm: got float32 on a GPU, where vLLM's LoRA takes bfloat16")
    if find_spec("vllm") is None:
        raise BadInputError("--check vllm: vllm is not installed here; pip install 'video2lora[teacher]' (on a GPU, [teacher-gpu])")
    loaded = [_loaded(folder) for folder in adapters]
    names = {(adapter.provenance["vlm"], adapter.provenance.get("vlm_revision")) for adapter in loaded}
    if vlm is None and len(names) != 1:
        raise BadInputError(f"--check vllm: got adapters of the VLMs {sorted(map(str, names))}, expected those of one")
    if vlm is None:
        ((vlm, revision),) = names
    asked = Asked(
        adapters=[str(folder.resolve()) for folder in adapters],
        vlm=vlm,
        revision=revision,
        questions=list(questions),
        max_new_tokens=max_new_tokens,
        dtype=dtype or ("bfloat16" if gpu else "float32"),
        gpu=gpu,
    )
    model = find_model(_settings(asked))
    if model.smolvlm is None:
        raise BadInputError(f"--check vllm: {vlm} is no SmolVLM, the only family whose adapters are checked there")
    told = _in_own_process(asked, model)
    for folder, proof in zip(adapters, told.proofs, strict=True):
        if proof is None:
            drop_vllm_proof(folder)
        else:
            add_proof(folder, vllm=proof)
    if told.errors:
        raise BadInputError("; ".join(" ".join(error.split()) for error in told.errors))
    return [proof for proof in told.proofs if proof is not None]


def _loaded(folder: Path) -> Adapter:
    try:
        return load_adapter(folder)
    except ValueError as error:
        raise BadInputError(str(error)) from error


def _settings(asked: Asked) -> TeacherSettings:
    """Of the engine that serves; `teacher` names settings as the recipe's section `teacher` does."""
    return TeacherSettings(model=asked.vlm, revision=asked.revision, dtype=asked.dtype, max_model_len=MAX_MODEL_LEN)


def _in_own_process(asked: Asked, model: Model) -> Told:
    environment = os.environ | engine_environment(model, EngineOptions(gpu=asked.gpu, n_threads=len(os.sched_getaffinity(0))))
    with tempfile.TemporaryDirectory(prefix="video2lora-vllm-") as folder:
        answer = Path(folder) / "told.json"
        run = subprocess.run(
            [sys.executable, "-m", "teacher.serving", str(answer)],
            input=asked.model_dump_json().encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
        )
        if not answer.is_file():
            last = run.stdout.decode(errors="replace").strip().splitlines()[-1:]
            raise StageFailedError(f"vLLM did not start or died (exit code {run.returncode}): {' '.join(last) or 'it said nothing'}")
        return Told.model_validate_json(answer.read_bytes())


def serve(asked: Asked) -> Told:
    """In a process whose environment is `engine_environment`'s: starts vLLM and asks it about every adapter.

    Raises ValueError for what concerns all of them: the VLM, or a question longer than the context.
    """
    vlm = load_vlm(asked.vlm, revision=asked.revision)
    batches = [vlm.question_batch([question]) for question in asked.questions]
    longest = max(batch.input_ids.shape[1] for batch in batches) + asked.max_new_tokens
    most = max_model_len(find_model(_settings(asked)), _settings(asked))
    if longest > most:
        raise ValueError(f"a question and its answer take {longest} tokens, expected at most {most}")
    errors, able = [], {}
    for folder in asked.adapters:
        adapter = load_adapter(Path(folder))
        try:
            check_made_for(adapter, vlm)
            able[folder] = adapter, least_rank(adapter.lora.r, _ranks())
        except ValueError as error:
            errors.append(f"{folder}: {error}")
    proofs: dict[str, VllmProof] = {}
    if able:
        served = Served(asked, vlm, batches, max_lora_rank=max(rank for _, rank in able.values()))
        for folder, (adapter, _) in able.items():
            try:
                proofs[folder] = served.proof(Path(folder), adapter)
            except ValueError as error:
                errors.append(f"{folder}: {error}")
    return Told(proofs=[proofs.get(folder) for folder in asked.adapters], errors=errors)


class Served:
    """Holds an engine, which takes half a minute to start, and the plain model's answers."""

    def __init__(self, asked: Asked, vlm: FrozenVLM, batches: Sequence[TextBatch], *, max_lora_rank: int) -> None:
        from vllm import LLM, SamplingParams

        settings = _settings(asked)
        model = find_model(settings)
        if not asked.gpu:
            inspect_here()
        self.llm = LLM(
            model=model.path,
            revision=model.revision,
            tokenizer_revision=model.revision,
            dtype=asked.dtype,
            max_model_len=max_model_len(model, settings),
            limit_mm_per_prompt={"image": 0},
            hf_overrides=class_override(model),
            enable_lora=True,
            max_lora_rank=max_lora_rank,
            **({"gpu_memory_utilization": 0.5} if asked.gpu else cpu_settings(model, settings)),
        )
        self.end_id = vlm.tokenizer.convert_tokens_to_ids(vlm.family.end_token)
        self.sampling = SamplingParams(
            temperature=0.0, max_tokens=asked.max_new_tokens, stop_token_ids=[self.end_id], detokenize=False, logprobs=N_LOGPROBS
        )
        self.asked, self.vlm, self.batches, self.max_lora_rank = asked, vlm, batches, max_lora_rank
        self.n_requests = 0
        self.before = self.answers(None)

    def proof(self, folder: Path, adapter: Adapter) -> VllmProof:
        """Raises ValueError where the adapter does in vLLM nothing, or something else than here."""
        after, ours = self.answers(folder), self.ours(adapter)
        change = max(map(least_change, self.before, after))
        difference = max(
            abs(logprob - of_ours.logprobs[i]) for one, of_ours in zip(after, ours, strict=True) for i, logprob in one.logprobs.items()
        )
        n_equal = sum(one.token_ids == of_ours.token_ids for one, of_ours in zip(after, ours, strict=True))
        check_effect(change=change, difference=difference, n_unequal=len(ours) - n_equal, dtype=self.asked.dtype)
        asked = zip(self.asked.questions, self.before, after, ours, strict=True)
        return VllmProof(
            answers=[
                VllmAnswers(question=question, before=self.text(a), after=self.text(b), ours=self.text(c)) for question, a, b, c in asked
            ],
            n_equal=n_equal,
            logprob_change=change,
            logprob_difference=difference,
            dtype=self.asked.dtype,
            max_lora_rank=self.max_lora_rank,
            versions={name: version(name) for name in ("torch", "transformers")} | {"vllm": self.version()},
        )

    def answers(self, folder: Path | None) -> list[Greedy]:
        """Of vLLM, to all questions, with the adapter in `folder`. Raises ValueError where vLLM does not load it."""
        from vllm.lora.request import LoRARequest

        prompts: list[Any] = [{"prompt_token_ids": batch.input_ids[0].tolist()} for batch in self.batches]
        request = None
        if folder is not None:
            self.n_requests += 1  # vLLM knows adapters by number
            request = LoRARequest(f"adapter-{self.n_requests}", self.n_requests, str(folder))
        try:
            outputs = self.llm.generate(prompts, self.sampling, lora_request=request, use_tqdm=False)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"vLLM does not load it: {str(error).splitlines()[0]}") from error
        first = [one.outputs[0] for one in outputs]
        return [Greedy(list(one.token_ids), {i: at.logprob for i, at in one.logprobs[0].items()}) for one in first]

    def ours(self, adapter: Adapter) -> list[Greedy]:
        """The same under `adapted`, in fp32."""
        decoding = Decoding(max_new_tokens=self.asked.max_new_tokens)
        answers = []
        with torch.no_grad(), adapted(self.vlm.layers, adapter.lora):
            for batch in self.batches:
                logits = self.vlm.model(input_ids=batch.input_ids, attention_mask=batch.mask).logits[0, -1]
                token_ids = [int(step) for step in self.vlm.token_steps(batch, decoding=decoding)]
                answers.append(Greedy(token_ids, dict(enumerate(logits.log_softmax(-1).tolist()))))
        return answers

    def text(self, answer: Greedy) -> str:
        return self.vlm.tokenizer.decode(answer.token_ids, skip_special_tokens=True).strip()

    def version(self) -> str:
        import vllm

        return str(vllm.__version__)


def least_change(before: Greedy, after: Greedy) -> float:
    """By how much a first token's log-probability changed at least: one that was not among the likeliest was below all of them."""
    lowest = min(before.logprobs.values())
    return max(abs(logprob - before.logprobs.get(i, min(lowest, logprob))) for i, logprob in after.logprobs.items())


def check_effect(*, change: float, difference: float, n_unequal: int, dtype: str) -> None:
    """Raises ValueError where vLLM answers as if the adapter were not there, or not as we do."""
    if not change > LEAST_CHANGE[dtype]:
        raise ValueError(
            f"no effect in vLLM: log-probabilities of the first tokens change by {change:.2g} at most, expected more than "
            f"{LEAST_CHANGE[dtype]:g}; it serves the plain model, as it does where an adapter's keys match nothing"
        )
    if dtype == "float32" and n_unequal:
        raise ValueError(
            f"{n_unequal} greedy answers in vLLM are not ours (log-probabilities of the first tokens differ by {difference:.2g})"
        )
    if not difference < change / 2:
        raise ValueError(f"in vLLM, log-probabilities of the first tokens change by {change:.2g} and are {difference:.2g} off ours")


def least_rank(r: int, ranks: Sequence[int]) -> int:
    """The smallest of vLLM's LoRA sizes that takes rank `r`. Raises ValueError for a rank above all of them."""
    if r > max(ranks):
        raise ValueError(
            f"the adapter has rank {r}, this vLLM takes at most {max(ranks)}; compress it first (export --rank {max(ranks)} -o)"
        )
    return min(rank for rank in ranks if rank >= r)


def _ranks() -> tuple[int, ...]:
    """LoRA sizes of the vLLM that is installed."""
    from vllm.config.lora import MaxLoRARanks

    return get_args(MaxLoRARanks)


def main() -> None:
    """Reads what is asked from standard input, writes what was found to the file named."""
    asked = Asked.model_validate_json(sys.stdin.buffer.read())
    try:
        told = serve(asked)
    except ValueError as error:
        told = Told(proofs=[None] * len(asked.adapters), errors=[str(error)])
    Path(sys.argv[1]).write_text(told.model_dump_json())


if __name__ == "__main__":
    main()
