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
    kinds: dict[tuple[Size, ...], list[int]] = collections.defaultdict(list)
    for number, size in enumerate(sizes):
        height, width = map(int, size)
        kinds[(height, width), *views.sizes((height, width))].append(number)
    limit = min(limit, 1 + len(sizes) // _IMAGES)
    exact = len(kinds) <= limit
    if not exact:
        kinds = _merged(kinds, limit)
    return [
        Bucket(kind[1:], kind[0], np.array(sorted(numbers)), exact)
        for kind, numbers in sorted(kinds.items(), key=lambda item: min(item[1]))
    ]


def _merged(
    kinds: dict[tuple[Size, ...], list[int]], limit: int
) -> dict[tuple[Size, ...], list[int]]:
    def rounded(kind: tuple[Size, ...], unit: int) -> tuple[Size, ...]:
        return tuple((-(-h // unit) * unit, -(-w // unit) * unit) for h, w in kind)

    unit = ROUND
    while len({rounded(kind, unit) for kind in kinds}) > max(_KINDS, limit):
        unit *= 2
    held: dict[tuple[Size, ...], list[int]] = collections.defaultdict(list)
    for kind, numbers in kinds.items():
        held[rounded(kind, unit)] += numbers

    def union(a: tuple[Size, ...], b: tuple[Size, ...]) -> tuple[Size, ...]:
        return tuple((max(x[0], y[0]), max(x[1], y[1])) for x, y in zip(a, b, strict=True))

    def cost(kind: tuple[Size, ...], count: int) -> int:
        return count * sum(h * w for h, w in kind[1:])

    def added(pair: tuple[tuple[Size, ...], tuple[Size, ...]]) -> int:
        counts = [len(held[kind]) for kind in pair]
        before = sum(cost(kind, count) for kind, count in zip(pair, counts, strict=True))
        return cost(union(*pair), sum(counts)) - before

    while len(held) > limit:
        a, b = min(itertools.combinations(held, 2), key=added)
        numbers = held.pop(a) + held.pop(b)
        held[union(a, b)] = held.get(union(a, b), []) + numbers
    return dict(held)
