"""Weights of one network in another."""

from __future__ import annotations

import dataclasses
import logging
import sys
from pathlib import Path

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hrnet_jax
from convert import from_torch
from hrnet_jax import checkpoint
from hrnet_jax.initialisation import init
from hrnet_jax.models import create_model
from hrnet_jax.tasks import recipes
from hrnet_jax.training.experiment import Experiment, Options

EXAMPLES = Path(__file__).parents[1] / 'examples'
SIZE = 32


@pytest.fixture(scope='module')
def digits():
    """The trained digits classifier's variables."""
    return from_torch(EXAMPLES / 'tiny_digits.pth')[1]


class Landmarks(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        finest = hrnet_jax.HRNet('tiny', name='trunk')(images, train)[0]
        return nn.Conv(17, (1, 1), name='points')(finest)


def equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_backbone_into_a_model_of_ones_own(digits, caplog):
    """Found under whatever name; what happened to each array is logged."""
    model = Landmarks()
    target = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    target = jax.tree.map(lambda s: np.full(s.shape, 7, s.dtype), target)
    with caplog.at_level(logging.INFO, 'hrnet_jax'):
        got, report = hrnet_jax.transfer(target, digits)
    for collection in ('params', 'batch_stats'):
        equal(got[collection]['trunk'], digits[collection]['backbone'])
    assert np.all(np.asarray(got['params']['points']['kernel']) == 7)
    assert set(report.initialised) == {'points/kernel', 'points/bias'}
    assert report.adapted == ()
    assert len(report.loaded) == len(jax.tree.leaves([t['backbone'] for t in digits.values()]))
    assert {name.split('/')[0] for name in report.left} == {'head'}
    assert str(report) in caplog.text
    assert 'points/kernel' in str(report)


def test_another_class_count(digits):
    target = init(create_model('tiny', 3), jax.random.key(0))
    said = r"classifier/bias \(10,\) for \(3,\).*fresh=\['head/classifier'\]"
    with pytest.raises(hrnet_jax.UserError, match=said):
        hrnet_jax.transfer(target, digits)
    got, report = hrnet_jax.transfer(target, digits, fresh='^head/classifier/')
    assert set(report.initialised) == {'head/classifier/bias', 'head/classifier/kernel'}
    equal(got['params']['head']['classifier'], target['params']['head']['classifier'])
    equal(got['params']['backbone'], digits['params']['backbone'])
    equal(got['params']['head']['final_layer_0'], digits['params']['head']['final_layer_0'])
    assert set(report.left) == set(report.initialised)
    _, whole = hrnet_jax.transfer(target, digits, fresh=['^head/'])
    assert all(name.startswith('head/') for name in whole.initialised)
    assert not any(name.startswith('head/') for name in whole.loaded)


@pytest.mark.parametrize('channels', [1, 2, 4, 7])
def test_another_number_of_input_channels(digits, channels):
    """Grey images see what three equal colours saw; repeated channels keep the scale."""
    model = create_model('tiny', 10, in_channels=channels)
    got, report = hrnet_jax.transfer(init(model, jax.random.key(0)), digits)
    assert report.adapted == ('backbone/conv1/kernel',)
    grey = jax.random.normal(jax.random.key(1), (2, SIZE, SIZE, 1))
    kernel = np.asarray(got['params']['backbone']['conv1']['kernel'])
    before = np.asarray(digits['params']['backbone']['conv1']['kernel'])
    if channels == 1:
        ours = jax.jit(model.apply)(got, grey)
        theirs = jax.jit(create_model('tiny', 10).apply)(digits, jnp.repeat(grey, 3, -1))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    else:
        for i in range(channels):
            np.testing.assert_allclose(kernel[:, :, i], before[:, :, i % 3] * 3 / channels, 1e-6)


@pytest.mark.parametrize(
    ('fresh', 'message'), [('clasifier', 'matches no array'), ('head/(', 'no regular expression')]
)
def test_patterns_that_say_nothing(digits, fresh, message):
    with pytest.raises(hrnet_jax.UserError, match=message):
        hrnet_jax.transfer(digits, digits, fresh=fresh)


def test_a_folded_source(digits):
    folded = hrnet_jax.fold(create_model('tiny', 10), digits, 'tpu').variables
    with pytest.raises(hrnet_jax.UserError, match='folded'):
        hrnet_jax.transfer(digits, folded)
    with pytest.raises(hrnet_jax.UserError, match='target has no batch_stats: it is folded'):
        hrnet_jax.transfer(folded, digits)


def test_what_has_no_backbone(digits):
    with pytest.raises(hrnet_jax.UserError, match='target holds no HRNet backbone'):
        hrnet_jax.transfer({'params': {'dense': {'kernel': np.zeros(3)}}}, digits)
    two = {'params': {'a': digits['params']['backbone'], 'b': digits['params']['backbone']}}
    with pytest.raises(hrnet_jax.UserError, match='2 HRNet backbones: a, b'):
        hrnet_jax.transfer(two, digits)


def test_masks_for_optax(digits):
    """What is frozen stays to the bit, the rest moves."""
    model, params = create_model('tiny', 10), digits['params']
    frozen = hrnet_jax.matching(params, '^backbone/(conv|bn|layer1|stage[23])', 'classifier/bias')
    tx = optax.chain(optax.sgd(0.1), optax.masked(optax.set_to_zero(), frozen))
    x = jax.random.normal(jax.random.key(1), (4, SIZE, SIZE, 3))

    @jax.jit
    def step(params):
        def loss(params):
            return jnp.mean(jnp.square(model.apply({**digits, 'params': params}, x)))

        updates, _ = tx.update(jax.grad(loss)(params), tx.init(params), params)
        return optax.apply_updates(params, updates)

    after = step(params)
    moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), params, after)
    same = jax.tree.leaves(jax.tree.map(lambda moved, frozen: moved != frozen, moved, frozen))
    assert all(same)
    assert 0 < sum(jax.tree.leaves(frozen)) < len(same)
    same_kind = hrnet_jax.matching(flax.core.freeze(params), '^backbone/(conv|bn)')
    assert jax.tree.structure(same_kind) == jax.tree.structure(flax.core.freeze(params))
    boxed = {'part': {'kernel': nn.Partitioned(jnp.ones(3), ('a',)), 'bias': jnp.ones(2)}}
    assert hrnet_jax.matching(boxed, 'kernel') == {'part': {'kernel': True, 'bias': False}}
    with pytest.raises(hrnet_jax.UserError, match='matches no array'):
        hrnet_jax.matching({}, 'kernel')
    with pytest.raises(hrnet_jax.UserError, match='matches no array'):
        hrnet_jax.matching(params, 'stage9')


