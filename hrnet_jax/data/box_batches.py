"""Evaluation of boxes: each image once, resized, in an array of its own shape.

The pyramid and GroupNorm see what an array has beyond the image. So only images whose edges are the
same multiples of 32 share a batch. At a scale of (1333, 800) there are at most 84 such shapes.
"""

from __future__ import annotations

import collections
import math
from typing import Any

import numpy as np

from hrnet_jax.data.evaluation import Batches, Share
from hrnet_jax.data.indexed import Indexed
from hrnet_jax.data.indexed_batches import planned, read_ahead, shapes_note
from hrnet_jax.data.keep_ratio import KeepRatio, Size

_USUAL = 224 * 224  # pixels of an image for which the default batch sizes are meant


def batches(source: Indexed, protocol: KeepRatio, share: Share) -> Batches:
    """The part of one process, in as many batches of the same shapes on every process.

    A batch has
        image: uint8 (N, H, W, 3), the resized images, filled up with 0.
        image_hw: int32 (N, 2), their heights and widths; full_hw: those before.
        index: int32 (N,), the place of the image in the set; -1 in padding.
        mask: bool (N,), False for padding and for an image that cannot be read.
        unreadable: bool (N,), True for the latter.

    Iterating raises UserError at files that cannot be read, and names them.
    """
    total = min(share.limit or source.num_examples, source.num_examples)
    every = source.image_hw(range(total))
    sized = every.all(1)
    # One that cannot be read has no size, and gets that of another; it will be counted as such.
    every[~sized] = every[sized][0] if sized.any() else 1
    sizes = [(int(height), int(width)) for height, width in every]
    shapes: dict[Size, list[int]] = collections.defaultdict(list)
    for number, size in enumerate(sizes):
        shapes[protocol.padded(size)].append(number)
    groups = [(shape, np.array(numbers)) for shape, numbers in shapes.items()]

    def read(number: int) -> Any:
        image = source.read(number)['image']
        return protocol.prepare(image), image.shape[:2]

    steps = planned(groups, at_once, share)
    kinds = len({protocol.size(size) for size in sizes})
    items = read_ahead(source, share, steps, read, _empty, _fill)
    return Batches(len(steps), items, shapes_note(kinds, len(groups)))


def at_once(shape: Size, size: int) -> int:
    """How many images of this height and width take the memory of `size` small ones."""
    return max(min(size, size * _USUAL // math.prod(shape)), 1)


def _empty(shape: Size, size: int) -> dict[str, np.ndarray]:
    """A batch of padding: of black images, whose sizes must be above 0."""
    return {
        'image': np.zeros((size, *shape, 3), np.uint8),
        'image_hw': np.tile(np.array(shape, np.int32), (size, 1)),
        'full_hw': np.tile(np.array(shape, np.int32), (size, 1)),
        'index': np.full(size, -1, np.int32),
        'mask': np.zeros(size, bool),
        'unreadable': np.zeros(size, bool),
    }


def _fill(batch: dict[str, np.ndarray], i: int, example: tuple[np.ndarray, Size]) -> None:
    image, full = example
    height, width = image.shape[:2]
    batch['image'][i, :height, :width] = image
    batch['image_hw'][i], batch['full_hw'][i] = (height, width), full
