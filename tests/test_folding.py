"""Folded networks: the same numbers, whatever pays on the platform."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import flax.core
import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from rules import close, image, weight

import hrnet_jax
from hrnet_jax.heads.classification import ClassifierArch
from hrnet_jax.inference import folding, winograd
from hrnet_jax.initialisation import init
from hrnet_jax.models import create_model, variable_shapes

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
    return x, all_of(model, variables, x)


def rule_made(shapes):
    kinds = {'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}

    def made(path, leaf):
        names = [key.key for key in path]
        return weight('/'.join(names) + '.' + kinds.get(names[-1], 'weight'), leaf.shape)

    return jax.tree_util.tree_map_with_path(made, shapes)


METHODS = ('features', '__call__', 'embed')


def all_of(model, variables, x):
    """Of each method, in one program."""
    run = jax.jit(lambda v, x: {m: model.apply(v, x, method=m) for m in METHODS})
    return {m: jax.tree.leaves(found) for m, found in run(variables, x).items()}


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
            close(winograd.join(got, size), np.asarray(wanted) + bias) < {32: 2e-5, 64: 1e-13}[bits]
        )


@pytest.mark.parametrize(
    ('platform', 'fields'),
    [
        ('cpu', {'winograd': 200}),
        ('cpu', {'winograd': 20}),  # some branches, and others not
        ('gpu', {'channel_multiple': 8}),
        ('tpu', {}),
    ],
)
def test_folding_batch_norm(narrow, expected, platform, fields, monkeypatch):
    """The same maps and logits without a single BatchNorm left."""
    monkeypatch.setitem(folding.PLANS, (platform, 'float32'), fields)
    model, variables = narrow
    x, wanted = expected
    fast = hrnet_jax.fold(model, variables, platform)
    assert all(getattr(fast.model.blocks, name) == value for name, value in fields.items())
    assert fast.model.blocks.winograd == fields.get('winograd', 0)
    assert fast.variables.keys() == {'params'}
    shapes = jax.eval_shape(fast.model.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, fast.variables)
    got = all_of(fast.model, fast.variables, x)
    assert max(close(*pair) for m in METHODS for pair in zip(got[m], wanted[m], strict=True)) < 1e-5
    # A call is another program, with the same numbers whatever the form.
    for method in METHODS if fields == {'winograd': 200} else ():
        called = jax.tree.leaves(fast(x, method))
        assert max(map(close, called, wanted[method])) < 1e-5
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
    assert not fast.model.blocks.winograd
    x = jnp.asarray(image(1, 2, 32, 32))
    assert close(fast(x), jax.jit(model.apply)(variables, x)) < 0.05


def test_a_backbone_of_ones_own():
    backbone = hrnet_jax.HRNet(hrnet_jax.archs.ARCHS['tiny'], upsample='bilinear', outputs=1)
    x = jax.random.normal(jax.random.key(1), (1, 50, 70, 3))
    variables = init(backbone, jax.random.key(0), inputs=[x])
    fast = hrnet_jax.fold(backbone, variables)
    assert close(fast(x)[0], jax.jit(backbone.apply)(variables, x)[0]) < 1e-5


def test_many_images_go_in_pieces(narrow, monkeypatch):
    """With the same numbers, the last piece padded."""
    model, variables = narrow
    fast = hrnet_jax.fold(model, variables)
    x = jnp.asarray(image(3, 11, 32, 32))
    monkeypatch.setattr(folding, 'at_a_time', lambda: 4)
    pieces = jax.make_jaxpr(functools.partial(folding.apply, fast.model))(fast.variables, x)
    assert 'f32[3,4,32,32,3]' in str(pieces)
    assert close(fast(x), jax.jit(model.apply)(variables, x)) < 1e-5
    maps = jax.eval_shape(functools.partial(fast, method='features'), x)
    assert [m.shape[0] for m in maps] == [11] * 4


def test_large_kernels_stay_on_cpus():
    """F(4x4, 3x3) has four times as many numbers: not of 256 channels and more."""
    model = create_model('tiny', 10, channels=(8, 16, 192, 256))
    fast = hrnet_jax.fold(model, rule_made(variable_shapes(model)), 'cpu')
    branches = fast.variables['params']['backbone']['stage4_0']
    shapes = [branches[f'branches_{i}']['conv1']['kernel'].shape[1:] for i in (2, 3)]
    assert shapes == [(36, 192, 192), (3, 3, 256, 256)]


def test_images_on_two_devices(narrow):
    model, variables = narrow
    fast, x = hrnet_jax.fold(model, variables), jnp.asarray(image(6, 24, 32, 32))
    wanted = jax.jit(model.apply)(variables, x)
    mesh = Mesh(np.array(jax.devices()), ('data',), axis_types=(AxisType.Auto,))
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec('data')))
    everywhere = jax.device_put(fast.variables, NamedSharding(mesh, PartitionSpec()))
    both = hrnet_jax.Folded(fast.model, everywhere)
    logits = both(spread)
    assert len(logits.devices()) == 2
    assert close(logits, wanted) < 1e-5


def test_more_than_ten_equal_blocks():
    """The tenth follows the ninth, though '10' sorts before '9'."""
    sizes = (6, 12, 24, 48), (12, 12), (1, 1, 1), (11, 1, 1), 4, (16, 32, 48, 64), 64
    arch = ClassifierArch('mine', *sizes)
    model = create_model(arch, 10)
    variables = rule_made(variable_shapes(model))
    x = jnp.asarray(image(4, 2, 32, 32))
    fast = hrnet_jax.fold(model, flax.core.freeze(variables), 'cpu')
    branch = fast.variables['params']['backbone']['stage2_0']['branches_0']
    assert branch['conv1']['bias'].shape == (11, 6)
    assert close(fast(x), jax.jit(model.apply)(variables, x)) < 1e-5


def test_inside_programs_of_ones_own(narrow):
    model, variables = narrow
    fast = hrnet_jax.fold(model, variables)
    x = jnp.asarray(image(5, 2, 32, 32))
    assert close(jax.jit(fast)(x), jax.jit(model.apply)(variables, x)) < 1e-5
    assert fast(x[:0]).shape == (0, 10)
    any_batch = jax.ShapeDtypeStruct((*jax.export.symbolic_shape('n'), 32, 32, 3), x.dtype)
    program = jax.export.export(jax.jit(fast))(any_batch)
    assert program.out_avals[0].shape[1] == 10
    assert 'reduce' not in repr(fast)
    assert 'array(' not in repr(fast).lower()
    # In a program whose images, or whose weights, are not traced.
    for program in (lambda v: hrnet_jax.Folded(fast.model, v)(x), lambda _: fast(x)):
        assert jax.make_jaxpr(program)(fast.variables).out_avals[0].shape == (2, 10)
    for wrong in (x[0], x[..., :2]):
        with pytest.raises(hrnet_jax.UserError, match='shape'):
            fast(wrong)
    with pytest.raises(hrnet_jax.UserError, match='folded already'):
        hrnet_jax.fold(fast.model, fast.variables)
    with pytest.raises(hrnet_jax.UserError, match='outside of jax.jit'):
        jax.jit(lambda v: hrnet_jax.fold(model, v).variables)(variables)
    with pytest.raises(hrnet_jax.UserError, match="'npu'; known: cpu, gpu"):
        hrnet_jax.fold(model, variables, 'npu')
    for other in (create_model('tiny', 20), create_model('tiny', 10)):
        with pytest.raises(hrnet_jax.UserError, match='differ at'):
            hrnet_jax.fold(other, variables)
    with pytest.raises(hrnet_jax.UserError, match='Dense is no HRNet'):
        hrnet_jax.fold(nn.Dense(3), variables)
    with pytest.raises(hrnet_jax.UserError, match='folded'):
        init(fast.model, jax.random.key(0))


@pytest.fixture
def fresh_options():
    folding._options_of_cpu.cache_clear()
    yield
    folding._options_of_cpu.cache_clear()


def test_options_that_the_compiler_does_not_know(monkeypatch, fresh_options):
    """Are left out: releases differ."""
    known = folding._options_of_cpu()
    assert known
    assert all(name.startswith('xla_') for name in known)
    monkeypatch.setattr(folding, 'CPU_OPTIONS', {'xla_cpu_of_tomorrow': True})
    folding._options_of_cpu.cache_clear()
    assert folding._options_of_cpu() is None


KEEP = """
import os, sys
from hrnet_jax.runtime import compilation
import jax
{before}
compilation.enable_cache()
print(jax.config.jax_compilation_cache_dir, jax.config.jax_compilation_cache_max_size)
"""


HOMELESS = """
from pathlib import Path
def home(): raise RuntimeError
Path.home = home
"""


@pytest.mark.parametrize(
    ('before', 'environment', 'kept'),
    [
        ('', {}, True),
        ('', {'JAX_COMPILATION_CACHE_MAX_SIZE': '1000'}, True),
        ('', {'XDG_CACHE_HOME': '/proc/nowhere'}, False),
        ('', {'JAX_ENABLE_COMPILATION_CACHE': 'false'}, False),
        (HOMELESS, {'XDG_CACHE_HOME': ''}, False),
    ],
)
def test_programs_are_kept(before, environment, kept, tmp_path):
    """In the user's cache folder, unless told not to; without a folder there is no cache."""
    given = {k: v for k, v in os.environ.items() if not k.startswith('JAX_')}
    given |= {'JAX_PLATFORMS': 'cpu', 'XDG_CACHE_HOME': str(tmp_path)} | environment
    done = subprocess.run(
        [sys.executable, '-c', KEEP.format(before=before)],
        env=given | {'PYTHONPATH': str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, '')
    folder, size = done.stdout.split()
    assert folder.startswith(f'{tmp_path}/hrnet_jax/xla/') == kept
    if kept:
        limit = int(environment.get('JAX_COMPILATION_CACHE_MAX_SIZE', 2 * 2**30))
        assert int(size) == limit


@pytest.mark.parametrize('platform', ['cuda', 'bogus'])
def test_devices_that_are_not_there(platform):
    code = 'from hrnet_jax.runtime import cli, compilation; cli.run(compilation.enable_cache)'
    given = os.environ | {'PYTHONPATH': str(Path(__file__).parents[1]), 'JAX_PLATFORMS': platform}
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    message = f'error: JAX finds no device for JAX_PLATFORMS={platform}'
    assert done.stderr.splitlines()[-1].startswith(message)


def test_options_are_left_out_inside_of_programs():
    """JAX refuses them in a program and in a derivative; outside they are used."""
    used = []
    compiled = jax.jit(jnp.sin, compiler_options={'xla_backend_optimization_level': 1})

    def call(x):
        used.append(not folding.traced(x))
        return compiled(x) if used[-1] else jnp.sin(x)

    x = jnp.ones(3)
    np.testing.assert_array_equal(call(x), jnp.sin(x))
    assert used == [True]
    for transformed in (
        jax.jit(call),  # below it is another function each time: JAX keeps what it has traced
        jax.jit(lambda _: call(x)),  # nothing that it is called with is traced
        jax.vmap(lambda y: call(y)),
        jax.jit(jax.vmap(lambda y: call(y))),
        jax.grad(lambda x: call(x).sum()),
        jax.jit(jax.grad(lambda x: call(x).sum())),
        jax.checkpoint(lambda y: call(y)),
        lambda x: jax.eval_shape(lambda y: call(y), x),
        lambda x: jax.linearize(lambda y: call(y), x)[0],
        lambda x: jax.lax.map(lambda y: call(y), x),
    ):
        used.clear()
        assert transformed(x).shape == (3,)
        assert used
        assert not any(used)
    folded = folding.Folded(None, {'params': {'kernel': x}})
    assert not folded._traced
    jax.grad(lambda x: used.append(folding.Folded(None, {'kernel': x})._traced) or x.sum())(x)
    assert used[-1]
