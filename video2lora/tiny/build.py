"""Config, tokenizer, processor files and first weights of the small VLM.

The architecture is transformers' SmolVLM as it stands, made small: SigLIP-like tower 3 x 96 on 64-px frames in 8-px patches, pixel
shuffle to 4 tokens a frame, Llama 4 x 128. The tokenizer is a byte-level BPE: words of the made world are single tokens, any other text
still encodes. The fixed strings of SmolVLM2's video prompt are single tokens too, so that a clip of four frames costs about 50.

Weights are drawn at 1 / sqrt(fan-in): with transformers' default of 0.02 a model this narrow does not learn (method notes, section 8).
"""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMForConditionalGeneration

from video2lora import prompts

IMAGE_SIZE_PX, PATCH_PX, SCALE_FACTOR = 64, 8, 4
N_IMAGE_TOKENS = (IMAGE_SIZE_PX // PATCH_PX // SCALE_FACTOR) ** 2
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", prompts.GLOBAL_IMAGE, prompts.FAKE_IMAGE, prompts.IMAGE, prompts.END_OF_UTTERANCE,
)  # fmt: skip
PROMPT_PIECES = (
    "You are provided the following series of", " frames from a 0:00:", " [H:MM:SS] video.\n", "\nFrame from 00:", "\nAssistant:",
    "User:", "\n\n", prompts.INTERNALIZE,
)  # fmt: skip
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}{{ ': ' }}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% elif line['type'] == 'video' %}{{ '<video>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def build_tokenizer(texts: Iterable[str], *, vocab_size: int = 768) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on `texts`, with SmolVLM2's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(PROMPT_PIECES),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in PROMPT_PIECES])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token=prompts.END_OF_UTTERANCE,
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=[prompts.FAKE_IMAGE, prompts.IMAGE, prompts.GLOBAL_IMAGE],
        model_max_length=1024,
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> SmolVLMForConditionalGeneration:
    """The small VLM with first weights, fp32."""
    config = SmolVLMConfig(
        image_token_id=tokenizer.convert_tokens_to_ids(prompts.IMAGE),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        scale_factor=SCALE_FACTOR,
        tie_word_embeddings=False,
        vision_config={
            "hidden_size": 96,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE_PX,
            "patch_size": PATCH_PX,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": (len(tokenizer) + 63) // 64 * 64,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 32,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "tie_word_embeddings": False,
        },
    )
    model = SmolVLMForConditionalGeneration(config)
    draw_weights(model, seed=seed)
    with torch.no_grad():  # below the patches' own size, so that what a patch shows is not drowned by where it is
        model.model.vision_model.embeddings.position_embedding.weight.mul_(0.2)
    return model


def draw_weights(model: nn.Module, *, seed: int) -> None:
    """Draw every matrix at 1 / sqrt(fan-in); norms keep ones, biases zeros."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5, generator=generator)


def save_vlm(model: SmolVLMForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A folder that transformers' Auto classes and vLLM load offline."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor = {
        "do_convert_rgb": True,
        "do_image_splitting": False,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "max_image_size": {"longest_edge": IMAGE_SIZE_PX},
        "size": {"longest_edge": IMAGE_SIZE_PX},
        "resample": 1,
        "rescale_factor": 1 / 255,
        "image_processor_type": "Idefics3ImageProcessorPil",
    }
    _write_json(folder / "preprocessor_config.json", image_processor | {"processor_class": "Idefics3Processor"})
    _write_json(
        folder / "processor_config.json",
        {"processor_class": "Idefics3Processor", "image_seq_len": N_IMAGE_TOKENS, "image_processor": image_processor},
    )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
