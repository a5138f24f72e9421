"""From heatmaps to keypoints, below the size of a pixel; traced."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hrnet_jax.errors import UserError
from hrnet_jax.upsampling import at_least_float32

Array = jax.Array
At = Callable[[int, int], Array]


def averaged(
    forward: Callable[..., Any], images: Array, swap: Sequence[int] | None, shift: bool, count: int
) -> Array:
    """The heatmaps of crops, (N, H, W, K); with `swap` their mean with those of the mirrored crops.

    Args:
        swap: for each keypoint its partner; None: crops are not mirrored.
        shift: maps of mirrored crops are moved to the right by a pixel; their first column stays.
        count: K; raises UserError if the network has another.
    """
    # Side by side in one batch: the network is compiled once, not twice.
    both = images if swap is None else jnp.concatenate([images, images[:, :, ::-1]])
    maps = forward(both)
    if maps.shape[-1] != count:
        raise UserError(f'the network has {maps.shape[-1]} keypoints, but {count} have names')
    if swap is None:
        return maps
    maps, mirrored = jnp.split(maps, 2)
    mirrored = mirrored[:, :, ::-1][..., np.array(swap)]
    if shift:
        mirrored = jnp.concatenate([mirrored[:, :, :1], mirrored[:, :, :-1]], 2)
    return (maps + mirrored) / 2


def decode_heatmaps(
    heatmaps: Any,
    codec: str,
    input_size: tuple[int, int] = (256, 192),
    sigma: float = 2,
    blur: int | None = None,
) -> tuple[Array, Array]:
    """The keypoints that heatmaps show.

    Args:
        heatmaps: (N, H, W, K).
        codec: 'quarter', 'official', 'dark' or 'udp': see `hrnet_jax.data.topdown.TopDown`.
        input_size: (height, width) of the picture that they are of.
        sigma: of the peaks that the network was trained with, in pixels of the heatmap.
        blur: taps of the Gaussian of 'dark' and 'udp'; None: 11 for a sigma of 2, 17 for 3.

    Returns:
        keypoints, (N, K, 2), x and y in pixels of the picture; scores, (N, K), the maxima. A map
        without a value above 0 has no keypoint: of 'official' its place is 0, 0, of the others -1
        pixel of the heatmap in both directions; 'udp' takes its step from there.

    Raises:
        UserError: for an unknown codec, or another shape.
    """
    if codec not in _REFINED:
        raise UserError(f'unknown codec {codec!r}; known: {", ".join(_REFINED)}')
    if np.ndim(heatmaps) != 4:
        raise UserError(f'heatmaps have shape (N, H, W, K), not {np.shape(heatmaps)}')
    if blur is not None and (blur < 1 or blur % 2 == 0):
        raise UserError(f'blur must be an odd number, not {blur}')
    height, width = input_size
    taps = blur or max(2 * int(3 * sigma) - 1, 1)
    return _decoded(jnp.asarray(heatmaps), codec, (int(height), int(width)), taps)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _decoded(
    heatmaps: Array, codec: str, input_size: tuple[int, int], taps: int
) -> tuple[Array, Array]:
    n, height, width, k = heatmaps.shape
    maps = heatmaps.astype(at_least_float32(heatmaps.dtype))
    place = jnp.argmax(maps.reshape((n, height * width, k)), 1).astype(jnp.int32)
    scores = jnp.max(maps, (1, 2))
    beside = 0 if codec == 'official' else -1
    x, y = (jnp.where(scores > 0, at, beside) for at in (place % width, place // width))

    def around(maps: Array) -> At:
        padded = jnp.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)), 'edge')
        row = width + 2
        flat = jnp.moveaxis(padded, 3, 1).reshape((n, k * (height + 2) * row))
        first = (jnp.arange(k)[None] * (height + 2) + y + 1) * row + x + 1

        def at(right: int, down: int) -> Array:
            """The values beside the maximum, at edges those of the edge. Where there is none it is
            at -1, -1, and some lie in the map before, as in mmpose."""
            return jnp.take_along_axis(flat, (first + right + down * row) % flat.shape[1], 1)

        return at

    moved = _REFINED[codec](maps, around, x, y, taps)
    size = np.array([width, height]) - (codec == 'udp')  # between the outermost pixels
    scale = np.array(input_size[::-1]) / size
    found = [
        (at.astype(maps.dtype) + by) * jnp.asarray(factor, maps.dtype)
        for at, by, factor in zip((x, y), moved, scale, strict=True)
    ]
    return jnp.stack(found, -1), scores


def _quarter(
    maps: Array, around: Callable[[Array], At], x: Array, y: Array, taps: int
) -> tuple[Array, Array]:
    """mmpose's rule: where each direction has room, whatever the other has."""
    height, width = maps.shape[1:3]
    return _towards(
        around(maps),
        (x > 1) & (x < width - 1) & (y > 0),
        (y > 1) & (y < height - 1) & (x > 0),
    )