def test_fine_tuning_beats_training_from_scratch(digits, standard_promotion):
    """At equal steps, on another task of the same scans: which two digits are side by side,
    of 45 pairs, is too much for as few steps; whether the digit is even is not."""
    sys.path.append(str(EXAMPLES))
    from digits import scans

    def prepared(split, count):
        images, labels = (part[:count] for part in scans()[split])
        x = jax.image.resize(images / 127.5 - 1, (count, SIZE, SIZE, 1), 'bilinear')
        return jnp.repeat(x.astype(jnp.float32), 3, -1), jnp.asarray(labels % 2)

    x, y = prepared('train', 128)
    unseen, truth = prepared('test', 256)
    model = create_model('tiny', 2)
    tx = optax.sgd(0.02, momentum=0.9, nesterov=True)

    @jax.jit
    def step(variables, opt_state, images, labels):
        def loss(params):
            state = {**variables, 'params': params}
            logits, new = model.apply(state, images, train=True, mutable=['batch_stats'])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), new['batch_stats']

        grads, stats = jax.grad(loss, has_aux=True)(variables['params'])
        updates, opt_state = tx.update(grads, opt_state, variables['params'])
        params = optax.apply_updates(variables['params'], updates)
        return {'params': params, 'batch_stats': stats}, opt_state

    def accuracy(variables):
        opt_state = tx.init(variables['params'])
        for i in range(12):
            part = slice(32 * (i % 4), 32 * (i % 4) + 32)
            variables, opt_state = step(variables, opt_state, x[part], y[part])
        logits = jax.jit(model.apply)(variables, unseen)
        return float(jnp.mean(jnp.argmax(logits, -1) == truth))

    scratch = init(model, jax.random.key(0))
    tuned, _ = hrnet_jax.transfer(scratch, digits, fresh='head/classifier')
    ours, theirs = accuracy(tuned), accuracy(scratch)
    assert ours > 0.9, (ours, theirs)
    assert ours > theirs + 0.05, (ours, theirs)


def test_the_last_layer_of_other_classes_is_new(digits_data, tmp_path):
    """As many classes, with other names: their weights say nothing of the new ones."""
    model = hrnet_jax.create_model('tiny', 10)
    variables = hrnet_jax.init(model, jax.random.key(5))
    described = checkpoint.describe(model) | {'transform': hrnet_jax.Transform(32, 32).to_json()}
    kernel = np.asarray(variables['params']['head']['classifier']['kernel'])
    for names, kept in ((list('abcdefghij'), False), (list('0123456789'), True), (None, True)):
        folder = tmp_path / f'{names and names[0]}'
        checkpoint.save(folder, variables, described | {'class_names': names})
        recipe = dataclasses.replace(recipes()['digits'](), init=str(folder))
        options = Options(tmp_path / f'run {folder.name}', digits_data, tensorboard=False)
        said = []
        started = Experiment('tiny', recipe, options, said.append).start().params
        again = np.asarray(started['head']['classifier']['kernel'])
        assert np.array_equal(again, kernel) == kept
        assert any('last layer new for 10 classes' in line for line in said) != kept
        stem = started['backbone']['conv1']['kernel']
        assert np.array_equal(stem, variables['params']['backbone']['conv1']['kernel'])
