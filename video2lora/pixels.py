"""Frames as SmolVLM reads them: resized to a longest edge with their aspect kept (`fit`), then squashed to the model's square.

Both steps are those of transformers' processor (5.19, `SmolVLMVideoProcessor.resize`) on a CPU: Lanczos on uint8, rounded after each step;
small frames are enlarged, and the shorter edge is made even. `fit` belongs to decoding, so tables hold what lies between the two steps.

torch resizes, as it does for the processor, so values are the same to the bit. Pillow's Lanczos is the same filter with other roundings:
after both steps up to 3 of 255 away, and 8 times as slow. (On a GPU the processor takes bicubic instead; frames stay on the CPU here.)
"""

import numpy as np
from jaxtyping import UInt8

LARGEST_EDGE_PX = 4096  # transformers' MAX_IMAGE_SIZE: a longer "longest edge" is cut to this


def fit(image: UInt8[np.ndarray, "_height _width 3"], longest_edge_px: int) -> UInt8[np.ndarray, "_new_height _new_width 3"]:
    """A frame whose longest edge is longest_edge_px, smaller or larger than before; the same pixels where nothing changes."""
    height_px, width_px, _ = image.shape
    return resize(image[None], *fitted_size(height_px, width_px, longest_edge_px=longest_edge_px))[0]


def squash(images: UInt8[np.ndarray, "n_frames _height _width 3"], size_px: int) -> UInt8[np.ndarray, "n_frames size size 3"]:
    """Frames as the model's square, whatever their shape: SmolVLM2 never tiles video frames. The same array where nothing changes."""
    return resize(images, size_px, size_px)


def fitted_size(height_px: int, width_px: int, *, longest_edge_px: int) -> tuple[int, int]:
    """(height, width) after `fit`. The other edge is cut to a whole number, then made even by adding 1 (to a square's too)."""
    edge_px, aspect = min(longest_edge_px, LARGEST_EDGE_PX), width_px / height_px
    other_px = int(edge_px / aspect) if width_px >= height_px else int(edge_px * aspect)
    other_px = max(1, other_px + other_px % 2)
    return (other_px, edge_px) if width_px >= height_px else (edge_px, other_px)


def resize(
    images: UInt8[np.ndarray, "n_frames _height _width 3"], height_px: int, width_px: int
) -> UInt8[np.ndarray, "n_frames _new_height _new_width 3"]:
    """Lanczos with antialiasing, whatever the aspect; the same array where nothing changes."""
    if images.shape[1:3] == (height_px, width_px):
        return images
    import torch  # here: 1.3 s and 180 MB, which a process that resizes nothing need not pay

    pixels = torch.from_numpy(np.require(images, requirements=["C", "W"])).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(pixels, size=(height_px, width_px), mode="lanczos", antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous().numpy()
