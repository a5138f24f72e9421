"""Evaluation of keypoints: a crop for each person, asked twice, once mirrored, and decoded."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Literal, Self, get_args

import numpy as np

from hrnet_jax.data import crops, keypoint_sets
from hrnet_jax.data.preprocess import rgb_image
from hrnet_jax.data.protocol import Protocol
from hrnet_jax.errors import UserError

Codec = Literal['quarter', 'official', 'dark', 'udp']
Pair = tuple[int, int]
_COCO = keypoint_sets.sets()['coco']


@dataclasses.dataclass(frozen=True)
class TopDown(Protocol):
    """Sizes are (height, width).

    Attributes:
        codec: how heatmaps become places. 'quarter': the maximum, and a quarter of a pixel towards
            the higher neighbour (mmpose's rule at edges); 'official': the same with the rule of the
            official code; 'dark': Zhang et al., CVPR 2020; 'udp': Huang et al., CVPR 2020, also the
            geometry of the crop.
        sigma: of the peaks that the network was trained with, in pixels of the heatmap.
        input_size: of the crop.
        padding: factor on the box.
        flip: the mean with the mirrored crop's heatmaps.
        shift: these are moved by a pixel first; None: except with 'udp'.
        keypoints: their names.
        pairs: numbers of keypoints that change places in a mirror.
        skeleton: numbers of keypoints that a picture joins.
        mean, std: of the three channels R, G, B, in units of the full range.

    Raises:
        UserError: if a value makes no sense.
    """

    codec: Codec = 'quarter'
    sigma: float = 2.0
    input_size: crops.Size = (256, 192)
    padding: float = 1.25
    flip: bool = True
    shift: bool | None = None
    keypoints: tuple[str, ...] = _COCO.names
    pairs: tuple[Pair, ...] = _COCO.pairs
    skeleton: tuple[Pair, ...] = _COCO.skeleton
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.codec not in get_args(Codec):
            known = ', '.join(get_args(Codec))
            raise UserError(f'codec must be one of {known}, not {self.codec!r}')
        for name in ('sigma', 'padding'):
            if not getattr(self, name) > 0:
                raise UserError(f'{name} must be above 0, not {getattr(self, name)!r}')
        size = tuple(self.input_size)
        if len(size) != 2 or min(size) < 32 or any(edge % 32 for edge in size):
            raise UserError(f'input_size must be two multiples of 32, not {size!r}')
        object.__setattr__(self, 'input_size', size)
        for name in ('pairs', 'skeleton'):
            found = list(itertools.chain(*getattr(self, name)))
            twice = name == 'pairs' and len(set(found)) < len(found)
            if twice or not set(found) <= set(range(len(self.keypoints))):
                raise UserError(f'{name} of {len(self.keypoints)} keypoints are not {found}')

    @classmethod
    def of(cls, dataset: str, **fields: Any) -> Self:
        """With the keypoints of a published set, such as 'mpii'."""
        known = keypoint_sets.sets()
        if dataset not in known:
            raise UserError(f'unknown keypoints {dataset!r}; known: {", ".join(known)}')
        held = known[dataset]
        return cls(keypoints=held.names, pairs=held.pairs, skeleton=held.skeleton, **fields)

    @property
    def text(self) -> str:
        """Such as 'coco quarter 256 192 sigma 2 flip'."""
        dataset = keypoint_sets.known(self.keypoints) or f'{len(self.keypoints)}-keypoints'
        words = [dataset, self.codec, *self.input_size, 'sigma', format(self.sigma, 'g')]
        words += ['padding', format(self.padding, 'g')] * (self.padding != 1.25)
        words += ['flip'] * self.flip
        if self.shift is not None:
            words.append('shift' if self.shift else 'unshifted')
        return ' '.join(map(str, words))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The inverse of `text` for the keypoints of a published set, with ImageNet's mean and
        std."""
        dataset, codec, height, width, *words = text.split()
        values = dict(itertools.pairwise(words))
        return cls.of(
            dataset,
            codec=codec,
            input_size=(int(height), int(width)),
            sigma=float(values['sigma']),
            padding=float(values.get('padding', 1.25)),
            flip='flip' in words,
            shift=True if 'shift' in words else False if 'unshifted' in words else None,
        )

    @classmethod
    def add_flags(cls, group: argparse._ArgumentGroup) -> None:
        group.add_argument(
            '--codec',
            choices=get_args(Codec),
            help="how heatmaps become keypoints, instead of the checkpoint's way",
        )
        group.add_argument(
            '--flip', action=argparse.BooleanOptionalAction, help='average with the mirror image'
        )

    @property
    def image_size(self) -> crops.Size:
        return self.input_size

    def at_size(self, height: int, width: int) -> Self:
        return dataclasses.replace(self, input_size=(height, width))

    @property
    def udp(self) -> bool:
        """The geometry of the crop is that of UDP."""
        return self.codec == 'udp'

    @property
    def swap(self) -> tuple[int, ...]:
        """For each keypoint the one that is in its place in a mirror."""
        order = list(range(len(self.keypoints)))
        for a, b in self.pairs:
            order[a], order[b] = b, a
        return tuple(order)

    def region(self, box: Any) -> tuple[np.ndarray, np.ndarray]:
        """Centre and (width, height) of what the crop shows; `box`: (x, y, width, height)."""
        return crops.centre_and_scale(box, self.input_size, self.padding)

    def crop(self, image: np.ndarray, box: Any) -> np.ndarray:
        """uint8 (H, W, 3) -> (*input_size, 3)."""
        matrix = crops.affine(*self.region(box), self.input_size, self.udp)
        return crops.cut(image, matrix, self.input_size)

    def placed(self, keypoints: np.ndarray, box: Any) -> np.ndarray:
        """Keypoints (..., 2) of the crop of this box -> in the picture, float64."""
        return crops.placed(keypoints, *self.region(box), self.input_size)

    def prepare(self, image: Any) -> np.ndarray:
        """The crop of the whole image."""
        array = np.asarray(rgb_image(image))
        return self.crop(array, whole(array))

    def outputs(self, forward: Callable[..., Any], batch: Any) -> Any:
        """keypoints: float32 (N, K, 2), x and y in pixels of the crop; scores: float32 (N, K).

        Raises:
            UserError: if the network has another number of keypoints.
        """
        from hrnet_jax.data import heatmaps

        order = self.swap if self.flip else None
        shift = not self.udp if self.shift is None else self.shift
        found = heatmaps.averaged(forward, batch['image'], order, shift, len(self.keypoints))
        decoded = heatmaps.decode_heatmaps(found, self.codec, self.input_size, self.sigma)
        return dict(zip(('keypoints', 'scores'), decoded, strict=True))


def whole(image: np.ndarray) -> tuple[int, int, int, int]:
    """The box of the whole image."""
    return 0, 0, image.shape[1], image.shape[0]
