"""Fresh variables: of our models, and of modules with one inside."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError
from flax.traverse_util import flatten_dict

import hrnet_jax
from hrnet_jax import layers
from hrnet_jax.inference.folded_blocks import Form
from hrnet_jax.inference.padding import Padded
from hrnet_jax.initialisation import init
from hrnet_jax.introspection import structure
from hrnet_jax.models import create_model, variable_shapes


def test_initial_distributions():
    """The official ones, and the same ones that Flax's own `init` draws."""
    model = create_model('tiny')
    fast = flatten_dict(init(model, jax.random.key(0)))
    some = [path for i, path in enumerate(fast) if i % 5 == 0 or 'classifier' in path]

    @jax.jit
    def slow(key):
        """A part of them, because a program that draws all takes long to compile."""
        made = flatten_dict(model.init(key, jnp.zeros((1, 32, 32, 3))))
        assert made.keys() == fast.keys()
        return {path: made[path] for path in some}

    for variables in (fast, slow(jax.random.key(1))):
        for names, leaf in variables.items():
            value = np.asarray(leaf)
            if names[-2] == 'classifier':
                bound = 64**-0.5
                assert 0.97 * bound < np.abs(value).max() <= bound
                assert abs(value.std() - bound / 3**0.5) < 0.05 * bound
            elif names[-1] == 'kernel' and value.size > 2000:
                height, width, _, out = value.shape
                expected = (2 / (height * width * out)) ** 0.5
                assert abs(value.std() / expected - 1) < 4 / (2 * value.size) ** 0.5
            elif names[-1] != 'kernel':
                assert (value == (names[-1] in ('scale', 'var'))).all()


def test_initialisation_is_a_function_of_the_key():
    model = create_model('tiny', 10)
    variables = [init(model, jax.random.key(n)) for n in (0, 0, 1)]
    kernels = [np.asarray(v['params']['backbone']['conv1']['kernel']) for v in variables]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
    traced = jax.jit(lambda key: init(model, key))(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, traced, variables[0])
    with pytest.raises(hrnet_jax.UserError, match='200'):
        init(model, jax.random.key(0), image_size=200)


class Wrapped(nn.Module):
    """A module of a user's own: two backbones, arrays of its own, other inputs."""

    @nn.compact
    def __call__(self, images, points, train):
        maps = [hrnet_jax.HRNet('tiny', name=f'net{i}')(images, train) for i in range(2)]
        ones = self.param('ones', lambda key: jnp.full(3, 7.0))
        self.sow('seen', 'count', points.shape[0])
        self.variable('norm', 'mean', lambda: images.mean((0, 1, 2)))
        return nn.Dense(4, name='out')(maps[0][3].mean((1, 2)) + maps[1][3].mean((1, 2))), ones


def test_initialisation_of_modules_of_ones_own():
    """Backbones as everywhere; the rest as the module says."""
    model = Wrapped()
    inputs = (jnp.full((1, 32, 32, 3), 5.0), jax.ShapeDtypeStruct((5, 2), jnp.int32))
    variables = init(model, jax.random.key(0), inputs=inputs, train=False)
    make = functools.partial(model.init, train=False)
    shapes = jax.eval_shape(make, jax.random.key(0), *inputs)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(lambda s: s.shape, shapes)
    params = variables['params']
    np.testing.assert_array_equal(params['ones'], 7)
    np.testing.assert_array_equal(variables['norm']['mean'], 5)
    assert 0.5 < float(params['out']['kernel'].std()) * 48**0.5 < 1.5
    kernels = [np.asarray(params[f'net{i}']['layer1_0']['conv2']['kernel']) for i in range(2)]
    assert not np.array_equal(*kernels)
    height, width, _, out = kernels[0].shape
    assert all(abs(k.std() / (2 / (height * width * out)) ** 0.5 - 1) < 0.1 for k in kernels)


class Extended(hrnet_jax.HRNet):
    @nn.compact
    def __call__(self, images, train=False):
        pooled = super().__call__(images, train)[3].mean((1, 2))
        return nn.Dense(4, bias_init=nn.initializers.ones, name='extra')(pooled)


