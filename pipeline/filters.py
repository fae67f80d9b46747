"""Sampled pictures of a clip -> why it is not worth a teacher's time, or nothing. Every filter is off unless its limit is set.

Three numbers of the frames that the model would see: the share that is black, the share of neighbours that are practically
the same picture, and how much neighbours differ on average. They are taken after decoding, so a refused clip costs its
decode and nothing later; no second decode looks at the frames between. So "frozen" says that a clip stands still at the
sampled times. A clip of fewer frames than are sampled shows some twice: its neighbours are the same because they are one.

Luma is PIL's "L" (0.299 R + 0.587 G + 0.114 B, ITU-R BT.601, 0 to 255); what is black and what is frozen are ffmpeg's
`blackdetect` and `freezedetect`, but for sampled frames. Measured with 12 of them: in 63 encodes of a still picture neighbours
differ by 0.0022 at most, but the first pair by up to 0.009 (the first frame is the coarsest), so a still may have a frozen
share of 0.9; in 21 real clips they differ by 0.004 at least (0.0018 in the dark), on average by 0.008 to 0.21. Limits that
tell the two apart: max_frozen_share 0.8, min_motion 0.003; max_black_share 0.5 is a matter of taste.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from infra.config import FilterSettings
from video2lora.video import Frames

BLACK_LUMA = 25  # of 255; blackdetect's pixel_black_th = 0.10
BLACK_PIXEL_SHARE = 0.98  # of a picture's pixels, for it to be black; blackdetect's picture_black_ratio_th
FROZEN_DIFFERENCE = 0.002  # of 1, mean absolute, up to which two pictures are the same. Ours: twice freezedetect's noise, see above


@dataclass(frozen=True)
class Measures:
    """`differences`: mean absolute luma difference of each frame and the next, 0 to 1; empty for one frame."""

    black_share: float
    differences: Float64[np.ndarray, " n_pairs"]

    @property
    def frozen_share(self) -> float:
        """Of the pairs of neighbours, those that are practically equal; 0 where there is no pair: one frame says nothing of motion."""
        return float(np.mean(self.differences <= FROZEN_DIFFERENCE)) if len(self.differences) else 0.0

    @property
    def motion(self) -> float | None:
        """Mean of the differences, 0 to 1; None where there is no pair. A cut counts as motion."""
        return float(np.mean(self.differences)) if len(self.differences) else None


def luma(images: UInt8[np.ndarray, "n_frames height width 3"]) -> UInt8[np.ndarray, "n_frames height width"]:
    return np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])


def measure(frames: Frames) -> Measures:
    """About 5 ms of a core for 12 frames of 384 px."""
    pictures = luma(frames.images)
    black_pixels = np.mean(pictures <= BLACK_LUMA, axis=(1, 2))
    differences = [np.mean(np.maximum(one, two) - np.minimum(one, two)) / 255 for one, two in pairwise(pictures)]
    return Measures(float(np.mean(black_pixels >= BLACK_PIXEL_SHARE)), np.array(differences, np.float64))


def refused(frames: Frames, settings: FilterSettings) -> tuple[str, str] | None:
    """Reason and detail (what was measured, and the limit) of the first filter that refuses. Black comes first: it is frozen too."""
    if (settings.max_black_share, settings.max_frozen_share, settings.min_motion) == (None, None, None):
        return None
    found = measure(frames)
    n_frames, n_pairs = len(frames.images), len(found.differences)
    if settings.max_black_share is not None and found.black_share > settings.max_black_share:
        return "black", f"{found.black_share:.3f} of {n_frames} frames are black, expected <= {settings.max_black_share:g}"
    if settings.max_frozen_share is not None and found.frozen_share > settings.max_frozen_share:
        return "frozen", f"{found.frozen_share:.3f} of {n_pairs} frames equal the next, expected <= {settings.max_frozen_share:g}"
    if settings.min_motion is not None and found.motion is not None and found.motion < settings.min_motion:
        return "static", f"frames differ from the next by {found.motion:.5f} on average, expected >= {settings.min_motion:g}"
    return None
