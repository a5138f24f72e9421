"""Evaluation pixels: equal to PIL's in every bit, in PIL and in TensorFlow."""

from __future__ import annotations

import functools
import io
import json

import imagenet
import jax
import jax.numpy as jnp
import numpy as np
import PIL
import pytest
import tensorflow as tf
from PIL import Image

from hrnet_jax.data import pixels as filters
from hrnet_jax.data.preprocess import Transform, normalize, open_image, resize_crop
from hrnet_jax.errors import UserError

BEFORE_13 = int(PIL.__version__.split('.')[0]) < 13
# resize, crop: what published accuracies use, equal ones, odd ones, and crops that need padding.
SIZES = ((256, 224), (288, 288), (235, 224), (48, 41), (40, 64), (33, 38), (5, 5), (1, 1))


def reference(image: Image.Image, transform: Transform) -> np.ndarray:
    """torchvision's Resize(resize) and CenterCrop(crop), as written there for PIL images."""
    (width, height), size, crop = image.size, transform.resize, transform.crop
    short, long = min(width, height), max(width, height)
    new = size, int(size * long / short)
    method = getattr(Image.Resampling, transform.interpolation.upper())
    image = image.resize(new if width <= height else new[::-1], method)
    width, height = image.size
    if crop > width or crop > height:
        left, top = max(crop - width, 0) // 2, max(crop - height, 0) // 2
        padded = Image.new('RGB', (max(crop, width), max(crop, height)))
        padded.paste(image, (left, top))
        image, (width, height) = padded, padded.size
    top, left = round((height - crop) / 2.0), round((width - crop) / 2.0)
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


@functools.cache
def graph(function, transform: Transform, dtype, shape):
    return tf.function(
        lambda x: function(x, transform),
        input_signature=[tf.TensorSpec(shape, dtype)],
        autograph=False,
    )


def from_pixels(pixels, transform: Transform):
    return filters.resize_crop_tf(
        tf.shape(pixels)[:2], lambda first, last: (pixels, tf.zeros(2, tf.int32)), transform
    )


def by_tf(pixels: np.ndarray, transform: Transform) -> np.ndarray:
    return graph(from_pixels, transform, tf.uint8, (None, None, 3))(pixels).numpy()


def from_bytes(encoded: bytes, transform: Transform) -> np.ndarray:
    return graph(filters.evaluation_image, transform, tf.string, ())(encoded).numpy()


