"""Random transforms for training, those of torchvision, in TensorFlow operations for tf.data.

All are functions of a seed, int (2,), and of nothing else that is random, so that a resumed run
sees the same pixels. One seed may go to all of them: their draws are independent.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from hrnet_jax.data.pixels import reader, resize_crop_tf
from hrnet_jax.data.preprocess import Transform

if TYPE_CHECKING:
    import tensorflow as tf

# What shears, translations and rotations uncover: black, with the nearest pixel elsewhere, both
# the defaults of torchvision.
FILL = 0
_ATTEMPTS = 10


def random_resized_crop(
    encoded: tf.Tensor,
    seed: tf.Tensor,
    *,
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = 'bilinear',
) -> tf.Tensor:
    """Decodes a random box of a picture and resizes it to a square: RandomResizedCrop.

    The pixels are those of PIL's `image.crop(box).resize((size, size))`, bit for bit, where PIL
    resizes the width first (before Pillow 13: always). The EXIF tag is ignored.

    Args:
        encoded: string scalar, the bytes of an image file.
        seed: int (2,).
        size: edge of the result, in pixels.
        scale, ratio: see `sample_box`.
        interpolation: the PIL filter, 'bilinear' or 'bicubic', both antialiased.

    Returns:
        uint8 (size, size, 3).
    """
    import tensorflow as tf

    image_size, read = reader(encoded)
    top, left, height, width = sample_box(image_size[0], image_size[1], seed, scale, ratio)
    corner, box = tf.stack((top, left)), tf.stack((height, width))
    return resize_crop_tf(box, read, Transform(size, size, interpolation), corner, (size, size))


def sample_box(
    height: tf.Tensor,
    width: tf.Tensor,
    seed: tf.Tensor,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """A random box inside an image of `height` x `width` pixels, both int32 scalars.

    The area is uniform in `scale`, as a fraction of the image, and width / height log-uniform in
    `ratio`; the position is uniform. Of 10 such boxes the first that fits is taken; if none does,
    the largest central one of an allowed ratio. Source: torchvision, RandomResizedCrop.get_params;
    the method is that of Szegedy et al., https://arxiv.org/abs/1409.4842.

    Returns:
        top, left, height, width: int32 scalars, in pixels.
    """
    import tensorflow as tf

    image = tf.cast(tf.stack((height, width)), tf.float64)[:, None]
    area, shape, *position = tf.unstack(
        tf.random.stateless_uniform((4, _ATTEMPTS), seed, dtype=tf.float64)
    )
    area = (scale[0] + (scale[1] - scale[0]) * area) * tf.reduce_prod(image)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = tf.exp(low + (high - low) * shape)
    box = tf.round(tf.sqrt(tf.stack((area / shape, area * shape))))
    corner = tf.floor(tf.stack(position) * (image - box + 1))
    fits = tf.reduce_all((box > 0) & (box <= image), axis=0)

    largest = tf.minimum(image, tf.round(image[::-1] * [[1 / ratio[0]], [ratio[1]]]))
    box = tf.concat((box, largest), axis=1)
    corner = tf.concat((corner, (image - largest) // 2), axis=1)
    first = tf.argmax(tf.pad(fits, [(0, 1)], constant_values=True))
    top, left, box_height, box_width = tf.unstack(
        tf.cast(tf.concat((corner[:, first], box[:, first]), axis=0), tf.int32)
    )
    return top, left, box_height, box_width


def random_flip(image: tf.Tensor, seed: tf.Tensor, probability: float) -> tf.Tensor:
    """Left and right of (H, W, C) exchanged with a probability; `seed` is int (2,)."""
    import tensorflow as tf

    draw = tf.random.stateless_uniform((), tf.random.fold_in(seed, 1))
    # Not image[:, ::-1], which takes 30 times as long.
    return tf.cond(draw < probability, lambda: tf.reverse(image, [1]), lambda: image)


def rand_augment(image: tf.Tensor, seed: tf.Tensor, *, ops: int, magnitude: int) -> tf.Tensor:
    """RandAugment: operations drawn from `OPERATIONS`, with repetition, one after another.

    Source: Cubuk et al., https://arxiv.org/abs/1909.13719, with the operations, ranges and random
    signs of torchvision's RandAugment, and the pixels of PIL.

    Args:
        image: uint8 (H, W, 3), with H and W known when the graph is built.
        seed: int (2,).
        ops: how many.
        magnitude: their strength, 0 to 30.

    Returns:
        uint8 (H, W, 3).
    """
    import tensorflow as tf

    # Few branches of few operations: `switch_case` visits all of them.
    functions = list(dict.fromkeys(op.function for op in OPERATIONS.values()))
    choices = [
        (
            functions.index(op.function),
            op.arguments(sign * op.strength(magnitude), *image.shape[:2]),
        )
        for op in OPERATIONS.values()
        for sign in ((1, -1) if op.signed else (1, 1))
    ]
    branch = tf.constant([number for number, _ in choices])
    arguments = tf.constant([x + (0.0,) * (6 - len(x)) for _, x in choices], tf.float64)
    draws = tf.random.stateless_uniform(
        (ops,), tf.random.fold_in(seed, 2), maxval=len(choices), dtype=tf.int32
    )
    for draw in tf.unstack(draws):
        branches = [functools.partial(f, image, arguments[draw]) for f in functions]
        image = tf.ensure_shape(tf.switch_case(branch[draw], branches), image.shape)
    return image


def _value(value: float, height: int, width: int) -> tuple[float, ...]:
    return (value,)


class Operation(NamedTuple):
    """One of RandAugment's.

    Attributes:
        function: (uint8 (H, W, 3), arguments as a float64 tensor) -> uint8 (H, W, 3).
        largest: its strength at magnitude 30, to which it is proportional.
        signed: half of the time the strength is negated.
        arguments: (strength, height, width) -> at most 6 numbers for `function`.
    """

    function: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    largest: float = 0.0
    signed: bool = False
    arguments: Callable[[float, int, int], tuple[float, ...]] = _value

    def strength(self, magnitude: int) -> float:
        return self.largest * magnitude / 30


def _identity(image, arguments):
    return image


def _affine(image, arguments):
    """Each pixel from the nearest to (a x + b y + c, d x + e y + f), given a to f in 65536ths."""
    import tensorflow as tf

    height, width, _ = image.shape
    a, b, c, d, e, f = tf.unstack(tf.cast(arguments, tf.int32))
    x, y = tf.range(width), tf.range(height)[:, None]
    column = tf.bitwise.right_shift((a * x + c) + b * y, 16)
    row = tf.bitwise.right_shift((d * x + f) + e * y, 16)
    # What lies outside is in the frame of one pixel.
    index = (tf.clip_by_value(row, -1, height) + 1) * (width + 2)
    index += tf.clip_by_value(column, -1, width) + 1
    framed = tf.pad(image, [(1, 1), (1, 1), (0, 0)], constant_values=FILL)
    return tf.gather(tf.reshape(framed, (-1, 3)), index)


def _fixed(*matrix: float) -> tuple[float, ...]:
    """PIL's rounding of an affine transform, of pixel corners, to one of centres in 65536ths.

    Source: `affine_fixed` in Pillow's Geometry.c.
    """
    a, b, c, d, e, f = matrix
    shifted = (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
    return tuple(float(math.floor(x * 65536 + 0.5)) for x in shifted)


def _rotation(degrees: float, height: int, width: int) -> tuple[float, ...]:
    """Counter-clockwise about the centre."""
    cos, sin = math.cos(math.radians(-degrees)), math.sin(math.radians(-degrees))
    x, y = width / 2, height / 2
    return _fixed(cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)


def _blend(degenerate, image, arguments):
    """PIL's `Image.blend`: from `degenerate` at factor 0 through `image` at 1 and beyond."""
    import tensorflow as tf

    mixed = degenerate + tf.cast(arguments[0], tf.float32) * (image - degenerate)
    return tf.cast(tf.clip_by_value(mixed, 0, 255), tf.uint8)


