"""Folded networks: the same numbers, whatever pays on the platform."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from rules import close, image, weight

import hrnet_jax
from hrnet_jax import folding, winograd
from hrnet_jax.models import create_model, init, variable_shapes

SIZES = ((8, 4), (7, 7), (14, 10), (5, 9), (1, 1), (2, 13))


@pytest.fixture(scope='module')
def narrow():
    """tiny with channels that are no multiples of 8, rule-made."""
    model = create_model('tiny', 10, channels=(10, 18, 36, 44))
    return model, rule_made(variable_shapes(model))


@pytest.fixture(scope='module')
def expected(narrow):
    model, variables = narrow
    x = jnp.asarray(image(6, 3, 64, 96))
    return x, {m: all_of(model, variables, x, m) for m in ('features', '__call__', 'embed')}


def rule_made(shapes):
    kinds = {'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}

    def made(path, leaf):
        names = [key.key for key in path]
        return weight('/'.join(names) + '.' + kinds.get(names[-1], 'weight'), leaf.shape)

    return jax.tree_util.tree_map_with_path(made, shapes)


def all_of(model, variables, x, method):
    return jax.tree.leaves(jax.jit(functools.partial(model.apply, method=method))(variables, x))


@pytest.mark.parametrize('bits', [32, 64])
@pytest.mark.parametrize('size', SIZES)
def test_winograd_is_the_convolution(size, bits):
    with jax.enable_x64(bits == 64):
        random = np.random.default_rng(0)
        x = random.standard_normal((3, *size, 5)).astype(f'float{bits}')
        kernel = random.standard_normal((3, 3, 5, 7)).astype(f'float{bits}')
        bias = random.standard_normal(7).astype(f'float{bits}')
        wanted = lax.conv_general_dilated(
            x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )
        tiles = winograd.split(jnp.asarray(x))
        assert np.array_equal(np.asarray(winograd.join(tiles, size)), x)
        # What lies beyond the map must not matter, not even infinity.
        inside = winograd.split(jnp.ones(x.shape, bool))
        tiles = jnp.where(inside, tiles, jnp.full_like(tiles, jnp.inf))
        got = winograd.convolve(tiles, winograd.transform_kernel(kernel), jnp.asarray(bias), size)
        assert got.dtype == x.dtype
        assert (
            close(winograd.join(got, size), np.asarray(wanted) + bias) < {32: 5e-6, 64: 1e-14}[bits]
        )


@pytest.mark.parametrize(
    ('platform', 'fields'),
    [
        ('cpu', {'winograd': True}),
        ('gpu', {'channel_multiple': 8}),
        ('tpu', {}),
    ],
)
def test_folding_batch_norm(narrow, expected, platform, fields, monkeypatch):
    """The same maps and logits without a single BatchNorm left."""
    monkeypatch.setitem(folding.PLANS, ('gpu', 'float32'), folding.PLANS['gpu', 'bfloat16'])
    model, variables = narrow
    x, wanted = expected
    fast = hrnet_jax.fold(model, variables, platform)
    assert all(getattr(fast.model, name) == value for name, value in fields.items())
    assert fast.model.winograd == ('winograd' in fields)
    assert fast.variables.keys() == {'params'}
    shapes = jax.eval_shape(fast.model.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, fast.variables)
    for method, maps in wanted.items():
        for got in (all_of(*vars(fast).values(), x, method), jax.tree.leaves(fast(x, method))):
            assert max(map(close, got, maps)) < 1e-5
    text = str(jax.make_jaxpr(fast.model.apply)(fast.variables, x))
    assert 'rsqrt' not in text
    if platform == 'gpu':
        assert fast.variables['params']['backbone']['transition1_0_0']['kernel'].shape[-1] == 16


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
def test_folding_bfloat16(platform):
    model = create_model('tiny', 10, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16)
    variables = init(model, jax.random.key(0))
    fast = hrnet_jax.fold(model, variables, platform)
    kernel = fast.variables['params']['backbone']['conv1']
    assert {leaf.dtype for leaf in kernel.values()} == {jnp.dtype('bfloat16')}
    assert not fast.model.winograd
    x = jnp.asarray(image(1, 2, 32, 32))
    assert close(fast(x), model.apply(variables, x)) < 0.05


def test_a_backbone_of_ones_own():
    backbone = hrnet_jax.HRNet(hrnet_jax.archs.ARCHS['tiny'], upsample='bilinear', outputs=1)
    x = jax.random.normal(jax.random.key(1), (1, 50, 70, 3))
    variables = backbone.init(jax.random.key(0), x)
    fast = hrnet_jax.fold(backbone, variables)
    assert close(fast(x)[0], backbone.apply(variables, x)[0]) < 1e-5


def test_many_images_go_in_pieces(narrow, monkeypatch):
    """With the same numbers, the last piece padded."""
    model, variables = narrow
    fast = hrnet_jax.fold(model, variables)
    x = jnp.asarray(image(3, 11, 32, 32))
    monkeypatch.setattr(folding, '_cores', lambda: {0, 1})
    pieces = jax.make_jaxpr(functools.partial(folding.apply, fast.model))(fast.variables, x)
    assert 'f32[3,4,32,32,3]' in str(pieces)
    whole = fast.model.apply(fast.variables, x)
    assert close(fast(x), whole) < 1e-6
    assert [m.shape[0] for m in fast(x, 'features')] == [11] * 4


def test_options_that_the_compiler_does_not_know(monkeypatch):
    """Are left out: releases differ."""
    folding._options_of_cpu.cache_clear()
    known = folding._options_of_cpu()
    assert known
    assert all(name.startswith('xla_cpu') for name in known)
    monkeypatch.setattr(folding, 'CPU_OPTIONS', {'xla_cpu_of_tomorrow': True})
    folding._options_of_cpu.cache_clear()
    assert folding._options_of_cpu() is None
    folding._options_of_cpu.cache_clear()
