"""Views of an image and their average, beside a plain NumPy version; images of several sizes."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import segments

import hrnet_jax
from hrnet_jax.data.buckets import buckets
from hrnet_jax.data.views import Views
from hrnet_jax.errors import UserError
from hrnet_jax.inference.forward import Forward
from hrnet_jax.upsampling import resize_bilinear

SLIDE = {'mode': 'slide', 'window': (50, 72), 'stride': (32, 40)}
WAYS = (
    Views(),
    Views(**SLIDE),
    Views(scales=(0.5, 1.25), flip=True),
    Views(**SLIDE, scales=(0.75, 1.5), flip=True),
    Views(**SLIDE, scales=(0.75, 1.5), flip=True, average='exp'),
    Views(fit=(120, 80), **SLIDE),
)


@pytest.mark.parametrize('views', WAYS)
def test_text_and_json(views):
    assert Views.from_text(views.text) == views or not views.several
    assert Views.from_text(views.text).text == views.text
    assert Views.from_json(views.to_json()) == views


def test_the_words():
    context = Views(fit=(520, 520), mode='slide', window=(480, 480), stride=(320, 320))
    assert context.text == 'fit 520 520 slide 480 480 stride 320 320'
    several = Views(scales=(0.5, 1), flip=True, average='exp')
    assert several.text == 'whole scales 0.5 1 flip exp'


@pytest.mark.parametrize(
    ('fit', 'image_hw', 'expected'),
    [
        # Worked out by hand: min(2048 / long, 512 / short), rounded half up.
        ((2048, 512), (480, 640), (512, 683)),
        ((2048, 512), (100, 1000), (205, 2048)),
        ((2048, 512), (683, 512), (683, 512)),
        ((520, 520), (375, 500), (390, 520)),
        (None, (97, 131), (97, 131)),
    ],
)
def test_sizes(fit, image_hw, expected):
    assert Views(fit=fit).sizes(image_hw) == [expected]


@pytest.mark.parametrize(('average', 'expected'), [('softmax', (185, 374)), ('exp', (185, 375))])
def test_sizes_of_several_scales(average, expected):
    """As mmcv's Resize with a scale_factor, and as the official code."""
    assert Views(scales=(1, 0.75), average=average).sizes((247, 500)) == [(247, 500), expected]


def test_flags():
    views = Views(fit=(2048, 512))
    assert views.override(flip=True, scales=[0.5, 1]).text == (
        'fit 2048 512 whole scales 0.5 1 flip softmax'
    )
    assert views.override(window=[48, 60]).text == 'fit 2048 512 slide 48 60 stride 32 40'
    sliding = Views(**SLIDE)
    assert sliding.override(mode='whole') == Views()
    assert sliding.override(stride=[10, 20]).stride == (10, 20)
    assert sliding.override(window=[96, 96]).stride == (64, 64)


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        ({'mode': 'slide'}, '--mode slide needs --window H W'),
        ({'stride': [10, 10]}, '--window and --stride are for --mode slide'),
        ({'window': [20, 64]}, r'window must be at least 32 x 32, not \(20, 64\)'),
        ({'window': [64, 64], 'stride': [65, 10]}, r'stride \(65, 10\) is larger than the window'),
        ({'scales': [0.5, 0.0]}, r'scales must be numbers above 0'),
        ({'crop': 224}, '--crop is not for this checkpoint, which has: whole'),
    ],
)
def test_mistakes(flags, words):
    with pytest.raises(UserError, match=words):
        Views().override(**flags)


def simple(pixels, sizes=None, lib=jnp):
    """In the place of a network: five logits at stride 4, of each fourth pixel and its place."""
    x = pixels[:, ::4, ::4].astype(np.float32) / np.float32(64)
    column = lib.broadcast_to(
        lib.arange(x.shape[2], dtype=np.float32)[None, None, :, None] / 8, (*x.shape[:3], 1)
    )
    return lib.concatenate([x, column, x[..., :1] - x[..., 1:2]], -1)


class Simple:
    model = types.SimpleNamespace(align_corners=False)

    def __call__(self, pixels, sizes=None):
        return simple(pixels, sizes)


