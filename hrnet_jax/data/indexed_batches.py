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
    found = buckets(sizes.tolist(), views)

    def size_of(bucket: Bucket, size: int) -> int:
        return at_once(size, (*bucket.views, bucket.image_hw), views, source.num_classes or 1)

    def read(number: int) -> Any:
        example = source.read(number)
        return [*views.views(example['image'])], example['label']

    steps = planned([(bucket, bucket.numbers) for bucket in found], size_of, share)
    notes = shapes_note(len(np.unique(sizes, axis=0)), len(found))
    items = read_ahead(source, share, steps, read, _empty, _fill)
    return Batches(len(steps), items, notes)


Step = tuple[Any, np.ndarray]  # what has a shape, and the numbers that this process reads, or -1


def planned(
    groups: Sequence[tuple[Any, np.ndarray]], size_of: Callable[[Any, int], int], share: Share
) -> list[Step]:
    """The steps of one process, as many and of the same shapes on every one.

    Args:
        groups: what has a shape, and the numbers of its images.
        size_of: (that, batch size of small images) -> batch size, where the user has given none.
    """
    steps: list[Step] = []
    for shape, members in groups:
        size = min(share.batch_size, len(members))
        size = share.local(size if share.given else size_of(shape, size))
        for start in range(0, len(members), size * share.process_count):
            numbers = np.full(size * share.process_count, -1)
            taken = members[start : start + len(numbers)]
            numbers[: len(taken)] = taken
            steps.append((shape, numbers.reshape(share.process_count, size)[share.process_index]))
    return steps


def shapes_note(sizes: int, shapes: int) -> tuple[str, ...]:
    """What the user should know where images of several sizes are read."""
    programs = '1 program is' if shapes == 1 else f'{shapes} programs are'
    plural = 's' * (shapes > 1)
    note = f'images of {sizes} sizes are padded to {shapes} shape{plural}: {programs} compiled'
    return (note,) * (sizes > 1)


def at_once(batch_size: int, shapes: Sequence[Size], views: Views, classes: int) -> int:
    """How many images of these arrays take the memory of a `batch_size` of small ones."""
    area = max(height * width for height, width in shapes) * (1 + views.flip)
    return max(min(batch_size, batch_size * _USUAL // (area * max(classes, _CHANNELS))), 1)


def read_ahead(
    source: Indexed,
    share: Share,
    steps: Sequence[Step],
    read: Callable[[int], Any],
    empty: Callable[[Any, int], dict[str, np.ndarray]],
    fill: Callable[..., None],
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of these steps.

    Args:
        read: number -> example; raises UserError for what cannot be read.
        empty: (what has a shape, size) -> a batch of padding, with index, mask and unreadable.
        fill: (batch, place, example) puts it in.
    """

    def attempt(number: int) -> Any:
        try:
            return None if number < 0 else read(number)
        except WrongLabel:
            raise
        except UserError as error:  # is counted, and raised where it may be
            return error

    numbers = np.concatenate([numbers for _, numbers in steps])
    examples = ahead(attempt, [int(number) for number in numbers])
    broken: list[str] = []
    allowed = math.floor(share.max_corrupt * (numbers >= 0).sum())
    for shape, own in steps:
        batch = empty(shape, len(own))
        batch['index'][:] = own
        for i in range(len(own)):
            example = next(examples)
            if isinstance(example, UserError):
                broken.append(str(example))
                batch['unreadable'][i] = True
            elif example is not None:
                fill(batch, i, example)
                batch['mask'][i] = True
        if len(broken) > allowed:
            broken += [str(x) for x in examples if isinstance(x, UserError)]
            raise too_many(source, f'{len(broken)} of {(numbers >= 0).sum()} images', broken)
        yield batch


def _fill(batch: dict[str, np.ndarray], i: int, example: tuple[Sequence[Any], Any]) -> None:
    images, label = example
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
    _fill(batch, 0, (images, np.full(image.shape[:2], NOTHING, np.uint8)))
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
