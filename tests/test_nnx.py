"""The NNX module beside the Linen module that it holds: the same bits."""

from __future__ import annotations

import dataclasses

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rules import image
from steps import Small

import hrnet_jax
from hrnet_jax.archs import ARCHS
from hrnet_jax.models import create_model, variable_shapes
from hrnet_jax.nnx import Network, from_linen

RATE, MOMENTUM = 0.1, 0.9


@pytest.fixture(scope='module', autouse=True)
def quick():
    """Compiles in a part of the time."""
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='module')
def batch():
    return jnp.asarray(image(1, 4, 32, 32)), jnp.arange(4, dtype=jnp.int32)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def loss_of(logits, labels):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def train_step(module, optimizer, images, labels):
    def loss(module):
        return loss_of(module(images, train=True), labels)

    value, grads = nnx.value_and_grad(loss)(module)
    optimizer.update(module, grads)
    return value


@pytest.fixture(scope='module')
def small():
    """One of few layers, which the adapter treats as all others."""
    model = Small()
    return model, model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@pytest.fixture(scope='module')
def linen_steps(small, batch):
    """[(loss, variables)] after each of two steps, without NNX."""
    model, variables = small
    tx = optax.sgd(RATE, MOMENTUM)

    @jax.jit
    def step(variables, state, images, labels):
        def loss(params):
            given = {**variables, 'params': params}
            logits, new = model.apply(given, images, train=True, mutable=['batch_stats'])
            return loss_of(logits, labels), new['batch_stats']

        params = variables['params']
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return value, {'params': params, 'batch_stats': stats}, state

    state, results = tx.init(variables['params']), []
    for _ in range(2):
        value, variables, state = step(variables, state, *batch)
        results.append((value, variables))
    return results


def test_the_same_outputs(tiny, batch):
    model, variables = tiny

    @jax.jit
    def linen(variables, images):
        return [model.apply(variables, images, method=m) for m in ('__call__', 'features', 'embed')]

    @nnx.jit
    def ours(module, images):
        return [module(images), module.features(images), module.embed(images)]

    module = from_linen(model, variables)
    same(ours(module, batch[0]), linen(variables, batch[0]))
    same(module.variables(), variables)


def test_backbones_and_folded_models(tiny, batch):
    model, variables = tiny
    backbone = hrnet_jax.HRNet(model.arch)
    fast = hrnet_jax.fold(model, variables)
    own = {name: tree['backbone'] for name, tree in variables.items()}
    for linen, given in ((backbone, own), (fast.model, fast.variables)):
        module = from_linen(linen, given)
        wanted = jax.jit(linen.apply)(given, batch[0])
        same(nnx.jit(lambda module, images: module(images))(module, batch[0]), wanted)
        assert module.variables().keys() == given.keys()
        same(module.variables(), given)
    with pytest.raises(hrnet_jax.UserError, match='folded'):
        module(batch[0], train=True)


def test_training_as_linen_trains(small, batch, linen_steps):
    """Losses, parameters and running statistics of two steps, to the bit."""
    module = from_linen(*small)
    optimizer = nnx.Optimizer(module, optax.sgd(RATE, MOMENTUM), wrt=nnx.Param)
    step = nnx.jit(train_step)
    for value, variables in linen_steps:
        same(step(module, optimizer, *batch), value)
        same(module.variables(), variables)
    before = jax.tree.leaves(small[1])
    changed = [(a != b).any() for a, b in zip(jax.tree.leaves(variables), before, strict=True)]
    assert all(changed)


def test_training_split_once(small, batch, linen_steps):
    """The fast way."""
    module = from_linen(*small)
    optimizer = nnx.Optimizer(module, optax.sgd(RATE, MOMENTUM), wrt=nnx.Param)
    graphdef, state = nnx.split((module, optimizer))

    @jax.jit
    def step(state, images, labels):
        module, optimizer = nnx.merge(graphdef, state)
        value = train_step(module, optimizer, images, labels)
        return value, nnx.state((module, optimizer))

    for wanted, _ in linen_steps:
        value, state = step(state, *batch)
        same(value, wanted)
    nnx.update((module, optimizer), state)
    same(module.variables(), linen_steps[-1][1])


