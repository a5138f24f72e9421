"""Augmentation and targets of pose: mmpose's definitions, written down once more."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from hrnet_jax.data.coco_form import keypoints
from hrnet_jax.data.heatmap_targets import targets
from hrnet_jax.data.keypoint_sets import described, sets
from hrnet_jax.data.pose_augment import Augmentation, noise
from hrnet_jax.data.topdown import TopDown

COCO = sets()['coco']
STILL = {'flip': 0.0, 'shift': 0.0, 'scale': 0.0, 'rotation': 0.0, 'half_body': 0.0}


def expected_map(x, y, codec, size, sigma):
    """One keypoint, in pixels of the crop -> the map, or None where it is wholly outside."""
    height, width = (edge // 4 for edge in size)
    if codec == 'udp':
        x, y = x / ((size[1] - 1) / (width - 1)), y / ((size[0] - 1) / (height - 1))
    else:
        x, y = x / 4, y / 4
    near_x, near_y = (x, y) if codec == 'dark' else (int(x + 0.5), int(y + 0.5))
    reach = 3 * sigma
    if near_x - reach >= width or near_y - reach >= height:
        return None
    if near_x + reach + 1 < 0 or near_y + reach + 1 < 0:
        return None
    if codec in ('quarter', 'official'):
        x, y = near_x, near_y
    found = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            near = max(abs(row - near_y), abs(column - near_x)) <= reach
            if near or codec == 'dark':
                found[row, column] = np.exp(-((column - x) ** 2 + (row - y) ** 2) / 2 / sigma**2)
    return found


@pytest.mark.parametrize('codec', ['quarter', 'official', 'dark', 'udp'])
@pytest.mark.parametrize('sigma', [2, 3])
def test_targets_as_mmposes(codec, sigma):
    random, size = np.random.default_rng(sigma), (96, 64)
    points = random.uniform([-60, -60], [124, 156], (40, 2))
    points[:4] = (0, 0), (62, 94), (-26.1, 10), (31.9, 47.9)
    seen = random.random(40) > 0.2
    found = targets(points, seen, codec, size, sigma)
    maps = np.einsum('hk,wk->khw', found['rows'], found['columns'])
    outside = 0
    for point, marked, weight, ours in zip(points, seen, found['seen'], maps, strict=True):
        theirs = expected_map(*point, codec, size, sigma)
        outside += theirs is None
        assert weight == (marked and theirs is not None)
        np.testing.assert_allclose(ours, theirs if weight else 0, atol=1e-14)
    assert 3 < outside < 30


def person(seed=0):
    """An image in which each keypoint has a colour of its own, in a square around it."""
    random = np.random.default_rng(seed)
    points = np.stack(np.meshgrid(np.arange(5) * 45 + 110, np.arange(4) * 55 + 60), -1)
    points = points.reshape(-1, 2)[:17] + random.integers(-6, 7, (17, 2))
    colours = np.stack([np.arange(17) * 11 + 60, 250 - np.arange(17) * 11, np.full(17, 150)], -1)
    image = np.zeros((300, 400, 3), np.uint8)
    for (x, y), colour in zip(points, colours, strict=True):
        image[y - 12 : y + 13, x - 12 : x + 13] = colour
    keypoints = np.column_stack([points, np.full(17, 2)]).astype(np.float32)
    example = {'image': image, 'keypoints': keypoints, 'box': np.array([100, 50, 200, 180, 1.0])}
    return example, colours


def peaks(batch, udp):
    """x, y in the crop of the maxima of the targets."""
    scale = np.array([191 / 47, 255 / 63]) if udp else 4
    found = scale * np.stack([batch['columns'].argmax(0), batch['rows'].argmax(0)], -1)
    return np.round(found).astype(int)


@pytest.mark.parametrize('codec', ['quarter', 'udp'])
@pytest.mark.parametrize('kind', ['truncated', 'clipped'])
def test_image_and_targets_stay_together(codec, kind):
    """A keypoint's colour is where its target says, and that of its partner in a mirror."""
    example, colours = person()
    augment = Augmentation(TopDown(codec=codec), COCO.upper, noise=kind, shift_share=1.0)
    counted = different = 0
    for seed in range(40):
        found = augment(example, np.random.default_rng(seed))
        assert found['image'].shape == (256, 192, 3)
        assert found['image'].dtype == np.uint8
        assert {found[k].dtype for k in ('rows', 'columns', 'seen')} == {np.dtype('float32')}
        mirror = np.random.default_rng(seed).random() < 0.5
        own = colours[list(TopDown().swap)] if mirror else colours
        places = peaks(found, codec == 'udp')
        inside = (found['seen'] > 0) & (places > 8).all(1) & (places < (180, 244)).all(1)
        for (x, y), colour in zip(places[inside], own[inside], strict=True):
            shown = found['image'][y, x].astype(int)
            assert abs(shown - colour).max() < 30, (seed, x, y)
        counted += inside.sum()
        different += (
            found['image'] != augment(example, np.random.default_rng(seed + 99))['image']
        ).any()
    assert counted > 250
    assert different == 40
    again = augment(example, np.random.default_rng(39))
    assert all((again[name] == found[name]).all() for name in found)


