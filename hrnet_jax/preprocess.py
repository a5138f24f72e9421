"""From image files to the pixels that the published accuracies were measured on.

The reference is torchvision on PIL: Resize, CenterCrop, ToTensor, Normalize. `resize_crop` calls
PIL; `resize_crop_tf` is the same arithmetic in TensorFlow operations, equal bit for bit.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from hrnet_jax.errors import UserError

if TYPE_CHECKING:
    import jax
    import jax.typing
    import tensorflow as tf
    from PIL import Image

    # First and last row and column of a box, int32 (2,) each -> pixels that contain it, uint8
    # (H, W, 3), and the row and column where they start.
    Read = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]

# Half the width of each filter, in pixels of the smaller image.
SUPPORT = {'bilinear': 1.0, 'bicubic': 2.0}
# PIL filters in fixed point: weights have 22 fractional bits.
_ONE = 1 << 22
# Output pixels that share a window of input pixels, which makes a filter pass one batched matrix
# product. Measured: 4 is the fastest of 2 to 16.
_BLOCK = 4
# Values of an image above which the windows are filtered one by one, to bound memory.
_LARGE = 1 << 23


@dataclasses.dataclass(frozen=True)
class Transform:
    """Shorter edge to `resize`, the central `crop` square, then (x / 255 - mean) / std.

    Attributes:
        resize: length of the shorter edge after resizing, in pixels.
        crop: edge of the central square; a smaller image is padded with black.
        interpolation: the PIL filter, 'bilinear' or 'bicubic', both antialiased.
        mean, std: of the three channels R, G, B, in units of the full range.

    Raises:
        UserError: if a value makes no sense.
    """

    resize: int = 256
    crop: int = 224
    interpolation: str = 'bilinear'
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

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
        for name in ('mean', 'std'):
            try:
                value = tuple(float(x) for x in getattr(self, name))
            except (TypeError, ValueError):
                value = ()
            if len(value) != 3 or not all(map(math.isfinite, value)):
                raise UserError(f'transform: {name} must be 3 numbers, not {getattr(self, name)!r}')
            object.__setattr__(self, name, value)
        if min(self.std) <= 0:
            raise UserError(f'transform: std must be above 0, not {self.std}')

    def to_json(self) -> dict[str, Any]:
        """The fields, as JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Transform:
        """The inverse of `to_json`; a missing field has its default.

        Raises:
            UserError: if a field is unknown or has no sensible value.
        """
        unknown = set(fields) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise UserError(f'transform: unknown fields: {", ".join(sorted(unknown))}')
        return cls(**fields)

    def override(
        self,
        resize: int | None = None,
        crop: int | None = None,
        interpolation: str | None = None,
        multiple: int = 1,
    ) -> Transform:
        """This transform with what is not None instead of its own.

        Raises:
            UserError: for values that make no sense, or a crop that is no multiple of `multiple`.
        """
        flags = {'resize': resize, 'crop': crop, 'interpolation': interpolation}
        given = {name: value for name, value in flags.items() if value is not None}
        transform = dataclasses.replace(self, **given)  # type: ignore[arg-type]
        if transform.crop % multiple:
            raise UserError(f'crop {transform.crop} is not a multiple of {multiple}')
        return transform


def open_image(path: str) -> Image.Image:
    """The picture in a file as a person sees it: RGB, turned as its EXIF tag says.

    Alpha is dropped, 16-bit grey is scaled to 8 bits.

    Raises:
        UserError: if the file cannot be read as an image.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return _rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # PIL's decoders raise almost anything on a damaged file.
        raise UserError(f'cannot read {path} as an image: {error}') from error


def _rgb(image: Image.Image) -> Image.Image:
    """`convert('RGB')`, which clips 16-bit grey, with its full range kept instead."""
    from PIL import Image

    if image.mode == 'F':
        raise UserError('floating-point images have no known range; convert it to 8 bits')
    if image.mode.startswith('I'):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == 'P':  # PIL warns when a palette's transparency is dropped in one step.
        image = image.convert('RGBA')
    return image.convert('RGB')


def resize_crop(image: Image.Image | np.ndarray, transform: Transform) -> np.ndarray:
    """Resize and CenterCrop of torchvision, through PIL.

    Two resizes of one axis each, the width first, as every Pillow before 13 does in one call; 13
    begins with the height where it is more than twice the width, which changes some values by 1.

    Args:
        image: a PIL image, or uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); alpha is dropped.

    Returns:
        uint8 (crop, crop, 3).

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
    image = _rgb(image)
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


