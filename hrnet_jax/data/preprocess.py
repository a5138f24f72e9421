"""From image files to the pixels that the published accuracies were measured on.

The reference is torchvision on PIL: Resize, CenterCrop, ToTensor, Normalize. `resize_crop` calls
PIL; `pixels.resize_crop_tf` is the same arithmetic in TensorFlow operations, equal bit for bit.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hrnet_jax.data import encoded
from hrnet_jax.data.protocol import Protocol, images_taken
from hrnet_jax.errors import UserError

if TYPE_CHECKING:
    import jax
    import jax.typing
    from PIL import Image

# Half the width of each filter, in pixels of the smaller image.
SUPPORT = {'bilinear': 1.0, 'bicubic': 2.0}


@dataclasses.dataclass(frozen=True)
class Transform(Protocol):
    """Shorter edge to `resize`, the central `crop` square, then (x / 255 - mean) / std.

    Attributes:
        resize: length of the shorter edge after resizing, in pixels.
        crop: edge of the central square; a smaller image is padded with black.
        interpolation: the PIL filter, 'bilinear' or 'bicubic', both antialiased.
        mean, std: of the three channels R, G, B, in units of the full range.
        flip: the outputs are the mean of those for the image and for its mirror image.
        exif: a photograph is first turned as its EXIF tag says. What is no file or PIL image has no
            tag; predict.py turns every photograph unless it is told not to.

    Raises:
        UserError: if a value makes no sense.
    """

    resize: int = 256
    crop: int = 224
    interpolation: str = 'bilinear'
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    flip: bool = False
    exif: bool = False

    def __post_init__(self):
        for name in ('resize', 'crop'):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f'transform: {name} must be a whole number above 0, not {value!r}')
        if self.interpolation not in SUPPORT:
            raise UserError(
                f'transform: interpolation must be one of {", ".join(SUPPORT)}, '
                f'not {self.interpolation!r}'
            )
        for name in ('flip', 'exif'):
            if not isinstance(value := getattr(self, name), bool):
                raise UserError(f'transform: {name} must be true or false, not {value!r}')
        for name in ('mean', 'std'):
            try:
                value = tuple(float(x) for x in getattr(self, name))
            except (TypeError, ValueError):
                value = ()
            if len(value) != 3 or not all(map(math.isfinite, value)):
                raise UserError(f'transform: {name} must be 3 numbers, not {getattr(self, name)!r}')
            object.__setattr__(self, name, value)
        if self.crop > self.resize:
            warnings.warn(
                f'crop {self.crop} is larger than resize {self.resize}: images have a black border',
                stacklevel=3,
            )
        if min(self.std) <= 0:
            raise UserError(f'transform: std must be above 0, not {self.std}')

    @property
    def text(self) -> str:
        """Without mean and std, such as 'resize 256 crop 224 bilinear'."""
        more = ' flip' * self.flip + ' exif' * self.exif
        return f'resize {self.resize} crop {self.crop} {self.interpolation}{more}'

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The inverse of `text`, with ImageNet's mean and std."""
        _, resize, _, crop, interpolation, *more = text.split()
        return cls(int(resize), int(crop), interpolation, flip='flip' in more, exif='exif' in more)

    def prepare(self, image: Image.Image | np.ndarray) -> np.ndarray:
        return resize_crop(image, self)

    @property
    def image_size(self) -> tuple[int, int]:
        return self.crop, self.crop

    def at_size(self, height: int, width: int) -> Self:
        """With another crop, and the resize in proportion."""
        if height != width:
            raise UserError(f'the crop is a square, not {height} x {width}')
        resize = round(self.resize * height / self.crop)
        return dataclasses.replace(self, crop=height, resize=resize)

    def outputs(self, forward: Callable[..., Any], batch: Mapping[str, Any]) -> Any:
        """With `flip` the mean over the image and its mirror image."""
        pixels = batch['image']
        found = forward(pixels)
        return (found + forward(pixels[:, :, ::-1])) / 2 if self.flip else found

    @classmethod
    def add_flags(cls, group: argparse._ArgumentGroup) -> None:
        own = "instead of the checkpoint's"
        group.add_argument(
            '--resize', type=int, help=f'shorter edge in pixels, {own}; follows a larger --crop'
        )
        group.add_argument('--crop', type=int, help=f'edge of the central square, {own}')
        group.add_argument('--interpolation', choices=list(SUPPORT), help=f'filter, {own}')
        group.add_argument(
            '--flip', action=argparse.BooleanOptionalAction, help='average with the mirror image'
        )
        group.add_argument(
            '--exif',
            action=argparse.BooleanOptionalAction,
            help='turn photographs as their EXIF tag says (default: predict.py does, eval.py does '
            'not)',
        )

    @classmethod
    def add_file_flags(cls, group: argparse._ArgumentGroup) -> None:
        group.add_argument(
            '--resize',
            type=int,
            metavar='N',
            help='the network expects images whose shorter edge was resized to N pixels (default: '
            'as of the published checkpoint, or as in the JSON beside SRC; else 256)',
        )
        group.add_argument(
            '--crop',
            type=int,
            metavar='N',
            help='and of which the central N x N pixels were taken; a multiple of 32 (default: '
            'likewise; else 224)',
        )
        group.add_argument(
            '--interpolation',
            choices=list(SUPPORT),
            help='the filter of that resizing (default: likewise; else bilinear)',
        )

    @classmethod
    def of_file(
        cls, outputs: int | None, meta: Mapping[str, Any], multiple: int = 1, **flags: Any
    ) -> tuple[Self, list[str]]:
        found = cls().override(multiple, **flags)
        if outputs is None or any(map(flags.get, ('resize', 'crop', 'interpolation'))):
            return found, images_taken([], [], flags)
        sizes = f'resized to {found.resize} and cropped to {found.crop} pixels'
        return found, images_taken([sizes], ['--resize', '--crop'], flags)

    def override(self, multiple: int = 1, **flags: Any) -> Self:
        """See `Protocol.override`; a crop above the resize raises it in proportion.

        Raises:
            UserError: also for a crop that is no multiple of `multiple`, or above a given resize.
        """
        crop, resize = flags.get('crop'), flags.get('resize')
        if crop and resize is None and crop > self.resize:
            flags['resize'] = round(crop * max(self.resize / self.crop, 1))
        final = crop or self.crop
        if resize and final > resize:
            raise UserError(
                f'crop {final} is larger than resize {resize}: the image would have a black '
                'border; give both, or --crop alone, which the resize follows'
            )
        transform = super().override(**flags)
        if transform.crop % multiple:
            low = transform.crop // multiple * multiple
            raise UserError(
                f'crop {transform.crop} is not a multiple of {multiple}; the next that fit are '
                f'{low} and {low + multiple}'
            )
        return transform


