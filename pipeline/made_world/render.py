"""Scene, time -> picture. Shapes are drawn by their signed distance, so edges are smooth at any size and need no library.

The frame is square in the scene's units; a clip of another shape stretches it, as a processor's squashing to a square undoes.
It has no border: a shape at one side is continued at the opposite one. Only the pixels near a shape are computed.
"""

from itertools import product

import numpy as np
from jaxtyping import Float, UInt8

from pipeline.made_world.scene import BACKGROUNDS, COLOURS, SIZES, Scene


def draw(scene: Scene, time: float, *, height_px: int, width_px: int) -> UInt8[np.ndarray, "height width 3"]:
    """The picture at a time in [0, 1] of the clip."""
    x = (np.arange(width_px, dtype=np.float32) + 0.5) / width_px
    y = (np.arange(height_px, dtype=np.float32) + 0.5) / height_px
    tint = np.asarray(scene.tint, dtype=np.float32)
    picture = np.empty((height_px, width_px, 3), dtype=np.float32)
    picture[:] = np.asarray(BACKGROUNDS[scene.background], dtype=np.float32) + tint
    edge = 1.0 / min(height_px, width_px)
    for group in scene.groups:
        if not group.is_shown(time):
            continue
        colour = np.asarray(COLOURS[group.colour], dtype=np.float32) + tint
        reach = SIZES[group.size] + edge
        for (x_inside, y_inside), across, down in product(group.centres(time), (-1, 0, 1), (-1, 0, 1)):
            centre_x, centre_y = x_inside + across, y_inside + down
            rows, columns = _near(y, centre_y, reach), _near(x, centre_x, reach)  # nothing of the shape lies outside
            if rows.start == rows.stop or columns.start == columns.stop:
                continue
            off_x, off_y = np.meshgrid(x[columns] - np.float32(centre_x), y[rows] - np.float32(centre_y))
            distance = shape_distance(group.shape, off_x, off_y, SIZES[group.size])
            cover = np.clip(0.5 - distance / edge, 0.0, 1.0)[..., None]
            picture[rows, columns] += cover * (colour - picture[rows, columns])
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _near(places: Float[np.ndarray, " n"], centre: float, reach: float) -> slice:
    """The places within reach of a centre; they are in order."""
    return slice(*np.searchsorted(places, (centre - reach, centre + reach)).tolist())


def shape_distance(
    shape: str, x: Float[np.ndarray, "height width"], y: Float[np.ndarray, "height width"], radius: float
) -> Float[np.ndarray, "height width"]:
    """Signed distance to a shape's edge (negative inside), at offsets from its centre, in frame units."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.88 * radius
    if shape == "triangle":  # points up; flat side at the bottom
        return np.maximum(np.abs(x) * 0.8944 - (y + radius) * 0.4472, y - 0.8 * radius)
    if shape == "cross":
        arm, width = radius, 0.36 * radius
        return np.minimum(np.maximum(np.abs(x) - arm, np.abs(y) - width), np.maximum(np.abs(y) - arm, np.abs(x) - width))
    raise ValueError(f"shape: got {shape!r}, expected circle, square, triangle or cross")
