"""RoIAlign: the maps within boxes, brought to one size.

He et al., "Mask R-CNN", ICCV 2017, section 3, with as many points a bin as the box has pixels there
(mmcv's `sampling_ratio=0`, `aligned=True`).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hrnet_jax.heads.faster_rcnn import BINS

Array = jax.Array
Maps = tuple[Array, ...]
STRIDES = (4, 8, 16, 32)
_FINEST = 56  # from twice this side on, a box is read from the second map
_AT_ONCE = 128  # boxes that are computed together


def levels(boxes: Array) -> Array:
    """int32 (...): which map each box (..., 4) is read from."""
    side = jnp.sqrt(jnp.prod(boxes[..., 2:] - boxes[..., :2], -1))
    level = jnp.floor(jnp.log2(side / _FINEST + 1e-6))
    return jnp.clip(level, 0, len(STRIDES) - 1).astype(jnp.int32)


def roi_align(pyramid: Sequence[Array], boxes: Array) -> Array:
    """The regions of boxes; the gradient is that of the maps alone.

    Args:
        pyramid: maps (N, h, w, C) of `STRIDES`; more are not looked at.
        boxes: (N, R, 4).

    Returns:
        (N, R, 7, 7, C).
    """
    return _aligned(tuple(pyramid[: len(STRIDES)]), lax.stop_gradient(boxes))


@jax.custom_vjp
def _aligned(maps: Maps, boxes: Array) -> Array:
    # Matrix products are twenty times the operations, and what accelerators are made for.
    return lax.platform_dependent(maps, boxes, cpu=by_points, default=by_products)


def _forward(maps: Maps, boxes: Array) -> tuple[Array, tuple[Maps, Array]]:
    return _aligned(maps, boxes), (maps, boxes)


def _backward(kept: tuple[Maps, Array], gradient: Array) -> tuple[Maps, Array]:
    maps, boxes = kept
    _, pull = jax.vjp(lambda maps: by_products(maps, boxes), maps)
    return *pull(gradient), jnp.zeros_like(boxes)


_aligned.defvjp(_forward, _backward)


def by_points(maps: Maps, boxes: Array) -> Array:
    """Point after point of each bin, a box at a time."""
    return jax.vmap(_by_points)(maps, boxes)


def _by_points(maps: Maps, boxes: Array) -> Array:
    pixels = jnp.concatenate([x.reshape((-1, x.shape[-1])) for x in maps])
    sizes = np.array([x.shape[:2] for x in maps], np.int32)
    begins = np.cumsum([0, *sizes.prod(1)[:-1]]).astype(np.int32)
    bins = jnp.arange(BINS, dtype=boxes.dtype)[None]

    def one(box: Array) -> Array:
        level = levels(box)
        size, begin = jnp.asarray(sizes)[level], jnp.asarray(begins)[level]
        edges = box.reshape((2, 2))[:, ::-1] / jnp.asarray(STRIDES, box.dtype)[level]
        low, width = edges[0, :, None] - 0.5, (edges[1] - edges[0])[:, None] / BINS
        points = jnp.maximum(jnp.ceil(width), 1)
        rows, columns = points[:, 0].astype(jnp.int32)
        last = size[:, None] - 1

        def add(number: Array, total: Array) -> Array:
            point = jnp.stack([number // columns, number % columns]).astype(box.dtype)[:, None]
            at = low + bins * width + (point + 0.5) * width / points
            inside = (at >= -1) & (at <= size[:, None].astype(box.dtype))
            at = jnp.clip(at, 0, last.astype(box.dtype))
            first = at.astype(jnp.int32)
            part = at - first.astype(box.dtype)
            places = jnp.stack([first, jnp.minimum(first + 1, last)])  # before and after, y and x
            weights = jnp.where(inside[None], jnp.stack([1 - part, part]), 0)
            place = places[:, None, 0, :, None] * size[1] + places[None, :, 1, None, :] + begin
            weight = weights[:, None, 0, :, None] * weights[None, :, 1, None, :]
            return total + jnp.sum(pixels[place] * weight[..., None].astype(pixels.dtype), (0, 1))

        none = jnp.zeros((BINS, BINS, pixels.shape[-1]), pixels.dtype)
        total = lax.fori_loop(0, rows * columns, add, none)
        return total / (rows * columns).astype(pixels.dtype)

    return lax.map(one, boxes)


def by_products(maps: Maps, boxes: Array) -> Array:
    """By the weights of all rows and of all columns in each bin: two matrix products."""
    return jax.vmap(_by_products)(maps, boxes)


def _by_products(maps: Maps, boxes: Array) -> Array:
    def some(boxes: Array) -> Array:
        level = levels(boxes)
        total = jnp.zeros((len(boxes), BINS, BINS, maps[0].shape[-1]), maps[0].dtype)
        for i, (x, stride) in enumerate(zip(maps, STRIDES, strict=True)):
            here = (level == i)[:, None, None].astype(boxes.dtype)
            rows, columns = (
                (_weights(boxes[:, axis::2] / stride, size) * here).astype(x.dtype)
                for axis, size in ((1, x.shape[0]), (0, x.shape[1]))
            )
            y = jnp.einsum('riy,yxc->rixc', rows, x)
            total = total + jnp.einsum('rjx,rixc->rijc', columns, y)
        return total

    count = len(boxes)
    parts = -(-count // _AT_ONCE)
    if parts <= 1:
        return some(boxes)
    size = -(-count // parts)
    padded = jnp.pad(boxes, ((0, parts * size - count), (0, 0)))
    found = lax.map(some, padded.reshape((parts, size, 4)))
    return found.reshape((parts * size, *found.shape[2:]))[:count]


def _weights(edges: Array, size: int) -> Array:
    """(R, 7, size): how much each of `size` pixels counts in each bin between the edges (R, 2)."""
    low, width = edges[:, :1] - 0.5, (edges[:, 1:] - edges[:, :1]) / BINS
    points = jnp.maximum(jnp.ceil(width), 1)
    starts = low + jnp.arange(BINS, dtype=edges.dtype)[None] * width
    pixels = jnp.arange(size, dtype=edges.dtype)[None, None]

    def add(number: Array, total: Array) -> Array:
        point = number.astype(edges.dtype)
        at = starts + (point + 0.5) * width / points
        inside = (at >= -1) & (at <= size) & (point < points)
        apart = jnp.abs(jnp.clip(at, 0, size - 1)[..., None] - pixels)
        return total + jnp.where(inside[..., None], jnp.maximum(1 - apart, 0), 0)

    none = jnp.zeros((*starts.shape, size), edges.dtype)
    most = jnp.max(points, initial=1).astype(jnp.int32)
    return lax.fori_loop(0, most, add, none) / points[..., None]
