"""Branches computed with channels of zeros: the same function, gradients and statistics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rules import close, image
from steps import BINARY

from hrnet_jax.inference.folding import PLANS, folded_as
from hrnet_jax.tasks.classification_recipes import Official
from hrnet_jax.training.step import make_loss

pytestmark = pytest.mark.usefixtures('standard_promotion')
QUICK = {'xla_backend_optimization_level': 0}


def test_training(tiny):
    """In float64: in float32 ReLUs change sign."""
    model, variables = tiny
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    labels, weights = np.arange(4, dtype=np.int32), np.array([0.1, 0.4, 0.2, 0.3])
    with jax.enable_x64(True):
        model = model.clone(dtype=jnp.float64, param_dtype=jnp.float64)
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)

        def run(multiple):
            loss = make_loss(model, Official(), BINARY, None, multiple)
            step = jax.value_and_grad(loss, has_aux=True)
            batch = {'image': images, 'label': labels, 'weight': weights}
            given = (variables['params'], variables['batch_stats'], batch)
            call = jax.jit(step, compiler_options=QUICK)
            (value, (stats, figures)), grads = call(*given, jax.random.key(0), {})
            return jax.device_get((value, stats, figures, grads))

        plain, padded = run(1), run(16)
    assert jax.tree.structure(plain) == jax.tree.structure(padded)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(plain[3]))
    for a, b in zip(*map(jax.tree.leaves, (plain, padded)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * largest)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_forms_for_gpus(tiny, dtype):
    """On a CPU, and in float32."""
    model, variables = tiny
    x = jnp.asarray(image(2, 2, 32, 64))
    fast = folded_as(model, variables, PLANS['gpu', dtype])
    kernel = fast.variables['params']['backbone']['transition1_0_0']['kernel']
    assert kernel.shape == ((16 if dtype == 'bfloat16' else 6), 3, 3, 32)

    def results(model, variables):
        def run(variables):
            return [model.apply(variables, x, method=name) for name in ('features', '__call__')]

        return jax.tree.leaves(jax.jit(run, compiler_options=QUICK)(variables))

    wanted, got = results(model, variables), results(fast.model, fast.variables)
    assert max(map(close, got, wanted)) < 1e-5
    assert [x.shape for x in got] == [x.shape for x in wanted]
