"""The mathematics of boxes: places, anchors, deltas, overlap, suppression.

Boxes are (..., 4): x1, y1, x2, y2 in pixels, without a + 1 anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
RATIOS = (0.5, 1.0, 2.0)  # height / width of the anchors of a place
SIDE = 8  # of a square anchor, in strides
LARGEST = float(np.log(1000 / 16))  # of the logarithm by which a side is multiplied
NONE = -np.inf  # the score of what is not there


def places(height: int, width: int, stride: int) -> np.ndarray:
    """float32 (height * width, 2): x and y of the middles of a map's pixels, row by row."""
    y, x = np.mgrid[:height, :width]
    return ((np.stack([x, y], -1).reshape(-1, 2) + 0.5) * stride).astype(np.float32)


def anchors(height: int, width: int, stride: int) -> np.ndarray:
    """float32 (height * width * 3, 4): row by row, at each place those of `RATIOS`."""
    ratios = np.sqrt(np.array(RATIOS))
    half = np.stack([1 / ratios, ratios], -1) * SIDE * stride / 2
    y, x = np.mgrid[:height, :width]
    middle = np.stack([x, y], -1).reshape(-1, 1, 2) * stride
    found = np.concatenate([middle - half, middle + half], -1)
    return found.reshape(-1, 4).astype(np.float32)


def from_distances(places: Array, distances: Array) -> Array:
    """The boxes whose left, upper, right and lower edges are so far from the places (..., 2)."""
    return jnp.concatenate([places - distances[..., :2], places + distances[..., 2:]], -1)


def encode(boxes: Array, targets: Array, stds: Sequence[float] = (1, 1, 1, 1)) -> Array:
    """The deltas (..., 4) that `decode` turns `boxes` into `targets` by."""
    size, wanted = _size(boxes), _size(targets)
    moved = (_middle(targets) - _middle(boxes)) / size
    deltas = jnp.concatenate([moved, jnp.log(wanted / size)], -1)
    return deltas / _like(stds, deltas)


def decode(boxes: Array, deltas: Array, stds: Sequence[float] = (1, 1, 1, 1)) -> Array:
    """The boxes moved by parts of their sizes, and their sides multiplied by an exponential.

    Args:
        boxes, deltas: (..., 4).
        stds: that the deltas are multiplied by.
    """
    deltas = deltas * _like(stds, deltas)
    size = _size(boxes)
    middle = _middle(boxes) + deltas[..., :2] * size
    half = size * jnp.exp(jnp.clip(deltas[..., 2:], -LARGEST, LARGEST)) / 2
    return jnp.concatenate([middle - half, middle + half], -1)


def _like(stds: Sequence[float], deltas: Array) -> np.ndarray:
    return np.asarray(stds, deltas.dtype).reshape((1,) * (deltas.ndim - 1) + (4,))


def clip(boxes: Array, sizes: Array) -> Array:
    """The parts of boxes (N, ..., 4) within images of `sizes` (N, 2), height and width."""
    edges = sizes[..., ::-1].astype(boxes.dtype)
    edges = jnp.concatenate([edges, edges], -1)
    edges = edges.reshape((len(edges), *(1,) * (boxes.ndim - 2), 4))
    return jnp.clip(boxes, 0, edges)


def _size(boxes: Array) -> Array:
    return boxes[..., 2:] - boxes[..., :2]


def _middle(boxes: Array) -> Array:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def real(boxes: Array) -> Array:
    """Which boxes (..., 4) have an inside."""
    return jnp.all(_size(boxes) > 0, -1)


def area(boxes: Array) -> Array:
    return jnp.prod(_size(boxes), -1)


def iou(a: Array, b: Array) -> Array:
    """Intersection over union of boxes (..., 4) that broadcast; 0 where both are empty."""
    least = jnp.maximum(a[..., :2], b[..., :2])
    most = jnp.minimum(a[..., 2:], b[..., 2:])
    shared = jnp.prod(jnp.maximum(most - least, 0), -1)
    union = area(a) + area(b) - shared
    return jnp.where(union > 0, shared / jnp.where(union > 0, union, 1), 0)


def survivors(boxes: Array, there: Array, threshold: float) -> Array:
    """Which boxes suppression leaves: those that no better box that it leaves overlaps by more.

    Each round settles at least the first box that is not settled yet; usually a few rounds do.

    Args:
        boxes: (M, 4), best first; there: bool (M,), which of them count.

    Returns:
        bool (M,).
    """
    overlap = iou(boxes[:, None], boxes[None]) > threshold
    before = jnp.tri(len(boxes), k=-1, dtype=bool)  # [i, j]: j is better than i
    against = overlap & before

    def cond(state: tuple[Array, Array]) -> Array:
        return jnp.any(state[0] != state[1])

    def body(state: tuple[Array, Array]) -> tuple[Array, Array]:
        keep = state[1]
        return keep, there & ~jnp.any(against & keep[None], 1)

    first = there & ~jnp.any(against & there[None], 1)
    return lax.while_loop(cond, body, (there, first))[1]


def suppress(
    boxes: Array, scores: Array, groups: Array, threshold: float, most: int
) -> tuple[Array, Array]:
    """The best boxes that suppression leaves, best first; of equal scores the first.

    Args:
        boxes: (M, 4).
        scores: (M,); `NONE` for a box that does not count.
        groups: int (M,); only boxes of one group suppress each other: those that overlap by more
            than `threshold` with a better one that stays.
        most: how many are wanted.

    Returns:
        int32 (most,), their numbers, and bool (most,), which are real.
    """
    if not len(boxes):
        return jnp.zeros(most, jnp.int32), jnp.zeros(most, bool)
    numbers = jnp.arange(len(boxes), dtype=jnp.int32)

    def step(left: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        best = jnp.argmax(left).astype(jnp.int32)
        near = iou(boxes[best][None], boxes) > threshold
        gone = near & (groups == groups[best]) | (numbers == best)
        return jnp.where(gone, NONE, left), (best, left[best] > NONE)

    return lax.scan(step, scores, None, most)[1]
