"""Optimisers and schedules beside PyTorch's; Mixup and CutMix."""

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
from steps import precision, tensor

from hrnet_jax.errors import UserError
from hrnet_jax.models import flat
from hrnet_jax.tasks import losses
from hrnet_jax.tasks.classification_recipes import Finetune, MMPretrain, Official, Strong
from hrnet_jax.tasks.recipe import Group
from hrnet_jax.tasks.recipe import LabelRecipe as Recipe
from hrnet_jax.training.step import make_optimizer, make_schedule

pytestmark = pytest.mark.usefixtures('standard_promotion')

SHAPES = {
    'backbone': {'conv1': {'kernel': (3, 4)}, 'bn1': {'scale': (4,), 'bias': (4,)}},
    'head': {'classifier': {'kernel': (4, 5), 'bias': (5,)}},
}


@pytest.mark.parametrize(
    'recipe',
    [
        Official(),
        MMPretrain(),
        Strong(warmup_epochs=0),
        Finetune(warmup_epochs=0),
        Recipe(optimizer='adamw', learning_rate=1e-3, weight_decay=0.05, decay_norms=False),
        Recipe(optimizer='adamw', learning_rate=1e-3, weight_decay=0.05, head_lr=3, clip_norm=1),
        Recipe(optimizer='adam', learning_rate=1e-3, weight_decay=0.05, decay_norms=False),
    ],
    ids=['official', 'mmpretrain', 'strong', 'finetune', 'adamw', 'adamw-head', 'adam'],
)
def test_optimiser_as_pytorchs(recipe):
    """In float64 over steps with small and large gradients."""
    random = np.random.default_rng(0)
    recipe = dataclasses.replace(recipe, schedule='step', milestones=(1000,))
    rate = recipe.learning_rate * recipe.batch_size / recipe.base_batch

    def draw(scale):
        leaf = lambda shape: scale * random.standard_normal(shape)  # noqa: E731
        return jax.tree.map(leaf, SHAPES, is_leaf=lambda x: isinstance(x, tuple))

    with precision(64):
        params = jax.tree.map(jnp.array, draw(1.0))
        tx = make_optimizer(recipe, make_schedule(recipe, 1))
        state = tx.init(params)
        named, groups = [], []
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
            p = torch.nn.Parameter(tensor(leaf))
            name = jax.tree_util.keystr(path)
            decayed = recipe.decay_norms or 'kernel' in name
            groups.append(
                {
                    'params': [p],
                    'lr': rate * (recipe.head_lr if 'classifier' in name else 1),
                    'weight_decay': recipe.weight_decay if decayed else 0,
                }
            )
            named.append(p)
        if recipe.optimizer == 'adamw':
            optimizer = torch.optim.AdamW(groups)
        elif recipe.optimizer == 'adam':
            optimizer = torch.optim.Adam(groups)
        else:
            optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=recipe.nesterov)
        for scale in (0.01, 100.0, 0.1, 1e4, 1.0):
            grads = draw(scale)
            updates, state = tx.update(jax.tree.map(jnp.array, grads), state, params)
            params = optax.apply_updates(params, updates)
            for p, g in zip(named, jax.tree.leaves(grads), strict=True):
                p.grad = tensor(g)
            if recipe.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(named, recipe.clip_norm)
            optimizer.step()
            ours = np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])
            theirs = np.concatenate([p.detach().numpy().ravel() for p in named])
            print(close(ours, theirs))
            # PyTorch adds 1e-6 to the norm before it divides by it.
            assert close(ours, theirs) < (1e-14 if recipe.clip_norm is None else 1e-6)


def rates(recipe, steps_per_epoch, steps):
    return np.asarray(jax.vmap(make_schedule(recipe, steps_per_epoch))(jnp.arange(steps)))


def torch_rates(schedule, optimizer, epochs):
    values = []
    for _ in range(epochs):
        values.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        schedule.step()
    return np.array(values)


def test_schedules_as_pytorchs():
    p = torch.nn.Parameter(torch.zeros(1))
    schedules = torch.optim.lr_scheduler
    optimizer = torch.optim.SGD([p], 0.05)
    expected = torch_rates(schedules.MultiStepLR(optimizer, [30, 60, 90]), optimizer, 100)
    np.testing.assert_allclose(rates(Official(), 7, 700), expected.repeat(7), 1e-6)
    optimizer = torch.optim.SGD([p], 0.1)
    expected = torch_rates(schedules.CosineAnnealingLR(optimizer, 100), optimizer, 100)
    np.testing.assert_allclose(rates(MMPretrain(), 7, 700), expected.repeat(7), 1e-4, 1e-8)


