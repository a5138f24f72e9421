"""Decoding beside mmpose 1.3.2 (`data/oracle/pose`), beside plain Python, and on known peaks."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import poses
import pytest

import hrnet_jax
from hrnet_jax.data.heatmaps import _gaussian, averaged
from hrnet_jax.errors import UserError

ORACLE = Path(__file__).parent / 'data' / 'oracle' / 'pose'
CODECS = ('quarter', 'official', 'dark', 'udp')


@pytest.mark.parametrize(('codec', 'error'), [('quarter', 0), ('dark', 1e-3), ('udp', 1e-3)])
@pytest.mark.parametrize(('size', 'sigma'), [((256, 192), 2), ((384, 288), 3)])
def test_mmpose(codec, error, size, sigma):
    maps = poses.heatmaps(21, 17, size[0] // 4, size[1] // 4)
    keypoints, scores = hrnet_jax.decode_heatmaps(maps, codec, input_size=size, sigma=sigma)
    with np.load(ORACLE / 'decoders.npz') as oracle:
        name = f'{size[0]}x{size[1]}.{codec}'
        assert np.abs(keypoints[0] - oracle[f'{name}.keypoints']).max() <= error
        np.testing.assert_array_equal(scores[0], oracle[f'{name}.scores'])


def plain(values, x, y, official):
    """The quarter of a pixel, in plain Python."""
    height, width = values.shape
    across, down = 1 < x < width - 1, 1 < y < height - 1
    if official:
        across = down = across and down
    else:
        across, down = across and y > 0, down and x > 0
    dx = np.sign(values[y, x + 1] - values[y, x - 1]) if across else 0
    dy = np.sign(values[y + 1, x] - values[y - 1, x]) if down else 0
    return x + 0.25 * dx, y + 0.25 * dy


@pytest.mark.parametrize('codec', ['quarter', 'official'])
def test_everywhere_on_a_map(codec):
    """The maximum at each pixel, edges and corners, too."""
    random = np.random.default_rng(0)
    maps = random.random((1, 6, 5, 30)).astype(np.float32)
    for k in range(30):
        maps[0, k // 5, k % 5, k] = 2
    keypoints, scores = hrnet_jax.decode_heatmaps(maps, codec, input_size=(24, 20))
    for k in range(30):
        expected = plain(maps[0, :, :, k], k % 5, k // 5, codec == 'official')
        np.testing.assert_array_equal(keypoints[0, k], 4 * np.array(expected))
    assert np.all(np.asarray(scores) == 2)


@pytest.mark.parametrize('codec', CODECS)
def test_nothing_there(codec):
    """A map without a value above 0."""
    maps = -np.random.default_rng(0).random((1, 8, 6, 2)).astype(np.float32)
    maps[..., 1] = 0
    keypoints, scores = hrnet_jax.decode_heatmaps(maps, codec, input_size=(32, 24))
    scale = np.array([24 / 5, 32 / 7] if codec == 'udp' else [4, 4])
    expected = np.zeros(2) if codec == 'official' else -scale
    np.testing.assert_allclose(keypoints[0], np.stack([expected] * 2), rtol=1e-6)
    np.testing.assert_array_equal(scores[0], maps[0].max((0, 1)))


def test_blur():
    """11 taps for sigma 2, 17 for 3, or as many as are said."""
    maps = poses.heatmaps(21, 17, 32, 24)
    two, three, said = (
        np.asarray(hrnet_jax.decode_heatmaps(maps, 'dark', (128, 96), **given)[0])
        for given in ({'sigma': 2}, {'sigma': 3}, {'sigma': 3, 'blur': 11})
    )
    np.testing.assert_array_equal(said, two)
    assert np.abs(three - two).max() > 0.05


@pytest.mark.parametrize('taps', [3, 5, 7, 9, 11, 17])
def test_the_gaussian_is_that_of_opencv(taps):
    cv2 = pytest.importorskip('cv2')
    middle = _gaussian(41, taps)[20]
    expected = np.pad(cv2.getGaussianKernel(taps, 0)[:, 0], (41 - taps) // 2)
    np.testing.assert_allclose(middle, expected, rtol=0, atol=1e-12)


def test_a_sigma_of_less_than_a_pixel():
    maps = poses.heatmaps(21, 17, 32, 24)
    small = hrnet_jax.decode_heatmaps(maps, 'dark', (128, 96), sigma=0.25)[0]
    none = hrnet_jax.decode_heatmaps(maps, 'dark', (128, 96), blur=1)[0]
    np.testing.assert_array_equal(small, none)


def test_nothing_there_after_a_map_with_a_peak():
    """What UDPHeatmap of mmpose 1.3.2 gives: beside -1, -1 it reads the map before, too."""
    maps = np.full((1, 8, 6, 2), -1, np.float32)
    maps[0, -1, -1, 0], maps[0, 2, 3, 1] = 0.5, -0.25
    keypoints, scores = hrnet_jax.decode_heatmaps(maps, 'udp', input_size=(32, 24))
    expected = [[26.48623123, 34.36464582], [0.09142591, 0.04353606]]
    np.testing.assert_allclose(keypoints[0], expected, atol=1e-5)
    np.testing.assert_array_equal(scores, [[0.5, -0.25]])


def test_known_peaks():
    """Between the pixels: DARK and UDP come nearer than the quarter of a pixel."""
    random = np.random.default_rng(0)
    at = random.uniform(6, 26, (200, 2))
    y, x = np.mgrid[:32, :32]
    squares = (x[..., None] - at[:, 0]) ** 2 + (y[..., None] - at[:, 1]) ** 2
    maps = np.exp(-squares / (2 * 2.0**2)).astype(np.float32)[None]
    errors = {}
    for codec in CODECS:
        keypoints, _ = hrnet_jax.decode_heatmaps(maps, codec, input_size=(128, 128))
        scale = 128 / 31 if codec == 'udp' else 4
        errors[codec] = np.linalg.norm(keypoints[0] / scale - at, axis=-1).mean()
    assert max(errors['dark'], errors['udp']) < 0.02
    assert 0.1 < errors['quarter'] < 0.3


@pytest.mark.parametrize('shift', [True, False])
def test_flip(shift):
    """The network is asked twice; the second answer is mirrored back, pairs change places."""

    def forward(images):
        x = images[:, ::4, ::4].astype(jnp.float32)
        return jnp.concatenate([x[..., :2], 2 * x[..., 2:]], -1)

    images = np.random.default_rng(0).integers(0, 256, (2, 32, 24, 3), np.uint8)
    ours = averaged(forward, jnp.asarray(images), (1, 0, 2), shift, 3)
    one = np.asarray(forward(jnp.asarray(images)))
    other = np.asarray(forward(jnp.asarray(images[:, :, ::-1])))[:, :, ::-1][..., [1, 0, 2]]
    if shift:
        moved = other.copy()
        moved[:, :, 1:] = other[:, :, :-1]
        other = moved
    np.testing.assert_allclose(ours, (one + other) / 2)


@pytest.mark.parametrize('codec', CODECS)
def test_nobody(codec):
    keypoints, scores = hrnet_jax.decode_heatmaps(np.zeros((0, 8, 6, 2)), codec)
    assert (keypoints.shape, scores.shape) == ((0, 2, 2), (0, 2))


def test_mistakes():
    maps = np.zeros((1, 8, 6, 2), np.float32)
    with pytest.raises(
        UserError, match="unknown codec 'half'; known: quarter, official, dark, udp"
    ):
        hrnet_jax.decode_heatmaps(maps, 'half')
    with pytest.raises(UserError, match=r'heatmaps have shape \(N, H, W, K\), not \(8, 6, 2\)'):
        hrnet_jax.decode_heatmaps(maps[0], 'dark')
    with pytest.raises(UserError, match='blur must be an odd number, not 4'):
        hrnet_jax.decode_heatmaps(maps, 'dark', blur=4)
    with pytest.raises(UserError, match='the network has 2 keypoints, but 3 have names'):
        averaged(lambda x: maps, np.zeros((1, 32, 24, 3)), None, False, 3)
