"""The logic of a step, on a network of one convolution: parts, weights, signals, averages."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from rules import close
from steps import BINARY, Small, binary_batch, host, prepared, tensor

from hrnet_jax.tasks import losses
from hrnet_jax.tasks.classification_recipes import Official
from hrnet_jax.training.step import SIGNALS, make_loss

pytestmark = pytest.mark.usefixtures('standard_promotion')


SMALL = Small()


@functools.cache
def small_variables(seed=0):
    return host(SMALL.init(jax.random.key(seed), jnp.zeros((1, 32, 32, 3)), True))


def small_step(like, model=SMALL, **changes):
    """A function (batch, steps) -> (state, metrics) after so many steps."""
    recipe = dataclasses.replace(Official(batch_size=64), **changes)
    create, step = prepared(model, recipe, small_variables(), like)

    def run(batch, steps=1, state=None):
        state, metrics = create() if state is None else jax.tree.map(jnp.array, state), {}
        for _ in range(steps):
            state, metrics = step(state, batch, {})
        return host(state), host(metrics)

    return run


def images_of(batch):
    return batch['image'].astype(np.float32).reshape(-1, 32, 32, 3) / 127.5 - 1


def same(a, b, rtol=0.0, atol=0.0):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol, atol)


@jax.jit
def gradient_of(kept, images, labels, stats):
    """(mean loss over the kept images, gradient, new statistics), written down once more."""

    def loss(params):
        variables = {'params': params, 'batch_stats': stats}
        logits, new = SMALL.apply(variables, images, True, mutable=['batch_stats'])
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(each[kept]), new['batch_stats']

    (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(small_variables()['params'])
    return value, grads, stats


def assert_gradient(state, grads):
    """That one step from `small_variables` had this gradient, to which the decay is added."""
    momentum = optax.tree_utils.tree_get(state.opt_state, 'trace')
    expected = jax.tree.map(lambda g, p: g + 1e-4 * p, grads, small_variables()['params'])
    for a, b in zip(jax.tree.leaves(momentum), jax.tree.leaves(expected), strict=True):
        assert close(a, b) < 1e-4


def test_accumulated_parts_are_one_gradient():
    """Its mean over the parts; each part has its own statistics, and moves the running ones."""
    batch = binary_batch(64, parts=2)
    state, metrics = small_step(batch, accumulate=2)(batch)
    stats, seen = small_variables()['batch_stats'], []
    for x, y in zip(images_of(batch).reshape(2, 32, 32, 32, 3), batch['label'], strict=True):
        value, grads, stats = gradient_of(np.arange(32), x, y, stats)
        seen.append((value, grads))
    value, grads = jax.tree.map(lambda *x: sum(x) / 2, *seen)
    assert abs(metrics['loss'] / value - 1) < 1e-6
    assert_gradient(state, grads)
    same(state.batch_stats, stats, 1e-6, 1e-7)


def test_an_image_of_weight_zero_counts_for_nothing_but_statistics():
    batch = binary_batch(64)
    run = small_step(batch)
    dropped = [0, 5, 40]
    batch['weight'][0, dropped] = 0
    state, metrics = run(batch)
    labels, kept = batch['label'][0], np.delete(np.arange(64), dropped)
    value, grads, stats = gradient_of(
        kept, images_of(batch), labels, small_variables()['batch_stats']
    )
    assert abs(metrics['loss'] / value - 1) < 1e-6
    assert_gradient(state, grads)
    same(state.batch_stats, stats, 1e-6, 1e-7)
    batch['label'][0, dropped] += 1
    again, metrics_again = run(batch)
    same((state, metrics), (again, metrics_again))


def test_a_void_or_spoiled_step_changes_no_bit():
    batch = binary_batch(64)
    batch['image'] = batch['image'].astype(np.float32)
    run = small_step(batch, ema=0.9, nesterov=False)
    before, _ = run(batch, 0)
    after, _ = run(batch)
    assert after.step == 1
    for tree in ('params', 'batch_stats', 'ema', 'opt_state'):
        pairs = zip(*(jax.tree.leaves(getattr(s, tree)) for s in (before, after)), strict=True)
        assert all((a != b).any() for a, b in pairs), tree
    no_batch, spoiled = jax.tree.map(np.copy, batch), jax.tree.map(np.copy, batch)
    no_batch['signals'][0, SIGNALS.index('no_batch')] = 1
    spoiled['image'][0, 17, 3, 3, 1] = np.nan
    for bad, finite in ((no_batch, True), (spoiled, False)):
        state, metrics = run(bad)
        # XLA's ReLU on a CPU may turn NaN into 0; the gradient shows it all the same.
        assert metrics['finite'] == finite
        assert metrics['no_batch'] == finite
        assert not state.valid
        same(before, state.replace(valid=before.valid))
        assert state.step == 0
        # Nor is a step taken after it: its batch would be at the wrong place.
        later, metrics = run(batch, 1, state)
        assert metrics['finite']
        same(state, later)


def test_averaged_weights():
    batch = binary_batch(64)
    run = small_step(batch, ema=0.9, nesterov=False)
    states = [run(batch, steps)[0] for steps in range(3)]
    average = states[0].variables()
    same(states[0].variables(averaged=True), average)
    for step, state in enumerate(states[1:]):
        decay = min(0.9, (step + 1) / (step + 10))
        average = jax.tree.map(
            lambda old, new, d=decay: d * old + (1 - d) * new, average, state.variables()
        )
        same(state.variables(averaged=True), average, 1e-5, 1e-6)


@pytest.mark.parametrize(
    ('group', 'changes'), [(32, {'mixup': 0.2, 'cutmix': 1.0}), (None, {})], ids=['32', 'all']
)
def test_two_devices_compute_what_one_does(group, changes):
    """With statistics within a device and mixed images, and with statistics across both."""
    model = Small(bn_group_size=group)
    batches = [binary_batch(64, devices) for devices in (1, 2)]
    states = [small_step(batch, model, **changes)(batch, 3) for batch in batches]
    same(*states, 1e-5, 1e-6)


def test_loss_of_smoothed_labels_and_of_a_teacher():
    batch = binary_batch(64)
    labels, key = batch['label'][0], jax.random.key(0)
    weights = np.full(64, 1 / 64, np.float32)
    own, teacher = small_variables(), small_variables(1)
    arguments = (
        own['params'],
        own['batch_stats'],
        {'image': batch['image'][0], 'label': labels, 'weight': weights},
        key,
        teacher,
    )

    def loss(teacher=None, **changes):
        recipe = dataclasses.replace(Official(batch_size=64), **changes)
        value, _ = jax.jit(make_loss(SMALL, recipe, BINARY, teacher))(*arguments)
        logits, _ = SMALL.apply(own, images_of(batch), train=True, mutable=['batch_stats'])
        return float(value), tensor(logits)

    y = torch.from_numpy(labels).long()
    for smoothing in (0.0, 0.1):
        value, logits = loss(label_smoothing=smoothing)
        expected = torch.nn.functional.cross_entropy(logits, y, label_smoothing=smoothing)
        assert abs(value / expected.item() - 1) < 1e-6
    soft = tensor(SMALL.apply(teacher, images_of(batch)))
    value, logits = loss(
        (SMALL, BINARY), distill_loss='kl', distill_weight=0.7, temperature=2.0, label_smoothing=0.1
    )
    apart = [(x / 2).log_softmax(-1) for x in (logits, soft)]
    apart = 4 * torch.nn.functional.kl_div(*apart, reduction='batchmean', log_target=True)
    assert abs(value / (0.7 * apart + 0.3 * expected).item() - 1) < 1e-5


@pytest.mark.parametrize('temperature', [1.0, 3.0])
def test_divergences_as_pytorch(temperature):
    random = np.random.default_rng(0)
    ours, theirs = 4 * random.standard_normal((2, 6, 10))
    p, q = (torch.softmax(tensor(x) / temperature, -1) for x in (theirs, ours))
    kl = functools.partial(torch.nn.functional.kl_div, reduction='none', log_target=True)
    middle = ((p + q) / 2).log()
    expected = {
        'kl': temperature**2 * kl(q.log(), p.log()).sum(-1),
        'js': (kl(middle, p.log()) + kl(middle, q.log())).sum(-1) / 2,
    }
    for kind, values in expected.items():
        arguments = (jnp.float32(x) for x in (ours, theirs))
        found = losses.divergence(kind, *arguments, temperature)
        np.testing.assert_allclose(found, values, 1e-5, 1e-7)
        assert abs(losses.divergence(kind, jnp.float32(ours), jnp.float32(ours), 2.0)).max() < 1e-6
    # One-hot predictions that disagree: the largest value there is.
    apart = jnp.float32([[200, 0]]), jnp.float32([[0, 200]])
    assert abs(float(losses.divergence('js', *apart, 1.0)[0]) - np.log(2)) < 1e-6
