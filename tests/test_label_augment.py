"""Augmentation of label maps: the pixels of mmsegmentation's transforms, written down once more."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from hrnet_jax.data.label_augment import Augmentation, crop_box, distorted, padded, resized
from hrnet_jax.data.views import Views

FILL = (124, 116, 104)  # the mean colour


def picture(height=60, width=90, seed=0):
    random = np.random.default_rng(seed)
    image = cv2.resize(random.integers(0, 256, (8, 9, 3), np.uint8), (width, height))
    label = random.choice([0, 1, 2, 255], (height // 10, width // 10)).astype(np.uint8)
    return image, label.repeat(10, 0).repeat(10, 1)


def changed(image, factor=1.0, offset=0.0):
    return np.clip(image.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)


def in_hsv(image, channel, change):
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., channel] = change(hsv[..., channel])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def expected_distortion(image, random):
    """Pixel by pixel, without tables."""

    def contrast(image):
        return changed(image, random.uniform(0.5, 1.5)) if random.integers(2) else image

    if random.integers(2):
        image = changed(image, offset=random.uniform(-32, 32))
    first = random.integers(2)
    image = contrast(image) if first else image
    if random.integers(2):
        factor = random.uniform(0.5, 1.5)
        image = in_hsv(image, 1, lambda x: changed(x, factor))
    if random.integers(2):
        shift = random.integers(-18, 18)
        image = in_hsv(image, 0, lambda x: (x.astype(int) + shift) % 180)
    return image if first else contrast(image)


def test_distortion_has_the_published_pixels():
    image, _ = picture()
    different = 0
    for seed in range(40):
        found = distorted(image, np.random.default_rng(seed))
        expected = expected_distortion(image, np.random.default_rng(seed))
        np.testing.assert_array_equal(found, expected)
        different += (found != image).any()
    assert different > 35


def test_resized_as_opencv_does():
    image, label = picture()
    found, classes = resized(image, label, (75, 50))
    np.testing.assert_array_equal(found, cv2.resize(image, (50, 75)))
    assert set(np.unique(classes)) <= {0, 1, 2, 255}
    rows, columns = (np.arange(n) * m // n for n, m in ((75, 60), (50, 90)))
    np.testing.assert_array_equal(classes, label[rows][:, columns])


def test_no_class_fills_a_crop():
    """Unless it is so after the tenth attempt."""
    label = np.zeros((100, 100), np.uint8)
    label[:, 60:] = 1
    label[:50, :] = 255

    def parts(most):
        shares = []
        for seed in range(200):
            box = crop_box(label, (20, 20), most, np.random.default_rng(seed))
            assert label[box].shape == (20, 20)
            counts = np.bincount(label[box].ravel(), minlength=2)[:2]
            shares.append(counts.max() / max(counts.sum(), 1) if counts.min() else 1.0)
        return np.array(shares)

    assert (parts(1.0) < 0.75).mean() < 0.15
    kept = parts(0.75)
    assert 0.4 < (kept < 0.75).mean() < 0.9
    draws = np.random.default_rng(3)
    box = crop_box(np.zeros((30, 40), np.uint8), (20, 20), 0.75, draws)
    again = np.random.default_rng(3)
    corners = [(again.integers(0, 11), again.integers(0, 21)) for _ in range(11)]
    assert (box[0].start, box[1].start) == corners[-1]
    assert draws.random() == again.random()


@pytest.mark.parametrize('scale', [(0.5, 0.5), (2.0, 2.0)])
def test_a_whole_example(scale):
    """Smaller than the crop it is padded; image and label stay together."""
    image, label = picture()
    image[label == 255] = 0
    plain = Augmentation((64, 64), Views(), scale, flip=1.0, distort=False)
    found = plain({'image': image, 'label': label}, np.random.default_rng(0))
    assert found['image'].shape == (64, 64, 3)
    assert found['label'].shape == (64, 64)
    inside = (slice(0, min(round(60 * scale[0]), 64)), slice(0, min(round(90 * scale[0]), 64)))
    beyond = np.ones((64, 64), bool)
    beyond[inside] = False
    assert (found['image'][beyond] == FILL).all()
    assert (found['label'][beyond] == 255).all()
    if scale[0] < 1:
        small = cv2.resize(image, (45, 30))[:, ::-1]
        np.testing.assert_array_equal(found['image'][inside], small)
    dark = found['image'][inside].max(-1) < 5
    assert (found['label'][inside][dark] == 255).mean() > 0.8


def test_the_size_is_a_part_of_that_of_the_evaluation():
    image, label = picture(60, 90)
    fitted = Augmentation((20, 40), Views(fit=(45, 30)), (0.5, 0.5), most=1, distort=False)
    found = fitted({'image': image, 'label': label}, np.random.default_rng(0))
    assert (found['image'] == FILL).all(-1).sum() == 20 * 40 - 15 * 22


def test_padding():
    x = np.ones((2, 3), np.uint8)
    np.testing.assert_array_equal(padded(x, (3, 4), 9), [[1, 1, 1, 9], [1, 1, 1, 9], [9] * 4])
    assert padded(x, (2, 3), 9) is x