class Detector(nnx.Module):
    def __init__(self, network, rngs):
        self.network = network
        self.head = nnx.Linear(network.model.arch.features, 3, rngs=rngs)

    def __call__(self, images):
        return self.head(self.network.embed(images))


def test_part_of_a_module_of_ones_own(tiny, batch):
    """Its mode is that of the whole; filters name its parts."""
    detector = Detector(from_linen(*tiny), nnx.Rngs(0))
    wrt = nnx.All(nnx.Param, nnx.Not(nnx.PathContains('backbone')))
    optimizer = nnx.Optimizer(detector, optax.sgd(RATE), wrt=wrt)

    @nnx.jit
    def step(module, optimizer, images):
        def loss(module):
            return jnp.sum(jnp.square(module(images)))

        optimizer.update(module, nnx.grad(loss, argnums=nnx.DiffState(0, wrt))(module))

    def changed():
        """Of each array, whether it is another than at first."""
        pairs = (jax.tree.leaves(v) for v in (detector.network.variables(), tiny[1]))
        different = [np.any(a != b) for a, b in zip(*pairs, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(tiny[1]), different)

    detector.train()
    step(detector, optimizer, batch[0])
    now = changed()
    assert all(jax.tree.leaves(now['batch_stats']))
    assert not any(jax.tree.leaves(now['params']['backbone']))
    assert any(jax.tree.leaves(now['params']['head']['incre_modules_0_0']))
    detector.eval()
    assert detector.network.use_running_average


def test_split_merge_and_the_linen_tree(tiny, batch):
    model, variables = tiny
    for given in (variables, flax.core.freeze(variables), jax.tree.map(np.asarray, variables)):
        module = from_linen(model, given)
        same(module.variables(), variables)
    graphdef, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)
    names = {'/'.join(path) for path in dict(nnx.to_flat_state(params))}
    assert 'params/backbone/conv1/kernel' in names
    assert len(names) == len(jax.tree.leaves(variables['params']))
    assert len(jax.tree.leaves(stats)) == len(jax.tree.leaves(variables['batch_stats']))
    merged = nnx.merge(graphdef, jax.tree.map(np.zeros_like, params), stats)
    assert isinstance(merged, Network)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(merged.variables()['params']))
    same(merged.variables()['batch_stats'], variables['batch_stats'])
    nnx.update(merged, params)
    same(merged.variables(), variables)
    same(module.variables(), variables)


@pytest.mark.skipif(not hasattr(nnx, 'view'), reason='of later releases of Flax')
def test_views(tiny):
    module = from_linen(*tiny)
    view = nnx.view(module, use_running_average=False)
    assert (module.use_running_average, view.use_running_average) == (True, False)
    same(view.variables(), tiny[1])


def test_a_classifiers_variables_will_do(tiny, batch):
    maps = hrnet_jax.FeatureMaps('tiny', 'widened', (0, 4))
    module = from_linen(maps, tiny[1])
    assert set(module.params['head']) == {'incre_modules_3_0'}
    got = jax.jit(lambda module, x: module(x))(module, batch[0])
    same(got, jax.jit(maps.apply)(tiny[1], batch[0]))


def test_what_does_not_fit(tiny, batch):
    model, variables = tiny
    with pytest.raises(hrnet_jax.UserError, match='differ at params/head/classifier/bias'):
        from_linen(create_model('tiny', 11), variables)
    larger = create_model(dataclasses.replace(ARCHS['tiny'], modules=(2, 1, 1)), 10)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape), variable_shapes(larger))
    with pytest.raises(hrnet_jax.UserError, match='differ at batch_stats/backbone/stage2_1/'):
        from_linen(model, zeros)
    with pytest.raises(hrnet_jax.UserError, match='differ at batch_stats'):
        from_linen(model, {'params': variables['params']})
    with pytest.raises(hrnet_jax.UserError, match='width 33'):
        from_linen(model, variables)(jnp.zeros((1, 32, 33, 3)))
