"""A folder of pictures: which of its files are pictures, which way up, and what their numbers mean."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from video2lora.frames_folder import pictures_in, read_folder
from video2lora.sampling import Sampling
from video2lora.video_file import RejectReason, VideoDecodeError

SAMPLING = Sampling(n_frames=1)


def pixels_of(folder: Path) -> np.ndarray:
    (image,) = read_folder(folder, SAMPLING, longest_edge_px=64).images
    return image


def test_a_picture_stands_as_its_camera_was_held(tmp_path: Path) -> None:
    """Orientation 6: the sensor's upper edge is the picture's right one."""
    sensor = np.zeros((32, 64, 3), np.uint8)
    sensor[:, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(sensor).save(tmp_path / "1.png", exif=exif)
    image = pixels_of(tmp_path)
    assert image.shape == (64, 32, 3) and image[:30].min() == 255 and image[-30:].max() == 0


def test_greys_of_16_bits_keep_their_shades(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (29, 1))).save(tmp_path / "1.png")
    image = pixels_of(tmp_path)
    assert image[3, :, 0].tolist() == (ramp >> 8).tolist() and (image[..., 0] == image[..., 2]).all()


def test_numbers_of_no_known_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((29, 31), np.float32)).save(tmp_path / "1.tif")
    with pytest.raises(VideoDecodeError, match="mode F") as error:
        pixels_of(tmp_path)
    assert error.value.reason is RejectReason.DECODE_ERROR


def test_hidden_files_are_no_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (31, 29)).save(tmp_path / "1.png")
    (tmp_path / "._1.png").write_bytes(b"what macOS keeps beside it")
    assert [path.name for path in pictures_in(tmp_path)] == ["1.png"]
