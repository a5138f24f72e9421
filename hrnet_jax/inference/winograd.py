"""3x3 convolution with stride 1 by a quarter of the multiplications, for CPUs.

Winograd's F(4x4, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR
2016): a tile of 4x4 outputs takes 36 products a pair of channels instead of 144, as 36 matrix
products over all tiles. Between convolutions a map stays cut into tiles, so that the transforms
read and write long rows. Rounding errors are about eight times those of a direct sum (in float32
5e-6 of the largest value); not for lower precisions.

Tiles are (4, 4, N, ceil(H / 4), ceil(W / 4) * C): row and column inside the tile come first.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

TILE = 4
# The three transforms for the points 0, 1, -1, 2, -2 and infinity.
INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
KERNEL = (
    np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], np.float64)
    / 24
)
OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)
POINTS = len(INPUT)


def transform_kernel(kernel: Array) -> np.ndarray:
    """(..., 3, 3, I, O) -> (..., 36, I, O), what `convolve` takes, of the same dtype."""
    *lead, _, _, inputs, outputs = kernel.shape
    both = np.kron(KERNEL, KERNEL).astype(kernel.dtype)
    result = both @ np.asarray(kernel).reshape((*lead, 9, inputs * outputs))
    return result.reshape((*lead, POINTS**2, inputs, outputs))


def split(x: Array) -> Array:
    """(N, H, W, C) -> tiles; zeros beyond the map."""
    n, h, w, c = x.shape
    rows, columns = -(-h // TILE), -(-w // TILE)
    x = jnp.pad(x, ((0, 0), (0, TILE * rows - h), (0, TILE * columns - w), (0, 0)))
    x = x.reshape((n, rows, TILE, columns, TILE, c)).transpose((2, 4, 0, 1, 3, 5))
    return x.reshape((TILE, TILE, n, rows, columns * c))


def join(tiles: Array, size: tuple[int, int]) -> Array:
    """Tiles -> (N, *size, C)."""
    n, rows, columns = *tiles.shape[2:4], -(-size[1] // TILE)
    channels = tiles.shape[-1] // columns
    x = tiles.reshape((TILE, TILE, n, rows, columns, channels)).transpose((2, 3, 0, 4, 1, 5))
    x = x.reshape((n, TILE * rows, TILE * columns, channels))
    return x[:, : size[0], : size[1]]


@functools.partial(jax.jit, static_argnums=3)  # traced once for each shape
def convolve(tiles: Array, kernel: Array, bias: Array, size: tuple[int, int]) -> Array:
    """The convolution of a map cut into tiles, padded by 1 as PyTorch pads, plus bias: tiles.

    Args:
        tiles: as of `split`; what lies beyond the map is not looked at.
        kernel: (36, I, O), as of `transform_kernel`.
        bias: (O,).
        size: height and width of the map.
    """
    n, rows, width = tiles.shape[2:]
    _, channels, features = kernel.shape
    columns = width // channels
    if (TILE * rows, TILE * columns) != tuple(size):
        inside = split(jnp.ones((1, *size, channels), bool))
        tiles = jnp.where(jnp.broadcast_to(inside, tiles.shape), tiles, jnp.zeros_like(tiles))
    x = [tiles[:, j] for j in range(TILE)]
    x = [_moved(x[-1], channels, 3), *x, _moved(x[0], -channels, 3)]
    t = jnp.stack(_combined(INPUT, x), 1)  # (4, 6, N, rows, columns * I)
    x = [t[i] for i in range(TILE)]
    x = [_moved(x[-1], 1, 2), *x, _moved(x[0], -1, 2)]
    t = jnp.stack(_combined(INPUT, x))  # (6, 6, ...)
    t = t.reshape((POINTS**2, n * rows * columns, channels))
    t = jnp.matmul(t, kernel, precision='highest')
    t = t.reshape((POINTS, POINTS, n, rows, columns * features))
    t = jnp.stack(_combined(OUTPUT, list(t)))  # (4, 6, ...)
    y = jnp.stack(_combined(OUTPUT, [t[:, j] for j in range(POINTS)]), 1)
    return y + jnp.tile(bias, columns).reshape((1, 1, 1, 1, -1))


def _combined(matrix: tuple[tuple[int, ...], ...], terms: list[Array]) -> list[Array]:
    """The rows of `matrix` times `terms`, without the products by 0 and 1."""

    def scaled(factor: int, term: Array) -> Array:
        return term if factor == 1 else term * np.asarray(factor, term.dtype)

    def add(total: Array, pair: tuple[int, Array]) -> Array:
        factor, term = pair
        return total - scaled(-factor, term) if factor < 0 else total + scaled(factor, term)

    result = []
    for row in matrix:
        pairs = sorted(
            ((f, t) for f, t in zip(row, terms, strict=True) if f), key=lambda p: p[0] < 0
        )
        result.append(functools.reduce(add, pairs[1:], scaled(*pairs[0])))
    return result


def _moved(x: Array, by: int, axis: int) -> Array:
    """x moved along an axis, zeros coming in."""
    kept = jax.lax.slice_in_dim(x, max(-by, 0), x.shape[axis] - max(by, 0), axis=axis)
    pad = [(0, 0)] * x.ndim
    pad[axis] = (max(by, 0), max(-by, 0))
    return jnp.pad(kept, pad)
