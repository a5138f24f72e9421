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
    y = x.astype(at_least_float32(x.dtype))
    for axis, out in zip((1, 2), size, strict=True):
        if y.shape[axis] != out:
            picked, multiplied = (
                functools.partial(way, axis=axis, out=out, align_corners=align_corners)
                for way in (_picked, _multiplied)
            )
            # To pick is up to 30 times as fast, but its gradient adds in no fixed order on GPUs.
            y = jax.lax.platform_dependent(y, cpu=picked, default=multiplied)
    return y.astype(x.dtype)


def _picked(x: Array, axis: int, out: int, align_corners: bool) -> Array:
    low, high, part = _neighbours(x.shape[axis], out, align_corners)
    part = part.astype(x.dtype).reshape((1, out, 1, 1) if axis == 1 else (1, 1, out, 1))
    return jnp.take(x, low, axis) * (1 - part) + jnp.take(x, high, axis) * part


def _multiplied(x: Array, axis: int, out: int, align_corners: bool) -> Array:
    low, high, part = _neighbours(x.shape[axis], out, align_corners)
    taps = np.zeros((out, x.shape[axis]))
    np.add.at(taps, (np.arange(out), low), 1 - part)
    np.add.at(taps, (np.arange(out), high), part)
    y = jnp.tensordot(jnp.asarray(taps, x.dtype), x, (1, axis), precision='highest')
    return jnp.moveaxis(y, 0, axis)


@functools.lru_cache
def _neighbours(n: int, out: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `out` values those of n before and after it, and the weight of the latter."""
    i = np.arange(out)
    if align_corners:
        at = i * ((n - 1) / max(out - 1, 1))
    else:
        at = np.maximum((i + 0.5) * (n / out) - 0.5, 0)
    low = np.minimum(at.astype(int), n - 1)
    # int32: of another type they would differ inside and outside of x64.
    return low.astype(np.int32), np.minimum(low + 1, n - 1).astype(np.int32), at - low


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
        i = jnp.arange(out, dtype=dtype)[None]
        ends = n.astype(dtype), wanted.astype(dtype)
        if align_corners:
            at = i * ((ends[0] - 1) / jnp.maximum(ends[1] - 1, 1))
        else:
            at = jnp.maximum((i + 0.5) * (ends[0] / ends[1]) - 0.5, 0)
        low = jnp.clip(at.astype(n.dtype), 0, n - 1)
        high = jnp.minimum(low + 1, n - 1)
        shape = (-1, out, 1, 1) if axis == 1 else (-1, 1, out, 1)
        part = jnp.clip(at - low.astype(dtype), 0, 1).reshape(shape)
        lower, upper = (jnp.take_along_axis(y, p.reshape(shape), axis) for p in (low, high))
        y = lower * (1 - part) + upper * part
    return y.astype(x.dtype)