class Ensemble(nn.Module):
    @nn.compact
    def __call__(self, images):
        many = nn.vmap(
            hrnet_jax.HRNet,
            in_axes=None,
            axis_size=2,
            variable_axes={'params': 0, 'batch_stats': 0},
            split_rngs={'params': True},
        )
        return many('tiny', name='nets')(images)


def test_initialisation_of_subclasses_and_ensembles():
    """What is not a layer of ours, or changed by Flax, is the module's."""
    params = init(Extended('tiny'), jax.random.key(0), 32)['params']
    np.testing.assert_array_equal(params['extra']['bias'], 1)
    made = jax.eval_shape(lambda key: init(Ensemble(), key, 32), jax.random.key(0))
    assert made['params']['nets']['conv1']['kernel'].shape == (2, 3, 3, 3, 16)


def test_initialisation_of_other_inputs():
    key = jax.random.key(0)
    bilinear = hrnet_jax.HRNet('tiny', upsample='bilinear')
    assert 'conv1' in init(bilinear, key, 200)['params']
    assert 'head' in init(create_model('tiny', 3), key, np.int64(32))['params']
    init(hrnet_jax.HRNet('tiny'), key, inputs=jnp.zeros((1, 32, 32, 3)))
    for size in ((32,), 32.0, (32, (32, 32))):
        with pytest.raises(hrnet_jax.UserError, match='neither one integer nor two'):
            init(bilinear, key, size)
    with pytest.raises(hrnet_jax.UserError, match='folded'):
        init(bilinear.clone(blocks=Form()), key)
    maps = hrnet_jax.FeatureMaps('tiny', 'widened', (0, 3))
    assert jax.tree.map(jnp.shape, init(maps, jax.random.key(0))) == jax.tree.map(
        lambda s: s.shape, variable_shapes(maps)
    )


@pytest.mark.parametrize(
    'model',
    [
        create_model('tiny', 7, in_channels=5, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16),
        create_model('w18_small_v2', remat=True),
        create_model('tiny', blocks=Padded(8)),
        create_model('tiny', blocks=Form(8, kernels='OHWI')),
        create_model('w18_small_v2', blocks=Form(winograd=40)),
        hrnet_jax.HRNet('tiny', outputs=1, upsample='bilinear'),
        hrnet_jax.FeatureMaps('tiny', kind='widened', out_indices=(0, 2)),
        hrnet_jax.FeatureMaps('tiny', kind='concatenated', blocks=Form(winograd=200)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_shapes_without_the_computation(model):
    images = jnp.zeros((1, 64, 64, model.in_channels))
    expected = jax.eval_shape(lambda key: model.init(key, images), jax.random.key(0))
    assert variable_shapes(model) == expected


@pytest.mark.parametrize('model', [create_model('tiny'), nn.jit(hrnet_jax.HRNet)('tiny')])
def test_what_is_traced_for_shapes_does_not_stay(model):
    def program():
        return str(jax.make_jaxpr(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))

    jax.clear_caches()
    expected = program()
    jax.clear_caches()
    structure.cache_clear()
    variable_shapes(model)
    assert program() == expected


def test_equal_layers_are_traced_once(monkeypatch):
    model = create_model('w18_small_v2')
    shapes = variable_shapes(model)
    traced = []
    inner = layers.parameter
    monkeypatch.setattr(layers, 'parameter', lambda *args: traced.append(0) or inner(*args))
    jax.make_jaxpr(model.apply)(shapes, jnp.zeros((1, 32, 32, 3)))
    assert 0 < len(traced) < len(jax.tree.leaves(shapes['params'])) / 2


def test_parameters_of_another_shape_are_refused():
    model = create_model('tiny')
    variables = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype),
        variable_shapes(create_model('tiny', in_channels=4)),
    )
    with pytest.raises(ScopeParamShapeError, match='"kernel" in "backbone/conv1"'):
        jax.eval_shape(model.apply, variables, jnp.zeros((1, 32, 32, 3)))
