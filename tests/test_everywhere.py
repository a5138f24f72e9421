"""The model in every transformation of JAX; promotion of types and of ranks is an error here."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from rules import close, image
from steps import Small, begun, binary_batch, host, prepared

import hrnet_jax
from hrnet_jax.models import create_model
from hrnet_jax.tasks.classification_recipes import Official, Strong
from hrnet_jax.training.step import make_schedule

QUICK = {'xla_backend_optimization_level': 0}


@pytest.fixture(scope='module')
def images():
    return jnp.asarray(image(1, 4, 32, 32))


def compiled(function):
    return jax.jit(function, compiler_options=QUICK)


@pytest.fixture(scope='module')
def expected(tiny, images):
    return np.asarray(compiled(tiny[0].apply)(tiny[1], images))


def test_promotion_is_an_error_here():
    assert jax.config.jax_numpy_dtype_promotion == 'strict'
    assert jax.config.jax_numpy_rank_promotion == 'raise'
    assert len(jax.devices()) == 2


def test_vmap(tiny, images, expected):
    model, variables = tiny
    each = jax.vmap(lambda x: model.apply(variables, x[None])[0])
    assert close(compiled(each)(images), expected) < 1e-5


def test_an_ensemble(tiny, images, expected):
    """vmap over the variables."""
    model, variables = tiny
    both = jax.tree.map(lambda x: np.stack([x, x]), variables)
    logits = compiled(jax.vmap(model.apply, (0, None)))(both, images)
    assert all(close(member, expected) < 1e-5 for member in logits)


def test_shard_map(tiny, images, expected):
    mesh = Mesh(np.array(jax.devices()), ('data',))
    split = jax.shard_map(tiny[0].apply, mesh=mesh, in_specs=(P(), P('data')), out_specs=P('data'))
    logits = compiled(split)(tiny[1], images)
    assert len(logits.sharding.device_set) == 2
    assert close(logits, expected) < 1e-5


def test_checkpoint_and_gradient_of_images(tiny, images):
    """The gradient of a rematerialised model, beside a difference quotient."""
    model, variables = tiny
    target = jnp.asarray(np.random.default_rng(0).standard_normal((4, 10), np.float32))

    def loss(images):
        return jnp.sum(target * jax.checkpoint(model.apply)(variables, images))

    grad = compiled(jax.grad(loss))(images)
    assert 'remat' in str(jax.make_jaxpr(jax.grad(loss))(images))
    slope = float(jnp.sum(jnp.square(grad)))
    h = 1e-3 / slope**0.5
    values = [float(compiled(loss)(images + sign * h * grad)) for sign in (1, -1)]
    assert abs((values[0] - values[1]) / (2 * h * slope) - 1) < 0.05


@pytest.mark.parametrize('kind', ['float32', 'bfloat16', 'folded'])
def test_export(tiny, images, expected, kind):
    """A program with any number of images, through bytes."""
    model, variables = tiny
    if kind == 'bfloat16':
        model = create_model('tiny', 10, dtype=jnp.bfloat16)
    if kind == 'folded':
        fast = hrnet_jax.fold(model, variables)
        model, variables = fast.model, fast.variables
    (batch,) = jax.export.symbolic_shape('n')
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)
    arguments = shapes, jax.ShapeDtypeStruct((batch, 32, 32, 3), jnp.float32)
    program = jax.export.export(jax.jit(model.apply))(*arguments)
    restored = jax.export.deserialize(program.serialize())
    logits = compiled(restored.call)(variables, images)
    assert logits.dtype == jnp.float32
    assert close(logits, expected) < {'float32': 1e-5, 'bfloat16': 0.1, 'folded': 1e-5}[kind]


def test_gradient_of_a_folded_model(tiny, images):
    fast = hrnet_jax.fold(*tiny)
    grads = [
        compiled(jax.grad(lambda x, f=f: jnp.sum(f(x)[:, 3])))(images)
        for f in (fast, functools.partial(tiny[0].apply, tiny[1]))
    ]
    assert close(*grads) < 1e-4


RECIPES = {
    'official': Official(batch_size=32, epochs=3, milestones=(1, 2), warmup_epochs=1),
    'strong': Strong(batch_size=32, epochs=3, warmup_epochs=1, clip_norm=1.0),
}


@pytest.mark.parametrize('name', RECIPES)
def test_training_steps(name):
    """With every schedule, optimiser and average, without promotion."""
    model, batch = Small(), binary_batch(32)
    variables = host(model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), True))
    create, step = prepared(model, RECIPES[name], variables, batch)
    state, rates = create(), []
    for _ in range(3):
        state, metrics = step(state, batch, {})
        assert metrics['finite']
        rates.append(float(metrics['learning_rate']))
    assert int(state.step) == 3
    assert len(set(rates)) > 1
    pairs = (jax.tree.leaves(host(tree)) for tree in (state.variables(), variables))
    assert all((a != b).any() for a, b in zip(*pairs, strict=True))


def test_a_training_step_of_an_hrnet(tiny):
    """Without promotion, which would be an error where it is traced."""
    batch = binary_batch(32)
    create, step = begun(tiny[0], RECIPES['strong'], tiny[1], batch)
    state, _ = jax.eval_shape(step, create(), batch, {})
    assert jax.tree.map(jnp.shape, state.params) == jax.tree.map(jnp.shape, tiny[1]['params'])


def test_a_schedule_by_epochs():
    recipe = Official(schedule='cosine', by_epoch=True, epochs=3, warmup_epochs=1)
    schedule = make_schedule(recipe, 10)
    rates = [float(schedule(jnp.int32(step))) for step in (0, 5, 10, 19, 20, 29)]
    np.testing.assert_allclose(rates, [0, 0.025, 0.05, 0.05, 0.025, 0.025], rtol=1e-6)


IMPORT = 'import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)'


def test_import_is_quick():
    """At most half a second more than JAX and Flax take; the best of three."""

    def seconds(names):
        command = [sys.executable, '-c', IMPORT.format(names)]
        options = {'cwd': Path(__file__).parents[1], 'text': True, 'timeout': 100}
        return float(subprocess.check_output(command, **options))

    pairs = [(seconds('jax, flax'), seconds('hrnet_jax')) for _ in range(3)]
    plain, ours = (min(column) for column in zip(*pairs, strict=True))
    assert ours - plain < 0.5, pairs
