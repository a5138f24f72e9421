"""Images of many sizes in arrays of few shapes, so that few programs are compiled."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Sequence
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
        small: a view of some is smaller than the window of 'slide'.
    """

    views: tuple[Size, ...]
    image_hw: Size
    numbers: np.ndarray
    exact: bool
    small: bool


def buckets(sizes: Sequence[Any], views: Views, limit: int = SHAPES) -> list[Bucket]:
    """At most `limit` of them, and fewer for few images, by merging those that cost the fewest
    pixels more.

    Args:
        sizes: height and width of each image.
    """
    limit = min(limit, 1 + len(sizes) // _IMAGES)
    kinds: dict[_Shapes, list[int]] = collections.defaultdict(list)
    for number, (height, width) in enumerate(sizes):
        kinds[*views.sizes((int(height), int(width))), (int(height), int(width))].append(number)
    exact = len(kinds) <= limit
    if not exact:
        kinds = _merged(kinds, limit)

    def small(numbers: Sequence[int]) -> bool:
        window = views.window or (0, 0)
        every = (views.sizes((int(sizes[n][0]), int(sizes[n][1]))) for n in numbers)
        return any(h < window[0] or w < window[1] for each in every for h, w in each)

    return [
        Bucket(shapes[:-1], shapes[-1], np.array(sorted(numbers)), exact, small(numbers))
        for shapes, numbers in sorted(kinds.items(), key=lambda item: min(item[1]))
    ]


_Shapes = tuple[Size, ...]  # of the views, and of the image


def _rounded(shapes: _Shapes, parts: int) -> _Shapes:
    """Up to a multiple of 32, and to one of `parts` between two powers of 2."""

    def up(edge: int) -> int:
        unit = max(ROUND, 2 ** (edge.bit_length() - 1) // parts)
        return -(-edge // unit) * unit

    return tuple((up(height), up(width)) for height, width in shapes)


def _merged(kinds: dict[_Shapes, list[int]], limit: int) -> dict[_Shapes, list[int]]:
    parts = 16
    while len({_rounded(shapes, parts) for shapes in kinds}) > max(_KINDS, limit) and parts > 1:
        parts //= 2
    held: dict[_Shapes, list[int]] = collections.defaultdict(list)
    for shapes, numbers in kinds.items():
        held[_rounded(shapes, parts)] += numbers

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
