"""A clip becomes an adapter and answers: what ships works, and nothing of the video but the adapter reaches the answer."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from infra.config import WorldSettings
from pipeline.made_world.clips import clips_of, encode
from video2lora.api import (
    Decoding,
    Internalizer,
    ask,
    ask_all,
    internalize,
    internalize_batch,
    load,
    load_adapter,
    read_frames,
    save_adapter,
    stream,
)
from video2lora.lora_algebra import Lora, concatenate, slice_rank
from video2lora.sampling import Frames, Sampling
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
    """Every call into the decoder while it answers is recorded: the embeddings of the question's ids, and no key or value from before."""
    adapter = internalize(clips[0][0], using=using)
    model = using.vlm.model
    seen: list[str] = []
    given: list[torch.Tensor] = []
    lengths: list[int] = []

    def count_kept(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        given.append(kwargs["inputs_embeds"])
        lengths.append(int(kwargs["past_key_values"].get_seq_length()))

    hooks = [
        model.model.vision_model.register_forward_pre_hook(lambda *_: seen.append("vision tower")),
        model.model.connector.register_forward_pre_hook(lambda *_: seen.append("connector")),
        model.model.text_model.register_forward_pre_hook(count_kept, with_kwargs=True),
    ]
    question = "Which way does the object move?"
    try:
        answer = ask(adapter, question, vlm=using.vlm, decoding=Decoding(max_new_tokens=5))
    finally:
        for hook in hooks:
            hook.remove()
    assert given and not seen
    ids = using.vlm.question_batch([question]).input_ids
    assert not (ids == model.config.image_token_id).any()
    torch.testing.assert_close(given[0], model.get_input_embeddings()(ids), rtol=0, atol=0)
    assert lengths[0] == 0, "keys and values were there before the first token"
    assert lengths == [0] + [ids.shape[1] + i for i in range(len(lengths) - 1)]
    assert all(one.shape[1] == 1 for one in given[1:])
    assert answer.n_visual_tokens == 0
    assert answer.n_input_tokens == ids.shape[1]


def test_the_adapter_alone_decides_the_answer(using: Internalizer, clips: list[tuple[Path, list[Any]]]) -> None:
    """An adapter whose factors are zero answers as the blind model, whatever its provenance says."""
    adapter = internalize(clips[0][0], using=using)
    empty = type(adapter)(lora=adapter.lora.map(torch.zeros_like), provenance=adapter.provenance)
    question = "What colour is the object?"
    blind = using.vlm.generate(using.vlm.question_batch([question]), max_new_tokens=5)[0]
    assert ask(empty, question, vlm=using.vlm, decoding=Decoding(max_new_tokens=5)).text == blind.text
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


def test_a_long_video_is_the_sum_of_its_chunks(using: Internalizer, clips: list[tuple[Path, list[Any]]]) -> None:
    """11 frames in chunks of at most 4: three, each internalized alone, in rank; the static adapter once, at the end."""
    frames = read_frames(clips[2][0], using=using.sampled(Sampling(n_frames=11)))
    assert len(frames.images) == 11
    whole = internalize(frames, using=using, frames_per_chunk=4)
    parts = [(0, 3), (3, 7), (7, 11)]
    alone = []
    for start, stop in parts:
        part = type(frames)(frames.images[start:stop], frames.timestamps_s[start:stop], frames.duration_s)
        alone.append(slice_rank(internalize(part, using=using).lora, 0, using.hypernetwork.config.r))
    with torch.no_grad():
        expected = using.hypernetwork.with_static(concatenate(alone))
    assert whole.lora.r == 4 * using.hypernetwork.config.r
    assert (whole.provenance["n_frames"], whole.provenance["n_chunks"], whole.provenance["frames_per_chunk"]) == (11, 3, 4)
    for name in expected.lora_a:
        torch.testing.assert_close(whole.lora.lora_a[name], expected.lora_a[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(whole.lora.lora_b[name], expected.lora_b[name], rtol=1e-4, atol=1e-5)


def test_1024_frames_take_the_memory_of_one_chunk(using: Internalizer, clips: list[tuple[Path, list[Any]]]) -> None:
    """1,024 frames are 1,024 frames, though the clip has fewer; no part of the models ever sees more than a chunk of 64."""
    frames = read_frames(clips[0][0], using=using.sampled(Sampling(n_frames=1024)))
    assert len(frames.images) == 1024
    n_read: list[int] = []
    model, hypernetwork = using.vlm.model.model, using.hypernetwork
    hooks = [
        model.vision_model.register_forward_pre_hook(lambda _m, _a, kwargs: n_read.append(len(kwargs["pixel_values"])), with_kwargs=True),
        model.text_model.register_forward_pre_hook(
            lambda _m, _a, kwargs: n_read.append(kwargs["inputs_embeds"].shape[1] // 10), with_kwargs=True
        ),
        hypernetwork.register_forward_pre_hook(lambda _m, args: n_read.append(args[0].shape[2] // 10)),
    ]  # a frame is 10 tokens and more with its time
    try:
        adapter = internalize(frames, using=using, frames_per_chunk=64, max_rank=64)
    finally:
        for hook in hooks:
            hook.remove()
    n_tokens_of_chunk = using.vlm.video_batch([Frames(frames.images[:64], frames.timestamps_s[:64], 1.0)], [""]).input_ids.shape[1]
    assert max(n_read) <= max(64, (n_tokens_of_chunk + 20) // 10)
    assert (adapter.provenance["n_frames"], adapter.provenance["n_chunks"], adapter.lora.r) == (1024, 16, 64)


def test_videos_of_different_lengths_in_one_batch_are_as_alone(using: Internalizer, clips: list[tuple[Path, list[Any]]]) -> None:
    videos = [read_frames(path, using=using.sampled(Sampling(n_frames=n))) for (path, _), n in zip(clips, (3, 11, 5), strict=False)]
    together = internalize_batch(videos, using=using, video_ids=["a", "b", "c"], frames_per_chunk=4)
    for video, adapter in zip(videos, together, strict=True):
        alone = internalize(video, using=using, frames_per_chunk=4)
        assert (adapter.lora.r, adapter.provenance["n_chunks"]) == (alone.lora.r, alone.provenance["n_chunks"])
        torch.testing.assert_close(adapter.lora.lora_b["down_proj"], alone.lora.lora_b["down_proj"], rtol=1e-3, atol=1e-4)


def test_a_max_rank_compresses_the_chunks_and_keeps_the_static_adapter(using: Internalizer, clips: list[tuple[Path, list[Any]]]) -> None:
    frames = read_frames(clips[0][0], using=using.sampled(Sampling(n_frames=9)))
    r = using.hypernetwork.config.r
    adapter = internalize(frames, using=using, frames_per_chunk=2, max_rank=2 * r)
    assert adapter.lora.r == 2 * r
    assert 0 < adapter.provenance["compression_error"] < 1
    static = using.hypernetwork.static_lora()
    torch.testing.assert_close(adapter.lora.lora_a["down_proj"][:, :, -r:], static.lora_a["down_proj"].detach())
    with pytest.raises(ValueError, match=f"max_rank: got {r}, expected more than {r}"):
        internalize(frames, using=using, max_rank=r)


def test_a_folder_of_pictures_is_a_video(using: Internalizer, tmp_path: Path) -> None:
    """In the natural order of their names; the same pictures in a video file's place."""
    levels = [10, 60, 110, 160, 210]
    for number, level in enumerate(levels):
        Image.new("RGB", (67, 53), (level, level, level)).save(tmp_path / f"frame{number + 8}.png")  # 8, 9, 10, 11, 12
    frames = read_frames(tmp_path, using=using.sampled(Sampling(n_frames=5)), fps=2.0)
    assert frames.images[:, 0, 0, 0].tolist() == levels
    assert frames.timestamps_s.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0] and frames.duration_s == 2.5
    assert len(internalize(tmp_path, using=using).provenance["video_id"]) == 20
    (tmp_path / "frame10.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"frame10\.png"):
        read_frames(tmp_path, using=using.sampled(Sampling(n_frames=5)))
    with pytest.raises(ValueError, match="holds no pictures"):
        internalize(tmp_path.parent / tmp_path.name / "..", using=using)


def test_several_questions_with_the_video_in_context_and_blind(using: Internalizer, clips: list[tuple[Path, list[Any]]]) -> None:
    path, questions = clips[3]
    asked = [one.question for one in questions]
    frames = read_frames(path, using=using)
    base = ask_all(None, asked, vlm=using.vlm, video=frames)
    assert all(one.n_visual_tokens == 4 * using.vlm.family.n_image_tokens for one in base)
    assert sum(exact_match(a.text, [q.answer]) for a, q in zip(base, questions, strict=True)) >= len(questions) - 1
    blind = ask_all(None, asked, vlm=using.vlm)
    assert [one.n_visual_tokens for one in blind] == [0] * len(asked)
    adapter = internalize(frames, using=using)
    assert [a.text for a in ask_all(adapter, asked, vlm=using.vlm)] == [ask(adapter, one, vlm=using.vlm).text for one in asked]


def test_a_stream_is_the_answer_in_pieces_and_leaves_the_model_alone_between_them(
    using: Internalizer, clips: list[tuple[Path, list[Any]]]
) -> None:
    adapter = internalize(clips[4][0], using=using)
    question = "Summarize the video."
    pieces = []
    for piece in stream(adapter, question, vlm=using.vlm):
        pieces.append(piece)
        assert not any(module._forward_hooks for module in using.vlm.model.modules())
    assert len(pieces) > 2
    assert "".join(pieces) == ask(adapter, question, vlm=using.vlm).text


def test_a_question_longer_than_the_context_is_refused(using: Internalizer, clips: list[tuple[Path, list[Any]]]) -> None:
    adapter = internalize(clips[0][0], using=using)
    with pytest.raises(ValueError, match=r"a prompt of \d+ tokens and 64 tokens of answer: the VLM 'tiny' has 1024 positions"):
        ask(adapter, "object " * 1100, vlm=using.vlm)
    with pytest.raises(ValueError, match=r"a prompt of \d+ tokens: the VLM 'tiny' has 1024 positions"):
        internalize(read_frames(clips[0][0], using=using.sampled(Sampling(n_frames=127))), using=using, frames_per_chunk=127)


def test_the_method_needs_no_cluster() -> None:
    code = (
        "import sys; import video2lora.api; "
        "loaded = {'ray', 'vllm', 'deepspeed', 'mlflow', 's3fs'} & set(sys.modules); sys.exit(f'imported {loaded}' if loaded else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
