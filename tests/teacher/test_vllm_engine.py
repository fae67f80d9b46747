"""vLLM itself: what it writes against transformers, what passes the vision tower, and what becomes of a block whose engine is killed."""

import io
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from infra.config import TeacherSettings
from teacher.engine import Clip, EngineOptions, Refused, Written, spoken
from teacher.models import find_model
from tests.teacher.clips_of_noise import noise_clip
from tests.teacher.in_vllm import call, write_counting, write_while_killed
from tests.teacher.tiny_llava import save_llava
from video2lora.pretrained import load_vlm
from video2lora.sampling import Frames
from video2lora.vlm import TextBatch

QUESTIONS = ("Summarize the video.", "What shape is shown?", "Which way does the object move?", "How many objects are there?")
LONG, SPELT = "Which way does the object move?" * 20, "What is <image> about?"
N_LOGPROBS = 3

pytestmark = pytest.mark.slow


def images_of(clip: Clip) -> list[Image.Image]:
    return [Image.open(io.BytesIO(jpeg)).convert("RGB") for jpeg in clip.jpegs]


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    """Twelve videos of three frames with four prompts each, one with two bad prompts more; one with a damaged frame."""
    found = [noise_clip(f"video-{i}", QUESTIONS) for i in range(12)]
    found[5] = noise_clip("video-5", [*QUESTIONS[:2], LONG, SPELT, *QUESTIONS[2:]])
    return [*found, replace(noise_clip("damaged", QUESTIONS[:2]), jpegs=[b"no picture"] * 3)]


@pytest.fixture(scope="module")
def smolvlm(vlm_folder: Path, clips: list[Clip]) -> Any:
    """Two engines one after the other in one process: as it is, and with hardly any room, so that prompts of a video do not run at once."""
    settings = TeacherSettings(model=str(vlm_folder), max_tokens=7, max_model_len=160, logprobs=N_LOGPROBS)
    options = EngineOptions()
    tight = replace(options, max_num_seqs=2, max_num_batched_tokens=160)
    return call(
        write_counting, model=find_model(settings), options=options, settings=settings, limits=[options, tight], clips=clips, n_frames=3
    )


def test_each_frame_passes_the_vision_tower_once_however_many_prompts_its_video_has(smolvlm: Any, clips: list[Clip]) -> None:
    n_frames = sum(len(clip.jpegs) for clip in clips if clip.video_id != "damaged")
    assert [n_images for _, n_images, _ in smolvlm] == [n_frames, n_frames]


def test_a_bad_prompt_is_refused_alone(smolvlm: Any, clips: list[Clip]) -> None:
    for results, _, _ in smolvlm:
        refused = {(i, j): one for i, of in enumerate(results) for j, one in enumerate(of) if isinstance(one, Refused)}
        assert {place: one.reason for place, one in refused.items()} == {
            (5, 2): "prompt_too_long",
            (5, 3): "bad_row",
            (12, 0): "teacher_error",
            (12, 1): "teacher_error",
        }
        assert " at 0x" not in refused[12, 0].detail, "the same reject in every run"


def test_texts_and_log_probabilities_are_those_of_transformers(smolvlm: Any, clips: list[Clip], vlm_folder: Path) -> None:
    vlm = load_vlm(str(vlm_folder))
    finishes = set()
    for clip, results in zip(clips[:5], smolvlm[0][0], strict=False):
        video = Frames(np.stack([np.asarray(one) for one in images_of(clip)]), np.array(clip.timestamps_s), clip.duration_s)
        for prompt, written in zip(clip.prompts, results, strict=True):
            batch, frame_tokens = vlm.video_batch([video], [prompt.prompt]), vlm.frame_tokens([video])
            (answer,) = vlm.generate(batch, max_new_tokens=7, frame_tokens=frame_tokens)
            assert (written.text, written.n_prompt_tokens) == (answer.text, answer.n_input_tokens)
            finishes.add(written.finish_reason)
            ids = torch.cat([batch.input_ids, torch.tensor([written.token_ids[:-1]], dtype=torch.int64)], dim=1)
            embeds = vlm.embed(TextBatch(ids, torch.ones_like(ids), torch.arange(ids.shape[1])[None]), frame_tokens)
            with torch.no_grad():
                logits = vlm.model(inputs_embeds=embeds).logits[0, batch.input_ids.shape[1] - 1 :]
            best = logits.float().log_softmax(-1).topk(N_LOGPROBS)
            assert written.n_tokens == len(written.token_ids) == len(logits)
            assert written.top_token_ids == best.indices.flatten().tolist()
            assert written.top_logprobs == pytest.approx(best.values.flatten().tolist(), abs=2e-4)
    assert finishes == {"stop", "length"}


