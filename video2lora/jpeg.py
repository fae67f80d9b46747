"""Frames as JPEG bytes: how tables keep them. Written by the `frames` stage; read by the teacher and by training."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def to_jpeg(image: Image.Image, *, quality: int) -> bytes:
    """With colours at full resolution (4:4:4): small frames lose too much at half."""
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=quality, subsampling=0)
    return file.getvalue()


def from_jpegs(jpegs: Sequence[bytes]) -> UInt8[np.ndarray, "n_frames height width 3"]:
    """The frames of one clip. Raises ValueError for none, and for one that is no JPEG, breaks off, is huge, or differs in size."""
    images: list[np.ndarray] = []
    for number, data in enumerate(jpegs):
        try:
            images.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
        except Exception as error:  # Pillow raises many kinds for damaged files, and each becomes a reject
            raise ValueError(f"frame {number}: {error}") from error
    return np.stack(images)
