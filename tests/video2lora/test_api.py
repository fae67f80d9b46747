"""A clip becomes an adapter and answers: what ships works, and nothing of the video but the adapter reaches the answer."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.config import WorldSettings
from pipeline.made_world.clips import clips_of, encode
from video2lora.api import Internalizer, ask, internalize, load, load_adapter, save_adapter
from video2lora.lora import Lora
from video2lora.scoring import exact_match


@pytest.fixture(scope="module")
def using() -> Internalizer:
    return load("tiny")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, list[Any]]]:
    """Test clips of another seed than any recipe's, with their questions."""
    folder = tmp_path_factory.mktemp("clips")
    made = []
    for clip in clips_of(WorldSettings(level=1, seed=71, n_train=1, n_validation=1, n_test=6)):
        if clip.split == "test":
            path = folder / clip.uri.rsplit("/", 1)[-1]
            path.write_bytes(encode(clip))
            made.append((path, clip.questions()))
    return made


def test_what_ships_answers_about_clips_it_never_saw(using: Internalizer, clips: list[tuple[Path, list[Any]]]) -> None:
    """54 questions; guessing is right on 0.35 of them, so 0.75 cannot come from guessing (and another clip's adapter fails it)."""
    adapters = [internalize(path, using=using) for path, _ in clips]

    def share_right(shift: int) -> float:
        right = [
            exact_match(ask(adapters[(i + shift) % len(adapters)], one.question, vlm=using.vlm).text, [one.answer])
            for i, (_, questions) in enumerate(clips)
            for one in questions
        ]
        return sum(right) / len(right)

    assert share_right(0) > 0.75
    assert share_right(1) < 0.65


def test_nothing_of_the_video_but_the_adapter_reaches_the_answer(using: Internalizer, clips: list[tuple[Path, list[Any]]]) -> None:
    """Every call into the model while it answers is recorded: text ids alone, no pixels, no keys or values from before."""
    adapter = internalize(clips[0][0], using=using)
    model = using.vlm.model
    calls: list[dict[str, Any]] = []
    seen: list[str] = []
    hooks = [
        model.register_forward_pre_hook(lambda _module, _args, kwargs: calls.append(dict(kwargs)), with_kwargs=True),
        model.model.vision_model.register_forward_pre_hook(lambda *_: seen.append("vision tower")),
        model.model.connector.register_forward_pre_hook(lambda *_: seen.append("connector")),
    ]
    lengths = []

    def count_kept(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        lengths.append(0 if cache is None else int(cache.get_seq_length()))

    hooks.append(model.model.text_model.register_forward_pre_hook(count_kept, with_kwargs=True))
    try:
        answer = ask(adapter, "Which way does the object move?", vlm=using.vlm, max_new_tokens=5)
    finally:
        for hook in hooks:
            hook.remove()
    assert calls and not seen
    image_token = model.config.image_token_id
    for call in calls:
        assert call.get("pixel_values") is None and call.get("image_hidden_states") is None and call.get("inputs_embeds") is None
        assert not (call["input_ids"] == image_token).any()
    assert lengths[0] == 0, "keys and values were there before the first token"
    assert lengths == [0] + [calls[0]["input_ids"].shape[1] + i for i in range(len(lengths) - 1)]
    assert answer.n_visual_tokens == 0
    assert answer.n_input_tokens == calls[0]["input_ids"].shape[1]


def test_the_adapter_alone_decides_the_answer(using: Internalizer, clips: list[tuple[Path, list[Any]]]) -> None:
    """An adapter whose factors are zero answers as the blind model, whatever its provenance says."""
    adapter = internalize(clips[0][0], using=using)
    empty = type(adapter)(lora=adapter.lora.map(torch.zeros_like), provenance=adapter.provenance)
    question = "What colour is the object?"
    blind = using.vlm.generate(using.vlm.question_batch([question]), max_new_tokens=5)[0]
    assert ask(empty, question, vlm=using.vlm, max_new_tokens=5).text == blind.text
    assert isinstance(adapter.lora, Lora)


def test_an_adapter_comes_back_from_disk_the_same(using: Internalizer, clips: list[tuple[Path, list[Any]]], tmp_path: Path) -> None:
    adapter = internalize(clips[1][0], using=using)
    save_adapter(adapter, tmp_path / "adapter")
    again = load_adapter(tmp_path / "adapter")
    assert again.provenance == adapter.provenance
    for one in clips[1][1]:
        assert ask(again, one.question, vlm=using.vlm).text == ask(adapter, one.question, vlm=using.vlm).text


def test_an_adapter_of_another_model_is_refused(using: Internalizer, clips: list[tuple[Path, list[Any]]]) -> None:
    adapter = internalize(clips[0][0], using=using)
    other = type(adapter)(lora=adapter.lora, provenance={**adapter.provenance, "vlm_digest": "0" * 16})
    with pytest.raises(ValueError, match="made for VLM weights"):
        ask(other, "What is it?", vlm=using.vlm)


def test_the_method_needs_no_cluster() -> None:
    code = (
        "import sys; import video2lora.api; "
        "loaded = {'ray', 'vllm', 'deepspeed', 'mlflow', 's3fs'} & set(sys.modules); sys.exit(f'imported {loaded}' if loaded else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
