"""The mathematics of boxes beside plain NumPy versions, one box after another."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hrnet_jax.heads import boxes as box_math
from hrnet_jax.heads import regions
from hrnet_jax.heads.boxes import NONE


def random_boxes(seed, count, size=100, least=0.0):
    random = np.random.default_rng(seed)
    corners = random.uniform(0, size, (count, 2))
    return np.concatenate(
        [corners, corners + random.uniform(least, size / 2, (count, 2))], 1
    ).astype(np.float32)


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0


def suppressed(boxes, scores, groups, threshold):
    """The numbers that stay, best first; of equal scores the first."""
    kept = []
    for i in sorted(np.flatnonzero(scores > NONE), key=lambda i: -scores[i]):
        near = (iou(boxes[i], boxes[j]) for j in kept if groups[j] == groups[i])
        if all(overlap <= threshold for overlap in near):
            kept.append(int(i))
    return kept


SETS = {
    'random': (random_boxes(0, 300), np.random.default_rng(1).random(300)),
    # Scores of a few values: the first of equal ones counts.
    'ties': (random_boxes(2, 300), np.random.default_rng(3).integers(0, 4, 300) / 4),
    'equal boxes': (np.tile(random_boxes(4, 3), (50, 1)), np.random.default_rng(5).random(150)),
    # Each overlaps the next by half: every second one stays.
    'a chain': (np.arange(60)[:, None] * [2, 0, 2, 0] + [0, 0, 6, 6], np.linspace(1, 0.1, 60)),
    'without an inside': (random_boxes(6, 50) * [1, 1, 0, 0], np.random.default_rng(7).random(50)),
    'one': (random_boxes(8, 1), np.ones(1)),
    'none': (np.zeros((0, 4)), np.zeros(0)),
}


@pytest.mark.parametrize('name', SETS)
def test_suppression(name):
    boxes, scores = (x.astype(np.float32) for x in SETS[name])
    count = len(boxes)
    groups = np.random.default_rng(9).integers(0, 3, count).astype(np.int32)
    scores = np.where(np.random.default_rng(10).random(count) < 0.1, NONE, scores)
    wanted = suppressed(boxes, scores, groups, 0.5)
    for most in (5, count + 3):
        chosen, valid = jax.jit(box_math.suppress, static_argnums=(3, 4))(
            boxes, scores, groups, 0.5, most
        )
        assert np.asarray(chosen)[np.asarray(valid)].tolist() == wanted[:most]
        assert np.asarray(valid).sum() == min(most, len(wanted))

    order = np.argsort(-scores, kind='stable')
    there = scores[order] > NONE
    kept = jax.jit(box_math.survivors, static_argnums=2)(boxes[order], there, 0.5)
    none = np.zeros(count, int)
    assert order[np.flatnonzero(kept)].tolist() == suppressed(boxes, scores, none, 0.5)


def test_deltas():
    boxes, targets = random_boxes(0, 50, least=1), random_boxes(1, 50, least=1)
    stds = (0.1, 0.1, 0.2, 0.2)
    deltas = box_math.encode(jnp.asarray(boxes), jnp.asarray(targets), stds)
    np.testing.assert_allclose(box_math.decode(boxes, deltas, stds), targets, atol=1e-4)
    width = np.exp(5 * np.float32(10))  # too far: 1000 / 16 times is the most
    grown = box_math.decode(jnp.zeros((1, 4)).at[:, 2:].set(8), jnp.full((1, 4), jnp.log(width)))
    np.testing.assert_allclose(grown[0, 2:] - grown[0, :2], 500, rtol=1e-5)


def test_places_and_anchors():
    np.testing.assert_array_equal(box_math.places(2, 2, 8), [[4, 4], [12, 4], [4, 12], [12, 12]])
    found = box_math.anchors(2, 3, 4)
    assert found.shape == (18, 4)
    np.testing.assert_array_equal(found[1], [-16, -16, 16, 16])
    np.testing.assert_array_equal(found[9 + 3 + 1], [-12, -12, 20, 20])
    sizes = found[:3, 2:] - found[:3, :2]
    np.testing.assert_allclose(sizes[:, 1] / sizes[:, 0], box_math.RATIOS, rtol=1e-6)
    np.testing.assert_allclose(sizes.prod(1), 32**2, rtol=1e-6)


def test_clipped_to_each_image():
    boxes = jnp.asarray([[[-5.0, -5, 50, 50]], [[10, 20, 90, 95]]])
    clipped = box_math.clip(boxes, jnp.array([[30, 40], [60, 15]]))
    np.testing.assert_array_equal(clipped, [[[0, 0, 40, 30]], [[10, 20, 15, 60]]])
    assert box_math.real(clipped).all()
    assert not box_math.real(jnp.asarray([3.0, 3, 3, 5]))


def bilinear(x, row, column):
    """(C,) of a map (H, W, C) at a place; zero far outside."""
    height, width = x.shape[:2]
    if not (-1 <= row <= height and -1 <= column <= width):
        return np.zeros(x.shape[-1])
    row, column = np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)
    top, left = int(row), int(column)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, along = row - top, column - left
    upper = x[top, left] * (1 - along) + x[top, right] * along
    lower = x[bottom, left] * (1 - along) + x[bottom, right] * along
    return upper * (1 - down) + lower * down


def aligned(maps, box):
    """(7, 7, C) of one box."""
    side = np.sqrt(max((box[2] - box[0]) * (box[3] - box[1]), 0))
    level = int(np.clip(np.floor(np.log2(side / 56 + 1e-6)), 0, 3))
    x, stride = maps[level], 4 * 2**level
    left, top, right, bottom = box / stride - 0.5
    height, width = (bottom - top) / 7, (right - left) / 7
    rows, columns = (max(int(np.ceil(size)), 1) for size in (height, width))
    found = np.zeros((7, 7, x.shape[-1]))
    for i, j in np.ndindex(7, 7):
        for p, q in np.ndindex(rows, columns):
            row = top + (i + (p + 0.5) / rows) * height
            column = left + (j + (q + 0.5) / columns) * width
            found[i, j] += bilinear(x, row, column) / (rows * columns)
    return found


@pytest.fixture(scope='module')
def maps():
    """Of an image of 256 x 320."""
    random = np.random.default_rng(0)
    return [
        random.standard_normal((256 // s, 320 // s, 3)).astype(np.float32) for s in (4, 8, 16, 32)
    ]


BOXES = {
    'random': random_boxes(11, 12, 250),
    'of every level': np.array(
        [[5, 5, 20, 30], [0, 0, 80, 90], [9, 9, 200, 190], [0, 0, 320, 256]]
    ),
    'long and thin': np.array([[3, 7, 318, 9.5], [100, 1, 101.5, 250]]),
    'outside': np.array([[-50, -60, 10, 20], [300, 240, 400, 300], [500, 500, 600, 600]]),
    'without an inside': np.array([[10, 10, 10, 10], [0, 0, 0, 0]]),
}


@pytest.mark.parametrize('way', [regions.by_points, regions.by_products])
@pytest.mark.parametrize('name', BOXES)
def test_roi_align(name, way, maps):
    boxes = BOXES[name].astype(np.float32)
    found = jax.jit(way)(tuple(x[None] for x in maps), boxes[None])
    wanted = [aligned(maps, box.astype(np.float64)) for box in boxes]
    np.testing.assert_allclose(found[0], wanted, atol=1e-4)


@pytest.mark.parametrize('way', [regions.roi_align, regions.by_products])
def test_many_regions(way, maps):
    """More than are computed together; of several images; and of none."""
    boxes = random_boxes(12, 2 * 150, 250).reshape(2, 150, 4)
    both = tuple(np.stack([x, 2 * x]) for x in maps)
    found = jax.jit(way)(both, boxes)
    for i, j in ((0, 0), (0, 149), (1, 127), (1, 128)):
        wanted = (1 + i) * aligned(maps, boxes[i, j].astype(np.float64))
        np.testing.assert_allclose(found[i, j], wanted, atol=1e-4)
    assert way(both, jnp.zeros((2, 0, 4))).shape == (2, 0, 7, 7, 3)


def test_gradient_of_regions(maps):
    """To the maps, and to no box: as differences say."""
    boxes = random_boxes(13, 6, 250)[None]
    weights = np.random.default_rng(14).standard_normal((1, 6, 7, 7, 3)).astype(np.float32)

    def total(maps, boxes):
        return jnp.sum(regions.roi_align(maps, boxes) * weights)

    held = [x[None] for x in maps]
    of_maps, of_boxes = jax.jit(jax.grad(total, (0, 1)))(held, boxes)
    assert not of_boxes.any()
    step = [np.random.default_rng(15).standard_normal(x.shape).astype(np.float32) for x in held]
    moved = total([a + b for a, b in zip(held, step, strict=True)], boxes) - total(held, boxes)
    along = sum(np.sum(np.asarray(a) * b) for a, b in zip(of_maps, step, strict=True))
    np.testing.assert_allclose(moved, along, rtol=1e-3)
