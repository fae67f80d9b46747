"""JPEG bytes and back."""

import io

import numpy as np
import pytest
from PIL import Image

from video2lora.jpeg import from_jpegs, to_jpeg


def picture(*, height_px: int = 23, width_px: int = 37) -> np.ndarray:
    """Smooth, red on the left, green at the bottom: JPEG keeps it."""
    y, x = np.mgrid[:height_px, :width_px]
    return np.stack([255 - 6 * x, 9 * y, np.full_like(x, 40)], -1).astype(np.uint8)


def test_what_was_written_is_read() -> None:
    images = np.stack([picture(), picture()[::-1]])
    read = from_jpegs([to_jpeg(Image.fromarray(image), quality=95) for image in images])
    assert read.shape == (2, 23, 37, 3) and read.dtype == np.uint8
    assert np.abs(read.astype(int) - images).mean() < 2


def test_colours_keep_their_full_resolution() -> None:
    stripes = np.zeros((16, 16, 3), dtype=np.uint8)
    stripes[:, ::2, 0], stripes[:, 1::2, 2] = 255, 255  # one pixel wide: at half resolution they would be purple
    read = from_jpegs([to_jpeg(Image.fromarray(stripes), quality=95)])[0]
    assert read[:, ::2, 0].min() > 200 and read[:, ::2, 2].max() < 55


@pytest.mark.parametrize("damaged", [b"", b"no picture", to_jpeg(Image.fromarray(picture()), quality=95)[:200]])
def test_a_damaged_frame_is_named(damaged: bytes) -> None:
    whole = to_jpeg(Image.fromarray(picture()), quality=95)
    with pytest.raises(ValueError, match="frame 1: "):
        from_jpegs([whole, damaged])


def test_none_and_frames_of_two_sizes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="need at least one array"):
        from_jpegs([])
    with pytest.raises(ValueError, match="same shape"):
        from_jpegs([to_jpeg(Image.fromarray(picture(width_px=width_px)), quality=95) for width_px in (31, 37)])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    huge = io.BytesIO()
    Image.fromarray(picture()).save(huge, format="JPEG")
    with pytest.raises(ValueError, match=r"frame 0: .*decompression bomb"):
        from_jpegs([huge.getvalue()])
