"""SmolVLM2 at its real sizes with random weights, and a tokenizer that counts as the real one does: to measure without a download.

Sizes are those of the published configs (Hub, revisions of the recipes smolvlm2_*): transformers' class makes of them 256,484,928,
507,482,304 and 2,246,784,880 parameters, the published counts. Weights are drawn at 0.02 around 0, so a model takes the time and the
memory of the real one, its hidden states stay finite, and its answers mean nothing.

The real tokenizer is not ours to ship. The made one has its special tokens at their real ids and every piece of the video prompt as the
real one cuts it, so a video has the real number of tokens; of other texts, words it does not know cost a token a byte. `folder` takes a
real one.

Command  python -m benchmarks.models 500m -o DIR   a model folder that `load_vlm`, vLLM and every recipe's `vlm.model` take.
Cost     500m: 7 s of a core, 1 GB on disk (bfloat16).
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.utils import logging

from video2lora.pretrained import without_cudnn_attention

WEIGHT_STD = 0.02  # transformers' own initializer_range
SEED = 0
RECORD = "random_vlm.json"  # in a folder we wrote: which model, so that only our own is taken for done
N_WORDS, N_TOKENS = 49_152, 49_280  # ids of text, and with the special tokens behind them
PAD, START, END_OF_TEXT, END_OF_UTTERANCE, IMAGE = "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<end_of_utterance>", "<image>"
SPECIAL_TOKENS = (  # ids 49,152 to 49,279
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
    "<fake_token_around_image>",
    IMAGE,
    *(f"<|reserved_special_token_{number}|>" for number in range(88)),
    END_OF_UTTERANCE,
)
SPACE = "Ġ"  # a byte-level vocabulary's space

# Each one token of the real tokenizer after a space, or cut as said: all words of the video prompt, and such as questions are made of.
WORDS = """
User You you are provided the following series of frames from a video Frame MM SS H Internalize|Internal,ize later caption
Assistant|Ass,istant captioning|caption,ing one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand and day days
What Which Where When Why Who How Is Are Does Do Describe Tell Answer Give Count The A In On Of It There
what which where when why who how is do does did was were be been being has have had can could will would should not no yes
an this that these those it its he she they his her their there here in on at by for with about into over under between after before
during while until then first last next end beginning start again and or but if as than more most less least many much all any each every
some other another same different long short only also up down left right front back inside outside near
video videos clip scene scenes image picture camera shot view background foreground color colour shape size number person people man
woman boy girl child children dog cat car bike ball food table chair room house street road tree water sky hand head face
happens happening happen happened shows show shown see seen seems look looks doing done does made make making moves move moving going
go goes using used use wearing holding playing talking walking running sitting standing eating cooking looking taking
describe answer question sentence word words briefly detail details main object objects event events action actions
"""


@dataclass(frozen=True)
class Size:
    """What differs between the three models. Every text head is 64 wide; widths are of hidden states, then of the MLP."""

    hub_name: str
    n_layers: int
    d_vlm: int
    d_mlp: int
    n_heads: int
    n_kv_heads: int
    rope_theta: float
    n_vision_layers: int
    d_vision: int
    d_vision_mlp: int
    n_vision_heads: int
    image_px: int
    patch_px: int
    scale_factor: int  # of the pixel shuffle, along one edge

    @property
    def n_image_tokens(self) -> int:
        """Of a frame."""
        return (self.image_px // self.patch_px // self.scale_factor) ** 2


_SMALL_VISION: dict[str, Any] = {
    "n_vision_layers": 12, "d_vision": 768, "d_vision_mlp": 3072, "n_vision_heads": 12, "image_px": 512, "patch_px": 16, "scale_factor": 4,
}  # fmt: skip
SIZES = {
    "256m": Size(
        "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        n_layers=30, d_vlm=576, d_mlp=1536, n_heads=9, n_kv_heads=3, rope_theta=100_000.0, **_SMALL_VISION,
    ),
    "500m": Size(
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        n_layers=32, d_vlm=960, d_mlp=2560, n_heads=15, n_kv_heads=5, rope_theta=100_000.0, **_SMALL_VISION,
    ),
    "2b": Size(
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        n_layers=24, d_vlm=2048, d_mlp=8192, n_heads=32, n_kv_heads=32, rope_theta=130_000.0,
        n_vision_layers=27, d_vision=1152, d_vision_mlp=4304, n_vision_heads=16, image_px=384, patch_px=14, scale_factor=3,
    ),
}  # fmt: skip


def random_vlm(
    size: str, *, dtype: torch.dtype = torch.bfloat16, device: str = "cpu", folder: str | Path | None = None
) -> tuple[SmolVLMForConditionalGeneration, PreTrainedTokenizerBase]:
    """The model in evaluation mode and a tokenizer: the one in `folder` if given, else the made one.

    The same weights every time on the same kind of device and for the same dtype; on `meta`, shapes alone. Raises ValueError for a size
    we do not know, or a folder without a tokenizer.
    """
    if size not in SIZES:
        raise ValueError(f"size: got {size!r}, expected one of {', '.join(SIZES)}")
    with torch.device("meta"):
        model = SmolVLMForConditionalGeneration(config_of(SIZES[size]))
    # Of the real models' generation_config.json; the end of an answer is no model's own matter here, but vLLM reads it.
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=N_TOKENS - 1, pad_token_id=2)
    model.to(dtype).eval().requires_grad_(False)
    model.config.dtype = dtype
    if torch.device(device).type != "meta":
        model.to_empty(device=device)
        without_cudnn_attention(device)
        draw_weights(model)
        text = model.model.text_model
        with torch.device(device):  # its frequencies are no parameters: computed again, in fp32
            text.rotary_emb = type(text.rotary_emb)(config=text.config)
    return model, made_tokenizer() if folder is None else real_tokenizer(folder)


def config_of(size: Size) -> SmolVLMConfig:
    """As the Hub has it, `pad_token_id` out of the vocabulary included: who pads by the config is to find out here."""
    return SmolVLMConfig(
        image_token_id=N_WORDS + SPECIAL_TOKENS.index(IMAGE),
        pad_token_id=128_002,
        scale_factor=size.scale_factor,
        tie_word_embeddings=False,
        use_cache=False,
        architectures=["SmolVLMForConditionalGeneration"],
        vision_config={
            "hidden_size": size.d_vision,
            "intermediate_size": size.d_vision_mlp,
            "num_hidden_layers": size.n_vision_layers,
            "num_attention_heads": size.n_vision_heads,
            "image_size": size.image_px,
            "patch_size": size.patch_px,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": N_TOKENS,
            "hidden_size": size.d_vlm,
            "intermediate_size": size.d_mlp,
            "num_hidden_layers": size.n_layers,
            "num_attention_heads": size.n_heads,
            "num_key_value_heads": size.n_kv_heads,
            "head_dim": 64,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": size.rope_theta},
            "pad_token_id": 2,
            "tie_word_embeddings": False,
        },
    )


@torch.no_grad()
def draw_weights(model: nn.Module) -> None:
    """Matrices and tables at WEIGHT_STD around 0, scales of norms at 1, biases at 0, where the model is and in its dtype."""
    generator: torch.Generator | None = None
    for name, parameter in model.named_parameters():
        generator = generator or torch.Generator(parameter.device).manual_seed(SEED)
        if parameter.ndim > 1:
            parameter.normal_(0.0, WEIGHT_STD, generator=generator)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def made_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, digits one by one, with our WORDS; ids that are no word of ours are made words, so that any answer decodes to text."""
    vocabulary = {token: at for at, token in enumerate((END_OF_TEXT, START, PAD, *sorted(pre_tokenizers.ByteLevel.alphabet())))}
    merges: list[tuple[str, str]] = []
    for entry in WORDS.split():
        word, _, cut = entry.partition("|")
        pieces = cut.split(",") if cut else [word]
        for spaced in ((SPACE + pieces[0], *pieces[1:]), pieces):
            for piece in spaced:
                vocabulary.setdefault(piece, len(vocabulary))
                if len(spaced) > 1:  # a word of several tokens is put together letter by letter; others are looked up whole
                    merges += [pair for pair in _spelling(piece, vocabulary) if pair not in merges]
    for piece in ("\u010a\u010a", SPACE + "["):  # a blank line; the bracket before [H:MM:SS]
        vocabulary.setdefault(piece, len(vocabulary))
    for at in range(len(vocabulary), N_WORDS):
        vocabulary[f"{SPACE}w{at}"] = at
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (END_OF_TEXT, START, PAD, *SPECIAL_TOKENS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END_OF_UTTERANCE,
        pad_token=PAD,
        unk_token=END_OF_TEXT,
        model_max_length=8192,
        padding_side="left",
    )


