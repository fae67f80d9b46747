"""A LLaVA of random weights: a family that is no SmolVLM, which vLLM serves on a CPU without torchvision through transformers' class."""

import json
from pathlib import Path

from transformers import LlavaConfig, LlavaForConditionalGeneration

from video2lora.tiny.build import build_tokenizer, draw_weights

SIZE_PX, PATCH_PX = 56, 14
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def save_llava(folder: Path) -> None:
    tokenizer = build_tokenizer(["One red circle moves left.", "What shape is shown?"] * 9, vocab_size=400)
    tokenizer.chat_template = CHAT_TEMPLATE
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        image_token_index=image_id,
        image_seq_length=(SIZE_PX // PATCH_PX) ** 2,
        tie_word_embeddings=False,
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": SIZE_PX,
            "patch_size": PATCH_PX,
            "projection_dim": 16,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": (len(tokenizer) + 63) // 64 * 64,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 1024,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "tie_word_embeddings": False,
        },
    )
    model = LlavaForConditionalGeneration(config)
    draw_weights(model, seed=3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    images = {
        "crop_size": {"height": SIZE_PX, "width": SIZE_PX},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "CLIPImageProcessorPil",
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": SIZE_PX},
    }
    processor = {
        "image_processor": images,
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": PATCH_PX,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": "default",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps({**images, "processor_class": "LlavaProcessor"}))
    (folder / "processor_config.json").write_text(json.dumps(processor))
