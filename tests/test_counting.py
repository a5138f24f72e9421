"""Counting right answers, and the loop that counts them batch by batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hrnet_jax
from hrnet_jax.data.preprocess import Transform
from hrnet_jax.inference.evaluation import AHEAD, data_mesh, evaluate
from hrnet_jax.initialisation import init
from hrnet_jax.models import create_model
from hrnet_jax.tasks.classification import Accuracy, count_correct

TRANSFORM = Transform(resize=72, crop=64)


def test_counting():
    logits = np.random.default_rng(0).permuted(np.tile(np.arange(8.0), (6, 1)), axis=1)
    order = np.argsort(-logits, 1)
    labels = np.array(
        [order[0, 0], order[1, 4], order[2, 5], order[3, 0], order[4, 0], order[5, 7]]
    )
    mask = np.array([True, True, True, True, False, True])
    got = jax.jit(count_correct)(jnp.float32(logits), jnp.int32(labels), mask)
    assert {k: int(v) for k, v in got.items()} == {
        'num_examples': 5,
        'top1_correct': 2,
        'top5_correct': 3,
    }
    few = jax.jit(count_correct)(jnp.float32(logits[:, :3]), jnp.zeros(6, jnp.int32), mask)
    assert int(few['top5_correct']) == 5  # of three classes, one is always among the first five


def test_logits_that_are_not_finite_stop():
    """`top_k` puts NaN first, where it would count as a right answer."""
    model = create_model('tiny', 10)
    variables = init(model, jax.random.key(0))
    variables['params']['head']['classifier']['bias'] = jnp.full(10, jnp.nan)
    batch = {
        'image': np.zeros((4, 32, 32, 3), np.uint8),
        'label': np.zeros(4, np.int32),
        'mask': np.arange(4) < 3,
    }
    with pytest.raises(hrnet_jax.UserError, match='3 of 3 images are not finite'):
        evaluate(model, variables, [batch], TRANSFORM, Accuracy(10))


def test_few_steps_are_under_way():
    model = create_model('tiny', 10)
    finished, under_way = [], []

    class Count:
        def __array__(self, *_, **__):
            finished.append(self)
            return np.array(4, np.int32)

    names = ('num_examples', 'top1_correct', 'top5_correct', 'seen')

    def step(variables, batch):
        return {name: Count() for name in names} | {'not_finite': np.int32(0)}

    def batches():
        for i in range(12):
            under_way.append(i - len(finished) // len(names))
            yield {
                'image': np.zeros((4, 32, 32, 3), np.uint8),
                'label': np.zeros(4, np.int32),
                'mask': np.ones(4, bool),
            }

    variables = init(model, jax.random.key(0))
    result = evaluate(model, variables, batches(), TRANSFORM, Accuracy(10), step=step)
    assert result.seen == 48
    assert max(under_way) == AHEAD


def test_every_device_has_its_share():
    model = create_model('tiny', 10)
    variables = init(model, jax.random.key(0))
    random = np.random.default_rng(0)
    batch = {
        'image': random.integers(0, 256, (8, 32, 32, 3), np.uint8),
        'label': np.arange(8, dtype=np.int32),
        'mask': np.arange(8) < 7,
    }
    assert data_mesh().size == 2
    two = evaluate(model, variables, [batch, batch], TRANSFORM, Accuracy(10))
    one = evaluate(
        model,
        variables,
        [batch, batch],
        TRANSFORM,
        Accuracy(10),
        mesh=jax.make_mesh((1,), ('data',), devices=jax.devices()[:1]),
    )
    assert two == one
    assert two.seen == 14