def real_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """From a local folder. Raises ValueError if it holds none, or that of another model."""
    if not (Path(folder) / "tokenizer.json").is_file():
        raise ValueError(f"folder: got {str(folder)!r}, expected a folder with SmolVLM2's tokenizer.json")
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    expected = N_WORDS + SPECIAL_TOKENS.index(IMAGE)
    if (got := tokenizer.convert_tokens_to_ids(IMAGE)) != expected:
        raise ValueError(f"folder: the tokenizer in {str(folder)!r} has {IMAGE} at {got}, expected SmolVLM2's, which has it at {expected}")
    return tokenizer


def write_random_vlm(
    size: str, folder: str | Path, *, dtype: torch.dtype = torch.bfloat16, tokenizer_folder: str | Path | None = None
) -> Path:
    """A model folder, whole or not at all; one that this very call wrote before is left as it is.

    Raises ValueError if something else is there, OSError where it cannot be written.
    """
    folder = Path(folder)
    record = {"size": size, "dtype": str(dtype), "seed": SEED, "tokenizer": "made" if tokenizer_folder is None else str(tokenizer_folder)}
    if folder.is_dir() and any(folder.iterdir()):
        if _read_record(folder) == record:
            return folder
        raise ValueError(f"{folder}: holds something else than a random {size} in {dtype}; name a new folder")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file, expected a new folder's name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        model, tokenizer = random_vlm(size, dtype=dtype, folder=tokenizer_folder)
        save_file(model.state_dict(), unfinished / "model.safetensors", metadata={"format": "pt"})
        for part in (model.config, model.generation_config, tokenizer):
            part.save_pretrained(unfinished)
        for name, value in (*processor_files(SIZES[size]).items(), (RECORD, record)):
            (unfinished / name).write_text(json.dumps(value, indent=2) + "\n")
        for path, mode in ((unfinished, 0o755), (unfinished / "model.safetensors", 0o644)):  # both are made for their owner alone
            path.chmod(mode)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return folder


