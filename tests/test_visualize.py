"""Grad-CAM against finite differences, and the picture of the four maps from the command."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rules import close, image

import hrnet_jax
from convert import from_torch
from hrnet_jax import checkpoint
from hrnet_jax.commands import visualize as visualize_command
from hrnet_jax.inference import drawing
from hrnet_jax.inference.visualize import STRIDES, components, find_class, grad_cam, view
from hrnet_jax.models import create_model
from hrnet_jax.tasks.multilabel import MultilabelClassification

DIGITS = Path(__file__).parents[1] / 'examples' / 'tiny_digits.pth'
TRANSFORM = hrnet_jax.Transform(resize=32, crop=32)


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """The folder of the converted digits checkpoint, and a scan of a nine as a file in it."""
    folder = tmp_path_factory.mktemp('digits')
    meta = checkpoint.describe(create_model('tiny', 10)) | {
        'transform': TRANSFORM.to_json(),
        'class_names': [f'digit {i}' for i in range(9)] + ['nine $'],
    }
    checkpoint.save(folder / 'tiny', from_torch(DIGITS)[1], meta)
    from sklearn.datasets import load_digits

    scan = (load_digits().images[9] * (255 / 16)).round().astype(np.uint8)
    Image.fromarray(scan).save(folder / 'nine.png')
    return folder


@pytest.fixture(scope='module')
def exact():
    """The digits network in float64, two images, their maps, and the head as a function of them."""
    with jax.enable_x64(True):
        model = create_model('tiny', 10, dtype=jnp.float64, param_dtype=jnp.float64)
        variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), from_torch(DIGITS)[1])
        images = jnp.asarray(image(0, 2, 32, 64), jnp.float64)
        features = jax.jit(functools.partial(model.apply, method='features'))
        maps = features(variables, images)

        def head(maps):
            return model.apply(variables, maps, method=lambda m, maps: m.head(maps, False))

        return model, variables, images, maps, jax.jit(head)


@pytest.mark.parametrize('stride', STRIDES)
def test_finite_differences(exact, stride):
    """A channel's weight is what the logit gains where the whole channel gains a little."""
    model, variables, images, maps, head = exact
    classes, at, step = np.array([3, 8]), STRIDES.index(stride), 1e-6
    features = np.asarray(maps[at])

    def logits(shift):
        return np.asarray(head((*maps[:at], features + shift, *maps[at + 1 :])))[[0, 1], classes]

    with jax.enable_x64(True):
        heats = np.asarray(grad_cam(model, variables, images, classes, stride))
        units = step * np.eye(features.shape[-1])
        slopes = np.stack([(logits(unit) - logits(-unit)) / (2 * step) for unit in units], -1)
    assert heats.dtype == np.float64
    assert heats.shape == features.shape[:3] == (2, 32 // stride, 64 // stride)
    weights = slopes / (features.shape[1] * features.shape[2])
    wanted = np.maximum(np.einsum('nhwc,nc->nhw', features, weights), 0)
    most = wanted.max((1, 2), keepdims=True)
    assert most.any(), 'the comparison would be empty'
    assert close(heats, wanted / np.where(most > 0, most, 1)) < 1e-6


def test_every_place_of_a_map(exact):
    """The derivative itself, at places of every map."""
    maps, head = exact[3:]
    with jax.enable_x64(True):
        gradients = jax.grad(lambda maps: head(maps)[1, 8])(maps)
        for at, (x, gradient) in enumerate(zip(maps, gradients, strict=True)):
            random = np.random.default_rng(at)
            for place in zip(*(random.integers(0, n, 12) for n in x.shape[1:]), strict=True):
                unit = np.zeros(x.shape)
                unit[(1, *place)] = 1e-5
                up, down = (head((*maps[:at], x + s * unit, *maps[at + 1 :])) for s in (1, -1))
                difference = float(up[1, 8] - down[1, 8]) / 2e-5
                assert abs(difference - gradient[(1, *place)]) < 1e-6 * np.abs(gradient).max()


def test_folded_chosen_and_predicted(digits):
    """The folded network has the same heat; the class by default is that of the largest logit."""
    model, variables = hrnet_jax.load(digits)
    images = jnp.asarray(image(3, 3, 32, 32))
    fast = hrnet_jax.fold(model, variables)
    best = np.argmax(np.asarray(fast(images)), -1)
    for stride in STRIDES:
        heat = np.asarray(grad_cam(model, variables, images, stride=stride))
        assert heat.min() >= 0
        assert all(most == 0 or abs(most - 1) < 1e-6 for most in heat.max((1, 2)))
        assert heat.shape == (3, 32 // stride, 32 // stride)
        for same in (
            grad_cam(model, variables, images, best, stride),
            grad_cam(fast.model, fast.variables, images, None, stride),
        ):
            np.testing.assert_allclose(same, heat, atol=1e-4)
    heat = grad_cam(model, variables, images, 4)
    for traced in (
        jax.jit(lambda x: grad_cam(fast.model, fast.variables, x, 4))(images),
        jax.jit(lambda v: grad_cam(fast.model, v, images, 4))(fast.variables),
    ):
        np.testing.assert_allclose(traced, heat, atol=1e-4)
    one, others = grad_cam(model, variables, images, 4), grad_cam(model, variables, images, 5)
    assert np.abs(np.asarray(one) - np.asarray(others)).max() > 0.1


def test_no_evidence_is_zero(exact):
    """Where no weight leads to the class, nothing is divided by nothing."""
    model, variables, images = exact[:3]
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: x, variables['params'])
        params['head']['classifier']['kernel'] *= 0
        heat = grad_cam(model, variables | {'params': params}, images)
    np.testing.assert_array_equal(heat, np.zeros((2, 8, 16)))


def test_view(digits):
    model, variables = hrnet_jax.load(digits)
    seen = view(model, variables, Image.open(digits / 'nine.png'), transform=TRANSFORM)
    assert seen.image.shape == (32, 32, 3)
    assert seen.target == seen.best[0]
    assert (seen.target.index, seen.target.name) == (9, 'nine $')
    assert sorted(seen.best, key=lambda p: -p.probability) == list(seen.best)
    assert [seen.maps[s].shape for s in STRIDES] == [(8, 8, 6), (4, 4, 12), (2, 2, 24), (1, 1, 48)]
    assert [seen.heats[s].shape for s in STRIDES] == [(8, 8), (4, 4), (2, 2), (1, 1)]
    chosen = view(model, variables, Image.open(digits / 'nine.png'), target=4, transform=TRANSFORM)
    assert (chosen.target.index, chosen.best) == (4, seen.best)
    with pytest.raises(hrnet_jax.UserError, match='class 10'):
        view(model, variables, seen.image, target=10)


def test_components():
    """Three independent channels are three colours; what has no contrast is grey."""
    random = np.random.default_rng(0).uniform(-1, 1, (20, 20, 3)) * (9, 3, 1)
    turned = random @ np.linalg.qr(np.random.default_rng(1).standard_normal((7, 7)))[0][:3]
    colours = components(turned.astype(np.float32))
    assert colours.shape == (20, 20, 3)
    assert (colours.min(), colours.max()) == (0, 1)
    for i in range(3):
        found = np.corrcoef(colours[..., i].ravel(), random[..., i].ravel())[0, 1]
        assert abs(found) > 0.95
    for flat in (np.ones((1, 1, 8)), np.full((4, 5, 2), 3.0), np.zeros((2, 2, 6))):
        np.testing.assert_array_equal(components(flat), np.full((*flat.shape[:2], 3), 0.5))


def test_find_class():
    names = ['tench', 'Sea Snake', '7', 'crane', 'crane']
    assert [find_class(n, names) for n in ('TENCH', 'sea snake', '7', '0')] == [0, 1, 2, 0]
    for wanted, part in (('snake', 'Sea Snake'), ('5', '0 to 4'), ('crane', '3, 4'), ('-1', '-1')):
        with pytest.raises(hrnet_jax.UserError, match=part):
            find_class(wanted, names)


def test_command(command, digits, tmp_path):
    right = (digits / 'nine.png', '--ckpt', digits, '--arch', 'tiny')
    sizes = {}
    for name, options in (
        ('all.png', ()),
        ('one.png', ('--map', 8, '--class', 'Digit 4')),
        ('large.jpg', ('--map', 4, '--class', '4', '--resize', 64, '--crop', 64)),
    ):
        code, text, err = command(
            visualize_command.main, *right, '--out', tmp_path / name, *options
        )
        assert code == 0, err
        assert text.splitlines()[-1] == (
            f'drawn, for {"digit 4" if options else "nine $"}: {tmp_path / name}'
        )
        with Image.open(tmp_path / name) as picture:
            assert picture.format == ('JPEG' if name.endswith('jpg') else 'PNG')
            sizes[name] = picture.size
            pixels = np.asarray(picture.convert('RGB')).astype(int)
        assert pixels.std() > 40
        assert np.ptp(pixels, -1).max() > 100  # in colour
    assert 1400 < sizes['all.png'][0] < 2000
    assert sizes['one.png'] == sizes['large.jpg']
    assert 500 < sizes['one.png'][0] < 900
    assert len({height for _, height in sizes.values()}) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ['all.png', 'large.jpg', 'one.png']


def test_a_larger_crop_has_no_border(command, digits, tmp_path, monkeypatch):
    seen = []
    draw = drawing.draw_view
    monkeypatch.setattr(
        drawing, 'draw_view', lambda view, *rest: (seen.append(view), draw(view, *rest))
    )
    options = ('--ckpt', digits, '--out', tmp_path / 'x.png', '--crop', 64, '--map', 4)
    white = tmp_path / 'white.png'
    Image.new('L', (20, 20), 255).save(white)
    assert command(visualize_command.main, white, *options)[0] == 0
    assert seen[0].image.shape == (64, 64, 3)
    assert (seen[0].image == 255).all()


def test_mistakes_are_one_line(refused, digits, tmp_path):
    good, out = digits / 'nine.png', ('--out', tmp_path / 'x.png')
    right = (good, '--ckpt', digits, *out)
    for arguments, part in (
        (('--ckpt', digits, *out), 'IMAGE'),
        ((good, '--ckpt', digits), '--out'),
        ((tmp_path / 'none.png', '--ckpt', digits, *out), 'none.png'),
        ((*right, '--class', 'cat'), "unknown class 'cat'"),
        ((*right, '--class', 'digit'), 'perhaps digit 0'),
        ((*right, '--class', '10'), '0 to 9'),
        ((*right, '--map', '5'), "'5'"),
        ((*right, '--crop', '40'), 'multiple of 32'),
        ((*right, '--crop', '64', '--resize', '32'), 'black border'),
        ((*right, '--arch', 'w18'), 'no checkpoint of w18'),
        ((good, '--ckpt', digits, '--out', tmp_path / 'x.bmp'), '.png'),
        ((good, '--ckpt', digits, '--out', tmp_path / 'no' / 'x.png'), 'does not exist'),
    ):
        assert part in refused(visualize_command.main, *arguments)
    assert not list(tmp_path.iterdir())


def test_another_task_is_one_line(refused, digits, tmp_path, monkeypatch):
    """Its checkpoint may have no classes."""
    other = type('Other', (MultilabelClassification,), {'name': 'other', 'recipes': {}})()
    monkeypatch.setattr('hrnet_jax.tasks._REGISTERED', {'other': other})
    checkpoint.save(tmp_path / 'tiny', from_torch(DIGITS)[1], {'task': 'other'})
    flags = ('--ckpt', tmp_path / 'tiny', '--out', tmp_path / 'x.png')
    line = refused(visualize_command.main, digits / 'nine.png', *flags)
    assert 'is for other; views are of classifiers' in line


def test_wrong_arguments(digits):
    model, variables = hrnet_jax.load(digits)
    images = jnp.zeros((2, 32, 32, 3))
    for arguments, part in (
        ((images, None, 5), 'stride'),
        ((images, 10), 'between 0 and 9'),
        ((images, -1), 'between 0 and 9'),
        ((images, [1, 2, 3]), 'each of the 2'),
        ((images, 1.5), 'one number'),
        ((images[:, :30],), 'multiple of 32'),
    ):
        with pytest.raises(hrnet_jax.UserError, match=part):
            grad_cam(model, variables, *arguments)
