"""What is marked in the images of a batch, for the losses of detectors; traced.

boxes: (N, G, 4), x1, y1, x2, y2 in the resized image.
labels: int32 (N, G).
valid: bool (N, G), which of the rows there are.
crowd: bool (N, G): nobody says where the objects in it are; what is found there is no mistake.
image_hw: int32 (N, 2), height and width of the resized image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

Array = jax.Array
Marked = Mapping[str, Array]
Maps = Mapping[str, Sequence[Array]]
NAMES = ('boxes', 'labels', 'valid', 'crowd', 'image_hw')


def marked_of(batch: Mapping[str, Array], dtype: jnp.dtype) -> dict[str, Array]:
    """That of a batch, the boxes in this type."""
    found = {name: batch[name] for name in NAMES}
    return {**found, 'boxes': found['boxes'].astype(dtype)}


def shapes_of(levels: Sequence[Array]) -> list[tuple[int, int]]:
    """Heights and widths of maps (N, h, w, C)."""
    return [(x.shape[1], x.shape[2]) for x in levels]


def counted(weight: Array) -> Array:
    """How many images count, at least 1."""
    return jnp.maximum(jnp.sum(weight > 0, dtype=weight.dtype), 1)


def joined(levels: Sequence[Array], last: int | None = None) -> Array:
    """Maps (N, h, w, C) of all levels -> (N, P, C), or (N, P * C / last, last)."""
    width = last or levels[0].shape[-1]
    return jnp.concatenate([x.reshape((len(x), -1, width)) for x in levels], 1)
