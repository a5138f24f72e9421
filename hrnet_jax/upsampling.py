"""Upsampling as PyTorch has it: the three ways of the fusion, and bilinear resizing."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Upsample = Literal['nearest', 'bilinear', 'bilinear_two_step']


def at_least_float32(*dtypes: Any) -> Any:
    return jnp.float64 if jnp.float64 in map(jnp.dtype, dtypes) else jnp.float32


def upsample(
    x: Array, factor: int, size: tuple[int, int], way: Upsample, align_corners: bool = False
) -> Array:
    """(N, h, w, C) -> (N, *size, C), by one of the three ways of `HRNet.upsample`.

    `factor` is the ratio of the two strides; `size` that of the map to add to.
    """
    n, h, w, c = x.shape
    if way == 'nearest':
        # One axis at a time: the shape that explicit sharding can follow.
        x = jnp.broadcast_to(x[:, :, None], (n, h, factor, w, c)).reshape((n, h * factor, w, c))
        x = jnp.broadcast_to(x[:, :, :, None], (n, h * factor, w, factor, c))
        return x.reshape((n, h * factor, w * factor, c))
    if way == 'bilinear_two_step':
        x = resize_bilinear(x, (h * factor, w * factor), align_corners)
    return resize_bilinear(x, size, align_corners)


def resize_bilinear(x: Array, size: tuple[int, int], align_corners: bool = False) -> Array:
    """PyTorch's `interpolate(mode='bilinear')` (no antialiasing) of (N, h, w, C) to `size`."""
    dtype = at_least_float32(x.dtype)
    y = x.astype(dtype)
    for axis, out in zip((1, 2), size, strict=True):
        if x.shape[axis] != out:
            taps = jnp.asarray(_bilinear_taps(x.shape[axis], out, align_corners), dtype)
            y = jnp.moveaxis(jnp.tensordot(taps, y, (1, axis), precision='highest'), 0, axis)
    return y.astype(x.dtype)


@functools.lru_cache
def _bilinear_taps(n: int, out: int, align_corners: bool) -> np.ndarray:
    """(out, n) interpolation weights; each row has at most two that are not zero."""
    i = np.arange(out)
    if align_corners:
        at = i * ((n - 1) / max(out - 1, 1))
    else:
        at = np.maximum((i + 0.5) * (n / out) - 0.5, 0)
    low = np.minimum(at.astype(int), n - 1)
    high, part = np.minimum(low + 1, n - 1), at - low
    taps = np.zeros((out, n))
    np.add.at(taps, (i, low), 1 - part)
    np.add.at(taps, (i, high), part)
    return taps


def resize_each(
    x: Array, size: tuple[int, int], before: Array, after: Array, align_corners: bool = False
) -> Array:
    """`resize_bilinear` of the upper left part of each map, to the upper left part of the result.

    Args:
        x: (N, h, w, C).
        size: of the result, (N, *size, C); beyond the parts it has no meaning.
        before, after: int32 (N, 2), height and width of the parts.
    """
    dtype = at_least_float32(x.dtype)
    y = x.astype(dtype)
    for axis, out in zip((1, 2), size, strict=True):
        n, wanted = (sizes[:, axis - 1, None] for sizes in (before, after))
        i = jnp.arange(out)[None]
        ends = n.astype(dtype), wanted.astype(dtype)
        if align_corners:
            at = i * ((ends[0] - 1) / jnp.maximum(ends[1] - 1, 1))
        else:
            at = jnp.maximum((i + 0.5) * (ends[0] / ends[1]) - 0.5, 0)
        low = jnp.clip(at.astype(jnp.int32), 0, n - 1)
        high = jnp.minimum(low + 1, n - 1)
        shape = (-1, out, 1, 1) if axis == 1 else (-1, 1, out, 1)
        part = jnp.clip(at - low, 0, 1).reshape(shape)
        lower, upper = (jnp.take_along_axis(y, p.reshape(shape), axis) for p in (low, high))
        y = lower * (1 - part) + upper * part
    return y.astype(x.dtype)
