"""Evaluation of people: a crop of each, once, an image read once for all people in it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from hrnet_jax.data.evaluation import Batches, Share
from hrnet_jax.data.indexed import Indexed
from hrnet_jax.data.indexed_batches import ahead
from hrnet_jax.data.sources import too_many
from hrnet_jax.data.topdown import TopDown
from hrnet_jax.errors import UserError

_USUAL = 224 * 224  # pixels of an image for which the default batch sizes are meant


def batches(source: Indexed, protocol: TopDown, share: Share) -> Batches:
    """The part of one process, in as many batches on every process.

    A batch has
        image: uint8 (N, *protocol.input_size, 3), a crop a person.
        centre, scale: float32 (N, 2), of the crop in the image: see `crops.placed`.
        index: int32 (N,), the place of the person in the set; -1 in padding.
        mask: bool (N,), False for padding and where the image cannot be read.
        unreadable: bool (N,), True for the latter.

    Iterating raises UserError at files that cannot be read, and names them.
    """
    total = min(share.limit or source.num_examples, source.num_examples)
    size = min(share.batch_size, total)
    if not share.given:
        size = max(min(size, size * _USUAL // math.prod(protocol.input_size)), 1)
    size = share.local(size)
    bounds = [total * (share.process_index + i) // share.process_count for i in (0, 1)]
    steps = math.ceil(math.ceil(total / share.process_count) / size)
    people = range(*bounds)
    return Batches(steps, _batches(source, protocol, people, size, steps, share.max_corrupt))


def _batches(
    source: Indexed, protocol: TopDown, numbers: range, size: int, steps: int, max_corrupt: float
) -> Iterator[dict[str, np.ndarray]]:
    people: Any = source.read
    by_image = itertools.groupby(numbers, key=lambda number: people.places[number])
    groups = [list(group) for _, group in by_image]

    def crops(group: int) -> list[Any]:
        try:
            image = people.image(groups[group][0])
        except UserError as error:  # is counted, and raised where it may be
            return [error] * len(groups[group])
        return [
            protocol.crop(image, people.boxes[number, :4], np.float32) for number in groups[group]
        ]

    found = itertools.chain.from_iterable(ahead(crops, range(len(groups))))
    broken: list[str] = []
    allowed = math.floor(max_corrupt * len(numbers))
    for step in range(steps):
        batch: dict[str, np.ndarray] = {
            'image': np.zeros((size, *protocol.input_size, 3), np.uint8),
            'centre': np.zeros((size, 2), np.float32),
            'scale': np.ones((size, 2), np.float32),
            'index': np.full(size, -1, np.int32),
            'mask': np.zeros(size, bool),
            'unreadable': np.zeros(size, bool),
        }
        for i, number in enumerate(numbers[step * size : (step + 1) * size]):
            crop, batch['index'][i] = next(found), number
            if isinstance(crop, UserError):
                broken.append(str(crop))
                batch['unreadable'][i] = True
                continue
            batch['image'][i], batch['mask'][i] = crop, True
            region = protocol.region(people.boxes[number, :4], np.float32)
            batch['centre'][i], batch['scale'][i] = region
        if len(broken) > allowed:
            broken += [str(x) for x in found if isinstance(x, UserError)]
            files = list(dict.fromkeys(broken))
            raise too_many(source, f'{len(files)} of {len(groups)} images', files)
        yield batch