def encode(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
@pytest.mark.parametrize(('resize', 'crop'), SIZES)
def test_equals_pil(interpolation, resize, crop):
    transform = Transform(resize, crop, interpolation)
    rng = np.random.default_rng(resize)
    shapes = [
        (1, 1),
        (2, 3),
        (crop, crop),
        (resize, resize + 1),
        (resize, resize),
        (7, 30),
        (31, 7),
    ]
    shapes += [tuple(rng.integers(1, most, 2)) for most in (12, 90, 300, 700) for _ in range(9)]
    for number, (height, width) in enumerate(shapes):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if number % 2:  # Black and white: the largest overshoot, and sums on the edge of rounding.
            pixels = np.where(pixels < 128, np.uint8(0), np.uint8(255))
        image = Image.fromarray(pixels)
        ours = resize_crop(pixels, transform)
        np.testing.assert_array_equal(by_tf(pixels, transform), ours, str((height, width)))
        if BEFORE_13 or height <= 2 * width:
            np.testing.assert_array_equal(ours, reference(image, transform), str((height, width)))


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_large_images_are_filtered_in_pieces(monkeypatch, interpolation):
    transform = Transform(31, 27, interpolation)
    pixels = np.asarray(imagenet.picture(0, 400, 333))
    whole = by_tf(pixels, transform)
    monkeypatch.setattr(filters, '_LARGE', 1000)
    pieces = from_pixels(tf.constant(pixels), transform).numpy()
    np.testing.assert_array_equal(pieces, whole)


def test_offset_is_half_to_even():
    row = np.zeros((32, 37, 3), np.uint8) + np.arange(37, dtype=np.uint8)[:, None]
    for width, left in ((33, 0), (34, 1), (35, 2), (36, 2), (37, 2)):  # 0.5 and 2.5 go to 0 and 2.
        assert resize_crop(row[:, :width], Transform(32, 32))[0, 0, 0] == left
        assert by_tf(row[:, :width], Transform(32, 32))[0, 0, 0] == left


@pytest.mark.parametrize('seed', range(16))
def test_jpeg_equals_pil(seed):
    transform = Transform(interpolation=('bilinear', 'bicubic')[seed % 2])
    encoded = imagenet.jpeg(seed)
    with Image.open(io.BytesIO(encoded)) as image:  # PIL does not turn it, nor does torchvision.
        image = image.convert('RGB')
    np.testing.assert_array_equal(from_bytes(encoded, transform), resize_crop(image, transform))


@pytest.mark.parametrize('form', ['JPEG', 'PNG', 'WEBP'])
@pytest.mark.parametrize('orientation', [1, 2, 3, 5, 6, 8])
def test_what_exif_turns(form, orientation, tmp_path):
    """With it evaluation sees what predict.py sees, and without what predict.py --no-exif sees."""
    exif, file = Image.Exif(), tmp_path / 'file'
    exif[0x0112] = orientation
    encoded = encode(imagenet.picture(1, 50, 91), form, exif=exif)
    file.write_bytes(encoded)
    seen = {}
    for turned in (True, False):
        transform = Transform(48, 40, exif=turned)
        seen[turned] = from_bytes(encoded, transform)
        ours = resize_crop(open_image(file, turned), Transform(48, 40))
        np.testing.assert_array_equal(seen[turned], ours)
        with Image.open(file) as image:
            np.testing.assert_array_equal(transform.prepare(image), ours)
    assert np.array_equal(seen[True], seen[False]) == (orientation == 1)


CUT = {
    'baseline': {'quality': 90, 'subsampling': '4:4:4'},
    'subsampled': {'quality': 75, 'subsampling': '4:2:0'},
    'progressive': {'quality': 80, 'progressive': True},
}


@pytest.mark.parametrize('options', CUT.values(), ids=CUT)
def test_jpeg_files_that_are_not_whole(options):
    """Cut off below the crop, as torchvision refuses it; or with something behind the end."""
    transform = Transform(48, 40)
    encoded = encode(imagenet.picture(1, 400, 60), 'JPEG', **options)
    whole = from_bytes(encoded, transform)
    for kept in (len(encoded) * 9 // 10, len(encoded) - 2):
        with pytest.raises(tf.errors.OpError, match='no image, or a damaged one'):
            from_bytes(encoded[:kept], transform)
    for more in (bytes(100), b'\n', encoded):
        np.testing.assert_array_equal(from_bytes(encoded + more, transform), whole)


def odd_files() -> dict[str, bytes]:
    image = imagenet.picture(1, 50, 61)
    alpha = Image.linear_gradient('L').resize(image.size)
    rgba, la = image.convert('RGBA'), image.convert('LA')
    rgba.putalpha(alpha)
    la.putalpha(alpha)
    palette = image.convert('P')
    ink = np.random.default_rng(0).integers(0, 256, (50, 61, 4), dtype=np.uint8)
    return {
        'png': encode(image, 'PNG'),
        'png grey': encode(image.convert('L'), 'PNG'),
        'png alpha': encode(rgba, 'PNG'),
        'png grey alpha': encode(la, 'PNG'),
        'png palette': encode(palette, 'PNG', transparency=bytes(range(256))),
        'png 1 bit': encode(image.convert('1'), 'PNG'),
        'png 16 bit': encode(sixteen_bit(image), 'PNG'),
        'gif': encode(palette, 'GIF'),
        'gif film': encode(palette, 'GIF', save_all=True, append_images=[image.rotate(90)]),
        'bmp': encode(image, 'BMP'),
        'bmp palette': encode(palette, 'BMP'),
        'tiff': encode(image, 'TIFF'),
        'webp': encode(image, 'WEBP'),
        'cmyk': encode(Image.fromarray(ink, 'CMYK'), 'JPEG'),
    }


def sixteen_bit(image: Image.Image) -> Image.Image:
    grey = np.asarray(image.convert('L')).astype(np.uint16)
    return Image.fromarray(grey * 256 + 77)


@pytest.mark.parametrize('name', odd_files())
def test_other_formats_equal_pil(name, tmp_path):
    encoded, transform = odd_files()[name], Transform(48, 40)
    (tmp_path / 'file').write_bytes(encoded)
    image = open_image(tmp_path / 'file')
    assert image.mode == 'RGB'
    if '16' not in name:
        with Image.open(io.BytesIO(encoded)) as original:
            assert image.tobytes() == original.convert('RGBA').convert('RGB').tobytes()
    np.testing.assert_array_equal(from_bytes(encoded, transform), resize_crop(image, transform))


@pytest.mark.parametrize('damage', ['jpeg', 'png', 'text', 'empty'])
def test_damaged_bytes_raise(damage):
    whole = {'jpeg': imagenet.jpeg(1), 'png': odd_files()['png'], 'text': b'<html>' * 99}
    encoded = whole.get(damage, b'')[:500]
    with pytest.raises(tf.errors.OpError):
        from_bytes(encoded, Transform(48, 40))


def test_open_image_turns_by_exif(tmp_path):
    image, exif = imagenet.picture(2, 30, 50), Image.Exif()
    exif[0x0112] = 6  # Held with its right side down.
    image.save(tmp_path / 'a.png', exif=exif)
    expected = image.transpose(Image.Transpose.ROTATE_270)
    assert open_image(tmp_path / 'a.png').tobytes() == expected.tobytes()


def test_open_image_keeps_the_range_of_16_bits(tmp_path):
    image = imagenet.picture(3, 20, 20)
    sixteen_bit(image).save(tmp_path / 'a.png')
    sixteen_bit(image).save(tmp_path / 'a.tif')
    for name in ('a.png', 'a.tif'):
        np.testing.assert_array_equal(
            open_image(tmp_path / name).getchannel(0), image.convert('L'), name
        )


@pytest.mark.parametrize('content', [b'', b'not an image', imagenet.jpeg(0)[:900], None])
def test_open_image_names_the_unreadable(tmp_path, content):
    path = tmp_path / 'picture.jpg'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r'picture\.jpg'):
        open_image(path)


def test_open_image_refuses_floating_point(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / 'a.tif')
    with pytest.raises(UserError, match='floating-point'):
        open_image(tmp_path / 'a.tif')


def test_resize_crop_of_arrays():
    pixels, transform = np.asarray(imagenet.picture(4, 60, 45)), Transform(40, 32)
    expected = resize_crop(Image.fromarray(pixels), transform)
    rgba = np.concatenate([pixels, pixels[:, :, :1]], axis=2)
    np.testing.assert_array_equal(resize_crop(rgba, transform), expected)
    grey = resize_crop(pixels[:, :, 0], transform)
    np.testing.assert_array_equal(resize_crop(pixels[:, :, :1], transform), grey)
    np.testing.assert_array_equal(grey[:, :, 0], expected[:, :, 0])
    for bad in (pixels / 255, pixels[None], pixels[:, :, :2], pixels[:0]):
        with pytest.raises(UserError, match='expected'):
            resize_crop(bad, transform)


@pytest.mark.parametrize('jit', [False, True])
def test_normalize(jit):
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    transform = Transform()
    mean, std = np.float32(transform.mean), np.float32(transform.std)
    expected = (pixels.astype(np.float32) / np.float32(255) - mean) / std

    def run(dtype):
        function = functools.partial(normalize, transform=transform, dtype=dtype)
        return (jax.jit(function) if jit else function)(pixels)

    with jax.numpy_rank_promotion('raise'), jax.numpy_dtype_promotion('strict'):
        np.testing.assert_allclose(run(jnp.float32), expected, rtol=0, atol=1e-6)
        assert run(jnp.bfloat16).dtype == jnp.bfloat16


def test_transform_json():
    transform = Transform(288, 288, 'bicubic', mean=(0.5, 0.5, 0.5))
    assert Transform.from_json(json.loads(json.dumps(transform.to_json()))) == transform
    assert Transform.from_json({}) == Transform()
    for one in (
        Transform(),
        Transform(73, 64, 'bicubic', flip=True),
        Transform(73, 64, exif=True),
        Transform(flip=True, exif=True),
    ):
        assert Transform.from_text(one.text) == one


def test_a_border_is_never_silent():
    with pytest.warns(UserWarning, match='crop 288 is larger than resize 256: .* black border'):
        Transform(crop=288)
    with pytest.warns(UserWarning, match='crop 224 is larger than resize 64'):
        Transform.from_json({'resize': 64})  # of an older checkpoint


@pytest.mark.parametrize(
    ('flags', 'expected'),
    [
        ({'crop': 288}, (329, 288)),  # 256 / 224 of it
        ({'crop': 512}, (585, 512)),
        ({'crop': 256}, (256, 256)),
        ({'crop': 192}, (256, 192)),
        ({'resize': 288, 'crop': 288}, (288, 288)),
        ({'resize': 64}, 'crop 224 is larger than resize 64'),
        ({'resize': 64, 'crop': 96}, 'crop 96 is larger than resize 64'),
        ({'crop': 100}, 'crop 100 is not a multiple of 32; the next that fit are 96 and 128'),
        ({'scale': 2.0}, '--scale is not for this checkpoint, which has: resize 256 crop 224'),
    ],
)
def test_override_makes_no_border(flags, expected):
    if isinstance(expected, tuple):
        changed = Transform().override(32, **flags)
        assert (changed.resize, changed.crop) == expected
    else:
        with pytest.raises(UserError, match=expected):
            Transform().override(32, **flags)


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('resize', 0),
        ('crop', 2.5),
        ('crop', True),
        ('interpolation', 'nearest'),
        ('mean', (0.5, 0.5)),
        ('mean', (0.5, 'a', 0.5)),
        ('std', (1.0, 1.0, 0.0)),
        ('std', None),
        ('flip', 1),
        ('exif', 6),
        ('std', (1.0, 1.0, float('nan'))),
        ('size', 224),
    ],
)
def test_transform_refuses(field, value):
    with pytest.raises(UserError, match=field):
        Transform.from_json({field: value})