def evaluation_image(encoded: tf.Tensor, transform: Transform) -> tf.Tensor:
    """Decodes, resizes and crops, for use in tf.data; the EXIF tag is ignored, as torchvision does.

    Args:
        encoded: string scalar, the bytes of an image file.

    Returns:
        uint8 (crop, crop, 3).
    """
    return resize_crop_tf(*reader(encoded), transform)


def reader(encoded: tf.Tensor) -> tuple[tf.Tensor, Read]:
    """Height and width of an image file, and its pixels, as PIL's `convert('RGB')`.

    TensorFlow decodes PNG, and JPEG with the accurate inverse DCT, which agrees with PIL in every
    bit (its default does not). PIL decodes the rest: CMYK, which differs, GIF, BMP, WebP, ...
    """
    import tensorflow as tf

    # As little as possible inside of `cond`, which is slow: it visits the other branch, too.
    shape = tf.cond(
        tf.strings.substr(encoded, 0, 3) == b'\xff\xd8\xff',
        lambda: tf.io.extract_jpeg_shape(encoded),
        lambda: tf.constant([0, 0, 4]),
    )
    in_part = shape[2] != 4  # A JPEG file, not of CMYK.
    whole = tf.cond(in_part, lambda: tf.zeros((0, 0, 3), tf.uint8), lambda: _decode_whole(encoded))
    size = tf.where(in_part, shape[:2], tf.shape(whole)[:2])

    def read(first, last):
        # Subsampled colours are interpolated, so that the pixels at the border of what is decoded
        # depend on where it ends; one more pixel on each side keeps the box as in the whole.
        start = tf.maximum(first - 1, 0)
        box = tf.concat((start, tf.minimum(last + 2, size) - start), axis=0)
        pixels = tf.cond(
            in_part,
            lambda: tf.io.decode_and_crop_jpeg(
                encoded, box, channels=3, dct_method='INTEGER_ACCURATE'
            ),
            lambda: tf.slice(whole, (*tf.unstack(start), 0), (*tf.unstack(box[2:]), 3)),
        )
        return pixels, start

    return size, read


