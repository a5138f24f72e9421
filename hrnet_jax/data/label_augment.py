"""Random transforms of an image and its label map: mmsegmentation's, with its pixels, by OpenCV.

All are functions of a generator, which they draw from in mmsegmentation's order, and of nothing
else that is random. Images are uint8 (H, W, 3) RGB, labels uint8 (H, W).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from hrnet_jax.data.views import NOTHING, Size, Views

Array = np.ndarray
Random = np.random.Generator
ATTEMPTS = 10
# Photometric distortion: each part is done with probability 1/2.
BRIGHTNESS = 32
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Resized, cropped, mirrored, distorted in colour, padded; in this order.

    Attributes:
        size: height and width of the result.
        views: what the evaluation does: its `fit` is the size that `scale` is a part of, and its
            mean the colour beyond the image, which is 0 after normalisation.
        scale: factors on the size of the image, from and to.
        most: part of a crop that one class may fill: see `crop_box`.
        flip: probability of a mirror image.
        distort: change brightness, contrast, saturation and hue.
    """

    size: Size
    views: Views
    scale: tuple[float, float] = (0.5, 2.0)
    most: float = 0.75
    flip: float = 0.5
    distort: bool = True

    def __call__(self, example: dict[str, Any], random: Random) -> dict[str, Array]:
        """image and label of an example -> those of a batch."""
        image, label = example['image'], example['label']
        views = dataclasses.replace(self.views, scales=(random.uniform(*self.scale),))
        image, label = resized(image, label, views.sizes(label.shape)[0])
        box = crop_box(label, self.size, self.most, random)
        image, label = image[box], label[box]
        if random.random() < self.flip:
            image, label = image[:, ::-1], label[:, ::-1]
        if self.distort:
            image = distorted(np.ascontiguousarray(image), random)
        fill = np.round(255 * np.array(self.views.mean)).astype(np.uint8)
        return {'image': padded(image, self.size, fill), 'label': padded(label, self.size, NOTHING)}


def resized(image: Array, label: Array, size: Size) -> tuple[Array, Array]:
    """Both at `size`: the image by bilinear interpolation, the label by the nearest pixel."""
    import cv2

    if label.shape == size:
        return image, label
    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    return image, cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST)


def crop_box(label: Array, size: Size, most: float, random: Random) -> tuple[slice, slice]:
    """A random box of `size`, or as much of it as there is.

    It is drawn anew, up to 10 times, until it has more than one class and none of them fills the
    part `most` of its labelled pixels.
    """

    def draw() -> tuple[slice, slice]:
        top, left = (
            int(random.integers(0, max(n - part, 0) + 1))
            for n, part in zip(label.shape, size, strict=True)
        )
        return slice(top, top + size[0]), slice(left, left + size[1])

    box = draw()
    for _ in range(ATTEMPTS if most < 1 else 0):
        counts = np.bincount(label[box].ravel(), minlength=NOTHING + 1)[:NOTHING]
        if np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < most:
            break
        box = draw()
    return box


def distorted(image: Array, random: Random) -> Array:
    """Brightness; contrast, before or after saturation and hue; each with probability 1/2."""

    def coin() -> bool:
        return random.integers(2) == 1

    def contrast(image: Array) -> Array:
        return _mapped(image, _linear(random.uniform(*CONTRAST))) if coin() else image

    if coin():
        image = _mapped(image, _linear(1.0, random.uniform(-BRIGHTNESS, BRIGHTNESS)))
    first = coin()
    if first:
        image = contrast(image)
    if coin():
        image = _in_hsv(image, 1, _linear(random.uniform(*SATURATION)))
    if coin():
        shift = random.integers(-HUE, HUE)
        image = _in_hsv(image, 0, ((np.arange(256) + shift) % 180).astype(np.uint8))
    return image if first else contrast(image)


def _linear(factor: float, offset: float = 0.0) -> Array:
    """The table of a line, in float32, cut off below 0, above 255 and after the point."""
    values = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(offset)
    return np.clip(values, 0, 255).astype(np.uint8)


def _mapped(image: Array, table: Array) -> Array:
    """Each byte by the table."""
    import cv2

    return cv2.LUT(image, table)


def _in_hsv(image: Array, channel: int, table: Array) -> Array:
    """One channel of OpenCV's hue (0 to 179), saturation and value by the table."""
    import cv2

    tables = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    tables[0, :, channel] = table
    hsv = _mapped(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), tables)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def padded(x: Array, size: Size, fill: Any) -> Array:
    """x, (H, W, ...), with `fill` at right and below, up to `size`."""
    if x.shape[:2] == size:
        return x
    result = np.empty((*size, *x.shape[2:]), x.dtype)
    result[...] = fill
    result[: x.shape[0], : x.shape[1]] = x
    return result
