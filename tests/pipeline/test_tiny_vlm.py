"""Training of the small VLM on a handful of clips of each level: batches as they are described, and losses that fall."""

import shutil
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest

from infra.errors import BadInputError
from pipeline.made_world import scene, texts
from pipeline.tiny_labels import clip_facts, frame_facts, n_slots
from pipeline.tiny_vlm import N_FRAMES, batches, corpus, draw_clip, draw_clips, run_verify, vision_batches
from video2lora.pretrained import vlm_path
from video2lora.tiny.build import IMAGE_SIZE_PX, build_model, build_tokenizer
from video2lora.tiny.heads import ClipHeads, FrameHeads
from video2lora.tiny.train import TrainConfig, teach_answers, teach_vision

CONFIG = TrainConfig(vision_steps=14, vision_clips=5, answer_steps=14, answer_clips=5, single=0.5)


def test_clips_are_the_same_for_any_number_of_processes() -> None:
    one, two = (draw_clips(1, seed=3, n=7, split="train", n_processes=n) for n in (1, 2))
    assert [clip.scene for clip in one] == [clip.scene for clip in two]
    assert all(np.array_equal(a.frames, b.frames) and a.labels.facts == b.labels.facts for a, b in zip(one, two, strict=True))


def test_half_of_what_is_asked_is_on_motion_and_answers_stay_out_of_prompts() -> None:
    clips = [draw_clip(2, 0, i, "train") for i in range(9)]
    (batch,) = islice(batches(clips, n_clips=5, n_asked=6, seed=1), 1)
    assert batch.frames.shape == (5, N_FRAMES, IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3) and len(batch.texts) == 2
    by_question = {q.question: q.family for i in range(99) for clip in clips for q in texts.questions(clip.scene, np.random.default_rng(i))}
    for asked in batch.asked:
        families = [by_question[prompt] for prompt, _ in asked[:-1]]
        assert len(families) == 6 and len(texts.TEMPORAL & set(families)) == 3


def test_vision_begins_with_single_objects() -> None:
    clips = [draw_clip(2, 0, i, "train") for i in range(60)]
    counts = [batch.labels["count"] for batch in islice(vision_batches(clips, CONFIG), CONFIG.vision_steps)]
    assert not np.concatenate(counts[:7]).any() and np.concatenate(counts[7:]).any()


@pytest.mark.parametrize("level", scene.LEVELS)
def test_a_few_clips_are_learnt_by_heart(level: int) -> None:
    clips = [draw_clip(level, 0, i, "train") for i in range(5)]
    tokenizer = build_tokenizer(islice(corpus(level), 4000))
    model = build_model(tokenizer, seed=0)
    frame_facts_, clip_facts_ = ({name: len(values) for name, values in facts(level).items()} for facts in (frame_facts, clip_facts))
    frame_heads = FrameHeads(d_text=128, d_vision=96, n_classes=frame_facts_, n_slots=n_slots(level), n_patch_classes=4)
    clip_heads = ClipHeads(128, n_classes=clip_facts_, n_slots=n_slots(level))
    losses: dict[str, list[float]] = {"vision": [], "answers": []}
    (batch,) = islice(batches(clips, n_clips=5, n_asked=4, seed=0), 1)
    teach_vision(model, frame_heads, cycle([batch]), CONFIG, report=lambda _, loss: losses["vision"].append(loss))
    heads = (frame_heads, clip_heads)
    teach_answers(model, tokenizer, heads, cycle([batch]), CONFIG, report=lambda _, loss: losses["answers"].append(loss))
    for part, values in losses.items():
        assert np.isfinite(values).all() and np.mean(values[-3:]) < 0.7 * np.mean(values[:3]), (part, values)


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"level": 4}'])
def test_a_model_without_a_true_record_is_not_measured(tmp_path: Path, record: str) -> None:
    folder = Path(shutil.copytree(vlm_path("tiny"), tmp_path / "vlm"))
    (folder / "training.json").write_text(record)
    with pytest.raises(BadInputError, match=r"training\.json: "):
        run_verify(str(folder), n_clips=1)
