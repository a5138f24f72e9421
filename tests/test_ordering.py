"""Which of many equal scores come first, beside PyTorch's sort on a CPU."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch

from hrnet_jax.heads import ordering

KINDS = {
    'three values': lambda random, n: random.integers(0, 3, n) / 2,
    'some at 1': lambda random, n: np.minimum(1.2 * random.random(n), 1),
    'all equal': lambda random, n: np.ones(n),
}
# The places of 17 equal values, by std::sort.
EQUAL = [8, 16, 15, 14, 13, 12, 11, 10, 9, 0, 7, 6, 5, 4, 3, 2, 1]


def sorted_by_torch(scores):
    return torch.from_numpy(scores).sort(descending=True)[1].tolist()


@pytest.mark.parametrize(('count', 'most'), [(17, 5), (300, 50), (2000, 700)])
@pytest.mark.parametrize('kind', KINDS)
def test_equal_scores(kind, count, most):
    scores = KINDS[kind](np.random.default_rng(count), count).astype(np.float32)
    values, places = jax.jit(ordering.best, static_argnums=1)(scores, most)
    assert values.tolist() == sorted(scores.tolist(), reverse=True)[:most]
    assert scores[places].tolist() == values.tolist()
    if (kind, count) == ('all equal', 17):
        assert places.tolist() == EQUAL[:most]
    if sorted_by_torch(np.ones(17, np.float32)) == EQUAL:  # on other CPUs it may sort otherwise
        assert places.tolist() == sorted_by_torch(scores)[:most]


def test_few_or_different():
    """The first of equal scores comes first where all are kept, or where none are equal."""
    scores = np.array([0.5, 0.9, 0.5, 0.9, 0.1], np.float32)
    values, places = ordering.best(scores, 10)
    assert places.tolist() == [1, 3, 0, 2, 4]
    different = np.random.default_rng(0).permutation(40).astype(np.float32)
    each = jax.jit(jax.vmap(ordering.best, (0, None)), static_argnums=1)
    values, places = each(np.stack([different, -different]), 7)
    assert places[0].tolist() == np.argsort(-different)[:7].tolist()
    assert places[1].tolist() == np.argsort(different)[:7].tolist()
    assert values.tolist() == [[*range(39, 32, -1)], [-i for i in range(7)]]
