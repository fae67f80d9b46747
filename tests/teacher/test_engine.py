"""What is settled before an engine starts: options, frames, room. `test_vllm_engine` and `test_endpoint` run the engines themselves."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.config import TeacherSettings, Where
from infra.errors import BadInputError, StageFailedError
from teacher.capacity import check_room, engine_count
from teacher.engine import Clip, EngineOptions, engine_options, spoken
from teacher.models import find_model
from teacher.vllm_engine import squares
from teacher.vllm_settings import engine_environment, llm_arguments
from teacher.write_targets import Plan
from tests.teacher.clips_of_noise import noise_clip, noise_jpeg
from tests.teacher.tiny_llava import save_llava
from video2lora.pixels import squash


def plan(folder: Path, *, n_frames: int = 3, **settings: int) -> Plan:
    teacher = TeacherSettings(model=str(folder), **settings)  # type: ignore[arg-type]
    return Plan(find_model(teacher), teacher, EngineOptions(), n_frames=n_frames)


def test_pictures_are_the_methods_squares_named_by_content() -> None:
    clip = noise_clip("video", ["What?"])
    again = Clip("video", [*clip.jpegs, clip.jpegs[0]], [*clip.timestamps_s, 9.0], 10.0, clip.prompts)
    found = squares(again, 48)
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in clip.jpegs])
    assert np.array_equal(np.stack([np.asarray(image) for image in found.images[:3]]), squash(decoded, 48))
    assert found.image_ids[0] == found.image_ids[3]
    assert len(set(found.image_ids)) == 3
    assert found.words.count("<image>") == 4


def test_damaged_frames_raise() -> None:
    whole = noise_jpeg(np.random.default_rng(0))
    for damaged in (b"", b"no picture", whole[: len(whole) // 2]):
        with pytest.raises(ValueError, match="frame 1: "):
            squares(Clip("video", [whole, damaged], [0.0, 1.0], 2.0, []), 48)


def test_words_of_a_chat_say_when_each_frame_was_seen() -> None:
    assert spoken(Clip("video", [b"", b""], [0.0, 75.5], 80.2, [])) == [
        "You are provided the following series of two frames from a 0:01:20 [H:MM:SS] video.\n\nFrame from 00:00:",
        "Frame from 01:15:",
        "",
    ]


def test_the_environment_says_how_engines_run() -> None:
    assert engine_options(Where()) == EngineOptions()
    on_gpus = engine_options(Where(teacher_gpus=2.0, teacher_max_num_seqs=7, teacher_max_num_batched_tokens=999))
    assert (on_gpus.tensor_parallel, on_gpus.process, on_gpus.max_num_seqs, on_gpus.max_num_batched_tokens) == (2, True, 7, 999)
    assert (engine_options(Where(teacher_gpus=0.5)).tensor_parallel, engine_options(Where(teacher_gpus=0.5)).gpu_share) == (1, 0.5)
    assert engine_options(Where(teacher_engine_process=True)).process
    assert not engine_options(Where(teacher_gpus=1.0, teacher_engine_process=False)).process
    assert engine_options(Where(teacher_gpus=4.0, teacher_tensor_parallel=2)).tensor_parallel == 2
    with pytest.raises(BadInputError, match="teacher_tensor_parallel: got 2, more than the 1 GPUs"):
        engine_options(Where(teacher_gpus=1.0, teacher_tensor_parallel=2))


def test_the_environments_limits_reach_vllm_and_its_process(vlm_folder: Path, tmp_path: Path) -> None:
    settings = TeacherSettings(model=str(vlm_folder))
    model, limits = find_model(settings), EngineOptions(max_num_seqs=7, max_num_batched_tokens=999, tensor_parallel=2, process=True)
    arguments = llm_arguments(model, settings, limits, n_frames=5)
    assert [arguments[name] for name in ("max_num_seqs", "max_num_batched_tokens", "tensor_parallel_size")] == [7, 999, 2]
    assert arguments["limit_mm_per_prompt"] == {"image": 5}
    assert engine_environment(model, limits)["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1"
    assert engine_environment(model, EngineOptions(n_threads=3))["OMP_NUM_THREADS"] == "3"
    assert "max_num_seqs" not in llm_arguments(model, settings, EngineOptions(gpu=True), n_frames=5), "vLLM's own choice on a GPU"
    shares = [llm_arguments(model, settings, engine_options(Where(teacher_gpus=n)), n_frames=5) for n in (0.0, 0.25, 1.0, 2.0)]
    assert [one.get("gpu_memory_utilization") for one in shares] == [None, pytest.approx(0.225), None, None], "the rest is for the others"
    save_llava(tmp_path)
    other = llm_arguments(find_model(TeacherSettings(model=str(tmp_path))), settings, EngineOptions(), n_frames=5)
    assert "hf_overrides" not in other and "mm_processor_kwargs" not in other, "its own processor resizes"


def test_frames_that_fill_the_context_are_refused_with_the_setting(vlm_folder: Path, tmp_path: Path) -> None:
    check_room(plan(vlm_folder, max_tokens=8, max_model_len=20))  # 3 frames of 4 tokens
    with pytest.raises(BadInputError, match=r"teacher\.max_model_len: 3 frames are 12 tokens, and 11 is all"):
        check_room(plan(vlm_folder, max_tokens=9, max_model_len=20))
    save_llava(tmp_path)
    check_room(plan(tmp_path, max_tokens=9, max_model_len=20))  # only its processor knows


def test_as_many_engines_as_there_is_work_and_room_for() -> None:
    many = 1_000_000
    assert engine_count(many, [{"CPU": 2.0}], Where()) == 2
    assert engine_count(many, [{"CPU": 8.0, "GPU": 3.0}, {"CPU": 2.0}], Where(teacher_gpus=1.0)) == 3
    assert engine_count(many, [{"CPU": 8.0, "GPU": 3.0}] * 2, Where(teacher_gpus=2.0)) == 2, "each whole on one node"
    assert engine_count(many, [{"CPU": 8.0, "GPU": 1.0}], Where(teacher_gpus=0.1)) == 8, "as many as it has CPUs for"
    assert engine_count(5, [{"CPU": 8.0}], Where()) == 1
    assert engine_count(5, [{"CPU": 8.0}], Where(teacher_replicas=4)) == 4
    one_gpu = {"CPU": 8.0, "GPU": 1.0}
    for nodes, where in (
        ([{"CPU": 8.0}], Where(teacher_gpus=1.0)),
        ([{"CPU": 2.0}], Where(teacher_replicas=3)),
        ([one_gpu, one_gpu], Where(teacher_gpus=2.0)),
    ):
        with pytest.raises(StageFailedError, match=r"room for \d in the Ray cluster \(.*VIDEO2LORA_TEACHER"):
            engine_count(many, nodes, where)
