"""Ours beside transformers' own processor on real clips: chosen frames, token ids, pixels.

Command: `.venv/bin/python tests/video2lora/golden/compare_clips.py TOKENIZER.json CLIP...`, TOKENIZER.json being the whole tokenizer of any
SmolVLM2 of the hub. Prints a line per clip and setting, with the largest difference of a pixel value in steps of 1/255, and at the end how
many agree. 1 to 20 s a clip. The processor gets every frame that PyAV decodes and the stream's mean rate; ours opens the file itself.
"""

import sys
from pathlib import Path

import av
import numpy as np
from cases import B2_2, M256, M500, SETTINGS
from oracle import metadata_of, processor_of, read_video

from video2lora import prompts
from video2lora.pixels import squash
from video2lora.sampling import Sampling
from video2lora.video import decode

QUESTION = "What is happening?"
SETTINGS_TRIED = (  # model, at most so many frames, at most so many a second, longest edge (None: the processor's own, 2048 or 1536)
    (M500, 1, 1.0, 384), (M500, 12, 1.0, 384), (M256, 12, 8.0, 512), (B2_2, 12, 1.0, 384), (M500, 64, 30.0, 384), (M500, 2, 1.0, None),
)  # fmt: skip


def all_frames(path: str) -> tuple[list[av.VideoFrame], float]:
    """In libav's own pixel format, and the mean rate."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        return list(container.decode(stream)), float(stream.average_rate)


def compared(path: str, frames: list[av.VideoFrame], rate: float, setting: tuple, tokenizer_file: Path) -> bool:
    model, n_frames, fps, edge_px = setting
    processor = processor_of(model, tokenizer_file=tokenizer_file)
    numbers = processor.video_processor.sample_frames(metadata_of(len(frames), rate), num_frames=n_frames, fps=fps).tolist()
    full = np.stack([frames[number].to_ndarray(format="rgb24") for number in numbers])
    size = {} if edge_px is None else {"size": {"longest_edge": edge_px}}
    ids, pixels = read_video(processor, full, metadata_of(len(frames), rate, numbers), QUESTION, **size)

    edge_px = edge_px or SETTINGS[model]["size"]
    ours = decode(path, Sampling(policy="published", n_frames=n_frames, fps=fps), longest_edge_px=edge_px)
    placeholder = prompts.frame_placeholder(SETTINGS[model]["image_seq_len"])
    text = prompts.video_prefix(list(ours.timestamps_s), ours.duration_s, placeholder=placeholder) + QUESTION + prompts.ASSISTANT
    same_ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    squares = squash(ours.images, SETTINGS[model]["max_image_size"]) / np.float32(127.5) - 1
    off = np.abs(squares - pixels).max() * 255 if squares.shape == pixels.shape else np.inf
    name, size_px = Path(path).name, f"{full.shape[2]}x{full.shape[1]}"
    print(f"{name:18} {size_px:9} {model[9:14]} edge {edge_px:4} frames {len(ours.images):2} of {len(numbers):2}", end=" ")
    print(f"tokens {len(ids):4} {'same ids' if same_ids else 'OTHER IDS'}, pixels off by {off:.5f} / 255", flush=True)
    return bool(same_ids and off <= 1)


def main(tokenizer_file: Path, paths: list[str]) -> None:
    agree = []
    for path in paths:
        frames, rate = all_frames(path)
        agree += [compared(path, frames, rate, setting, tokenizer_file) for setting in SETTINGS_TRIED]
    print(f"{sum(agree)} of {len(agree)} agree")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
