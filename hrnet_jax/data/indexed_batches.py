"""Evaluation of an `Indexed` set: each example once, in batches of few shapes."""

from __future__ import annotations

import collections
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import numpy as np

from hrnet_jax.data.buckets import Bucket, buckets
from hrnet_jax.data.evaluation import Batches, Share
from hrnet_jax.data.indexed import Indexed
from hrnet_jax.data.opencv import WrongLabel
from hrnet_jax.data.sources import too_many
from hrnet_jax.data.views import NOTHING, Size, Views
from hrnet_jax.errors import UserError

_CHANNELS = 32
# Of an image for which the default batch sizes are meant: pixels, and channels at full size.
_USUAL = 224 * 224 * _CHANNELS


def batches(source: Indexed, views: Views, share: Share) -> Batches:
    """The part of one process, in as many batches of the same shapes on every process.

    The batches have what `Views.outputs` takes, and
        label: uint8 (N, H, W), filled up with 255.
        index: int32 (N,), the place of the example in the set; -1 in padding.
        mask: bool (N,), False for padding and for an image that cannot be read.
        unreadable: bool (N,), True for the latter.

    Iterating raises UserError at files that cannot be read, and names them.
    """
    total = min(share.limit or source.num_examples, source.num_examples)
    sizes = source.image_hw(range(total))
    steps: list[tuple[Bucket, np.ndarray]] = []
    found = buckets(sizes.tolist(), views)
    for bucket in found:
        size = min(share.batch_size, len(bucket.numbers))
        if not share.given:
            arrays = (*bucket.views, bucket.image_hw)
            size = at_once(size, arrays, views, source.num_classes or 1)
        size = share.local(size)
        for start in range(0, len(bucket.numbers), size * share.process_count):
            numbers = np.full(size * share.process_count, -1)
            taken = bucket.numbers[start : start + len(numbers)]
            numbers[: len(taken)] = taken
            steps.append((bucket, numbers.reshape(share.process_count, size)[share.process_index]))
    kinds = len(np.unique(sizes, axis=0))
    programs = '1 program is' if len(found) == 1 else f'{len(found)} programs are'
    shapes = f'{len(found)} shape{"s" * (len(found) > 1)}'
    notes = (f'images of {kinds} sizes are padded to {shapes}: {programs} compiled',)
    return Batches(len(steps), _batches(source, views, share, steps), notes * (kinds > 1))


def at_once(batch_size: int, shapes: Sequence[Size], views: Views, classes: int) -> int:
    """How many images of these arrays take the memory of a `batch_size` of small ones."""
    area = max(height * width for height, width in shapes) * (1 + views.flip)
    return max(min(batch_size, batch_size * _USUAL // (area * max(classes, _CHANNELS))), 1)


def _batches(
    source: Indexed,
    views: Views,
    share: Share,
    steps: Sequence[tuple[Bucket, np.ndarray]],
) -> Iterator[dict[str, np.ndarray]]:
    def read(number: int) -> Any:
        if number < 0:
            return None
        try:
            example = source.read(number)
        except WrongLabel:
            raise
        except UserError as error:  # is counted, and raised where it may be
            return error
        return [*views.views(example['image'])], example['label']

    numbers = np.concatenate([numbers for _, numbers in steps])
    examples = ahead(read, [int(number) for number in numbers])
    broken: list[str] = []
    allowed = math.floor(share.max_corrupt * (numbers >= 0).sum())
    for bucket, own in steps:
        batch = _empty(bucket, len(own))
        batch['index'][:] = own
        for i, number in enumerate(own):
            example = next(examples)
            if isinstance(example, UserError):
                broken.append(str(example))
                batch['unreadable'][i] = True
            if isinstance(example, UserError) or example is None:
                continue
            _fill(batch, i, *example)
            batch['mask'][i] = number >= 0
        if len(broken) > allowed:
            broken += [str(x) for x in examples if isinstance(x, UserError)]
            raise too_many(source, f'{len(broken)} of {(numbers >= 0).sum()} images', broken)
        yield batch


def _fill(batch: dict[str, np.ndarray], i: int, images: Sequence[Any], label: Any) -> None:
    arrays = [batch[name] for name in _names(len(images))]
    for array, image in zip((*arrays, batch['label']), (*images, label), strict=True):
        array[i, : image.shape[0], : image.shape[1]] = image
    if 'sizes' in batch:
        batch['sizes'][i] = [image.shape[:2] for image in images]
        batch['image_hw'][i] = label.shape


def example_arrays(image: np.ndarray, bucket: Bucket, views: Views) -> dict[str, np.ndarray]:
    """What a batch has of one image, uint8 (H, W, 3), without labels."""
    images = list(views.views(image))
    batch = _empty(bucket, 1)
    _fill(batch, 0, images, np.full(image.shape[:2], NOTHING, np.uint8))
    beside = ('index', 'mask', 'unreadable')
    return {name: array[0] for name, array in batch.items() if name not in beside}


def ahead(function: Callable[[int], Any], numbers: Sequence[int]) -> Iterator[Any]:
    """`map` in threads, some calls ahead. OpenCV works beside Python, so that threads will do; they
    start at once, where Grain takes seconds to import."""
    threads = os.cpu_count() or 1
    with futures.ThreadPoolExecutor(threads) as pool:
        held: collections.deque[futures.Future] = collections.deque()
        for number in numbers:
            held.append(pool.submit(function, number))
            if len(held) > 2 * threads:
                yield held.popleft().result()
        while held:
            yield held.popleft().result()


def _names(count: int) -> list[str]:
    return ['image', *(f'image_{i}' for i in range(1, count))]


def _empty(bucket: Bucket, size: int) -> dict[str, np.ndarray]:
    """A batch of padding."""
    batch: dict[str, np.ndarray] = {
        name: np.zeros((size, *shape, 3), np.uint8)
        for name, shape in zip(_names(len(bucket.views)), bucket.views, strict=True)
    }
    batch['label'] = np.full((size, *bucket.image_hw), NOTHING, np.uint8)
    batch['index'] = np.full(size, -1, np.int32)
    batch['mask'], batch['unreadable'] = np.zeros(size, bool), np.zeros(size, bool)
    if not bucket.exact:
        batch['sizes'] = np.tile(np.array(bucket.views, np.int32), (size, 1, 1))
        batch['image_hw'] = np.tile(np.array(bucket.image_hw, np.int32), (size, 1))
    if bucket.small:
        batch['small'] = np.zeros(size, bool)
    return batch
