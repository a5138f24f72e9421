"""Training batches of a set that is read by number: a function of seed and step."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os

import numpy as np
import pytest

from hrnet_jax.data.indexed import Indexed
from hrnet_jax.data.indexed_training import IndexedData
from hrnet_jax.data.sources import Dataset, Field
from hrnet_jax.errors import UserError
from hrnet_jax.tasks.segmentation import TASK
from hrnet_jax.tasks.segmentation_recipes import Segment

TOTAL, EPOCH = 27, 3
RECIPE = Segment(dataset='made', batch_size=8, accumulate=2, crop_size=(32, 32), seed=5)


def example(number, bad=()):
    if number in bad:
        raise UserError(f'{number}.png cannot be read')
    random = np.random.default_rng(number)
    image = random.integers(0, 256, (40 + number, 60, 3), np.uint8)
    return {'image': image, 'label': np.full(image.shape[:2], number, np.uint8)}


def made(*bad, total=TOTAL):
    return Indexed(
        Dataset('made'), 'train', total, TOTAL, None, False, (), {},
        fields=(Field('label', 'uint8', (), 255),),
        read=functools.partial(example, bad=bad), names=[f'{i}.png' for i in range(total)],
        image_hw=lambda numbers: np.array([(40 + i, 60) for i in numbers]),
    )  # fmt: skip


def data(*share, bad=(), **changes):
    return TASK.training_data(made(*bad), dataclasses.replace(RECIPE, **changes), *share)


def take(stream, count):
    return list(itertools.islice(stream, count))


def same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert set(a) == set(b) == {'image', 'label', 'weight'}
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], name)


def numbers(batch):
    """Which examples are in it: their labels say so."""
    return batch['label'].reshape(-1, 32 * 32).min(1)


@pytest.fixture(scope='module')
def reference():
    """The batches of two epochs."""
    return take(data().batches(), 2 * EPOCH)


def test_shapes(reference):
    assert data().steps_per_epoch == EPOCH
    assert [field.shape for field in data().fields] == [(32, 32)]
    for batch in reference:
        assert batch['image'].shape == (2, 4, 32, 32, 3)
        assert batch['image'].dtype == batch['label'].dtype == np.uint8
        np.testing.assert_array_equal(batch['weight'], np.ones((2, 4), np.float32))


@pytest.mark.parametrize('start', [1, EPOCH, EPOCH + 1])
def test_resumed_anywhere_they_are_the_same(reference, start):
    same(take(data().batches(start), 2), reference[start : start + 2])


@pytest.mark.parametrize('processes', [2, 4])
def test_any_number_of_processes_reads_the_same(reference, processes):
    streams = [data(i, processes).batches() for i in range(processes)]
    for expected in reference:
        parts = [next(stream) for stream in streams]
        same([{k: np.concatenate([x[k] for x in parts], 1) for k in expected}], [expected])


def test_one_thread_reads_what_many_read(reference, monkeypatch):
    monkeypatch.setattr(os, 'cpu_count', lambda: 1)
    same(take(data().batches(), 2 * EPOCH), reference)


def test_an_epoch_has_an_order_and_pixels_of_its_own(reference):
    orders = [np.concatenate([numbers(b) for b in reference[i : i + EPOCH]]) for i in (0, EPOCH)]
    for order in orders:
        assert len(set(order)) == EPOCH * 8
    assert (orders[0] != orders[1]).any()
    images = [
        {n: x for b in reference[i : i + EPOCH]
         for n, x in zip(numbers(b), b['image'].reshape(-1, 32, 32, 3), strict=True)}
        for i in (0, EPOCH)
    ]  # fmt: skip
    both = images[0].keys() & images[1].keys()
    assert all((images[0][n] != images[1][n]).any() for n in both)
    [other] = take(data(seed=6).batches(), 1)
    assert (numbers(other) != numbers(reference[0])).any()


def test_an_image_that_cannot_be_read_has_no_weight(reference):
    bad = numbers(reference[1])[3]
    batches = take(data(bad=(bad,), max_corrupt=0.04).batches(), EPOCH)
    same(batches[::2], reference[:EPOCH:2])
    weight = batches[1]['weight'].ravel()
    assert weight.tolist() == [1, 1, 1, 0, 1, 1, 1, 1]
    expected = numbers(reference[1])
    expected[3] = 255  # another image takes its place, without labels
    np.testing.assert_array_equal(numbers(batches[1]), expected)


def test_too_many_that_cannot_be_read():
    stream = data(
        bad=(3, 4, 5, 6), max_corrupt=0.1, batch_size=27, accumulate=1, bn_group_size=None
    ).batches()
    with pytest.raises(UserError, match='4 images of epoch 0 cannot be read: ') as stop:
        next(stream)
    assert '4.png cannot be read' in str(stop.value)


def test_a_share_in_which_nothing_can_be_read():
    [batch] = take(data(bad=range(27), max_corrupt=1.0).batches(), 1)
    assert not batch['weight'].any()
    assert (batch['label'] == 255).all()


def test_batches_that_cannot_be_shared_out():
    with pytest.raises(UserError, match='made has 27 training images, less than a batch of 32'):
        data(batch_size=32)
    with pytest.raises(UserError, match='4 images .* cannot be shared out among 3 processes'):
        data(0, 3)


def test_a_mistake_in_the_code_is_no_unreadable_image():
    broken = dataclasses.replace(made(), read=lambda number: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(TASK.training_data(broken, RECIPE).batches())
    assert isinstance(data(), IndexedData)
