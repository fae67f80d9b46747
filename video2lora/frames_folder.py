"""A folder of pictures as a video: its name by content, its frames by the same sampling as a file's.

Pictures are taken in the natural order of their names (`2.png` before `10.png`), one every 1 / fps s. All must be of one size.
"""

import hashlib
import re
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from video2lora.pixels import fit
from video2lora.sampling import ClipRequest, Frames, Sampling, plan_frames
from video2lora.video_file import RejectReason, VideoDecodeError, check_frame_size

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
PICTURES_PER_S = 1.0  # where nobody says; what SmolVLM2's own processor samples at


def pictures_in(folder: Path) -> list[Path]:
    """Its pictures, in order. Raises VideoDecodeError (no_frames, unreadable)."""
    try:
        found = [path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file() and path.name[0] != "."]
    except OSError as error:
        raise VideoDecodeError(RejectReason.UNREADABLE, str(error)) from error
    if not found:
        raise VideoDecodeError(
            RejectReason.NO_FRAMES, f"{folder} holds no pictures ({', '.join(PICTURE_SUFFIXES)}); for the videos in it, give {folder}/*"
        )
    return sorted(found, key=lambda path: natural(path.name))


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts frame2 before frame10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def folder_id(folder: Path) -> str:
    """SHA-256 of its pictures' content in order, hex. Names do not count beyond the order."""
    total = hashlib.sha256()
    for path in pictures_in(folder):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def read_folder(folder: Path, sampling: Sampling, *, longest_edge_px: int, fps: float = PICTURES_PER_S) -> Frames:
    """The chosen pictures, shrunk as a video's frames are. Raises VideoDecodeError for no pictures, one that is none, or several sizes."""
    if not 0 < fps < float("inf"):
        raise ValueError(f"fps: got {fps}, expected more than 0")
    paths = pictures_in(folder)
    clip = ClipRequest(path=folder, sampling=sampling, longest_edge_px=longest_edge_px, start_s=0.0, end_s=None)
    plan = plan_frames(np.arange(len(paths)) / fps, clip, last_frame_s=1 / fps)
    numbers, place = np.unique(plan.frame_numbers, return_inverse=True)
    images = [_picture(paths[number], longest_edge_px) for number in numbers.tolist()]
    if len(shapes := {image.shape for image in images}) > 1:
        raise VideoDecodeError(RejectReason.DECODE_ERROR, f"{folder}: pictures of several sizes (height, width, 3): {sorted(shapes)}")
    return Frames(images=np.stack(images)[place], timestamps_s=plan.timestamps_s, duration_s=plan.duration_s)


def _picture(path: Path, longest_edge_px: int) -> UInt8[np.ndarray, "height width 3"]:
    try:
        with Image.open(path) as image:
            check_frame_size(*image.size)
            pixels = np.asarray(_eight_bits(ImageOps.exif_transpose(image)).convert("RGB"))
    except VideoDecodeError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise VideoDecodeError(RejectReason.DECODE_ERROR, f"{path}: {error}") from error
    return fit(pixels, longest_edge_px)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Pillow cuts greys of 16 bits off at 255 where it converts them. Raises ValueError for numbers of no known range."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are numbers of 32 bits (mode {image.mode}), expected 8 or 16")
    return image
