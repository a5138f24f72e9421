"""Random transforms of a person in an image: mmpose's and the official code's, by OpenCV.

All are functions of a generator and of nothing else that is random. The person is mirrored; the
crop is perhaps of half of the body; it is moved, scaled and turned; in this order.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from hrnet_jax.data import crops
from hrnet_jax.data.heatmap_targets import STRIDE, targets
from hrnet_jax.data.sources import Field
from hrnet_jax.data.topdown import TopDown

Array = np.ndarray
Random = np.random.Generator
Noise = Literal['truncated', 'clipped']
HALF_PADDING = 1.5  # factor on the box around the keypoints of a half
# Keypoints that a half has at least. The official code wants 3 upper ones if there is a lower half,
# too: for COCO the same, as of 9 marked keypoints 3 are upper ones.
UPPER, LOWER = 2, 3


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """From a person in an image to a crop and its targets.

    Attributes:
        protocol: what the evaluation does: its crop is the one that is changed.
        upper: numbers of the keypoints of the upper body; without any there are no halves.
        flip: probability of a mirror image.
        shift: largest way of the centre, in parts of the box; shift_share: how often.
        scale: largest change of the size of the crop, as a part of it.
        rotation: in degrees; rotation_share: how often.
        noise: 'truncated': normal, drawn again beyond 1 (mmpose); 'clipped': normal, cut off, at 1
            for the scale and at 2 for the rotation (official).
        half_body: probability of a crop of half of the body, if `half_body_least` are marked.
        half_body_upper: how often that is the upper half, if both could be.
    """

    protocol: TopDown
    upper: tuple[int, ...] = ()
    flip: float = 0.5
    shift: float = 0.16
    shift_share: float = 0.3
    scale: float = 0.5
    rotation: float = 80.0
    rotation_share: float = 0.6
    noise: Noise = 'truncated'
    half_body: float = 0.3
    half_body_least: int = 9
    half_body_upper: float = 0.7

    def __call__(self, example: dict[str, Any], random: Random) -> dict[str, Array]:
        """image, box and keypoints of an example -> image, rows, columns and seen of a batch."""
        protocol, image = self.protocol, example['image']
        keypoints, box = (np.asarray(example[k], np.float64) for k in ('keypoints', 'box'))
        centre, scale = box[:2] + box[2:4] / 2, box[2:4] * protocol.padding
        if random.random() < self.flip:
            image = np.ascontiguousarray(image[:, ::-1])
            keypoints = mirrored(keypoints, image.shape[1], protocol.swap)
            centre[0] = image.shape[1] - 1 - centre[0]
        points, seen = keypoints[:, :2], keypoints[:, 2] > 0
        half = self.half(seen, random)
        if len(half) and np.ptp(points[half], axis=0).any():
            centre, scale = points[half].mean(0), np.ptp(points[half], axis=0) * HALF_PADDING
        moved = [noise(random, self.noise, 1) * self.shift for _ in range(2)]
        if random.random() < self.shift_share:
            centre = centre + moved * scale
        scale = scale * (1 + self.scale * noise(random, self.noise, 1))
        degrees = self.rotation * noise(random, self.noise, 2)
        degrees *= random.random() < self.rotation_share
        size = protocol.input_size
        scale = crops.to_ratio(scale, size)
        matrix = crops.affine(centre, scale, size, protocol.udp, degrees)
        points = points @ matrix[:, :2].T + matrix[:, 2]
        drawn = targets(points, seen, protocol.codec, size, protocol.sigma)
        drawn = {name: values.astype(np.float32) for name, values in drawn.items()}
        return {'image': crops.cut(image, matrix, size), **drawn}

    def half(self, seen: Array, random: Random) -> Array:
        """The keypoints of the half that the crop is of; none, where it is of the whole body."""
        drawn = random.random() < self.half_body
        prefer_upper = random.random() < self.half_body_upper
        if not drawn or not self.upper or seen.sum() < self.half_body_least:
            return np.zeros(0, int)
        above = np.isin(np.arange(len(seen)), self.upper)
        upper, lower = np.flatnonzero(seen & above), np.flatnonzero(seen & ~above)
        if len(lower) < LOWER:
            return upper if len(upper) >= UPPER else np.zeros(0, int)
        return upper if prefer_upper and len(upper) >= UPPER else lower


def fields(size: crops.Size, count: int) -> tuple[Field, ...]:
    """What a batch has beside the crops, of so many keypoints."""
    height, width = (edge // STRIDE for edge in size)
    shapes = {'rows': (height, count), 'columns': (width, count), 'seen': (count,)}
    return tuple(Field(name, 'float32', shape) for name, shape in shapes.items())


def mirrored(keypoints: Array, width: int, swap: tuple[int, ...]) -> Array:
    """(K, 3), of the image mirrored: left and right have changed places."""
    keypoints = keypoints[list(swap)].copy()
    keypoints[:, 0] = width - 1 - keypoints[:, 0]
    return keypoints


def noise(random: Random, kind: Noise, limit: float) -> float:
    """Normal, not beyond `limit`, if clipped; not beyond 1, if truncated."""
    value = random.standard_normal()
    if kind == 'clipped':
        return float(np.clip(value, -limit, limit))
    while abs(value) > 1:
        value = random.standard_normal()
    return float(value)