def _official(
    maps: Array, around: Callable[[Array], At], x: Array, y: Array, taps: int
) -> tuple[Array, Array]:
    """In both directions or in none."""
    height, width = maps.shape[1:3]
    room = (x > 1) & (x < width - 1) & (y > 1) & (y < height - 1)
    return _towards(around(maps), room, room)


def _towards(at: At, across: Array, down: Array) -> tuple[Array, Array]:
    """A quarter of a pixel towards the higher neighbour, where there is room."""
    return (
        jnp.where(across, jnp.sign(at(1, 0) - at(-1, 0)) / 4, 0),
        jnp.where(down, jnp.sign(at(0, 1) - at(0, -1)) / 4, 0),
    )


def _dark(
    maps: Array, around: Callable[[Array], At], x: Array, y: Array, taps: int
) -> tuple[Array, Array]:
    """A step of Newton on the logarithm of the blurred map, with stencils of two pixels."""
    height, width = maps.shape[1:3]
    at = around(jnp.log(jnp.maximum(_blurred(maps, taps), 1e-10)))
    middle = 2 * at(0, 0)
    xx, yy = (at(2, 0) - middle + at(-2, 0)) / 4, (at(0, 2) - middle + at(0, -2)) / 4
    xy = (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / 4
    room = (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2)
    room = room & (xx * yy - xy * xy != 0)
    return _newton(at, xx, yy, xy, room)


def _udp(
    maps: Array, around: Callable[[Array], At], x: Array, y: Array, taps: int
) -> tuple[Array, Array]:
    """The same with stencils of one pixel, everywhere."""
    at = around(jnp.log(jnp.clip(_blurred(maps, taps), 1e-3, 50)))
    middle, epsilon = 2 * at(0, 0), np.finfo(np.float32).eps
    # In this order the first differences are exact: the values lie close together.
    xx, yy = at(1, 0) - middle + at(-1, 0), at(0, 1) - middle + at(0, -1)
    xy = at(1, 1) - at(1, 0) - at(0, 1) + middle - at(-1, 0) - at(0, -1) + at(-1, -1)
    xx, yy, xy = xx + epsilon, yy + epsilon, xy / 2
    return _newton(at, xx, yy, xy, xx * yy - xy * xy != 0)


def _newton(at: At, xx: Array, yy: Array, xy: Array, room: Array) -> tuple[Array, Array]:
    """Minus the inverse of the second derivatives times the first, where there is room."""
    dx, dy = (at(1, 0) - at(-1, 0)) / 2, (at(0, 1) - at(0, -1)) / 2
    determinant = jnp.where(room, xx * yy - xy * xy, 1)
    return (
        jnp.where(room, (xy * dy - yy * dx) / determinant, 0),
        jnp.where(room, (xy * dx - xx * dy) / determinant, 0),
    )


_REFINED: dict[str, Callable[..., tuple[Array, Array]]] = {
    'quarter': _quarter,
    'official': _official,
    'dark': _dark,
    'udp': _udp,
}


def _blurred(maps: Array, taps: int) -> Array:
    """By OpenCV's Gaussian, with zeros around; each scaled to the maximum that it had."""
    rows, columns = (jnp.asarray(_gaussian(size, taps), maps.dtype) for size in maps.shape[1:3])
    blurred = jnp.einsum('ih,nhwk,jw->nijk', rows, maps, columns, precision='highest')
    before, after = (jnp.max(x, (1, 2), keepdims=True) for x in (maps, blurred))
    return blurred * (before / (after + 1e-12))


# OpenCV rounds the Gaussians of few taps.
_SMALL = {
    3: (1, 2, 1),
    5: (1, 4, 6, 4, 1),
    7: (2, 7, 14, 18, 14, 7, 2),
    9: (4, 13, 30, 51, 60, 51, 30, 13, 4),
}


@functools.cache
def _gaussian(size: int, taps: int) -> np.ndarray:
    """(size, size): the matrix that blurs along one axis."""
    spread = 0.3 * ((taps - 1) / 2 - 1) + 0.8  # OpenCV's for so many taps
    steps = np.arange(taps) - taps // 2
    weights = np.array(_SMALL.get(taps, np.exp(-(steps**2) / (2 * spread**2))))
    table = np.zeros((size, size + taps - 1))
    for i in range(size):
        table[i, i : i + taps] = weights / weights.sum()
    return table[:, taps // 2 : taps // 2 + size]
