"""The card of an exported adapter: a README.md that says whose weights these are, how to load them, and what they cannot do.

Front matter is YAML as model hubs read it. All that comes from outside (names, paths, ids) is quoted: as a YAML string, a Markdown code
span or a Python literal, so that no video or model name can add a line, a link or code to the card.
"""

import json
from collections.abc import Mapping
from typing import Any

from video2lora.adapter import Adapter

CARD_FILE = "README.md"
VLLM_LARGEST_RANK = 512  # vLLM 0.32, `MaxLoRARanks`, which has all powers of two from 8 on


def card(adapter: Adapter, *, prompt: str, end_token: str) -> str:
    """Markdown. `prompt` is the VLM's own around the word QUESTION; `end_token` ends an answer."""
    made, lora = adapter.provenance, adapter.lora
    static_r = made.get("static_r")
    parts = "" if static_r is None else f", of which the last {static_r} are the hypernetwork's static adapter, the same for every video"
    facts = {
        "Video": f"{_code(made['video_id'])} (hash of its content)",
        "Frames": f"{_code(made.get('n_frames'))}, in {_code(made.get('n_chunks'))} chunk(s); sampling {_code(made.get('sampling'))}",
        "VLM": f"{_code(made['vlm'])}, revision {_code(made.get('vlm_revision'))}, weights {_code(made.get('vlm_digest'))}",
        "Hypernetwork": f"{_code(made.get('hypernetwork'))}, {_code(made.get('hypernetwork_digest'))}",
        "LoRA": f"rank {lora.r}{parts}; scaling {lora.scaling:g} (lora_alpha is scaling times rank); "
        f"{', '.join(map(_code, sorted(lora.lora_a)))} of {lora.n_layers} layers",
    }
    if "compression_error" in made:
        facts["Compression"] = f"relative error {_code(made['compression_error'])}"
    if "parts" in made:
        facts["Composed of"] = ", ".join(_code(part.get("video_id")) for part in made["parts"])
    return "\n".join(
        [
            "---",
            f"base_model: {yaml_text(made['vlm'])}",
            "library_name: peft",
            "tags:",
            "- lora",
            "- video",
            "- video2lora",
            "---",
            "",
            "# A video as LoRA weights",
            "",
            "One video, read once by a frozen vision-language model and turned into LoRA weights by a hypernetwork",
            "(Video2LoRA, arXiv 2606.04351).",
            "With them the model answers questions about the video from the question's text alone: no frame, no visual token.",
            "",
            *(f"- {name}: {told}" for name, told in facts.items()),
            "",
            *_how_to_load(made, prompt=prompt, end_token=end_token, r=lora.r),
            "",
            "## Limits",
            "",
            "- For the VLM's weights named above and no others; another revision answers wrongly without an error.",
            "- It knows this video alone, and of it what the frames showed; fine detail, text and sound are weak or missing.",
            "- Do not add it to another adapter of the same hypernetwork: both hold the static part. `video2lora` composes them.",
            "- Where its keys match nothing it loads all the same and changes nothing: `proof.json` holds what was seen when it worked.",
            "",
        ]
    )


def yaml_text(value: str) -> str:
    """A double-quoted YAML string on one line. JSON's escapes are YAML's; what neither prints is escaped too."""
    return "".join(_escaped(char) for char in json.dumps(value, ensure_ascii=False))


def _how_to_load(made: Mapping[str, Any], *, prompt: str, end_token: str, r: int) -> list[str]:
    is_tiny = made["vlm"] == "tiny"
    name = 'vlm_path("tiny")' if is_tiny else repr(made["vlm"])
    revision = f", revision={made['vlm_revision']!r}" if made.get("vlm_revision") is not None else ""
    of_vlm = ["from video2lora.pretrained import vlm_path"] if is_tiny else []
    limit = max(8, 1 << (r - 1).bit_length())
    in_vllm = [
        "```python",
        "from vllm import LLM, SamplingParams",
        "from vllm.lora.request import LoRARequest",
        *of_vlm,
        "",
        f"llm = LLM({name}{revision}, enable_lora=True, max_lora_rank={limit})",
        f"end = llm.get_tokenizer().convert_tokens_to_ids({end_token!r})",
        "sampling = SamplingParams(temperature=0.0, max_tokens=64, stop_token_ids=[end])",
        f'answer = llm.generate({prompt!r}, sampling, lora_request=LoRARequest("video", 1, "FOLDER"))[0]',
        "print(answer.outputs[0].text)",
        "```",
    ]
    too_large = [f"vLLM takes ranks up to {VLLM_LARGEST_RANK}, and this adapter has {r}: compress it first."]
    return [
        "## In PEFT",
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForImageTextToText, AutoTokenizer",
        *of_vlm,
        "",
        f"vlm = AutoModelForImageTextToText.from_pretrained({name}{revision})",
        f"tokenizer = AutoTokenizer.from_pretrained({name}{revision})",
        'model = PeftModel.from_pretrained(vlm, "FOLDER")',
        f'inputs = tokenizer({prompt!r}, add_special_tokens=False, return_tensors="pt")',
        f"end = tokenizer.convert_tokens_to_ids({end_token!r})",
        "answer = model.generate(**inputs, max_new_tokens=64, do_sample=False, eos_token_id=end)",
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        "```",
        "",
        "## In vLLM",
        "",
        *(in_vllm if limit <= VLLM_LARGEST_RANK else too_large),
    ]


def _code(value: Any) -> str:
    """A Markdown code span of any JSON value: its fence is longer than any run of backticks in it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = "".join(_escaped(char) for char in text)
    longest = max((len(run) for run in "".join(char if char == "`" else " " for char in text).split()), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest or not text.strip() else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _escaped(char: str) -> str:
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