def test_limits_of_the_environment_change_no_text(smolvlm: Any) -> None:
    (roomy, _, _), (tight, _, _) = smolvlm
    assert [[text_of(one) for one in of] for of in roomy] == [[text_of(one) for one in of] for of in tight]


def text_of(result: Written | Refused) -> str:
    return result.text if isinstance(result, Written) else result.reason


def test_a_model_of_another_family_is_asked_through_its_own_chat_template(tmp_path: Path) -> None:
    """LLaVA: transformers' own processor and model are the oracle."""
    save_llava(tmp_path)
    settings = TeacherSettings(model=str(tmp_path), max_tokens=9, max_model_len=400)
    options = EngineOptions()
    asked = [noise_clip(f"video-{i}", [*QUESTIONS, SPELT, LONG * 3]) for i in range(4)]
    model = find_model(settings)
    assert model.smolvlm is None
    ((results, n_images, _),) = call(
        write_counting, model=model, options=options, settings=settings, limits=[options], clips=asked, n_frames=3
    )
    assert n_images == sum(len(clip.jpegs) for clip in asked)
    processor, llava = AutoProcessor.from_pretrained(tmp_path), LlavaForConditionalGeneration.from_pretrained(tmp_path)
    for clip, written in zip(asked, results, strict=True):
        words = spoken(clip)
        assert words[1] == "Frame from 00:00:" and len(words) == 4
        for prompt, one in zip(clip.prompts[:4], written, strict=False):
            text = "".join(f"{before}<image>" for before in words[:-1]) + words[-1] + prompt.prompt
            inputs = processor(text=f"USER: {text}<end_of_utterance>ASSISTANT:", images=images_of(clip), return_tensors="pt")
            with torch.no_grad():
                ids = llava.generate(**inputs, max_new_tokens=9, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            assert one.n_prompt_tokens == inputs["input_ids"].shape[1]
            assert one.text == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert [one.reason for one in written[4:]] == ["bad_row", "prompt_too_long"]


def test_a_killed_engine_is_replaced_and_a_video_that_kills_engines_is_rejected(vlm_folder: Path) -> None:
    """kill -9 of the process that vLLM computes in, while prompts are with it."""
    settings = TeacherSettings(model=str(vlm_folder), max_tokens=400, max_model_len=1024, unfinished="keep")
    clips = [noise_clip(name, QUESTIONS[:n]) for name, n in (("one", 1), ("many", 4), ("two", 2))]
    videos = [{**asdict(clip), "prompts": [asdict(prompt) for prompt in clip.prompts]} for clip in clips]
    told = call(
        write_while_killed, model=find_model(settings), options=EngineOptions(process=True), settings=settings, videos=videos, deadly=4
    )
    assert told["n_once"] == 1
    assert told["once"] == told["calm"] == told["after"]
    rows, rejects = told["always"]
    assert told["n_kills"] == 1 + 2 + 1, "the block twice, then the video on its own"
    calm_rows, calm_rejects = told["calm"]
    deadly, others = ([r for r in rejects if r["key"].startswith("many/") == its] for its in (True, False))
    assert others == [r for r in calm_rejects if not r["key"].startswith("many/")], "of other videos, what there is without a kill"
    assert [(reject["reason"], reject["stage"]) for reject in deadly] == [("teacher_error", "targets")] * 4
    assert all("killed an engine on its own" in reject["detail"] for reject in deadly)
    assert rows == [row for row in calm_rows if row["video_id"] != "many"]
    assert len(calm_rows) + len(calm_rejects) == 7
    assert told["m"].n_starts == 1 + told["n_kills"]
