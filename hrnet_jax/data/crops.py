"""From the box of a person to the picture of a fixed size that a pose network gets, and back.

The pixels are OpenCV's, the geometry that of mmpose 1.3.2 and of the official code, or of UDP
(Huang et al., CVPR 2020), which measures between the centres of the outermost pixels. Boxes are
(x, y, width, height), points (x, y), both in pixels; sizes of pictures are (height, width).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hrnet_jax.errors import UserError

Size = tuple[int, int]


def checked_box(box: Any) -> np.ndarray:
    """float64 (4,); raises UserError unless it is four numbers with a size above 0."""
    try:
        found = np.asarray(box, np.float64)
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.shape != (4,) or not np.isfinite(found).all() or found[2:].min() <= 0:
        raise UserError(f'a box is [x, y, width, height] with a size above 0, not {box!r:.80}')
    return found


def between(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """float64 (4,): the box between two corners. The data sets of mmpose have these in float32, and
    the differences of such numbers are exact here."""
    low, high = (corner.astype(np.float32).astype(np.float64) for corner in (low, high))
    return np.concatenate([low, high - low])


def centre_and_scale(
    box: Any, size: Size, padding: float, dtype: Any = np.float64
) -> tuple[np.ndarray, np.ndarray]:
    """The centre of the box, and its (width, height), padded and made to the ratio of `size`.

    Args:
        dtype: in which they are computed: float32 for the box `between` corners of a data set, as
            mmpose does; a few pixels depend on it.
    """
    box = np.asarray(box, np.float64)
    corner = box[:2] + box[2:]
    centre, scale = (corner + box[:2]) * 0.5, corner - box[:2]
    centre, scale = centre.astype(dtype), scale.astype(dtype)
    return centre, to_ratio(scale * padding, size)


def to_ratio(scale: np.ndarray, size: Size) -> np.ndarray:
    """(width, height), of which one is enlarged to the ratio of `size`."""
    width, height = scale
    ratio = size[1] / size[0]
    if width > height * ratio:
        height = width / ratio
    else:
        width = height * ratio
    return np.array([width, height], scale.dtype)


def affine(
    centre: np.ndarray, scale: np.ndarray, size: Size, udp: bool, degrees: float = 0.0
) -> np.ndarray:
    """The matrix (2, 3) from the picture to the crop.

    Args:
        centre, scale: see `centre_and_scale`.
        size: of the crop.
        udp: the geometry of UDP.
        degrees: by which what is around the centre is turned.
    """
    import cv2

    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    to = np.array(size[::-1], scale.dtype)
    if udp:
        zoom, turn = (to - 1) / scale, np.array([[cos, -sin], [sin, cos]], scale.dtype)
        shift = zoom * (scale / 2 - (turn * centre).sum(-1))
        return np.column_stack([turn * zoom[:, None], shift]).astype(np.float32)
    left = np.array([cos, sin]) * (scale[0] * -0.5)
    here = _corners(centre, centre + left)
    there = _corners(to * 0.5, to * 0.5 + [to[0] * -0.5, 0])
    return cv2.getAffineTransform(here, there)


def _corners(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float32 (3, 2): both, and the point that makes a right angle at b."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    along = a - b
    return np.stack([a, b, b + np.array([-along[1], along[0]], np.float32)])


def cut(image: np.ndarray, matrix: np.ndarray, size: Size) -> np.ndarray:
    """uint8 (H, W, 3) -> (*size, 3), black where the image has nothing."""
    import cv2

    return cv2.warpAffine(image, matrix, size[::-1], flags=cv2.INTER_LINEAR)


def placed(keypoints: np.ndarray, centre: np.ndarray, scale: np.ndarray, size: Size) -> np.ndarray:
    """Keypoints (..., 2) of a crop of `size` -> in the picture, float64."""
    return keypoints / np.array(size[::-1], np.float64) * scale + centre - scale / 2