def _grey(image, channels):
    """ITU-R 601 luma as PIL's `convert('L')`, in 1 or 3 equal channels; exact: below 2^24."""
    import tensorflow as tf

    weights = tf.constant([[19595.0] * channels, [38470.0] * channels, [7471.0] * channels])
    total = tf.matmul(tf.reshape(image, (-1, 3)), weights)
    total = tf.reshape(total, (*image.shape[:2], channels))
    return tf.floor((total + 0x8000) / 65536)


def _brightness(image, arguments):
    import tensorflow as tf

    return _blend(0.0, tf.cast(image, tf.float32), arguments)


def _color(image, arguments):
    import tensorflow as tf

    image = tf.cast(image, tf.float32)
    return _blend(_grey(image, 3), image, arguments)


def _contrast(image, arguments):
    import tensorflow as tf

    image = tf.cast(image, tf.float32)
    mean = tf.reduce_mean(tf.cast(_grey(image, 1), tf.float64))
    return _blend(tf.cast(tf.floor(mean + 0.5), tf.float32), image, arguments)


def _sharpness(image, arguments):
    """The degenerate image is PIL's SMOOTH: 13ths of (1 1 1, 1 5 1, 1 1 1), but for the border."""
    import tensorflow as tf

    pixels = tf.cast(image, tf.float32)
    center = pixels[1:-1, 1:-1]
    rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * center
    inner = _blend(tf.floor(total / 13 + 0.5), center, arguments)
    inner = tf.concat((image[1:-1, :1], inner, image[1:-1, -1:]), axis=1)
    return tf.concat((image[:1], inner, image[-1:]), axis=0)


