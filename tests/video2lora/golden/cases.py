"""Inputs of the golden values: prompts by the numbers of their frames, clips by formula, lengths and rates of real clips."""

from dataclasses import dataclass

import numpy as np

MAX_IDS = 6100  # kept of a prompt: 64 frames whole, 1,024 frames in part
GRID = 9  # sampled rows and columns of a picture in processor.json

# What the hub's preprocessor_config.json of each model says and a video's preprocessing reads, and the tokens per frame.
SETTINGS = {
    "SmolVLM2-256M-Video-Instruct": {"max_image_size": 512, "size": 2048, "video_size": 512, "image_seq_len": 64},
    "SmolVLM2-500M-Video-Instruct": {"max_image_size": 512, "size": 2048, "video_size": 512, "image_seq_len": 64},
    "SmolVLM2-2.2B-Instruct": {"max_image_size": 384, "size": 1536, "video_size": 384, "image_seq_len": 81},
}
M256, M500, B2_2 = SETTINGS


@dataclass(frozen=True)
class Prompt:
    """A question about these frames of a clip of n_shown frames at `fps` a second."""

    model: str
    frame_numbers: tuple[int, ...]
    n_shown: int
    fps: float
    question: str


@dataclass(frozen=True)
class Picture:
    """Frames of `clip`, resized to a longest edge (None: what the processor takes if nobody says) and squashed for a model."""

    model: str
    height_px: int
    width_px: int
    longest_edge_px: int | None


def spread(n_frames: int, n_shown: int) -> tuple[int, ...]:
    return tuple(np.linspace(0, n_shown - 1, n_frames, dtype=int).tolist())


_WHAT, _INTERNALIZE = "What is happening?", "Internalize this video for later captioning."
PROMPTS = (
    Prompt(M500, spread(12, 119), 119, 25.0, _WHAT),  # 4.76 s
    Prompt(M500, (0,), 97, 30.0, _WHAT),
    Prompt(M500, spread(64, 111761), 111761, 30000 / 1001, _WHAT),  # over an hour, stamps beyond 59 minutes
    Prompt(M500, tuple(range(0, 24 * 12, 24)), 24 * 12, 24.0, _INTERNALIZE),  # whole seconds
    Prompt(M256, spread(12, 2**20), 2**20, 10.0, _INTERNALIZE),  # over a day
    Prompt(B2_2, (19,), 20, 20.0, _INTERNALIZE),
    Prompt(B2_2, spread(12, 331), 331, 23.976, _WHAT),
    Prompt(B2_2, spread(64, 6007), 6007, 59.94, _WHAT),
    Prompt(M500, spread(1024, 30011), 30011, 30.0, _WHAT),
)

PICTURES = (
    Picture(M500, 360, 640, 384),
    Picture(M500, 272, 640, 512),
    Picture(M500, 144, 176, 384),  # enlarged
    Picture(M500, 101, 37, None),  # 2048: enlarged, then shrunk
    Picture(B2_2, 576, 720, 384),
    Picture(B2_2, 211, 157, 384),
    Picture(B2_2, 89, 89, 101),  # odd: 102 x 101 between the two steps
)

# (frames, frames a second) of ../shared/clips, of long and of awkward clips; durations that end on a half second are rounded to even.
CLIPS = (
    (16, 25.0), (26, 25.0), (47, 30.0), (68, 15.0), (109, 30.0), (120, 30.0), (132, 25.0), (190, 25.0), (240, 24.0), (243, 30.0),
    (247, 24.0), (250, 25.0), (255, 25.0), (280, 20.0), (289, 30.0), (1189, 30.0),
    (1, 30.0), (2, 1.0), (75, 30.0), (105, 30.0), (350, 25.0), (351, 25.0), (361, 25.0), (1000, 23.976), (1201, 59.94),
    (4000, 30000 / 1001), (3601, 60.0), (107892, 29.97),
)  # fmt: skip
SAMPLINGS = ((1, 1.0), (12, 1.0), (12, 0.5), (64, 1.0))  # at most so many, at most so many a second


def clip(picture: Picture, *, n_frames: int = 2) -> np.ndarray:
    """RGB (n_frames, height, width, 3): slopes, fine stripes and hard edges, which every filter renders in its own way."""
    t, y, x, c = np.ogrid[:n_frames, : picture.height_px, : picture.width_px, :3]
    slopes = (3 * x + 2 * y + 17 * c + 29 * t) % 512
    stripes = 64 * ((x * (c + 1) + 2 * y + 5 * t) % 7 < 2)
    boxes = 255 * (((x + 11 * t) // 23 + y // 19 + c) % 5 == 0)
    return np.where(boxes > 0, boxes, np.clip(np.abs(slopes - 256) - stripes, 0, 255)).astype(np.uint8)


def grid(pixels: np.ndarray) -> np.ndarray:
    """GRID x GRID sampled pixels of each frame."""
    rows, columns = (np.linspace(0, edge - 1, GRID, dtype=int) for edge in pixels.shape[1:3])
    return pixels[:, rows[:, None], columns]