def _decode_whole(encoded: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    pixels = tf.cond(
        tf.strings.substr(encoded, 0, 3) == b'\x89PN',
        lambda: tf.io.decode_png(encoded, channels=3),
        lambda: tf.numpy_function(_decode_by_pil, [encoded], tf.uint8),
    )
    readable = tf.debugging.assert_positive(tf.size(pixels), 'it is no image, or a damaged one')
    with tf.control_dependencies([readable]):
        return tf.ensure_shape(pixels, (None, None, 3))


def _decode_by_pil(encoded: bytes) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(_rgb(image))
    except Exception:  # of any kind; TensorFlow would print it with its traceback
        return np.zeros((0, 0, 3), np.uint8)


def resize_crop_tf(
    size: tf.Tensor,
    read: Read,
    transform: Transform,
    corner: tf.Tensor | int = 0,
    resized: tuple[int, int] | None = None,
) -> tf.Tensor:
    """`resize_crop` in TensorFlow operations.

    Like PIL, first along the rows, then down the columns, in whole numbers: 8 bits of a pixel times
    22 of a weight, with 8-bit values in between.

    Args:
        size: int32 (2,), height and width of the image or of a box in it.
        read: see `Read`.
        corner: int32 (2,), where the box begins.
        resized: height and width after resizing, not below `transform.resize`; by default the
            shorter edge is `transform.resize` and the longer one keeps the proportions.

    Returns:
        uint8 (crop, crop, 3).
    """
    import tensorflow as tf

    crop = transform.crop
    if resized is None:
        resized = transform.resize * size // tf.reduce_min(size)
    index, weight = _windows(size, tf.convert_to_tensor(resized), transform)
    # The crop needs no other pixels than these.
    index += tf.reshape(corner, (-1, 1, 1))
    pixels, start = read(index[:, 0, 0], tf.reduce_max(index, (1, 2)))
    index -= start[:, None, None]
    height, width, _ = tf.unstack(tf.shape(pixels))
    # The axis to filter comes first, the others are one row; 2-D transposes are the fastest.
    pixels = tf.transpose(tf.reshape(pixels, (height, width * 3)))
    pixels = _filter(tf.reshape(pixels, (width, 3 * height)), index[1], weight[1], transform)
    pixels = tf.transpose(tf.reshape(pixels, (crop * 3, height)))
    pixels = _filter(pixels, index[0], weight[0], transform)
    pixels = tf.reshape(pixels, (crop, crop, 3))
    if transform.resize < crop:
        inside = tf.minimum(resized, crop)
        before = (crop - inside) // 2
        padding = tf.stack((before, crop - inside - before), axis=1)
        pixels = tf.pad(pixels[: inside[0], : inside[1]], tf.pad(padding, ((0, 1), (0, 0))))
        pixels = tf.ensure_shape(pixels, (crop, crop, 3))
    return pixels


def _windows(
    size: tf.Tensor, resized: tf.Tensor, transform: Transform
) -> tuple[tf.Tensor, tf.Tensor]:
    """What each pixel of the crop is made of, both axes at once.

    Source: `precompute_coeffs` and `normalize_coeffs_8bpc` in Pillow's Resample.c, in their order
    of operations, because a weight that rounds the other way would show.

    Args:
        size: int32 (2,), height and width of the image.
        resized: int32 (2,), the same after the resize.

    Returns:
        int32 (2, N, W): the input pixels of N blocks of output pixels, in windows of W;
        int32 (2, N, W, _BLOCK): their weights, in units of 2^-22, 0 outside the filter.
    """
    import tensorflow as tf

    def axes(values):
        return tf.reshape(values, (2, 1, 1))

    # torchvision's offset, int(round((resized - crop) / 2)), a half to the even side.
    half, odd = (resized - transform.crop) // 2, (resized - transform.crop) % 2
    offset = tf.cast(tf.maximum(half + odd * (half % 2), 0), tf.float64)
    blocks = -(-transform.crop // _BLOCK)
    position = np.arange(blocks * _BLOCK).reshape(blocks, _BLOCK) + 0.5

    scale = tf.cast(size, tf.float64) / tf.cast(resized, tf.float64)
    stretch = tf.maximum(scale, 1.0)
    support = axes(SUPPORT[transform.interpolation] * stretch)
    center = (axes(offset) + position) * axes(scale)
    low = tf.maximum(tf.cast(center[:, :, :1] - support + 0.5, tf.int32), 0)
    high = tf.minimum(tf.cast(center[:, :, -1:] + support + 0.5, tf.int32), axes(size))
    index = low + tf.range(tf.reduce_max(high - low))

    # Few operations of few values broadcast: most of the time is theirs. The filter is 0 outside
    # of its support, so that only the end of the image is left to mask.
    place = tf.where(index < axes(size), tf.cast(index, tf.float64), np.inf)
    x = place[..., None] - center[:, :, None]
    x = tf.abs((x + 0.5) * (1.0 / stretch)[:, None, None, None])
    if transform.interpolation == 'bilinear':
        weight, half = tf.nn.relu(1.0 - x), 0.5
    else:  # Keys' cubic with a = -0.5, which is negative beyond 1.
        inside = x < 1.0
        near = (1.5 * x - 2.5) * x * x + 1.0
        x = tf.minimum(x, 2.0)
        far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
        weight, half = tf.where(inside, near, far), tf.cast(inside, tf.float64) - 0.5
    # Sums of 0 are those of pixels beyond the resized image.
    weight = tf.math.divide_no_nan(weight, tf.reduce_sum(weight, axis=2, keepdims=True))
    weight = tf.cast(weight * _ONE + half, tf.int32)
    return tf.minimum(index, axes(size) - 1), weight


def _filter(
    pixels: tf.Tensor, index: tf.Tensor, weight: tf.Tensor, transform: Transform
) -> tf.Tensor:
    """Filters the first axis: uint8 (H, K) -> uint8 (crop, K), given one axis of `_windows`."""
    import tensorflow as tf

    def at_once():
        sums = tf.matmul(weight, tf.cast(tf.gather(pixels, index), tf.int32), transpose_a=True)
        sums = tf.bitwise.right_shift(sums + _ONE // 2, 22)
        if transform.interpolation != 'bilinear':  # Negative weights leave the range of uint8.
            sums = tf.clip_by_value(sums, 0, 255)
        return tf.cast(sums, tf.uint8)

    def one_by_one(pixels, index, weight):
        sums = (w.T.astype(np.float64) @ pixels[i] for i, w in zip(index, weight, strict=True))
        return np.stack([(x / _ONE + 0.5).clip(0, 255).astype(np.uint8) for x in sums])

    # A loop of TensorFlow operations, even if not entered, adds about 15 % to the time of an image.
    rows = tf.cond(
        tf.size(pixels) > _LARGE,
        lambda: tf.numpy_function(one_by_one, (pixels, index, weight), tf.uint8),
        at_once,
    )
    return tf.reshape(rows, (-1, tf.shape(pixels)[1]))[: transform.crop]


def normalize(
    images: jax.typing.ArrayLike, transform: Transform, dtype: jax.typing.DTypeLike = np.float32
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