def _posterize(image, arguments):
    """Keeps the bits of a mask."""
    import tensorflow as tf

    return tf.bitwise.bitwise_and(image, tf.cast(arguments[0], tf.uint8))


def _solarize(image, arguments):
    """Inverts what is not below a threshold."""
    import tensorflow as tf

    bright = tf.cast(image, tf.float32) >= tf.cast(arguments[0], tf.float32)
    return tf.bitwise.bitwise_xor(image, tf.cast(bright, tf.uint8) * 255)


def _autocontrast(image, arguments):
    import tensorflow as tf

    pixels = tf.cast(image, tf.float64)
    low, high = tf.reduce_min(pixels, (0, 1)), tf.reduce_max(pixels, (0, 1))
    scale = tf.where(high > low, 255 / tf.maximum(high - low, 1), tf.ones_like(low))
    offset = tf.where(high > low, -low * scale, tf.zeros_like(low))
    # In PIL's order of operations: some of these values are whole numbers but for rounding.
    return tf.cast(pixels * scale + offset, tf.uint8)


def _equalize(image, arguments):
    """Each channel through the running sum of its histogram, as PIL's `ImageOps.equalize`."""
    import tensorflow as tf

    values = tf.range(256)
    counts = tf.math.bincount(
        tf.transpose(tf.reshape(tf.cast(image, tf.int32), (-1, 3))), minlength=256, axis=-1
    )
    last = tf.reduce_max(tf.where(counts > 0, values, 0), axis=1)
    total = image.shape[0] * image.shape[1] - tf.gather(counts, last, batch_dims=1)
    step = total[:, None] // 255
    table = (step // 2 + tf.cumsum(counts, axis=1, exclusive=True)) // tf.maximum(step, 1)
    table = tf.cast(tf.minimum(tf.where(step > 0, table, values), 255), tf.uint8)
    return tf.gather(tf.reshape(table, (-1,)), tf.cast(image, tf.int32) + [0, 256, 512])


# In the order of torchvision. Shifts are in whole pixels, given for an edge of 331.
OPERATIONS = {
    'identity': Operation(_identity),
    'shear x': Operation(_affine, 0.3, True, lambda v, h, w: _fixed(1, v, 0, 0, 1, 0)),
    'shear y': Operation(_affine, 0.3, True, lambda v, h, w: _fixed(1, 0, 0, v, 1, 0)),
    'translate x': Operation(
        _affine, 150.0, True, lambda v, h, w: _fixed(1, 0, -int(v * w / 331), 0, 1, 0)
    ),
    'translate y': Operation(
        _affine, 150.0, True, lambda v, h, w: _fixed(1, 0, 0, 0, 1, -int(v * h / 331))
    ),
    'rotate': Operation(_affine, 30.0, True, _rotation),
    'brightness': Operation(_brightness, 0.9, True, lambda v, h, w: (1 + v,)),
    'color': Operation(_color, 0.9, True, lambda v, h, w: (1 + v,)),
    'contrast': Operation(_contrast, 0.9, True, lambda v, h, w: (1 + v,)),
    'sharpness': Operation(_sharpness, 0.9, True, lambda v, h, w: (1 + v,)),
    'posterize': Operation(_posterize, 4.0, False, lambda v, h, w: (256 - 2 ** round(v),)),
    'solarize': Operation(_solarize, 255.0, False, lambda v, h, w: (255 - v,)),
    'autocontrast': Operation(_autocontrast),
    'equalize': Operation(_equalize),
}
