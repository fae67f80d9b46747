"""Texts around frames and questions, as SmolVLM2 was trained to read them.

With frames: an introduction, a timestamp before each frame, the frame's placeholder tokens, the question. Without: the question alone.
The wording is SmolVLM2's own (transformers `processing_smolvlm.py`); the small VLM uses the same.
Source of the internalization instruction: released Frames2LoRA checkpoints.
"""

from collections.abc import Sequence
from datetime import timedelta

from num2words import num2words

from video2lora.sampling import SAME_INSTANT_S

INTERNALIZE = "Internalize this video for later captioning."

START = "<|im_start|>User: "
INTRO = "You are provided the following series of {count} frames from a {duration} [H:MM:SS] video.\n"
FRAME = "\nFrame from {stamp}:"
OUTRO = "\n\n"
END_OF_UTTERANCE = "<end_of_utterance>"
END_TURN = f"{END_OF_UTTERANCE}\n"
ASSISTANT = f"{END_TURN}Assistant:"
FAKE_IMAGE, GLOBAL_IMAGE, IMAGE = "<fake_token_around_image>", "<global-img>", "<image>"


def frame_placeholder(n_image_tokens: int) -> str:
    """What stands for one untiled frame: its image tokens, wrapped as the processor wraps them."""
    return f"{FAKE_IMAGE}{GLOBAL_IMAGE}{IMAGE * n_image_tokens}{FAKE_IMAGE}"


def video_prefix(timestamps_s: Sequence[float], duration_s: float, *, placeholder: str) -> str:
    """All that precedes the question: introduction, stamped frames, blank line.

    `placeholder` stands for each frame: `frame_placeholder(n)` for a model, a bare `<image>` for a processor that expands it.
    """
    intro = INTRO.format(count=num2words(len(timestamps_s)), duration=timedelta(seconds=_whole_s(duration_s)))
    frames = "".join(FRAME.format(stamp=_stamp(time_s)) + placeholder for time_s in timestamps_s)
    return START + intro + frames + OUTRO


def text_prompt(question: str) -> str:
    """The prompt of a question about no frames at all: what the model reads once the video is in its weights."""
    return START + question + ASSISTANT


def target_text(target: str, *, newline: bool = False) -> str:
    """What the model is to write after a prompt; with `newline`, the chat template's line end too, which nothing stops at."""
    return f" {target}{END_TURN if newline else END_OF_UTTERANCE}"


def _stamp(time_s: float) -> str:
    """MM:SS, with minutes beyond 59 for want of hours: 75:03."""
    minutes, seconds = divmod(_whole_s(time_s), 60)
    return f"{minutes:02d}:{seconds:02d}"


def _whole_s(time_s: float) -> int:
    """Seconds, cut off; a sum of times that lies a rounding error below a whole second is that second."""
    return int(time_s + SAME_INSTANT_S)