@pytest.mark.parametrize('codec', ['quarter', 'udp'])
def test_without_chance_it_is_the_crop_of_the_evaluation(codec):
    example, _ = person()
    protocol = TopDown(codec=codec)
    found = Augmentation(protocol, COCO.upper, **STILL)(example, np.random.default_rng(0))
    np.testing.assert_array_equal(
        found['image'], protocol.crop(example['image'], example['box'][:4])
    )
    moved = Augmentation(protocol, COCO.upper, **STILL | {'flip': 1.0})
    flipped = {
        **example,
        'image': example['image'][:, ::-1].copy(),
        'box': np.array([399 - 300, 50, 200, 180, 1.0]),
    }
    np.testing.assert_array_equal(
        moved(example, np.random.default_rng(0))['image'],
        protocol.crop(flipped['image'], flipped['box'][:4]),
    )


def test_the_published_change_of_a_box():
    """Centre, size and angle, drawn as here, by mmpose's formulas."""
    example, _ = person()
    protocol = TopDown()
    augment = Augmentation(protocol, (), flip=0.0, shift_share=1.0, rotation_share=1.0)
    found = augment(example, np.random.default_rng(5))
    random = np.random.default_rng(5)
    random.random(3)  # mirror, half, upper
    dx, dy = (noise(random, 'truncated', 1) for _ in range(2))
    random.random()
    larger, turned = (noise(random, 'truncated', limit) for limit in (1, 2))
    width, height = 250, 225  # 1.25 times the box
    centre = np.array([200 + 0.16 * dx * width, 140 + 0.16 * dy * height])
    width, height = np.array([width, width * 4 / 3]) * (1 + 0.5 * larger)
    angle = np.deg2rad(80 * turned)
    left = np.array([np.cos(angle), np.sin(angle)]) * -width / 2
    corner = centre + left + np.array([-left[1], left[0]])
    source = np.array([centre, centre + left, corner], np.float32)
    goal = np.array([[96, 128], [0, 128], [0, 128 - 96]], np.float32)
    # The third point is at a right angle at the second, on the same side in both.
    goal[2] = goal[1] + [0, 96]
    source[2] = source[1] + [left[1], -left[0]]
    matrix = cv2.getAffineTransform(source, goal)
    expected = cv2.warpAffine(example['image'], matrix, (192, 256), flags=cv2.INTER_LINEAR)
    apart = np.abs(found['image'].astype(int) - expected)
    assert (apart > 8).mean() < 1e-3
    assert height / width == pytest.approx(4 / 3)


def test_half_bodies():
    augment = Augmentation(TopDown(), COCO.upper, half_body=1.0)
    every = np.ones(17, bool)
    halves = [augment.half(every, np.random.default_rng(seed)) for seed in range(400)]
    upper = [len(half) == 11 for half in halves]
    assert 0.63 < np.mean(upper) < 0.77
    assert all(set(half) in (set(range(11)), set(range(11, 17))) for half in halves)
    often = dataclasses.replace(augment, half_body=0.3)
    drawn = [len(often.half(every, np.random.default_rng(seed))) > 0 for seed in range(400)]
    assert 0.23 < np.mean(drawn) < 0.37

    def kinds(seen, augment=augment):
        return {len(augment.half(seen, np.random.default_rng(seed))) for seed in range(60)}

    four = np.isin(np.arange(17), [0, 11, 12, 13])
    assert kinds(np.arange(17) < 8) == {0}  # too few
    assert kinds(np.arange(17) < 13) == {11}  # no lower half
    assert kinds(four) == {0}
    assert kinds(four, dataclasses.replace(augment, half_body_least=4)) == {3}  # no upper one
    assert kinds(every, dataclasses.replace(augment, upper=())) == {0}


@pytest.mark.parametrize(
    ('category', 'upper'),
    [
        ({}, (0, 2)),  # both are known from published sets
        ({'upper_body': ['left_hip']}, (1,)),
        ({'upper_body': []}, ()),
    ],
)
def test_the_upper_body_of_own_keypoints(category, upper):
    names = ('Nose', 'left_hip', 'left_wrist')
    assert keypoints('own', names, category, 'a.json').upper == upper
    assert keypoints('own', (*names, 'wheel'), {}, 'a.json').upper == ()


def test_half_of_a_body_that_is_one_point():
    """Has no size: the crop is that of the whole."""
    example, _ = person()
    example['keypoints'][:, :2] = 150, 100
    still = Augmentation(TopDown(), COCO.upper, **STILL | {'half_body': 1.0})
    found = still(example, np.random.default_rng(0))
    np.testing.assert_array_equal(
        found['image'], TopDown().crop(example['image'], example['box'][:4])
    )


def test_noise():
    random = np.random.default_rng(0)
    truncated = np.array([noise(random, 'truncated', 2) for _ in range(4000)])
    assert abs(truncated).max() <= 1
    assert abs(truncated).max() > 0.99
    assert truncated.std() == pytest.approx(0.54, abs=0.02)  # of a normal within one sigma
    clipped = np.array([noise(random, 'clipped', 2) for _ in range(4000)])
    assert (abs(clipped) == 2).mean() == pytest.approx(0.0455, abs=0.015)
    assert clipped.std() == pytest.approx(0.96, abs=0.04)


@pytest.mark.parametrize(
    ('names', 'pairs'),
    [
        (COCO.names, COCO.pairs),
        (('L_Eye', 'R_Eye', 'Nose', 'R_F_Paw', 'L_F_Paw'), ((0, 1), (3, 4))),
        (('leftEar', 'tail', 'rightEar', 'left_paw'), ((0, 2),)),
        (('cleft', 'crown', 'ball'), ()),
    ],
)
def test_partners_by_name(names, pairs):
    found = described(names, [(0, 1)])
    assert (found.names, found.pairs, found.skeleton) == (tuple(names), pairs, ((0, 1),))
