"""Training transforms: the boxes of torchvision, the pixels of PIL."""

from __future__ import annotations

import functools
import io
import math

import imagenet
import numpy as np
import PIL
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from hrnet_jax.data import augment
from hrnet_jax.data import pixels as filters
from hrnet_jax.data.augment import OPERATIONS

BEFORE_13 = int(PIL.__version__.split('.')[0]) < 13
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def graph(function, *signature):
    signature = [tf.TensorSpec(shape, dtype) for shape, dtype in signature]
    return tf.function(function, input_signature=signature, autograph=False)


SEED = (2,), tf.int32


def boxes(height, width, count, scale=SCALE, ratio=RATIO):
    """int (count, 4): top, left, height, width."""

    def draw(number):
        return tf.stack(augment.sample_box(height, width, tf.stack((number, 7)), scale, ratio))

    data = tf.data.Dataset.range(count, output_type=tf.int32).map(draw).batch(count)
    return next(data.as_numpy_iterator())


def reference_box(height, width, scale, ratio, rng):
    """torchvision's RandomResizedCrop.get_params: its steps, in NumPy."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    if width / height < min(ratio):
        w, h = width, round(width / min(ratio))
    elif width / height > max(ratio):
        w, h = round(height * max(ratio)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(('height', 'width'), [(375, 500), (333, 250), (500, 100)])
def test_boxes_are_distributed_as_torchvisions(height, width):
    count, rng = 4000, np.random.default_rng(0)
    ours = boxes(height, width, count)
    theirs = np.array([reference_box(height, width, SCALE, RATIO, rng) for _ in range(count)])
    top, left, h, w = ours.T
    assert (ours >= [0, 0, 1, 1]).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()

    def features(box):
        top, left, h, w = box.T.astype(float)
        area, shape = h * w / (height * width), np.log(w / h)
        y, x = top / np.maximum(height - h, 1), left / np.maximum(width - w, 1)
        return np.stack((area, shape, y, x, area * y, y * x, shape * x, area * shape))

    # The largest distance of the two distribution functions (Kolmogorov, Smirnov): it exceeds
    # 1.95 sqrt(2 / count) once in 1000 times for equal distributions.
    for number, (a, b) in enumerate(zip(features(ours), features(theirs), strict=True)):
        at = np.union1d(a, b)
        below = [np.searchsorted(np.sort(x), at, side='right') / count for x in (a, b)]
        assert np.abs(below[0] - below[1]).max() < 1.95 * math.sqrt(2 / count), number


@pytest.mark.parametrize(
    ('height', 'width', 'box'),
    [(20, 500, (0, 236, 20, 27)), (500, 20, (236, 0, 27, 20)), (1, 1, (0, 0, 1, 1))],
)
def test_fallback_is_the_largest_central_box(height, width, box):
    # Of the whole area, no box of these ratios fits.
    drawn = boxes(height, width, 20, scale=(1.0, 1.0))
    np.testing.assert_array_equal(drawn, np.tile(box, (20, 1)))
    rng = np.random.default_rng(0)
    assert reference_box(height, width, (1.0, 1.0), RATIO, rng) == box


def test_fallback_of_an_allowed_ratio_is_the_whole():
    drawn = boxes(30, 36, 5, scale=(2.0, 3.0))
    np.testing.assert_array_equal(drawn, np.tile((0, 0, 30, 36), (5, 1)))


@functools.cache
def crop(size, interpolation='bilinear', scale=SCALE, ratio=RATIO):
    options = {'size': size, 'interpolation': interpolation, 'scale': scale, 'ratio': ratio}
    return graph(
        lambda encoded, seed: augment.random_resized_crop(encoded, seed, **options),
        ((), tf.string),
        SEED,
    )


@functools.cache
def box():
    return graph(
        lambda height, width, seed: augment.sample_box(height, width, seed, SCALE, RATIO),
        ((), tf.int32),
        ((), tf.int32),
        SEED,
    )


def encode(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def check_crops(encoded, seeds, interpolations=('bilinear',), edges=(64, 97)):
    with Image.open(io.BytesIO(encoded)) as image:
        image = image.convert('RGB')
    for number in seeds:
        seed = tf.constant((number, 5))
        top, left, height, width = map(int, box()(image.height, image.width, seed))
        part = image.crop((left, top, left + width, top + height))
        for size in edges:
            for interpolation in interpolations:
                method = Image.Resampling[interpolation.upper()]
                # The width first, as every Pillow before 13.
                expected = part.resize((size, height), method).resize((size, size), method)
                if BEFORE_13:
                    assert part.resize((size, size), method).tobytes() == expected.tobytes()
                ours = crop(size, interpolation)(encoded, seed).numpy()
                np.testing.assert_array_equal(ours, np.asarray(expected), str((number, size)))


@pytest.mark.parametrize('number', range(16))
def test_crops_of_jpeg_equal_pil(number):
    check_crops(imagenet.jpeg(number), range(16))


@pytest.mark.parametrize('form', ['PNG', 'GIF', 'BMP'])
def test_crops_of_other_formats_equal_pil(form):
    check_crops(encode(imagenet.picture(3, 130, 171), form), range(4), ('bilinear', 'bicubic'))


def test_crops_of_small_and_long_pictures_equal_pil():
    for height, width in ((1, 1), (2, 9), (8, 8), (17, 300), (300, 17)):
        check_crops(encode(imagenet.picture(1, height, width), 'JPEG'), range(3))


def test_a_whole_square_is_resized():
    image = imagenet.picture(0, 150, 150)
    ours = crop(90, scale=(1.0, 1.0), ratio=(1.0, 1.0))(encode(image, 'PNG'), (3, 4)).numpy()
    expected = image.resize((90, 90), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(ours, np.asarray(expected))


def test_large_pictures_are_filtered_in_pieces(monkeypatch):
    encoded = imagenet.jpeg(1)
    whole = crop(64)(encoded, (0, 3)).numpy()
    monkeypatch.setattr(filters, '_LARGE', 1000)
    pieces = augment.random_resized_crop(tf.constant(encoded), (0, 3), size=64).numpy()
    np.testing.assert_array_equal(pieces, whole)


@pytest.mark.parametrize('content', [b'', b'<html>' * 99, imagenet.jpeg(1)[:500]])
def test_damaged_bytes_raise(content):
    with pytest.raises(tf.errors.OpError):
        crop(64)(content, (0, 0))


def pixels(seed=0, height=60, width=75) -> np.ndarray:
    return np.asarray(imagenet.picture(seed, height, width))


def test_flip():
    image = pixels()
    flip = graph(lambda seed: augment.random_flip(tf.constant(image), seed, 0.25), SEED)
    results = [flip((0, number)).numpy() for number in range(800)]
    flipped = [np.array_equal(result, image[:, ::-1]) for result in results]
    assert all(np.array_equal(r, image) for r, f in zip(results, flipped, strict=True) if not f)
    assert abs(np.mean(flipped) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 800)
    for probability in (0, 1):
        result = augment.random_flip(tf.constant(image), (1, 2), probability).numpy()
        np.testing.assert_array_equal(result, image[:, :: -1 if probability else 1])


def by_pil(name: str, magnitude: int, sign: int, image: Image.Image) -> Image.Image:
    """The operations and ranges of torchvision's RandAugment, in calls of PIL."""
    part, affine = sign * magnitude / 30, Image.Transform.AFFINE
    enhance = {
        'brightness': ImageEnhance.Brightness,
        'color': ImageEnhance.Color,
        'contrast': ImageEnhance.Contrast,
        'sharpness': ImageEnhance.Sharpness,
    }
    if name in enhance:
        return enhance[name](image).enhance(1 + 0.9 * part)
    shift_x, shift_y = (int(150 / 331 * n * part) for n in image.size)
    return {
        'identity': lambda: image,
        'shear x': lambda: image.transform(image.size, affine, (1, 0.3 * part, 0, 0, 1, 0)),
        'shear y': lambda: image.transform(image.size, affine, (1, 0, 0, 0.3 * part, 1, 0)),
        'translate x': lambda: image.transform(image.size, affine, (1, 0, -shift_x, 0, 1, 0)),
        'translate y': lambda: image.transform(image.size, affine, (1, 0, 0, 0, 1, -shift_y)),
        'rotate': lambda: image.rotate(30 * part),
        'posterize': lambda: ImageOps.posterize(image, 8 - round(magnitude / 7.5)),
        'solarize': lambda: ImageOps.solarize(image, 255 - 8.5 * magnitude),
        'autocontrast': lambda: ImageOps.autocontrast(image),
        'equalize': lambda: ImageOps.equalize(image),
    }[name]()