def open_image(path: str, turned: bool = True) -> Image.Image:
    """The picture in a file: RGB, and as a person sees it, `turned` as its EXIF tag says.

    Alpha is dropped, 16-bit grey is scaled to 8 bits.

    Raises:
        UserError: if the file cannot be read as an image.
    """
    from PIL import ImageOps

    try:
        with encoded.opened(path) as image:
            return to_rgb(ImageOps.exif_transpose(image) if turned else image)
    except OSError as error:
        if error.strerror:  # the system refuses the file
            raise UserError(f'cannot read {path}: {error.strerror}') from error
        raise UserError(f'cannot read {path} as an image: {error}') from error
    except Exception as error:  # PIL's decoders raise almost anything on a damaged file.
        raise UserError(f'cannot read {path} as an image: {error}') from error


def to_rgb(image: Image.Image) -> Image.Image:
    """`convert('RGB')`, which clips 16-bit grey, with its full range kept instead."""
    from PIL import Image

    if image.mode == 'F':
        raise UserError('floating-point images have no known range; convert it to 8 bits')
    if image.mode.startswith('I'):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == 'P':  # PIL warns when a palette's transparency is dropped in one step.
        image = image.convert('RGBA')
    return image.convert('RGB')


def rgb_image(image: Image.Image | np.ndarray) -> Image.Image:
    """A PIL image in RGB.

    Args:
        image: a PIL image, or uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); alpha is dropped.

    Raises:
        UserError: if an array has another type or shape.
    """
    from PIL import Image

    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.size == 0:
            raise UserError(f'expected a uint8 image (H, W, 3), not {array.dtype} {array.shape}')
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[:, :, 0]
        if array.ndim == 3 and array.shape[2] not in (3, 4):
            raise UserError(f'expected 1, 3 or 4 channels last, not shape {array.shape}')
        image = Image.fromarray(array)
    return to_rgb(image)


def resize_crop(image: Image.Image | np.ndarray, transform: Transform) -> np.ndarray:
    """Resize and CenterCrop of torchvision, through PIL; before them, what `transform.exif` says.

    Two resizes of one axis each, the width first, as every Pillow before 13 does in one call; 13
    begins with the height where it is more than twice the width, which changes some values by 1.

    Args:
        image: see `rgb_image`.

    Returns:
        uint8 (crop, crop, 3).
    """
    from PIL import Image, ImageOps

    if transform.exif and isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
    image = rgb_image(image)
    crop, (width, height) = transform.crop, image.size
    short = min(width, height)
    method = Image.Resampling[transform.interpolation.upper()]

    width = transform.resize * width // short
    left = max(round((width - crop) / 2), 0)
    image = image.resize((width, height), method).crop((left, 0, min(left + crop, width), height))
    height = transform.resize * height // short
    top = max(round((height - crop) / 2), 0)
    image = image.resize((image.width, height), method)
    image = image.crop((0, top, image.width, min(top + crop, height)))

    pad = [(n // 2, n - n // 2) for n in (crop - image.height, crop - image.width)]
    return np.pad(np.asarray(image), (*pad, (0, 0)))


def normalize(
    images: jax.typing.ArrayLike, transform: Protocol, dtype: jax.typing.DTypeLike = np.float32
) -> jax.Array:
    """(x / 255 - mean) / std in float32, as ToTensor and Normalize, then cast to `dtype`.

    Within 1e-6 of torchvision: XLA divides by a constant by multiplying with its rounded inverse.

    Args:
        images: uint8 (..., 3).
    """
    import jax.numpy as jnp

    images = jnp.asarray(images).astype(jnp.float32)
    shape = (1,) * (images.ndim - 1) + (3,)
    mean, std = (jnp.float32(x).reshape(shape) for x in (transform.mean, transform.std))
    return ((images / 255 - mean) / std).astype(dtype)
