"""Evaluation of detectors: a whole image at a certain scale, by OpenCV's resizing."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any, Literal, Self, get_args

import numpy as np

from hrnet_jax.data.preprocess import rgb_image
from hrnet_jax.data.protocol import Protocol, images_taken
from hrnet_jax.errors import UserError

Channels = Literal['rgb', 'bgr']
Size = tuple[int, int]
MULTIPLE = 32  # of the edges of what the network gets
BGR = {'channels': 'bgr', 'mean': (0.406, 0.456, 0.485), 'std': (0.225, 0.224, 0.229)}


@functools.cache
def coco() -> dict[int, str]:
    """COCO's categories: id -> name, in the order of the classes. The ids have gaps."""
    text = resources.files('hrnet_jax.data').joinpath('coco_classes.txt').read_text()
    rows = (line.split(' ', 1) for line in text.splitlines())
    return {int(number): name for number, name in rows}


@dataclasses.dataclass(frozen=True)
class KeepRatio(Protocol):
    """Attributes:
        scale: (long, short): the image is resized, its ratio kept, until its longer edge is `long`
            or its shorter one `short` pixels, whichever comes first.
        channels: their order in what the network gets.
        categories: the data set's id of each class; None: from 1 on.
        mean, std: of the three channels in this order, in units of the full range.

    Raises:
        UserError: if a value makes no sense.
    """

    scale: Size = (1333, 800)
    channels: Channels = 'rgb'
    categories: tuple[int, ...] | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        scale = tuple(int(edge) for edge in self.scale)
        if len(scale) != 2 or not 1 <= scale[1] <= scale[0]:
            raise UserError(f'scale must be two sizes, the longer first, not {self.scale!r}')
        object.__setattr__(self, 'scale', scale)
        if self.channels not in get_args(Channels):
            raise UserError(f'channels must be rgb or bgr, not {self.channels!r}')
        for name in ('mean', 'std'):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError(f'mean and std must be 3 numbers, std above 0: {self.mean}, {self.std}')

    @property
    def text(self) -> str:
        """Such as 'coco scale 1333 800 bgr'."""
        known = self.categories == tuple(coco())
        count = 'own' if self.categories is None else f'{len(self.categories)}-categories'
        return ' '.join(map(str, ('coco' if known else count, 'scale', *self.scale, self.channels)))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The inverse of `text` for COCO's categories or own ones, with ImageNet's mean and std."""
        dataset, _, long, short, channels = text.split()
        categories = tuple(coco()) if dataset == 'coco' else None
        more: dict[str, Any] = BGR if channels == 'bgr' else {}
        return cls(scale=(int(long), int(short)), categories=categories, **more)

    @classmethod
    def add_flags(cls, group: argparse._ArgumentGroup) -> None:
        group.add_argument(
            '--scale', type=int, nargs=2, metavar=('LONG', 'SHORT'),
            help='resize until the longer edge is LONG or the shorter one SHORT pixels, instead of '
            "the checkpoint's",
        )  # fmt: skip

    @classmethod
    def add_file_flags(cls, group: argparse._ArgumentGroup) -> None:
        group.add_argument(
            '--channels', choices=get_args(Channels),
            help='their order in what a detector gets; --mean and --std are turned with them '
            '(default: as of the published checkpoint, or as in the JSON beside SRC; else bgr for '
            'FCOS, rgb for Faster R-CNN, as mmdetection has them)',
        )  # fmt: skip

    @classmethod
    def of_file(
        cls, outputs: int | None, meta: Mapping[str, Any], multiple: int = 1, **flags: Any
    ) -> tuple[Self, list[str]]:
        """80 classes without other names are taken to be COCO's."""
        names = tuple(coco().values())
        of_coco = outputs == len(names) and tuple(meta.get('classes') or names) == names
        found = cls(categories=tuple(coco()) if of_coco else None).override(multiple, **flags)
        note = 'the 80 classes are taken to be those of COCO; else say --class-names'
        notes = [note] * (of_coco and not meta.get('classes'))
        return found, notes + images_taken([found.channels.upper()], ['--channels'], flags)

    def check_outputs(self, count: int | None) -> None:
        if self.categories is not None and count not in (None, len(self.categories)):
            raise UserError(f'the protocol has {len(self.categories)} categories, not {count}')

    def override(self, multiple: int = 1, **flags: Any) -> Self:
        """See `Protocol.override`; `mean` and `std` are R, G, B, whatever the order of channels."""
        flags = {k: tuple(v) if isinstance(v, list) else v for k, v in flags.items()}
        turn, back = (
            -1 if order == 'bgr' else 1
            for order in (flags.get('channels') or self.channels, self.channels)
        )
        for name in ('mean', 'std'):
            flags[name] = (flags.get(name) or getattr(self, name)[::back])[::turn]
        return super().override(multiple, **flags)

    def settings(self) -> dict[str, Any]:
        return {**self.override(channels='rgb').to_json(), 'channels': self.channels}

    def category(self, label: int) -> int:
        """The data set's id of a class."""
        return label + 1 if self.categories is None else self.categories[label]

    def size(self, image_hw: Size) -> Size:
        """Height and width of an image of this size, resized."""
        edges = max(image_hw), min(image_hw)
        factor = min(wanted / edge for wanted, edge in zip(self.scale, edges, strict=True))
        height, width = (max(int(edge * factor + 0.5), 1) for edge in image_hw)
        return height, width

    def padded(self, image_hw: Size) -> Size:
        """Of the array that holds an image of this size, resized."""
        height, width = (-(-edge // MULTIPLE) * MULTIPLE for edge in self.size(image_hw))
        return height, width

    def prepare(self, image: Any) -> np.ndarray:
        """The image of `size`, its channels in order."""
        import cv2

        array = np.asarray(rgb_image(image))
        height, width = self.size((array.shape[0], array.shape[1]))
        if array.shape[:2] != (height, width):
            array = cv2.resize(array, (width, height), interpolation=cv2.INTER_LINEAR)
        return array[..., ::-1] if self.channels == 'bgr' else array

    def arrays(self, image: Any, shape: Size | None = None) -> dict[str, np.ndarray]:
        """What a batch has of one image, at the upper left of an array of this or of the least
        shape."""
        array = self.prepare(image)
        size = (array.shape[0], array.shape[1])
        shape = shape or self.padded(np.shape(image)[:2])
        beyond = [(0, whole - edge) for whole, edge in zip(shape, size, strict=True)]
        return {
            'image': np.pad(array, (*beyond, (0, 0))),
            'image_hw': np.array(size, np.int32),
        }

    def outputs(self, forward: Callable[..., Any], batch: Any) -> Any:
        """What `Detector.detect` gives; the batch has
        image: uint8 (N, H, W, 3), as `prepare` gives them, from the upper left corner.
        image_hw: int32 (N, 2), height and width of what is in it.
        """
        return forward(batch['image'], 'detect', more=(batch['image_hw'],))
