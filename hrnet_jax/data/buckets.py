"""Images of many sizes in arrays of few shapes, so that few programs are compiled."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hrnet_jax.data.views import Size, Views

SHAPES = 6  # programs that an evaluation may need, and one for each so many images:
_IMAGES = 100
ROUND = 32  # edges of an array that holds several sizes are multiples
_KINDS = 64  # sizes that are told apart while shapes are chosen


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Images that share a shape.

    Attributes:
        views: of the arrays of each view.
        image_hw: of the array of the images' own size.
        numbers: of the images, rising.
        exact: all images are of this size.
    """

    views: tuple[Size, ...]
    image_hw: Size
    numbers: np.ndarray
    exact: bool


def buckets(sizes: Sequence[Any], views: Views, limit: int = SHAPES) -> list[Bucket]:
    """At most `limit` of them, and fewer for few images, by merging those that cost the fewest
    pixels more.

    Args:
        sizes: height and width of each image.
    """
    limit = min(limit, 1 + len(sizes) // _IMAGES)
    edges = [(int(height), int(width)) for height, width in sizes]
    same: dict[Size, list[int]] = collections.defaultdict(list)
    for number, size in enumerate(edges):
        same[size].append(number)
    if len(same) <= limit:
        found = [(tuple(views.sizes(size)), size, numbers) for size, numbers in same.items()]
    else:
        found = [
            (shapes, _rounded([np.max([edges[i] for i in numbers], 0)], ROUND)[0], numbers)
            for shapes, numbers in _merged([views.sizes(size) for size in edges], limit).items()
        ]
    return [
        Bucket(shapes, image_hw, np.array(sorted(numbers)), len(same) <= limit)
        for shapes, image_hw, numbers in sorted(found, key=lambda item: min(item[2]))
    ]


_Shapes = tuple[Size, ...]


def _rounded(shapes: Iterable[Any], unit: int) -> _Shapes:
    return tuple((int(-(-h // unit) * unit), int(-(-w // unit) * unit)) for h, w in shapes)


def _merged(sizes: Sequence[Sequence[Size]], limit: int) -> dict[_Shapes, list[int]]:
    """The numbers of the images by the shapes of their views."""
    unit = ROUND
    while len({_rounded(shapes, unit) for shapes in sizes}) > max(_KINDS, limit):
        unit *= 2
    held: dict[_Shapes, list[int]] = collections.defaultdict(list)
    for number, shapes in enumerate(sizes):
        held[_rounded(shapes, unit)].append(number)

    def union(a: _Shapes, b: _Shapes) -> _Shapes:
        return tuple((max(x[0], y[0]), max(x[1], y[1])) for x, y in zip(a, b, strict=True))

    def cost(shapes: _Shapes, count: int) -> int:
        return count * sum(height * width for height, width in shapes)

    def added(pair: tuple[_Shapes, _Shapes]) -> int:
        counts = [len(held[shapes]) for shapes in pair]
        before = sum(cost(shapes, count) for shapes, count in zip(pair, counts, strict=True))
        return cost(union(*pair), sum(counts)) - before

    while len(held) > limit:
        a, b = min(itertools.combinations(held, 2), key=added)
        numbers = held.pop(a) + held.pop(b)
        held[union(a, b)] = held.get(union(a, b), []) + numbers
    return dict(held)