def test_warm_up_and_scaling_with_the_batch():
    peak = 0.05 * 1024 / 128
    found = rates(Strong(), 10, 3001)
    np.testing.assert_allclose(found[:50], np.arange(50) / 50 * peak, 1e-5)
    cosine = (1 + np.cos(np.pi * np.arange(2951) / 2950)) / 2 * peak
    np.testing.assert_allclose(found[50:], cosine, 1e-4, 1e-7)
    drops = rates(Official(warmup_epochs=5, batch_size=256), 10, 1000)
    np.testing.assert_allclose(drops[[49, 50, 299, 300, 899, 900]],
                               [0.098, 0.1, 0.1, 0.01, 1e-3, 1e-4], 1e-5)  # fmt: skip
    for recipe in (Official(), MMPretrain(), Strong()):
        double = dataclasses.replace(recipe, batch_size=2 * recipe.batch_size)
        np.testing.assert_allclose(rates(double, 7, 300), 2 * rates(recipe, 7, 300), 1e-6)


@pytest.mark.parametrize(('steps', 'epochs'), [(400, 1), (None, 40)])
def test_poly(steps, epochs):
    """Its length in steps or in epochs; its minimum grows with the batch as its peak does."""
    recipe = Recipe(
        schedule='poly', learning_rate=0.01, min_rate=1e-4, power=0.9, steps=steps, epochs=epochs,
        batch_size=256, base_batch=128,
    )  # fmt: skip
    assert recipe.total_steps(10) == 400
    expected = (0.02 - 2e-4) * (1 - np.arange(401) / 400) ** 0.9 + 2e-4
    np.testing.assert_allclose(rates(recipe, 10, 401), expected, 1e-5)


def test_warm_up_in_steps_from_a_part():
    """The rate falls at its epochs, counted from the beginning."""
    recipe = Recipe(
        learning_rate=0.1, milestones=(6, 9), warmup_steps=50, warmup_factor=0.2, epochs=12
    )
    found = rates(recipe, 10, 120)
    np.testing.assert_allclose(found[:50], 0.1 * (0.2 + 0.8 * np.arange(50) / 50), 1e-5)
    expected = np.repeat([0.1, 0.01, 0.001], [10, 30, 30])
    np.testing.assert_allclose(found[50:], expected, 1e-5)


def test_cosine_with_a_minimum():
    recipe = Recipe(schedule='cosine', learning_rate=0.1, min_rate=0.01, epochs=10)
    expected = 0.01 + 0.09 * (1 + np.cos(np.pi * np.arange(11) / 10)) / 2
    np.testing.assert_allclose(rates(recipe, 1, 11), expected, 1e-5)


# Groups of parameters.