def apply(name: str, magnitude: int, sign: int, image: np.ndarray) -> np.ndarray:
    op = OPERATIONS[name]
    strength = op.strength(magnitude) * (sign if op.signed else 1)
    arguments = op.arguments(strength, *image.shape[:2])
    return op.function(tf.constant(image), tf.constant(arguments, tf.float64)).numpy()


def odd_images() -> list[np.ndarray]:
    noise = np.random.default_rng(0).integers(0, 256, (40, 31, 3), dtype=np.uint8)
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    return [
        pixels(),
        pixels(1, 75, 60),
        noise,
        noise // 8 + 100,  # Few values, far from the ends.
        ramp,
        np.where(noise < 128, np.uint8(0), np.uint8(255)),
        np.full((9, 8, 3), 77, np.uint8),
        np.stack((noise[..., 0], noise[..., 1] * 0 + 9, noise[..., 2] // 2), axis=2),
    ]


@pytest.mark.parametrize('name', OPERATIONS)
def test_operations_equal_pil(name):
    for number, image in enumerate(odd_images()):
        for magnitude in (0, 1, 9, 15, 17, 30):
            for sign in (1, -1) if OPERATIONS[name].signed else (1,):
                expected = by_pil(name, magnitude, sign, Image.fromarray(image))
                ours = apply(name, magnitude, sign, image)
                message = str((number, magnitude, sign))
                np.testing.assert_array_equal(ours, np.asarray(expected), message)


def test_rand_augment_draws_every_operation_and_sign():
    image = pixels(2, 64, 64)
    run = graph(
        lambda seed: augment.rand_augment(tf.constant(image), seed, ops=1, magnitude=13), SEED
    )
    expected = {
        (name, sign): np.asarray(by_pil(name, 13, sign, Image.fromarray(image))).tobytes()
        for name, op in OPERATIONS.items()
        for sign in ((1, -1) if op.signed else (1,))
    }
    assert len(set(expected.values())) == len(expected)
    results = [run((number, 3)).numpy().tobytes() for number in range(1000)]
    assert set(results) == set(expected.values())
    for name, op in OPERATIONS.items():
        for sign in (1, -1) if op.signed else (1,):
            rate = 1 / len(OPERATIONS) / (2 if op.signed else 1)
            count = results.count(expected[name, sign])
            assert abs(count - 1000 * rate) < 4.5 * math.sqrt(1000 * rate), (name, sign)


def test_operations_are_applied_in_turn():
    image = pixels(2, 24, 24)
    run = graph(
        lambda seed: augment.rand_augment(tf.constant(image), seed, ops=2, magnitude=10), SEED
    )
    choices = [(n, s) for n, op in OPERATIONS.items() for s in ((1, -1) if op.signed else (1,))]
    once = [by_pil(name, 10, sign, Image.fromarray(image)) for name, sign in choices]
    twice = {by_pil(name, 10, sign, x).tobytes() for name, sign in choices for x in once}
    results = [run((9, number)).numpy().tobytes() for number in range(200)]
    assert set(results) <= twice
    assert len(set(results)) > 100


def training(parallel: int) -> list[np.ndarray]:
    def transform(number, encoded):
        seed = tf.stack((tf.constant(1, tf.int64), number))
        image = augment.random_resized_crop(encoded, seed, size=48)
        image = augment.random_flip(image, seed, 0.5)
        return augment.rand_augment(image, seed, ops=2, magnitude=9)

    files = [imagenet.jpeg(number) for number in (1, 2, 6, 7)] * 6
    data = tf.data.Dataset.from_tensor_slices(files).enumerate()
    data = data.map(transform, num_parallel_calls=parallel)
    assert data.element_spec == tf.TensorSpec((48, 48, 3), tf.uint8)
    return list(data.as_numpy_iterator())


def test_only_the_seed_decides():
    one, four = training(1), training(4)
    np.testing.assert_array_equal(one, four)
    assert len({image.tobytes() for image in one}) == len(one)


def test_draws_of_one_seed_are_independent():
    image = tf.constant(pixels(2, 16, 16))

    def draws(number):
        seed = tf.stack((number, 0))
        area = tf.reduce_prod(augment.sample_box(1000, 1000, seed, SCALE, RATIO)[2:])
        flipped = tf.reduce_any(augment.random_flip(image, seed, 0.5) != image)
        changed = tf.reduce_any(augment.rand_augment(image, seed, ops=1, magnitude=0) != image)
        return tuple(tf.cast(x, tf.float32) for x in (area, flipped, changed))

    data = tf.data.Dataset.range(1000, output_type=tf.int32).map(draws).batch(1000)
    correlation = np.corrcoef(next(data.as_numpy_iterator()))
    assert np.abs(correlation - np.eye(3)).max() < 4 / math.sqrt(1000)