def plain(views, image):
    """What `Views.outputs` should give for one image, written down in NumPy."""

    def resized(x, size):
        return np.asarray(resize_bilinear(jnp.asarray(x), size))

    def ask(image):
        return resized(simple(image[None], lib=np), image.shape[:2])[0]

    def both(image):
        return (ask(image) + ask(image[:, ::-1])[:, ::-1]) / 2 if views.flip else ask(image)

    def cut(image, ask):
        if views.mode == 'whole':
            return ask(image)
        (h, w), (ch, cw), (sh, sw) = image.shape[:2], views.window, views.stride
        total, times = 0, np.zeros((h, w, 1), np.float32)
        for i in range(max(h - ch + sh - 1, 0) // sh + 1):
            for j in range(max(w - cw + sw - 1, 0) // sw + 1):
                bottom, right = min(i * sh + ch, h), min(j * sw + cw, w)
                top, left = max(bottom - ch, 0), max(right - cw, 0)
                found = ask(image[top:bottom, left:right])
                if isinstance(total, int):
                    total = np.zeros((h, w, found.shape[-1]), np.float32)
                total[top:bottom, left:right] += found
                times[top:bottom, left:right] += 1
        return total / times

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    each = []
    for view in views.views(image):
        if views.several and views.average == 'exp':
            found = cut(view, lambda x: np.exp(both(x)))
            each.append(resized(found[None], image.shape[:2])[0])
        elif views.several:
            sides = [view, view[:, ::-1]] if views.flip else [view]
            maps = [softmax(resized(cut(x, ask)[None], image.shape[:2])[0]) for x in sides]
            maps[1:] = [x[:, ::-1] for x in maps[1:]]
            each.append(sum(maps) / len(maps))
        else:
            each.append(resized(cut(view, ask)[None], image.shape[:2])[0])
    return sum(each) / len(each)


def batch_of(views, images, exact):
    """The images in arrays of one shape, with their sizes unless they fill these."""
    shapes = [views.sizes(x.shape[:2]) for x in images]
    batch = {}
    for i in range(len(views.scales)):
        height, width = (max(s[i][axis] for s in shapes) for axis in (0, 1))
        array = np.full((len(images), height, width, 3), 99, np.uint8)  # no zeros beyond
        for row, image in zip(array, images, strict=True):
            view = list(views.views(image))[i]
            row[: view.shape[0], : view.shape[1]] = view
        batch['image' if i == 0 else f'image_{i}'] = array
    hw = np.array([x.shape[:2] for x in images], np.int32)
    batch['label'] = np.zeros((len(images), *hw.max(0)), np.uint8)
    if not exact:
        batch |= {'sizes': np.array(shapes, np.int32), 'image_hw': hw}
        if views.mode == 'slide':
            batch['small'] = np.zeros(len(images), bool)
    return batch


@pytest.mark.parametrize('views', WAYS)
def test_average(views):
    images = [segments.picture(i, 97, 131) for i in range(2)]
    batch = batch_of(views, images, exact=True)
    found = jax.jit(lambda batch: views.outputs(Simple(), batch))(batch)
    for ours, image in zip(found, images, strict=True):
        np.testing.assert_allclose(ours, plain(views, image), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize('views', WAYS)
def test_average_of_images_of_many_sizes(views):
    images = [segments.picture(i, *size) for i, size in enumerate(segments.MANY)]
    batch = batch_of(views, images, exact=False)
    found = jax.jit(lambda batch: views.outputs(Simple(), batch))(batch)
    for ours, image in zip(found, images, strict=True):
        height, width = image.shape[:2]
        ours = np.asarray(ours)[:height, :width]
        np.testing.assert_allclose(ours, plain(views, image), rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize('folded', [True, False])
def test_network_on_images_of_two_sizes(folded):
    """In an array that is larger on both edges, the small one gives what it gives alone."""
    options = {} if folded else {'head': 'ocr', 'ocr_channels': 16, 'key_channels': 8}
    model, variables = segments.network(**options, upsample='bilinear_two_step')
    if not folded:  # so that the regions of the image count
        head = variables['params']['head']
        random = np.random.default_rng(1)
        for name in ('aux_head_3', 'cls_head'):
            kernel = head[name]['kernel']
            head[name]['kernel'] = 3 * random.standard_normal(kernel.shape).astype(np.float32)
    if folded:
        fast = hrnet_jax.fold(model, variables)
        model, variables = fast.model, fast.variables
    images = [segments.picture(i, *size) for i, size in enumerate(((97, 131), (40, 45)))]

    @jax.jit
    def logits(pixels, sizes=None):
        return Forward(model, variables, Views())(pixels, sizes=sizes)

    both = batch_of(Views(), images, exact=False)
    found = logits(both['image'], both['sizes'][:, 0])
    assert found.shape == (2, 25, 33, 5)
    alone = np.asarray(logits(images[1][None]))[0]
    ours = np.asarray(found)[1, : alone.shape[0], : alone.shape[1]]
    assert np.abs(ours - alone).max() <= 1e-5 * np.abs(alone).max()


def test_buckets():
    random = np.random.default_rng(0)
    sizes = [tuple(map(int, random.integers(40, 900, 2))) for _ in range(700)]
    for views in (Views(), Views(fit=(512, 128), scales=(0.5, 1))):
        found = buckets(sizes, views)
        assert 2 <= len(found) <= 6
        assert sorted(i for bucket in found for i in bucket.numbers) == list(range(700))
        for bucket in found:
            assert not bucket.exact
            for i in bucket.numbers:
                for view, shape in zip(views.sizes(sizes[i]), bucket.views, strict=True):
                    assert np.all(np.array(view) <= shape)
                assert np.all(np.array(sizes[i]) <= bucket.image_hw)
        area = sum(len(b.numbers) * np.prod(b.views[0]) for b in found)
        largest = np.max([views.sizes(size)[0] for size in sizes], 0)
        assert area < 0.75 * len(sizes) * np.prod(largest)
    [alone] = buckets([(97, 131)] * 5, Views())
    assert (alone.exact, alone.views, alone.image_hw) == (True, ((97, 131),), (97, 131))
    [few] = buckets([(97, 131), (64, 160)], Views())
    assert (few.exact, few.views, few.image_hw) == (False, ((128, 160),), (128, 160))


def test_images_smaller_than_a_window():
    sizes = [(97, 131)] * 60 + [(64, 160)] * 60
    for window, expected in (((64, 131), [False, False]), ((65, 131), [False, True])):
        found = buckets(sizes, Views().override(window=window))
        assert [bucket.small for bucket in found] == expected
    assert not any(bucket.small for bucket in buckets(sizes, Views()))