def processor_files(size: Size) -> dict[str, Any]:
    """Preprocessing as the Hub has it, but under the names of Idefics3, which does the same to single frames: SmolVLM's own processor
    asks for torchvision, and vLLM then serves the folder on a CPU too."""
    edge = {"longest_edge": size.image_px}
    image = {
        **dict.fromkeys(("do_convert_rgb", "do_image_splitting", "do_normalize", "do_pad", "do_rescale", "do_resize"), True),
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "Idefics3ImageProcessorPil",
        "max_image_size": edge,
        "processor_class": "Idefics3Processor",
        "resample": 1,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": 4 * size.image_px},
        "video_sampling": {"fps": 1, "max_frames": 64, "video_size": edge},
    }
    return {
        "preprocessor_config.json": image,
        "processor_config.json": {"processor_class": "Idefics3Processor", "image_seq_len": size.n_image_tokens, "image_processor": image},
    }


def main() -> None:
    """python -m benchmarks.models SIZE -o DIR"""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description="A SmolVLM2 of real size, with random weights.")
    parser.add_argument("size", choices=tuple(SIZES))
    parser.add_argument("-o", "--output", required=True, type=Path, help="a new folder")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the weights on disk")
    parser.add_argument("--tokenizer", type=Path, help="a folder with the real tokenizer.json")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    started = time.monotonic()
    print(f"{arguments.size}: drawing weights", file=sys.stderr, flush=True)
    try:
        dtype = getattr(torch, arguments.dtype)
        folder = write_random_vlm(arguments.size, arguments.output, dtype=dtype, tokenizer_folder=arguments.tokenizer)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    n_bytes = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: a random {arguments.size}, {n_bytes / 1e9:.2f} GB, in {time.monotonic() - started:.1f} s")


def _spelling(word: str, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The merges that put a word together from its left, whose parts it adds to the vocabulary."""
    for end in range(2, len(word)):
        vocabulary.setdefault(word[:end], len(vocabulary))
    return [(word[:at], word[at]) for at in range(1, len(word))]


def _read_record(folder: Path) -> Any:
    try:
        return json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    main()
