"""Random transforms of an image and its boxes: mmdetection's, by OpenCV.

All are functions of a generator and of nothing else that is random. The image is resized, mirrored,
and put at the upper left of an array.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from hrnet_jax.data.keep_ratio import KeepRatio, Size
from hrnet_jax.data.sources import Field

Array = np.ndarray
Random = np.random.Generator


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """From an image with its boxes to what a batch has.

    Attributes:
        protocol: what the evaluation does: its scale is the one that is changed.
        sizes: of the arrays of images that are not higher than wide, and of those that are.
        room: for boxes of an image.
        resize: factors on the scale, from and to.
        flip: probability of a mirror image.
    """

    protocol: KeepRatio
    sizes: tuple[Size, Size]
    room: int
    resize: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.5

    def __call__(self, example: dict[str, Any], random: Random) -> dict[str, Array]:
        """image, boxes, labels and crowd of an example -> image and `fields` of a batch."""
        image, boxes = example['image'], example['boxes']
        scale = scaled(self.protocol.scale, random.uniform(*self.resize))
        protocol = dataclasses.replace(self.protocol, scale=scale)
        array = protocol.prepare(image)
        height, width = array.shape[:2]
        factor = np.array([width / image.shape[1], height / image.shape[0]] * 2)
        boxes = np.clip(boxes * factor, 0, [width, height] * 2)
        if random.random() < self.flip:
            array = array[:, ::-1]
            boxes = np.stack(
                [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1
            )
        size = self.sizes[kind(image.shape)]
        filled = np.zeros((*size, 3), np.uint8)
        filled[:height, :width] = array
        kept = np.all(boxes[:, 2:] > boxes[:, :2], 1)
        found = {field.name: np.zeros(field.shape, field.dtype) for field in fields(self.room)}
        found['image_hw'][:] = height, width
        for name, values in (('boxes', boxes), ('labels', example['labels']),
                             ('crowd', example['crowd']), ('valid', kept)):  # fmt: skip
            found[name][: kept.sum()] = values[kept]
        return {'image': filled, **found}


def scaled(scale: Size, factor: float) -> Size:
    """(long, short) times a factor."""
    long, short = (max(round(edge * factor), 1) for edge in scale)
    return long, short


def kind(shape: tuple[int, ...]) -> int:
    """1 of an image that is higher than wide, else 0."""
    return int(shape[0] > shape[1])


def fields(room: int) -> tuple[Field, ...]:
    """What a batch has beside the images: see `tasks.marked`."""
    return (
        Field('boxes', 'float32', (room, 4)),
        Field('labels', 'int32', (room,)),
        Field('valid', 'bool', (room,)),
        Field('crowd', 'bool', (room,)),
        Field('image_hw', 'int32', (2,), 1),
    )
