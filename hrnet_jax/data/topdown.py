"""Evaluation of keypoints: a crop for each person, asked twice, once mirrored, and decoded."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self, get_args

import numpy as np

from hrnet_jax.data import crops, keypoint_sets
from hrnet_jax.data.preprocess import rgb_image
from hrnet_jax.data.protocol import Protocol, images_taken
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
        blur: taps of the Gaussian of 'dark' and 'udp'; None: 11 for a sigma of 2, 17 for 3.
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
    blur: int | None = None
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
        if not all(isinstance(name, str) for name in self.keypoints):
            raise UserError('keypoints are names')
        for name in ('sigma', 'padding'):
            if not getattr(self, name) > 0:
                raise UserError(f'{name} must be above 0, not {getattr(self, name)!r}')
        if self.blur is not None and (self.blur < 3 or self.blur % 2 == 0):
            raise UserError(f'blur must be an odd number from 3 on, not {self.blur!r}')
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
        return cls(**_fields(known[dataset]), **fields)

    @property
    def text(self) -> str:
        """Such as 'coco quarter 256 192 sigma 2 flip'."""
        dataset = keypoint_sets.known(self.keypoints) or f'{len(self.keypoints)}-keypoints'
        words = [dataset, self.codec, *self.input_size, 'sigma', format(self.sigma, 'g')]
        words += ['blur', str(self.blur)] * (self.blur is not None)
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
            blur=int(values['blur']) if 'blur' in values else None,
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
            '--blur',
            type=int,
            metavar='TAPS',
            help='dark and udp: width of the Gaussian blur (default: 11 for peaks of sigma 2, 17 '
            'for sigma 3; mmpose 1.x has 11 for both)',
        )
        group.add_argument(
            '--flip', action=argparse.BooleanOptionalAction, help='average with the mirror image'
        )

    @classmethod
    def add_file_flags(cls, group: argparse._ArgumentGroup) -> None:
        group.add_argument(
            '--codec',
            choices=get_args(Codec),
            help='how heatmaps become keypoints (default: as of the published checkpoint, or as in '
            'the JSON beside SRC; else quarter)',
        )
        group.add_argument(
            '--input-size',
            type=int,
            nargs=2,
            metavar=('H', 'W'),
            help='of the crops of people, multiples of 32 (default: likewise; else 256 192)',
        )
        group.add_argument(
            '--sigma',
            type=float,
            metavar='S',
            help='of the peaks that the network was trained with, in pixels of the heatmap '
            '(default: likewise; else 3 for crops of 384 pixels and more, 2 for smaller ones)',
        )
        group.add_argument(
            '--keypoints',
            choices=list(keypoint_sets.sets()),
            help='the data set whose keypoints these are, which gives their names and partners '
            '(default: likewise; else by their number, if it tells)',
        )

    @classmethod
    def of_file(
        cls, outputs: int | None, meta: Mapping[str, Any], multiple: int = 1, **flags: Any
    ) -> tuple[Self, list[str]]:
        """Keypoints without partners are not asked for in a mirror."""
        named = bool(flags.get('keypoints'))
        fields, note = ({}, '') if named else _keypoints(outputs, meta)
        found, notes = cls(**fields).override(multiple, **flags), [note] * (not named)
        if not flags.get('codec'):
            others = '|'.join(get_args(Codec)[1:])
            notes.append(
                f'the codec is not in the file, and taken as {found.codec}; else say --codec '
                f'{others}'
            )
        if not flags.get('input_size'):
            height, width = found.input_size
            notes.append(
                f'the size of the crops is not in the file, and taken as {height} x {width}; else '
                'say --input-size H W'
            )
        return found, [*notes, *images_taken([], [], flags)]

    def check_outputs(self, count: int | None) -> None:
        if count not in (None, len(self.keypoints)):
            raise UserError(f'{len(self.keypoints)} keypoints have names, but the file has {count}')

    def override(self, multiple: int = 1, **flags: Any) -> Self:
        """See `Protocol.override`; `keypoints` may be the name of a published set, and another
        input size brings its usual sigma."""
        if isinstance(dataset := flags.get('keypoints'), str):
            flags |= _fields(keypoint_sets.sets()[dataset])
        if size := flags.get('input_size'):
            flags['input_size'] = tuple(size)
            flags['sigma'] = flags.get('sigma') or (3.0 if size[0] >= 384 else 2.0)
        return super().override(multiple, **flags)

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

    def region(self, box: Any, dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray]:
        """Centre and (width, height) of what the crop shows; `box`: (x, y, width, height); `dtype`:
        see `crops.centre_and_scale`."""
        return crops.centre_and_scale(box, self.input_size, self.padding, dtype)

    def crop(self, image: np.ndarray, box: Any, dtype: Any = np.float64) -> np.ndarray:
        """uint8 (H, W, 3) -> (*input_size, 3)."""
        matrix = crops.affine(*self.region(box, dtype), self.input_size, self.udp)
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
        decoded = heatmaps.decode_heatmaps(
            found, self.codec, self.input_size, self.sigma, self.blur
        )
        return dict(zip(('keypoints', 'scores'), decoded, strict=True))


def whole(image: np.ndarray) -> tuple[int, int, int, int]:
    """The box of the whole image."""
    return 0, 0, image.shape[1], image.shape[0]


def _fields(held: keypoint_sets.KeypointSet) -> dict[str, Any]:
    """Those of a protocol for the keypoints of a set."""
    return {'keypoints': held.names, 'pairs': held.pairs, 'skeleton': held.skeleton}


def _keypoints(count: int | None, meta: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The fields for so many keypoints, as a file says or as is usual; and a remark."""
    if (said := _said(meta)) and len(said['keypoints']) == count:
        return said, 'keypoints: names, partners and skeleton taken from the file'
    count = len(_COCO.names) if count is None else count
    if dataset := keypoint_sets.usual(count):
        text = f'the {count} keypoints are taken to be those of {dataset}; else say --keypoints'
        return _fields(keypoint_sets.sets()[dataset]), text
    names = tuple(f'keypoint_{i}' for i in range(count))
    return {'keypoints': names, 'pairs': (), 'skeleton': (), 'flip': False}, (
        f'it is not known which {count} keypoints these are, so the network is not asked for the '
        'mirror image, too; if their set is published, say --keypoints'
    )


def _said(meta: Mapping[str, Any]) -> dict[str, Any] | None:
    """The fields that mmpose 1.x writes; None where they are not there, or are not as it does."""
    try:
        names = meta['keypoint_id2name']
        names = tuple(names[i] for i in range(len(names)))
        if not all(isinstance(name, str) for name in names):
            return None
        swap = [int(i) for i in meta['flip_indices']]
        pairs = tuple((i, j) for i, j in enumerate(swap) if i < j)
        skeleton = tuple((int(i), int(j)) for i, j in meta['skeleton_links'])
        TopDown(keypoints=names, pairs=pairs, skeleton=skeleton)
    except (LookupError, TypeError, ValueError, UserError):
        return None
    return {'keypoints': names, 'pairs': pairs, 'skeleton': skeleton}