def test_groups_of_parameters():
    """A head ten times as fast, biases without decay; where both match, both count."""
    groups = [Group('^head/', rate=10.0), Group('/(bias|scale)$', decay=0.0)]
    recipe = Recipe(momentum=0.0, nesterov=False, weight_decay=0.5, learning_rate=0.1)
    tx = make_optimizer(recipe, lambda count: 0.1, groups)
    params = jax.tree.map(jnp.ones, SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    found = {'/'.join(path): -float(leaf.ravel()[0]) for path, leaf in flat(updates).items()}
    expected = {
        'backbone/conv1/kernel': 0.15, 'backbone/bn1/scale': 0.1, 'backbone/bn1/bias': 0.1,
        'head/classifier/kernel': 1.5, 'head/classifier/bias': 1.0,
    }  # fmt: skip
    assert found == pytest.approx(expected)
    with pytest.raises(UserError, match="'^decode/' matches no array".replace('^', r'\^')):
        make_optimizer(recipe, lambda count: 0.1, [Group('^decode/', rate=2.0)]).init(params)


# Mixing.


@pytest.mark.parametrize(
    ('n', 'group', 'mixup', 'cutmix'),
    [(64, 32, 0.4, 0), (48, 16, 0, 1.0), (5, 5, 0.4, 1.0), (33, 11, 0.4, 0), (31, 31, 0, 1.0),
     (2, 2, 0.4, 1.0)],
)  # fmt: skip
def test_labels_weigh_what_is_seen(n, group, mixup, cutmix):
    """Image i is all ones in channel i: its share of a mixed image is the mean of that channel."""
    own = np.eye(n, dtype=np.float32)
    images = np.broadcast_to(own[:, None, None], (n, 16, 24, n))
    draw = jax.jit(functools.partial(losses.mix, mixup=mixup, cutmix=cutmix))
    shares = []
    for seed in range(12):
        mixed, targets = (np.asarray(x) for x in draw(jax.random.key(seed), images, own))
        np.testing.assert_allclose(mixed.mean((1, 2), np.float64), targets, atol=1e-6)
        np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)
        partner = np.arange(n).reshape(-1, group)
        partner = (np.roll(partner, 1, 1) if group % 2 else partner[:, ::-1]).ravel()
        assert (partner != np.arange(n)).all()
        share = targets[np.arange(n), np.arange(n)]
        np.testing.assert_allclose(
            targets, share[:, None] * own + (1 - share[:, None]) * own[partner], atol=1e-6
        )
        np.testing.assert_allclose(share, share.reshape(-1, group)[:, :1].repeat(group, 1).ravel())
        shares.append(share[::group])
        if not mixup:
            inside = mixed[np.arange(n), ..., np.arange(n)] == 0
            assert ((mixed == 0) | (mixed == 1)).all()
            for box in inside:  # a rectangle
                rows, columns = box.any(1), box.any(0)
                np.testing.assert_array_equal(box, rows[:, None] & columns[None])
                assert all(np.count_nonzero(np.diff(axis)) <= 2 for axis in (rows, columns))
    assert len(np.unique(shares)) > 0.5 * np.size(shares)


@pytest.mark.parametrize(
    ('n', 'group', 'size'), [(64, 32, 32), (8, 4, 4), (48, 32, 16), (24, 36, 12), (6, 16, 2)]
)
def test_groups_are_those_of_the_first_release(n, group, size):
    """So that its runs go on with the same images: the i-th with the i-th from the end."""
    own = np.eye(n, dtype=np.float32)
    images = np.broadcast_to(own[:, None, None], (n, 4, 4, n))
    mixed, targets = losses.mix(jax.random.key(1), images, own, 0.4, 0, group)
    kept = jax.random.beta(jax.random.split(jax.random.key(1), 5)[1], 0.4, 0.4, (n // size,))
    kept, grouped = kept[:, None, None], own.reshape(n // size, size, n)
    expected = (kept * grouped + (1 - kept) * grouped[:, ::-1]).reshape(n, n)
    np.testing.assert_array_equal(targets, expected)
    np.testing.assert_array_equal(mixed[:, 2, 3], expected)


@pytest.mark.parametrize(('mixup', 'cutmix', 'coin'), [(0.2, 0, 0), (0, 1.0, 1), (0.2, 1.0, 0.5)])
def test_distribution_of_mixing(mixup, cutmix, coin):
    """Mixup's share is Beta(0.2, 0.2); CutMix's box is uniform in area before its edges are cut."""
    draws = 4000
    images = np.eye(2, dtype=np.float32)[:, None, None] * np.ones((1, 64, 64, 1), np.float32)

    def draw(key):
        mixed, targets = losses.mix(key, images, np.eye(2, dtype=np.float32), mixup, cutmix)
        return targets[0, 0], jnp.all((mixed == 0) | (mixed == 1))

    share, cut = jax.lax.map(draw, jax.random.split(jax.random.key(0), draws), batch_size=200)
    share, cut = np.asarray(share), np.asarray(cut)
    # A share that rounds to 0 or 1 looks like a cut: some 2 % of Beta(0.2, 0.2).
    assert abs(cut.mean() - coin) < 0.05
    if coin < 1:
        blended = share[~cut]
        assert abs(blended.mean() - 0.5) < 4 * 0.42 / len(blended) ** 0.5
        assert abs(blended.var() - 1 / (4 * 1.4)) < 0.015
    if coin == 1:
        # Of a side s around a uniform centre, s - s^2 / 4 is inside; s^2 is uniform.
        assert abs((1 - share).mean() - (1 / 2 - 1 / 5 + 1 / 48)) < 0.02
