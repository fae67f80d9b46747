"""Clips whose frames are noise: no two alike, the same each time."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from teacher.engine import Clip
from teacher.prompts import Prompt


def noise_clip(video_id: str, texts: Sequence[str], *, n_frames: int = 3) -> Clip:
    """`texts`: what to ask."""
    rng = np.random.default_rng([ord(letter) for letter in video_id])
    times_s = [0.9 * i for i in range(n_frames)]
    asked = [Prompt(f"ask-{i}", "summary", text) for i, text in enumerate(texts)]
    return Clip(video_id, [noise_jpeg(rng) for _ in times_s], times_s, times_s[-1] + 1.0, asked)


def noise_jpeg(rng: np.random.Generator, *, height: int = 40, width: int = 64) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, format="JPEG", quality=95, subsampling=0)
    return file.getvalue()
