"""transformers' own SmolVLM processor, set up as the hub's files of each model do it. For the scripts beside it, never in a test's process.

torchvision comes from .venv/oracle (`make setup`): built for CUDA, it imports beside a CPU torch once two of its operators are defined.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

ORACLE = Path(sys.prefix) / "oracle"
if not (ORACLE / "torchvision").is_dir():
    raise SystemExit(f"no torchvision in {ORACLE}, which transformers' SmolVLM video processor needs: run `make setup`")
sys.path.append(str(ORACLE))
if torch.version.cuda is None:
    operators = torch.library.Library("torchvision", "DEF")
    operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from cases import SETTINGS  # noqa: E402
from transformers import PreTrainedTokenizerFast, SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor  # noqa: E402
from transformers.video_utils import VideoMetadata  # noqa: E402

TOKENIZER_FILE = Path(__file__).parent / "tokenizer.json"


def processor_of(model: str, *, tokenizer_file: Path = TOKENIZER_FILE) -> SmolVLMProcessor:
    settings = SETTINGS[model]
    video_processor = SmolVLMVideoProcessor(
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        resample=1,  # LANCZOS
        size={"longest_edge": settings["size"]},
        max_image_size={"longest_edge": settings["max_image_size"]},
        video_sampling={"fps": 1, "max_frames": 64, "video_size": {"longest_edge": settings["video_size"]}},
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file))
    return SmolVLMProcessor(SmolVLMImageProcessor(), tokenizer, video_processor, image_seq_len=settings["image_seq_len"])


def metadata_of(n_shown: int, fps: float, frame_numbers: list[int] | None = None) -> VideoMetadata:
    """Of a clip of n_shown frames; fps of the clip."""
    return VideoMetadata(total_num_frames=n_shown, fps=fps, duration=n_shown / fps, frames_indices=frame_numbers)


def read_video(
    processor: SmolVLMProcessor, frames: np.ndarray, metadata: VideoMetadata, question: str, **settings: Any
) -> tuple[list[int], np.ndarray]:
    """Token ids and pixel values (n_frames, height, width, 3) of a question about a video."""
    turn = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(turn, add_generation_prompt=True, processor_kwargs={"num_frames": len(frames)})
    settings = {"do_sample_frames": False, "return_tensors": "pt", "input_data_format": "channels_last"} | settings
    inputs = processor(text=text, videos=[[frames]], video_metadata=[[metadata]], **settings)
    return inputs["input_ids"][0].tolist(), inputs["pixel_values"][0].permute(0, 2, 3, 1).numpy()
