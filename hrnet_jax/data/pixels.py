"""PIL's pixels in TensorFlow operations, equal bit for bit: decoding, and `resize_crop`."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from hrnet_jax.data.encoded import LARGEST, opened
from hrnet_jax.data.preprocess import SUPPORT, Transform, resize_crop, to_rgb

if TYPE_CHECKING:
    import tensorflow as tf
    from PIL import Image

    # First and last row and column of a box, int32 (2,) each -> pixels that contain it, uint8
    # (H, W, 3), and the row and column where they start.
    Read = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]

# PIL filters in fixed point: weights have 22 fractional bits.
_ONE = 1 << 22
# Output pixels that share a window of input pixels, which makes a filter pass one batched matrix
# product. Measured: 4 is the fastest of 2 to 16.
_BLOCK = 4
# Values of an image above which the windows are filtered one by one, to bound memory.
_LARGE = 1 << 23


def evaluation_image(encoded: tf.Tensor, transform: Transform) -> tf.Tensor:
    """Decodes, resizes and crops, for use in tf.data.

    The EXIF tag is ignored, as torchvision does, unless `transform.exif`: TensorFlow does not read
    the tag, so that then PIL does everything.

    Args:
        encoded: string scalar, the bytes of an image file.

    Returns:
        uint8 (crop, crop, 3).
    """
    if transform.exif:
        prepare = functools.partial(resize_crop, transform=transform)
        return _checked(_by_pil(encoded, prepare), transform.crop)
    return resize_crop_tf(*reader(encoded), transform)


def reader(encoded: tf.Tensor) -> tuple[tf.Tensor, Read]:
    """Height and width of an image file, and its pixels, as PIL's `convert('RGB')`.

    TensorFlow decodes PNG, and JPEG with the accurate inverse DCT, which agrees with PIL in every
    bit (its default does not). PIL decodes the rest: CMYK, which differs, GIF, BMP, WebP, ...; and
    a JPEG without the mark of its end: cut off, which TensorFlow would not notice below the part
    that it decodes, or with something behind it.
    """
    import tensorflow as tf

    # As little as possible inside of `cond`, which is slow: it visits the other branch, too.
    shape = tf.cond(
        tf.strings.substr(encoded, 0, 3) == b'\xff\xd8\xff',
        lambda: tf.where(
            tf.strings.substr(encoded, -2, 2) == b'\xff\xd9',
            tf.io.extract_jpeg_shape(encoded),
            [0, 0, 4],
        ),
        lambda: tf.constant([0, 0, 4]),
    )
    in_part = shape[2] != 4  # A JPEG file, not of CMYK, with the mark of its end.
    whole = tf.cond(in_part, lambda: tf.zeros((0, 0, 3), tf.uint8), lambda: _decode_whole(encoded))
    size = tf.where(in_part, shape[:2], tf.shape(whole)[:2])
    # TensorFlow has the same limit for PNG, and a higher one for JPEG.
    few = tf.reduce_prod(tf.cast(size, tf.int64)) <= LARGEST
    with tf.control_dependencies(
        [tf.debugging.assert_equal(few, True, 'it claims too many pixels')]
    ):
        size = tf.identity(size)

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
        lambda: _by_pil(encoded, to_rgb),
    )
    return _checked(pixels)


def _by_pil(encoded: tf.Tensor, prepare: Callable[[Image.Image], Any]) -> tf.Tensor:
    """What `prepare` makes of PIL's image; (0, 0, 3) where there is none."""
    import tensorflow as tf

    def decode(encoded: bytes) -> np.ndarray:
        try:
            with opened(io.BytesIO(encoded)) as image:
                return np.asarray(prepare(image))
        except Exception:  # of any kind; TensorFlow would print it with its traceback
            return np.zeros((0, 0, 3), np.uint8)

    return tf.numpy_function(decode, [encoded], tf.uint8)


def _checked(pixels: tf.Tensor, edge: int | None = None) -> tf.Tensor:
    """The pixels, (edge, edge, 3); an error where there are none."""
    import tensorflow as tf

    readable = tf.debugging.assert_positive(tf.size(pixels), 'it is no image, or a damaged one')
    with tf.control_dependencies([readable]):
        return tf.ensure_shape(pixels, (edge, edge, 3))


def resize_crop_tf(
    size: tf.Tensor,
    read: Read,
    transform: Transform,
    corner: tf.Tensor | int = 0,
    resized: tuple[int, int] | None = None,
) -> tf.Tensor:
    """`preprocess.resize_crop` in TensorFlow operations.

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
