"""Evaluation of dense labels: the views of an image that the network is asked for, and their mean.

The pixels are OpenCV's, as those of the published evaluations (mmsegmentation 1.2.2, and the
official HRNet-Semantic-Segmentation).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal, Self, get_args

import numpy as np

from hrnet_jax.data.protocol import Protocol
from hrnet_jax.errors import UserError

Mode = Literal['whole', 'slide']
Average = Literal['softmax', 'exp']
Size = tuple[int, int]
SMALLEST = 32  # edge of an image that a network takes
NOTHING = 255  # the label of pixels that do not count


@dataclasses.dataclass(frozen=True)
class Views(Protocol):
    """An image is scaled, mirrored, cut into windows; the answers are brought to its own size.

    Sizes are (height, width).

    Attributes:
        fit: (long, short): the image is first resized, its ratio kept, until its longer edge is
            `long` or its shorter one `short`, whichever comes first; None: it is not.
        mode: 'whole' images, or 'slide': windows, whose logits are averaged where they overlap.
        window, stride: of 'slide': its size, and the steps between windows; the last one of a row
            or column is moved back inside (mmsegmentation's rule). None where `mode` is 'whole'.
        scales: factors on the size, a view each.
        flip: each view once more, mirrored.
        average: of several views: 'softmax', the mean of the probabilities (mmsegmentation), or
            'exp', exp of the mean of the two mirrored logits, for each window, summed (official).
        mean, std: of the three channels R, G, B, in units of the full range.

    Raises:
        UserError: if a value makes no sense.
    """

    fit: Size | None = None
    mode: Mode = 'whole'
    window: Size | None = None
    stride: Size | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    average: Average = 'softmax'
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for name, known in (('mode', Mode), ('average', Average)):
            if getattr(self, name) not in get_args(known):
                values = ' or '.join(get_args(known))
                raise UserError(f'{name} must be {values}, not {getattr(self, name)!r}')
        for name in ('fit', 'window', 'stride'):
            size = getattr(self, name)
            if size is not None and (len(size) != 2 or min(size) < 1):
                raise UserError(f'{name} must be two sizes above 0, not {size!r}')
        if self.mode == 'slide' and not (self.window and self.stride):
            raise UserError('sliding needs the size of the window and its stride')
        if self.window and min(self.window) < SMALLEST:
            raise UserError(f'window must be at least {SMALLEST} x {SMALLEST}, not {self.window}')
        if self.window and self.stride and max(map(int.__sub__, self.stride, self.window)) > 0:
            raise UserError(f'stride {self.stride} is larger than the window {self.window}')
        if not self.scales or not all(0 < scale < np.inf for scale in self.scales):
            raise UserError(f'scales must be numbers above 0, not {self.scales}')
        object.__setattr__(self, 'scales', tuple(map(float, self.scales)))
        for name in ('mean', 'std'):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError(f'mean and std must be 3 numbers, std above 0: {self.mean}, {self.std}')

    @property
    def several(self) -> bool:
        """More than one view an image."""
        return self.flip or len(self.scales) > 1

    @property
    def text(self) -> str:
        """Such as 'fit 520 520 slide 480 480 stride 320 320 scales 0.5 1 flip softmax'."""
        words: list[Any] = [] if self.fit is None else ['fit', *self.fit]
        words.append(self.mode)
        if self.mode == 'slide':
            words += [*(self.window or ()), 'stride', *(self.stride or ())]
        if self.scales != (1.0,):
            words += ['scales', *(format(scale, 'g') for scale in self.scales)]
        words += ['flip'] * self.flip + [self.average] * self.several
        return ' '.join(map(str, words))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The inverse of `text`, with ImageNet's mean and std."""
        held: dict[str, list[str]] = {}
        for word in text.split():
            if word[0].isalpha():
                held[word] = []
            else:
                held[list(held)[-1]].append(word)

        def size(name: str) -> Size | None:
            return (int(held[name][0]), int(held[name][1])) if held.get(name) else None

        return cls(
            fit=size('fit'),
            mode='slide' if 'slide' in held else 'whole',
            window=size('slide'),
            stride=size('stride'),
            scales=tuple(map(float, held.get('scales', ('1',)))),
            flip='flip' in held,
            average='exp' if 'exp' in held else 'softmax',
        )

    @classmethod
    def add_flags(cls, group: argparse._ArgumentGroup) -> None:
        pair: dict[str, Any] = {'type': int, 'nargs': 2}
        own = "instead of the checkpoint's"
        group.add_argument(
            '--fit', **pair, metavar=('LONG', 'SHORT'),
            help=f'resize until the longer edge is LONG or the shorter one SHORT pixels, {own}',
        )  # fmt: skip
        group.add_argument(
            '--mode', choices=get_args(Mode), help=f'whole images, or windows, {own}'
        )
        group.add_argument('--window', **pair, metavar=('H', 'W'), help='size of the windows')
        group.add_argument('--stride', **pair, metavar=('H', 'W'), help='steps between windows')
        group.add_argument(
            '--scales', type=float, nargs='+', metavar='S', help='factors on the size, all averaged'
        )
        group.add_argument(
            '--flip', action=argparse.BooleanOptionalAction, help='average with the mirror image'
        )

    def override(self, multiple: int = 1, **flags: Any) -> Self:
        """See `Protocol.override`; a window makes it slide, by two thirds of it unless said."""
        flags = {k: tuple(v) if isinstance(v, list) else v for k, v in flags.items()}
        mode = flags.get('mode') or ('slide' if flags.get('window') else self.mode)
        if mode == 'whole':
            if flags.get('window') or flags.get('stride'):
                raise UserError('--window and --stride are for --mode slide')
            return dataclasses.replace(self, window=None, stride=None, mode=mode)._others(flags)
        window = flags.get('window') or self.window
        if window is None:
            raise UserError('--mode slide needs --window H W')
        kept = None if flags.get('window') else self.stride
        stride = flags.get('stride') or kept or tuple(-(-2 * n // 3) for n in window)
        return dataclasses.replace(self, mode=mode, window=window, stride=stride)._others(flags)

    def _others(self, flags: dict[str, Any]) -> Self:
        settled = ('mode', 'window', 'stride')
        return super().override(**{k: v for k, v in flags.items() if k not in settled})

    def sizes(self, image_hw: Size) -> list[Size]:
        """Of the views of an image of this size, one for each of `scales`."""
        return [self._size(*image_hw, scale) for scale in self.scales]

    def _size(self, height: int, width: int, scale: float) -> Size:
        edges = max(height, width), min(height, width)
        # Both codes round the scaled edges, the official one the longer edge alone, and then keep
        # the ratio.
        bounds = [max(int(edge * scale + 0.5), 1) for edge in edges]
        bounds = bounds[: 1 if self.average == 'exp' else 2]
        factor = min(bound / edge for bound, edge in zip(bounds, edges, strict=False))
        if self.fit:
            long, short = (int(edge * scale) for edge in self.fit)
            factor = min(max(long, short) / edges[0], min(long, short) / edges[1])
        return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)

    def views(self, image: np.ndarray) -> Iterator[np.ndarray]:
        """uint8 (H, W, 3) -> the views, of `sizes`, by OpenCV's bilinear resizing of bytes."""
        import cv2

        for height, width in self.sizes((image.shape[0], image.shape[1])):
            same = image.shape[:2] == (height, width)
            size = (width, height)
            yield image if same else cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)

    def prepare(self, image: Any) -> np.ndarray:
        """The first view."""
        return next(self.views(np.asarray(image)))

    def outputs(self, forward: Callable[..., Any], batch: Any) -> Any:
        """The logits, or their average over views, at the size of the image: (N, H, W, classes).

        The batch has
            image, image_1, ...: uint8 (N, Hi, Wi, 3), a view for each of `scales`.
            label: (N, H, W), of which only the shape counts.
        and, where the views do not fill these arrays, valid heights and widths of each:
            sizes: int32 (N, scales, 2); image_hw: int32 (N, 2), of the labels.
        and, where some are smaller than the window of 'slide',
            small: anything.
        """
        from hrnet_jax.data.answers import answer

        return answer(self, forward, batch)
